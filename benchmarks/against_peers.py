"""Training and evaluation against what people use instead, in interleaved rounds of one call.

Training, examples/s: the Trainer of train_qlora_4bit.py against TRL's SFTTrainer and against transformers' Trainer that
pads everything to TOKENS tokens. All start from the same weights and adapters and see the same examples in the same
order: their losses should be equal. Evaluation, questions/s: evaluate.py's decoding against the hf backend of
lm-evaluation-harness and against one question at a time; outputs that equal evaluate.py's are counted. Beside each
stands the ceiling: FLOPs and bytes of weights over what a probe of the device finds. Decoding against llama.cpp is in
benchmark_throughput.py, of runs with a model.gguf.

    pip install -r requirements-optional.txt
    python benchmarks/against_peers.py --RUN=qlora_4bit --DATA_RUN=data        15 to 40 minutes on two cores
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: evaluate.py has the name of a library of the harness

from fincompress.settings import configure

# -----------------------------------------------------------------------------
BASE_MODEL: str = "smollm2-135m"  # what is trained
RUN: str = "qlora_4bit"  # the finished run whose weights in 16 bits are evaluated; "base": BASE_MODEL
DATA_RUN: str = "data"  # the run of preprocess_data.py, tokenised for BASE_MODEL
RESULTS_DIR: str = "results"  # where both lie
PARTS: list[str] = ["training", "evaluation"]  # what is measured
ROUNDS: int = 3  # that are recorded; one more comes first, in which FLOPs are counted
# Training
EXAMPLES: int = 16  # of the training split, a pass over them a turn; a multiple of BATCH_SIZE
BATCH_SIZE: int = 4  # sequences at once, as in train_qlora_4bit.py
LORA_RANK: int = 32  # these three too
LORA_ALPHA: int = 64  # adapters are scaled by LORA_ALPHA / LORA_RANK
LEARNING_RATE: float = 8e-4  # peak
TOKENS: int = 512  # that the plain loop pads every example to
# Evaluation
QUESTIONS: int = 64  # of the calibration split, decoded in one batch, as evaluate.py does
PLAIN_QUESTIONS: int = 24  # the first of them, decoded one at a time; its cost is linear in them
MAX_NEW_TOKENS: int = 96  # as in evaluate.py
SEED: int = 0  # of the adapters, of which examples and of their order
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import contextlib
import copy
import importlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version

import datasets
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from torch.utils import flop_counter
from tqdm import tqdm
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, set_seed

from fincompress import generation, memory, models, provenance, quantization, runs, training
from fincompress.benchmark import record, rounds, worker
from fincompress.errors import UserError, run_script
from fincompress.settings import check_choice
from fincompress.training.loss import IGNORE, TargetCollator
from fincompress.training.trainer import LengthGroupedSampler

ITEMS = {"training": "examples", "evaluation": "questions"}  # of each part
PEERS = {"training": ("trl", "trl"), "evaluation": ("lm_eval", "lm-eval")}  # their module and package
TRAINING = {
    "LR_SCHEDULE": "cosine", "WARMUP": 0.05, "WEIGHT_DECAY": 0.0, "MAX_GRAD_NORM": 1.0, "GRADIENT_ACCUMULATION": 1,
    "OPTIMIZER": None, "LOGGING_STEPS": 10,
}  # fmt: skip
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which torch's counter does not know
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
COUNTS = {
    ATTENTION: lambda *shapes, **_: flop_counter.sdpa_flop_count(*shapes[:3]),
    BACKWARD: lambda *shapes, **_: flop_counter.sdpa_backward_flop_count(*shapes[:4]),
}


@dataclass
class Contestant:
    """One way to do the work, and what its turns took."""

    take: Callable[[], tuple[int, float, object]]  # a turn: items, seconds, and the mean loss or the outputs
    weights_gb: float  # that a forward pass reads, and its backward pass where there is one
    rates: list[float] = field(default_factory=list)  # items/s of each turn
    made: object = None  # by the last turn
    gflop: float = 0.0  # of an item, padding included
    gb: float = 0.0  # of weights, read for an item


def main() -> None:
    for part in PARTS:
        check_choice("PARTS", part, tuple(ITEMS))
        check_package(*PEERS[part])
    models.quiet_libraries()
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    card, device = rounds.probe(), models.pick_device()
    dtype, reason = models.pick_dtype(device)
    print(f"{device.type}, {reason}; ceiling {card['tflops']:.2f} TFLOP/s, {card['bandwidth_gb_per_s']:.1f} GB/s")
    results, load = {}, rounds.watch_load()
    for part in PARTS:
        contestants = (trainings if part == "training" else evaluations)(device, dtype)
        take_turns(contestants, part)
        results[part] = summary(contestants, part, card)
        print(f"\n{part}: {ITEMS[part]}/s and how many times as fast the first is, median of {ROUNDS} rounds [range]")
        table = pd.DataFrame.from_dict(results[part], orient="index", dtype=object).map(shown)
        print(f"{table.to_string()}\n", flush=True)
    share = load()
    if share > record.MAX_LOAD:
        print(f"other jobs took {share:.0%} of the cores: these speeds decide nothing")
    versions = provenance.versions() | {PEERS[part][1]: version(PEERS[part][1]) for part in PARTS}
    print(json.dumps({**results, "ceiling": {name: card[name] for name in ("tflops", "bandwidth_gb_per_s")},
                      "load": round(share, 3), "code": provenance.code_version(), "versions": versions,
                      "hardware": provenance.hardware()}))  # fmt: skip


def check_package(module: str, package: str) -> None:
    """Raise UserError where a peer is not installed."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{package} cannot be imported ({error}): pip install {package}, or change PARTS") from None


def take_turns(contestants: dict[str, Contestant], part: str) -> None:
    """ROUNDS rounds in which all take turns, after one that is not recorded and in which FLOPs are counted.

    The first has one more at the end: every turn of the others lies between two of its own.
    """
    order = [(number, name) for number in range(ROUNDS + 1) for name in contestants]
    for number, name in tqdm([*order, (ROUNDS + 1, next(iter(contestants)))], desc=part, unit="turn"):
        contestant = contestants[name]
        with contextlib.nullcontext() if number else counted(contestant):
            items, seconds, contestant.made = contestant.take()
        memory.release_unused()
        if number:
            contestant.rates.append(items / seconds)
        else:
            contestant.gflop, contestant.gb = contestant.gflop / items, contestant.gb / items


@contextlib.contextmanager
def counted(contestant: Contestant) -> Iterator[None]:
    """Count a turn's FLOPs, and the GB of weights that all its passes read."""
    passes = []

    def note(module, arguments):
        if isinstance(module, torch.nn.Embedding):  # once a pass; peft calls the model's forward without its hooks
            passes.append(module)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with flop_counter.FlopCounterMode(display=False, custom_mapping=COUNTS) as counter:
            yield
    finally:
        hook.remove()
    contestant.gflop, contestant.gb = counter.get_total_flops() / 1e9, len(passes) * contestant.weights_gb


def ratios(first: list[float], peer: list[float]) -> list[float]:
    """How many times as fast the first is, by round: the geometric mean of its turns before and after the peer's."""
    return [(first[i] * first[i + 1]) ** 0.5 / rate for i, rate in enumerate(peer)]


def summary(contestants: dict[str, Contestant], part: str, card: dict) -> dict[str, dict]:
    """Speeds, ratios, ceiling and what was made, by contestant."""
    rows, (first, *_) = {}, contestants.values()
    for name, contestant in contestants.items():
        seconds = max(contestant.gflop / (1e3 * card["tflops"]), contestant.gb / card["bandwidth_gb_per_s"])
        rate = record.spread(contestant.rates)
        rows[name] = {
            f"{ITEMS[part]}_per_s": rate,
            "ratio": record.spread([] if contestant is first else ratios(first.rates, contestant.rates)),
            **compared(first.made, contestant.made),
            "gflop": contestant.gflop,
            "weights_gb": contestant.gb,
            "ceiling_per_s": 1 / seconds,
            "reached": seconds * rate["median"],
        }
    return rows


def compared(first: float | list[str], made: float | list[str]) -> dict:
    """The difference of two mean losses, or how many outputs are equal to the first ones."""
    if isinstance(made, float):
        return {"loss": made, "loss_difference": made - first}
    return {"equal": sum(a == b for a, b in zip(first, made, strict=False)), "outputs": len(made)}


def shown(value: dict | float | None) -> str:
    """A value of ``summary`` in words."""
    if isinstance(value, dict):
        return "{median:.2f} [{low:.2f}, {high:.2f}]".format(**value)
    return "" if value is None else f"{value:.4g}"


def trainings(device: torch.device, dtype: torch.dtype) -> dict[str, Contestant]:
    """Three trainers on copies of one model, and on the same examples in the order of this project's sampler."""
    examples, _ = runs.load_processed(RESULTS_DIR, DATA_RUN, "train", BASE_MODEL)
    if len(examples) < EXAMPLES or EXAMPLES % BATCH_SIZE:
        raise UserError(f"EXAMPLES = {EXAMPLES}: must be a multiple of BATCH_SIZE, and at most {len(examples)}")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(SEED))
    chosen = examples.select(order[:EXAMPLES].tolist())
    if max(chosen["length"]) > TOKENS:
        raise UserError(f"TOKENS = {TOKENS}: an example has {max(chosen['length'])}, and none is cut: raise it")
    path = models.base_model_path(BASE_MODEL, RESULTS_DIR)
    tokenizer = models.load_tokenizer(path)
    base = models.load_base(path, "nf4", device, dtype)
    rows = training.TrainingRows(chosen, tokenizer, None, SEED)
    ordered = datasets.Dataset.from_list([labelled(rows[i]) for i in LengthGroupedSampler(rows, BATCH_SIZE, SEED)])
    lora = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")

    def ours(arguments) -> Trainer:
        model = get_peft_model(copy.deepcopy(base), lora)
        models.compute_in_model_dtype(model)
        collator = TargetCollator(tokenizer.pad_token_id)
        options = {"data_collator": collator, "train_dataset": rows, "dtype": dtype}
        return training.TargetTrainer(model=model, args=arguments, **options)

    def trl(arguments) -> Trainer:
        from trl import SFTTrainer

        model, peer = copy.deepcopy(base), {"processing_class": models.load_tokenizer(path), "peft_config": lora}
        return SFTTrainer(model=model, args=arguments, train_dataset=ordered, **peer)

    def padded(arguments) -> Trainer:
        model = get_peft_model(copy.deepcopy(base), lora)
        width = {"padding": "max_length", "max_length": TOKENS, "label_pad_token_id": IGNORE}
        collator = DataCollatorForSeq2Seq(tokenizer, **width)
        return Trainer(model=model, args=arguments, data_collator=collator, train_dataset=ordered)

    def turn(make: Callable) -> tuple[int, float, float]:
        with tempfile.TemporaryDirectory() as folder, quantization.quiet():  # peft imports gptqmodel, which greets
            set_seed(SEED)  # as SFTTrainer does itself: the same adapters
            trainer = make(training.training_arguments(
                SETTINGS | TRAINING, Path(folder), device, dtype, num_train_epochs=1, save_strategy="no",
                # of the peers; TargetTrainer has its own order and precision
                train_sampling_strategy="sequential", bf16=dtype == torch.bfloat16 and make is not ours,
            ))  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            began = generation.now(device)
            loss = trainer.train().training_loss
            return EXAMPLES, generation.now(device) - began, loss

    weights_gb = 2 * worker.bytes_per_token(base) / 1e9
    makers = {"this project": ours, "TRL's SFTTrainer": trl, f"padded to {TOKENS}": padded}
    return {name: Contestant(lambda make=make: turn(make), weights_gb) for name, make in makers.items()}


def labelled(row: dict) -> dict[str, list[int]]:
    """A row as transformers and TRL take it: ``labels`` as long as ``input_ids``, those of the prompt ignored."""
    ids, prompt = row["input_ids"], row["prompt_tokens"]
    return {"input_ids": ids, "labels": [IGNORE] * prompt + ids[prompt:]}


def evaluations(device: torch.device, dtype: torch.dtype) -> dict[str, Contestant]:
    """Three ways to decode the same questions with one model."""
    questions, _ = runs.load_processed(RESULTS_DIR, DATA_RUN, "calibration", BASE_MODEL)
    if "prompt" not in questions.column_names:
        raise UserError("the harness needs a data run that keeps the prompts: run preprocess_data.py again")
    chosen = questions.select(range(min(QUESTIONS, len(questions))))
    untuned = runs.is_untuned(RUN)
    path = models.base_model_path(BASE_MODEL, RESULTS_DIR) if untuned else models.dense_checkpoint(RUN, RESULTS_DIR)
    model, tokenizer = models.load_run(path, RESULTS_DIR, device, dtype)

    def ours() -> list[str]:
        return [row["output"] for row in generation.generate(model, tokenizer, chosen, QUESTIONS, MAX_NEW_TOKENS)]

    @torch.inference_mode()
    def one_at_a_time() -> list[str]:
        outputs = []
        for row in chosen.select(range(min(PLAIN_QUESTIONS, len(chosen)))):
            prompt = torch.tensor([row["input_ids"][: row["prompt_tokens"]]], device=device)
            options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
            tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
            outputs.append(tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True))
        return outputs

    def turn(decode: Callable[[], list[str]]) -> tuple[int, float, list[str]]:
        began = generation.now(device)
        outputs = decode()
        return len(outputs), generation.now(device) - began, [output.strip() for output in outputs]

    decoders = {"this project": ours, "lm-eval's hf backend": through_the_harness(model, str(path)),
                "one at a time": one_at_a_time}  # fmt: skip
    weights_gb = worker.bytes_per_token(model) / 1e9
    return {name: Contestant(lambda decode=decode: turn(decode), weights_gb) for name, decode in decoders.items()}


def through_the_harness(model, path: str) -> Callable[[], list[str]]:
    """What decodes the questions of lm_eval_tasks/finqa_program as the harness does; it scores nothing."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    data = runs.run_directory(RESULTS_DIR, DATA_RUN).resolve()
    folder = Path(__file__).resolve().parents[1] / "lm_eval_tasks"
    metadata = {"data": str(data), "split": "calibration"}
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    task = manager.load("finqa_program")["tasks"]["finqa_program"]
    task.config.generation_kwargs["max_gen_toks"] = MAX_NEW_TOKENS
    task.build_all_requests(limit=QUESTIONS, rank=0, world_size=1)
    tested = HFLM(pretrained=model, tokenizer=models.load_tokenizer(path), batch_size=QUESTIONS)
    return lambda: tested.generate_until(task.instances)


if __name__ == "__main__":
    run_script(main)
