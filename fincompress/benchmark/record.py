"""throughput_<device>.json: how a record is written, and the one place that reads it."""

from pathlib import Path

import numpy as np

from fincompress import provenance, runs

MAX_LOAD = 0.1  # share of the cores that other jobs may take; above it a record's speeds decide nothing


def write(results_dir: str, entrant, card: dict, common: dict) -> Path:
    """Write the record of one model beside its run, and return its path.

    ``entrant`` is a ``rounds.Entrant``, ``card`` the reply of ``rounds.probe``, ``common`` what all records of a call
    share.
    """
    subject, plan, loaded = entrant.subject, entrant.plan, entrant.loaded
    record = {
        "run": subject.run,
        "base_model": subject.base_model,
        "precision": subject.precision,
        **{name: card[name] for name in ("device", "hardware", "dtype")},
        "kernel": loaded["kernel"],
        "versions": provenance.versions(),
        "prefill": {
            length: {"prompt_tokens": tokens} | speeds(entrant, f"prefill {tokens}")
            for length, tokens in plan.lengths.items()
        },
        "decode": {name.split()[1]: speeds(entrant, name) for name in plan.measures() if name.startswith("decode")},
        "memory_gb": {"batch 1": loaded["memory_gb"], "predicted": subject.predicted_gb},
        "inference_memory_gb": loaded["memory_gb"].get("vram_reserved", loaded["memory_gb"]["rss"]),
        "size_gb": subject.size_gb,
        "load_seconds": loaded["load_seconds"],
        "not_measured": entrant.not_measured,
    }
    bound = card["bandwidth_gb_per_s"] * 1e9 / loaded["bytes_per_token"]
    record["ceiling"] = {
        "bandwidth_gb_per_s": card["bandwidth_gb_per_s"],
        "bytes_per_token": loaded["bytes_per_token"],
        "share_of_bandwidth": record["decode"]["1"]["tokens_per_s"]["median"] / bound,
    }
    path = runs.run_directory(results_dir, subject.run) / f"throughput_{card['device']}.json"
    runs.write_json(path, record | common)
    return path


def speeds(entrant, name: str) -> dict:
    """Tokens/s of a measure, all sequences counted, and its ratio to the base model."""
    size = int(name.split()[1])  # tokens of a prefill, sequences of a decoding step
    rates = [size * len(seconds) / sum(seconds) for seconds in entrant.turns.get(name, [])]
    return {"tokens_per_s": spread(rates), "ratio": spread(entrant.ratios.get(name, []))}


def spread(values: list[float]) -> dict | None:
    """Median and range of the rounds, and the rounds themselves; None where there are none."""
    if not values:
        return None
    rounds = [float(f"{value:.6g}") for value in values]
    return {"median": float(np.median(values)), "low": min(values), "high": max(values), "rounds": rounds}


def read_throughput(path: Path) -> dict:
    """What tables and verdict need of a record; speeds that were not measured, or beside other jobs, are None.

    Returns ``prefill_tokens_per_s`` (prompts of ``prompt_tokens``: the data set's median, else the fixed length),
    ``decode_tokens_per_s`` (batch 1), ``prefill_ratio`` and ``decode_ratio`` to the base model; ``rounds`` and
    ``ratios``, ``{measure: one value a round}``; ``inference_memory_gb``, ``size_gb``, ``share_of_bandwidth`` of
    decoding at batch 1; ``device`` ("cpu", "cuda"), ``hardware`` in words, ``kernel``, ``call`` (of the benchmark),
    ``base_model`` and ``data_run``. Raises UserError where the file is damaged.
    """
    record = runs.read_json(path)
    copied = ("base_model", "device", "kernel", "call", "data_run", "inference_memory_gb", "size_gb")
    row = {name: record[name] for name in copied}
    prefill, hardware = record["prefill"].get("median") or record["prefill"]["fixed"], record["hardware"]
    processor = "{cpu}, {threads} thread".format_map(hardware) + "s" * (hardware["threads"] != 1)
    row |= {
        "hardware": hardware.get("gpu", processor), "rounds": {}, "ratios": {},
        "prompt_tokens": prefill["prompt_tokens"], "share_of_bandwidth": record["ceiling"]["share_of_bandwidth"],
    }  # fmt: skip
    idle = record.get("load", 0) <= MAX_LOAD  # older records do not say
    for name, entry in (("prefill", prefill), ("decode", record["decode"]["1"])):
        rates, ratios = ((idle and entry[kind]) or {} for kind in ("tokens_per_s", "ratio"))
        row[f"{name}_tokens_per_s"], row[f"{name}_ratio"] = rates.get("median"), ratios.get("median")
        row["rounds"][f"{name}_tokens_per_s"] = rates.get("rounds", [])
        row["ratios"][f"{name}_tokens_per_s"] = ratios.get("rounds", [])
    return row


def paired_rounds(first: dict, second: dict, measure: str) -> tuple[list[float], list[float]] | None:
    """The rounds that two models took in turns, as many of each; None where they are not of one benchmark call.

    As ratios to the base model's turns close by: between the turns of the two themselves lie those of others, and time
    in which a shared machine changes its speed. As tokens/s where the base model took fewer rounds or none.
    """
    count, of_ratios = (min(len(row[kind][measure]) for row in (first, second)) for kind in ("rounds", "ratios"))
    kind = "ratios" if of_ratios >= count else "rounds"
    if count < 2 or first["call"] != second["call"]:
        return None
    return first[kind][measure][:count], second[kind][measure][:count]


def table(results_dir: str) -> list[dict]:
    """The rows of throughput.csv, one for every record under ``results_dir``.

    A column is an entry of the record, the names on the way to it joined by ``_``: ``decode_1_tokens_per_s_median``.
    """
    import pandas as pd

    rows = pd.json_normalize(runs.readable(results_dir, "throughput_*.json"), sep="_")
    rows.columns = rows.columns.str.replace(" ", "_")
    return rows.loc[:, ~rows.columns.str.contains("_rounds$|^versions_|^settings_")].to_dict("records")
