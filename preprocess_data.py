"""Phase 0: FinQA pages to tokenised prompts and programs.

Reads FinQA's official JSON (train.json, dev.json, test.json) from DATA_DIR, or generates the synthetic set. Writes
results/<RUN>/: one memory-mapped split each for train, calibration (whole pages carved out of train), dev and test,
data_report.json and settings.json.

    python preprocess_data.py                                          the synthetic set: no data, no network
    python preprocess_data.py --DATA_DIR=data --RUN=finqa_data --TRAIN_EXAMPLES=None --EVAL_EXAMPLES=None \\
        --EVIDENCE_TOKENS=160                                          FinQA, all of it; downloaded where it is absent
"""

from fincompress.settings import check_choice, configure

# -----------------------------------------------------------------------------
# Where
BASE_MODEL: str = "smollm2-135m"  # whose tokenizer: smollm2-135m (embedded), a folder, a hub id, or shape:<name>
DATA_DIR: str = "synthetic"  # the generated set, or a folder of FinQA's JSON; into "data" it is downloaded
EXTRA_DATA_DIR: str | None = None  # a folder of TAT-QA's JSON, whose arithmetic questions are trained on as well
PAGE_QUESTIONS: int = 0  # so many further questions are made from the tables and sentences of training pages
RESULTS_DIR: str = "results"  # every run gets a folder in here
RUN: str = "data"  # name of this run; the training scripts take it as DATA_RUN
# What a prompt shows
EVIDENCE: str = "retrieved"  # "retrieved" (best-ranked lines), "page" (all that fits) or "gold" (an upper bound)
EVIDENCE_TOKENS: int | None = 64  # budget for retrieved evidence, in tokens; None: as much as MAX_PROMPT_TOKENS allows
MAX_PROMPT_TOKENS: int = 256  # longest prompt; the least relevant lines go first, never question or table header
# Splits
CALIBRATION_EXAMPLES: int = 128  # carved out of train for tuning and pruning decisions; dev and test are never tuned on
TRAIN_EXAMPLES: int | None = 700  # keep only so many training examples; None: all
EVAL_EXAMPLES: int | None = 400  # keep only so many of dev and test; None: all
SEED: int = 0  # of the calibration draw, of questions made from pages and of the synthetic set
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import itertools
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fincompress import provenance, runs
from fincompress.errors import UserError, run_script
from fincompress.finqa import evidence, examples, from_pages, prompts, tatqa


def main() -> None:
    check_choice("EVIDENCE", EVIDENCE, evidence.MODES)
    runs.run_directory(RESULTS_DIR, RUN)  # refuses a name before a base model is converted
    dataset = examples.load_dataset(DATA_DIR, SEED)
    print(f"data: {dataset.source}")
    train, calibration = examples.carve_calibration(dataset.splits["train"], CALIBRATION_EXAMPLES, SEED)
    import datasets  # these libraries take seconds: what is wrong with the data is said before

    from fincompress import models

    models.quiet_libraries()
    datasets.disable_progress_bars()
    tokenizer = models.load_tokenizer(models.base_model_path(BASE_MODEL, RESULTS_DIR))
    facts = {"base_model": BASE_MODEL, "data": {"source": dataset.source, "fingerprint": dataset.fingerprint}}
    extra, extra_report = tatqa.load(EXTRA_DATA_DIR) if EXTRA_DATA_DIR else ([], None)
    facts["extra"] = {name: extra_report[name] for name in ("source", "fingerprint")} if extra else None
    train = train[:TRAIN_EXAMPLES] + extra
    held_out = {name: dataset.splits[name] for name in ("dev", "test") if name in dataset.splits}
    made = from_pages.make(train, PAGE_QUESTIONS, SEED, list(itertools.chain(calibration, *held_out.values())))
    splits = {"train": train + made, "calibration": calibration}
    splits |= {name: split[:EVAL_EXAMPLES] for name, split in held_out.items()}
    if made:  # pages of held-out splits are left out, so that other ones leave other questions
        facts["page_questions"] = provenance.fingerprint(*([example.question, example.program] for example in made))
    examples.check_pages_disjoint(splits)
    prompts.check_fit([example for split in splits.values() for example in split], SETTINGS, tokenizer)
    added = facts["extra"], facts.get("page_questions")
    facts["data_hash"] = provenance.fingerprint(runs.deciding(SETTINGS), facts["data"], *added)
    directory = runs.start_run(RESULTS_DIR, RUN, "preprocess_data.py", SETTINGS, facts, done="data_report.json")
    if directory is None:
        check_test_split(runs.run_directory(RESULTS_DIR, RUN), dataset)
        return
    report = {
        "source": dataset.source,
        "skipped": dataset.skipped,
        "extra": extra_report,
        "made_from_pages": len(made),
        "test_fingerprint": dataset.test,
        "missing_splits": [split for split in examples.SPLITS if split not in dataset.splits],
        "calibration_ids": [example.id for example in calibration],
        "splits": {},
    }
    for name, split in splits.items():
        rows = [encode(example, tokenizer) for example in tqdm(split, desc=name, unit="example")]
        with runs.atomic_path(directory / name) as partial:
            datasets.Dataset.from_list(rows).save_to_disk(str(partial))
        report["splits"][name] = describe(rows)
    runs.write_json(directory / "data_report.json", report)
    print_report(report)
    print(f"wrote {directory}/: {', '.join(splits)}, data_report.json, settings.json")


def check_test_split(directory: Path, dataset: examples.Dataset) -> None:
    """Raise UserError where a finished run holds another test split, which is no part of a run's identity."""
    before = runs.read_json(directory / "data_report.json").get("test_fingerprint")
    if before and dataset.test not in (None, before):
        raise UserError(f"test.json has changed since {directory}/ was made of it: remove that folder to read it again")


def encode(example: examples.Example, tokenizer) -> dict:
    """One row: ``input_ids`` is prompt + target + EOS; the rest is what training and scoring need to know of it."""
    prompt, lines = prompts.build_prompt(example, SETTINGS, tokenizer)
    ids = prompts.encode(prompt, example.program, tokenizer)
    target_tokens = len(ids["input_ids"]) - ids["prompt_tokens"]
    return {
        "id": example.id,
        **ids,
        "target_tokens": target_tokens,
        "length": len(ids["input_ids"]),
        "prompt": prompt,
        "question": example.question,
        "program": example.program,
        "exe_ans": json.dumps(example.exe_ans),  # a number or yes/no: one column needs one type
        "table": json.dumps(example.table),
        "evidence_location": evidence.evidence_location(example) if example.program else "unknown",
        "evidence_shown": bool(example.program) and evidence.shows_program(example, lines),
        "lines_dropped": len(evidence.page_lines(example)) - len(lines),
    }


def describe(rows: list[dict]) -> dict:
    """What the report says of one split."""
    lengths = [row["prompt_tokens"] for row in rows]
    return {
        "examples": len(rows),
        "prompt_tokens": {f"p{p}": int(np.percentile(lengths, p)) for p in (5, 50, 95, 100)},
        "target_tokens": {
            f"p{p}": int(np.percentile([row["target_tokens"] for row in rows], p)) for p in (50, 95, 100)
        },
        "total_tokens": sum(row["length"] for row in rows),
        "share_that_lost_lines": round(float(np.mean([row["lines_dropped"] > 0 for row in rows])), 4),
        "evidence_recall": round(float(np.mean([row["evidence_shown"] for row in rows])), 4),
    }


def print_report(report: dict) -> None:
    if extra := report["extra"]:
        reasons = "; ".join(f"{count} left out: {reason}" for reason, count in extra["left_out"].items())
        print(f"  and {extra['usable']} arithmetic questions of {extra['source']}, {reasons}")
    if report["made_from_pages"]:
        print(f"  and {report['made_from_pages']} questions made from training pages")
    for split in report["missing_splits"]:
        print(f"  no {split} split: there is no {split}.json in {DATA_DIR}/")
    print(f"{'split':<12}{'examples':>9}{'prompt p50':>11}{'p95':>6}{'max':>6}{'evidence recall':>17}")
    for name, split in report["splits"].items():
        p = split["prompt_tokens"]
        print(
            f"{name:<12}{split['examples']:>9}{p['p50']:>11}{p['p95']:>6}{p['p100']:>6}{split['evidence_recall']:>17.3f}"
        )


if __name__ == "__main__":
    run_script(main)
