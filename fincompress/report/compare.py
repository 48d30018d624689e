"""Two recipes on the same questions: the difference of their accuracies, and what chance could make of it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from fincompress.errors import UserError
from fincompress.report import table

RESAMPLES = 10_000


def verdicts(results_dir: str, run: str, split: str) -> dict[str, bool]:
    """``{question id: whether the run answers it correctly}`` from its predictions.

    Raises UserError where they are missing or damaged.
    """
    path = Path(results_dir) / run / f"predictions_{split}.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return {record["id"]: bool(record["execution_correct"]) for record in records}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: evaluate that run again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): evaluate that run again") from None


def compare(results_dir: str, rows: pd.DataFrame, first: str, second: str) -> dict:
    """Accuracy of the runs ``first`` minus that of ``second``, both patterns with ``*`` for the seeds.

    ``rows`` is a section of ``table.read``. Where both sides have several seeds, those that both have are compared.
    Returns ``difference``, ``questions`` (95 % interval of other questions), ``seeds`` (of other questions and other
    seeds, None with one seed), ``accuracies`` of both sides and the number ``of_seeds``.
    """
    sides = [table.select(rows, pattern).set_index("seed")["run"] for pattern in (first, second)]
    shared = sorted(set(sides[0].index) & set(sides[1].index))
    paired = len(shared) > 1
    if paired:
        sides = [side[shared] for side in sides]
    split = rows["split"].iloc[0]
    answers = [[verdicts(results_dir, run, split) for run in side] for side in sides]
    questions = list(answers[0][0])
    if any(set(one) != set(questions) for side in answers for one in side):
        raise UserError(f"{first!r} and {second!r} were not asked the same questions")
    right = [np.array([[one[question] for question in questions] for one in side], dtype=float) for side in answers]
    apart = right[0].mean(axis=0) - right[1].mean(axis=0)
    return {
        "accuracies": [float(side.mean()) for side in right],
        "difference": float(apart.mean()),
        "questions": interval(apart),
        "seeds": over_seeds(*right) if paired else None,
        "of_seeds": [len(side) for side in right],
    }


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean, questions drawn again (Efron 1979)."""
    drawn = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=RESAMPLES, rng=0, batch=1000)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def over_seeds(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % interval of the difference of two means, questions and seeds drawn again; arrays are (seeds, questions) of
    the same seeds, which a draw gives to both sides.
    """
    generator, apart = np.random.default_rng(0), first - second
    count, questions = apart.shape
    means = []
    for _ in range(RESAMPLES):
        weights = np.bincount(generator.integers(count, size=count), minlength=count) / count
        means.append((weights @ apart)[generator.integers(questions, size=questions)].mean())
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def sentence(first: str, second: str, compared: dict) -> str:
    """One comparison in words, in points of a percent."""

    def points(value: float) -> str:
        return f"{100 * value:+.1f}"

    ours, theirs = (f"{100 * value:.1f} %" for value in compared["accuracies"])
    text = f"{first} {ours}, {second} {theirs}: {points(compared['difference'])} points"
    for name in ("questions", "seeds"):
        if compared[name]:
            covers = "questions and seeds" if name == "seeds" else "questions"
            text += f"; 95 %, {covers}: {points(compared[name][0])} to {points(compared[name][1])}"
    return text
