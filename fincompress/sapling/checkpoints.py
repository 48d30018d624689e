"""What a run leaves: a standard checkpoint for each depth, and the tables and figures of the whole run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fincompress import distributed, memory, models, runs
from fincompress.depth import repack
from fincompress.report import charts
from fincompress.sapling.losses import matched_blocks
from fincompress.sapling.teacher import needs_teacher
from fincompress.training.loss import autocast

if TYPE_CHECKING:
    from fincompress.sapling.run import Run

COSTS = ("examples_seen", "tokens_seen", "training_seconds")  # of training, in a run's state and in each healing


def save_on_the_way(run: Run) -> None:
    """Save a depth that is not healed, every SAVE_EVERY cycles."""
    s, state = run.settings, run.state
    untouched = not state.trajectory and not state.examples_seen  # what it started from, once more
    if untouched or run.is_healed() or run.depths_reached():
        return
    cycles = len({row["scan"] for row in state.trajectory})
    if s["SAVE_EVERY"] and cycles % s["SAVE_EVERY"] == 0:
        write_depth(run)


@torch.no_grad()
def write_depth(run: Run, healed: dict | None = None) -> None:
    """Write the model as it is as ``<units left>/``, a standard checkpoint in 16 bits that is checked first.

    ``healed`` is the record of a depth that was trained to the end.
    """
    s, state, student = run.settings, run.state, run.student
    if not distributed.is_main():
        return
    repacked = repack.repacked_model(student.model)
    with autocast(student.device, student.dtype):
        repack.check_equal(student.model, repacked, run.questions(2)[0])
    shares = student.shares()
    facts = {
        "units_left": student.left,
        **shares,
        **training_so_far(run, [healed] if healed else []),  # not what other depths were healed by
        "final": bool(state.stopped) or student.share <= s["TARGET_SIZE"],
        "healed": healed is not None and healed["examples_seen"] > 0,
        **{key: value for key, value in (healed or {}).items() if key.startswith("calibration_")},
        "dropped": [row["dropped"] for row in state.trajectory],
        "blocks": [student.blocks[number] for number in matched_blocks(student.model)],
    }
    with runs.atomic_path(run.directory / str(student.left)) as partial:
        models.write_checkpoint(partial, repacked, run.tokenizer, models.checkpoint_dtype(student.dtype))
        models.write_model_card(
            partial, s["BASE_MODEL"],
            f"Fine-tuned for FinQA programs, shrunk to {repacked.config.num_hidden_layers} blocks. Run `{s['RUN']}`.",
            **shares,
        )  # fmt: skip
        record = runs.read_json(run.directory / "settings.json")
        runs.write_json(partial / "settings.json", record | {"base_precision": "auto", "step": step(run)})
        runs.write_json(partial / "train_metrics.json", facts)


def step(run: Run) -> str:
    """What a table calls what this run has done to the model so far."""
    s, student = run.settings, run.student
    units = "layers" if s["DROP_UNIT"] == "block" else "sub-layers"
    words = ["recovery training" if not run.state.trajectory else f"SAPLING, {student.left} of {student.full} {units}"]
    if run.state.trajectory and s["CRITERION"] not in ("calibration", "kl"):
        words.append(s["CRITERION"].replace("_", " "))
    words += ["no teacher"] * (not needs_teacher(s)) + ["adapters"] * (s["UPDATE"] == "qlora")
    return ", ".join(words)


def training_so_far(run: Run, healed: list[dict]) -> dict[str, float]:
    """Examples, tokens and seconds of the run's own training and scans, and of the healing of these depths; what the
    run has gone on from is its own.
    """
    not_kept = [row for row in healed if not row.get("kept")]
    costs = {name: round(getattr(run.state, name) + sum(row[name] for row in not_kept), 1) for name in COSTS}
    return costs | {"scanning_seconds": round(run.state.scanning_seconds, 1)}


def finish(run: Run) -> None:
    """Write the tables and figures of the run; the state is no longer needed. Of several processes rank 0 does."""
    if not distributed.continue_alone():
        return
    directory, state, student = run.directory, run.state, run.student
    last = next(row for row in reversed(state.healed) if row["units_left"] == student.left)
    runs.write_csv(directory / "trajectory.csv", state.trajectory)
    runs.write_csv(directory / "layer_scores.csv", state.layer_scores)
    runs.write_csv(directory / "loss_curve.csv", state.loss_curve)
    charts.loss_curve(directory / "loss_curve.png", state.loss_curve, [])
    charts.layer_importance(directory / "layer_importance.png", state.layer_scores)
    metrics = {
        "stopped": state.stopped,
        "data": run.facts["data"],
        "units_left": student.left,
        **student.shares(),
        "last_above_floor": (state.last_above_floor or {}).get("units"),
        "reference": state.reference,
        "calibration_exact": last["calibration_exact"],
        "calibration_nll": last["calibration_nll"],
        "trainable": state.trainable,
        "healed": state.healed,
        **training_so_far(run, state.healed),
        "peak_memory_gb": memory.peak_memory_gb(),
        "predicted_memory_gb": round(run.predicted_gb, 3),
    }
    runs.write_json(directory / "train_metrics.json", metrics)
    remove_what_a_kill_left(directory)
    print(
        f"stopped: {state.stopped}; trained {metrics['training_seconds'] / 60:.1f} min, scanned "
        f"{state.scanning_seconds / 60:.1f} min; calibration exact match {metrics['calibration_exact']:.1%}, "
        f"NLL {metrics['calibration_nll']:.3f}; wrote {directory}/{student.left}/ and other depths, tables and figures"
    )


def remove_what_a_kill_left(directory: Path) -> None:
    """Remove from the folder of a finished run what it would have resumed from."""
    if distributed.is_main():
        for pattern in ("state*", "teaching*", "trainer-*", "healing-*"):
            for path in directory.glob(pattern):
                runs.remove(path)
