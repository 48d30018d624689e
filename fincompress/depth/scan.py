"""The calibration scan of SAPLING: how well the model answers a calibration set without each unit.

Only what comes after a unit changes without it, so the stream that enters each unit is computed once and each unit runs
its suffix alone: the same scores for half the work. With early elimination most units are eliminated after a few
questions. Where a dropped unit will be patched, it is scored as patched.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from fincompress import distributed
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Score, Unit, behind
from fincompress.depth.sublayers import SubLayer
from fincompress.training.loss import at_targets, question_scores, target_logits

FIRST_CUT = 8  # questions before which no unit is eliminated, whatever the batch: fewer say nothing
FINALISTS = 4  # units, at least, that see every question


class Patch(NamedTuple):
    """What the projection before a unit takes up of it, when it is dropped."""

    before: SubLayer  # which ends with that projection
    added: torch.Tensor  # to its weight, (hidden, in), in the type that is computed with, in main memory


@dataclass
class Trace:
    """One forward pass over a batch: the stream wherever a sub-layer adds to it, and the arguments of each block."""

    streams: dict[SubLayer, torch.Tensor]  # what enters each sub-layer, (batch, tokens, hidden)
    last: torch.Tensor  # what leaves the last block, (batch, tokens, hidden)
    real: torch.Tensor  # (batch, tokens), False at padding
    inputs: dict[SubLayer, torch.Tensor]  # what enters the last projection of some sub-layers, (batch, tokens, in)
    arguments: list[dict]  # keyword arguments of each block: masks, positions
    logits: torch.Tensor  # of the target positions, (batch, K - 1, vocabulary)
    labels: torch.Tensor  # (batch, K - 1)
    teacher: torch.Tensor | None = None  # logits of the unpruned model, (target tokens, vocabulary)

    def around(self, first: SubLayer, last: SubLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream before the sub-layer ``first`` and after the sub-layer ``last``, (batch, tokens, hidden) each."""
        attention = last.kind == "attention"
        following = SubLayer(last.block, "mlp") if attention else SubLayer(last.block + 1, "attention")
        return self.streams[first], self.streams.get(following, self.last)

    def squares(self, unit: Unit) -> float:
        """Sum of squares of what ``unit`` adds to the stream, padding left out."""
        before, after = (stream[self.real].float() for stream in self.around(unit[0], unit[-1]))
        return float((after - before).square().sum())


@torch.no_grad()
def trace(model, batch: dict[str, torch.Tensor], projections: Collection[SubLayer] = ()) -> Trace:
    """Run the whole model once and keep what the suffixes will need; of ``projections`` also what enters them.

    Hooks are gone afterwards.
    """
    layers = sub.decoder(model).layers
    streams, inputs, arguments, last, hooks = {}, {}, [{} for _ in layers], [], []

    def enters_block(number):
        def hook(block, args, kwargs):
            streams[SubLayer(number, "attention")] = args[0]
            arguments[number] = kwargs

        return layers[number].register_forward_pre_hook(hook, with_kwargs=True)

    def enters(module, kept, sublayer):
        def hook(module, args):
            kept[sublayer] = args[0]

        return module.register_forward_pre_hook(hook)

    try:
        for number, block in enumerate(layers):
            hooks += [enters_block(number), enters(block.post_attention_layernorm, streams, SubLayer(number, "mlp"))]
        hooks += [enters(sub.projection(model, sublayer), inputs, sublayer) for sublayer in projections]
        hooks.append(layers[-1].register_forward_hook(lambda block, args, output: last.append(output)))
        logits, labels = target_logits(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(streams, last[0], batch["attention_mask"].bool(), inputs, arguments, logits, labels)


@torch.no_grad()
def scores_without(model, unit: Unit, seen: Trace, patch: Patch | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """``question_scores`` with ``unit`` skipped: only its suffix is run, and the head for the target tokens alone."""
    decoder, first, stream = sub.decoder(model), unit[0], seen.streams[unit[0]]
    if patch:
        stream = stream + F.linear(seen.inputs[patch.before], patch.added.to(stream.device))
    start = first.block if first.kind == "attention" else first.block + 1
    targets = slice(-seen.labels.shape[1] - 1, -1)
    # An MLP at the end, which no attention follows, runs for these alone too: most positions are prompt, or padding.
    final = sub.sublayers(model)[-1]
    late = [final] if final.kind == "mlp" and final not in unit else []
    with sub.skipped(model, *unit, *late):
        for block, arguments in zip(decoder.layers[start:], seen.arguments[start:], strict=True):
            stream = block(stream, **arguments)
    stream = at_targets(stream[:, targets], seen.labels)
    for sublayer in late:
        norm, mlp = (getattr(decoder.layers[sublayer.block], part) for part in sub.PARTS[sublayer.kind])
        stream = stream + mlp(norm(stream))
    return question_scores(model.get_output_embeddings()(decoder.norm(stream)), seen.labels, seen.teacher)


@contextlib.contextmanager
def dropped(model, unit: Unit, patch: Patch | None = None):
    """Run the whole model without ``unit``, the projection before it patched; afterwards it is as it was."""
    with contextlib.ExitStack() as stack:
        if patch:

            def hook(projection, args, output):
                return output + F.linear(args[0], patch.added.to(output.device))

            stack.enter_context(sub.projection(model, patch.before).register_forward_hook(hook))
        stack.enter_context(sub.skipped(model, *unit))
        yield


def nested_batches(order: list[int], lengths: list[int], size: int) -> list[list[int]]:
    """Questions in batches of at most ``size``, of like ``lengths`` so as to pad little.

    The questions between two cuts of ``Elimination`` are sorted, no others: at each cut those seen are the first of
    ``order``, a random part of all.
    """
    batches, begin, end = [], 0, FIRST_CUT
    while begin < len(order):
        part = sorted(order[begin:end], key=lambda i: lengths[i])
        batches += [part[i : i + size] for i in range(0, len(part), size)]
        begin, end = end, 2 * end
    return batches


class Elimination:
    """Which units a scan still follows: successive halving on nested parts of the calibration set.

    After FIRST_CUT questions, and each time they have doubled since, the worse half (by NLL) is eliminated. At any time
    so is what is behind the leader by more than three standard errors of the paired difference. The finalists stay:
    of those not so far behind as many of the best as contain ``drops`` + 1 units that share no sub-layer (of two that
    do, only one can be dropped), and as many of the highest accuracy, by which ``choose`` goes first, as contain
    ``drops`` of them.
    ``earlier`` holds what an earlier scan found (unit -> NLL lost without it). Units are tried in that order, and those
    of its worse half stay after the first cut only within one standard error of the leader.
    """

    def __init__(self, units: list[Unit], drops: float = 1, earlier: dict[Unit, float] | None = None):
        self.drops, self.earlier = drops, earlier or {}
        self.alive = sorted(units, key=lambda unit: self.earlier.get(unit, -math.inf))
        self.next_cut: int | None = None

    def eliminate(self, scores: dict[Unit, Score]) -> None:
        """Call after each batch, with the scores of every unit that is still followed."""
        questions = scores[self.alive[0]].questions
        if questions < FIRST_CUT:
            return
        leader = min((scores[unit] for unit in self.alive), key=lambda score: score.nll.mean())
        doubtful = self.alive[len(self.alive) // 2 :] if self.next_cut is None and self.earlier else []
        hopeless = {
            unit for unit in self.alive if behind(scores[unit].nll, leader.nll, errors=1 if unit in doubtful else 3)
        }
        keep = len(self.alive) - len(hopeless)
        if self.next_cut is None or questions >= self.next_cut:
            keep, self.next_cut = min(keep, len(self.alive) // 2), 2 * questions
        best = sorted(self.alive, key=lambda unit: (unit in hopeless, scores[unit].nll.mean()))
        best = best[: max(keep, FINALISTS, _enough(best, self.drops + 1))]
        exact = sorted(self.alive, key=lambda unit: (-scores[unit].exact.mean(), scores[unit].nll.mean()))
        best += exact[: _enough(exact, self.drops)]
        self.alive = [unit for unit in self.alive if unit in best]


def _enough(best: list[Unit], drops: int) -> int:
    """How many of the best contain ``drops`` units that can go together; all of them where none do."""
    taken: set[SubLayer] = set()
    apart = 0
    for number, unit in enumerate(best, start=1):
        if taken.isdisjoint(unit):
            taken.update(unit)
            apart += 1
        if apart == drops:
            return number
    return len(best)


def scan(
    model,
    units: list[Unit],
    batches: Iterable[dict[str, torch.Tensor]],
    drops: float = math.inf,
    earlier: dict[Unit, float] | None = None,
    cached: bool = True,
    teacher: Callable[[dict], torch.Tensor] | None = None,
    patches: dict[Unit, Patch] | None = None,
) -> tuple[list[Score], Score]:
    """Score the model without each of ``units``; also returns the score of the model as it is, under an empty unit.

    ``batches`` are nested parts of the calibration set, in a random order fixed by the caller; one at a time is held
    with its streams, so a batch's size bounds the memory. This is the exact scan, unless only so many ``drops`` follow:
    then ``Elimination`` leaves few units that have seen every question. They are enough for one or two drops; of more,
    each may stand in the way of two, and seldom the last finds no unit. ``cached=False`` runs the whole network for
    every unit: the reference. ``teacher`` gives the logits of a batch's target tokens; scores are then KL(teacher ||
    model) instead of the gold program's negative log-likelihood. ``patches`` are those that dropped units would leave.
    Several processes share the questions of each batch, and all know all scores before any unit is eliminated.
    """
    scores = {unit: Score(unit) for unit in units}
    whole = Score(())
    race = Elimination(units, drops, earlier)
    bar = tqdm(batches, desc="scan", unit="batch", delay=5, leave=False, disable=not distributed.is_main())
    for batch in bar:
        batch_scores = _score_batch(model, race.alive, distributed.share(batch), cached, teacher, patches or {})
        for score, (nll, exact) in zip(
            [whole, *(scores[unit] for unit in race.alive)], _joined(batch_scores), strict=True
        ):
            score.add(nll, exact)
        if drops < math.inf:
            race.eliminate(scores)
    return list(scores.values()), whole


Scores = tuple[torch.Tensor, torch.Tensor]  # of a model on some questions: what ``Score.add`` takes


def _score_batch(model, units: list[Unit], batch: dict[str, torch.Tensor], cached, teacher, patches) -> list[Scores]:
    """Scores of the model as it is, and without each unit, on the questions of a batch."""
    if not len(batch["labels"]):  # fewer questions than processes
        nothing = torch.zeros(0)
        return [(nothing, nothing)] * (1 + len(units))
    seen = trace(model, batch, {patch.before for patch in patches.values()})
    seen.teacher = teacher(batch) if teacher else None
    scores = [question_scores(at_targets(seen.logits, seen.labels), seen.labels, seen.teacher)]
    for unit in units:
        if cached:
            nll, exact = scores_without(model, unit, seen, patches.get(unit))
        else:
            with dropped(model, unit, patches.get(unit)), torch.no_grad():
                logits = at_targets(target_logits(model, batch)[0], seen.labels)
            nll, exact = question_scores(logits, seen.labels, seen.teacher)
        scores.append((nll, exact))
    return scores


def _joined(scores: list[Scores]) -> list[Scores]:
    """What all processes found on their questions of a batch, in the order of the questions."""
    parts = distributed.gather([(nll.float().cpu(), exact.float().cpu()) for nll, exact in scores])
    return [
        (torch.cat(nll), torch.cat(exact))
        for nll, exact in (zip(*shares, strict=True) for shares in zip(*parts, strict=True))
    ]
