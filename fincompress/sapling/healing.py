"""Healing: at a depth that is reported a copy of the model is trained to the end, and the run goes on without it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from fincompress import runs
from fincompress.sapling.branch import branch
from fincompress.sapling.checkpoints import save_checkpoint
from fincompress.sapling.recovery import train_stage
from fincompress.targets import score_targets

if TYPE_CHECKING:
    from fincompress.sapling.run import Run

PATIENCE = 2  # passes without a better calibration NLL after which healing stops


def heal(run: Run, last: bool = False) -> None:
    """Train a copy of a depth to the end and save it, where HEAL_AT names it or it is the ``last``.

    The learning rate falls to 0; the best weights by the calibration split's NLL are kept. The run itself goes on
    from the unhealed model: afterwards weights and moments are what they were.
    """
    s, state, student, depths = run.settings, run.state, run.student, run.depths_reached()
    if any(row["units_left"] == student.left for row in state.healed) or not (depths or last):
        return
    count = round(s["HEALING_EPOCHS"] * len(run.train_set))
    row = {"units_left": student.left, "share_of_bytes": round(student.share, 5), "heal_at": depths}
    row |= {"examples_seen": 0, "tokens_seen": 0, "training_seconds": 0.0}
    folder = f"healing-{student.left}"
    with branch(student.model, lambda: run.make_trainable(healing=True)):
        if count and student.trained_parameters():
            steps = math.ceil(len(run.train_set) / s["BATCH_SIZE"] / s["GRADIENT_ACCUMULATION"])
            keep_best = KeepBest(
                student.model, run.calibration, run.collator, s["SCAN_BATCH_SIZE"], student.dtype, steps, PATIENCE
            )
            name = f"healing {student.left} of {student.full} units, {student.share:.0%} of bytes"
            trainer, row["training_seconds"] = train_stage(run, count, name, folder, "cosine", [keep_best], run.moments)
            best = keep_best.restore_best(trainer.args, trainer.state.log_history)
            seen = trainer.state.global_step * s["BATCH_SIZE"] * s["GRADIENT_ACCUMULATION"]
            row |= {"examples_seen": min(count, seen), "tokens_seen": int(trainer.state.num_input_tokens_seen)}
            row |= {"steps": trainer.state.global_step, "best_step": best["step"]}
            del trainer
            run.moments = state.read_weights(run.directory, student.device)[1]  # the run's: never both in memory
        else:
            with student.scoring_model() as model:
                nll, exact = score_targets(model, run.calibration, run.collator, s["SCAN_BATCH_SIZE"], student.dtype)
            best = {"calibration_nll": nll.mean().item(), "calibration_exact": exact.float().mean().item()}
        row |= {key: round(best[key], 5) for key in ("calibration_nll", "calibration_exact")}
        save_checkpoint(run, row)
    state.healed.append(row)
    run.save_state(trained=True, weights=False)
    shutil.rmtree(run.directory / folder, ignore_errors=True)
    print(
        f"healed {student.left} of {student.full} units, {student.share:.1%} of the bytes, in "
        f"{row['training_seconds'] / 60:.1f} min: calibration exact match {row['calibration_exact']:.1%}, NLL "
        f"{row['calibration_nll']:.3f}"
    )


class KeepBest(TrainerCallback):
    """Scores the calibration split along the way, keeps the weights of the best score and stops where it stays worse.

    ``every`` optimizer steps, and after the last. The best weights lie beside the Trainer's checkpoints, so that a
    killed run finds them. What was found stands in ``log_history``, as ``calibration_nll`` and ``calibration_exact``.
    """

    def __init__(self, model, calibration, collator, batch_size: int, dtype: torch.dtype, every: int, patience: int):
        self.model, self.calibration, self.collator = model, calibration, collator
        self.batch_size, self.dtype, self.every, self.patience = batch_size, dtype, every, patience

    @staticmethod
    def scores(log_history: list[dict]) -> list[dict]:
        return [row for row in log_history if "calibration_nll" in row]

    def path(self, args) -> Path:
        return Path(args.output_dir) / "best.safetensors"

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def on_step_end(self, args, state, control, **kwargs):
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not last:
            return
        nll, exact = score_targets(self.model, self.calibration, self.collator, self.batch_size, self.dtype)
        before = [row["calibration_nll"] for row in self.scores(state.log_history)]
        found = round(nll.mean().item(), 5)
        state.log_history.append(
            {
                "step": state.global_step,
                "calibration_nll": found,
                "calibration_exact": round(exact.float().mean().item(), 5),
            }
        )
        if found < min(before, default=float("inf")):
            if not last:  # the last weights are those in memory
                with runs.atomic_path(self.path(args)) as partial:
                    save_file({name: p.detach().cpu().contiguous() for name, p in self.trained().items()}, partial)
            return
        since = len(before) - before.index(min(before))
        if since >= self.patience:
            control.should_training_stop = True

    def restore_best(self, args, log_history: list[dict]) -> dict:
        """Give the model its best weights, and return their scores."""
        scores = self.scores(log_history)
        best = min(scores, key=lambda row: row["calibration_nll"])
        if best is not scores[-1]:
            weights = load_file(self.path(args))
            for name, parameter in self.trained().items():
                parameter.data.copy_(weights[name])
        return best
