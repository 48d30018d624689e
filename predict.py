"""Memory and time that each phase needs, of a model that need not be there.

Prints the peak of every phase at BATCH_SIZE and TOKENS, on a GPU and on a CPU, and the hours of training on each of
CARDS (docs/gpu.md). Training and scans are simulated on tensors without data, half a minute each for a 7B model. The
last line printed is one JSON object.

    python predict.py
    python predict.py --BASE_MODEL=smollm2-135m --BATCH_SIZE=4 --LORA_RANK=32
"""

from fincompress.settings import configure

# -----------------------------------------------------------------------------
BASE_MODEL: str = "shape:llama-2-7b"  # or smollm2-135m, a folder, a hub id
RESULTS_DIR: str = "results"  # where a converted base model lies
BATCH_SIZE: int = 1  # sequences at once, in training
TOKENS: int = 736  # of the longest example: MAX_PROMPT_TOKENS and its target
LORA_RANK: int = 16  # of the adapters
EXAMPLES: int = 30000  # that a phase trains on in all: the recipe's passes over FinQA and over what is added to it
CARDS: dict[str, list[float]] = {  # name: GB, dense TFLOP/s in 16 bits with sums in float32, GB/s
    "RTX 3080": [10, 59.5, 760],
    "RTX 4090": [24, 165.2, 1008],
    "A100": [80, 312, 2039],
}
# -----------------------------------------------------------------------------
configure(globals())

import json

import torch

from fincompress import memory, models, simulation
from fincompress.depth import repack
from fincompress.errors import UserError, run_script
from fincompress.sapling import simulated

TARGET_TOKENS = 96  # of the longest target; FinQA's longest in dev has 67
MEAN_TOKENS = 450  # of an example: EVIDENCE_TOKENS = 400, the question and the program
GPTQ_TEXTS = 256  # calibration texts of GPTQ, each of TOKENS tokens
OPERATOR_S = 7.4e-6  # seconds to start an operator, the limit of short sequences: from Qwen-7B's published QLoRA
DEVICES = ("cuda", "cpu")
CPU_DTYPE, REASON = models.pick_dtype(torch.device("cpu"))  # as the scripts compute on this machine
PHASES = ("QLoRA", "8-bit LoRA", "SAPLING, UPDATE = qlora, with its teacher", "SAPLING, UPDATE = full")


def main() -> None:
    check_settings()
    models.quiet_libraries()
    config = models.base_config(BASE_MODEL, RESULTS_DIR)
    peaks = print_memory(config)
    summary = {"base_model": BASE_MODEL, "memory": peaks, "hours": print_hours(config, peaks)}
    print(json.dumps(summary))


def check_settings() -> None:
    for card, numbers in CARDS.items():
        if len(numbers) != 3 or min(numbers) <= 0:
            raise UserError(f"CARDS has GB, TFLOP/s and GB/s of each card, above 0, not {numbers} of {card!r}")


def print_memory(config) -> list[dict]:
    print(
        f"{BASE_MODEL}: batch {BATCH_SIZE}, {TOKENS} tokens, {TARGET_TOKENS} of them target, LoRA rank {LORA_RANK}\n"
        f"GPU: 8-bit AdamW, activations recomputed; with {memory.FRAGMENTATION:.0%} for pieces too small to use and "
        f"{memory.CUDA_CONTEXT_GB} GB of CUDA context\nCPU: the base dequantized where that fits, {REASON}\n"
    )
    print(f"{'peak memory':<46}" + "".join(f"{device + ', GB':>10}" for device in DEVICES))
    rows = []
    training = phases(config, BATCH_SIZE, TOKENS).items()
    for phase, gb in ({name: lambda d, costs=costs: costs(d).gb for name, costs in training} | others(config)).items():
        row = {"phase": phase} | {device: round(with_context(gb(device), device), 2) for device in DEVICES}
        print(f"{phase:<46}" + "".join(f"{row[device]:>10.2f}" for device in DEVICES), flush=True)
        rows.append(row)
    return rows


def print_hours(config, peaks: list[dict]) -> list[dict]:
    """Hours of training at batch 1 on each card, where it fits at BATCH_SIZE and TOKENS, whose ``peaks`` these are."""
    needed = {row["phase"]: row.get("cuda", 0) for row in peaks}
    of = f"hours, batch 1, {EXAMPLES} examples of {MEAN_TOKENS} tokens"
    print(f"\n{of:<46}" + "".join(f"{card:>10}" for card in CARDS))
    rows = []
    for phase, costs in phases(config, 1, MEAN_TOKENS).items():
        step, row = costs("cuda"), {"phase": phase}
        for card, (room, tflops, gb_per_s) in CARDS.items():
            hours = EXAMPLES * step.seconds(tflops, gb_per_s, OPERATOR_S) / 3600
            row[card] = round(hours, 1) if max(needed[phase], with_context(step.gb, "cuda")) <= room else None
        print(f"{phase:<46}" + "".join(f"{'-' if row[card] is None else row[card]:>10}" for card in CARDS), flush=True)
        rows.append(row)
    return rows


def with_context(gb: float, device: str) -> float:
    """Peak in GB, with what a GPU takes beside tensors."""
    return memory.on_a_card(gb) if device == "cuda" else gb


def phases(config, batch: int, tokens: int) -> dict:
    """Costs of a training step by phase, each a function of the device."""
    shape = (config, batch, tokens, min(TARGET_TOKENS, tokens - 2))

    def options(device: str) -> dict:
        return place(device) | {"recompute": device == "cuda"}

    qlora, int8, taught, full = PHASES
    return {
        qlora: lambda device: simulation.training(*shape, "nf4", LORA_RANK, **options(device)),
        int8: lambda device: simulation.training(*shape, "int8", LORA_RANK, reentrant=True, **options(device)),
        taught: lambda device: simulated.recovering(*shape, LORA_RANK, **options(device)),
        full: lambda device: simulated.recovering(*shape, **options(device)),
    }


def place(device: str) -> dict:
    """Where a phase is simulated, and its compute type there."""
    return {"device": device, "dtype": CPU_DTYPE if device == "cpu" else torch.bfloat16}


def others(config) -> dict:
    """GB by phase of what is not training, each a function of the device."""
    targets = min(TARGET_TOKENS, TOKENS - 2)
    half = repack.shortened_config(config, max(1, config.num_hidden_layers // 2))

    def decoding(config, precision: str = "auto", rank: int = 0):
        return lambda device: memory.inference_gb(config, TOKENS + TARGET_TOKENS, precision, rank, **place(device))

    return {
        "scan of SAPLING, UPDATE = qlora": lambda device: (
            simulated.scanning(config, 2 * BATCH_SIZE, TOKENS, targets, LORA_RANK, **place(device)).gb
        ),
        "GPTQ": lambda device: memory.quantizing_gb(config, TOKENS, GPTQ_TEXTS),
        "decoding in 16 bits": decoding(config),
        "decoding, QLoRA": decoding(config, "nf4", LORA_RANK),
        "decoding, 8-bit LoRA": decoding(config, "int8", LORA_RANK),
        "decoding, GPTQ": decoding(config, "gptq-4bit"),
        "decoding, half of the layers in 16 bits": decoding(half),
        "decoding, half of the layers, GPTQ": decoding(half, "gptq-4bit"),
    }


if __name__ == "__main__":
    run_script(main)
