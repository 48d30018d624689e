"""Finished runs as rows: what each is, what was measured of it, and which of them may share a table."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from fincompress import runs
from fincompress.benchmark.record import read_throughput
from fincompress.errors import UserError
from fincompress.report import statistics
from fincompress.report.methods import (
    KINDS,
    PHASE_1,
    alike,
    depth,
    describe,
    family,
    lineage,
    recipe,
    record_of,
    training_cost,
    way,
)  # fmt: skip

SPEEDS = ("prompt_tokens", "prefill_tokens_per_s", "prefill_ratio", "decode_tokens_per_s", "decode_ratio",
          "inference_memory_gb", "kernel")  # fmt: skip


class Row(SimpleNamespace):
    """One run on one split and device; None is what was not measured.

    It has the columns of results.csv (``prepared``: how the data was preprocessed, and the longest output), ``kind``
    (of KINDS), ``name`` (of the method), ``quantizer``, ``bits``, ``act_order``, ``family`` (of a pruned model the run
    that first dropped layers), ``seed`` (of each training), ``recipe`` and ``way`` (of ``methods``), ``depth``
    ("22 of 60"), ``healed``, ``calibration_nll``, ``correct``, ``steps`` (execution accuracy by steps of the gold
    program), ``speeds`` (``read_throughput`` of every device), ``speed`` (of this device, maybe of another run of the
    same shape), ``lost`` and ``lost_to_longer`` (``statistics.compare`` of the reference, and of phase 1 trained
    longer, with it), ``seeds`` (of a mean over seeds their rows, else none) and ``chart_label`` (of means alone).
    """

    @property
    def title(self) -> str:
        return f"{self.run}, {len(self.seeds)} seeds" if self.seeds else self.run


@dataclass
class Section:
    """Rows that may share a table: of one base model, data set, split and device."""

    title: str
    rows: list[Row]  # one a run
    means: list[Row]  # the same, but seeds of a recipe are one row


def read_rows(results_dir: str, splits: list[str] | None = None) -> tuple[list[Row], list[str]]:
    """Every evaluated run under ``results_dir``, and what was left out and why, a line each.

    A run evaluated on two splits is two rows; ``splits`` None: all splits. ``results/published`` is left out unless it
    is itself what is read. Raises UserError naming a record that is damaged.
    """
    root = Path(results_dir)
    if not root.is_dir():
        raise UserError(f"{root}/ does not exist: run evaluate.py first, or set RESULTS_DIR")
    rows, left_out = [], []
    for path in runs.records(results_dir, "eval_*.json"):
        folder, split = path.parent, path.stem.partition("_")[2]
        try:
            chain = lineage(folder, root)
            if not chain:
                left_out.append(f"{folder.relative_to(root)}: no settings.json, so nothing says what it is")
            elif splits is not None and split not in splits:
                left_out.append(f"{folder.relative_to(root)}: the split {split} is no split to report")
            else:
                rows.append(make_row(folder, root, chain, runs.read_json(path)))
        except (KeyError, TypeError, AttributeError) as error:  # no row is lost without a word
            raise UserError(f"{path} is damaged ({error!r}): evaluate that run again, or remove it") from None
    return rows, left_out


def make_row(folder: Path, root: Path, chain: list[dict], evaluation: dict) -> Row:
    """One run on one split from its files, without what depends on the device."""
    settings, metrics, decoding = chain[0]["settings"], chain[0]["metrics"], evaluation.get("decoding") or {}
    kind, name = describe(chain, evaluation.get("base_precision"))
    pruned = "sapling" in kind or "pruning" in kind
    row = Row(**runs.accuracy_row(evaluation), directory=folder, kind=kind, name=name, recipe=recipe(chain), seeds=[])
    row.way, row.prompts = way(chain), evaluation.get("prompts")
    row.run = folder.relative_to(root).as_posix()  # it may have been moved since
    # An output that was cut short is wrong for no fault of the model.
    row.prepared = f"{evaluation.get('prepared')}, outputs of at most {decoding.get('MAX_NEW_TOKENS')} tokens"
    row.prepared += f", {decoding['beams']} beams" if decoding.get("beams", 1) > 1 else ""
    row.correct, row.steps = evaluation["execution_accuracy"]["correct"], evaluation.get("steps") or {}
    row.quantizer = settings.get("METHOD", "gptq") if "quantized" in kind else None
    row.method = kind.replace("quantized", row.quantizer or "")
    row.bits, row.act_order = settings.get("BITS", 4), settings.get("DESC_ACT", False)
    row.family = family(chain, root) or row.run.rpartition("/")[0] or row.run if pruned else row.run
    row.sublayers_left, row.sublayers = depth(chain) if pruned else (None, None)
    trained = [record for record in chain if record["script"] not in ("quantize_gptq.py", "evaluate.py")]
    row.seed = tuple(record["settings"].get("SEED") for record in trained)
    row.depth = " of ".join(str(count) for count in (row.sublayers_left, row.sublayers) if count is not None)
    row.description = f"{name}, {row.depth} sub-layers" if row.depth else name
    row.healed = metrics["healed"] or metrics.get("final", False) if "healed" in metrics else None
    row.calibration_nll = (metrics.get("calibration") or [metrics])[-1].get("calibration_nll", math.inf)
    row.total_training_seconds, row.total_tokens_seen = training_cost(chain)
    row.evaluation_dtype = decoding.get("dtype")
    speeds = [read_throughput(path) for path in sorted(folder.glob("throughput_*.json"))]
    # That of an untuned model may be of another one, which this folder was measured for before.
    row.speeds = [speed for speed in speeds if speed["base_model"] == row.base_model]
    row.answer_tokens = answer_tokens(root, row.speeds[0]["data_run"]) if row.speeds else None
    return row


def answer_tokens(root: Path, data_run: str | None) -> int | None:
    """Tokens of the median gold program of a data run, on the split whose prompts the benchmark takes."""
    splits = record_of(root / (data_run or ""), "data_report.json").get("splits", {})
    split = next((splits[name] for name in ("dev", "test", "train") if name in splits), {})
    return split.get("target_tokens", {}).get("p50")


def key(row: Row) -> tuple:
    """What two rows must share to be compared in accuracy. Older rows have no hash of their prompts."""
    return row.base_model, row.data, row.data_fingerprint, row.split, row.questions, row.prepared, row.prompts


def make_sections(rows: list[Row]) -> list[Section]:
    """Rows that may share a table, together; never two base models, data sets, splits or devices.

    Where speed was measured on several devices, the runs stand once in the section of each. FinQA comes first, larger
    sections before smaller.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    sections = []
    for members in groups.values():
        devices = {(speed["device"], speed["hardware"]) for row in members for speed in row.speeds}
        for device, hardware in sorted(devices) or [(None, None)]:
            sections.append(make_section([on_device(row, members, device, hardware) for row in members]))
    titles = Counter(section.title for section in sections)
    for section in sections:
        if titles[section.title] > 1:  # other data of one name, or preprocessed in another way
            first = section.rows[0]
            section.title += f"; data {first.data_fingerprint}, prepared {first.prepared}"
            section.title += f", prompts {first.prompts}" if first.prompts else ""
    return sorted(sections, key=lambda s: (s.rows[0].data != "FinQA", -len(s.rows), s.title))


def shape(row: Row) -> tuple:
    """What makes two merged or quantized models of one base equally fast: how weights are held, and how many bytes."""
    if row.size_gb is None or row.kind in ("qlora", "lora_8bit", "other"):
        return (row.run,)
    return row.quantizer, row.quantizer and (row.bits, row.act_order), row.size_gb


def on_device(row: Row, members: list[Row], device: str | None, hardware: str | None) -> Row:
    """A copy of a row with what was measured on a device: of itself, else of another of ``members`` of its shape.

    Of several others one whose speeds count, of the benchmark call that measured most. Time per question is that of
    reading a prompt of median length and decoding the median answer, whose first token the prefill gives.
    """
    measured = [(member, speed) for member in members for speed in member.speeds]
    measured = [pair for pair in measured if (pair[1]["device"], pair[1]["hardware"]) == (device, hardware)]
    calls = Counter(speed["call"] for _, speed in measured)
    member, speed = min(
        ((member, speed) for member, speed in measured if shape(member) == shape(row)),
        key=lambda pair: (
            pair[1]["decode_tokens_per_s"] is None,
            pair[0] is not row,
            -calls[pair[1]["call"]],
            pair[0].run,
        ),
        default=(row, None),
    )
    here = Row(**vars(row), device=device, hardware=hardware, speed=speed)
    here.speed_of, here.answer_tokens = member.run if speed else None, member.answer_tokens
    vars(here).update({name: speed and speed[name] for name in SPEEDS}, benchmark_call=speed and speed["call"])
    needed = here.prompt_tokens, here.prefill_tokens_per_s, here.answer_tokens, here.decode_tokens_per_s
    here.seconds_per_question = None
    if None not in needed:
        here.seconds_per_question = needed[0] / needed[1] + (needed[2] - 1) / needed[3]
    return here


def make_section(rows: list[Row]) -> Section:
    """A section of these rows, with what depends on the others: frontier, lost accuracy, label.

    Accuracy is lost from the merged run, else from the QLoRA or 8-bit LoRA run, that has the lowest NLL on the
    calibration split: the most accurate one on this split would be so by luck too. It is also lost from phase 1 trained
    longer, of several from what has most seeds, then from what saw most: of the seeds that a run shares with them.
    """
    first = rows[0]
    speed = f"speed on {first.device}: {first.hardware}" if first.device else "speed not measured"
    title = f"{first.base_model}, {first.data or 'unknown data'}, {first.split} ({first.questions} questions); {speed}"
    rows = sorted(rows, key=lambda row: (KINDS.index(row.kind), row.family, -(row.sublayers_left or 0), row.run))
    flags = statistics.frontier([row.share_of_bytes for row in rows], [row.execution_accuracy for row in rows])
    for row, flag in zip(rows, flags, strict=True):
        row.on_frontier = flag
    means = average_seeds(rows)
    candidates = [row for row in means if row.kind in PHASE_1]
    candidates.sort(key=lambda row: (PHASE_1.index(row.kind), row.calibration_nll, -row.execution_accuracy, row.run))
    longer = [row for row in means if row.kind == "longer"]
    longer.sort(key=lambda row: (-len(row.seeds), -(row.total_tokens_seen or 0), row.calibration_nll))
    for row in [*rows, *means]:
        row.reference_run, row.lost = lost_from(candidates, row)
        row.longer_run, row.lost_to_longer = lost_from(longer, row)
        vars(row).update(accuracy_lost(row.lost))
        lost = accuracy_lost(row.lost_to_longer)
        vars(row).update({name.replace("accuracy", "longer"): lost[name] for name in lost if name != "mcnemar_p"})
    for row in means:
        row.chart_label = chart_label(row, [peer for peer in means if peer.name == row.name])
    return Section(title, rows, means)


def lost_from(baselines: list[Row], row: Row) -> tuple[str | None, dict | None]:
    """The runs of the first of ``baselines``, and what a row that is none of them answers less; None where unknown.

    Of a baseline's seeds those count that the row came from, or shares with it.
    """
    if not baselines:
        return None, None
    if row.run in [seed.run for seed in baselines[0].seeds or baselines[:1]]:
        return ", ".join(seed.run for seed in baselines[0].seeds or baselines[:1]), None
    names = [seed.run for seed in shared_seeds(baselines[0], row)[0]]
    return ", ".join(names), compare_rows(baselines[0], row)


def average_seeds(rows: list[Row]) -> list[Row]:
    """The rows, but those of one recipe and size that differ in their seed are one, with the means of their scores.

    Its name, speed and costs are of the seed whose speed was measured, else of the first. The interval of its accuracy
    is of other questions, not of other seeds. Without predictions a row stays by itself, as where a seed occurs twice.
    """
    groups: list[list[Row]] = []
    for row in rows:
        group = next((group for group in groups if all(are_seeds(peer, row) for peer in group)), None)
        if group:
            group.append(row)
        else:
            groups.append([row])
    return [average(group) if len(group) > 1 else Row(**vars(group[0])) for group in groups]


def are_seeds(first: Row, second: Row) -> bool:
    """Whether two rows are of one recipe, trained with other seeds, which are known."""
    sizes = [(row.name, row.sublayers_left, row.size_gb) for row in (first, second)]
    return (
        sizes[0] == sizes[1]
        and first.seed != second.seed
        and None not in first.seed + second.seed
        and alike(first.recipe, second.recipe)
        and compare_rows(first, second) is not None
    )


def average(seeds: list[Row]) -> Row:
    """One row for the seeds of a recipe."""
    seeds = sorted(seeds, key=lambda row: row.seed)
    mean = Row(**vars(min(seeds, key=lambda row: row.speed_of != row.run)) | {"seeds": seeds})
    mean.execution_accuracy = sum(row.execution_accuracy for row in seeds) / len(seeds)
    interval = statistics.bootstrap_mean(list(read_verdicts(seeds).values()))
    mean.execution_accuracy_low, mean.execution_accuracy_high = interval
    mean.calibration_nll = sum(row.calibration_nll for row in seeds) / len(seeds)
    if None not in (programs := [row.program_accuracy for row in seeds]):
        mean.program_accuracy = sum(programs) / len(seeds)
    mean.steps = {}
    for steps, score in [item for row in seeds for item in row.steps.items()]:
        before = mean.steps.get(steps, {"correct": 0, "of": 0})
        mean.steps[steps] = {name: before[name] + score[name] for name in before}
    return mean


def chart_label(row: Row, peers: list[Row]) -> str:
    """What a chart calls a row among those of its method: the method, which joins all depths of a way to drop layers.

    Of several ways, and of runs that nothing else tells apart, each has the run that first dropped layers behind it.
    """
    same = [peer for peer in peers if alike(peer.way, row.way)]
    if clash(same) and len({peer.family for peer in same}) > 1:
        return f"{row.name} ({row.family})"
    return row.name if len(same) == len(peers) else f"{row.name} ({same[0].family})"


def clash(rows: list[Row]) -> bool:
    """Whether two rows are of one depth."""
    return len({row.sublayers_left for row in rows}) < len(rows)


def accuracy_lost(lost: dict | None) -> dict:
    """The columns of a difference in execution accuracy, each None where there is none."""
    low, high = lost["interval"] if lost else (None, None)
    values = {"accuracy_lost": lost and lost["difference"], "accuracy_lost_low": low, "accuracy_lost_high": high}
    rounded = {name: None if value is None else round(value, 5) for name, value in values.items()}
    return rounded | {"mcnemar_p": lost and float(f"{lost['mcnemar_p']:.4g}")}


def shared_seeds(first: Row, second: Row) -> tuple[list[Row], list[Row]]:
    """The single runs of two rows, by which they are compared: where both have runs made of phase 1 of one seed, those.

    Phase 1 of another seed is another model: what two others were made of would be compared too.
    """
    sides = first.seeds or [first], second.seeds or [second]
    ours, theirs = ({row.seed[-1:] for row in side} for side in sides)
    return tuple([row for row in side if row.seed[-1:] in ours & theirs] or side for side in sides)


def compare_rows(first: Row, second: Row, confidence: float = 0.95) -> dict | None:
    """``statistics.compare`` of two rows of a section by the seeds that they share; None without predictions of the
    same questions.
    """
    verdicts = [read_verdicts(side) for side in shared_seeds(first, second)]
    if None in verdicts or set(verdicts[0]) != set(verdicts[1]):
        return None
    return statistics.compare(*verdicts, confidence)


def read_verdicts(seeds: list[Row]) -> dict[str, float] | None:
    """``{question id: share of these runs that answer it correctly}``; None where predictions are not here."""
    verdicts = [read_predictions(seed) for seed in seeds]
    if None in verdicts:
        return None
    return {question: sum(right[question] for right in verdicts) / len(verdicts) for question in verdicts[0]}


def read_predictions(row: Row) -> dict[str, bool] | None:
    """``{question id: whether its execution is correct}`` of a run; None where its predictions are not here."""
    path = row.directory / f"predictions_{row.split}.jsonl"
    if not path.exists():
        return None
    try:  # splitlines() also parts at U+2028
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        verdicts = {record["id"]: record["execution_correct"] for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): evaluate that run again") from None
    if (len(verdicts), sum(verdicts.values())) != (row.questions, row.correct):
        raise UserError(f"{path} does not belong to eval_{row.split}.json beside it: evaluate that run again")
    return verdicts
