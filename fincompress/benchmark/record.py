"""throughput_<device>.json: how a record is written, and the one place that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fincompress import provenance, runs
from fincompress.errors import UserError

if TYPE_CHECKING:
    from fincompress.benchmark.rounds import Entrant

COPIED = ("kernel", "label", "call", "data_run")  # as the tables need them
STEADY = 1.3  # a machine that stays the same reads its memory in no round faster than this many times the slowest


# ----------------------------------------------------------------------------------------------------------- writing


def write(results_dir: str, entrant: Entrant, reference: str | None, card: dict, common: dict) -> dict:
    """Write the record of one model beside its run, and return it.

    ``reference`` is the run that ratios are to, ``card`` the reply of ``rounds.probe`` with ``bandwidth_of_rounds``,
    ``common`` what all records of one call share.
    """
    record = make_record(entrant, reference, card) | common
    folder = runs.run_directory(results_dir, entrant.subject.run)
    runs.write_json(folder / f"throughput_{card['device']}.json", record)
    return record


def make_record(entrant: Entrant, reference: str | None, card: dict) -> dict:
    """Everything that was measured of one model."""
    subject, plan, loaded = entrant.subject, entrant.plan, entrant.loaded
    prefill, decode = {}, {}
    for length, tokens in plan.lengths.items():
        name = f"prefill {tokens}"
        prefill[length] = {
            "prompt_tokens": tokens,
            "tokens_per_s": spread(rates(entrant, name)),
            "ratio": spread(ratios(entrant, name)) if reference else None,
            "ttft_ms": spread([1e3 * sum(seconds) for seconds, _, _ in entrant.turns.get(name, [])]),
        }
    for name in plan.measures():
        if name.startswith("decode"):
            steps = [1e3 * step for seconds, _, _ in entrant.turns.get(name, []) for step in seconds]
            decode[name.split()[1]] = {
                "tokens_per_s": spread(rates(entrant, name)),
                "ratio": spread(ratios(entrant, name)) if reference else None,
                "ms_per_token_p50": float(np.percentile(steps, 50)) if steps else None,
                "ms_per_token_p95": float(np.percentile(steps, 95)) if steps else None,
            }
    bound = card["bandwidth_gb_per_s"] * 1e9 / loaded["bytes_per_token"]
    return {
        "run": subject.run,
        "base_model": subject.base_model,
        "precision": "offload" if subject.offload else subject.precision,
        "device": card["device"],
        "hardware": card["hardware"],
        "dtype": card["dtype"],
        "kernel": loaded["kernel"],
        "threads": card["hardware"]["threads"],
        "threads_wait": "as OpenMP's default",
        "versions": provenance.versions(),
        "reference": reference,
        "label": subject.label,
        "prefill": prefill,
        "decode": decode,
        "memory_gb": entrant.memory | {"loading": loaded["load_peak_gb"], "predicted": subject.predicted_gb},
        "inference_memory_gb": entrant.memory["batch 1"].get("vram_reserved", entrant.memory["batch 1"]["rss"]),
        "size_gb": subject.size_gb,
        "on_disk_gb": sum(Path(file).stat().st_size for file in subject.files) / 1e9 or None,
        "in_memory_gb": loaded["in_memory_gb"],
        "parameters": loaded["parameters"],
        "load_seconds": loaded["load_seconds"],
        "ceiling": {
            "bandwidth_gb_per_s": card["bandwidth_gb_per_s"],
            "bandwidth_of_rounds": card["bandwidth_of_rounds"],
            "bytes_per_token": loaded["bytes_per_token"],
            "bound_tokens_per_s": bound,
            "share_of_bandwidth": float(np.median(rates(entrant, "decode 1"))) / bound,
        },
        "not_measured": entrant.not_measured,
    }


def tokens_per_s(name: str, seconds: list[float]) -> float:
    """Rate of one turn: ``prefill <tokens>`` took so many seconds, ``decode <batch>`` so many for each step."""
    return int(name.split()[1]) * len(seconds) / sum(seconds)


def rates(entrant: Entrant, name: str) -> list[float]:
    """Tokens/s of each turn at a measure."""
    return [tokens_per_s(name, seconds) for seconds, _, _ in entrant.turns.get(name, [])]


def ratios(entrant: Entrant, name: str) -> list[float]:
    """Ratio of each turn to the geometric mean of the base model's turns before and after it.

    What slows a machine for longer than some turns slows all of them and cancels.
    """
    return [
        tokens_per_s(name, seconds) / (tokens_per_s(name, before) * tokens_per_s(name, after)) ** 0.5
        for seconds, before, after in entrant.turns.get(name, [])
        if before is not None and after is not None
    ]


def spread(values: list[float]) -> dict | None:
    """Median and range of the rounds, and the rounds themselves; None where there are none."""
    if not values:
        return None
    return {
        "median": float(np.median(values)),
        "low": min(values),
        "high": max(values),
        "rounds": [float(f"{value:.6g}") for value in values],
    }


def unsteady(bandwidth: dict | None) -> str | None:
    """What to say where the memory's bandwidth, a ``spread`` over the rounds, shows that the machine changed."""
    if bandwidth is None or bandwidth["high"] <= STEADY * bandwidth["low"]:
        return None
    return (
        f"the machine changed meanwhile: its memory moved {bandwidth['low']:.0f} to {bandwidth['high']:.0f} GB/s "
        "between rounds. That slows kernels differently, and ratios between them change with it"
    )


# ----------------------------------------------------------------------------------------------------------- reading


def read_throughput(path: Path) -> dict:
    """What tables and verdict need of a record; what the file does not say is None.

    Returns ``prefill_tokens_per_s`` (prompts of ``prompt_tokens``: the data set's median, else the fixed length),
    ``decode_tokens_per_s`` (batch 1), ``prefill_ratio`` and ``decode_ratio`` to the base model; ``rounds`` and
    ``ratios``, ``{measure: one value a round}``; ``inference_memory_gb``, ``size_gb``, ``share_of_bandwidth`` of
    decoding at batch 1; ``device`` ("cpu", "cuda"), ``hardware`` in words, ``kernel``, ``label`` (how a model that does
    not fit was run), ``call`` (of the benchmark), ``run``, ``reference``, ``base_model`` and ``data``. Raises UserError
    where the file is damaged.
    """
    record = runs.read_json(path)
    try:
        prefill, decode = record.get("prefill") or {}, record.get("decode") or {}
        measured = {"prefill": prefill.get("median") or prefill.get("fixed") or {}, "decode": decode.get("1") or {}}
        device = str(record.get("device") or path.stem.partition("_")[2])
        row = {
            **{name: record.get(name) for name in COPIED},
            "device": device,
            "hardware": hardware_name(record.get("hardware"), device),
            "inference_memory_gb": positive(record.get("inference_memory_gb")),
            "size_gb": positive(record.get("size_gb")),
            "prompt_tokens": measured["prefill"].get("prompt_tokens"),
            "share_of_bandwidth": positive((record.get("ceiling") or {}).get("share_of_bandwidth")),
            "rounds": {},
            "ratios": {},
        }
        for name, entry in measured.items():
            speeds, relative = entry.get("tokens_per_s") or {}, entry.get("ratio") or {}
            row[f"{name}_tokens_per_s"] = positive(speeds.get("median"))
            row[f"{name}_ratio"] = positive(relative.get("median"))
            row["rounds"][f"{name}_tokens_per_s"] = speeds.get("rounds") or []
            row["ratios"][f"{name}_tokens_per_s"] = relative.get("rounds") or []
        return row
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no record of benchmark_throughput.py ({error!r})") from None


def paired_rounds(first: dict, second: dict, measure: str) -> tuple[list[float], list[float]] | None:
    """The rounds that two models took in turns, as many of each; None where they are not of one benchmark call.

    As ratios to the base model's turns close by: between the turns of the two themselves lie those of others, and time
    in which a shared machine changes its speed. As tokens/s where the base model, the slowest, took fewer rounds than
    the two. A slow model may have taken fewer rounds than the other, the first ones.
    """
    count, of_ratios = (min(len(one[kind][measure]) for one in (first, second)) for kind in ("rounds", "ratios"))
    kind = "ratios" if of_ratios >= count else "rounds"
    rounds = [one[kind][measure][:count] for one in (first, second)]
    together = first["call"] is not None and first["call"] == second["call"]
    if count < 2 or not together or not all(map(positive, rounds[0] + rounds[1])):
        return None
    return rounds[0], rounds[1]


def hardware_name(hardware: dict | str | None, device: str = "cpu") -> str:
    """The hardware of a record in words: the GPU, or the processor and its threads."""
    if not isinstance(hardware, dict):
        return hardware or "unknown hardware"
    if device.startswith("cuda") and hardware.get("gpu"):
        return str(hardware["gpu"])
    threads = hardware.get("threads", "?")
    return f"{hardware.get('cpu', 'unknown processor')}, {threads} thread{'' if threads == 1 else 's'}"


def positive(value: object) -> float | None:
    """A number above 0 as a float, None for anything else."""
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def table(results_dir: str) -> list[dict]:
    """The rows of throughput.csv, one for every record under ``results_dir``; a damaged record is a line instead.

    A column is an entry of the record, the names on the way to it joined by ``_``: ``decode_1_tokens_per_s_median``.
    """
    import pandas as pd

    records = []
    for path in runs.records(results_dir, "throughput_*.json"):
        try:
            records.append(runs.read_json(path))
        except UserError as error:
            print(f"left out of throughput.csv: {error}")
    if not records:
        return []
    rows = pd.json_normalize(records, sep="_")
    rows.columns = rows.columns.str.replace(" ", "_")
    return rows.loc[:, ~rows.columns.str.contains("_rounds$|^versions_|^settings_")].to_dict("records")
