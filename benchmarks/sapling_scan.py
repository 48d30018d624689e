"""What the calibration scan costs and finds: plain, with cached prefixes, and with early elimination.

Scans SmolLM2's sub-layers as sapling_train.py does with DROP_UNIT = "sublayer", on the calibration split of a data
run, with the weights of a finished run:

    python benchmarks/sapling_scan.py --RUN=qlora_4bit

1. Plain against cached over the 60 sub-layers, on the same few questions: time ratio and largest difference of a score.
2. Early elimination on all questions against the plain scan, whose cost is linear in questions: time ratio.
3. Whether elimination picks what the exact scan picks. The exact scan keeps every question's score, and no score
   depends on the questions beside it, so elimination is replayed on it in several orders of the questions, at several
   depths along a trajectory. The first drop of each replay is compared with the exact scan's choice, and all DROPS of
   them with what the exact scan would drop.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RUN: str = "qlora_4bit"  # the finished run whose model is scanned
RESULTS_DIR: str = "results"  # where it lies
QUESTIONS: int = 256  # calibration questions of a full scan
PLAIN_QUESTIONS: int = 32  # questions of the plain scan; its cost is linear in them
BATCH_SIZE: int = 8  # questions at once, as in sapling_train.py
DROPS: int = 2  # drops a scan must serve
DEPTHS: int = 5  # depths at which exact and early scans are compared
DROPS_BETWEEN: int = 4  # units dropped between two of those depths
ORDERS: int = 4  # orders of the questions in which elimination is replayed at each depth
# -----------------------------------------------------------------------------
configure(globals())

import time

import torch

from fincompress import models, runs
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Score, behind, choose
from fincompress.depth.scan import Elimination, nested_batches, scan
from fincompress.errors import run_script
from fincompress.training import loss


def main() -> None:
    models.quiet_libraries()
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    folder = models.dense_checkpoint(RUN, RESULTS_DIR)
    model, tokenizer = models.load_base(str(folder), "auto", device, dtype).eval(), models.load_tokenizer(str(folder))
    record = runs.read_json(runs.run_directory(RESULTS_DIR, RUN) / "settings.json")
    rows, _ = runs.load_processed(RESULTS_DIR, record["settings"]["DATA_RUN"], "calibration")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()[:QUESTIONS]
    collator = loss.TargetCollator(tokenizer.pad_token_id)
    batches = [collator([rows[i] for i in part]) for part in nested_batches(order, rows["length"], BATCH_SIZE)]
    batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]
    units = sub.units(model, "sublayer")
    print(f"{RUN}: {len(units)} sub-layers, {len(order)} questions; {device.type}, {reason}")

    scan(model, units[:4], batches[:1])  # warm up
    few = batches[: max(1, PLAIN_QUESTIONS // BATCH_SIZE)]
    seen = sum(len(batch["labels"]) for batch in few)
    plain_seconds, plain = timed(lambda: scan(model, units, few, cached=False)[0])
    cached_seconds, cached = timed(lambda: scan(model, units, few)[0])
    difference = max((a.nll - b.nll).abs().max().item() for a, b in zip(plain, cached, strict=True))
    same = all(torch.equal(a.exact, b.exact) for a, b in zip(plain, cached, strict=True))
    print(f"plain   {plain_seconds:6.1f} s on {seen} questions")
    print(f"cached  {cached_seconds:6.1f} s on the same: {plain_seconds / cached_seconds:.2f} times faster;", end=" ")
    print(f"largest difference of an NLL {difference:.2g}, exact matches {'equal' if same else 'DIFFER'}")
    units = sub.units(model, "sublayer", packable=True)
    plain_seconds, _ = timed(lambda: scan(model, units, few, cached=False)[0])
    early_seconds, _ = timed(lambda: scan(model, units, batches, drops=DROPS)[0])
    whole = plain_seconds * len(order) / seen
    ratio, per_question = whole / early_seconds, plain_seconds / seen
    print(
        f"early   {early_seconds:6.1f} s for {len(units)} units on {len(order)} questions: {ratio:.1f} times", end=" "
    )
    print(f"faster than plain ({whole:.0f} s at {per_question:.2f} s a question)", flush=True)

    agreed = within = replays = served = shared = 0
    earlier: dict[int, dict] = {order: {} for order in range(ORDERS)}  # what each replay of the last depth found
    for depth in range(DEPTHS):
        units = sub.units(model, "sublayer", packable=True)
        began = time.perf_counter()
        exact, whole_score = scan(model, units, batches)
        seconds = time.perf_counter() - began
        choices = drops(exact, whole_score.questions)
        choice = choices[0]
        for seed in range(ORDERS):
            picked, earlier[seed] = replay(exact, whole_score, seed, earlier[seed])
            replays += 1
            agreed += picked[0].unit == choice.unit
            within += within_error(picked[0], choice)
            served += len(picked) == DROPS
            shared += len({score.unit for score in picked} & {score.unit for score in choices})
        print(
            f"{len(units)} units: exact scan {seconds:.0f} s, drops {sub.unit_name(choice.unit)}; so far "
            f"{agreed} of {replays} replays pick the same, {within} the same or one within a standard error; {served} "
            f"find {DROPS} units to drop, {shared} of {DROPS * replays} those of the exact scan", flush=True,
        )  # fmt: skip
        if depth + 1 < DEPTHS:
            shrink(model, exact)


def timed(work):
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def replay(exact: list[Score], whole: Score, seed: int, earlier: dict) -> tuple[list[Score], dict]:
    """What elimination drops when the questions come in another order, as the exact scan scored it.

    Also what it found of every unit, many after a few questions alone, as the next scan of a run would be told.
    """
    order = torch.randperm(whole.questions, generator=torch.Generator().manual_seed(seed))
    scores = {score.unit: Score(score.unit) for score in exact}
    full = {score.unit: score for score in exact}
    race = Elimination(list(scores), drops=DROPS, earlier=earlier)
    for start in range(0, len(order), BATCH_SIZE):
        part = order[start : start + BATCH_SIZE]
        for unit in race.alive:
            scores[unit].add(full[unit].nll[part], full[unit].exact[part])
        race.eliminate(scores)
    seen = {
        unit: float(score.nll.mean() - whole.nll[order[: score.questions]].mean()) for unit, score in scores.items()
    }
    return [full[score.unit] for score in drops(list(scores.values()), whole.questions)], seen


def drops(scores: list[Score], questions: int) -> list[Score]:
    """The DROPS units that a run drops by these scores, in order; fewer where no other saw all questions."""
    dropped: list[Score] = []
    left = [score for score in scores if score.questions == questions]
    while left and len(dropped) < DROPS:
        dropped.append(choose(left)[0])
        left = [score for score in left if not set(score.unit) & set(dropped[-1].unit)]
    return dropped


def within_error(picked: Score, choice: Score) -> bool:
    """Whether the exact scan puts the pick within a standard error of its own choice, in accuracy and in NLL."""
    return not behind(-picked.exact, -choice.exact, 1) and not behind(picked.nll, choice.nll, 1)


def shrink(model, scores: list[Score]) -> None:
    """Take out the next few sub-layers by these scores, so that the next depth is one that a run would meet."""
    for _ in range(DROPS_BETWEEN):
        left = sub.units(model, "sublayer", packable=True)
        sub.remove(model, *choose([score for score in scores if score.unit in left])[0].unit)


if __name__ == "__main__":
    run_script(main)
