"""Healing: a depth that is reported is trained to the end, and the run goes on from it, or from the state of before."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from fincompress import distributed, runs
from fincompress.sapling.checkpoints import COSTS, write_depth
from fincompress.sapling.recovery import train_stage
from fincompress.training.loss import calibration_means

if TYPE_CHECKING:
    from fincompress.sapling.run import Run

PATIENCE = 2  # scores without a better calibration NLL after which healing stops


def heal(run: Run, last: bool = False) -> None:
    """Train a depth to the end and save it, where HEAL_AT names it or it is the ``last``.

    The learning rate falls to 0; the best weights by the calibration split's NLL are kept. With KEEP_HEALED the run
    goes on from them, with a new optimizer; else it returns to the state of before, but after the ``last``, which
    nothing follows.
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
        keep_best = KeepBest(student.model, run.calibration_scores, steps)
        name = f"healing {student.left} of {student.full} units, {student.share:.0%} of bytes"
        trainer, row["training_seconds"] = train_stage(run, count, name, folder, "cosine", [keep_best], run.moments)
        best = keep_best.restore_best(trainer.args, trainer.state.log_history)
        seen = trainer.state.global_step * s["BATCH_SIZE"] * s["GRADIENT_ACCUMULATION"]
        row |= {"examples_seen": min(count, seen), "tokens_seen": int(trainer.state.num_input_tokens_seen)}
        row |= {"steps": trainer.state.global_step, "best_step": best["step"]}
        run.moments = {}
    else:
        with student.scoring_model() as model:
            best = calibration_means(*run.calibration_scores(model))
    row |= {key: best[key] for key in ("calibration_nll", "calibration_exact")}
    if row["kept"]:
        # A killed run needs them, whether or not they are trained between drops.
        state.patched = sorted({*state.patched, *student.trained_parameters()})
        for name in COSTS:
            setattr(state, name, getattr(state, name) + row[name])
    write_depth(run, row)
    state.healed.append(row)
    run.save_state(trained=True, weights=row["kept"])
    if distributed.is_main():
        shutil.rmtree(run.directory / folder, ignore_errors=True)
    print(
        f"healed {student.left} of {student.full} units, {student.share:.1%} of the bytes, in "
        f"{row['training_seconds'] / 60:.1f} min: calibration exact match {row['calibration_exact']:.1%}, NLL "
        f"{row['calibration_nll']:.3f}"
    )
    if row["kept"]:
        run.make_trainable()
    elif count and not last:
        trainer = keep_best = None  # which hold the model that was healed
        run.return_to_state()


class KeepBest(TrainerCallback):
    """Scores the calibration split at the start and ``every`` so many steps, keeps the best weights, which may be those
    of the start, and stops where later ones stay worse than the best of them.

    ``scores`` gives ``(nll, exact)`` of each question. The best weights lie beside the Trainer's checkpoints, where a
    killed run finds them. The means stand in ``log_history``, as ``calibration_nll`` and ``calibration_exact``.
    """

    def __init__(self, model, scores: Callable[[torch.nn.Module], tuple[torch.Tensor, torch.Tensor]], every: int):
        self.model, self.scores, self.every = model, scores, every

    def path(self, args, step: int) -> Path:
        """Of the weights after ``step``: a killed run goes back to a checkpoint, and may find another best one."""
        return Path(args.output_dir) / f"best-{step}.safetensors"

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.global_step:
            self.score(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        self.score(args, state)
        # The first steps often harm, so the start does not count.
        nlls = [row["calibration_nll"] for row in scored(state.log_history) if row["step"]]
        if len(nlls) - 1 - nlls.index(min(nlls)) >= PATIENCE:
            control.should_training_stop = control.should_log = True
            control.should_save = False  # a run that is killed now and resumed there would not stop again

    def score(self, args, state) -> None:
        """Note the scores, and write the weights if they are the best so far."""
        before = min((row["calibration_nll"] for row in scored(state.log_history)), default=math.inf)
        row = {"step": state.global_step, **calibration_means(*self.scores(self.model))}
        state.log_history.append(row)
        last = state.global_step >= state.max_steps  # whose weights are those in memory
        if row["calibration_nll"] < before and not last and distributed.is_main():
            with runs.atomic_path(self.path(args, state.global_step)) as partial:
                save_file({name: p.detach().cpu().contiguous() for name, p in self.trained().items()}, partial)

    def restore_best(self, args, log_history: list[dict]) -> dict:
        """Give the model its best weights, and return their scores."""
        scores = scored(log_history)
        best = min(scores, key=lambda row: row["calibration_nll"])
        if best is not scores[-1]:
            weights = load_file(self.path(args, best["step"]))
            for name, parameter in self.trained().items():
                parameter.data.copy_(weights[name])
        return best


def scored(log_history: list[dict]) -> list[dict]:
    """Those of its rows that ``KeepBest`` added."""
    return [row for row in log_history if "calibration_nll" in row]
