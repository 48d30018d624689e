"""Which sub-layer or block to drop next: the calibration scan of SAPLING, and the criteria it is compared with.

The scan asks for each unit (a sub-layer or a block) how well the model answers a calibration set without it. Only what
comes after the unit changes, so the stream that enters each unit is computed once and each unit runs its suffix alone:
the same scores for half the work. With early elimination most units are given up after a few questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from fincompress.depth import sublayers as sub
from fincompress.depth.sublayers import SubLayer
from fincompress.errors import UserError
from fincompress.training.loss import IGNORE, packed_scores, target_logits

FIRST_CUT = 8  # questions before which no unit is given up, whatever the batch: fewer say nothing
FINALISTS = 4  # units, at least, that see every question
WORST = 1e4  # nats per token that stand for what is no number
SCANS = ("calibration", "kl")  # criteria that run the model without each unit
CRITERIA = (*SCANS, "activation_norm", "block_influence", "angular", "taylor", "last", "random")
Unit = tuple[SubLayer, ...]


@dataclass
class Score:
    """What the calibration set says of the model without one unit, question by question."""

    unit: Unit
    nll: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (questions,), nats per target token, or KL
    exact: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (questions,), 1 where the program is exact
    squares: float = 0.0  # sum of squares of what the unit adds to the stream

    @property
    def questions(self) -> int:
        return len(self.nll)

    @property
    def norm(self) -> float:
        """Frobenius norm of what the unit adds to the stream, over the questions seen."""
        return math.sqrt(self.squares)

    def add(self, nll: torch.Tensor, exact: torch.Tensor, squares: float) -> None:
        # What overflows without a unit is as bad as can be, and must not win because nothing compares with it.
        self.nll = torch.cat([self.nll, nll.float().cpu().nan_to_num(nan=WORST, posinf=WORST)])
        self.exact = torch.cat([self.exact, exact.float().cpu()])
        self.squares += squares


@dataclass
class Trace:
    """One forward pass over a batch: the stream wherever a sub-layer adds to it, and the arguments of each block."""

    streams: dict[SubLayer, torch.Tensor]  # what enters each sub-layer, (batch, tokens, hidden)
    last: torch.Tensor  # what leaves the last block, (batch, tokens, hidden)
    squares: dict[SubLayer, float]  # sum of squares of what each sub-layer adds, padding left out
    arguments: list[dict]  # keyword arguments of each block: masks, positions
    logits: torch.Tensor  # of the target positions, (batch, K - 1, vocabulary)
    labels: torch.Tensor  # (batch, K - 1)
    teacher: torch.Tensor | None = None  # logits of the unpruned model, (target tokens, vocabulary)


@torch.no_grad()
def trace(model, batch: dict[str, torch.Tensor]) -> Trace:
    """Run the whole model once and keep what the suffixes will need. Hooks are gone afterwards."""
    layers = sub.decoder(model).layers
    streams, squares, arguments, last = {}, {}, [{} for _ in layers], []
    mask = batch["attention_mask"].unsqueeze(-1)
    hooks = []

    def enters_block(number):
        def hook(block, args, kwargs):
            streams[SubLayer(number, "attention")] = args[0]
            arguments[number] = kwargs

        return layers[number].register_forward_pre_hook(hook, with_kwargs=True)

    def enters_mlp(number):
        def hook(norm, args):
            streams[SubLayer(number, "mlp")] = args[0]

        return layers[number].post_attention_layernorm.register_forward_pre_hook(hook)

    def adds(one):
        def hook(body, args, output):
            added = output[0] if isinstance(output, tuple) else output
            squares[one] = float((added.float() * mask).square().sum())

        return sub.module(model, one).register_forward_hook(hook)

    try:
        for number in range(len(layers)):
            hooks += [enters_block(number), enters_mlp(number)]
        hooks += [adds(one) for one in sub.sublayers(model)]
        hooks.append(layers[-1].register_forward_hook(lambda block, args, output: last.append(output)))
        logits, labels = target_logits(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(streams, last[0], squares, arguments, logits, labels)


@torch.no_grad()
def scores_without(model, unit: Unit, seen: Trace) -> tuple[torch.Tensor, torch.Tensor]:
    """``target_scores`` with ``unit`` skipped: only its suffix is run, and the head for the target tokens alone."""
    first = unit[0]
    start = first.block if first.kind == "attention" else first.block + 1
    with sub.skipped(model, *unit):
        return packed_scores(head(model, suffix(model, seen.streams[first], start, seen)), seen.labels, seen.teacher)


def suffix(model, stream: torch.Tensor, start: int, seen: Trace) -> torch.Tensor:
    """What leaves the last block at the target tokens, (target tokens, hidden), from what enters block ``start``.

    The last MLP runs for those tokens alone: no attention comes after it.
    """
    layers, final = sub.decoder(model).layers, sub.sublayers(model)[-1]
    if final.kind == "attention" or final.block < start:
        return targets_of(run_blocks(layers[start:], stream, seen.arguments[start:]), seen)
    norm, body = (getattr(layers[final.block], part) for part in sub.PARTS["mlp"])
    with sub.skipped(model, final):
        end = final.block + 1
        stream = targets_of(run_blocks(layers[start:end], stream, seen.arguments[start:end]), seen)
    return stream + body(norm(stream))


def run_blocks(blocks: Iterable[torch.nn.Module], stream: torch.Tensor, arguments: list[dict]) -> torch.Tensor:
    """The stream after some blocks, (batch, tokens, hidden) as before them."""
    for block, given in zip(blocks, arguments, strict=True):
        stream = block(stream, **given)
    return stream


def targets_of(stream: torch.Tensor, seen: Trace) -> torch.Tensor:
    """The positions that predict target tokens, (target tokens, hidden), of (batch, tokens, hidden).

    Most positions of a batch are prompt, or padding beside its longest target.
    """
    keep = seen.labels.shape[1] + 1
    return stream[:, -keep:-1][seen.labels.ne(IGNORE)]


def head(model, last: torch.Tensor) -> torch.Tensor:
    """Logits, (target tokens, vocabulary), from what leaves the last block at those tokens."""
    return model.get_output_embeddings()(sub.decoder(model).norm(last))


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

    After FIRST_CUT questions and each time they have doubled since, the worse half (by NLL) is given up, and at any
    time what is behind the leader by more than three standard errors of the paired difference, until the finalists are
    left: as many of the best as contain ``drops`` units, and one more, that share no sub-layer (of two that do, only
    one can be dropped), and those of the highest accuracy, by which ``choose`` goes first, that contain ``drops``.
    ``earlier`` holds what an earlier scan found (unit -> NLL lost without it): units are tried in that order, and those
    of its worse half must be within one standard error of the leader at the first cut to go on.
    """

    def __init__(self, units: list[Unit], drops: int = 1, earlier: dict[Unit, float] | None = None):
        self.drops, self.earlier = drops, earlier or {}
        self.alive = sorted(units, key=lambda unit: self.earlier.get(unit, -math.inf))
        self.next_cut: int | None = None

    def give_up(self, scores: dict[Unit, Score]) -> None:
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
    eliminate: bool = False,
    drops: int = 1,
    earlier: dict[Unit, float] | None = None,
    cached: bool = True,
    teacher: Callable[[dict], torch.Tensor] | None = None,
) -> tuple[list[Score], Score]:
    """Score the model without each of ``units``; also returns the score of the model as it is, under an empty unit.

    ``batches`` are nested parts of the calibration set, in a random order fixed by the caller; one at a time is held
    with its streams, so a batch's size bounds the memory. Without ``eliminate`` this is the exact scan; with it, units
    are given up as ``Elimination`` says, and only those that were followed to the end have seen every question. For one
    or two ``drops`` they are enough; of more, each may stand in the way of two, and seldom the last finds no unit.
    ``cached=False`` runs the whole network for every unit: the reference. ``teacher`` gives the logits of a batch's
    target tokens; scores are then KL(teacher || model) instead of the gold program's negative log-likelihood.
    """
    scores = {unit: Score(unit) for unit in units}
    whole = Score(())
    race = Elimination(units, drops, earlier)
    for number, batch in enumerate(batches):
        seen = trace(model, batch)
        if number == 0:
            _check_head(model, seen)
        seen.teacher = teacher(batch) if teacher else None
        counted = seen.labels.ne(IGNORE)
        whole.add(*packed_scores(seen.logits[counted], seen.labels, seen.teacher), 0.0)
        for unit in race.alive:
            if cached:
                found = scores_without(model, unit, seen)
            else:
                with sub.skipped(model, *unit), torch.no_grad():
                    found = packed_scores(target_logits(model, batch)[0][counted], seen.labels, seen.teacher)
            scores[unit].add(*found, sum(seen.squares[one] for one in unit))
        if eliminate:
            race.give_up(scores)
        del seen  # or the next batch's streams would be held beside it
    return list(scores.values()), whole


def _check_head(model, seen: Trace) -> None:
    """Refuse a model whose logits are not just its head on its last norm: its suffixes would be scored wrongly."""
    with torch.no_grad():
        ours = head(model, targets_of(seen.last, seen))
    theirs = seen.logits[seen.labels.ne(IGNORE)]
    if not torch.allclose(ours.float(), theirs.float(), atol=1e-2, rtol=1e-2):
        raise UserError(f"{type(model).__name__} does more to its logits than a Llama does; it cannot be scanned")


def behind(nll: torch.Tensor, leader: torch.Tensor, errors: float) -> bool:
    """Whether ``nll`` is above the leader's by more than so many standard errors of the paired difference."""
    difference = nll - leader
    # One question that differs is exactly one standard error: not more, however floats round.
    return bool(difference.mean() > errors * standard_error(difference) * (1 + 1e-5))


def standard_error(values: torch.Tensor) -> float:
    """Standard error of the mean."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def choose(scores: list[Score], by_accuracy: bool = True) -> tuple[Score, str]:
    """The unit to drop, and what decided: ``accuracy``, ``nll``, ``norm``, or ``only`` where there is one candidate.

    The one whose absence leaves the highest accuracy. Units within one standard error of it, of the difference on
    the same questions, tie; among those the lowest NLL decides, and within one standard error of that the largest
    Frobenius norm. Attention and MLP are compared alike. Only units that saw every question take part. Without
    ``by_accuracy`` the NLL decides first, or the KL that stands for it.
    """
    most = max(score.questions for score in scores)
    scores = [score for score in scores if score.questions == most]
    if len(scores) == 1:
        return scores[0], "only"
    best = max(scores, key=lambda score: (score.exact.mean(), -score.nll.mean()))
    tied = [score for score in scores if not by_accuracy or not behind(-score.exact, -best.exact, errors=1)]
    if len(tied) == 1:
        return best, "accuracy"
    best = min(tied, key=lambda score: score.nll.mean())
    tied = [score for score in tied if not behind(score.nll, best.nll, errors=1)]
    if len(tied) == 1:
        return best, "nll"
    return max(tied, key=lambda score: score.norm), "norm"


@torch.no_grad()
def rank(
    model, units: list[Unit], batches: Iterable[dict[str, torch.Tensor]], criterion: str, seed: int = 0
) -> list[tuple[Unit, float]]:
    """``(unit, score)`` by a criterion that needs no scan, the one to drop first in front.

    - ``activation_norm``: 100 * (least Frobenius norm of an output) / (this one's), lowest first (SAPLING's tie-breaker
      on its own).
    - ``block_influence``: 1 - cosine of what enters and what leaves, mean over tokens, lowest first (ShortGPT, Men et
      al. 2024).
    - ``angular``: arccos(cosine) / pi at the last token, lowest first (Gromov et al. 2024); ``angular_window`` is the
      contiguous form.
    - ``taylor``: sum of |weight * gradient| over a unit's weights, lowest first (Shortened LLaMA, Kim et al. 2024).
    - ``last``: from the end; ``random``: by seed.
    """
    if criterion == "taylor":
        return sorted(taylor(model, units, batches).items(), key=lambda pair: pair[1])
    if criterion == "last":
        return [(unit, float(-i)) for i, unit in enumerate(reversed(units))]
    if criterion == "random":
        order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
        return [(units[i], float(place)) for place, i in enumerate(order)]
    totals, weights = dict.fromkeys(units, 0.0), 0.0
    for batch in batches:
        seen = trace(model, batch)
        mask = batch["attention_mask"].bool()
        weights += len(mask) if criterion == "angular" else int(mask.sum())
        for unit in units:
            before, after = seen.streams[unit[0]], _leaves(seen, unit[-1])
            if criterion == "activation_norm":
                totals[unit] += sum(seen.squares[one] for one in unit)
            elif criterion == "block_influence":
                cosine = F.cosine_similarity(before.float(), after.float(), dim=-1)
                totals[unit] += float((1 - cosine)[mask].sum())
            else:
                totals[unit] += float(angular_distance(before[:, -1], after[:, -1]).sum())
    if criterion == "activation_norm":
        # A slot filled with zeros adds nothing: it goes first.
        least = min(filter(None, totals.values()), default=0.0)
        found = {unit: 100 * math.sqrt(least / total) if total else -1.0 for unit, total in totals.items()}
    else:
        found = {unit: total / weights for unit, total in totals.items()}
    return sorted(found.items(), key=lambda pair: pair[1])


def taylor(model, units: list[Unit], batches: Iterable[dict[str, torch.Tensor]]) -> dict[Unit, float]:
    """Sum of |weight * gradient| of each unit, the gradient that of the mean NLL of the target tokens of all batches.

    The weights must be such that gradients can reach them: not those of a 4-bit base.
    """
    weights = {unit: [p for one in unit for p in sub.parameters(model, one)] for unit in units}
    every = {id(p): p for some in weights.values() for p in some}
    before = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    for parameter in every.values():
        parameter.requires_grad_(True)
        parameter.grad = None
    try:
        with torch.enable_grad():
            for batch in batches:
                logits, labels = target_logits(model, batch)
                F.cross_entropy(
                    logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
                ).backward()
        return {unit: sum(float((p * p.grad).abs().sum()) for p in some) for unit, some in weights.items()}
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None


@torch.no_grad()
def angular_window(model, units: list[Unit], batches: Iterable[dict[str, torch.Tensor]], count: int) -> list[Unit]:
    """The ``count`` neighbouring blocks over which the stream turns least, at the last token (Gromov et al. 2024)."""
    turns = torch.zeros(len(units) - count + 1)
    for batch in batches:
        seen = trace(model, batch)
        for start in range(len(turns)):
            before, after = seen.streams[units[start][0]], _leaves(seen, units[start + count - 1][-1])
            turns[start] += angular_distance(before[:, -1], after[:, -1]).sum().cpu()
    start = int(turns.argmin())
    return units[start : start + count]


def angular_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """arccos(cosine of a and b) / pi, over the last dimension: 0 where they point alike, 1 where they are opposed."""
    return torch.arccos(F.cosine_similarity(a.float(), b.float(), dim=-1).clamp(-1, 1)) / math.pi


def _leaves(seen: Trace, one: SubLayer) -> torch.Tensor:
    """The stream after a sub-layer: what enters the next."""
    following = SubLayer(one.block, "mlp") if one.kind == "attention" else SubLayer(one.block + 1, "attention")
    return seen.streams.get(following, seen.last)
