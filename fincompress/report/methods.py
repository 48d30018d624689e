"""What a run is, told by its settings and never by its name."""

from __future__ import annotations

from pathlib import Path

from fincompress import runs

LORA = {"train_qlora_4bit.py": ("qlora", "QLoRA", "NF4"), "train_lora_8bit.py": ("lora_8bit", "8-bit LoRA", "int8")}
# In the order of a table's rows. "longer": phase 1 trained on, no layer dropped. "pruning": layers dropped by another
# criterion or schedule than SAPLING's.
KINDS = (
    "base", "qlora", "merged", "lora_8bit", "longer", "quantized", "sapling", "sapling_quantized", "pruning",
    "pruning_quantized", "other",
)  # fmt: skip
PHASE_1 = ("qlora", "merged", "lora_8bit")


def settings_of(directory: Path, results_dir: Path) -> tuple[Path, dict] | None:
    """The folder and content of the ``settings.json`` that describes a folder: its own, else that of the run above it.

    A merged checkpoint (``<run>/merged``) may have none of its own.
    """
    above = [directory.parent] if results_dir not in (directory, directory.parent) else []
    for folder in (directory, *above):
        if (folder / "settings.json").exists():
            return folder, runs.read_json(folder / "settings.json")
    return None


def record_of(directory: Path, name: str) -> dict:
    """A JSON record in a folder; empty where there is none."""
    return runs.read_json(directory / name) if (directory / name).exists() else {}


def run_folder(run: str | None, results_dir: Path) -> Path | None:
    """The folder of a run by name, None where it is not here; ``<run>/merged`` is here as long as the run is."""
    if not run:
        return None
    folder = runs.run_directory(str(results_dir), run)
    here = folder.exists() or (folder.name == "merged" and settings_of(folder, results_dir) is not None)
    return folder if here else None


def describe(directory: Path, results_dir: Path, precision: str | None = None) -> tuple[str, str]:
    """``(kind, method in words)`` of the run in a folder, from its settings, never from its name.

    ``precision`` is that of the base it was evaluated on: an adapter on a 16-bit base is the merged model.
    """
    found = settings_of(directory, results_dir)
    if found is None:
        return "other", "unknown"
    folder, record = found
    script, settings = record.get("script"), record.get("settings", {})
    if script == "evaluate.py":
        return "base", "base model, untuned"
    if script in LORA:
        kind, name, base = LORA[script]
        whole = folder != directory or (directory / "config.json").exists()
        if whole or (precision or record.get("base_precision")) not in ("nf4", "int8"):
            return "merged", f"{name}, merged"
        return kind, f"{name} ({base} base)"
    if script == "sapling_train.py":
        return describe_pruned(settings, record_of(directory, "train_metrics.json"))
    if script == "quantize_gptq.py":
        name = f"{settings.get('METHOD', 'gptq').upper()} {settings.get('BITS', 4)}-bit"
        source = run_folder(settings.get("SOURCE_RUN"), results_dir)
        if source is None:  # which may have been anything
            return "other", f"{name} (of a run that is not here)"
        kind, method = describe(source, results_dir)
        if kind in (*PHASE_1, "longer"):
            return "quantized", f"{method.partition(' (')[0]} + {name}"
        # An untuned base model that is quantized answers no question of this project.
        return f"{kind}_quantized" if kind in ("sapling", "pruning") else "other", f"{method} + {name}"
    return "other", str(script)


def describe_pruned(settings: dict, metrics: dict) -> tuple[str, str]:
    """``describe`` of a run of sapling_train.py."""
    taught = " with a teacher" if settings.get("KL") or settings.get("HIDDEN_STATES") else ""
    taught += ", adapters on NF4" if taught and settings.get("UPDATE") == "qlora" else ""
    if metrics.get("dropped") == [] and settings.get("START_FROM"):
        return "longer", f"phase 1 trained on{taught}"
    criterion, schedule = str(settings.get("CRITERION")), settings.get("SCHEDULE")
    if criterion in ("calibration", "kl") and schedule == "successive":
        return "sapling", f"SAPLING{taught}"
    schedule = "one shot" if schedule == "one_shot" else "successive"
    return "pruning", f"pruning ({criterion.replace('_', ' ')}), {schedule}{taught}"


def depth(directory: Path, results_dir: Path) -> tuple[int | None, int | None]:
    """Sub-layers left of a pruned run, quantized since or not, and of the unpruned model; None where unknown.

    A block, and a pair such as mlp.3+attention.4, are two sub-layers.
    """
    _, record = settings_of(directory, results_dir) or (None, {})
    settings, metrics = record.get("settings", {}), record_of(directory, "train_metrics.json")
    if record.get("script") == "quantize_gptq.py":
        source = run_folder(settings.get("SOURCE_RUN"), results_dir)
        return depth(source, results_dir) if source else (None, None)
    if metrics.get("units_left") is None:
        return None, None
    left = metrics["units_left"] * (2 if settings.get("DROP_UNIT") == "block" else 1)
    dropped = metrics.get("dropped")
    gone = [2 if unit.startswith("block") or "+" in unit else 1 for unit in dropped or []]
    return left, None if dropped is None else left + sum(gone)
