"""Speed, memory and size of models on this device, each in a process of its own and all of them in interleaved rounds.

The upper half is what a worker does (``python -m fincompress.throughput``: commands and replies are JSON lines on its
stdin and stdout), the lower half is who is compared, in which order, and what is made of the numbers.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig

from fincompress import gptq, memory, models, provenance, runs
from fincompress.errors import UserError, why_it_ended

BASE = "base"  # the name under which the untuned base model is evaluated and measured
FIXED_PROMPT = 512  # tokens, for comparison with papers
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # how OpenMP's threads wait at a barrier
STEADY = 1.3  # a machine that stays the same reads its memory in no round faster than this many times the slowest
DONE = ("train_metrics.json", "quantize_metrics.json")  # the records that a finished run has one of


# ------------------------------------------------------------------------------------------------------- the worker


class Worker:
    """One model in this process: loads it, and times prefill and decoding when it is told to."""

    def __init__(self):
        models.quiet_libraries()
        self.device = models.pick_device()
        self.dtype, self.reason = models.pick_dtype(self.device)
        self.contexts: dict[int, tuple] = {}  # prompt length -> (KV cache, first token)

    def answer(self, do: str, **arguments) -> dict:
        """The reply to one command; what a person can mend, and a card that is full, come back as ``error``."""
        try:
            return {"probe": self.probe, "bandwidth": self.bandwidth, "load": self.load, "prefill": self.prefill,
                    "decode": self.decode, "peak": self.peak}[do](**arguments)  # fmt: skip
        except UserError as error:
            return {"error": str(error)}
        except (torch.cuda.OutOfMemoryError, MemoryError):
            torch.cuda.empty_cache()
            return {"error": "out of memory"}
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:  # no kernel, no package for it
            return {"error": f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"}

    def probe(self, seconds: float) -> dict:
        """The device, and its ceilings: GB/s of memory and TFLOP/s of a matrix product."""
        free = self.free_bytes()
        width = 8192 if self.device.type == "cuda" else 2048
        a = torch.randn(width, width, device=self.device).to(self.dtype)
        product = self.fastest(lambda: a @ a, seconds / 3)
        return {
            "device": self.device.type,
            "dtype": str(self.dtype).partition(".")[2],
            "reason": self.reason,
            "hardware": provenance.hardware(),
            "free_gb": round(free / 1e9, 2),
            "matmul_tflop_per_s": round(2 * width**3 / product / 1e12, 4),
            **self.bandwidth(2 * seconds / 3),
        }

    def free_bytes(self) -> int:
        """Memory that is free on the device."""
        return torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else psutil.virtual_memory().available

    def bandwidth(self, seconds: float) -> dict:
        """GB/s of memory, the best of reading and copying buffers that are larger than any cache of the processor."""
        size = min(2**29, self.free_bytes() // 8)
        source = torch.ones(size // 4, device=self.device)
        target = torch.empty_like(source)
        read = size / self.fastest(source.sum, seconds / 2)
        copied = 2 * size / self.fastest(functools.partial(target.copy_, source), seconds / 2)
        del source, target
        torch.cuda.empty_cache()  # the room may be another model's
        return {"bandwidth_gb_per_s": round(max(read, copied) / 1e9, 2)}

    def fastest(self, work, seconds: float) -> float:
        """Seconds of the fastest of several calls; a ceiling is what the device can do, not what it did on average."""
        found, began = [], time.perf_counter()
        while len(found) < 4 or time.perf_counter() - began < seconds:
            start = self.now()
            work()
            found.append(self.now() - start)
        return min(found[1:])

    def now(self) -> float:
        """The clock, after everything that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def load(self, subject: dict, results_dir: str, limit_gb: float | None) -> dict:
        """Load the model and say what it is: kernel, bytes in memory, bytes read per decoded token, and the seconds
        until one token was read.
        """
        if self.device.type == "cuda" and limit_gb:
            total = torch.cuda.get_device_properties(0).total_memory / 1e9
            torch.cuda.set_per_process_memory_fraction(min(1.0, (limit_gb - memory.CUDA_CONTEXT_GB) / total))
        subject = Subject(**subject)
        options = self.loading_options(subject, limit_gb)
        self.wake(subject)
        for path in subject.files:  # so that load time is that of files in the page cache for every model
            with open(path, "rb") as file:
                while file.read(2**24):
                    pass
        self.before_gb = memory.reset_peak()
        began = time.perf_counter()
        self.model = self.load_model(subject, results_dir, options)
        self.read(1)  # until then weights may be mapped, not read, and GPTQ's kernel packs its own anew only now
        seconds = self.now() - began
        loading = self.peak()
        if subject.precision == "gptq" and self.device.type == "cpu":
            memory.release_files(self.model)  # the weights that were read are dead, and both would count
        memory.release_unused()
        memory.reset_peak()
        head, table = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        unread = 0 if head.weight is table.weight else tensor_bytes(table.weight)
        held = sum(map(tensor_bytes, unique_tensors(self.model)))
        adapters = memory.count_parameters(p for name, p in self.model.named_parameters() if "lora_" in name)
        return {
            "load_seconds": seconds,
            "kernel": self.unpacked(subject) + kernel(self.model),
            "in_memory_gb": held / 1e9,
            "bytes_per_token": held - unread,
            "adapter_parameters": adapters,
            "load_peak_gb": loading,
        }

    @torch.inference_mode()
    def wake(self, subject: Subject) -> None:
        """Run a tiny model once: what the libraries take when they are first used is not the model's memory."""
        needed = {"nf4": ["bitsandbytes"], "int8": ["bitsandbytes"], "gptq": ["optimum.gptq", "gptqmodel"]}
        for library in needed.get(subject.precision, []) + ["peft"] * bool(subject.lora_rank):
            with contextlib.suppress(ImportError):  # loading says it better
                importlib.import_module(library)
        if subject.precision == "gptq":
            gptq.backends(subject.path, self.device, self.dtype)  # compiles what is to be compiled, once
        config = LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2
        )
        model = AutoModelForCausalLM.from_config(config).to(self.device, self.dtype)
        if subject.lora_rank:  # peft imports more, gptqmodel with it, once it is used
            from peft import LoraConfig, get_peft_model

            with gptq.quiet():
                model = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
        for tokens in (64, 1):
            model(torch.ones(1, tokens, dtype=torch.long, device=self.device))

    def unpacked(self, subject: Subject) -> str:
        """What to say of weights that are held unpacked, as ``models.load_base`` does on a CPU with bitsandbytes'."""
        if self.device.type == "cpu":
            for precision, name in {"nf4": "NF4", "int8": "int8"}.items():
                if precision in (subject.precision, subject.placement):
                    return f"{name} unpacked once: "
        return ""

    def loading_options(self, subject: Subject, limit_gb: float | None) -> dict:
        """What ``models.load_base`` is to be told beside path and precision."""
        options: dict = {}
        if subject.blocks:
            options["config"] = cut_config(models.read_config(subject.path), subject.blocks)
        if subject.placement == "offload":
            options |= models.offloading(limit_gb - memory.CUDA_CONTEXT_GB)
        return options

    def load_model(self, subject: Subject, results_dir: str, options: dict):
        """The model of a subject as it is measured here."""
        if subject.lora_rank:
            return models.load_run(Path(subject.path), results_dir, self.device, self.dtype)[0]
        precision = "nf4" if subject.placement == "nf4" else subject.precision
        if precision == "gptq":  # the checkpoint says so itself; measured is the kernel, also where it is slow
            return models.load_base(subject.path, "auto", self.device, self.dtype, packed=True, **options).eval()
        return models.load_base(subject.path, precision, self.device, self.dtype, **options).eval()

    @torch.inference_mode()
    def read(self, tokens: int) -> tuple:
        """``(KV cache, first new token, seconds)`` of one prompt of so many tokens, from its ids to the token here."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, self.model.config.vocab_size, (1, tokens), generator=generator).to(self.device)
        began = self.now()
        # As an index, like generation.py: a slice, under a head that is frozen, has the whole head copied.
        last = torch.tensor([-1], device=self.device)
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=last)
        token = output.logits[0, -1].argmax().item()
        return output.past_key_values, token, self.now() - began

    def prefill(self, tokens: int) -> dict:
        """Seconds of one prefill. A token comes first, unmeasured, as before decoding: it wakes threads and weights."""
        self.read(1)
        return {"seconds": self.read(tokens)[2]}

    @torch.inference_mode()
    def decode(self, context: int, batch: int, new_tokens: int, keep: bool = True) -> dict:
        """Seconds of each of ``new_tokens`` steps of greedy decoding after ``context`` tokens; EOS does not stop it.

        The prompt is prefilled once and its cache copied for each sequence, so that a large batch costs no prefill;
        without ``keep`` there is no copy, as when a peak of memory is taken. One step more comes first, unmeasured:
        threads and caches are woken by it.
        """
        found = self.contexts.get(context) or self.read(context)[:2]
        if keep:
            self.contexts[context] = found
        cache, token = copy.deepcopy(found[0]) if keep else found[0], found[1]
        if batch > 1:
            cache.batch_repeat_interleave(batch)
        tokens = torch.full((batch, 1), token, device=self.device)
        seconds = []
        for _ in range(new_tokens + 1):
            began = self.now()
            logits = self.model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            seconds.append(self.now() - began)
        return {"token_seconds": seconds[1:]}

    def peak(self) -> dict:
        """Peak memory in GB since the last reset: growth of resident memory since before loading, and the GPU's."""
        found = memory.peak_memory_gb()
        return found | {"rss": max(0.0, memory.peak_rss_gb() - self.before_gb)}


def unique_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, each once: tied weights are the same tensor."""
    return list({id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}.values())


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a weight in memory, a 4-bit one with its scales; one that is offloaded counts as if it were here."""
    total = tensor.numel() * tensor.element_size()
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        total += sum(part.nbytes for part in (state.absmax, state.code) if part is not None)
        state = state.state2
    return total


def kernel(model: torch.nn.Module) -> str:
    """What computes the products and the attention: classes of the blocks' linear layers, type of the weights."""
    found: dict[str, None] = {}
    for name, module in model.get_decoder().layers.named_modules():
        if "lora_" in name or not (hasattr(module, "weight") or hasattr(module, "qweight")):
            continue
        if "Linear" in type(module).__name__ and not name.endswith("base_layer"):
            inner = module.get_base_layer() if hasattr(module, "get_base_layer") else module
            weight = getattr(inner, "weight", None)
            kind = "" if weight is None or hasattr(inner, "qweight") else f" {str(weight.dtype).partition('.')[2]}"
            found[("LoRA on " if inner is not module else "") + type(inner).__name__ + kind] = None
    return f"{', '.join(found)}; attention {model.config._attn_implementation}"


def cut_config(config, blocks: int):
    """A config of the first ``blocks`` blocks alone."""
    from fincompress.depth import repack
    from fincompress.depth.sublayers import SubLayer

    kept = [repack.Block(SubLayer(i, "attention"), SubLayer(i, "mlp")) for i in range(blocks)]
    return repack.packed_config(config, kept)


def serve() -> None:
    """Answer commands on stdin until it ends. What libraries print goes to stderr: stdout is for replies alone."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(worker.answer(**json.loads(line))), file=replies, flush=True)


# -------------------------------------------------------------------------------------------------- who is compared


@dataclass
class Subject:
    """One model to measure."""

    run: str  # its name, and the folder under the results directory that its record goes to
    base_model: str
    path: str  # what is loaded
    files: list[str]  # the weights it needs on disk
    precision: str = "auto"  # of the blocks' weights
    lora_rank: int = 0  # of an adapter on the base it was trained against; 0: none
    blocks: int | None = None  # only the first so many
    placement: str = "as it is"  # or "nf4", "offload" where the card is too small
    data_run: str | None = None
    size_gb: float | None = None  # as the accuracy table counts it
    predicted_gb: float = 0.0  # of inference at batch 1, with the longest prompt


def find_subjects(
    results_dir: str, names: list[str] | None, base_model: str, data_run: str, variants: list[str] | None
) -> list[Subject]:
    """The base model first, then the runs: the ones named, or every finished one of this base model and data run.

    Raises UserError where a named run is missing, unfinished, or one of another base model or data run than the rest.
    """
    found = []
    for name in runs_with_weights(results_dir) if names is None else [name for name in names if name != BASE]:
        try:
            subject = run_subject(results_dir, name)
        except UserError as error:
            if names is not None:
                raise
            print(f"{name}: left out, {error}")  # damaged: no reason not to measure the others
            continue
        if names is None and (subject.base_model, subject.data_run) != (base_model, data_run):
            print(f"{name}: left out, it is of {subject.base_model} and data run {subject.data_run!r}")
        else:
            found.append(subject)
    for what, of in (("base model", "base_model"), ("data run", "data_run")):
        kinds = sorted({str(getattr(subject, of)) for subject in found})
        if len(kinds) > 1:
            raise UserError(f"RUNS are of more than one {what} ({', '.join(kinds)}): name those of one alone")
    if found:
        base_model, data_run = found[0].base_model, found[0].data_run
    path = models.base_model_path(base_model, results_dir)
    settings = Path(results_dir) / BASE / "settings.json"
    if settings.exists() and runs.read_json(settings)["base_model"] != base_model:
        raise UserError(f"{settings.parent}/ is about another base model than {base_model}: choose another RESULTS_DIR")
    base = Subject(
        BASE, base_model, path, weight_files(path), data_run=data_run,
        size_gb=models.size_gb(None, base_model, results_dir),
    )  # fmt: skip
    return [base, *found, *variant_subjects(base, variants, results_dir)]


def runs_with_weights(results_dir: str) -> list[str]:
    """Names of the finished runs that hold a model, merged ones included, in natural order."""
    found = set()
    for kind in DONE:
        for record in runs.records(results_dir, kind):
            directory = record.parent
            if (directory / "config.json").exists() or (directory / "adapter").exists():
                found.add(directory)
            if (directory / "merged" / "config.json").exists():
                found.add(directory / "merged")
    names = [str(directory.relative_to(results_dir)) for directory in found]
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def run_subject(results_dir: str, run: str) -> Subject:
    """A finished run as it is evaluated; ``<run>/merged`` is its adapter merged into 16 bits."""
    owner = run.removesuffix("/merged")
    directory = runs.run_directory(results_dir, owner)
    kind = next((kind for kind in DONE if (directory / kind).exists()), DONE[0])
    record = runs.read_json(runs.finished_run(results_dir, owner, kind) / "settings.json")
    settings = record.get("settings", {})
    directory = runs.run_directory(results_dir, run)
    common = {
        "run": run, "base_model": record["base_model"], "path": str(directory), "data_run": settings.get("DATA_RUN")
    }  # fmt: skip
    if (directory / "config.json").exists():
        config = models.read_config(str(directory))
        quantized = getattr(config, "quantization_config", None)
        return Subject(
            **common, files=weight_files(str(directory)), precision=quantized["quant_method"] if quantized else "auto",
            size_gb=models.size_gb(directory, record["base_model"], results_dir),
        )  # fmt: skip
    if not (directory / "adapter").exists():
        raise UserError(f"{directory}/ has no weights and no adapter of its own: name one of its depths, <run>/<n>")
    base, adapter = models.base_model_path(record["base_model"], results_dir), directory / "adapter"
    return Subject(
        **common, files=weight_files(base) + weight_files(str(adapter)), precision=record["base_precision"],
        lora_rank=runs.read_json(adapter / "adapter_config.json")["r"],
        size_gb=models.size_gb(directory, record["base_model"], results_dir),
    )  # fmt: skip


def weight_files(path: str) -> list[str]:
    """The safetensors files of a checkpoint, a hub id's in the Hub's cache."""
    return sorted(map(str, models.checkpoint_folder(path).glob("*.safetensors")))


def variant_subjects(base: Subject, variants: list[str] | None, results_dir: str) -> list[Subject]:
    """Forms of the base model without any training: ``nf4``, ``gptq`` (random weights), ``blocks:<n>``.

    None means all of them, at three quarters and half of the depth, for a named shape, and nothing for any other model.
    """
    config = models.base_config(base.base_model, results_dir)
    shape = base.base_model.startswith("shape:")
    if variants is None:
        depths = sorted({max(1, config.num_hidden_layers * part // 4) for part in (3, 2)}, reverse=True)
        variants = ["nf4", "gptq", *(f"blocks:{depth}" for depth in depths)] if shape else []
    found = []
    for variant in variants:
        kind, _, number = str(variant).partition(":")
        subject = replace(base, run=f"{BASE}-{kind}{number}")
        if variant == "nf4":
            subject.precision, subject.size_gb = "nf4", memory.weights_gb(config, "nf4")
        elif kind == "blocks" and number.isdigit() and 0 < int(number) <= config.num_hidden_layers:
            subject.blocks = int(number)
            subject.size_gb = memory.weights_gb(cut_config(config, subject.blocks), "bf16")
        elif variant == "gptq" and shape:
            subject.path, subject.precision = str(Path(base.path + "-gptq")), "gptq"
            make_random_gptq(config, Path(subject.path))
            subject.files = weight_files(subject.path)
            subject.size_gb = sum(Path(file).stat().st_size for file in subject.files) / 1e9
        else:
            raise UserError(
                f"VARIANTS has {variant!r}: there are 'nf4', 'blocks:<n>' with n up to {config.num_hidden_layers}, and "
                "for a named shape 'gptq'"
            )
        found.append(subject)
    return found


def make_random_gptq(config, directory: Path) -> None:
    """Write a 4-bit GPTQ checkpoint of random numbers for a named shape, once: its speed is that of a real one."""
    if (directory / "config.json").exists():
        return
    widths = (config.hidden_size, config.intermediate_size)
    group = next(size for size in (128, 64, 32) if all(width % size == 0 for width in widths))
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in AutoModelForCausalLM.from_config(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)

    def tensors():
        for key, shape in shapes.items():
            if ".layers." not in key or len(shape) == 1:
                value = torch.empty(shape, dtype=torch.float16).normal_(0, 0.02, generator=generator)
                yield key, value if len(shape) > 1 else torch.ones(shape, dtype=torch.float16)
                continue
            (outputs, inputs), name = shape, key.removesuffix("weight")
            numbers = torch.randint(-(2**31), 2**31, (inputs // 8, outputs), generator=generator, dtype=torch.int64)
            yield name + "qweight", numbers.to(torch.int32)
            yield name + "qzeros", torch.full((inputs // group, outputs // 8), 0x77777777, dtype=torch.int32)
            yield name + "scales", torch.full((inputs // group, outputs), 0.004, dtype=torch.float16)
            yield name + "g_idx", torch.arange(inputs, dtype=torch.int32) // group

    config = copy.deepcopy(config)
    config.dtype = torch.float16
    config.quantization_config = {
        "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True, "lm_head": False,
        "checkpoint_format": "gptq",
    }  # fmt: skip
    with runs.atomic_path(directory) as partial:
        models.write_weights(partial, tensors())
        config.save_pretrained(partial)


def prompt_lengths(results_dir: str, data_run: str | None, longest: int) -> tuple[dict[str, int], dict | None]:
    """``({"median", "p95", "fixed"}, data record)``: prompt tokens of the data run's dev split (else test, train).

    Without a data run only the fixed length is left. No length is above ``longest``, the positions a model has.
    """
    lengths, record = {"fixed": FIXED_PROMPT}, None
    report = runs.run_directory(results_dir, data_run) / "data_report.json" if data_run else None
    if report and report.exists():
        splits = runs.read_json(report)["splits"]
        split = next(splits[name] for name in ("dev", "test", "train") if name in splits)
        lengths = {"median": split["prompt_tokens"]["p50"], "p95": split["prompt_tokens"]["p95"], **lengths}
        record = runs.read_json(report.parent / "settings.json")["data"]
    return {name: min(tokens, longest) for name, tokens in lengths.items()}, record


def subject_config(subject: Subject, results_dir: str):
    """The config that decides a subject's memory."""
    own = not subject.lora_rank and (Path(subject.path) / "config.json").exists()
    config = models.read_config(subject.path) if own else models.base_config(subject.base_model, results_dir)
    return cut_config(config, subject.blocks) if subject.blocks else config


def place(subject: Subject, limit_gb: float, too_large: str, predict) -> str | None:
    """Decide how a subject runs on a card of ``limit_gb``; returns the label where it does not fit as it is.

    ``predict(subject, precision)`` is the memory of inference in GB. Sets ``placement`` and ``predicted_gb``.
    """
    if subject.predicted_gb + memory.CUDA_CONTEXT_GB <= limit_gb:
        return None
    label = f"does not fit {limit_gb:g} GB (needs {subject.predicted_gb + memory.CUDA_CONTEXT_GB:.1f})"
    if subject.lora_rank or subject.precision != "auto":
        raise UserError(f"{label}, and is in few bits already")
    subject.placement = too_large
    if too_large == "nf4":
        subject.predicted_gb = predict(subject, "nf4")
        if subject.predicted_gb + memory.CUDA_CONTEXT_GB > limit_gb:
            raise UserError(f"{label}, nor does it in 4 bits ({subject.predicted_gb:.1f} GB)")
        return f"{label}: measured in 4 bits (NF4)"
    return f"{label}: measured with the rest offloaded to the CPU"


# ------------------------------------------------------------------------------------------------------- the rounds


class WorkerProcess:
    """A worker in a fresh process; it sleeps between commands."""

    def __init__(self):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # One model runs at a time, as a model that is used does: its threads wait as OpenMP would have them, not as
        # settings.set_threads does for jobs that share the cores. GPTQ's kernel, of many small steps, loses most
        # where threads sleep between them.
        environment = {name: value for name, value in os.environ.items() if name not in WAITING}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fincompress.throughput"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, env={"GPTQMODEL_CPU_WORKERS": "2"} | environment | {"PYTHONPATH": path},
        )  # fmt: skip

    def ask(self, do: str, **arguments) -> dict:
        """The reply to a command; raises UserError where the worker could not do it, or died."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            raise UserError(f"its process ended ({why_it_ended(status, self.log.read())})")
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def close(self) -> None:
        """End the process and wait for it, so that its memory is free."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def probe(seconds: float = 3.0) -> dict:
    """Device, hardware and ceilings, from a process of its own: this one never touches the GPU."""
    worker = WorkerProcess()
    try:
        return worker.ask("probe", seconds=seconds)
    finally:
        worker.close()


@dataclass
class Plan:
    """What is measured of every subject, and how often."""

    lengths: dict[str, int]  # prompt tokens by name
    batch_sizes: list[int]
    rounds: int
    new_tokens: int
    max_seconds: float  # of one measure over all rounds, each model's turn; a slower one is taken in fewer rounds
    results_dir: str
    limit_gb: float | None

    @property
    def context(self) -> int:
        """Tokens before the first decoded one."""
        return self.lengths.get("median", self.lengths["fixed"])

    def measures(self) -> dict[str, dict]:
        """Command by name: ``prefill <tokens>`` and ``decode <batch>``."""
        found = {f"prefill {n}": {"do": "prefill", "tokens": n} for n in sorted(set(self.lengths.values()))}
        for batch in [1, *(size for size in self.batch_sizes if size != 1)]:
            found[f"decode {batch}"] = {
                "do": "decode", "batch": batch, "context": self.context, "new_tokens": self.new_tokens
            }  # fmt: skip
        return found


class Entrant:
    """A subject's worker, and what was measured of it so far."""

    def __init__(self, subject: Subject, plan: Plan):
        self.subject, self.plan = subject, plan
        self.worker: WorkerProcess | None = None
        self.loads: list[dict] = []
        self.memory: dict[str, dict] = {}
        self.values: dict[str, list] = {}  # seconds of a prefill, or of each token, one entry a turn
        self.beside: dict[str, list] = {}  # the base model's before and after each of them
        self.rounds: dict[str, int] = {}  # in how many rounds a measure is taken
        self.bandwidth: list[float] = []  # GB/s of the device's memory before each round, of the base model alone
        self.not_measured: dict[str, str] = {}

    def open(self) -> None:
        """Load in a fresh process, unless one is waiting.

        What is measured next would pay for memory that is touched, and code that is looked up, for the first time: a
        prefill of each length comes first, unrecorded.
        """
        if self.worker is None:
            self.worker = WorkerProcess()
            plan = self.plan
            self.loads.append(
                self.worker.ask(
                    "load", subject=asdict(self.subject), results_dir=plan.results_dir, limit_gb=plan.limit_gb
                )
            )
            for tokens in sorted(set(plan.lengths.values())):
                self.worker.ask("prefill", tokens=tokens)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def warm_up(self) -> None:
        """Everything once, not recorded: first batch 1 for its peak memory, then the rest, timed to plan the rounds."""
        self.open()
        plan, longest = self.plan, max(self.plan.lengths.values())
        self.worker.ask("decode", context=longest, batch=1, new_tokens=min(plan.new_tokens, 8), keep=False)
        self.memory["batch 1"] = self.worker.ask("peak")
        # A prompt is read once and its cache kept: no round pays for it, nor should the estimate of one.
        self.worker.ask("decode", context=plan.context, batch=1, new_tokens=1)
        for name, command in plan.measures().items():
            began = time.perf_counter()
            try:
                self.worker.ask(**command)
            except UserError as error:
                if name == "decode 1" or self.worker.process.poll() is not None:
                    raise
                self.not_measured[name] = str(error)
                continue
            seconds = time.perf_counter() - began
            self.values[name] = []
            self.rounds[name] = max(1, min(plan.rounds, int(plan.max_seconds / seconds)))
        self.memory["largest batch"] = self.worker.ask("peak")

    def measure(self, names: list[str], round_number: int) -> dict:
        """The measures of one turn by name, without those that are taken in fewer rounds."""
        found = {}
        for name in names:
            if round_number < self.rounds.get(name, 0):
                self.open()
                reply = self.worker.ask(**self.plan.measures()[name])
                found[name] = reply.get("seconds") or reply["token_seconds"]
                self.values[name].append(found[name])
        return found

    def probe_bandwidth(self) -> None:
        """Note the memory's bandwidth: where it changes from round to round, so does the machine."""
        self.open()
        self.bandwidth.append(self.worker.ask("bandwidth", seconds=0.1)["bandwidth_gb_per_s"])

    def stand_beside(self, found: dict, before: dict, after: dict) -> None:
        """Note the base model's measures next to those of this turn."""
        for name in found.keys() & before.keys() & after.keys():
            self.beside.setdefault(name, []).append((before[name], after[name]))


def measure_all(subjects: list[Subject], plan: Plan, resident: bool) -> tuple[dict[str, Entrant], dict[str, str]]:
    """``(entrants by run, reasons by run)``: warm-up, then rounds in which the models take turns.

    ``resident`` workers stay loaded and take turns at every measure, the base model before and after every two others:
    a shared machine changes its speed within seconds, and ratios are taken to the turns close by. Others are started
    anew for each of their turns, which then has all measures of the round, the base model once at its beginning. One
    that fails is left out with its reason, the others go on.
    """
    entrants = {subject.run: Entrant(subject, plan) for subject in subjects}
    failed: dict[str, str] = {}
    names = list(plan.measures())
    turns = [[name] for name in names] if resident else [names]
    base = entrants.get(BASE)
    others = [entrant for entrant in entrants.values() if entrant is not base]
    pairs = [others[i : i + 2] for i in range(0, len(others), 2)]

    def attempt(entrant: Entrant | None, work) -> dict:
        if entrant is None:
            return {}
        bar.set_postfix_str(entrant.subject.run)
        found = {}
        if entrant.subject.run not in failed:
            try:
                found = work(entrant) or {}
            except UserError as error:
                failed[entrant.subject.run] = str(error)
                bar.write(f"{entrant.subject.run}: not measured: {error}")
                entrant.close()
            else:
                if not resident:
                    entrant.close()
        bar.update()
        return found

    in_a_turn = len(others) + (0 if base is None else 1 + len(pairs) * resident)
    try:
        with tqdm(total=len(entrants) + plan.rounds * len(turns) * in_a_turn, desc="measuring", unit="turn") as bar:
            for entrant in entrants.values():
                attempt(entrant, Entrant.warm_up)
            for number in range(plan.rounds):
                if base is not None and base.subject.run not in failed:
                    with contextlib.suppress(UserError):  # a card that is full; a worker that died is told of below
                        base.probe_bandwidth()
                for turn in turns:

                    def measure(entrant: Entrant, turn=turn, number=number) -> dict:
                        found = entrant.measure(turn, number)
                        if entrant is base:
                            base.stand_beside(found, found, found)
                        return found

                    before = attempt(base, measure)
                    for pair in pairs:
                        found = [attempt(entrant, measure) for entrant in pair]
                        after = attempt(base, measure) if resident else before
                        for entrant, one in zip(pair, found, strict=True):
                            entrant.stand_beside(one, before, after)
                        before = after
    finally:
        for entrant in entrants.values():
            entrant.close()
    return {run: entrant for run, entrant in entrants.items() if run not in failed}, failed


# ---------------------------------------------------------------------------------------------------- the numbers


def spread(values: list[float]) -> dict | None:
    """Median and range of the rounds, and the rounds themselves; None where there are none."""
    if not values:
        return None
    return {
        "median": float(np.median(values)),
        "low": min(values),
        "high": max(values),
        "rounds": [float(f"{value:.6g}") for value in values],
    }


def unsteady(bandwidth: dict | None) -> str | None:
    """What to say where the memory's bandwidth, a ``spread`` over the rounds, shows that the machine changed."""
    if bandwidth is None or bandwidth["high"] <= STEADY * bandwidth["low"]:
        return None
    return (
        f"the machine changed meanwhile: its memory moved {bandwidth['low']:.0f} to {bandwidth['high']:.0f} GB/s "
        "between rounds. That slows kernels differently, and ratios between them change with it"
    )


def tokens_per_s(name: str, seconds: float | list[float]) -> float:
    """Rate of one measure: ``prefill <tokens>`` took so many seconds, ``decode <batch>`` so many for each token."""
    kind, number = name.split()
    return int(number) / seconds if kind == "prefill" else int(number) * len(seconds) / sum(seconds)


def rates(entrant: Entrant, name: str) -> list[float]:
    """Tokens/s of each turn at a measure."""
    return [tokens_per_s(name, seconds) for seconds in entrant.values.get(name, [])]


def ratios(entrant: Entrant, name: str) -> list[float]:
    """Ratio of each turn to the base model's before and after it, the geometric mean of the two: what slows a machine
    for longer than some turns slows all of them and cancels."""
    found = []
    for rate, (before, after) in zip(rates(entrant, name), entrant.beside.get(name, []), strict=False):
        found.append(rate / (tokens_per_s(name, before) * tokens_per_s(name, after)) ** 0.5)
    return found


def record(entrant: Entrant, reference: Entrant | None, found: dict, config) -> dict:
    """Everything that was measured of one subject; ``found`` is the probe's reply and bandwidth_of_rounds."""
    subject, plan = entrant.subject, entrant.plan
    loaded = entrant.loads[0]
    count = memory.parameter_sizes(config)["total"] + loaded["adapter_parameters"]
    prefill, decode = {}, {}
    for name, tokens in plan.lengths.items():
        key = f"prefill {tokens}"
        prefill[name] = {
            "prompt_tokens": tokens,
            "tokens_per_s": spread(rates(entrant, key)),
            "ratio": spread(ratios(entrant, key) if reference else []),
            "ttft_ms": spread([1e3 * seconds for seconds in entrant.values.get(key, [])]),
        }
    for key in plan.measures():
        if key.startswith("decode"):
            milliseconds = [1e3 * second for seconds in entrant.values.get(key, []) for second in seconds]
            decode[key.split()[1]] = {
                "tokens_per_s": spread(rates(entrant, key)),
                "ratio": spread(ratios(entrant, key) if reference else []),
                "ms_per_token_p50": float(np.percentile(milliseconds, 50)) if milliseconds else None,
                "ms_per_token_p95": float(np.percentile(milliseconds, 95)) if milliseconds else None,
            }
    bound = found["bandwidth_gb_per_s"] * 1e9 / loaded["bytes_per_token"]
    longest = f"prefill {max(plan.lengths.values())}"
    flops = 2 * (count - config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2))
    reached = spread(rates(entrant, longest))
    on_disk = sum(Path(file).stat().st_size for file in subject.files) / 1e9 or None
    if subject.blocks:
        on_disk = subject.size_gb  # as a checkpoint of these blocks would be
    return {
        "run": subject.run,
        "base_model": subject.base_model,
        "precision": subject.precision if subject.placement == "as it is" else subject.placement,
        "device": found["device"],
        "hardware": found["hardware"],
        "dtype": found["dtype"],
        "kernel": loaded["kernel"],
        "threads": found["hardware"]["threads"],
        "threads_wait": "as OpenMP's default",
        "versions": provenance.versions(),
        "reference": reference and reference.subject.run,
        "prefill": prefill,
        "decode": decode,
        "memory_gb": entrant.memory | {"loading": loaded["load_peak_gb"], "predicted": subject.predicted_gb},
        "inference_memory_gb": entrant.memory["batch 1"].get("vram_reserved", entrant.memory["batch 1"]["rss"]),
        "size_gb": subject.size_gb,
        "on_disk_gb": on_disk,
        "in_memory_gb": loaded["in_memory_gb"],
        "parameters": count,
        "load_seconds": float(np.median([one["load_seconds"] for one in entrant.loads])),
        "ceiling": {
            "bandwidth_gb_per_s": found["bandwidth_gb_per_s"],
            "bandwidth_of_rounds": found["bandwidth_of_rounds"],
            "matmul_tflop_per_s": found["matmul_tflop_per_s"],
            "bytes_per_token": loaded["bytes_per_token"],
            "bound_tokens_per_s": bound,
            "share_of_bandwidth": float(np.median(rates(entrant, "decode 1"))) / bound,
            "share_of_matmul": reached and reached["median"] * flops / found["matmul_tflop_per_s"] / 1e12,
        },
        "not_measured": entrant.not_measured,
    }


def table(results_dir: str) -> list[dict]:
    """One row for every ``throughput_<device>.json`` under ``results_dir``; one that is damaged is a line instead."""
    rows = []
    for path in runs.records(results_dir, "throughput_*.json"):
        try:
            rows.append(table_row(runs.read_json(path)))
        except UserError as error:
            print(f"left out of throughput.csv: {error}")
        except (KeyError, TypeError, AttributeError) as error:
            print(f"left out of throughput.csv: {path} is no record of this version of the benchmark ({error!r})")
    names = list(dict.fromkeys(name for row in rows for name in row))  # batch sizes may differ between records
    return [{name: row.get(name) for name in names} for row in rows]


def table_row(found: dict) -> dict:
    """The columns of one record."""
    hardware = found["hardware"]
    row = {
        "run": found["run"],
        "base_model": found["base_model"],
        "data": found["data"] and found["data"]["source"],
        "data_fingerprint": found["data"] and found["data"]["fingerprint"],
        "device": found["device"],
        "hardware": hardware.get("gpu", hardware["cpu"]),
        "threads": found["threads"],
        "dtype": found["dtype"],
        "precision": found["precision"],
        "kernel": found["kernel"],
        "label": found["label"],
        "reference": found["reference"],
        "parameters": found["parameters"],
        "size_gb": found["size_gb"],
        "on_disk_gb": found["on_disk_gb"],
        "in_memory_gb": found["in_memory_gb"],
        "inference_memory_gb": found["inference_memory_gb"],
        "predicted_memory_gb": found["memory_gb"]["predicted"],
        "load_seconds": found["load_seconds"],
        "share_of_bandwidth": found["ceiling"]["share_of_bandwidth"],
    }
    for name in ("median", "p95", "fixed"):
        entry = found["prefill"].get(name, {})
        row[f"prompt_tokens_{name}"] = entry.get("prompt_tokens")
        for quantity in ("tokens_per_s", "ratio", "ttft_ms"):
            row |= columns(f"prefill_{name}_{quantity}", entry.get(quantity))
    row["ms_per_token_p50"] = found["decode"]["1"]["ms_per_token_p50"]
    row["ms_per_token_p95"] = found["decode"]["1"]["ms_per_token_p95"]
    for batch, entry in found["decode"].items():
        for quantity in ("tokens_per_s", "ratio"):
            row |= columns(f"decode_batch{batch}_{quantity}", entry[quantity])
    return row


def columns(name: str, found: dict | None) -> dict[str, float | None]:
    """Median, low and high of a measure as three columns."""
    return {
        name: found and found["median"],
        f"{name}_low": found and found["low"],
        f"{name}_high": found and found["high"],
    }


if __name__ == "__main__":
    serve()
