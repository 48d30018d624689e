"""Memory that each phase needs, of a model that need not be there: simulated on tensors without data.

Prints the peak of every phase at BATCH_SIZE and TOKENS, on a GPU and on a CPU, and with LARGEST what fits each of CARDS
(docs/memory.md). The last line printed is one JSON object. A 7B model takes half a minute a phase, or a quarter of an
hour with LARGEST.

    python predict_memory.py
    python predict_memory.py --BASE_MODEL=smollm2-135m --BATCH_SIZE=4 --LORA_RANK=32
"""

from fincompress.settings import check_positive, configure

# -----------------------------------------------------------------------------
BASE_MODEL = "shape:llama-2-7b"  # or smollm2-135m, a folder, a hub id
RESULTS_DIR = "results"  # where a converted base model lies
BATCH_SIZE = 1  # sequences at once, in training
TOKENS = 736  # of the longest example: MAX_PROMPT_TOKENS and its target
TARGET_TOKENS = 96  # of the longest target
LORA_RANK = 16  # of the adapters
SCAN_BATCH_SIZE = 1  # questions at once in SAPLING's scan
DEVICES = ["cuda", "cpu"]  # a GPU that multiplies bf16 and has its 8-bit optimizer; a CPU that unpacks quantized bases
CARDS = [10, 12, 16, 24]  # GB of a GPU
LARGEST = False  # also find the largest TOKENS and BATCH_SIZE that fit each card
FRAGMENTATION = 0.05  # share of the peak that CUDA's allocator takes on top, in pieces too small to use
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import json  # noqa: E402

from fincompress import memory, models, simulation  # noqa: E402
from fincompress.depth import repack  # noqa: E402
from fincompress.depth.sublayers import SubLayer  # noqa: E402
from fincompress.errors import run_script  # noqa: E402
from fincompress.sapling import start  # noqa: E402

TRAINING = ("QLoRA", "8-bit LoRA", "SAPLING, UPDATE = qlora, with its teacher", "SAPLING, UPDATE = full")


def main() -> None:
    check_positive(BATCH_SIZE=BATCH_SIZE, TOKENS=TOKENS, TARGET_TOKENS=TARGET_TOKENS, LORA_RANK=LORA_RANK,
                   SCAN_BATCH_SIZE=SCAN_BATCH_SIZE)  # fmt: skip
    models.quiet_libraries()
    config = models.base_config(BASE_MODEL, RESULTS_DIR)
    print(
        f"{BASE_MODEL}: batch {BATCH_SIZE}, {TOKENS} tokens, {TARGET_TOKENS} of them target, LoRA rank {LORA_RANK}\n"
        f"GPU: 8-bit AdamW, activations recomputed; with {FRAGMENTATION:.0%} for pieces too small to use and "
        f"{memory.CUDA_CONTEXT_GB} GB of CUDA context\n\n{'phase':<46}"
        + "".join(f"{device + ', GB':>10}" for device in DEVICES)
    )
    rows = []
    for phase in (*TRAINING, *others(config)):
        row = {"phase": phase} | {device: round(needed_gb(config, phase, device), 2) for device in DEVICES}
        print(f"{phase:<46}" + "".join(f"{row[device]:>10.2f}" for device in DEVICES), flush=True)
        rows.append(row)
    found = {"base_model": BASE_MODEL, "predicted": rows}
    if LARGEST:
        found["largest"] = print_largest(config)
    print(json.dumps(found))


def needed_gb(config, phase: str, device: str, batch: int = BATCH_SIZE, tokens: int = TOKENS) -> float:
    """Peak of a phase in GB, with what a GPU takes beside tensors."""
    peak = training_gb(config, phase, device, batch, tokens) if phase in TRAINING else others(config)[phase](device)
    return peak * (1 + FRAGMENTATION) + memory.CUDA_CONTEXT_GB if device == "cuda" else peak


def training_gb(config, phase: str, device: str, batch: int, tokens: int) -> float:
    shape = (config, batch, tokens, min(TARGET_TOKENS, tokens - 2))
    options = {"recompute": device == "cuda", "device": device}
    if phase == "QLoRA":
        return simulation.training_gb(*shape, "nf4", LORA_RANK, **options)
    if phase == "8-bit LoRA":
        return simulation.training_gb(*shape, "int8", LORA_RANK, reentrant=True, **options)
    return start.simulate(*shape, rank=LORA_RANK if "qlora" in phase else None, **options)


def others(config) -> dict:
    """Peaks by phase of what is not training, each a function of the device."""
    blocks = range(max(1, config.num_hidden_layers // 2))
    half = repack.packed_config(config, [repack.Block(SubLayer(i, "attention"), SubLayer(i, "mlp")) for i in blocks])

    def decoding(config, precision: str = "auto", rank: int | None = None):
        return lambda device: simulation.decoding_gb(config, 1, TOKENS, precision, rank, device)

    return {
        "scan of SAPLING, UPDATE = qlora": lambda device: simulation.scan_gb(
            config, SCAN_BATCH_SIZE, TOKENS, TARGET_TOKENS, "nf4", LORA_RANK, device
        ),
        "decoding in 16 bits": decoding(config),
        "decoding, QLoRA": decoding(config, "nf4", LORA_RANK),
        "decoding, 8-bit LoRA": decoding(config, "int8", LORA_RANK),
        "decoding, GPTQ": decoding(config, "gptq"),
        "decoding, half of the blocks in 16 bits": decoding(half),
        "decoding, half of the blocks, GPTQ": decoding(half, "gptq"),
    }


def print_largest(config) -> list[dict]:
    """The most tokens at BATCH_SIZE, and the most sequences of TOKENS, that training fits on each card."""
    rows = []
    print(f"\n{'largest':<46}{'card, GB':>10}{'tokens':>10}{'batch':>10}")
    for phase in TRAINING[:3]:
        tokens_at = simulation.straight_line({n: needed_gb(config, phase, "cuda", tokens=n) for n in (512, 2048)})
        batch_at = simulation.straight_line({n: needed_gb(config, phase, "cuda", batch=n) for n in (2, 8)})
        for card in CARDS:
            row = {"phase": phase, "card_gb": card, "tokens": tokens_at(card), "batch": batch_at(card)}
            print(f"{phase:<46}{card:>10}{row['tokens'] or '-':>10}{row['batch'] or '-':>10}", flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    run_script(main)
