"""Memory and time that each phase needs, of a model that need not be there: simulated on tensors without data.

Prints the peak of every phase at BATCH_SIZE and TOKENS, on a GPU and on a CPU, the hours of training on each of CARDS,
and with LARGEST what fits them (docs/gpu.md). The last line printed is one JSON object. A 7B model takes half a
minute a phase, or a quarter of an hour with LARGEST.

    python predict.py
    python predict.py --BASE_MODEL=smollm2-135m --BATCH_SIZE=4 --LORA_RANK=32
"""

from fincompress.settings import configure

# -----------------------------------------------------------------------------
BASE_MODEL: str = "shape:llama-2-7b"  # or smollm2-135m, a folder, a hub id
RESULTS_DIR: str = "results"  # where a converted base model lies
BATCH_SIZE: int = 1  # sequences at once, in training
TOKENS: int = 736  # of the longest example: MAX_PROMPT_TOKENS and its target
TARGET_TOKENS: int = 96  # of the longest target
LORA_RANK: int = 16  # of the adapters
GPTQ_TEXTS: int = 256  # calibration texts of GPTQ, each of TOKENS tokens
CARDS: dict[str, list[float]] = {  # name: GB, dense TFLOP/s in 16 bits with sums in float32, GB/s
    "RTX 3080": [10, 59.5, 760],
    "RTX 4090": [24, 165.2, 1008],
    "A100": [80, 312, 2039],
}
OPERATOR_US: float = 7.4  # microseconds to start one, the limit of short sequences: from Qwen-7B's published QLoRA
EXAMPLES: int = 30000  # that a phase trains on in all: the recipe's passes over FinQA and over what is added to it
MEAN_TOKENS: int = 450  # of an example: EVIDENCE_TOKENS = 400, the question and the program
LARGEST: bool = False  # also find the largest TOKENS and BATCH_SIZE that fit each card
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import json

import torch

from fincompress import memory, models, simulation
from fincompress.depth import repack
from fincompress.errors import UserError, run_script
from fincompress.sapling import simulated

DEVICES = ("cuda", "cpu")
CPU_DTYPE, REASON = models.pick_dtype(torch.device("cpu"))  # as the scripts compute on this machine
TRAINING = ("QLoRA", "8-bit LoRA", "SAPLING, UPDATE = qlora, with its teacher", "SAPLING, UPDATE = full")


def main() -> None:
    check_settings()
    models.quiet_libraries()
    config = models.base_config(BASE_MODEL, RESULTS_DIR)
    peaks = print_memory(config)
    summary = {"base_model": BASE_MODEL, "memory": peaks, "hours": print_hours(config, peaks)}
    if LARGEST:
        summary["largest"] = print_largest(config)
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
    for phase, costs in (phases(config, BATCH_SIZE, TOKENS) | others(config)).items():
        row = {"phase": phase} | {device: round(with_context(costs(device), device), 2) for device in DEVICES}
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
            hours = EXAMPLES * step.seconds(tflops, gb_per_s, OPERATOR_US / 1e6) / 3600
            row[card] = round(hours, 1) if max(needed[phase], with_context(step, "cuda")) <= room else None
        print(f"{phase:<46}" + "".join(f"{'-' if row[card] is None else row[card]:>10}" for card in CARDS), flush=True)
        rows.append(row)
    return rows


def print_largest(config) -> list[dict]:
    """The most tokens at BATCH_SIZE, and the most sequences of TOKENS, that training fits on each card."""
    print(f"\n{'largest that fits':<46}{'card':>10}{'tokens':>10}{'batch':>10}")
    rows = []
    for phase in TRAINING[:3]:

        def peak(batch: int, tokens: int, phase: str = phase) -> float:
            return with_context(phases(config, batch, tokens)[phase]("cuda"), "cuda")

        tokens_at = simulation.straight_line({tokens: peak(BATCH_SIZE, tokens) for tokens in (512, 2048)})
        batch_at = simulation.straight_line({batch: peak(batch, TOKENS) for batch in (2, 8)})
        for card, (room, *_) in CARDS.items():
            longest = min(tokens_at(room), config.max_position_embeddings)
            row = {"phase": phase, "card": card, "tokens": longest, "batch": batch_at(room)}
            print(f"{phase:<46}{card:>10}{row['tokens'] or '-':>10}{row['batch'] or '-':>10}", flush=True)
            rows.append(row)
    return rows


def with_context(costs: simulation.Costs, device: str) -> float:
    """Peak in GB, with what a GPU takes beside tensors."""
    return memory.on_a_card(costs.gb) if device == "cuda" else costs.gb


def phases(config, batch: int, tokens: int) -> dict:
    """Costs of a training step by phase, each a function of the device."""
    shape = (config, batch, tokens, min(TARGET_TOKENS, tokens - 2))

    def options(device: str) -> dict:
        return place(device) | {"recompute": device == "cuda"}

    qlora, int8, taught, full = TRAINING
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
    """Costs by phase of what is not training, each a function of the device."""
    targets = min(TARGET_TOKENS, TOKENS - 2)
    half = repack.shortened_config(config, max(1, config.num_hidden_layers // 2))

    def decoding(config, precision: str = "auto", rank: int | None = None):
        return lambda device: simulation.decoding(config, 1, TOKENS, precision, rank, **place(device))

    return {
        "scan of SAPLING, UPDATE = qlora": lambda device: simulated.scanning(
            config, 2 * BATCH_SIZE, TOKENS, targets, LORA_RANK, **place(device)
        ),
        "GPTQ": lambda device: simulation.quantizing(config, TOKENS, GPTQ_TEXTS),
        "decoding in 16 bits": decoding(config),
        "decoding, QLoRA": decoding(config, "nf4", LORA_RANK),
        "decoding, 8-bit LoRA": decoding(config, "int8", LORA_RANK),
        "decoding, GPTQ": decoding(config, "gptq-4bit"),
        "decoding, half of the blocks in 16 bits": decoding(half),
        "decoding, half of the blocks, GPTQ": decoding(half, "gptq-4bit"),
    }


if __name__ == "__main__":
    run_script(main)
