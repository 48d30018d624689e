"""What a training may start from: finished runs of the same base and data, and their adapters."""

from pathlib import Path

from fincompress import models, provenance, runs
from fincompress.errors import UserError


def check_origin(name: str, s: dict, record: dict) -> str:
    """Fingerprint of the finished run that the constant ``name`` names.

    Raises UserError where it is a run of another base model or of other data, or may have seen the calibration split.
    """
    run = s[name]
    start = runs.finished_run(s["RESULTS_DIR"], run)
    started = runs.read_json(start / "settings.json")
    if started["base_model"] != s["BASE_MODEL"]:
        raise UserError(f"{name} = {run!r} is a run of another base model than {s['BASE_MODEL']}")
    if started["data"] != record["data"]:
        raise UserError(
            f"{name} = {run!r} was trained on other data than {s['DATA_RUN']!r} holds: it may have seen this "
            "calibration split"
        )
    reports = [
        runs.read_json(runs.run_directory(s["RESULTS_DIR"], data_run) / "data_report.json")["calibration_ids"]
        for data_run in {started["settings"]["DATA_RUN"], s["DATA_RUN"]}
    ]
    own = runs.read_json(runs.run_directory(s["RESULTS_DIR"], started["settings"]["DATA_RUN"]) / "settings.json")
    redone = started["data_hash"] != own["data_hash"]  # under the same name
    if redone or any(ids != reports[0] for ids in reports):
        raise UserError(
            f"{name} = {run!r} was trained with another calibration split than {s['DATA_RUN']!r} holds: it may have "
            "seen some of these questions"
        )
    # A run that was trained again is another one: a killed run must not mix its own weights with the new ones.
    return provenance.fingerprint(started["settings"], runs.read_json(start / "train_metrics.json"))


def check_adapter(run: str, directory: Path, s: dict) -> None:
    """Raise UserError where the adapter of ``run`` has another rank than the constant says."""
    from peft import LoraConfig

    with models.explain_loading(str(directory / "adapter")):
        config = LoraConfig.from_pretrained(directory / "adapter")
    if config.r != s["LORA_RANK"]:
        raise UserError(f"{run!r} was trained with LORA_RANK = {config.r}: set it so, not to {s['LORA_RANK']}")
