"""The hypothesis against the record: at equal size and at equal accuracy, does SAPLING beat GPTQ?

It says that SAPLING is better in accuracy, throughput and memory. One measure in which GPTQ is better refutes it; it
holds where SAPLING is better in every one; else it is not decided, and what is missing is named. Any one of five
intervals could refute it by chance, so each of them is one of 99 % (Bonferroni: 5 % among all). Every 4-bit GPTQ run
and every SAPLING run of a section are judged as a pair; of several pairs none is picked.

- **Equal size**: the SAPLING checkpoint nearest to GPTQ's bytes, chosen by bytes alone. Where the two differ by more
  than ``SIZE_TOLERANCE``, a win that the difference helps is not counted: of the larger one in accuracy, of the smaller
  one in throughput and memory.
- **Equal accuracy**: that a difference is not significant does not make two runs equal: with few questions every pair
  would be. So the checkpoint's interval against GPTQ must reach down to no more than ``EQUAL_WITHIN`` below it (shown
  not to be worse by more than that) and must not lie wholly below zero. The smallest such checkpoint is taken. Because
  it is picked among several, the intervals hold for all of them at once (Bonferroni: 1 - 0.05 / their number, and at
  least 99 %). Where every checkpoint is significantly worse GPTQ wins, unless all of them are smaller than it; where a
  smaller one than the one taken is not significantly worse, GPTQ must be better than both. Where GPTQ itself is not
  shown to answer more than ``EQUAL_WITHIN``, nothing is decided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fincompress import comparison, statistics
from fincompress.benchmark.record import paired_rounds
from fincompress.comparison import Row, Section

EQUAL_WITHIN = 0.03  # execution accuracy that may be lost and still be called equal
SIZE_TOLERANCE = 0.05  # relative difference in bytes up to which two sizes are called equal
MEMORY_TOLERANCE = 0.05  # relative difference up to which two peaks of memory are called equal
SPEED_TOLERANCE = 0.05  # likewise of throughput: two calls of the benchmark differ by as much
CONFIDENCE = 0.99  # of the intervals that decide: accuracy, and twice decode and prefill throughput
FAST_KERNEL = "Marlin"  # of those that run GPTQ on a GPU, the one that computes with packed weights
LAUNCH_BOUND = 0.3  # share of a GPU's memory bandwidth below which decoding waits for Python, not for the weights
BITS = 4  # the hypothesis is about 4-bit GPTQ
SAPLING, GPTQ, OPEN = "SAPLING", "GPTQ", "not decided"


@dataclass
class Measure:
    """Who is better in one measure (SAPLING, GPTQ or OPEN), the numbers that say so, SAPLING's first, and details."""

    name: str
    winner: str
    numbers: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.winner} ({self.numbers})"


@dataclass
class Verdict:
    """The verdict on one pair of runs in Markdown: all that counts in a paragraph, perhaps with a list, and details."""

    summary: str
    details: list[str] = field(default_factory=list)


@dataclass
class Part:
    """What was found at equal size or at equal accuracy; ``shown`` is the checkpoint in a few words."""

    name: str
    shown: str
    measures: list[Measure] = field(default_factory=list)
    remark: str = ""

    def __str__(self) -> str:
        return f"At {self.name} ({self.shown}): {', '.join(map(str, self.measures))}."

    def details(self) -> str:
        """A paragraph with everything that the sentence rests on."""
        said = [m.details for m in self.measures if m.details]
        return " ".join(text for text in (f"At {self.name}: {self.shown}.", self.remark, *said) if text)


def judge(section: Section, equal_within: float = EQUAL_WITHIN) -> list[Verdict]:
    """The verdict on every pair of a 4-bit GPTQ run and a SAPLING run of a section; one that names what is missing."""
    gptq = [
        row for row in section.rows if row.kind == "gptq" and row.settings.get("BITS", BITS) == BITS and row.execution
    ]
    sapling: dict[str, list[Row]] = {}
    for row in section.rows:
        if is_checkpoint(row):
            sapling.setdefault(row.family or row.run, []).append(row)
    if not gptq or not sapling:
        lacking = [] if gptq else [f"an evaluated run of {BITS}-bit GPTQ (quantize_gptq.py, evaluate.py)"]
        lacking += [] if sapling else ["an evaluated run of SAPLING (sapling_train.py, evaluate.py)"]
        return [Verdict(f"**Not decided.** Missing: {'; '.join(lacking)}.")]
    return [judge_pair(one, sapling[family], equal_within) for one in gptq for family in sorted(sapling)]


def judge_pruning(section: Section) -> list[Verdict]:
    """SAPLING against each run that dropped layers by another criterion or schedule, at that run's last depth.

    The SAPLING checkpoint nearest in bytes stands against it; intervals hold for all of these pairs at once.
    """
    last: dict[str, Row] = {}
    for row in section.rows:
        if row.kind == "pruning" and row.execution and row.size_gb is not None:
            held = last.setdefault(row.family or row.run, row)
            last[row.family or row.run] = min(held, row, key=lambda row: row.size_gb)
    families: dict[str, list[Row]] = {}
    for row in section.rows:
        if is_checkpoint(row) and row.size_gb is not None:
            families.setdefault(row.family or row.run, []).append(row)
    pairs = [
        (min(checkpoints, key=lambda row: (abs(row.size_gb - other.size_gb), row.run)), other)
        for checkpoints in families.values()
        for other in last.values()
    ]
    return [against_pruning(*pair, confidence=1 - 0.05 / len(pairs)) for pair in pairs]


def against_pruning(sapling: Row, other: Row, confidence: float) -> Verdict:
    """Accuracy of two ways to drop layers on the same questions, and what each was trained on."""
    found, reason = comparison.compare_rows(sapling, other, confidence)
    names = f"SAPLING (`{sapling.run}`, {_size(sapling)}) against {other.method} (`{other.run}`, {_size(other)})"
    if found is None:
        return Verdict(f"**Not decided.** {names}: {reason}.")
    favoured, relative = statistics.favours(found), sapling.size_gb / other.size_gb - 1
    if abs(relative) > SIZE_TOLERANCE and (relative > 0) == (favoured > 0):
        favoured = 0  # the larger one cannot win
    found_better = {1: "This run of SAPLING is better", -1: "This run of SAPLING is worse", 0: "Not decided"}
    head = f"**{found_better[favoured]}.**"
    tokens = [row.tokens_seen for row in (sapling, other)]
    trained = "of unrecorded training" if None in tokens else "trained on {:.2f} and {:.2f} million tokens".format(
        *(count / 1e6 for count in tokens)
    )  # fmt: skip
    unhealed = "".join(f"; `{row.run}`: {row.remark}" for row in (sapling, other) if row.remark)
    return Verdict(
        f"{head} {names}: {_percent(sapling)} against {_percent(other)}, {_points(found)} in a {confidence:.2%} "
        f"interval, {trained}{unhealed}.",
        [f"{found['only_first']} questions only SAPLING has right, {found['only_second']} "
         f"only the other, McNemar's exact p = {found['mcnemar_p']:.2g}."],
    )  # fmt: skip


def is_checkpoint(row: Row) -> bool:
    """Whether a row is an evaluated model of SAPLING's from which something was dropped."""
    whole = row.share_of_base is not None and row.share_of_base > 0.99
    return row.kind == "sapling" and row.execution is not None and not whole


def judge_pair(gptq: Row, checkpoints: list[Row], equal_within: float) -> Verdict:
    """One GPTQ run against the checkpoints of one SAPLING run."""
    pair = f"SAPLING (`{checkpoints[0].run.rpartition('/')[0] or checkpoints[0].run}`) against GPTQ (`{gptq.run}`)"
    sized = [row for row in checkpoints if row.size_gb is not None]
    if gptq.size_gb is None or not sized:
        return Verdict(
            f"**Not decided.** {pair}: the size of {GPTQ if gptq.size_gb is None else SAPLING} was not recorded."
        )
    parts = [at_equal_size(gptq, sized), at_equal_accuracy(gptq, sized, equal_within)]
    winners = {measure.winner for part in parts for measure in part.measures}
    if GPTQ in winners:
        head = "**The hypothesis does not hold.**"
    else:
        head = "**Not decided.**" if OPEN in winners else "**The hypothesis holds.**"
    head = f"{head} {pair}, the better one in each measure (intervals of {CONFIDENCE:.0%} or wider)"
    summary = f"{head}:\n\n- {parts[0]}\n- {parts[1]}"
    return Verdict(summary, [*(part.details() for part in parts), training_times(gptq, checkpoints)])


def training_times(gptq: Row, checkpoints: list[Row]) -> str:
    """What both took to make, for they may not have seen as much training; it decides nothing."""
    last = min(checkpoints, key=lambda row: (row.units_left is None, row.units_left or 0))
    times = (
        f"`{row.run}` " + ("unrecorded" if row.training_seconds is None else f"{row.training_seconds / 60:.0f} min")
        for row in (last, gptq)
    )
    return f"Training, with what each started from: {' against '.join(times)}."


def at_equal_size(gptq: Row, checkpoints: list[Row]) -> Part:
    """Measures at the checkpoint nearest to GPTQ in bytes."""
    row = min(checkpoints, key=lambda row: (abs(row.size_gb - gptq.size_gb), row.size_gb, row.run))
    relative = row.size_gb / gptq.size_gb - 1
    part = Part("equal size", f"`{row.run}`, {_size(row)} against {_size(gptq)}")
    accuracy, speed = compare_accuracy(row, gptq), compare_speed(row, gptq)
    if abs(relative) > SIZE_TOLERANCE:
        larger, smaller = (SAPLING, GPTQ) if relative > 0 else (GPTQ, SAPLING)
        part.remark = f"The nearest there is; {larger} is {abs(relative):.0%} larger. "
        part.remark += f"So {larger} cannot win in accuracy here, nor {smaller} in throughput and memory."
        for measure, helped in ((accuracy, larger), *((found, smaller) for found in speed)):
            measure.winner = OPEN if measure.winner == helped else measure.winner
    part.measures = [accuracy, *speed]
    return part


def at_equal_accuracy(gptq: Row, checkpoints: list[Row], equal_within: float) -> Part:
    """Measures at the smallest checkpoint that is shown to be as accurate as GPTQ."""
    part, margin = Part("equal accuracy", "no checkpoint"), f"{100 * equal_within:.3g} points"
    confidence = max(CONFIDENCE, 1 - 0.05 / len(checkpoints))
    pairs = []
    for row in sorted(checkpoints, key=lambda row: (row.size_gb, row.run)):
        found, reason = comparison.compare_rows(row, gptq, confidence)
        if found is None:
            part.measures = [Measure("size", OPEN, reason)]
            return part
        pairs.append((row, found))
    part.remark = (
        f"Equal is what is not worse than GPTQ by more than {margin} and not significantly worse, in "
        f"{confidence:.2%} intervals, for {len(pairs)} checkpoints were looked at."
    )
    # Two runs that never differ on n questions may still differ on this share of all questions.
    questions = pairs[0][1]["questions"]
    if -math.log(1 - confidence) / questions > equal_within:
        part.measures = [Measure("size", OPEN, f"{questions} questions cannot show a difference to be below {margin}")]
        return part
    if gptq.execution["interval"][0] <= equal_within:  # a model that answers nothing would be as accurate
        part.measures = [Measure("size", OPEN, f"GPTQ answers too little ({_percent(gptq)}) for a margin of {margin}")]
        return part
    equal = [(row, c) for row, c in pairs if c["interval"][0] >= -equal_within and statistics.favours(c) >= 0]
    if not equal:
        best, found = max(pairs, key=lambda pair: pair[1]["difference"])
        worse = all(statistics.favours(c) < 0 for _, c in pairs)
        smaller = max(row.size_gb for row, _ in pairs) < (1 - SIZE_TOLERANCE) * gptq.size_gb
        numbers = f"even `{best.run}`, {_size(best)}, differs by {_points(found)}"
        part.measures = [Measure("size", GPTQ if worse and not smaller else OPEN, numbers)]
        if worse and smaller:
            part.remark += " Every checkpoint is smaller than GPTQ's: a larger one may be as accurate."
        elif not worse:
            part.remark += " Not every checkpoint is significantly worse, and none is shown to be equal."
        return part
    row, found = equal[0]
    part.shown = f"`{row.run}`, {_percent(row)} against {_percent(gptq)}, {_points(found)}"
    part.measures = compare_cost(row, gptq)
    for one in [one for one, c in pairs if one.size_gb < row.size_gb and statistics.favours(c) >= 0]:
        # With more questions this one may be shown to be equal, and then it is the one that counts.
        others = {measure.name: measure.winner for measure in compare_cost(one, gptq)}
        lost = [m for m in part.measures if m.winner == GPTQ and others.get(m.name) != GPTQ]
        for measure in lost:
            measure.winner = OPEN
            measure.numbers += f"; `{one.run}`, smaller, may be as accurate"
        if lost:
            names = " and ".join(measure.name for measure in lost)
            part.remark += f" `{one.run}`, smaller, is not shown to be worse, nor GPTQ to be better in {names}."
    return part


def compare_cost(sapling: Row, gptq: Row) -> list[Measure]:
    """What an answer costs: size, and what ``compare_speed`` gives."""
    size = Measure("size", OPEN, f"{_size(sapling)} against {_size(gptq)}")
    if abs(sapling.size_gb / gptq.size_gb - 1) > SIZE_TOLERANCE:
        size.winner = SAPLING if sapling.size_gb < gptq.size_gb else GPTQ
    return [size, *compare_speed(sapling, gptq)]


def compare_accuracy(sapling: Row, gptq: Row) -> Measure:
    """Execution accuracy on the same questions."""
    found, reason = comparison.compare_rows(sapling, gptq, CONFIDENCE)
    if found is None:
        return Measure("accuracy", OPEN, reason)
    winner = {1: SAPLING, -1: GPTQ, 0: OPEN}[statistics.favours(found)]
    details = (
        f"Accuracy: {CONFIDENCE:.0%} paired bootstrap over {found['questions']} questions, {found['resamples']:,} "
        f"resamples, seed {found['seed']}; {found['only_first']} questions only SAPLING has right, "
        f"{found['only_second']} only GPTQ, McNemar's exact p = {found['mcnemar_p']:.2g}."
    )
    return Measure("accuracy", winner, f"{_percent(sapling)} against {_percent(gptq)}, {_points(found)}", details)


def compare_speed(sapling: Row, gptq: Row) -> list[Measure]:
    """Throughput of decoding and of prefill, and peak memory during inference, as measured on the section's device."""
    measures = {"decode throughput": "decode_tokens_per_s", "prefill throughput": "prefill_tokens_per_s"}
    lacking = [f"`{row.run}`" for row in (sapling, gptq) if row.speed is None]
    if lacking:
        missing = f"{' and '.join(lacking)} not measured"
        return [Measure(name, OPEN, missing) for name in ("throughput", "inference memory")]
    unlike = [f"`{row.run}` {row.speed['label']}" for row in (sapling, gptq) if row.speed["label"]]
    if unlike:  # another form of the model was measured
        return [Measure(name, OPEN, "; ".join(unlike)) for name in ("throughput", "inference memory")]
    found = []
    for name, key in measures.items():
        one, other = sapling.speed[key], gptq.speed[key]
        unfair = "not measured" if one is None or other is None else not_the_models(sapling.speed, gptq.speed, key)
        if unfair:
            found.append(Measure(name, OPEN, unfair))
            continue
        rounds = paired_rounds(sapling.speed, gptq.speed, key)
        if rounds:
            ratio, low, high = statistics.ratio_interval(*rounds, CONFIDENCE)
            winner = OPEN
            if max(ratio, 1 / ratio) > 1 + SPEED_TOLERANCE and not low <= 1 <= high:
                winner = SAPLING if ratio > 1 else GPTQ
            details = f"{name.capitalize()}: {len(rounds[0])} rounds, medians {one:,.1f} and {other:,.1f} tokens/s."
            found.append(Measure(name, winner, f"{ratio:.2f} times [{low:.2f}, {high:.2f}]", details))
        else:
            numbers = f"{one:,.1f} against {other:,.1f} tokens/s, no rounds of one call to take an interval from"
            found.append(Measure(name, OPEN, numbers))
    one, other = (row.speed["inference_memory_gb"] for row in (sapling, gptq))
    if one is None or other is None:
        return [*found, Measure("inference memory", OPEN, "not measured")]
    winner = OPEN
    if max(one, other) / min(one, other) > 1 + MEMORY_TOLERANCE:
        winner = SAPLING if one < other else GPTQ
    return [*found, Measure("inference memory", winner, f"{one:.2f} against {other:.2f} GB")]


def not_the_models(sapling: dict, gptq: dict, key: str) -> str | None:
    """Why a throughput on a GPU says little of the two models; None where it does."""
    if not sapling["device"].startswith("cuda"):
        return None
    if gptq["kernel"] and FAST_KERNEL not in gptq["kernel"]:
        kernel = gptq["kernel"].partition(";")[0]
        return f"GPTQ ran with {kernel}, which unpacks whole matrices: Marlin's needs nvcc and groups of 32, 64 or 128"
    shares = [one["share_of_bandwidth"] for one in (sapling, gptq)]
    if key.startswith("decode") and None not in shares and min(shares) < LAUNCH_BOUND:
        return f"at {shares[0]:.0%} and {shares[1]:.0%} of the memory's bandwidth Python's launches were measured"
    return None


def markdown(sections: list[Section], verdicts: list[list[Verdict]], equal_within: float = EQUAL_WITHIN) -> str:
    """``verdict.md``: a part for each section, of which ``verdicts`` holds those by ``judge``, then the rules."""
    lines = ["# Verdict", ""]
    lines += ["Hypothesis: at equal size and at equal accuracy, SAPLING beats GPTQ in accuracy, throughput and memory."]
    for section, found in zip(sections, verdicts, strict=True):
        lines += ["", f"## {section.title}"]
        for one in found:
            for paragraph in (one.summary, *one.details):
                lines += ["", paragraph]
    lines += [
        "",
        "## How it is decided",
        "",
        "- Differences are SAPLING minus GPTQ in points of execution accuracy. One is counted where its paired "
        f"{CONFIDENCE:.0%} bootstrap interval excludes zero and McNemar's exact test agrees: of five such intervals "
        "any one could refute by chance, so each has a fifth of the 5 %.",
        f"- Sizes within {SIZE_TOLERANCE:.0%} of each other are equal. Where the nearest differs by more, the larger "
        "one cannot win in accuracy, nor the smaller one in throughput and memory.",
        f"- Equal accuracy must be shown: the interval may reach {100 * equal_within:.3g} points below GPTQ, no "
        "further, and must not lie wholly below zero. The smallest checkpoint that meets this is taken; intervals of "
        f"95 % are widened to at least {CONFIDENCE:.0%} (Bonferroni) because it is picked among several. Where a "
        "smaller one is not significantly worse, GPTQ must be better than that one too: with more questions it might "
        "be taken. Where GPTQ's own accuracy is not shown to be above these points, nothing is decided.",
        "- A ratio of throughputs is the geometric mean over the rounds of one benchmark call, in which both are taken "
        "in relation to the base model's turns close by where there are as many, and counted where it differs from 1 "
        f"by more than {SPEED_TOLERANCE:.0%} and Student's {CONFIDENCE:.0%} interval excludes 1; two peaks of memory "
        f"within {MEMORY_TOLERANCE:.0%} are equal. A model that had to be measured in another form decides neither.",
        "- On a GPU no throughput counts where GPTQ's kernel unpacks whole matrices, nor decoding below "
        f"{LAUNCH_BOUND:.0%} of the memory's bandwidth, where the number of layers that Python launches is measured, "
        "not their bytes.",
        "- Each row is one training run. Intervals cover the questions, not what another seed would have given.",
        "- One measure in which GPTQ is better refutes the hypothesis; it holds where SAPLING is better in every one.",
        "- Against other ways to drop layers only accuracy is judged, at the other's last depth and SAPLING's "
        "nearest in bytes, with 95 % intervals widened (Bonferroni) by the number of such pairs.",
    ]
    return "\n".join(lines) + "\n"


def _size(row: Row) -> str:
    share = "" if row.share_of_base is None else f" or {row.share_of_base:.0%} of the base"
    return f"{row.size_gb:.3f} GB{share}"


def _percent(row: Row) -> str:
    return f"{row.execution['accuracy']:.1%}"


def _points(found: dict) -> str:
    low, high = found["interval"]
    return f"{100 * found['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
