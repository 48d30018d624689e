"""When no more is dropped: size, accuracy floor, memory or latency, whichever comes first."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING

from fincompress import distributed, generation, memory, runs
from fincompress.depth import repack
from fincompress.depth.ranking import Score
from fincompress.errors import UserError
from fincompress.sapling.student import Student

if TYPE_CHECKING:
    from fincompress.sapling.run import Run

CONTEXT = 1024  # tokens in the KV cache of TARGET_MEMORY_GB


def check_targets(student: Student) -> None:
    """Raise UserError for a target that one block exceeds, and for a depth of HEAL_AT that the run does not reach."""
    s, ends, full = student.settings, student.sizes["ends"], student.full_size
    kept = 2 if s["PROTECT"] else 1
    smallest = (ends + kept * student.block_size) / full
    if s["TARGET_SIZE"] < smallest:
        raise UserError(
            f"TARGET_SIZE = {s['TARGET_SIZE']} cannot be met: embeddings, head and {kept} of the blocks are "
            f"{smallest:.1%} of this model's bytes"
        )
    if s["TARGET_MEMORY_GB"] is not None:
        least = memory.inference_gb(repack.shortened_config(student.config, 1), context=CONTEXT)
        if s["TARGET_MEMORY_GB"] < least:
            raise UserError(
                f"TARGET_MEMORY_GB = {s['TARGET_MEMORY_GB']} cannot be met: embeddings, head and one block take "
                f"{least:.2g} GB"
            )
    unit = "blocks" if s["DROP_UNIT"] == "block" else "sub-layers"

    def units_at(share: float) -> int:
        return math.floor((share * full - ends) / student.block_size) * (1 if unit == "blocks" else 2)

    last = units_at(s["TARGET_SIZE"])
    if unit == "sub-layers" and not s["PACKABLE_ONLY"]:
        last //= 2  # each may have a block of its own, whose other half is empty
    for depth in s["HEAL_AT"]:
        if depth >= student.full or depth == 1:
            raise UserError(f"HEAL_AT holds {depth}, but the run starts with {student.full} {unit}: name fewer")
        if (depth if depth > 1 else units_at(depth)) < last:
            raise UserError(
                f"HEAL_AT holds {depth}, but the run stops at {last} {unit}: name more, or lower TARGET_SIZE"
            )


def stop_reason(run: Run, whole: Score) -> str | None:
    """Which target is met first, ``whole`` the model's scores as it is; None while there is more to drop.

    Also notes the last depth above the floor.
    """
    s, state, student = run.settings, run.state, run.student
    if s["ACCURACY_FLOOR"] is not None:
        accuracy, reference = float(whole.exact.mean()), state.reference["accuracy"]
        if reference == 0:
            runs.fail("ACCURACY_FLOOR is a share of the accuracy before any drop, which is 0: train longer")
        if accuracy < s["ACCURACY_FLOOR"] * reference:
            return (
                f"accuracy {accuracy:.1%} of {student.left} units fell below {s['ACCURACY_FLOOR']:.0%} of "
                f"{reference:.1%}; the last depth above that had {state.last_above_floor['units']}"
            )
        state.last_above_floor = {
            "units": student.left, "drops": len(state.trajectory), "weights": state.weights, "patched": state.patched
        }  # fmt: skip
    if student.share <= s["TARGET_SIZE"]:
        return f"{student.share:.1%} of the bytes, at most {s['TARGET_SIZE']:.0%} wanted"
    if s["TARGET_MEMORY_GB"] is not None:
        needed = memory.inference_gb(repack.repacked_model(student.model).config, context=CONTEXT)
        if needed <= s["TARGET_MEMORY_GB"]:
            return f"{needed:.2f} GB of memory, at most {s['TARGET_MEMORY_GB']} wanted"
    if s["TARGET_LATENCY_MS"] is not None:
        with student.scoring_model() as model:
            latency = distributed.from_main(lambda: generation.decode_latency_ms(repack.repacked_model(model)))
        if latency <= s["TARGET_LATENCY_MS"]:
            return f"{latency:.1f} ms a token, at most {s['TARGET_LATENCY_MS']} wanted"
    if not student.allowed():
        return "nothing is left that may be dropped"
    return None


def return_above_floor(run: Run) -> None:
    """After a stop by the accuracy floor: undo the drops since it was last met, and what was trained since."""
    state = run.state
    above = state.last_above_floor
    if above is None or above["drops"] == len(state.trajectory):
        return
    for path in run.directory.glob("[0-9]*"):  # depths that the floor rejects must not be taken for its outcome
        if int(path.name) < above["units"] and distributed.is_main():
            shutil.rmtree(path)
    del state.trajectory[above["drops"] :]
    state.weights, state.patched, state.trained = above["weights"], above["patched"], False
    state.write(run.directory)
    run.return_to_state()
