"""What fine-tuning for programs, quantizing and dropping layers cost in general ability: tasks of BIG-bench, paired.

Each option of a question is scored by the log-likelihood of its text after the question; the likeliest is the answer,
as lm-evaluation-harness scores "acc". The first of RUNS is what the others are compared with, on the same questions.
The questions are read from the package's archive, which is never installed:

    pip download --no-deps bigbench==1.0.0                                       358 MB; Apache-2.0
    python benchmarks/general_ability.py --RUNS='["base", "qlora_4bit/merged", "gptq_4bit", "sapling"]'
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RUNS: list[str] = ["base", "qlora_4bit/merged", "gptq_4bit", "sapling"]  # "base": BASE_MODEL; "sapling": its depths
BASE_MODEL: str = "smollm2-135m"  # of "base"
RESULTS_DIR: str = "results"  # where the runs lie
ARCHIVE: str = "bigbench-1.0.0.tar.gz"  # the package's source archive
TASKS: list[str] = ["social_iqa", "goal_step_wikihow/goal_inference", "intent_recognition"]  # in benchmark_tasks/
QUESTIONS: int = 300  # of each task, drawn by SEED
SEED: int = 0  # of the draw
# -----------------------------------------------------------------------------
configure(globals())

import json
import random
import tarfile
import zlib

import torch
from tqdm import tqdm

from fincompress import models, runs
from fincompress.errors import UserError, run_script
from fincompress.finqa import scoring
from fincompress.report import statistics


def main() -> None:
    models.quiet_libraries()
    names = [name for run in RUNS for name in ([run] if runs.is_untuned(run) else runs.with_depths(RESULTS_DIR, run))]
    paths = {name: models.run_path(name, BASE_MODEL, RESULTS_DIR) for name in names}
    tasks = read_tasks(Path(ARCHIVE))
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    print(f"BIG-bench 1.0.0, zero-shot; {device.type}, {reason}; % right [95 %, Wilson], points to {names[0]} [paired]")
    for name, questions in tasks.items():
        chance = sum(1 / len(question["target_scores"]) for question in questions) / len(questions)
        print(f"{name}: {len(questions)} questions, by chance {100 * chance:.1f} % right")
    first: dict[str, dict[str, bool]] = {}
    for name, path in paths.items():
        model, tokenizer = models.load_run(path, RESULTS_DIR, device, dtype)
        verdicts = {task: judge(model, tokenizer, task, questions) for task, questions in tasks.items()}
        verdicts["all"] = {key: right for flags in verdicts.values() for key, right in flags.items()}
        first = first or verdicts
        for task, flags in verdicts.items():
            print(f"{name:<22}{task:<34}{row(flags, first[task])}", flush=True)
        del model


def read_tasks(archive: Path) -> dict[str, list[dict]]:
    """Of each of TASKS QUESTIONS questions: BIG-bench's ``target_scores`` by option, and the whole ``prompt``."""
    tasks: dict[str, list[dict]] = {}
    if not archive.is_file():
        raise UserError(f"ARCHIVE = {archive} is no file: get it by pip download --no-deps bigbench==1.0.0 (358 MB)")
    try:
        with tarfile.open(archive, "r:gz") as file:
            for member in file:
                name = member.name.partition("/benchmark_tasks/")[2].removesuffix("/task.json")
                if name in TASKS and member.isfile():
                    task = json.load(file.extractfile(member))
                    prompt = f"{task.get('task_prefix', '')}\nQ: ".lstrip()
                    tasks[name] = [x | {"prompt": f"{prompt}{x['input'].strip()}\nA:"} for x in task["examples"]]
                if len(tasks) == len(set(TASKS)):
                    break
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"ARCHIVE = {archive} is not BIG-bench's source archive: {error}") from None
    for task in TASKS:
        if not all("target_scores" in example for example in tasks.get(task, [{}])):
            raise UserError(f"TASKS: {archive} has no multiple-choice task {task!r}")
    draw = random.Random(SEED)
    return {task: draw.sample(tasks[task], min(QUESTIONS, len(tasks[task]))) for task in TASKS}


def judge(model, tokenizer, task: str, questions: list[dict]) -> dict[str, bool]:
    """Whether the model's likeliest option is a right one, by question."""
    verdicts = {}
    for number, question in enumerate(tqdm(questions, desc=task, unit="question", leave=False)):
        scores = question["target_scores"]
        likelihoods = log_likelihoods(model, tokenizer, question["prompt"], [f" {text}" for text in scores])
        answer = max(zip(likelihoods, scores, strict=True))[1]
        verdicts[f"{task} {number}"] = scores[answer] == max(scores.values())
    return verdicts


@torch.inference_mode()
def log_likelihoods(model, tokenizer, prompt: str, options: list[str]) -> list[float]:
    """Log-likelihood of each option after ``prompt``, in nats; the prompt is read once."""
    prompt_ids = tokenizer(prompt).input_ids
    ends = [torch.tensor(tokenizer(prompt + option).input_ids[len(prompt_ids) :]) for option in options]
    # What pads an option stands after it: causal attention does not see it.
    padded = torch.nn.utils.rnn.pad_sequence(ends, batch_first=True).to(model.device)
    read = model(input_ids=torch.tensor([prompt_ids], device=model.device), use_cache=True)
    read.past_key_values.batch_repeat_interleave(len(ends))
    logits = model(input_ids=padded, past_key_values=read.past_key_values, use_cache=True).logits
    logits = torch.cat([read.logits[:, -1:].expand(len(ends), -1, -1), logits[:, :-1]], dim=1)
    chosen = logits.float().log_softmax(-1).gather(-1, padded.unsqueeze(-1)).squeeze(-1)
    return [float(row[: len(end)].sum()) for row, end in zip(chosen, ends, strict=True)]


def row(flags: dict[str, bool], first: dict[str, bool]) -> str:
    """Accuracy of a task, and its difference to the first run's."""
    right = scoring.accuracy([*flags.values()])
    low, high = right["interval"]
    text = f"{100 * right['accuracy']:5.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    if flags is first:
        return text
    difference = statistics.compare(flags, first)
    low, high = difference["interval"]
    return f"{text:<20}{100 * difference['difference']:+6.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


if __name__ == "__main__":
    run_script(main)
