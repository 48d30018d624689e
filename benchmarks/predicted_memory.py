"""Predicted peak memory against measured: QLoRA training, SAPLING and full training, and inference, on SmolLM2.

Each in a fresh process, a few steps of the Trainer that the training scripts use, on random tokens: memory does not ask
what they say. On a CPU what is measured is the growth of resident memory since before the model was loaded; on a GPU
what was allocated. Takes about three minutes on two cores.

    python benchmarks/predicted_memory.py
    python benchmarks/predicted_memory.py --CASES="['decode']"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fincompress.settings import configure  # noqa: E402

# -----------------------------------------------------------------------------
RESULTS_DIR = "results"  # the embedded model is converted into base_models/ in here, once
BASE_MODEL = "smollm2-135m"  # or shape:<name>
CASES = ["qlora", "sapling", "full", "decode"]  # what is measured
CASE: str | None = None  # set by the script for its own subprocesses
BATCH_SIZE = 8  # sequences at once, in training
TOKENS = 224  # tokens of the longest sequence
TARGET_TOKENS = 32  # tokens of the longest target
LORA_RANK = 32  # of the adapters
TRAIN_RATIO: float = 0.25  # share of the layers that SAPLING trains
GRADIENT_CHECKPOINTING: bool | None = None  # None: on a GPU only
STEPS = 3  # optimizer steps
CONTEXT = 512  # tokens of the prompt that is decoded after
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import json  # noqa: E402
import math  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402

import datasets  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from fincompress import memory, models, training  # noqa: E402
from fincompress.benchmark import subjects, worker  # noqa: E402
from fincompress.depth import sublayers as sub  # noqa: E402
from fincompress.errors import UserError, run_script, why_it_ended  # noqa: E402
from fincompress.training.loss import TargetCollator  # noqa: E402

TRAINING = {
    "LEARNING_RATE": 1e-4, "LR_SCHEDULE": "cosine", "WARMUP": 0.0, "WEIGHT_DECAY": 0.0, "MAX_GRAD_NORM": 1.0,
    "BATCH_SIZE": BATCH_SIZE, "GRADIENT_ACCUMULATION": 1, "OPTIMIZER": None, "LOGGING_STEPS": 10, "SEED": 0,
}  # fmt: skip


def main() -> None:
    models.quiet_libraries()
    if CASE is not None:
        print(json.dumps(decode() if CASE == "decode" else train(CASE)))
        return
    rows = []
    print(f"{'':<10}{'predicted GB':>14}{'measured GB':>14}{'error':>9}")
    for case in CASES:
        command = [sys.executable, __file__, *sys.argv[1:], f"--CASE={case}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{case} failed ({why_it_ended(done.returncode, done.stderr)})")
        found = json.loads(done.stdout.splitlines()[-1])
        error = found["predicted_gb"] / found["measured_gb"] - 1
        print(f"{case:<10}{found['predicted_gb']:>14.3f}{found['measured_gb']:>14.3f}{error:>+9.1%}", flush=True)
        rows.append({"case": case, **found, "error": round(error, 4)})
    print(json.dumps({"base_model": BASE_MODEL, "rows": rows}))


def train(case: str) -> dict[str, float]:
    """Predicted and measured peak of a few steps, made as train_qlora_4bit.py and sapling_train.py make them."""
    device = models.pick_device()
    dtype, _ = models.pick_dtype(device)
    checkpointing = device.type == "cuda" if GRADIENT_CHECKPOINTING is None else GRADIENT_CHECKPOINTING
    path = models.base_model_path(BASE_MODEL, RESULTS_DIR)
    config = models.base_config(BASE_MODEL, RESULTS_DIR)
    steps(tiny_model(), device, dtype, False, 1)  # what the libraries take when they are first used is not the run's
    before = memory.reset_peak()
    shape = (BATCH_SIZE, TOKENS, 1 + TARGET_TOKENS, checkpointing)
    compute_bytes = dtype.itemsize
    model = models.load_base(path, "nf4" if case == "qlora" else "auto", device, dtype)
    if case == "qlora":
        model = get_peft_model(
            model, LoraConfig(r=LORA_RANK, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        models.compute_in_model_dtype(model)
        predicted = memory.predict_lora_training_gb(config, "nf4", LORA_RANK, *shape, device.type, compute_bytes)
    else:
        ratio = TRAIN_RATIO if case == "sapling" else 1.0
        train_some(model, ratio)
        predicted = memory.predict_training_gb(config, *shape, ratio, True, device.type, compute_bytes)
    steps(model, device, dtype, checkpointing, STEPS)
    found = memory.peak_memory_gb()
    return {"predicted_gb": predicted, "measured_gb": found.get("vram_allocated", memory.peak_rss_gb() - before)}


def train_some(model, ratio: float) -> None:
    """Let gradients reach the ends and a share of the sub-layers, spread over the depth, attentions and MLPs alike."""
    every = sub.sublayers(model)
    kinds = [[one for one in every if one.kind == kind] for kind in sub.KINDS]
    chosen = [one for group in kinds for i, one in enumerate(group) if int((i + 1) * ratio) > int(i * ratio)]
    model.requires_grad_(False)
    ends = [*model.model.embed_tokens.parameters(), *model.model.norm.parameters(), *model.lm_head.parameters()]
    for parameter in [p for one in chosen for p in sub.parameters(model, one)] + ends:
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()
    memory.release_files(model)


def tiny_model():
    return AutoModelForCausalLM.from_config(models.shape_config("shape:tiny"))


def steps(model, device: torch.device, dtype: torch.dtype, checkpointing: bool, count: int) -> None:
    """Some optimizer steps on random tokens; the first sequence is the longest, the others need padding."""
    vocabulary = model.config.vocab_size
    rows = []
    for i in range(BATCH_SIZE * count):
        length = TOKENS - 4 * (i % BATCH_SIZE)
        ids = torch.randint(3, vocabulary, (length,)).tolist()
        rows.append({"input_ids": ids, "prompt_tokens": length - TARGET_TOKENS + i % BATCH_SIZE, "length": length})
    with tempfile.TemporaryDirectory() as folder:
        arguments = training.training_arguments(
            TRAINING, Path(folder), device, dtype, max_steps=count, save_strategy="no",
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        rows = training.TrainingRows(datasets.Dataset.from_list(rows), None, None, 0)
        training.TargetTrainer(model=model, args=arguments, train_dataset=rows, data_collator=TargetCollator(0)).train()


def decode() -> dict[str, float]:
    """Predicted and measured peak of a prompt and some tokens after it, in a worker of benchmark_throughput.py."""
    path = models.base_model_path(BASE_MODEL, RESULTS_DIR)
    found = worker.Worker()
    peak = found.load(subjects.Subject("base", BASE_MODEL, path), RESULTS_DIR, math.inf, CONTEXT, 8)["memory_gb"]
    predicted = memory.inference_gb(
        models.base_config(BASE_MODEL, RESULTS_DIR), CONTEXT + 8, 1, "auto", CONTEXT, found.device.type,
        found.dtype.itemsize,
    )  # fmt: skip
    return {"predicted_gb": predicted, "measured_gb": peak.get("vram_allocated", peak["rss"])}


if __name__ == "__main__":
    run_script(main)
