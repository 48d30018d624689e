"""How much of the evidence a program needs is on show, by token budget: this ranker against plain BM25.

Evidence recall is the share of examples whose gold program finds all its numbers, and the rows of its table operations,
in the lines on show; numbers in the question count, since every prompt holds it. Both rankers order the same compact
lines under the same header. Reads train.json and dev.json from DATA_DIR and writes nothing.

    python benchmarks/evidence_recall.py --DATA_DIR=data                 the table, about a minute on one core
    python benchmarks/evidence_recall.py --DATA_DIR=data --FIT=True      fit evidence.WEIGHTS on train and print them

The weights in use were fitted on 1,964 of the 6,251 training examples and saw nothing of dev. Recall on train is thus
that of the fit, but seven weights do not learn a split by heart: 5-fold cross-validation over companies is within 0.1
points of it at each budget.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
DATA_DIR: str = "data"  # folder with train.json and dev.json
RESULTS_DIR: str = "results"  # where the embedded base model is converted to, once
BASE_MODEL: str = "smollm2-135m"  # whose tokens are counted: smollm2-135m (embedded), a folder or a hub id
BUDGETS: list[int] = [128, 160, 192, 224, 256, 320, 400]  # tokens of evidence with newlines and table header
FIT: bool = False  # fit the weights of evidence.rank on train and print them
# -----------------------------------------------------------------------------
configure(globals())

import json

import numpy as np
from tqdm import tqdm

from fincompress import models
from fincompress.errors import run_script
from fincompress.finqa import evidence, examples, numbers

RANKERS = ("evidence.rank", "plain BM25")


def main() -> None:
    if FIT:
        print_fit(examples.load_dataset(DATA_DIR, splits=("train",)).splits["train"])
        return
    models.quiet_libraries()
    tokenizer = models.load_tokenizer(models.base_model_path(BASE_MODEL, RESULTS_DIR))
    results = []
    print(f"{'split':<6}{'ranker':<16}" + "".join(f"{b:>8}" for b in BUDGETS))
    for split in ("train", "dev"):
        for result in measure(split, examples.load_dataset(DATA_DIR, splits=(split,)).splits[split], tokenizer):
            results.append(result)
            shares = "".join(f"{share:8.4f}" for share in result["recall"].values())
            print(f"{split:<6}{result['ranker']:<16}{shares}", flush=True)
    print(json.dumps(results))


def measure(split: str, pages: list[examples.Example], tokenizer) -> list[dict]:
    """Evidence recall of one split: a dict for each ranker, ``recall`` by budget as a share."""
    shown = {ranker: np.zeros(len(BUDGETS)) for ranker in RANKERS}
    for example in tqdm(pages, desc=split, unit="example", leave=False):
        lines = evidence.page_lines(example)
        texts = [f"{line.text}\n" for line in lines]
        costs = [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
        rank = evidence.rank(example, lines)
        bm25 = [features["bm25"] for features in evidence.line_features(example, lines)]
        for ranker, scores in zip(RANKERS, (rank, bm25), strict=True):
            for column, budget in enumerate(BUDGETS):
                chosen = [lines[i] for i in evidence.fill_budget(lines, scores, costs, budget)]
                shown[ranker][column] += evidence.shows_program(example, chosen)
    return [
        {
            "split": split,
            "examples": len(pages),
            "ranker": ranker,
            "recall": dict(zip(map(str, BUDGETS), (counts / len(pages)).round(4).tolist(), strict=True)),
        }
        for ranker, counts in shown.items()
    ]


def print_fit(pages: list[examples.Example]) -> None:
    """Fit a logistic regression of "the program needs this line" by Newton's method, with a penalty of 1 on
    the squared weights, and print these.

    A number that several lines hold makes each of them a needed line, of a weight that is shared among them.
    """
    rows, needed, weights = [], [], []
    for example in tqdm(pages, desc="fit", unit="example", leave=False):
        lines = evidence.page_lines(example)
        named = evidence.rows_needed(example)
        asked = evidence.numbers_needed(example.program) - numbers.numbers_in(example.question)
        matches = [numbers.numbers_in(line.text) & asked for line in lines]
        holders = {number: sum(number in held for held in matches) for number in asked}
        for line, features, held in zip(lines, evidence.line_features(example, lines), matches, strict=True):
            if line.key != evidence.HEADER:  # which is always shown, whatever its score
                rows.append([features[name] for name in evidence.WEIGHTS])
                needed.append(bool(held) or line.key in named)
                weights.append(1 / min([holders[number] for number in held], default=1))
    x, y, w = np.array(rows), np.array(needed, float), np.array(weights)
    beta = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-x @ beta))
        gradient = x.T @ (w * (y - p)) - beta
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x + np.eye(len(beta))
        beta += np.linalg.solve(hessian, gradient)
    for name, weight in zip(evidence.WEIGHTS, beta, strict=True):
        print(f'    "{name}": {weight:.2f},')


if __name__ == "__main__":
    run_script(main)
