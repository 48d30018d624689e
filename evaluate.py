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
BEAMS = 1  # more: of so many programs, the likeliest that executes on figures which the prompt shows; slower
SEED = 0  # only for the synthetic set
# -----------------------------------------------------------------------------
configure(globals())

import json  # noqa: E402
from pathlib import Path  # noqa: E402

import pandas as pd  # noqa: E402

from fincompress import runs  # noqa: E402
from fincompress.errors import UserError, run_script  # noqa: E402
from fincompress.finqa import evidence, examples, program, scoring  # noqa: E402
from fincompress.report import tables  # noqa: E402

SPLITS = ("train", "calibration", "dev", "test")


def main() -> None:
    check_choice("SPLIT", SPLIT, SPLITS)
    check_positive(BATCH_SIZE=BATCH_SIZE, MAX_NEW_TOKENS=MAX_NEW_TOKENS, BEAMS=BEAMS)
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
    questions = [vars(example) | {"evidence_location": evidence.evidence_location(example)} for example in gold]
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
        "run": f"predictions/{Path(PREDICTIONS).stem}",
        "base_model": None,
        "data": {"source": source, "fingerprint": None},
        "answered": answered,
    }
    write_and_show(runs.run_directory(RESULTS_DIR, facts["run"]), facts, verdicts, questions)


def score_run(run: str) -> None:
    """Decode SPLIT with the model of a run and score what it writes."""
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
    if BEAMS > 1:
        decoding["beams"] = BEAMS
    prepared = runs.prepared(data)
    done = directory / f"eval_{SPLIT}.json"
    before = runs.read_json(done) if done.exists() else {}
    if (before.get("decoding"), before.get("prepared")) == (decoding, prepared):
        print(f"{run}: {SPLIT} is evaluated already, skipped (remove {done} to do it again)")
        show_table()
        return
    print(f"{run} on {len(dataset)} questions of {SPLIT} ({data['data']['source']}); {device.type}, {reason}")
    path = models.base_model_path(BASE_MODEL, RESULTS_DIR) if untuned else str(directory)
    options = models.offload_if_needed(path, device, BATCH_SIZE, max(dataset["prompt_tokens"]) + MAX_NEW_TOKENS)
    model, tokenizer = models.load_run(path, RESULTS_DIR, device, dtype, **options)
    rows = dataset.remove_columns("input_ids")
    questions = [row | {name: json.loads(row[name]) for name in ("exe_ans", "table")} for row in rows]

    def accept(place: int, output: str) -> bool:
        text = program.extract_program(output)
        prompt = tokenizer.decode(dataset[place]["input_ids"][: dataset[place]["prompt_tokens"]])
        executed = program.execute(program.tokenize(text), questions[place]["table"])
        return not executed.invalid and executed.result != program.INVALID and evidence.shows_numbers(text, prompt)

    clock = runs.Stopwatch()
    outputs = generation.generate(model, tokenizer, dataset, BATCH_SIZE, MAX_NEW_TOKENS, BEAMS, accept)
    seconds = clock.seconds()

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
        "prepared": prepared,
        "decoding": decoding,
        "ended_by_themselves": sum(verdict["ended"] for verdict in verdicts),
        "seconds": round(seconds, 1),
        "peak_memory_gb": memory.peak_memory_gb(),
    }
    print(f"{facts['ended_by_themselves']} of {len(verdicts)} outputs ended by themselves")
    write_and_show(directory, facts, verdicts, questions)


def write_and_show(directory: Path, facts: dict, verdicts: list[dict], questions: list[dict]) -> None:
    """Write the verdicts and their summary, then show five predictions and the table."""
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
    show_table()
    if (directory / "quantize_metrics.json").exists():
        tables.write_quantization_report(RESULTS_DIR)
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
