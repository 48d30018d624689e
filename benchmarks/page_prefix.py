"""One prefix for all questions of a page, against a prompt of its own for each: what it saves and what it costs.

FinQA asks two or three questions of most pages. Here their evidence is chosen once, up to PAGE_TOKENS, by the best
rank that a line has for any of them. It is read once: evaluation shares its KV cache, training packs the questions and
programs behind it, each blind to the others. The tables have questions/s, evidence recall and accuracy, and examples/s
and the loss. "a prompt each" reads the page's evidence again for each question: its outputs and its loss say that
sharing changes nothing but the time.

    python benchmarks/page_prefix.py --RUN=finqa_qlora/merged --DATA_RUN=finqa_data --DATA_DIR=path/to/finqa
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
BASE_MODEL: str = "smollm2-135m"  # what is trained
RUN: str = "finqa_qlora/merged"  # the finished run that is evaluated
DATA_RUN: str = "finqa_data"  # the run of preprocess_data.py, whose own prompts are compared with
DATA_DIR: str = "data"  # folder with the FinQA files that it was made from
RESULTS_DIR: str = "results"  # where both runs lie
PAGE_TOKENS: int = 192  # of a page's evidence: the recall that 160 tokens for each question have
QUESTIONS: int = 256  # of SPLIT that are answered, their pages complete
SPLIT: str = "calibration"  # whose questions they are
EXAMPLES: int = 48  # of the training split, a turn
BATCH_SIZE: int = 4  # prompts of a training batch; of pages half as many
EVALUATION_BATCH: int = 64  # prompts that are decoded at once
LORA_RANK: int = 32  # of the adapters that are trained, on an NF4 base
ROUNDS: int = 3  # in which all take turns
SEED: int = 0  # of the adapters and of which examples
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import json
from collections.abc import Callable

import datasets
import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from tqdm import tqdm

from fincompress import generation, memory, models, provenance, quantization, runs
from fincompress.benchmark import record, rounds
from fincompress.errors import UserError, run_script
from fincompress.finqa import evidence, examples, program, prompts, scoring
from fincompress.training.loss import TargetCollator, autocast, target_logits, target_loss

MAX_NEW_TOKENS = 96
OWN, EACH, SHARED = "own evidence", "the page's evidence, a prompt each", "the page's evidence, one prefix"
Page = dict  # its "prefix", token ids, and its "questions", of ``make_page``


def main() -> None:
    models.quiet_libraries()
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    print(f"{device.type}, {reason}")
    tokenizer = models.load_tokenizer(models.base_model_path(BASE_MODEL, RESULTS_DIR))
    load, found = rounds.watch_load(), {}
    for part, make in (("evaluation", evaluations), ("training", trainings)):
        ways = make(tokenizer, device, dtype)
        rates, made = {name: [] for name in ways}, {}
        for number in tqdm(range(ROUNDS + 1), desc=part):  # the first, in which memory is taken, is not recorded
            for name, take in ways.items():
                began = generation.now(device)
                made[name] = take()
                if number:
                    rates[name].append(made[name]["items"] / (generation.now(device) - began))
                memory.release_unused()
        found[part] = {
            name: {
                "items_per_s": record.spread(rates[name]),
                "ratio": record.spread([mine / own for mine, own in zip(rates[name], rates[OWN], strict=True)]),
                **{key: value for key, value in made[name].items() if key != "outputs"},
                **equal(made[name], made[EACH]),
            }
            for name in ways
        }
        print(f"\n{part}")
        print(pd.DataFrame.from_dict(found[part], orient="index", dtype=object).map(shown).to_string(), flush=True)
    print(json.dumps({**found, "load": round(load(), 3), "code": provenance.code_version(),
                      "versions": provenance.versions(), "hardware": provenance.hardware()}))  # fmt: skip


def equal(made: dict, other: dict) -> dict:
    """The share of outputs that are those of another way, where there are any."""
    if "outputs" not in made:
        return {}
    return {"equal": np.mean([a == b for a, b in zip(made["outputs"], other["outputs"], strict=True)])}


def shown(value: dict | float) -> str:
    return "{median:.2f} [{low:.2f}, {high:.2f}]".format(**value) if isinstance(value, dict) else f"{value:.4g}"


def pages_of(split: str, count: int, tokenizer) -> tuple[datasets.Dataset, list[Page]]:
    """``count`` questions of whole pages as the data run has them, and the same by page, in the same order."""
    rows, data_record = runs.load_processed(RESULTS_DIR, DATA_RUN, split, BASE_MODEL)
    source = "train" if split == "calibration" else split
    by_id = {one.id: one for one in examples.load_dataset(DATA_DIR, splits=(source,)).splits[source]}
    if not by_id.keys() >= set(rows["id"]):
        raise UserError(f"DATA_DIR = {DATA_DIR!r} lacks questions of {DATA_RUN!r}: name the folder it was made from")
    order: dict[str, list[int]] = {}
    for number, name in enumerate(rows["id"]):
        order.setdefault(by_id[name].page, []).append(number)
    names = list(order)
    drawn = [names[i] for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(SEED)).tolist()]
    pages, chosen = [], []
    for name in drawn:
        if len(chosen) >= count:
            break
        pages.append(make_page([by_id[rows["id"][i]] for i in order[name]], tokenizer))
        chosen += order[name]
    return rows.select(chosen), pages


def make_page(asked: list[examples.Example], tokenizer) -> Page:
    """A page with all its questions behind one prefix."""
    lines = evidence.page_lines(asked[0])
    costs = [len(ids) for ids in tokenizer([line.text + "\n" for line in lines], add_special_tokens=False).input_ids]
    ranks = np.max([evidence.rank(one, lines) for one in asked], axis=0)
    kept = [lines[i] for i in evidence.fill_budget(lines, list(ranks), costs, PAGE_TOKENS)]
    prefix = tokenizer("\n".join(line.text for line in kept) + "\n").input_ids
    questions = []
    for one in asked:
        suffix = tokenizer(prompts.end(one), add_special_tokens=False).input_ids
        target = [*tokenizer(one.program, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids, prompt_tokens = prefix + suffix + target, len(prefix) + len(suffix)
        questions.append({"input_ids": ids, "prompt_tokens": prompt_tokens, "suffix": suffix, "target": target,
                          "shown": evidence.shows_program(one, kept)})  # fmt: skip
    return {"prefix": prefix, "questions": questions}


# ------------------------------------------------------------------ evaluation


def evaluations(tokenizer, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], dict]]:
    """Three ways to answer the same questions with one model."""
    rows, pages = pages_of(SPLIT, QUESTIONS, tokenizer)
    model, _ = models.load_run(models.dense_checkpoint(RUN, RESULTS_DIR), RESULTS_DIR, device, dtype)
    each = datasets.Dataset.from_list([question for page in pages for question in page["questions"]])

    def answered(outputs: list[str], recall: list[bool]) -> dict:
        verdicts = [
            scoring.score_program(program.tokenize(program.extract_program(output)), row)
            for output, row in zip(outputs, scored, strict=True)
        ]
        correct = np.mean([verdict["execution_correct"] for verdict in verdicts])
        return {
            "items": len(rows), "execution_accuracy": correct, "evidence_recall": np.mean(recall), "outputs": outputs
        }  # fmt: skip

    scored = [row | {"exe_ans": json.loads(row["exe_ans"]), "table": json.loads(row["table"])} for row in rows]

    def alone(asked: datasets.Dataset, recall: list[bool]) -> dict:
        found = generation.generate(model, tokenizer, asked, EVALUATION_BATCH, MAX_NEW_TOKENS)
        return answered([one["output"] for one in found], recall)

    def shared() -> dict:
        return answered(generate_by_page(model, tokenizer, pages), each["shown"])

    return {
        OWN: lambda: alone(rows, rows["evidence_shown"]),
        EACH: lambda: alone(each, each["shown"]),
        SHARED: shared,
    }


@torch.inference_mode()
def generate_by_page(model, tokenizer, pages: list[Page]) -> list[str]:
    """Greedy continuations of every question, in order.

    Prefixes of like length are read together, then each is copied to its questions.
    """
    outputs: dict[tuple[int, int], str] = {}
    eos = tokenizer.eos_token_id
    last = torch.tensor([-1], device=model.device)  # as an index: see generation.generate
    options = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": eos, "logits_to_keep": last}
    left = sorted(range(len(pages)), key=lambda i: -len(pages[i]["prefix"]))
    while left:
        numbers, count = [], 0
        while left and count < EVALUATION_BATCH:
            count += len(pages[left[0]]["questions"])
            numbers.append(left.pop(0))
        asked = [(page, i) for page in numbers for i in range(len(pages[page]["questions"]))]
        prefix = tokenizer.pad({"input_ids": [pages[page]["prefix"] for page in numbers]}, return_tensors="pt")
        prefix = prefix.to(model.device)
        positions = (prefix["attention_mask"].cumsum(1) - 1).clamp(min=0)  # as generate counts them
        cache = model(**prefix, position_ids=positions, use_cache=True, logits_to_keep=last).past_key_values
        rows = torch.tensor([numbers.index(page) for page, _ in asked], device=model.device)
        cache.batch_select_indices(rows)
        suffixes = [pages[page]["questions"][i]["suffix"] for page, i in asked]
        suffix = tokenizer.pad({"input_ids": suffixes}, return_tensors="pt").to(model.device)
        batch = {name: torch.cat([prefix[name][rows], suffix[name]], dim=1) for name in ("input_ids", "attention_mask")}
        tokens = generation.continued(model, batch, MAX_NEW_TOKENS, generation.STAGE, options, cache)
        for one, row in zip(asked, tokens, strict=True):
            outputs[one] = tokenizer.decode(row[: row.index(eos)] if eos in row else row, skip_special_tokens=True)
    return [outputs[page, i] for page in range(len(pages)) for i in range(len(pages[page]["questions"]))]


# -------------------------------------------------------------------- training


def trainings(tokenizer, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], dict]]:
    """Three ways to learn from the same examples: a pass over them, from the same weights."""
    rows, pages = pages_of("train", EXAMPLES, tokenizer)
    path = models.base_model_path(BASE_MODEL, RESULTS_DIR)
    base = models.load_base(path, "nf4", device, dtype)
    lora = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    with quantization.quiet():
        model = get_peft_model(base, lora)
    models.compute_in_model_dtype(model)
    model.set_attn_implementation("eager")  # as TargetTrainer has it on a CPU
    collate = TargetCollator(tokenizer.pad_token_id)

    def by_length(some: list, length: Callable, size: int) -> list[list]:
        ordered = sorted(some, key=length)
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]

    def learn(batches: list[list], loss_of: Callable) -> dict:
        total = count = 0
        for batch in batches:
            with autocast(device, dtype):
                loss, tokens = loss_of(batch)
            (loss / tokens).backward()
            total, count = total + loss.item(), count + tokens
            model.zero_grad()
        return {"items": len(rows), "loss": total / count}

    def alone(batch: list[dict]) -> tuple[torch.Tensor, int]:
        inputs = {name: tensor.to(device) for name, tensor in collate(batch).items()}
        logits, labels = target_logits(model, inputs)
        return target_loss(logits, labels, tokens=1), int(labels.ne(-100).sum())

    def packed(batch: list[Page]) -> tuple[torch.Tensor, int]:
        inputs, positions, targets = pack(batch, tokenizer.pad_token_id, dtype)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        hidden = model.get_base_model().model(**inputs, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[positions])
        return target_loss(logits[None], targets[None].to(device), tokens=1), len(targets)

    own, each = list(rows), [question for page in pages for question in page["questions"]]
    tokens = {"own": sum(map(tokens_of, own)), "each": sum(map(tokens_of, each)), "pages": sum(map(page_tokens, pages))}
    print(f"tokens of {len(rows)} training examples: {tokens}")
    return {
        OWN: lambda: learn(by_length(own, tokens_of, BATCH_SIZE), alone),
        EACH: lambda: learn(by_length(each, tokens_of, BATCH_SIZE), alone),
        SHARED: lambda: learn(by_length(pages, page_tokens, max(1, BATCH_SIZE // 2)), packed),
    }


def tokens_of(row: dict) -> int:
    return len(row["input_ids"])


def page_tokens(page: Page) -> int:
    return len(page["prefix"]) + sum(len(one["suffix"]) + len(one["target"]) for one in page["questions"])


def pack(
    batch: list[Page], pad: int, dtype: torch.dtype
) -> tuple[dict, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Pages as rows, padded on the right: the prefix, then questions and programs, which see it and themselves.

    Returns the model's inputs, the ``(row, position)`` before every target token, and the target tokens.
    """
    width = max(map(page_tokens, batch))
    ids, places = torch.full((len(batch), width), pad), torch.zeros((len(batch), width), dtype=torch.long)
    part = torch.full((len(batch), width), -1)  # 0 the prefix, then a number a question; -1 padding
    where, targets = [], []
    for row, page in enumerate(batch):
        begin = len(page["prefix"])
        ids[row, :begin], places[row, :begin], part[row, :begin] = torch.tensor(page["prefix"]), torch.arange(begin), 0
        for number, one in enumerate(page["questions"], 1):
            new = one["suffix"] + one["target"]
            end = begin + len(new)
            ids[row, begin:end], part[row, begin:end] = torch.tensor(new), number
            places[row, begin:end] = len(page["prefix"]) + torch.arange(len(new))
            where += [(row, at - 1) for at in range(begin + len(one["suffix"]), end)]
            targets += one["target"]
            begin = end
    seen = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    seen = seen & torch.ones(width, width).tril().bool()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    positions = tuple(torch.tensor(where).T)
    return {"input_ids": ids, "position_ids": places, "attention_mask": mask}, positions, torch.tensor(targets)


if __name__ == "__main__":
    run_script(main)
