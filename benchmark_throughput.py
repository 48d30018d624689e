"""Speed, memory and size of finished runs on this device, beside the base model in 16 bits.

Every model has a process of its own and they take turns at every measure, so that the drift of a shared machine
cancels in the ratios to the base model (docs/benchmarking.md). Writes results/<run>/throughput_<device>.json (device:
cpu or cuda) and rebuilds results/throughput.csv. The last line printed is one JSON object.

    python benchmark_throughput.py                                     every finished run of BASE_MODEL
    python benchmark_throughput.py --RUNS="['qlora_4bit', 'sapling/15']"
"""

from fincompress.settings import configure

# -----------------------------------------------------------------------------
# What
RUNS: list[str] | None = None  # as ["qlora_4bit", "sapling/15"]; None: every finished one of BASE_MODEL and DATA_RUN
BASE_MODEL: str = "smollm2-135m"  # the dense reference (runs that are named bring their own), or shape:<name>
DATA_RUN: str = "data"  # prompt lengths are those of this data run (runs that are named bring their own)
RESULTS_DIR: str = "results"  # every run has a folder in here
# How long
ROUNDS: int = 5  # rounds, each of which measures every model once; more narrow the interval
NEW_TOKENS: int = 16  # tokens decoded in a round, at each batch size
BATCH_SIZES: list[int] = []  # sequences decoded at once, beside batch 1
MAX_MINUTES: float = 60.0  # at most; it then ends with the rounds that it has
# Fit, on a GPU only
VRAM_LIMIT_GB: float | None = (
    10.0  # a model that needs more is not measured, also on a larger card; None: no such limit
)
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import json
import math
import time
from pathlib import Path

import pandas as pd

from fincompress import memory, models, provenance, runs
from fincompress.benchmark import record, rounds, subjects
from fincompress.errors import UserError, run_script

MEDIANS = ("prefill_tokens_per_s", "prefill_ratio", "decode_tokens_per_s", "decode_ratio", "inference_memory_gb",
           "size_gb")  # fmt: skip


def main() -> None:
    models.quiet_libraries()
    clock = runs.Stopwatch()
    chosen = subjects.find_subjects(RESULTS_DIR, RUNS, BASE_MODEL, DATA_RUN)
    base = chosen[0]
    positions = models.room_for_prompt(models.read_config(base.path), "NEW_TOKENS", NEW_TOKENS)
    lengths, data = subjects.prompt_lengths(RESULTS_DIR, base.data_run, positions)
    card = rounds.probe()
    limit = (VRAM_LIMIT_GB or math.inf) - memory.CUDA_CONTEXT_GB if card["device"] == "cuda" else math.inf
    room_gb = min(card["free_gb"], limit)
    print_card(card, base, lengths, data, room_gb)
    longest = max(lengths.values())
    fitting, too_large = subjects.which_fit(chosen, RESULTS_DIR, longest, NEW_TOKENS, card, room_gb)
    plan = rounds.Plan(lengths, BATCH_SIZES, ROUNDS, NEW_TOKENS, RESULTS_DIR, room_gb, 60 * MAX_MINUTES)
    entrants, failed, load = rounds.measure_all(fitting, plan)
    if load > record.MAX_LOAD:
        print(f"other jobs took {load:.0%} of the cores: the records keep these speeds, and nothing is decided by them")
    not_measured = too_large | failed
    common = {
        "load": round(load, 3), "call": provenance.fingerprint(time.time_ns()), "data": data, "data_run": base.data_run,
        "settings": {name: SETTINGS[name] for name in ("ROUNDS", "NEW_TOKENS", "BATCH_SIZES", "VRAM_LIMIT_GB")},
    }  # fmt: skip
    paths = {run: record.write(RESULTS_DIR, entrant, card, common) for run, entrant in entrants.items()}
    rows = {run: record.read_throughput(path) for run, path in paths.items()}
    if rows:
        print_table(rows)
    for run, why in not_measured.items():
        print(f"{run}: not measured: {why}")
    for run, entrant in entrants.items():
        for name, why in entrant.not_measured.items():
            print(f"{run}: {name} not measured: {why}")
    if not rows:
        raise UserError(f"nothing was measured: {'; '.join(not_measured.values())}")
    runs.write_csv(Path(RESULTS_DIR) / "throughput.csv", record.table(RESULTS_DIR))
    print(
        f"{len(rows)} models in {clock.seconds() / 60:.1f} min; wrote throughput_{card['device']}.json of each run "
        f"and {RESULTS_DIR}/throughput.csv"
    )
    medians = {run: {name: row[name] for name in MEDIANS} for run, row in rows.items()}
    print(json.dumps({"device": card["device"], "runs": medians, "not_measured": not_measured,
                      "bandwidth_gb_per_s": card["bandwidth_gb_per_s"]}))  # fmt: skip


def print_card(card: dict, base: subjects.Subject, lengths: dict[str, int], data: dict | None, room_gb: float) -> None:
    """What all numbers share: device, ceilings, prompts."""
    hardware = card["hardware"]
    print(f"device     {card['device']}, {hardware.get('gpu', hardware['cpu'])}, {card['reason']}")
    print(f"threads    {hardware['threads']} on {hardware['cores']} cores, {hardware['memory_gb']} GB of memory")
    print(f"ceiling    {card['bandwidth_gb_per_s']:.1f} GB/s of memory; {room_gb:.1f} GB for a model")
    source = f"of data run {base.data_run!r} ({data['source']})" if data else "no data run is here: a fixed length only"
    print(f"prompts    {', '.join(f'{name} {tokens}' for name, tokens in lengths.items())} tokens, {source}")
    print(f"rounds     {ROUNDS}, {NEW_TOKENS} new tokens each, batches 1 and {BATCH_SIZES}, models take turns")


def print_table(rows: dict[str, dict]) -> None:
    """The medians of every model, one a line, with the lowest and highest ratio."""
    lines = []
    for run, row in rows.items():
        line = {"run": run, "size GB": f"{row['size_gb']:.3f}", "memory GB": f"{row['inference_memory_gb']:.2f}"}
        for name, form in (("prefill", ".0f"), ("decode", ".1f")):
            speed, ratios = row[f"{name}_tokens_per_s"], row["ratios"][f"{name}_tokens_per_s"]
            line[f"{name}/s"] = "-" if speed is None else format(speed, form)
            ratio = f"{row[f'{name}_ratio']:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]" if ratios else "-"
            line[f"{name} x base"] = ratio
        lines.append(line | {"% of bound": f"{row['share_of_bandwidth']:.0%}", "kernel": row["kernel"]})
    print("\n" + pd.DataFrame(lines).to_string(index=False))


if __name__ == "__main__":
    run_script(main)
