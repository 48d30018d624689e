"""Accuracy of a run, of the untuned base model, or of a file of predictions, on one split.

Reads results/<RUN>/ and the split that the run's data run holds. Writes results/<RUN>/predictions_<SPLIT>.jsonl (one
verdict a question) and eval_<SPLIT>.json, rebuilds results/accuracy.csv, and ends with five predictions in full.

    python evaluate.py --RUN=qlora_4bit
    python evaluate.py --RUN=sapling                                   every depth, sapling/40 and the others
    python evaluate.py --RUN=base                                      BASE_MODEL as it comes
    python evaluate.py --PREDICTIONS=file.json --SPLIT=dev             no model: official format, or JSONL (id, program)
"""

from fincompress.settings import check_choice, check_positive, configure

# -----------------------------------------------------------------------------
# What
RUN = "qlora_4bit"  # a finished run ("sapling": all its depths); "base", "base_<anything>": BASE_MODEL, not trained
SPLIT = "dev"  # "dev" or "test" to report, "calibration" to tune on
PREDICTIONS: str | None = None  # score this file instead of a model; gold questions come from DATA_DIR
# Where
BASE_MODEL = "smollm2-135m"  # only for a base; a run knows its own
DATA_RUN = "data"  # only for a base
DATA_DIR = "data"  # only for PREDICTIONS: folder of the official JSON, or "synthetic"
RESULTS_DIR = "results"  # every run has a folder in here
# How
BATCH_SIZE = 128  # questions decoded at once; lower it when memory is short (2 for 7B on a 10 GB GPU)
MAX_NEW_TOKENS = 96  # longest output; the longest gold program of FinQA's dev split has 67 tokens (SmolLM2)
SEED = 0  # only for the synthetic set
# -----------------------------------------------------------------------------
configure(globals())

import json  # noqa: E402
from pathlib import Path  # noqa: E402

from fincompress import provenance, runs  # noqa: E402
from fincompress.errors import UserError, run_script  # noqa: E402
from fincompress.finqa import evidence, examples, program, scoring  # noqa: E402
from fincompress.report import tables  # noqa: E402

SPLITS = ("train", "calibration", "dev", "test")


def main() -> None:
    check_choice("SPLIT", SPLIT, SPLITS)
    check_positive(BATCH_SIZE=BATCH_SIZE, MAX_NEW_TOKENS=MAX_NEW_TOKENS)
    if PREDICTIONS:
        check_choice("SPLIT", SPLIT, examples.SPLITS)  # calibration is carved out of train, and is no file
        score_file()
    else:
        for run in runs.with_depths(RESULTS_DIR, RUN):
            score_run(run)


def score_file() -> None:
    """Score PREDICTIONS against the gold questions of DATA_DIR; a question without a prediction is wrong."""
    predictions = scoring.read_predictions(Path(PREDICTIONS))
    source, gold = examples.load_split(DATA_DIR, SPLIT, SEED)
    unknown = sorted(set(predictions) - {example.id for example in gold})
    if len(unknown) == len(predictions):
        raise UserError(f"{PREDICTIONS} holds no id of {SPLIT} (its first is {unknown[0]}): is SPLIT right?")
    if unknown:
        print(f"{len(unknown)} predictions are for questions that {SPLIT} does not have, such as {unknown[0]}: ignored")
    questions = [
        {"id": e.id, "question": e.question, "program": e.program, "exe_ans": e.exe_ans, "table": e.table,
         "evidence_location": evidence.evidence_location(e)}
        for e in gold
    ]  # fmt: skip
    verdicts = []
    for question in questions:
        tokens = predictions.get(question["id"])
        output = None if tokens is None else program.detokenize(tokens)
        verdict = scoring.score_program(tokens or ["EOF"], question)
        verdicts.append({"id": question["id"], "output": output} | verdict)
    facts = {
        "run": f"predictions/{Path(PREDICTIONS).stem}",
        "base_model": None,
        "data": {"source": source, "fingerprint": None},
        "answered": sum(question["id"] in predictions for question in questions),
    }
    write_and_show(runs.run_directory(RESULTS_DIR, facts["run"]), facts, verdicts, questions)


def score_run(run: str) -> None:
    """Decode SPLIT with the model of a run, greedily, and score what it writes."""
    from fincompress import generation, memory, models

    models.quiet_libraries()
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    untuned = runs.is_untuned(run)
    if untuned:
        _, data = runs.load_processed(RESULTS_DIR, DATA_RUN, SPLIT, BASE_MODEL)
        facts = {"base_model": BASE_MODEL, "base_precision": "auto", "data": data["data"]}
        settings = {"BASE_MODEL": BASE_MODEL, "DATA_RUN": DATA_RUN}
        directory = runs.start_run(RESULTS_DIR, run, "evaluate.py", settings, facts)
    else:
        directory = runs.finished_run(RESULTS_DIR, run)
    record = runs.read_json(directory / "settings.json")
    data_run = record["settings"]["DATA_RUN"]
    dataset, data = runs.load_processed(RESULTS_DIR, data_run, SPLIT)
    if data["data"] != record["data"]:
        raise UserError(f"data run {data_run!r} holds other data than {run} was trained on: preprocess it again")
    decoding = {"MAX_NEW_TOKENS": MAX_NEW_TOKENS, "dtype": str(dtype).partition(".")[2], "questions": len(dataset)}
    prepared = provenance.fingerprint(data["settings"])
    done = directory / f"eval_{SPLIT}.json"
    before = runs.read_json(done) if done.exists() else {}
    if (before.get("decoding"), before.get("prepared")) == (decoding, prepared):
        print(f"{run}: {SPLIT} is evaluated already, skipped (remove {done} to do it again)")
        show_table()
        return
    print(f"{run} on {len(dataset)} questions of {SPLIT} ({data['data']['source']}); {device.type}, {reason}")
    path = models.base_model_path(BASE_MODEL, RESULTS_DIR) if untuned else str(directory)
    options = {}
    if untuned or (directory / "config.json").exists():
        longest = max(dataset["prompt_tokens"]) + MAX_NEW_TOKENS
        options = models.offload_if_needed(path, device, BATCH_SIZE, longest)
    if untuned:
        model = models.load_base(path, "auto", device, dtype, **options).eval()
        tokenizer = models.load_tokenizer(path)
    else:
        model, tokenizer = models.load_run(directory, RESULTS_DIR, device, dtype, **options)
    clock = runs.Stopwatch()
    outputs = generation.generate(model, tokenizer, dataset, BATCH_SIZE, MAX_NEW_TOKENS)
    seconds = clock.seconds()

    questions, verdicts = [], []
    for row, output in zip(dataset.remove_columns("input_ids"), outputs, strict=True):
        question = row | {"exe_ans": json.loads(row["exe_ans"]), "table": json.loads(row["table"])}
        verdict = scoring.score_program(program.tokenize(program.extract_program(output["output"])), question)
        questions.append(question)
        verdicts.append({"id": row["id"], **output, **verdict})
    size = models.size_gb(None if untuned else directory, record["base_model"], RESULTS_DIR)
    facts = {
        "run": run,
        "base_model": record["base_model"],
        "base_precision": record["base_precision"],
        "size_gb": round(size, 4),
        "share_of_base": round(size / models.size_gb(None, record["base_model"], RESULTS_DIR), 4),
        "data": record["data"],
        "evidence_mode": data["settings"]["EVIDENCE"],  # "evidence" is the breakdown by where it lies
        "prepared": prepared,
        "decoding": decoding,
        "ended_by_themselves": sum(verdict["ended"] for verdict in verdicts),
        "seconds": round(seconds, 1),
        "peak_memory_gb": memory.peak_memory_gb(),
    }
    write_and_show(directory, facts, verdicts, questions)


def write_and_show(directory: Path, facts: dict, verdicts: list[dict], questions: list[dict]) -> None:
    """Write the verdicts and their summary, then show five predictions, the summary line and the table."""
    summary = {**facts, "split": SPLIT, **scoring.summarize(verdicts, questions)}
    runs.write_jsonl(directory / f"predictions_{SPLIT}.jsonl", verdicts)
    runs.write_json(directory / f"eval_{SPLIT}.json", summary)
    step = max(1, len(questions) // 5)
    for verdict, question in list(zip(verdicts, questions, strict=True))[::step][:5]:
        print(f"\n  question  {question['question']}")
        print(f"  output    {verdict['output']!r}")
        print(f"  program   {verdict['program']}  ->  {verdict['value']}")
        verdict_word = "right" if verdict["execution_correct"] else "WRONG"
        print(f"  gold      {question['program']}  ->  {question['exe_ans']}   {verdict_word}")
    if "ended_by_themselves" in facts:
        print(f"\n{facts['ended_by_themselves']} of {len(verdicts)} outputs ended by themselves", end=", ")
        print(f"{sum(not verdict['invalid'] for verdict in verdicts)} could be executed")
    show_table()
    if (directory / "quantize_metrics.json").exists():
        tables.write_quantization_report(RESULTS_DIR)
    print(f"wrote {directory}/eval_{SPLIT}.json and predictions_{SPLIT}.jsonl, {RESULTS_DIR}/accuracy.csv")


def show_table() -> None:
    """Rebuild results/accuracy.csv from every evaluation, and print the rows of this split."""
    rows = runs.accuracy_table(RESULTS_DIR)
    runs.write_csv(Path(RESULTS_DIR) / "accuracy.csv", rows)
    width = 2 + max([16, *(len(row["run"]) for row in rows if row["split"] == SPLIT)])
    line = f"{{:<{width}}}" + "{:<14}{:<11}{:<12}{:>9}{:>7}  {:<22}{}"
    titles = ("run", "base model", "data", "split", "questions", "size", "execution accuracy", "program accuracy")
    print("\n" + line.format(*titles))
    for row in (row for row in rows if row["split"] == SPLIT):
        shown = ["-", "-"]
        for i, name in enumerate(("execution_accuracy", "program_accuracy")):
            if row[name] is not None:
                shown[i] = f"{row[name]:.1%} [{row[name + '_low']:.1%}, {row[name + '_high']:.1%}]"
        size = "-" if row["share_of_bytes"] is None else f"{row['share_of_bytes']:.0%}"
        model = str(row["base_model"])[-13:]
        print(line.format(row["run"], model, row["data"], SPLIT, row["questions"], size, *shown))


if __name__ == "__main__":
    run_script(main)
