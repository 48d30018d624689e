"""SAPLING against 4-bit quantization, and against other ways to drop layers, by the rules of docs/comparing-runs.md."""

import math
from dataclasses import dataclass, field

from fincompress.benchmark.record import paired_rounds
from fincompress.report import statistics
from fincompress.report.rows import Row, Section, compare_rows, shared_seeds
from fincompress.report.tables import Table, percent

TOLERANCE = 0.05  # relative difference up to which two sizes, peaks of memory or throughputs are called equal
CONFIDENCE = 0.99  # of the intervals that decide: five of them, 5 % among all (Bonferroni)
FAST_KERNEL = "Marlin"  # of those that run a quantized model on a GPU, the one that computes with packed weights
LAUNCH_BOUND = 0.3  # share of a GPU's memory bandwidth below which decoding waits for Python, not for the weights
BITS = 4  # the hypothesis is about 4 bits
SAPLING, OTHER, OPEN = "SAPLING", "the other", "not decided"
SAPLINGS = ("sapling", "sapling_quantized")  # kinds: quantized afterwards it is set against quantization alone too
SIZE, ACCURACY, UNSHOWN = "size", "accuracy", "accuracy: not shown"
UNPAIRED = "there are no predictions of both on the same questions"
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
    equal: str  # SIZE, ACCURACY or UNSHOWN: no checkpoint is shown to be as accurate
    difference: dict | None  # statistics.compare, SAPLING minus the other
    winners: dict[str, str] = field(default_factory=dict)  # measure -> SAPLING, OTHER or OPEN
    ratios: dict[str, str] = field(default_factory=dict)  # measure -> SAPLING's over the other's, in words
    notes: list[str] = field(default_factory=list)  # why something is not decided
    seeds: str = ""  # " of seed 0" where the two are compared by fewer seeds than they have


def judge(section: Section, equal_within: float = 0.03) -> list[list[Comparison]]:
    """Each line of depths in the chart against every 4-bit quantized run, then against every other pruned run.

    Seeds of a recipe count as their mean, over those of phase 1 that both have. Those of SAPLING alone come first, then
    those that were quantized afterwards. Against quantized runs they have two comparisons, at equal size and at equal
    accuracy, of which a share of ``equal_within`` may be lost; against pruned runs one with each depth that was healed.
    """
    sized = [row for row in section.means if row.size_gb is not None]
    families: dict[tuple[str, str], list[Row]] = {}
    # Of one depth that was healed twice the longer trained stands first.
    trained = {row.run: row.total_tokens_seen or 0 for row in sized}
    for row in sorted(sized, key=lambda row: (row.kind, row.chart_label, row.size_gb, -trained[row.run], row.run)):
        if row.kind == "pruning" or (row.kind in SAPLINGS and row.share_of_bytes <= 0.99):  # something was dropped
            families.setdefault((row.kind, row.chart_label), []).append(row)
    against = [
        (depths, rival)
        for (sapling, _), depths in families.items()
        for (kind, _), rows in families.items()
        if (sapling, kind) == ("sapling", "pruning")
        for rival in healed(rows)
    ]
    confidence = among(len(against))
    return [
        [at_equal_size(rival, depths), at_equal_accuracy(rival, depths, equal_within)]
        for sapling in SAPLINGS
        for rival in sized
        if rival.kind == "quantized" and rival.bits == BITS
        for (kind, _), depths in families.items()
        if kind == sapling
    ] + [[against_pruning(rival, depths, confidence)] for depths, rival in against]


def among(count: int) -> float:
    """Confidence of each of so many intervals, that 5 % of all may err (Bonferroni); CONFIDENCE at least."""
    return max(CONFIDENCE, 1 - 0.05 / max(1, count))


def decision(pair: list[Comparison]) -> str:
    """``"no"`` where the other is better in one measure, ``"yes"`` where SAPLING is in each, else not decided."""
    winners = {winner for comparison in pair for winner in comparison.winners.values()}
    return "no" if OTHER in winners else OPEN if OPEN in winners else "yes"


def at_equal_size(rival: Row, checkpoints: list[Row]) -> Comparison:
    """The checkpoint nearest to the rival in bytes."""
    comparison = compare(nearest(rival, checkpoints), rival, SIZE, CONFIDENCE)
    compare_cost(comparison)
    del comparison.winners["bytes"]
    discount_size(comparison)
    return comparison


def against_pruning(rival: Row, checkpoints: list[Row], confidence: float) -> Comparison:
    """Accuracy of two ways to drop layers."""
    comparison = compare(nearest(rival, healed(checkpoints)), rival, SIZE, confidence)
    discount_size(comparison)
    unhealed = [row.run for row in (comparison.sapling, rival) if row.healed is False]
    comparison.notes += [f"{run} was not healed as a last depth is" for run in unhealed]
    return comparison


def healed(rows: list[Row]) -> list[Row]:
    """Those that were not just saved on the way down; all where there are no others."""
    return [row for row in rows if row.healed is not False] or rows


def nearest(rival: Row, checkpoints: list[Row]) -> Row:
    """The checkpoint nearest to another run in bytes, chosen by bytes alone; the smaller of two."""
    return min(checkpoints, key=lambda row: abs(row.size_gb - rival.size_gb))


def discount_size(comparison: Comparison) -> None:
    """Where two sizes are not equal, a win that the difference helps is not counted."""
    relative = comparison.sapling.size_gb / comparison.other.size_gb - 1
    if abs(relative) > TOLERANCE:
        larger, smaller = (SAPLING, OTHER) if relative > 0 else (OTHER, SAPLING)
        for name, winner in comparison.winners.items():
            if winner == (larger if name == "accuracy" else smaller):
                comparison.winners[name] = OPEN
        comparison.notes += [f"the nearest in bytes; {larger}, larger, cannot win in accuracy, nor {smaller} in cost"]


def at_equal_accuracy(rival: Row, checkpoints: list[Row], equal_within: float) -> Comparison:
    """The smallest checkpoint that is shown to be as accurate as the rival; the most accurate one where none is."""
    confidence = among(len(checkpoints))  # one is picked
    comparisons = [compare(row, rival, ACCURACY, confidence) for row in checkpoints]
    best = max(comparisons, key=lambda c: c.difference["difference"] if c.difference else -math.inf)
    # Depths that are not significantly worse than the rival.
    near = [comparison for comparison in comparisons if comparison.winners["accuracy"] != OTHER]
    equal = [
        comparison
        for comparison in near
        if comparison.difference
        and comparison.difference["interval"][0] >= -equal_within
        and comparison.difference["interval"][1] >= 0
    ]
    margin, winner = f"{100 * equal_within:.3g} points", OPEN
    if not all(comparison.difference for comparison in comparisons):
        note = UNPAIRED
    # Two runs that never differ on n questions may still differ on this share of all questions.
    elif -math.log(1 - confidence) / rival.questions > equal_within:
        note = f"{rival.questions} questions cannot show a difference to be below {margin}"
    elif rival.execution_accuracy_low <= equal_within:  # a model that answers nothing would be as accurate
        note = f"the other answers too little for a margin of {margin}"
    elif not equal:
        note = f"no depth is shown to answer at most {margin} less"
        # Where all are smaller than the rival, a larger one may be as accurate.
        winner = OPEN if near or checkpoints[-1].size_gb < (1 - TOLERANCE) * rival.size_gb else OTHER
    else:
        taken = equal[0]
        compare_cost(taken)
        del taken.winners["accuracy"]
        # With more questions a smaller one may be shown to be equal, and then it is the one that counts.
        for smaller in near[: near.index(taken)]:
            compare_cost(smaller)
            lost = [name for name, won in taken.winners.items() if won == OTHER and smaller.winners[name] != OTHER]
            taken.winners |= dict.fromkeys(lost, OPEN)
        return taken
    best.equal, best.winners = UNSHOWN, {"accuracy": winner}
    best.notes = [note, *(said for said in best.notes if said != note)]
    return best


def compare(sapling: Row, rival: Row, equal: str, confidence: float) -> Comparison:
    """Execution accuracy on the same questions, and the ratio of bytes."""
    difference = compare_rows(sapling, rival, confidence)
    comparison = Comparison(sapling, rival, equal, difference)
    shared = shared_seeds(sapling, rival)
    if sum(map(len, shared)) < sum(len(row.seeds or [row]) for row in (sapling, rival)):
        numbers = [str(row.seed[-1]) for row in shared[0]]
        comparison.seeds = f" of seed{'s' * (len(numbers) > 1)} {' and '.join(numbers)}"
        comparison.notes.append(f"points{comparison.seeds}, which both have")
    comparison.ratios["bytes"] = f"{sapling.size_gb / rival.size_gb:.2f}"
    comparison.winners["accuracy"] = OPEN
    if difference is None:
        comparison.notes.append(UNPAIRED)
    else:
        comparison.winners["accuracy"] = {1: SAPLING, -1: OTHER, 0: OPEN}[statistics.favours(difference)]
        comparison.ratios["accuracy"] = percent(difference["difference"], difference["interval"], "+")
    return comparison


def compare_cost(comparison: Comparison) -> None:
    """Bytes, memory, and decode and prefill throughput."""
    sapling, rival, won, ratios = comparison.sapling, comparison.other, comparison.winners, comparison.ratios
    won |= {"bytes": lower(sapling.size_gb, rival.size_gb), "memory": OPEN, "decode": OPEN, "prefill": OPEN}
    unmeasured = [row for row in (sapling, rival) if not row.speed]
    if unmeasured:
        comparison.notes += [f"{row.run}: speed and memory were not measured" for row in unmeasured]
        return
    if sapling.inference_memory_gb and rival.inference_memory_gb:
        won["memory"] = lower(sapling.inference_memory_gb, rival.inference_memory_gb)
        ratios["memory"] = f"{sapling.inference_memory_gb / rival.inference_memory_gb:.2f}"
    if sapling.seconds_per_question and rival.seconds_per_question:
        ratios["seconds"] = f"{sapling.seconds_per_question / rival.seconds_per_question:.2f}"
    for name in ("decode", "prefill"):
        rounds = paired_rounds(sapling.speed, rival.speed, f"{name}_tokens_per_s")
        if rounds is None:
            comparison.notes.append(f"{name}: not two rounds of one benchmark call on an idle machine")
            continue
        centre, low, high = statistics.ratio_interval(*rounds, CONFIDENCE)
        ratios[name] = f"{centre:.2f} [{low:.2f}, {high:.2f}]"
        if why := not_the_models((sapling, rival), name):
            comparison.notes.append(f"{name} decides nothing: {why}")
        elif not low <= 1 <= high:
            won[name] = lower(1 / centre, 1)


def lower(sapling: float, rival: float) -> str:
    """Whose cost is lower, OPEN where they are equal."""
    if max(sapling, rival) / min(sapling, rival) <= 1 + TOLERANCE:
        return OPEN
    return SAPLING if sapling < rival else OTHER


def not_the_models(pair: tuple[Row, Row], name: str) -> str | None:
    """Why a throughput says little of two models: other runtimes, or on a GPU a slow kernel or Python's launches."""
    if len({(row.speed["kernel"] or "").startswith("llama.cpp") for row in pair}) > 1:
        return "llama.cpp ran one of the two, PyTorch the other"
    shares = [row.speed["share_of_bandwidth"] or 1 for row in pair]
    slow_kernel = any(row.quantizer and FAST_KERNEL not in (row.speed["kernel"] or FAST_KERNEL) for row in pair)
    on_gpu = pair[0].speed["device"].startswith("cuda")
    if on_gpu and (slow_kernel or (name == "decode" and min(shares) < LAUNCH_BOUND)):
        return "on a GPU it was not the model's bytes that took the time"
    return None


# --- in words -------------------------------------------------------------------------------------------------------


def table(pairs: list[list[Comparison]]) -> Table:
    """The verdict's table; ratios are SAPLING's over the other's."""
    out = Table(COLUMNS)
    for pair in pairs:
        for comparison in pair:
            winners = comparison.winners
            won = [", ".join(name for name in MEASURES if winners.get(name) == side) for side in (SAPLING, OTHER)]
            ratios = [comparison.ratios.get(name, "-") for name in (*MEASURES, "seconds")]
            equal = out.noted(comparison.equal, "; ".join(comparison.notes))
            titles = comparison.sapling.title, comparison.other.title
            out.lines.append([*titles, equal, *ratios, *won, decision(pair)])
    return out


def sentence(pairs: list[list[Comparison]]) -> str:
    """The verdict on a section in a sentence for SAPLING, and one for SAPLING that was quantized afterwards.

    It also counts what is lost, and how much of that in accuracy; of what is not decided, where SAPLING is shown to be
    less accurate, which a smaller model may be without losing, and where it is as accurate and better in every cost;
    and where sizes differ, so that it cannot win.
    """
    if not any(pair[0].other.quantizer for pair in pairs):
        return f"Not decided: it takes evaluated runs of SAPLING and of {BITS}-bit quantization (quantize_gptq.py)."
    said: dict[str, list[str]] = {}
    names = [(sapling_name(pair[0].sapling), rival_name(pair[0].other)) for pair in pairs]
    for sapling, rival in dict.fromkeys(names):
        theirs = [pair for pair, name in zip(pairs, names, strict=True) if name == (sapling, rival)]
        decided: dict[str, list[list[Comparison]]] = {"yes": [], "no": [], OPEN: []}
        for pair in theirs:
            decided[decision(pair)].append(pair)
        inaccurate = [p for p in decided["no"] if any(c.winners.get("accuracy") == OTHER for c in p)]
        ahead = [p for p in decided[OPEN] if p[-1].equal == ACCURACY and set(p[-1].winners.values()) == {SAPLING}]
        worse = [p for p in decided[OPEN] if p[0].difference and statistics.favours(p[0].difference) < 0]
        unequal = [pair for pair in theirs if distance(pair) > TOLERANCE]
        counts = {
            "{} lost": decided["no"], "{} of them in accuracy": inaccurate, "{} not decided": decided[OPEN],
            "less accurate in {}": worse, "as accurate and ahead in every cost in {}": ahead,
            "sizes over 5 % apart in {}, which SAPLING cannot win": unequal,
        }  # fmt: skip
        notes = [note.format(len(counted)) for note, counted in counts.items() if counted]
        text = f"{rival} in {len(decided['yes'])} of {len(theirs)} comparisons"
        said.setdefault(sapling, []).append(text + (f" ({'; '.join(notes)})" if notes else ""))
    return " ".join(f"{name} beats {', and '.join(texts)}." for name, texts in said.items())


def sapling_name(row: Row) -> str:
    return f"SAPLING + {rival_name(row)}" if row.quantizer else "SAPLING"


def rival_name(row: Row) -> str:
    return f"{row.quantizer.upper()} {row.bits}-bit" if row.quantizer else "other pruning"


def answers(pairs: list[list[Comparison]]) -> list[str]:
    """The verdict, then a sentence for "at equal size", "at equal accuracy" and, where measured, "time per question".

    Those are of SAPLING alone where there are such pairs. One pair speaks for the others: of those of one size, else of
    those that have a speed the nearest in bytes, then a rival of several seeds, the most accurate rival, and the most
    accurate of SAPLING's; and of the same rival one with a depth shown to be as accurate, of several seeds if there is
    one, else the most accurate.
    """
    pairs = [pair for pair in pairs if pair[0].other.quantizer]
    if not pairs:
        return [sentence(pairs)]
    kinds = ([pair for pair in pairs if pair[0].sapling.kind == kind] for kind in SAPLINGS)
    return [f"**{sentence(pairs)}**", *answer(next(filter(None, kinds)))]


def distance(pair: list[Comparison]) -> float:
    """Relative difference of the two in bytes, at equal size."""
    return abs(pair[0].sapling.size_gb / pair[0].other.size_gb - 1)


def answer(pairs: list[list[Comparison]]) -> list[str]:
    """``answers`` of pairs of one kind."""

    def closeness(pair: list[Comparison]) -> tuple[bool, bool, float]:
        points = pair[1].difference["difference"] if pair[1].difference else -math.inf
        return pair[1].equal == ACCURACY, len(pair[1].sapling.seeds) > 1, points

    def order(pair: list[Comparison]) -> tuple[bool, bool, float, bool, float, float]:
        sapling, rival = pair[0].sapling, pair[0].other
        unequal, unmeasured = distance(pair) > TOLERANCE, "seconds" not in pair[0].ratios
        luck = len(rival.seeds) < 2, -rival.execution_accuracy, -sapling.execution_accuracy
        return unequal, unmeasured, round(distance(pair), 2), *luck

    chosen = min(pairs, key=order)
    size, sapling, rival = chosen[0], chosen[0].sapling, chosen[0].other
    equal = max((pair for pair in pairs if pair[1].other is rival), key=closeness)[1]
    ours, name = sapling_name(sapling), rival_name(rival)
    losses = sum(pair[0].winners["accuracy"] == OTHER for pair in pairs)
    shares = [f"{100 * row.share_of_bytes:.1f} %" for row in (sapling, rival)]
    compared = shared_seeds(sapling, rival)
    right = [f"{100 * sum(row.execution_accuracy for row in seeds) / len(seeds):.1f} %" for seeds in compared]
    near = distance(chosen) <= TOLERANCE
    label = "At equal size" if near else "Nearest in size"
    if any(distance(pair) < distance(chosen) and "seconds" not in pair[0].ratios for pair in pairs):
        label += ", of those that have a speed"
    counted = f"It is shown to be less accurate in {losses} of {len(pairs)} comparisons."
    if not near and sapling.size_gb < rival.size_gb and size.difference and size.difference["difference"] < 0:
        counted = f"{ours} is smaller, so this decides nothing."
    said = [
        f"**{label}** ({shares[0]} of the bytes against {shares[1]}) {ours} "
        f"answers {right[0]} and {name} ({rival.title}) {right[1]}{size.seeds}: {size.ratios.get('accuracy', '?')} "
        f"points. {counted}"
    ]
    count = sum(pair[1].equal == ACCURACY for pair in pairs)
    shown = f"A depth is shown to be as accurate in {count} of {len(pairs)} comparisons."
    if equal.equal == UNSHOWN:
        said.append(
            f"**At equal accuracy** to {rival.title} no costs are compared: {equal.notes[0]}. The most accurate is "
            f"{equal.sapling.title}. {shown}"
        )
    else:
        cost = " and ".join(f"{equal.ratios[x]} times the {x}" for x in ("bytes", "memory") if x in equal.ratios)
        points = f"{equal.ratios['accuracy']} points{equal.seeds}"
        said.append(f"**At equal accuracy** ({points}) {ours} ({equal.sapling.title}) takes {cost} of {name}. {shown}")
    times = [row.seconds_per_question for row in (sapling, equal.sapling, rival)]
    if None not in times:
        tokens = f"{rival.prompt_tokens} tokens in, {rival.answer_tokens} out"
        depth = "at equal accuracy" if equal.equal == ACCURACY else "at its most accurate depth"
        text = "**Time per question** ({}): {} takes {:.2f} s {} and {:.2f} s {}, {} {:.2f} s."
        where = "at equal size" if near else "at that size"
        said.append(text.format(tokens, ours, times[0], where, times[1], depth, name, times[2]))
    return said
