"""Simulated peak memory and time against measured: QLoRA, SAPLING with its teacher, its scan, decoding and GPTQ.

Each in a fresh process, training as a few steps of the Trainer that the scripts use, on random tokens: memory does not
ask what they say. On a CPU what is measured is resident memory beyond that before the model was loaded, with large
blocks handed back to the system at once (mallopt); on a GPU what was allocated. Time is that of
the last step, predicted from this device's fastest matrix product and read of memory.

    python benchmarks/predicted_memory.py
    python benchmarks/predicted_memory.py --BASE_MODEL=shape:llama-1.1b --CASES="['qlora', 'scan', 'decode']"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fincompress.settings import check_choice, configure

# -----------------------------------------------------------------------------
RESULTS_DIR: str = "results"  # the base model is made in base_models/ in here, once
BASE_MODEL: str = "smollm2-135m"  # or shape:<name>
CASES: list[str] = ["qlora", "sapling", "sapling_qlora", "scan", "decode", "gptq"]  # what is measured
BATCH_SIZE: int = 4  # sequences at once
TOKENS: int = 224  # tokens of the longest sequence
TARGET_TOKENS: int = 32  # tokens of the longest target
LORA_RANK: int = 32  # of the adapters
GRADIENT_CHECKPOINTING: bool | None = None  # None: on a GPU only
STEPS: int = 2  # optimizer steps
CONTEXT: int = 512  # tokens of the prompt that is decoded after
TEXTS: int = 16  # texts of TOKENS tokens that GPTQ reads, BATCH_SIZE at once
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import contextlib
import ctypes
import json
import multiprocessing
import tempfile
import threading
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

import datasets
import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, TrainerCallback

from fincompress import memory, models, quantization, simulation, training
from fincompress.benchmark.worker import Worker
from fincompress.depth import repack, scan
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError, run_script
from fincompress.sapling import start
from fincompress.sapling.recovery import Recovery, RecoveryTrainer
from fincompress.sapling.teacher import ADAPTER, SharedTeacher, Teacher
from fincompress.training.loss import TargetCollator, autocast

M_MMAP_THRESHOLD = -3  # malloc.h: blocks above so many bytes are mapped, and unmapped when they are freed
TRAINING = {
    "LEARNING_RATE": 1e-4, "LR_SCHEDULE": "cosine", "WARMUP": 0.0, "WEIGHT_DECAY": 0.0, "MAX_GRAD_NORM": 1.0,
    "GRADIENT_ACCUMULATION": 1, "OPTIMIZER": None, "LOGGING_STEPS": 10, "SEED": 0,
}  # fmt: skip


def main() -> None:
    for case in CASES:
        check_choice("CASES", case, ("qlora", "sapling", "sapling_qlora", "scan", "decode", "gptq"))
    if STEPS < 2:
        raise UserError(f"STEPS = {STEPS}: the time of a step is that between two")
    rows = []
    print(" " * 14 + "".join(f"{f'predicted {unit}':>13}{f'measured {unit}':>13}{'error':>8}" for unit in ("GB", "s")))
    for case in CASES:
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                row = process.submit(measure, case, SETTINGS).result()
        except BrokenExecutor:
            raise UserError(f"{case} failed: its process was killed, as when memory runs out") from None
        line = f"{case:<14}"
        for unit in ("gb", "s"):
            if f"measured_{unit}" in row:
                predicted, measured = row[f"predicted_{unit}"], row[f"measured_{unit}"]
                line += f"{predicted:>13.3f}{measured:>13.3f}{predicted / measured - 1:>+8.1%}"
        print(line, flush=True)
        rows.append({"case": case, **row})
    print(json.dumps({"base_model": BASE_MODEL, "rows": rows}))


def measure(case: str, constants: dict) -> dict[str, float]:
    """Simulated and measured peak of one case, on the device that is here."""
    globals().update(constants)  # a new process has those of the file
    models.quiet_libraries()
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
    device = models.pick_device()
    dtype, _ = models.pick_dtype(device)
    recompute = device.type == "cuda" if GRADIENT_CHECKPOINTING is None else GRADIENT_CHECKPOINTING
    path, config = models.base_model_path(BASE_MODEL, RESULTS_DIR), models.base_config(BASE_MODEL, RESULTS_DIR)
    if case == "gptq":
        predicted = simulation.quantizing(config, TOKENS, TEXTS)
        return {"predicted_gb": predicted.gb, "measured_gb": quantize(config, models.load_tokenizer(path), device)}
    nf4 = "qlora" in case
    shape, options = (config, BATCH_SIZE, TOKENS, TARGET_TOKENS), {"device": device.type, "dtype": dtype}
    # What the libraries take when they are first used is not the run's.
    steps(tiny_model(device), Recovery(0, 1, 0, 1), device, dtype, False, 2)
    card, seconds = Worker().probe(), None
    before = memory.reset_peak()
    model = models.load_base(path, "nf4" if nf4 else "auto", device, dtype)
    memory.reset_peak()  # while a file is read its pages count too, which the system takes back when it needs them
    if nf4:
        adapter = LoraConfig(r=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
        models.compute_in_model_dtype(model)
    if case == "qlora":
        predicted = simulation.training(*shape, "nf4", LORA_RANK, recompute=recompute, **options)
        seconds = steps(model, Recovery(0, 1, 0, 1), device, dtype, recompute, STEPS)
    elif case in ("sapling", "sapling_qlora"):
        predicted = start.simulate(*shape, LORA_RANK if nf4 else None, recompute=recompute, **options)
        if nf4:
            model.add_adapter(ADAPTER, adapter)
            models.compute_in_model_dtype(model)
            teacher = SharedTeacher(model, {}, ADAPTER)
        else:
            teacher = Teacher(models.load_base(path, "auto", device, dtype))
            blocks_in_float32(model)
        taught = Recovery(1, 0.3, 1, 2, lambda batch: teacher.teach(batch, 2, True))
        seconds = steps(model, taught, device, dtype, recompute, STEPS)
    elif case == "scan":
        predicted = simulation.scanning(*shape, **options)
        batch = {name: tensor.to(device) for name, tensor in simulation.batch_of(*shape[1:]).items()}
        with autocast(device, dtype):
            scan.scores_without(model.eval(), (sub.sublayers(model)[0],), scan.trace(model, batch))
    else:
        predicted = simulation.decoding(config, 1, CONTEXT, **options)
        cache, ids = DynamicCache(), torch.zeros(1, CONTEXT, dtype=torch.long, device=device)
        with torch.no_grad():
            for input_ids in (ids, ids[:, :1]):
                model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    peak = memory.peak_memory_gb()
    row = {"predicted_gb": predicted.gb, "measured_gb": peak.get("vram_allocated", memory.peak_rss_gb() - before)}
    if seconds is None:
        return row
    return row | {"predicted_s": predicted.seconds(card["tflops"], card["bandwidth_gb_per_s"]), "measured_s": seconds}


def quantize(config, tokenizer, device: torch.device) -> float:
    """Peak in GB while GPTQ quantizes two blocks of random weights, in a process that has used gptqmodel before."""

    class Watched(type(quantization.METHODS["gptq"])):
        """Measures while it quantizes, without the pages of files, which it reads block by block."""

        def run(self, model, calibration: list[dict], batch_size: int) -> None:
            self.rss, done = 0, threading.Event()

            def watch() -> None:
                while not done.wait(0.005):
                    used = psutil.Process().memory_info()
                    self.rss = max(self.rss, (used.rss - used.shared) / 1e9)

            memory.reset_peak()
            watching = threading.Thread(target=watch)
            watching.start()
            try:
                super().run(model, calibration, batch_size)
            finally:
                done.set()
                watching.join()
            self.peak = memory.peak_memory_gb()

    method, texts = Watched(), torch.randint(3, 259, (TEXTS, TOKENS)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        for shape in (models.shape_config("shape:tiny"), repack.shortened_config(config, 2)):
            source, target = (Path(folder, f"{part}-{shape.hidden_size}") for part in ("source", "quantized"))
            model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
            models.write_checkpoint(source, model, tokenizer, model.dtype)
            del model
            memory.release_unused()
            held = psutil.Process().memory_info()
            recipe = method.fit(quantization.Recipe(batch_size=BATCH_SIZE), shape)
            method.quantize(source, target, texts, recipe, device, Path(folder, "log"))
    return method.peak.get("vram_allocated", method.rss - (held.rss - held.shared) / 1e9)


def blocks_in_float32(model) -> None:
    """As SAPLING trains all weights of the blocks."""
    model.requires_grad_(False)
    for parameter in [p for sublayer in sub.sublayers(model) for p in sub.parameters(model, sublayer)]:
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()
    memory.release_files(model)


def tiny_model(device: torch.device):
    return AutoModelForCausalLM.from_config(models.shape_config("shape:tiny")).to(device)


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def steps(model, recovery: Recovery, device, dtype: torch.dtype, checkpointing: bool, count: int) -> float:
    """Some optimizer steps on random tokens; the first sequence is the longest, the others need padding.

    Returns the seconds of the last one.
    """
    vocabulary = model.config.vocab_size
    rows = []
    for i in range(BATCH_SIZE * count):
        place = i % BATCH_SIZE % 4
        length = TOKENS - 4 * place
        ids = torch.randint(3, vocabulary, (length,)).tolist()
        rows.append({"input_ids": ids, "prompt_tokens": length - TARGET_TOKENS + place, "length": length})
    with tempfile.TemporaryDirectory() as folder:
        arguments = training.training_arguments(
            TRAINING | {"BATCH_SIZE": BATCH_SIZE}, Path(folder), device, dtype, max_steps=count, save_strategy="no",
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        rows = training.TrainingRows(datasets.Dataset.from_list(rows), None, None, 0)
        clock = Clock()
        trainer = RecoveryTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=TargetCollator(0),
            callbacks=[clock],
            dtype=dtype,
        )
        trainer.recovery = recovery
        trainer.train()
    return clock.ends[-1] - clock.ends[-2]


if __name__ == "__main__":
    run_script(main)
