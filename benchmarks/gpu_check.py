"""What the runs of gpu_check.sh took, beside what was predicted, and which sentences of the README it confirms.

Writes gpu_check.json in RESULTS_DIR. Run benchmarks/gpu_check.sh, which ends with this.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure  # noqa: E402

# -----------------------------------------------------------------------------
RESULTS_DIR: str = "results-gpu-check"  # where gpu_check.sh left its runs
VRAM_CAP_GB: float = 10.0  # of the card that the README speaks of
# -----------------------------------------------------------------------------
configure(globals())

import pandas as pd  # noqa: E402

from fincompress import memory, models, provenance, runs, simulation  # noqa: E402
from fincompress.errors import run_script  # noqa: E402

TRAINED = {"qlora_4bit": "QLoRA", "lora_8bit": "8-bit LoRA", "sapling": "SAPLING"}  # as the README calls them


def main() -> None:
    rows = [trained(run, name) for run, name in TRAINED.items()] + [quantized("gptq_4bit")]
    rows += [decoded(path) for path in runs.records(RESULTS_DIR, "throughput_*.json")]
    print("\n" + pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="{:.2f}".format))
    said = [confirmed(row) for row in rows if row["phase"].startswith("train ")]
    print("\nREADME, Llama-2-7B on 10 GB:", *said, sep="\n")
    path = Path(RESULTS_DIR) / "gpu_check.json"
    runs.write_json(path, {"rows": rows, "readme": said, "cap_gb": VRAM_CAP_GB, **provenance.provenance()})
    print(f"wrote {path}")


def trained(run: str, name: str) -> dict:
    """What a training took: GB of the GPU where there is one, else of resident memory."""
    folder = runs.finished_run(RESULTS_DIR, run, "train_metrics.json")
    found = runs.read_json(folder / "train_metrics.json")
    return {
        "phase": f"train {name}",
        "predicted GB": found["predicted_memory_gb"] + memory.CUDA_CONTEXT_GB * on_gpu(found),
        "measured GB": measured_gb(found),
        "tokens/s": found["tokens_seen"] / found["training_seconds"],
    }


def quantized(run: str) -> dict:
    found = runs.read_json(runs.finished_run(RESULTS_DIR, run) / "quantize_metrics.json")
    folder = Path(RESULTS_DIR) / run
    config, settings = models.read_config(str(folder)), runs.read_json(folder / "settings.json")["settings"]
    texts = settings["CALIBRATION_EXAMPLES"]
    tokens = found["calibration_tokens"] // texts
    predicted = simulation.quantizing(config, settings["BATCH_SIZE"], tokens, texts).gb
    return {
        "phase": f"GPTQ, {found['quantization_seconds'] / config.num_hidden_layers:.0f} s a block",
        "predicted GB": predicted + memory.CUDA_CONTEXT_GB * on_gpu(found),
        "measured GB": measured_gb(found),
        "kernel": found["kernel"] or "none",
    }


def decoded(path: Path) -> dict:
    found = runs.read_json(path)
    return {
        "phase": f"decode {found['run']}",
        "predicted GB": found["memory_gb"]["predicted"],
        "measured GB": found["inference_memory_gb"],
        "tokens/s": found["decode"]["1"]["tokens_per_s"]["median"],
        "kernel": found["kernel"],
    }


def on_gpu(found: dict) -> bool:
    return "vram_reserved" in found["peak_memory_gb"]


def measured_gb(found: dict) -> float:
    """Reserved memory and CUDA's context, or resident memory."""
    peak = found["peak_memory_gb"]
    return peak["vram_reserved"] + memory.CUDA_CONTEXT_GB if on_gpu(found) else peak["rss"]


def confirmed(row: dict) -> str:
    """Whether a training stayed below the cap, and how far from what was predicted."""
    holds = "holds" if row["measured GB"] <= VRAM_CAP_GB else "DOES NOT HOLD"
    apart = row["measured GB"] / row["predicted GB"] - 1
    said = f"{holds}, {row['measured GB']:.1f} GB, {apart:+.0%} of the prediction"
    return f"- {row['phase']} within {VRAM_CAP_GB:g} GB: {said}"


if __name__ == "__main__":
    run_script(main)
