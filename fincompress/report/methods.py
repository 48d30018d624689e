"""What a run is and what it took, told by the settings of all that it came from and never by its name."""

import itertools
from pathlib import Path

from fincompress import runs

LORA = {"train_qlora_4bit.py": ("qlora", "QLoRA", "NF4"), "train_lora_8bit.py": ("lora_8bit", "8-bit LoRA", "int8")}
# In the order of a table's rows. "longer": phase 1 trained longer, nothing dropped. "pruning": layers dropped by
# another criterion or schedule than SAPLING's.
KINDS = (
    "base", "qlora", "merged", "lora_8bit", "longer", "quantized", "sapling", "sapling_quantized", "pruning",
    "pruning_quantized", "other",
)  # fmt: skip
PHASE_1 = ("merged", "qlora", "lora_8bit")  # what accuracy is lost from, best first
DEPTH = ("TARGET_SIZE", "HEAL_AT", "HEALING_EPOCHS")  # constants in which depths of one way to drop layers differ
NAMES = ("SEED", "START_FROM", "SOURCE_RUN", *runs.LOCATIONS, *runs.RECORD_KEEPING)  # seeds of a recipe differ in these


def record_of(directory: Path, name: str) -> dict:
    """A JSON record in a folder; empty where there is none."""
    return runs.read_json(directory / name) if (directory / name).exists() else {}


def lineage(folder: Path, results_dir: Path) -> list[dict]:
    """Records of the model in a folder and of each run that it came from, the first run last.

    A record is ``settings.json`` with ``folder``, ``metrics`` (of training or quantization; those of ``<run>/merged``
    are its run's) and ``source``, the run before it or None. The list stops short where that run is not here: where
    a folder names itself, another run was moved to its place.
    """
    chain: list[dict] = []
    while folder not in [record["folder"] for record in chain]:
        places = [folder.parent, folder] if folder.name == "merged" else [folder]
        record, metrics = runs.Record({}, folder / "settings.json"), {}
        for place in places:
            record |= record_of(place, "settings.json")
            metrics |= record_of(place, "train_metrics.json") | record_of(place, "quantize_metrics.json")
        if not record:
            return chain
        source = record["settings"].get("START_FROM") or record["settings"].get("SOURCE_RUN")
        chain.append(record | {"folder": folder, "metrics": metrics, "source": source})
        if not source:
            return chain
        folder = runs.run_directory(str(results_dir), source)
    return chain


def describe(chain: list[dict], precision: str | None = None) -> tuple[str, str]:
    """``(kind, method in words)`` of the run whose ``lineage`` this is.

    ``precision`` is that of the base it was evaluated on: an adapter on a 16-bit base is the merged model.
    """
    record, settings = chain[0], chain[0]["settings"]
    script = record["script"]
    if script == "evaluate.py":
        return "base", "base model, untuned"
    if script in LORA:
        kind, name, base = LORA[script]
        if record["folder"].name == "merged" or (precision or record.get("base_precision")) not in ("nf4", "int8"):
            return "merged", f"{name}, merged"
        return kind, f"{name} ({base} base)"
    if script == "quantize_gptq.py":
        name = f"{settings.get('METHOD', 'gptq').upper()} {settings.get('BITS', 4)}-bit"
        if not chain[1:]:  # it may have been anything
            return "other", f"{name} (of a run that is not here)"
        kind, method = describe(chain[1:])
        if settings.get("BLOCKS"):  # a rehearsal
            return "other", f"{method} + {name}, {settings['BLOCKS']} blocks of it"
        if settings.get("BITS", 4) >= 16:  # the same weights, run by llama.cpp
            return "other", f"{method} + {name}"
        if kind in (*PHASE_1, "longer"):
            return "quantized", f"{method.partition(' (')[0]} + {name}"
        # An untuned base model that is quantized answers no question of this project.
        return f"{kind}_quantized" if kind in ("sapling", "pruning") else "other", f"{method} + {name}"
    if script != "sapling_train.py":
        return "other", str(script)
    parts = list(itertools.takewhile(lambda part: part["script"] == script, chain))  # dropped or healed in several runs
    all_settings = [part["settings"] for part in parts]
    dropping = [part["settings"] for part in parts if part["metrics"].get("dropped") != [] or not part["source"]]
    how = " of a longer phase 1" if dropping and dropping[-1] is not all_settings[-1] else ""
    how += " with a teacher" if any(s.get("KL") or s.get("HIDDEN_STATES") for s in all_settings) else ""
    how += ", adapters on NF4" if any(s.get("UPDATE") == "qlora" for s in all_settings) else ""
    if not dropping:
        if not chain[len(parts) :]:  # it may have been pruned
            return "other", "healed further (of a run that is not here)"
        return "longer", f"phase 1, trained longer{how}"
    rival = next((s for s in dropping if not is_saplings(s)), None)
    if rival is None:
        return "sapling", f"SAPLING{how}"
    schedule = "one shot" if rival.get("SCHEDULE") == "one_shot" else "successive"
    return "pruning", f"pruning ({str(rival.get('CRITERION')).replace('_', ' ')}), {schedule}{how}"


def is_saplings(settings: dict) -> bool:
    """Whether layers were dropped as SAPLING drops them: by what the model answers, a few at a time."""
    return settings.get("CRITERION") in ("calibration", "kl") and settings.get("SCHEDULE") == "successive"


def depth(chain: list[dict]) -> tuple[int | None, int | None]:
    """Sub-layers left of a pruned run, quantized since or not, and of the unpruned model; None where unknown.

    A block, and a pair such as mlp.3+attention.4, are two sub-layers.
    """
    pruned = [record for record in chain if record["metrics"].get("units_left") is not None]
    if not pruned:
        return None, None
    left = pruned[0]["metrics"]["units_left"] * (2 if pruned[0]["settings"].get("DROP_UNIT") == "block" else 1)
    dropped = [record["metrics"].get("dropped") for record in pruned]
    if None in dropped:
        return left, None
    return left, left + sum(2 if unit.startswith("block") or "+" in unit else 1 for gone in dropped for unit in gone)


def family(chain: list[dict], root: Path) -> str | None:
    """The run that first dropped layers of a pruned model, to which what was dropped or healed further belongs too."""
    folders = [record["folder"] for record in chain if record["metrics"].get("dropped")]
    return str(folders[-1].parent.relative_to(root)) if folders else None


def recipe(chain: list[dict]) -> list[dict]:
    """Script, constants and data of a model and of each run that it came from, without the seed and the names of runs.

    Where nothing was dropped, what would have been at a time decides nothing.
    """
    sources = [record["source"] for record in chain]
    parts = []
    for record in chain:
        idle = "DROP" if record["metrics"].get("dropped") == [] else ()
        kept = (name for name in record["settings"] if name not in NAMES and not name.startswith(idle))
        part = {name: record["settings"][name] for name in kept}
        teacher = part.get("TEACHER") or record["source"]
        part["TEACHER"] = sources.index(teacher) if teacher in sources else teacher
        data = {"data": (record.get("data") or {}).get("fingerprint"), "prepared": record.get("prepared")}
        known = {name: value for name, value in data.items() if value is not None}  # older runs do not say
        parts.append(part | known | {"script": record["script"]})
    return parts


def way(chain: list[dict]) -> list[dict]:
    """The ``recipe`` up to the first dropped layers, whatever the depth: one for all that is made of those depths."""
    begins = [place for place, record in enumerate(chain) if record["metrics"].get("dropped")]
    quantized = recipe(chain)[: chain[0]["script"] == "quantize_gptq.py"]
    parts = recipe(chain[begins[-1] if begins else 0 :])
    return quantized + [{name: part[name] for name in part.keys() - DEPTH} for part in parts]


def alike(first: list[dict], second: list[dict]) -> bool:
    """Whether two ``recipe``s are the same. A constant that one of them lacks, of another commit, decides nothing."""
    return len(first) == len(second) and all(
        ours[name] == theirs[name] for ours, theirs in zip(first, second, strict=True) for name in ours.keys() & theirs
    )


def training_cost(chain: list[dict]) -> tuple[float | None, int | None]:
    """``(seconds, tokens)`` of training, scans and quantization of a run and of all that it came from.

    None where a record or a run is missing.
    """
    seconds, tokens = [], []
    for record in chain:
        spent = [record["metrics"].get(f"{name}_seconds") for name in ("training", "scanning", "quantization")]
        spent = [value for value in spent if value is not None]
        untuned = record["script"] == "evaluate.py"
        seconds.append(sum(spent) if spent or untuned else None)
        if record["script"] != "quantize_gptq.py":
            tokens.append(0 if untuned else record["metrics"].get("tokens_seen"))
    if chain[-1]["source"] or None in seconds:
        return None, None
    return round(sum(seconds), 1), None if None in tokens else sum(tokens)
