"""How a model was made: its own step and those before it. Each script writes them into ``settings.json``."""

from fincompress import provenance, runs


def facts(step: str, results_dir: str, source: str | None = None) -> dict[str, object]:
    """``step`` and ``lineage`` for the ``settings.json`` of a run that was made from the finished run ``source``.

    ``step`` is what this run does, in words for a table: "QLoRA fine-tuned", "SAPLING, 20 of 30 layers", "GPTQ 4-bit".
    ``lineage`` holds the steps before it, oldest first, each with its run, a fingerprint of that run, and the tokens
    and seconds of its training. It is copied, not looked up later: a folder may be renamed, or trained again.
    Raises UserError where ``source`` has no readable record.
    """
    return {"step": step, "lineage": [] if source is None else steps(results_dir, source)}


def steps(results_dir: str, run: str) -> list[dict[str, object]]:
    """The steps that made a finished run, oldest first, its own last. ``<run>/merged`` is made by its run's step."""
    folder = runs.run_directory(results_dir, run)
    if folder.name == "merged" and not (folder / "settings.json").exists():
        folder = folder.parent
    record = runs.read_json(folder / "settings.json")
    names = ("train_metrics.json", "quantize_metrics.json")
    metrics = next((runs.read_json(folder / name) for name in names if (folder / name).exists()), {})
    seconds = sum(metrics.get(f"{name}_seconds") or 0 for name in ("training", "scanning", "quantization"))
    own = {
        "run": run,
        "step": record.get("step"),
        "fingerprint": provenance.fingerprint(record["settings"], metrics),
        "tokens": metrics.get("tokens_seen", 0),
        "seconds": round(seconds, 1),
    }
    return [*record.get("lineage", []), own]
