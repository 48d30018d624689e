"""Healing: at a depth that is reported a copy of the model is trained to the end, and the run goes on without it."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING

from fincompress.sapling.branch import branch
from fincompress.sapling.recovery import KeepBest
from fincompress.training.loss import score_targets

if TYPE_CHECKING:
    from fincompress.sapling.run import Run

PATIENCE = 2  # passes without a better calibration NLL after which healing stops


def heal(run: Run, last: bool = False) -> None:
    """Train a copy of a depth to the end and save it, where HEAL_AT names it or it is the ``last``.

    The learning rate falls to 0; the best weights by the calibration split's NLL are kept. The run itself goes on
    from the unhealed model: afterwards weights and moments are what they were.
    """
    s, state, depths = run.settings, run.state, run.reached()
    if any(row["units_left"] == run.left for row in state["healed"]) or not (depths or last):
        return
    count = round(s["HEALING_EPOCHS"] * len(run.train_set))
    row = {"units_left": run.left, "share_of_bytes": round(run.share, 5), "heal_at": depths}
    row |= {"examples_seen": 0, "tokens_seen": 0, "training_seconds": 0.0}
    folder = f"healing-{run.left}"
    with branch(run.model, lambda: run.make_trainable(healing=True)):
        best = {}
        if count and run.trained_parameters():
            steps = math.ceil(len(run.train_set) / s["BATCH_SIZE"] / s["GRADIENT_ACCUMULATION"])
            keep_best = KeepBest(
                run.model, run.calibration, run.collator, s["SCAN_BATCH_SIZE"], run.dtype, steps, PATIENCE
            )
            name = f"healing {run.left} of {run.full} units, {run.share:.0%} of bytes"
            trainer, row["training_seconds"] = run.train_stage(count, name, folder, "cosine", [keep_best], run.moments)
            best = keep_best.restore_best(trainer.args, trainer.state.log_history)
            seen = trainer.state.global_step * s["BATCH_SIZE"] * s["GRADIENT_ACCUMULATION"]
            row |= {"examples_seen": min(count, seen), "tokens_seen": int(trainer.state.num_input_tokens_seen)}
            row |= {"steps": trainer.state.global_step, "best_step": best["step"]}
            del trainer
            run.moments = run.read_state_file()[1]  # those of the run: never both in memory
        else:
            with run.scoring_model() as model:
                nll, exact = score_targets(model, run.calibration, run.collator, s["SCAN_BATCH_SIZE"], run.dtype)
            best = {"calibration_nll": nll.mean().item(), "calibration_exact": exact.float().mean().item()}
        row |= {key: round(best[key], 5) for key in ("calibration_nll", "calibration_exact")}
        run.save_checkpoint(row)
    state["healed"].append(row)
    run.save_state(trained=True, weights=False)
    shutil.rmtree(run.directory / folder, ignore_errors=True)
    print(
        f"healed {run.left} of {run.full} units, {run.share:.1%} of the bytes, in "
        f"{row['training_seconds'] / 60:.1f} min: calibration exact match {row['calibration_exact']:.1%}, NLL "
        f"{row['calibration_nll']:.3f}"
    )
