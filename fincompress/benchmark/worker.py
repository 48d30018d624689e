"""One loaded model in a process of its own, and what is measured of it.

``python -m fincompress.benchmark.worker`` answers commands, JSON lines on its stdin, with JSON lines on its stdout.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import os
import sys
import time
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fincompress import generation, memory, models, provenance, quantization
from fincompress.benchmark.subjects import Subject
from fincompress.errors import UserError


class Worker:
    """Loads one model, and times prefill and decoding when it is told to."""

    def __init__(self):
        models.quiet_libraries()
        self.device = models.pick_device()
        self.dtype, self.reason = models.pick_dtype(self.device)
        self.prompts: dict[int, tuple] = {}  # prompt tokens -> (KV cache, next token)

    def answer(self, do: str, **arguments) -> dict:
        """The reply to one command; what a person can mend, and a card that is full, come back as ``error``."""
        try:
            return getattr(self, do)(**arguments)
        except UserError as error:
            return {"error": str(error)}
        except (torch.cuda.OutOfMemoryError, MemoryError):
            torch.cuda.empty_cache()
            return {"error": "out of memory"}
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:  # no kernel, no package for it
            return {"error": f"{type(error).__name__}: {error}"}

    def probe(self, seconds: float) -> dict:
        """The device, and the bandwidth of its memory."""
        return {
            "device": self.device.type,
            "dtype": str(self.dtype).partition(".")[2],
            "reason": self.reason,
            "hardware": provenance.hardware(),
            "free_gb": round(self.free_bytes() / 1e9, 2),
            **self.bandwidth(seconds),
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
        torch.cuda.empty_cache()  # another model may need the room
        return {"bandwidth_gb_per_s": round(max(read, copied) / 1e9, 2)}

    def fastest(self, work, seconds: float) -> float:
        """Seconds of the fastest of several calls: a ceiling is what the device can do, not its average."""
        calls, began = [], time.perf_counter()
        while len(calls) < 4 or time.perf_counter() - began < seconds:
            start = generation.now(self.device)
            work()
            calls.append(generation.now(self.device) - start)
        return min(calls[1:])

    def load(self, subject: dict, results_dir: str, limit_gb: float | None) -> dict:
        """Load the model until one token is read, and say what it is.

        Returns seconds, the peak, the kernel, GB in memory, bytes read per decoded token and parameters.
        """
        if self.device.type == "cuda" and limit_gb:
            total = torch.cuda.get_device_properties(0).total_memory / 1e9
            torch.cuda.set_per_process_memory_fraction(min(1.0, (limit_gb - memory.CUDA_CONTEXT_GB) / total))
        subject = Subject(**subject)
        self.wake(subject)
        for path in subject.files:  # every model is loaded from the page cache
            with open(path, "rb") as file:
                while file.read(2**24):
                    pass
        self.before_gb = memory.reset_peak()
        began = time.perf_counter()
        self.model = self.load_model(subject, results_dir, limit_gb)
        generation.time_prefill(self.model, 1)  # until then weights may be mapped, not read, or not yet repacked
        seconds = generation.now(self.device) - began
        loading = self.peak()
        if subject.precision in quantization.METHODS and self.device.type == "cpu":
            memory.release_files(self.model)  # the kernel has repacked the weights that were read: both would count
        memory.release_unused()
        memory.reset_peak()
        head, table = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        unread = 0 if head.weight is table.weight else tensor_bytes(table.weight)
        held = sum(map(tensor_bytes, {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]}.values()))
        adapters = memory.count_parameters(p for name, p in self.model.named_parameters() if "lora_" in name)
        return {
            "load_seconds": seconds,
            "load_peak_gb": loading,
            "kernel": self.dequantized(subject) + kernel(self.model),
            "in_memory_gb": held / 1e9,
            "bytes_per_token": held - unread,
            "parameters": memory.parameter_sizes(self.model.config)["total"] + adapters,
        }

    @torch.inference_mode()
    def wake(self, subject: Subject) -> None:
        """Run a tiny model once: what the libraries take when they are first used is not the model's memory."""
        needed = {"nf4": ["bitsandbytes"], "int8": ["bitsandbytes"]}
        needed |= dict.fromkeys(quantization.METHODS, ["optimum.gptq", "gptqmodel"])
        for library in needed.get(subject.precision, []) + ["peft"] * bool(subject.lora_rank):
            with contextlib.suppress(ImportError):  # loading says it better
                importlib.import_module(library)
        config = LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2
        )
        model = AutoModelForCausalLM.from_config(config).to(self.device, self.dtype)
        if subject.lora_rank:  # peft imports more once it is used, gptqmodel with it
            from peft import LoraConfig, get_peft_model

            with quantization.quiet():
                model = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
        for tokens in (64, 1):
            model(torch.ones(1, tokens, dtype=torch.long, device=self.device))

    def load_model(self, subject: Subject, results_dir: str, limit_gb: float | None):
        """The model of a subject, a quantized one with its kernel also where dequantized weights are faster."""
        if subject.lora_rank:
            return models.load_run(Path(subject.path), results_dir, self.device, self.dtype)[0]
        room = {0: int((limit_gb - memory.CUDA_CONTEXT_GB - 1) * 1e9), "cpu": 10**12} if subject.offload else None
        options = {"device_map": "auto", "max_memory": room} if room else {}
        packed = True if subject.precision in quantization.METHODS else None
        return models.load_base(subject.path, "auto", self.device, self.dtype, packed=packed, **options).eval()

    def dequantized(self, subject: Subject) -> str:
        """What to say of bitsandbytes' weights, which ``models.load_base`` dequantizes once on a CPU."""
        name = {"nf4": "NF4", "int8": "int8"}.get(subject.precision)
        return f"{name} unpacked once: " if name and self.device.type == "cpu" else ""

    def prefill(self, tokens: int) -> dict:
        """Seconds of one prefill. A token comes first, unmeasured: it wakes threads and weights."""
        generation.time_prefill(self.model, 1)
        return {"seconds": [generation.time_prefill(self.model, tokens)[2]]}

    def decode(self, context: int, batch: int, new_tokens: int, keep: bool = True) -> dict:
        """Seconds of each decoding step after ``context`` tokens.

        The prompt is prefilled once, and each call decodes after a copy of its KV cache. Without ``keep`` there is no
        copy, as a peak of memory needs it.
        """
        cache, token = self.prompts.get(context) or generation.time_prefill(self.model, context)[:2]
        if keep:
            self.prompts[context] = (cache, token)
            cache = copy.deepcopy(cache)
        return {"seconds": generation.time_decoding(self.model, cache, token, new_tokens, batch)}

    def peak(self) -> dict:
        """Peak memory in GB since the last reset: growth of resident memory since before loading, and the GPU's."""
        return memory.peak_memory_gb() | {"rss": max(0.0, memory.peak_rss_gb() - self.before_gb)}


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
    names: dict[str, None] = {}
    for name, module in model.get_decoder().layers.named_modules():
        if "lora_" in name or not (hasattr(module, "weight") or hasattr(module, "qweight")):
            continue
        if "Linear" in type(module).__name__ and not name.endswith("base_layer"):
            inner = module.get_base_layer() if hasattr(module, "get_base_layer") else module
            weight = getattr(inner, "weight", None)
            kind = "" if weight is None or hasattr(inner, "qweight") else f" {str(weight.dtype).partition('.')[2]}"
            names[("LoRA on " if inner is not module else "") + type(inner).__name__ + kind] = None
    return f"{', '.join(names)}; attention {model.config._attn_implementation}"


def serve() -> None:
    """Answer commands on stdin until it ends. What libraries print goes to stderr: stdout is for replies alone."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(worker.answer(**json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    serve()
