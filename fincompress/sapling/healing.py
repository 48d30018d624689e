"""Healing: a depth that is reported is trained to the end, and the run goes on from it, or from the state of before."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback

from fincompress import distributed
from fincompress.sapling.checkpoints import COSTS, write_depth
from fincompress.sapling.recovery import train_stage
from fincompress.training.loss import calibration_means

if TYPE_CHECKING:
    from fincompress.sapling.run import Run


def heal(run: Run, last: bool = False) -> None:
    """Train a depth to the end and save it, where HEAL_AT names it or it is the ``last``.

    The learning rate falls to 0. With KEEP_HEALED the run goes on from there, with a new optimizer; else it returns to
    the state of before, but after the ``last``, which nothing follows.
    """
    s, state, student, depths = run.settings, run.state, run.student, run.depths_reached()
    if run.is_healed() or not (depths or last):
        return
    count = round(s["HEALING_EPOCHS"] * len(run.train_set))
    row = {"units_left": student.left, "share_of_bytes": round(student.share, 5), "heal_at": depths}
    row |= {"kept": s["KEEP_HEALED"] and not last, "examples_seen": 0, "tokens_seen": 0, "training_seconds": 0.0}
    folder = f"healing-{student.left}"
    if count:
        run.make_trainable(healing=True)
    if count and student.trained_parameters():
        steps = math.ceil(len(run.train_set) / s["BATCH_SIZE"] / s["GRADIENT_ACCUMULATION"])
        passes = ScorePasses(run.calibration_scores, steps)
        name = f"healing {student.left} of {student.full} units, {student.share:.0%} of bytes"
        trainer, row["training_seconds"] = train_stage(run, count, name, folder, "cosine", [passes], run.moments)
        row |= {"examples_seen": count, "tokens_seen": int(trainer.state.num_input_tokens_seen)}
        row |= {"steps": trainer.state.global_step}
        row["calibration"] = [scores for scores in trainer.state.log_history if "calibration_nll" in scores]
        scores = row["calibration"][-1]
        run.moments = {}
    else:
        with student.scoring_model() as model:
            scores = calibration_means(*run.calibration_scores(model))
    row |= {key: scores[key] for key in ("calibration_nll", "calibration_exact")}
    if row["kept"]:
        # A killed run needs them, whether or not they are trained between drops.
        state.patched = sorted({*state.patched, *student.trained_parameters()})
        for name in COSTS:
            setattr(state, name, getattr(state, name) + row[name])
    write_depth(run, row)
    state.healed.append(row)
    if row["kept"]:
        run.make_trainable()  # a killed run reads all that is trained between drops
    run.save_state(trained=True, weights=row["kept"])
    if distributed.is_main():
        shutil.rmtree(run.directory / folder, ignore_errors=True)
    print(
        f"healed {student.left} of {student.full} units, {student.share:.1%} of the bytes, in "
        f"{row['training_seconds'] / 60:.1f} min: calibration exact match {row['calibration_exact']:.1%}, NLL "
        f"{row['calibration_nll']:.3f}"
    )
    if count and not last and not row["kept"]:
        trainer = None  # which holds the model that was healed
        run.return_to_state()


class ScorePasses(TrainerCallback):
    """Scores the calibration split after each pass of ``every`` so many steps, and at the end.

    ``scores`` gives ``(nll, exact)`` of each question. The means stand in ``log_history``, as ``calibration_nll`` and
    ``calibration_exact``. They choose nothing: the NLL rises where a model learns from gold programs alone, and answers
    more, so what is kept by it would leave such a control untrained.
    """

    def __init__(self, scores: Callable[[torch.nn.Module], tuple[torch.Tensor, torch.Tensor]], every: int):
        self.scores, self.every = scores, every

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            state.log_history.append({"step": state.global_step, **calibration_means(*self.scores(model))})
