"""SAPLING against 4-bit quantization, and against other ways to drop layers, by the rules of docs/comparing-runs.md."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

from fincompress.benchmark.record import paired_rounds
from fincompress.report import statistics
from fincompress.report.rows import Row, Section, compare_rows
from fincompress.report.tables import Table, points

EQUAL_WITHIN = 0.03  # execution accuracy that may be lost and still be called equal
TOLERANCE = 0.05  # relative difference up to which two sizes, peaks of memory or throughputs are called equal
CONFIDENCE = 0.99  # of the intervals that decide: five of them, 5 % among all (Bonferroni)
FAST_KERNEL = "Marlin"  # of those that run a quantized model on a GPU, the one that computes with packed weights
LAUNCH_BOUND = 0.3  # share of a GPU's memory bandwidth below which decoding waits for Python, not for the weights
BITS = 4  # the hypothesis is about 4 bits
SAPLING, OTHER, OPEN = "SAPLING", "the other", "not decided"
MEASURES = ("accuracy", "decode", "prefill", "memory", "bytes")  # those that may decide
COLUMNS = ("SAPLING", "the other", "equal", "accuracy, points", "decode", "prefill", "memory", "bytes",
           "s per question", "SAPLING better in", "the other better in", "SAPLING beats it")  # fmt: skip
LEGEND = (
    f"Accuracy is SAPLING's minus the other's, in points; all else is SAPLING's over the other's. Brackets: intervals "
    f"of {100 * CONFIDENCE:g} % or wider. Time per question is shown and decides nothing."
)


@dataclass
class Comparison:
    """A SAPLING checkpoint and another run that are equal in one thing; who is better in the others."""

    sapling: Row
    other: Row
    equal: str  # "size" or "accuracy"
    difference: dict | None = None  # statistics.compare, SAPLING minus the other
    winners: dict[str, str] = field(default_factory=dict)  # measure -> SAPLING, OTHER or OPEN
    ratios: dict[str, str] = field(default_factory=dict)  # measure -> SAPLING's over the other's, in words
    notes: list[str] = field(default_factory=list)  # why something is not decided
    shown: bool = True  # False: no checkpoint is shown to be equal in accuracy


@dataclass
class Pair:
    """A SAPLING run against another run."""

    other: Row
    comparisons: list[Comparison]

    @property
    def decision(self) -> str:
        """``"no"`` where the other is better in one measure, ``"yes"`` where SAPLING is in each, else not decided."""
        winners = {winner for one in self.comparisons for winner in one.winners.values()}
        return "no" if OTHER in winners else OPEN if OPEN in winners else "yes"


def judge(section: Section, equal_within: float = EQUAL_WITHIN) -> list[Pair]:
    """Every SAPLING run of a section against every 4-bit quantized run, then against every other pruned run."""
    families, quantized, pruned = contenders(section)
    pairs = [
        Pair(rival, [at_equal_size(rival, depths), at_equal_accuracy(rival, depths, equal_within)])
        for rival in quantized
        for depths in families
    ]
    against = [(nearest(depths, other), other) for depths in families for other in pruned]
    return pairs + [Pair(pair[1], [against_pruning(*pair, 1 - 0.05 / len(against))]) for pair in against]


def contenders(section: Section) -> tuple[list[list[Row]], list[Row], list[Row]]:
    """Checkpoints of each SAPLING run, 4-bit quantized runs, and the last depth of every other pruned run."""
    families: dict[str, list[Row]] = {}
    last: dict[str, Row] = {}
    rows = [row for row in section.rows if row.size_gb is not None]
    for row in rows:
        if row.kind == "sapling" and (row.share_of_bytes or 0) <= 0.99:  # something was dropped
            families.setdefault(row.family, []).append(row)
        if row.kind == "pruning":
            last[row.family] = min(last.get(row.family, row), row, key=lambda row: row.size_gb)
    quantized = [row for row in rows if row.kind == "quantized" and row.settings.get("BITS", BITS) == BITS]
    return [families[name] for name in sorted(families)], quantized, list(last.values())


def nearest(checkpoints: list[Row], other: Row) -> Row:
    """The checkpoint nearest to another run in bytes, chosen by bytes alone."""
    return min(checkpoints, key=lambda row: (abs(row.size_gb - other.size_gb), row.size_gb, row.run))


def at_equal_size(rival: Row, checkpoints: list[Row]) -> Comparison:
    """The checkpoint nearest to the rival in bytes."""
    found = Comparison(nearest(checkpoints, rival), rival, "size")
    compare_accuracy(found, CONFIDENCE)
    compare_cost(found)
    del found.winners["bytes"]
    relative = found.sapling.size_gb / rival.size_gb - 1
    if abs(relative) > TOLERANCE:  # a win that the difference helps is not counted
        larger, smaller = (SAPLING, OTHER) if relative > 0 else (OTHER, SAPLING)
        for name, winner in found.winners.items():
            if winner == (larger if name == "accuracy" else smaller):
                found.winners[name] = OPEN
        found.notes.append(f"the nearest in bytes; {larger}, larger, cannot win in accuracy, nor {smaller} in cost")
    return found


def at_equal_accuracy(rival: Row, checkpoints: list[Row], equal_within: float) -> Comparison:
    """The smallest checkpoint that is shown to be as accurate as the rival; the most accurate one where none is."""
    confidence = max(CONFIDENCE, 1 - 0.05 / len(checkpoints))  # one is picked among several
    found = []
    for row in sorted(checkpoints, key=lambda row: (row.size_gb, row.run)):
        found.append(Comparison(row, rival, "accuracy"))
        compare_accuracy(found[-1], confidence)
        if found[-1].difference is None:
            return undecided(found[-1], found[-1].notes.pop())
    best = max(found, key=lambda one: one.difference["difference"])
    questions, margin = best.difference["questions"], f"{100 * equal_within:.3g} points"
    # Two runs that never differ on n questions may still differ on this share of all questions.
    if -math.log(1 - confidence) / questions > equal_within:
        return undecided(best, f"{questions} questions cannot show a difference to be below {margin}")
    if rival.execution["interval"][0] <= equal_within:  # a model that answers nothing would be as accurate
        return undecided(best, f"the other answers too little for a margin of {margin}")
    all_worse = all(one.winners["accuracy"] == OTHER for one in found)
    near = [one for one in found if one.difference["interval"][0] >= -equal_within]
    equal = [one for one in near if one.winners["accuracy"] != OTHER]
    if not equal:
        smaller = max(row.size_gb for row in checkpoints) < (1 - TOLERANCE) * rival.size_gb
        note = f"the most accurate depth, not shown to be within {margin}"
        undecided(best, note + ("; every depth is smaller than the other" if all_worse and smaller else ""))
        best.winners["accuracy"] = OTHER if all_worse and not smaller else OPEN
        return best
    taken = equal[0]
    compare_cost(taken)
    del taken.winners["accuracy"]
    for one in found[: found.index(taken)]:
        # With more questions a smaller one may be shown to be equal, and then it is the one that counts.
        if one.winners["accuracy"] != OTHER:
            compare_cost(one)
            lost = [name for name, won in taken.winners.items() if won == OTHER and one.winners[name] != OTHER]
            taken.winners |= dict.fromkeys(lost, OPEN)
            if lost:
                taken.notes.append(f"{one.sapling.run}, smaller, may be as accurate: {', '.join(lost)} not decided")
    return taken


def undecided(comparison: Comparison, note: str) -> Comparison:
    """A comparison at equal accuracy that cannot be made, with the reason."""
    comparison.shown, comparison.winners, comparison.notes = False, {"accuracy": OPEN}, [note]
    ratio(comparison, "bytes", comparison.sapling.size_gb, comparison.other.size_gb)
    return comparison


def against_pruning(sapling: Row, other: Row, confidence: float) -> Comparison:
    """Accuracy of two ways to drop layers; the larger one cannot win."""
    found = Comparison(sapling, other, "size")
    compare_accuracy(found, confidence)
    ratio(found, "bytes", sapling.size_gb, other.size_gb)
    relative = sapling.size_gb / other.size_gb - 1
    if abs(relative) > TOLERANCE and found.winners["accuracy"] == (SAPLING if relative > 0 else OTHER):
        found.winners["accuracy"] = OPEN
        found.notes.append("the nearest in bytes; the larger one cannot win in accuracy")
    found.notes += [f"{row.run} was not healed as a last depth is" for row in (sapling, other) if row.healed is False]
    tokens = [row.tokens_seen for row in (sapling, other)]
    if None not in tokens and max(tokens) > (1 + TOLERANCE) * min(tokens):
        found.notes.append("trained on {:.2f} and {:.2f} million tokens".format(*(count / 1e6 for count in tokens)))
    return found


def compare_accuracy(comparison: Comparison, confidence: float) -> None:
    """Execution accuracy on the same questions."""
    found, reason = compare_rows(comparison.sapling, comparison.other, confidence)
    comparison.difference = found
    comparison.winners["accuracy"] = {1: SAPLING, -1: OTHER, 0: OPEN}[statistics.favours(found)] if found else OPEN
    if found:
        comparison.ratios["accuracy"] = points(found["difference"], found["interval"])
    else:
        comparison.notes.append(reason)


def compare_cost(comparison: Comparison) -> None:
    """Bytes, memory, and decode and prefill throughput."""
    sapling, other = comparison.sapling, comparison.other
    speeds, notes, won = (sapling.speed, other.speed), comparison.notes, comparison.winners
    won["bytes"] = ratio(comparison, "bytes", sapling.size_gb, other.size_gb)
    won |= dict.fromkeys(("decode", "prefill", "memory"), OPEN)
    for row in (sapling, other):
        if row.speed is None:
            notes.append(f"speed and memory of {row.run} were not measured")
        elif row.speed["label"]:
            notes.append(f"{row.run}: {row.speed['label']}, so its speed and memory decide nothing")
    if any(speed is None or speed["label"] for speed in speeds):
        return
    won["memory"] = ratio(comparison, "memory", sapling.memory_gb, other.memory_gb)
    ratio(comparison, "seconds", sapling.seconds_per_question, other.seconds_per_question)
    for name in ("decode", "prefill"):
        rounds = paired_rounds(*speeds, f"{name}_tokens_per_s")
        if rounds is None:
            notes.append(f"{name}: no rounds of one benchmark call to take an interval from")
            continue
        centre, low, high = statistics.ratio_interval(*rounds, CONFIDENCE)
        comparison.ratios[name] = f"{centre:.2f} [{low:.2f}, {high:.2f}]"
        unfair = not_the_models(*speeds, name)
        if unfair:
            notes.append(f"{name} decides nothing: {unfair}")
        elif max(centre, 1 / centre) > 1 + TOLERANCE and not low <= 1 <= high:
            won[name] = SAPLING if centre > 1 else OTHER


def ratio(comparison: Comparison, name: str, one: float | None, other: float | None) -> str:
    """Note a ratio of two costs; returns whose is lower, OPEN where they are equal or one is unknown."""
    if one is None or other is None:
        return OPEN
    comparison.ratios[name] = f"{one / other:.2f}"
    if max(one, other) / min(one, other) <= 1 + TOLERANCE:
        return OPEN
    return SAPLING if one < other else OTHER


def not_the_models(sapling: dict, other: dict, name: str) -> str | None:
    """Why a throughput on a GPU says little of the two models; None where it does."""
    if not sapling["device"].startswith("cuda"):
        return None
    if other["kernel"] and FAST_KERNEL not in other["kernel"]:
        return f"the other ran with {other['kernel'].partition(';')[0]}, which unpacks whole matrices"
    shares = [one["share_of_bandwidth"] for one in (sapling, other)]
    if name == "decode" and None not in shares and min(shares) < LAUNCH_BOUND:
        return f"at {shares[0]:.0%} and {shares[1]:.0%} of the memory's bandwidth Python's launches were measured"
    return None


# --- in words -------------------------------------------------------------------------------------------------------


def table(pairs: list[Pair]) -> Table:
    """The verdict's table; ratios are SAPLING's over the other's."""
    out = Table(COLUMNS)
    for pair in pairs:
        for one in pair.comparisons:
            won = {side: [name for name in MEASURES if one.winners.get(name) == side] for side in (SAPLING, OTHER)}
            equal = out.noted(one.equal if one.shown else "accuracy: not shown", "; ".join(one.notes))
            ratios = [one.ratios.get(name, "-") for name in (*MEASURES, "seconds")]
            out.lines.append([
                one.sapling.run, one.other.run, equal, *ratios, ", ".join(won[SAPLING]), ", ".join(won[OTHER]),
                pair.decision,
            ])  # fmt: skip
    return out


def sentence(section: Section, pairs: list[Pair]) -> str:
    """The verdict on a section in one sentence."""
    families, quantized, _ = contenders(section)
    lacking = [] if quantized else [f"{BITS}-bit quantization (quantize_gptq.py)"]
    lacking += [] if families else ["SAPLING (sapling_train.py)"]
    if lacking:
        return f"Not decided: there is no evaluated run of {' and none of '.join(lacking)}."
    said = []
    for name, group in itertools.groupby(pairs, key=lambda pair: rival_name(pair.other)):
        decisions = [pair.decision for pair in group]
        text = f"{name} in {decisions.count('yes')} of {len(decisions)} pairs"
        said.append(text + (f" ({decisions.count(OPEN)} not decided)" if OPEN in decisions else ""))
    return f"SAPLING beats {', and '.join(said)}."


def rival_name(row: Row) -> str:
    return f"{row.quantizer.upper()} {BITS}-bit" if row.quantizer else "other pruning"


def answers(section: Section, pairs: list[Pair]) -> list[str]:
    """Sentences for "at equal size", "at equal accuracy" and "time per question".

    One pair speaks for the others: one whose speeds were measured and which has a depth shown to be as accurate.
    """
    pairs = [pair for pair in pairs if pair.other.quantizer]
    if not pairs:
        return [sentence(section, pairs)]
    chosen = max(pairs, key=lambda pair: ("seconds" in pair.comparisons[0].ratios, pair.comparisons[1].shown))
    (size, equal), rival, name = chosen.comparisons, chosen.other, rival_name(chosen.other)
    losses = sum(pair.comparisons[0].winners["accuracy"] == OTHER for pair in pairs)
    shares = [f"{100 * (row.share_of_bytes or math.nan):.1f} %" for row in (size.sapling, rival)]
    right = [f"{100 * row.execution['accuracy']:.1f} %" for row in (size.sapling, rival)]
    first = (
        f"**At equal size** ({shares[0]} of the bytes against {shares[1]}) SAPLING answers {right[0]} and {name} "
        f"{right[1]}: {size.ratios.get('accuracy', '?')} points. It is less accurate in {losses} of {len(pairs)} pairs."
    )
    shown = sum(pair.comparisons[1].shown for pair in pairs)
    second = f"**At equal accuracy** nothing is compared: {equal.sapling.run} is {'; '.join(equal.notes)}."
    if equal.shown:
        memory = f" and {equal.ratios['memory']} times the memory" if "memory" in equal.ratios else ""
        second = (
            f"**At equal accuracy** ({equal.ratios['accuracy']} points) SAPLING takes {equal.ratios['bytes']} times "
            f"the bytes{memory} of {name}. A depth is shown to be as accurate in {shown} of {len(pairs)} pairs."
        )
    times = [row.seconds_per_question for row in (size.sapling, equal.sapling, rival)]
    if None in times:
        return [first, second, "**Time per question** was not measured for both."]
    tokens = f"{rival.speed['prompt_tokens']} tokens in, {rival.answer_tokens} out"
    depth = "at equal accuracy" if equal.shown else "at its most accurate depth"
    third = "**Time per question** ({}): SAPLING takes {:.2f} s at equal size and {:.2f} s {}, {} {:.2f} s."
    return [first, second, third.format(tokens, *times[:2], depth, name, times[2])]
