"""Evaluated runs as rows of one table: what each model is, how many questions it answers, what it costs to run."""

import re
import sys
from pathlib import Path

import pandas as pd

from fincompress import lineage, runs
from fincompress.benchmark.record import read_throughput
from fincompress.errors import UserError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"  # of the part of a README that is generated
SECTION = ["base_model", "data", "data_fingerprint", "split", "questions", "device"]  # what rows of a table share
SPEED = ["prefill_tokens_per_s", "decode_tokens_per_s", "inference_memory_gb"]
COLUMNS = [
    *SECTION, "hardware", "run", "method", "series", "layers", "execution_accuracy", "execution_accuracy_low",
    "execution_accuracy_high", "program_accuracy", "invalid", "size_gb", "share_of_bytes", *SPEED, "kernel",
    "measured_on", "training_tokens", "training_seconds",
]  # fmt: skip
FINE_TUNED, QUANTIZED, PRUNED, BOTH, UNTUNED = "fine-tuned", "+ GPTQ", "SAPLING", "SAPLING + GPTQ", "untuned"
HALF = re.compile(r"(\d+) of (\d+) layers")


def read(results_dir: str, splits: list[str]) -> pd.DataFrame:
    """A row of COLUMNS for each run under ``results_dir``, split and device it was measured on; sizes in GB.

    Runs without a measured speed are in the table of each device, without it. A damaged record is left out, and so
    says stderr. Raises UserError where nothing is evaluated.
    """
    rows = []
    for path in runs.records(results_dir, "eval_*.json"):
        if path.stem.partition("_")[2] not in splits:
            continue
        try:
            rows += read_run(Path(results_dir), path)
        except (UserError, KeyError, TypeError, AttributeError) as error:
            print(f"left out: {path} or a record beside it is damaged ({error})", file=sys.stderr)
    if not rows:
        raise UserError(f"no run in {results_dir}/ is evaluated on {' or '.join(splits)}: run evaluate.py first")
    table = pd.DataFrame(rows)
    # A run that was measured on no device belongs to the table of each.
    measured = sorted(table["device"].dropna().unique()) or [None]
    unmeasured = table[table["device"].isna()]
    spread = [unmeasured.assign(device=device) for device in measured]
    table = pd.concat([table[table["device"].notna()], *spread], ignore_index=True).reindex(columns=COLUMNS)
    return table.sort_values([*SECTION, "size_gb", "run"], ascending=[True] * len(SECTION) + [False, True])


def read_run(root: Path, path: Path) -> list[dict]:
    """The rows of one ``eval_<split>.json``: one for each device on which the run's speed was measured, else one."""
    folder, evaluation = path.parent, runs.read_json(path)
    run = folder.relative_to(root).as_posix()
    made_by = lineage.steps(str(root), run)
    scores, programs = evaluation["execution_accuracy"], evaluation["program_accuracy"] or {}
    if scores is None:  # a split without answers
        return []
    names = [entry["step"] or "a run of another version" for entry in made_by]
    row = {
        "run": run,
        "base_model": evaluation["base_model"],
        "data": evaluation["data"]["source"],
        "data_fingerprint": evaluation["data"]["fingerprint"],
        "split": evaluation["split"],
        "questions": evaluation["questions"],
        "method": method(names, evaluation["base_precision"]),
        "series": series(names),
        "layers": layers(names),
        "execution_accuracy": scores["accuracy"],
        "execution_accuracy_low": scores["interval"][0],
        "execution_accuracy_high": scores["interval"][1],
        "program_accuracy": programs.get("accuracy"),
        "invalid": evaluation["invalid"]["accuracy"],
        "size_gb": evaluation["size_gb"],
        "share_of_bytes": evaluation["share_of_base"],
        "training_tokens": sum(entry["tokens"] for entry in made_by),
        "training_seconds": sum(entry["seconds"] for entry in made_by),
    }
    speeds = []
    for file in sorted(folder.glob("throughput_*.json")):
        speed = read_throughput(file)
        names = ("device", "hardware", "kernel", *SPEED)
        measured_on = runs.read_json(file).get("measured_on", run)
        speeds.append({name: speed[name] for name in names} | {"measured_on": measured_on})
    return [row | speed for speed in speeds] or [row | {"device": None}]


def method(steps: list[str], precision: str) -> str:
    """What a table calls a model: its steps, of several depths the last, and of an adapter the base it runs on."""
    kept = [step for step in steps if not step.endswith(", first pass")]
    pruned = [step for step in kept if step.startswith("SAPLING")]
    kept = [step for step in kept if step not in pruned[:-1]]
    base = {"nf4": " (adapter on its 4-bit base)", "int8": " (adapter on its 8-bit base)"}.get(precision, "")
    return " + ".join(kept) + base


def series(steps: list[str]) -> str:
    """Which of the four kinds of models a chart and a table tell apart; 4-bit formats of every tool are one kind."""
    pruned = any(step.startswith("SAPLING") for step in steps)
    quantized = any("-bit" in step and "fine-tuned" not in step or "llama.cpp" in step for step in steps)
    if steps[-1] == "untuned":
        return UNTUNED
    return {(0, 0): FINE_TUNED, (0, 1): QUANTIZED, (1, 0): PRUNED, (1, 1): BOTH}[pruned, quantized]


def layers(steps: list[str]) -> str | None:
    """``"20 of 30"`` of a pruned model, None of another."""
    found = [match[1] for step in steps if (match := re.search(r"(\d+ of \d+) (?:sub-)?layers", step))]
    return found[-1] if found else None


def select(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """The rows whose run has a name like ``pattern``, with a column ``seed``: what its ``*`` stands for.

    ``*`` is a part of a name without ``/`` and ``_``. Raises UserError where no run has such a name.
    """
    expression = re.escape(pattern).replace(r"\*", "([^/_]+)")
    matches = table["run"].str.fullmatch(expression)
    if not matches.any():
        raise UserError(f"no evaluated run is named {pattern!r}; there are {', '.join(sorted(set(table['run'])))}")
    found = table[matches]
    seeds = found["run"].map(lambda run: re.fullmatch(expression, run).groups())
    return found.assign(seed=seeds.map("/".join))


def averaged(table: pd.DataFrame, patterns: list[str]) -> pd.DataFrame:
    """One row for each pattern: means over the runs that it names; speeds over those whose speed was measured."""
    rows = []
    for pattern in patterns:
        found = select(table, pattern)
        numbers = found.select_dtypes("number").mean()
        first = found.sort_values("measured_on").iloc[0]  # one whose speed was measured, where there is one
        seeds = sorted(found["seed"])
        rows.append(first.to_dict() | numbers.to_dict() | {"run": pattern, "seed": seeds, "runs": list(found["run"])})
    return pd.DataFrame(rows)


def short_names(rows: pd.DataFrame) -> list[str]:
    """Row names of a table whose models all come from the same fine-tuned one: "QLoRA fine-tuned, 16-bit", then what
    was done to it. Recovery training is left out: every row had it.
    """
    names = []
    for name in rows["method"]:
        first, *later = [step for step in name.split(" + ") if step != "recovery training"]
        half = HALF.search(name)
        if half and 2 * int(half[1]) == int(half[2]) and len(later) == 1:
            later = [f"{later[0]} (50 % drop)"]
        names.append("+ " + " + ".join(later) if later else f"{first}, 16-bit")
    most = rows["seed"].map(len).max()
    return [
        f"{name} (one seed)" if len(seeds) == 1 < most else name
        for name, seeds in zip(names, rows["seed"], strict=True)
    ]


def labels(rows: pd.DataFrame) -> list[str]:
    """What a chart writes beside each point: the layers of a pruned model, of another its series."""
    return [layers if isinstance(layers, str) else name for layers, name in zip(
        rows["layers"] + " layers", rows["series"], strict=True)]  # fmt: skip


def markdown(rows: pd.DataFrame, names: list[str]) -> str:
    """The table of the README: percent, MB or GB, tokens/s of one answer at a time; "-": not measured."""
    unit, factor, form = ("GB", 1, ".1f") if rows["size_gb"].max() >= 1 else ("MB", 1000, ".0f")
    cells = {
        "Method": names,
        "Accuracy (%)": [f"{100 * value:.1f}" for value in rows["execution_accuracy"]],
        f"Size ({unit})": [f"{factor * value:{form}}" for value in rows["size_gb"]],
        "Throughput (tokens/s)": [shown(value, ".1f") for value in rows["decode_tokens_per_s"]],
        "Memory (GB)": [shown(value, ".2f") for value in rows["inference_memory_gb"]],
    }
    lines = [list(cells), ["---"] + ["---:"] * (len(cells) - 1), *zip(*cells.values(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: float, form: str) -> str:
    return "-" if pd.isna(value) else f"{value:{form}}"


def title(section: tuple) -> str:
    """What the rows of a section share, for a heading."""
    base_model, data, _, split, questions, device = section
    return f"{base_model} on {data}, {questions} {split} questions, speed on {device or 'no device yet'}"


def replace_between_markers(text: str, content: str, name: str) -> str:
    """``text`` with what stands between BEGIN and END replaced; raises UserError unless both are there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{name} needs the lines {BEGIN} and {END}, once each and in this order, around its results")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{content.strip()}\n{END}{rest.partition(END)[2]}"
