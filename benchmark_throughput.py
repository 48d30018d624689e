"""Speed, memory and size of finished runs on this device, beside the base model in 16 bits.

Every model has a process of its own and they take turns at every measure, so that the drift of a shared machine
cancels in the ratios to the base model (docs/benchmarking.md). Writes results/<run>/throughput_<device>.json (device:
cpu or cuda) and rebuilds results/throughput.csv. The last line printed is one JSON object.

    python benchmark_throughput.py                                     every finished run of BASE_MODEL
    python benchmark_throughput.py --RUNS="['qlora_4bit', 'sapling/30']"
    python benchmark_throughput.py --PREDICT=True --BASE_MODEL=shape:llama-2-7b    predicted memory, of the config alone
"""

from fincompress.settings import check_positive, configure

# -----------------------------------------------------------------------------
# What
RUNS: list | None = None  # names of runs, such as ["qlora_4bit", "sapling/30"]; None: every finished one of BASE_MODEL
BASE_MODEL = "smollm2-135m"  # the dense reference (runs that are named bring their own), or shape:<name>
DATA_RUN = "data"  # prompt lengths are those of this data run (runs that are named bring their own)
RESULTS_DIR = "results"  # every run has a folder in here
# How long
ROUNDS = 5  # rounds, each of which measures every model once; fewer decide nothing, more narrow the spread
NEW_TOKENS = 16  # tokens decoded in a round, at each batch size
BATCH_SIZES = [4]  # sequences decoded at once, beside batch 1
MAX_SECONDS: float = 4.0  # of one measure over all rounds, each model's turn; a slower one is taken in fewer rounds
# Fit, on a GPU only
VRAM_LIMIT_GB: float | None = 10.0  # the card it is about, also on a larger one; None: the card that is there
# Prediction
PREDICT = False  # print predicted peak memory on a card of VRAM_LIMIT_GB and on a CPU, and leave
BATCH_SIZE = 1  # only for PREDICT: sequences at once, in training
TRAIN_TOKENS = 736  # only for PREDICT: tokens of the longest example
TARGET_TOKENS = 96  # only for PREDICT: tokens of the longest target
LORA_RANK = 16  # only for PREDICT
TRAIN_RATIO: float = 0.25  # only for PREDICT: share of the layers that SAPLING trains
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import json  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from fincompress import memory, models, provenance, runs  # noqa: E402
from fincompress.benchmark import record, rounds, subjects  # noqa: E402
from fincompress.depth import repack  # noqa: E402
from fincompress.depth.sublayers import SubLayer  # noqa: E402
from fincompress.errors import UserError, run_script  # noqa: E402


def main() -> None:
    check_settings()
    models.quiet_libraries()
    if PREDICT:
        print_predictions()
        return
    clock = runs.Stopwatch()
    chosen = subjects.find_subjects(RESULTS_DIR, RUNS, BASE_MODEL, DATA_RUN)
    base = chosen[0]
    configs = {subject.run: subjects.subject_config(subject, RESULTS_DIR) for subject in chosen}
    positions = min(config.max_position_embeddings for config in configs.values()) - NEW_TOKENS - 1
    lengths, data = subjects.prompt_lengths(RESULTS_DIR, base.data_run, positions)
    card = rounds.probe()
    limit = None
    if card["device"] == "cuda":  # the stated card, or what is free of this one where that is less
        limit = min(filter(None, (VRAM_LIMIT_GB, card["free_gb"] + memory.CUDA_CONTEXT_GB)))
    print_card(card, base, lengths, data, limit)
    fitting, failed = which_fit(chosen, configs, card, max(lengths.values()), limit)
    plan = rounds.Plan(lengths, BATCH_SIZES, ROUNDS, NEW_TOKENS, MAX_SECONDS, RESULTS_DIR, limit)
    entrants, broken = rounds.measure_all(fitting, plan)
    failed |= broken
    reference = base.run if base.run in entrants else None
    card["bandwidth_of_rounds"] = record.spread(entrants[reference].bandwidth if reference else [])
    common = {
        "call": provenance.fingerprint(time.time_ns()), "vram_limit_gb": limit, "data": data, "data_run": base.data_run,
        "settings": {name: SETTINGS[name] for name in ("ROUNDS", "NEW_TOKENS", "BATCH_SIZES", "MAX_SECONDS")},
    }  # fmt: skip
    records = {run: record.write(RESULTS_DIR, entrant, reference, card, common) for run, entrant in entrants.items()}
    runs.write_csv(Path(RESULTS_DIR) / "throughput.csv", record.table(RESULTS_DIR))
    print_table(records, card)
    print(
        f"{len(records)} models in {clock.seconds() / 60:.1f} min; wrote throughput_{card['device']}.json of each run "
        f"and {RESULTS_DIR}/throughput.csv"
    )
    print(json.dumps(summary(records, failed, card)))
    if failed and not records:
        raise UserError("not measured: " + "; ".join(f"{run} ({reason})" for run, reason in failed.items()))


def check_settings() -> None:
    check_positive(
        ROUNDS=ROUNDS, NEW_TOKENS=NEW_TOKENS, MAX_SECONDS=MAX_SECONDS, VRAM_LIMIT_GB=VRAM_LIMIT_GB,
        BATCH_SIZE=BATCH_SIZE, TRAIN_TOKENS=TRAIN_TOKENS, TARGET_TOKENS=TARGET_TOKENS, LORA_RANK=LORA_RANK,
        TRAIN_RATIO=TRAIN_RATIO,
    )  # fmt: skip
    if not all(type(size) is int and size > 0 for size in BATCH_SIZES):
        raise UserError(f"BATCH_SIZES are whole numbers above 0, not {BATCH_SIZES}")
    if RUNS is not None and not all(isinstance(name, str) for name in RUNS):
        raise UserError(f"RUNS are names of runs, not {RUNS}")
    if TRAIN_RATIO > 1:
        raise UserError(f"TRAIN_RATIO is a share, above 0 and at most 1, not {TRAIN_RATIO}")


def which_fit(
    chosen: list[subjects.Subject], configs: dict, card: dict, longest: int, limit: float | None
) -> tuple[list[subjects.Subject], dict[str, str]]:
    """``(models to measure, reasons by run)``; raises UserError where they do not fit in memory together."""
    fitting, failed = [], {}
    for subject in chosen:
        subject.predicted_gb = memory.inference_gb(
            configs[subject.run], longest + NEW_TOKENS, 1, subject.precision, longest, card["device"],
            4 if card["dtype"] == "float32" else 2, subject.lora_rank,
        )  # fmt: skip
        try:
            subjects.place(subject, limit, card["free_gb"])
            fitting.append(subject)
        except UserError as error:
            failed[subject.run] = str(error)
            print(f"{subject.run}: not measured: {error}")
    try:
        subjects.check_fit_together(fitting, limit, card["free_gb"])
    except UserError as error:
        if not chosen[0].offload:
            raise
        # The base model alone fills the card: the others are measured without a ratio to it.
        failed[subjects.BASE] = str(error)
        print(f"{subjects.BASE}: not measured: {error}")
        fitting = fitting[1:]
        subjects.check_fit_together(fitting, limit, card["free_gb"])
    return fitting, failed


def print_card(
    card: dict, base: subjects.Subject, lengths: dict[str, int], data: dict | None, limit: float | None
) -> None:
    """What all numbers share: device, ceilings, prompts."""
    hardware = card["hardware"]
    print(f"device     {card['device']}, {hardware.get('gpu', hardware['cpu'])}, {card['reason']}")
    print(f"threads    {hardware['threads']} on {hardware['cores']} cores, {hardware['memory_gb']} GB of memory")
    print(f"ceiling    {card['bandwidth_gb_per_s']:.1f} GB/s of memory")
    source = f"of data run {base.data_run!r} ({data['source']})" if data else "no data run is here: a fixed length only"
    print(f"prompts    {', '.join(f'{name} {tokens}' for name, tokens in lengths.items())} tokens, {source}")
    print(f"rounds     {ROUNDS}, {NEW_TOKENS} new tokens each, batches 1 and {BATCH_SIZES}, models take turns")
    print("card       " + (f"as one of {limit:g} GB" if limit else "no GPU is used, so VRAM_LIMIT_GB does not apply"))


def print_table(records: dict[str, dict], card: dict) -> None:
    """The medians of every model, one a line, and what is to be said of each below."""
    batches = [f"batch {size}" for size in BATCH_SIZES if size != 1]
    titles = ["size GB", "memory GB", "prefill/s", "x base", "decode/s", "x base", "p50 ms", "p95 ms", "TTFT ms",
              *batches, "% of bound", "load s"]  # fmt: skip
    width = max([14, *map(len, records)]) + 1
    print("\n" + f"{'run':<{width}}" + "".join(f"{title:>11}" for title in titles))
    for run, row in records.items():
        prefill, decode = row["prefill"].get("median", row["prefill"]["fixed"]), row["decode"]["1"]
        cells = [
            f"{row['size_gb']:.3f}", f"{row['inference_memory_gb']:.2f}", cell(prefill["tokens_per_s"], ".0f"),
            cell(prefill["ratio"], ".2f"), cell(decode["tokens_per_s"], ".1f"), cell(decode["ratio"], ".2f"),
            f"{decode['ms_per_token_p50']:.1f}", f"{decode['ms_per_token_p95']:.1f}", cell(prefill["ttft_ms"], ".0f"),
            *(cell(row["decode"][title.split()[1]]["tokens_per_s"], ".1f") for title in batches),
            f"{row['ceiling']['share_of_bandwidth']:.0%}", f"{row['load_seconds']:.1f}",
        ]  # fmt: skip
        print(f"{run:<{width}}" + "".join(f"{text:>11}" for text in cells))
    print()
    if warning := record.unsteady(card["bandwidth_of_rounds"]):
        print(warning)
    for run, row in records.items():
        notes = [row["kernel"], row["label"], *(f"{name}: {why}" for name, why in row["not_measured"].items())]
        ratio = row["decode"]["1"]["ratio"]
        if ratio and run != subjects.BASE:
            notes.insert(0, f"decodes at {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times base")
        print(f"{run}: " + "; ".join(filter(None, notes)))


def cell(found: dict | None, form: str) -> str:
    """A median, or a dash where nothing was measured."""
    return "-" if found is None else format(found["median"], form)


def summary(records: dict[str, dict], failed: dict[str, str], card: dict) -> dict:
    """The medians, for the last line."""

    def median(measured: dict | None) -> float | None:
        return measured and float(f"{measured['median']:.5g}")

    rows = {}
    for run, row in records.items():
        prefill, decode = row["prefill"].get("median", row["prefill"]["fixed"]), row["decode"]["1"]
        rows[run] = {
            "decode_tokens_per_s": median(decode["tokens_per_s"]),
            "decode_ratio": median(decode["ratio"]),
            "prefill_tokens_per_s": median(prefill["tokens_per_s"]),
            "prefill_ratio": median(prefill["ratio"]),
            "inference_memory_gb": round(row["inference_memory_gb"], 4),
            "size_gb": round(row["size_gb"], 4),
            "label": row["label"],
        }
    bandwidth = card["bandwidth_of_rounds"]
    return {
        "device": card["device"], "reference": subjects.BASE, "runs": rows, "not_measured": failed,
        "bandwidth_gb_per_s": bandwidth and [bandwidth[name] for name in ("low", "median", "high")],
    }  # fmt: skip


def print_predictions() -> None:
    """Predicted peak memory of every method for BASE_MODEL, on a card and on a CPU, from its config alone."""
    config = models.base_config(BASE_MODEL, RESULTS_DIR)
    blocks = range(max(1, config.num_hidden_layers // 2))
    half = repack.packed_config(config, [repack.Block(SubLayer(i, "attention"), SubLayer(i, "mlp")) for i in blocks])
    on = {
        device: memory.predict_methods(
            config, half, BATCH_SIZE, TRAIN_TOKENS, TARGET_TOKENS, LORA_RANK, TRAIN_RATIO, device
        )
        for device in ("cuda", "cpu")
    }
    print(
        f"predicted peak memory of {BASE_MODEL}: batch {BATCH_SIZE}, {TRAIN_TOKENS} tokens, {TARGET_TOKENS} of them "
        f"target, LoRA rank {LORA_RANK}\nGPU: 8-bit AdamW, activations recomputed, {memory.CUDA_CONTEXT_GB} GB of CUDA "
        "context included; CPU: AdamW in float32, beside what Python takes"
    )
    card = f"{VRAM_LIMIT_GB:g} GB GPU" if VRAM_LIMIT_GB else "GPU"
    print(f"\n{'method':<34}{card + ', GB':>16}{'fits':>6}{'CPU, GB':>10}")
    rows = []
    for name, gpu in on["cuda"].items():
        gpu, cpu = gpu + memory.CUDA_CONTEXT_GB, on["cpu"][name]
        fits = None if VRAM_LIMIT_GB is None else gpu <= VRAM_LIMIT_GB
        print(f"{name:<34}{gpu:>16.2f}{'-' if fits is None else 'yes' if fits else 'no':>6}{cpu:>10.2f}")
        rows.append({"method": name, "gpu_gb": round(gpu, 3), "fits": fits, "cpu_gb": round(cpu, 3)})
    print(json.dumps({"base_model": BASE_MODEL, "vram_limit_gb": VRAM_LIMIT_GB, "predicted": rows}))


if __name__ == "__main__":
    run_script(main)
