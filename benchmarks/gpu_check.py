"""What the runs of gpu_check.sh took, beside what was predicted, and which sentences of the README it confirms.

Writes gpu_check.json in RESULTS_DIR. Run benchmarks/gpu_check.sh, which ends with this.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RESULTS_DIR: str = "results-gpu-check"  # where gpu_check.sh left its runs
VRAM_CAP_GB: float = 10.0  # of the card that the README speaks of
USED_BEFORE_MIB: float = 0.0  # of the card's memory, by other processes before the first phase
# -----------------------------------------------------------------------------
configure(globals())

import pandas as pd

from fincompress import memory, models, provenance, runs
from fincompress.errors import run_script

TRAINED = {"qlora_4bit": "QLoRA", "lora_8bit": "8-bit LoRA", "sapling": "SAPLING"}  # as the README calls them
PREDICTED = {"SAPLING": "SAPLING, UPDATE = qlora, with its teacher"}  # as predict.py calls them
LLAMA = "shape:llama-2-7b"  # what the README speaks of


def main() -> None:
    for run in TRAINED:
        runs.finished_run(RESULTS_DIR, run, "train_metrics.json")
    predicted = {row["phase"]: row for row in runs.read_json(Path(RESULTS_DIR) / "predicted.json")["memory"]}
    rows = [trained(run, name, predicted) for run, name in TRAINED.items()] + [quantized("gptq_4bit")]
    rows += [decoded(path) for path in runs.records(RESULTS_DIR, "throughput_*.json")]
    print("\n" + pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="{:.2f}".format))
    model = runs.read_json(Path(RESULTS_DIR) / "qlora_4bit" / "settings.json")["base_model"]
    sentences = [confirmed(row) for row in rows if row["phase"].startswith("train ")] if model == LLAMA else []
    print(f"\nREADME, Llama-2-7B on {VRAM_CAP_GB:g} GB:", *(sentences or [f"- nothing: this was {model}"]), sep="\n")
    path = Path(RESULTS_DIR) / "gpu_check.json"
    record = {"base_model": model, "rows": rows, "readme": sentences, "cap_gb": VRAM_CAP_GB}
    runs.write_json(path, record | provenance.provenance())
    print(f"wrote {path}")


def trained(run: str, name: str, predicted: dict[str, dict]) -> dict:
    metrics = runs.read_json(runs.finished_run(RESULTS_DIR, run, "train_metrics.json") / "train_metrics.json")
    rate, peak = metrics["tokens_seen"] / metrics["training_seconds"], metrics["peak_memory_gb"]
    device = "cuda" if "vram_reserved" in peak else "cpu"
    expected = predicted[PREDICTED.get(name, name)][device]
    row = took(f"train {name}", 0.0, peak) | {"predicted GB": expected}  # CUDA's context counted already
    # The cap bounds what is reserved; only the card itself says what CUDA's context takes beside it.
    used = peak.get("vram_used", 0.0) - USED_BEFORE_MIB * 2**20 / 1e9
    return row | {"measured GB": max(row["measured GB"], used), "tokens/s": rate}


def quantized(run: str) -> dict:
    folder = runs.finished_run(RESULTS_DIR, run)
    metrics, settings = (runs.read_json(folder / name) for name in ("quantize_metrics.json", "settings.json"))
    config, texts = models.read_config(str(folder)), settings["settings"]["CALIBRATION_EXAMPLES"]
    tokens = metrics["calibration_tokens"] // texts
    predicted = memory.quantizing_gb(config, tokens, texts)
    phase = f"GPTQ, {metrics['quantization_seconds'] / config.num_hidden_layers:.0f} s a block"
    return took(phase, predicted, metrics["peak_memory_gb"]) | {"kernel": metrics["kernel"] or "none"}


def decoded(path: Path) -> dict:
    record = runs.read_json(path)
    memory_gb, rate = record["memory_gb"], record["decode"]["1"]["tokens_per_s"]["median"]
    row = took(f"decode {record['run']}", memory_gb["predicted"], memory_gb["batch 1"])
    return row | {"tokens/s": rate, "kernel": record["kernel"]}


def took(phase: str, predicted_gb: float, peak: dict) -> dict:
    """What a phase was predicted to take and took: of a GPU reserved memory and CUDA's context, or resident memory."""
    on_gpu = "vram_reserved" in peak
    return {
        "phase": phase,
        "predicted GB": memory.on_a_card(predicted_gb) if on_gpu else predicted_gb,
        "measured GB": peak["vram_reserved"] + memory.CUDA_CONTEXT_GB if on_gpu else peak["rss"],
    }


def confirmed(row: dict) -> str:
    """Whether a training stayed below the cap, and how far from what was predicted."""
    holds = "holds" if row["measured GB"] <= VRAM_CAP_GB else "DOES NOT HOLD"
    apart = row["measured GB"] / row["predicted GB"] - 1
    verdict = f"{holds}, {row['measured GB']:.1f} GB, {apart:+.0%} of the prediction"
    return f"- {row['phase']} within {VRAM_CAP_GB:g} GB: {verdict}"


if __name__ == "__main__":
    run_script(main)
