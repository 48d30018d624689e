"""Accuracy of a run, of the untuned base model, or of a file of predictions, on one split; or one question to a run.

Reads results/<RUN>/ and the split that the run's data run holds. Writes results/<RUN>/predictions_<SPLIT>.jsonl (one
verdict a question) and eval_<SPLIT>.json, rebuilds results/accuracy.csv, and ends with five predictions in full.

    python evaluate.py --RUN=qlora_4bit
    python evaluate.py --RUN=sapling                                   every depth, sapling/20 and the others
    python evaluate.py --RUN=base                                      BASE_MODEL as it comes
    python evaluate.py --PREDICTIONS=file.json --SPLIT=dev             no model: official format, or JSONL (id, program)
    python evaluate.py --ASK="what was the change in net sales?" --PAGE=file.csv       an answer; writes nothing
"""

from fincompress.settings import check_choice, configure

# -----------------------------------------------------------------------------
# What
RUN: str = "qlora_4bit"  # a finished run ("sapling": all its depths); "base", "base_<anything>": untuned BASE_MODEL
SPLIT: str = "dev"  # "dev" or "test" to report, "calibration" to tune on; or "train"
PREDICTIONS: str | None = None  # score this file instead of a model; gold questions come from DATA_DIR
ASK: str | None = None  # ask RUN this question instead: shows the prompt, the program, each step and the answer
PAGE: str | None = None  # what ASK is about: a page in FinQA's JSON or a table in .csv; None: the first page of SPLIT
# Where
BASE_MODEL: str = "smollm2-135m"  # only for a base; a run knows its own
DATA_RUN: str = "data"  # only for a base
DATA_DIR: str = "data"  # only for PREDICTIONS and for ASK without PAGE: folder of the official JSON, or "synthetic"
RESULTS_DIR: str = "results"  # every run has a folder in here
# How
BATCH_SIZE: int = 64  # questions decoded at once; lower it when memory is short (2 for 7B on a 10 GB GPU)
MAX_NEW_TOKENS: int = 96  # longest output; the longest gold program of FinQA's dev split has 67 tokens (SmolLM2)
# -----------------------------------------------------------------------------
configure(globals())

import dataclasses
import json
from pathlib import Path

import pandas as pd

from fincompress import distributed, lineage, provenance, runs
from fincompress.errors import UserError, run_script
from fincompress.finqa import evidence, examples, numbers, program, prompts, scoring

SPLITS = ("train", "calibration", "dev", "test")


def main() -> None:
    check_choice("SPLIT", SPLIT, SPLITS)
    if PAGE and not ASK:
        raise UserError("PAGE is what a question is about: set ASK too")
    if ASK and PREDICTIONS:
        raise UserError("ASK is a question to a model, PREDICTIONS are scored without one: set one of them")
    if (PREDICTIONS or ASK) and not distributed.is_main():
        return
    if PREDICTIONS:
        check_choice("SPLIT", SPLIT, examples.SPLITS)  # calibration is carved out of train, and is no file
        score_file()
    else:
        for run in runs.with_depths(RESULTS_DIR, RUN):
            (answer if ASK else score_run)(run)


def score_file() -> None:
    """Score PREDICTIONS against the gold questions of DATA_DIR; a question without a prediction is wrong."""
    predictions = scoring.read_predictions(Path(PREDICTIONS))
    run = f"predictions/{Path(PREDICTIONS).stem}"
    directory = runs.run_directory(RESULTS_DIR, run)
    done = directory / f"eval_{SPLIT}.json"
    before = runs.read_json(done).get("predictions") if done.exists() else None
    if before not in (None, str(Path(PREDICTIONS).resolve())):
        raise UserError(f"{done} has the scores of {before}, another file of that name: rename one of them")
    gold = examples.load_dataset(DATA_DIR, splits=(SPLIT,))
    if not all(example.program for example in gold.splits[SPLIT]):
        raise UserError(f"{DATA_DIR}/{SPLIT}.json has questions without answers: nothing to score against")
    questions = [
        vars(example) | {"evidence_location": evidence.evidence_location(example)} for example in gold.splits[SPLIT]
    ]
    answered = sum(question["id"] in predictions for question in questions)
    if not answered:
        raise UserError(
            f"{PREDICTIONS} holds no id of {SPLIT} (its first is {next(iter(predictions), None)}): is SPLIT right?"
        )
    print(f"{answered} of {len(questions)} questions of {SPLIT} are answered by {len(predictions)} predictions")
    verdicts = []
    for question in questions:
        tokens = predictions.get(question["id"])
        output = None if tokens is None else program.detokenize(tokens)
        verdicts.append({"id": question["id"], "output": output} | scoring.score_program(tokens or ["EOF"], question))
    facts = {
        "run": run,
        "predictions": str(Path(PREDICTIONS).resolve()),
        "base_model": None,
        "data": {"source": gold.source, "fingerprint": None},
        "answered": answered,
    }
    write_and_show(directory, facts, verdicts, questions)


def score_run(run: str) -> None:
    """Decode SPLIT with the model of a run and score what it writes."""
    from fincompress import generation, memory, models

    distributed.join()
    models.quiet_libraries()
    device = models.pick_device()
    untuned = runs.is_untuned(run)
    if untuned:
        _, data = runs.load_processed(RESULTS_DIR, DATA_RUN, SPLIT, BASE_MODEL)
        distributed.from_main(lambda: models.base_model_path(BASE_MODEL, RESULTS_DIR))  # made once
        facts = {"base_model": BASE_MODEL, "base_precision": "auto", "data": data["data"]}
        facts["data_hash"] = data["data_hash"]
        facts |= lineage.facts("untuned", RESULTS_DIR)
        if made := models.base_fingerprint(BASE_MODEL):
            facts["source"] = made
        settings = {"BASE_MODEL": BASE_MODEL, "DATA_RUN": DATA_RUN}
        directory = distributed.from_main(lambda: runs.start_run(RESULTS_DIR, run, "evaluate.py", settings, facts))
    else:
        directory = runs.finished_run(RESULTS_DIR, run)
        distributed.from_main(lambda: runs.hold(directory))
    record = runs.read_json(directory / "settings.json")
    dataset, data = load_split(run, record)
    config = models.base_config(record["base_model"], RESULTS_DIR)
    models.room_for_prompt(config, "MAX_NEW_TOKENS", MAX_NEW_TOKENS, max(dataset["prompt_tokens"]))
    path = models.run_path(run, BASE_MODEL, RESULTS_DIR)
    dtype, reason = models.pick_dtype(device, path)
    decoding = {"MAX_NEW_TOKENS": MAX_NEW_TOKENS, "dtype": str(dtype).partition(".")[2], "questions": len(dataset)}
    done = directory / f"eval_{SPLIT}.json"
    questions = [list(dataset[name]) for name in ("id", "prompt", "program", "exe_ans", "table")]
    asked = provenance.fingerprint(record, decoding, BATCH_SIZE, *questions)
    if done.exists() and runs.read_json(done).get("asked") == asked:
        print(f"{run}: {SPLIT} is evaluated already, skipped (remove {done} to do it again)")
        if distributed.is_main():
            show_table()
        return
    print(f"{run} on {len(dataset)} questions of {SPLIT} ({data['data']['source']}); {device.type}, {reason}")
    tokens = max(dataset["prompt_tokens"]) + MAX_NEW_TOKENS
    options = models.offload_if_needed(path, device, BATCH_SIZE, tokens)
    memory.reset_peak()  # that of the depth before
    model, tokenizer = models.load_run(path, RESULTS_DIR, device, dtype, **options)
    rows = dataset.remove_columns("input_ids")
    questions = [row | {name: json.loads(row[name]) for name in ("exe_ans", "table")} for row in rows]
    kept = generation.KeptOutputs(directory, f"decoded_{SPLIT}", asked)
    if kept.rows:
        print(f"resuming behind {len(kept.rows)} questions")
    clock = runs.Stopwatch()
    outputs = generation.generate(model, tokenizer, dataset, BATCH_SIZE, MAX_NEW_TOKENS, kept)
    seconds = clock.seconds()
    if not distributed.is_main():
        return

    verdicts = []
    for question, output in zip(questions, outputs, strict=True):
        tokens = program.tokenize(program.extract_program(output["output"]))
        verdicts.append({"id": question["id"], **output, **scoring.score_program(tokens, question)})
    size = models.size_gb(None if untuned else directory, record["base_model"], RESULTS_DIR)
    facts = {
        "run": run,
        "base_model": record["base_model"],
        "base_precision": record["base_precision"],
        "size_gb": round(size, 4),
        "share_of_base": round(size / models.size_gb(None, record["base_model"], RESULTS_DIR), 4),
        "data": record["data"],
        "evidence_mode": data["settings"]["EVIDENCE"],  # "evidence" is the breakdown by where it lies
        "asked": asked,  # a fingerprint of the run, the questions and how they were decoded
        "decoding": decoding,
        "batch_size": BATCH_SIZE,  # in 16 bits it changes a few answers in a hundred
        "ended_by_themselves": sum(verdict["ended"] for verdict in verdicts),
        "seconds": None if kept.rows else round(seconds, 1),  # of all, unless it resumed
        "peak_memory_gb": memory.peak_memory_gb(),
    }
    print(f"{facts['ended_by_themselves']} of {len(verdicts)} outputs ended by themselves")
    write_and_show(directory, facts, verdicts, questions)
    kept.remove()


def load_split(run: str, record: dict) -> tuple:
    """SPLIT of the data run that a run was trained on, and the record of that data run.

    Raises UserError where it holds other data, and where a split of the training file may have been drawn otherwise.
    """
    data_run = record["settings"]["DATA_RUN"]
    dataset, data = runs.load_processed(RESULTS_DIR, data_run, SPLIT, record["base_model"])
    if data["data"] != record["data"]:
        raise UserError(f"data run {data_run!r} holds other data than {run} was trained on: preprocess it again")
    if SPLIT not in ("dev", "test") and record["data_hash"] != data["data_hash"]:
        raise UserError(
            f"data run {data_run!r} was made otherwise when {run} was trained, perhaps on questions that {SPLIT} has "
            "now: preprocess it as it was"
        )
    return dataset, data


def answer(run: str) -> None:
    """Ask a run, or the untuned base model, ASK about a page, and show how the answer comes about."""
    import datasets

    from fincompress import generation, models

    models.quiet_libraries()
    device = models.pick_device()
    path = models.run_path(run, BASE_MODEL, RESULTS_DIR)
    data_run = DATA_RUN
    if not runs.is_untuned(run):
        data_run = runs.read_json(Path(path) / "settings.json")["settings"]["DATA_RUN"]
    data = runs.read_json(runs.finished_run(RESULTS_DIR, data_run, "data_report.json") / "settings.json")
    page = examples.read_page(Path(PAGE), ASK) if PAGE else first_page(data_run, data)
    options = models.offload_if_needed(path, device, 1, data["settings"]["MAX_PROMPT_TOKENS"] + MAX_NEW_TOKENS)
    model, tokenizer = models.load_run(path, RESULTS_DIR, device, models.pick_dtype(device, path)[0], **options)
    prompts.check_fit([page], data["settings"], tokenizer)
    prompt, _ = prompts.build_prompt(page, data["settings"], tokenizer)
    asked = datasets.Dataset.from_list([prompts.encode(prompt, "", tokenizer)])
    models.room_for_prompt(model.config, "MAX_NEW_TOKENS", MAX_NEW_TOKENS, asked[0]["prompt_tokens"])
    (output,) = generation.generate(model, tokenizer, asked, 1, MAX_NEW_TOKENS)
    text = program.extract_program(output["output"])
    tokens = program.tokenize(text)
    print(f"\n{run} was shown:\n\n{prompt}\nprogram  {text}")
    for number, (step, value) in enumerate(program.steps(tokens, page.table)):
        print(f"  #{number}  {step}  =  {'cannot be computed' if value is None else value}")
    value = program.execute(tokens, page.table)
    print(f"answer   {'none' if value is None else value}")


def first_page(data_run: str, data: dict) -> examples.Example:
    """The page of the first question of SPLIT, from DATA_DIR; a data run keeps no pages, only what its prompts show."""
    split, _ = runs.load_processed(RESULTS_DIR, data_run, SPLIT)
    directory = examples.SYNTHETIC if data["data"]["source"] == examples.SYNTHETIC else DATA_DIR
    # calibration is carved out of train
    name = SPLIT if SPLIT in examples.SPLITS else "train"
    pages = examples.load_dataset(directory, data["settings"]["SEED"], (name,)).splits[name]
    first, table = split[0]["id"], json.loads(split[0]["table"])
    page = next((example for example in pages if example.id == first and example.table == table), None)
    if page is None:
        raise UserError(
            f"{directory}/{name}.json lacks question {first}: set DATA_DIR to the data of this run, or PAGE"
        )
    question = numbers.release_text(numbers.part_units(ASK))
    return dataclasses.replace(page, question=question, gold_inds={})  # what answers this question is not known


def write_and_show(directory: Path, facts: dict, verdicts: list[dict], questions: list[dict]) -> None:
    """Write the verdicts and their summary, then show five predictions and the table; without answers no summary."""
    (directory / f"eval_{SPLIT}.json").unlink(missing_ok=True)  # a kill between the two leaves none, not one of each
    runs.write_jsonl(directory / f"predictions_{SPLIT}.jsonl", verdicts)
    if not all(question["program"] for question in questions):
        print(f"not scored: no answers; wrote {directory}/predictions_{SPLIT}.jsonl")
        return
    summary = {**facts, "split": SPLIT, **scoring.summarize(verdicts, questions)}
    runs.write_json(directory / f"eval_{SPLIT}.json", summary)
    step = max(1, len(questions) // 5)
    for verdict, question in list(zip(verdicts, questions, strict=True))[::step][:5]:
        print(f"\n  question  {question['question']}")
        print(f"  output    {verdict['output']!r}")
        print(f"  program   {verdict['program']}  ->  {verdict['value']}")
        verdict_word = "right" if verdict["execution_correct"] else "WRONG"
        print(f"  gold      {question['program']}  ->  {question['exe_ans']}   {verdict_word}")
    show_table()
    print(f"wrote {directory}/eval_{SPLIT}.json and predictions_{SPLIT}.jsonl, {RESULTS_DIR}/accuracy.csv")


def show_table() -> None:
    """Rebuild results/accuracy.csv from every evaluation, and print the rows of this split."""
    rows = runs.accuracy_table(RESULTS_DIR)
    runs.write_csv(Path(RESULTS_DIR) / "accuracy.csv", rows)
    table = pd.DataFrame(rows)
    shown = ["run", "base_model", "data", "questions", "share_of_bytes", "execution_accuracy"]
    shown += ["execution_accuracy_low", "execution_accuracy_high", "program_accuracy"]
    print("\n" + table[table["split"] == SPLIT][shown].to_string(index=False, float_format="{:.1%}".format, na_rep="-"))


if __name__ == "__main__":
    run_script(main)
