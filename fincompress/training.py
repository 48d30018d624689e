"""What the training scripts share: LoRA on a base of some precision, loss on the target alone, runs that resume."""

from __future__ import annotations

import contextlib
import difflib
import gc
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import psutil
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import (
    AutoConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.training_args import OptimizerNames

from fincompress import memory, models, quantization, runs
from fincompress.errors import UserError
from fincompress.report import charts
from fincompress.settings import check_choice, check_positive, check_seed
from fincompress.targets import IGNORE, TargetCollator, score_targets, target_logits

TRAINING_COLUMNS = ["input_ids", "prompt_tokens", "length"]
MERGE_INTO = ("dequantized", "original")  # the base as the adapter was trained against it, or as it was before
LR_SCHEDULES = ("cosine", "linear", "constant_with_warmup")
BETTER = "better"  # of the two, by the calibration split


class TargetTrainer(Trainer):
    """``Trainer`` with the loss on target tokens alone, and batches of like length in an order of its own.

    ``passes`` are the lengths of the passes over the examples that stand one after another in the training set.
    """

    passes: list[int] | None = None  # None: one pass

    def train(self, *arguments, **options):
        with self.plain_attention():
            return super().train(*arguments, **options)

    @contextlib.contextmanager
    def plain_attention(self):
        """On a CPU, attention as plain products.

        The backward pass of torch's flash attention takes a CPU several times as long as they do for prompts of some
        hundred tokens: a seventh of a step.
        """
        before = self.model.config._attn_implementation
        if self.args.use_cpu:
            self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits, labels = target_logits(model, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        loss = loss / (num_items_in_batch if num_items_in_batch is not None else labels.ne(IGNORE).sum())
        return (loss, logits) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None):
        return LengthGroupedSampler(
            self.train_dataset["length"],
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            self.args.seed,
            passes=self.passes,
        )


class LengthGroupedSampler(torch.utils.data.Sampler):
    """Shuffled order in which neighbours have like lengths; epoch k's order depends on the seed and k alone.

    transformers' own sampler draws from the global generator, so a resumed run sees another order than an unbroken one.
    Where the rows are several ``passes`` over the same examples, one comes after another: shuffled together, copies of
    an example, which are of one length, would meet in a batch.
    """

    def __init__(
        self, lengths: list[int], batch_size: int, seed: int, window: int = 50, passes: list[int] | None = None
    ):
        self.lengths = list(lengths)
        self.passes = passes or [len(self.lengths)]  # rows of each, in order
        assert sum(self.passes) == len(self.lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.window = window  # batches that are sorted together
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch, also of a resumed one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1000003 + self.epoch)
        size = self.window * self.batch_size
        begin, short = 0, []
        for rows in self.passes:
            order = (begin + torch.randperm(rows, generator=generator)).tolist()
            begin += rows
            batches = []
            for start in range(0, rows, size):
                window = sorted(order[start : start + size], key=lambda i: -self.lengths[i])
                batches += [window[i : i + self.batch_size] for i in range(0, len(window), self.batch_size)]
            full = [batch for batch in batches if len(batch) == self.batch_size]
            # Short batches come last, or the Trainer's batches would straddle two of these.
            short += [batch for batch in batches if len(batch) < self.batch_size]
            for i in torch.randperm(len(full), generator=generator).tolist():
                yield from full[i]
        for batch in short:
            yield from batch


class Progress(TrainerCallback):
    """One progress bar for a stage of training; keeps the clock across restarts."""

    def __init__(self, name: str = "training"):
        self.name = name
        self.bar: tqdm | None = None
        self.clock = runs.Stopwatch()

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock = runs.Stopwatch(max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0))
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", smoothing=0.05)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last steps too, and those of a run shorter than LOGGING_STEPS

    def on_log(self, args, state, control, logs=None, **kwargs):
        # log_history is saved with each checkpoint, so a resumed run finds its clock there.
        state.log_history[-1]["seconds"] = round(self.clock.seconds(), 1)
        if "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class ProgressAndCalibration(Progress):
    """Also scores the calibration split after each epoch."""

    def __init__(self, calibration: datasets.Dataset, collator: TargetCollator, batch_size: int, dtype: torch.dtype):
        super().__init__()
        self.calibration, self.collator, self.batch_size, self.dtype = calibration, collator, batch_size, dtype

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control)
        # A checkpoint of an epoch's last step is written before the epoch is scored.
        unscored = all(
            entry.get("calibration_nll") is None or entry["step"] < state.global_step for entry in state.log_history
        )
        ended = state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()
        if state.global_step and ended and unscored:
            self.on_epoch_end(args, state, control, model=model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        nll, exact = score_targets(model, self.calibration, self.collator, self.batch_size, self.dtype)
        scores = {
            "calibration_nll": round(nll.mean().item(), 5),
            "calibration_exact": round(exact.float().mean().item(), 5),
        }
        seconds = round(self.clock.seconds(), 1)
        state.log_history.append(
            {"step": state.global_step, "epoch": round(state.epoch, 4), "seconds": seconds, **scores}
        )
        self.bar.write(
            f"epoch {state.epoch:.0f}: calibration " + ", ".join(f"{k[12:]} {v:.4f}" for k, v in scores.items())
        )


def print_prediction(predicted_gb: float, device: torch.device) -> None:
    """One line with the predicted peak memory, beside what there is of it."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(0).total_memory / 1e9
        print(f"predicted peak: {predicted_gb + memory.CUDA_CONTEXT_GB:.1f} GB of the GPU's {card:.1f} GB")
    else:
        free = psutil.virtual_memory().available / 1e9
        print(f"predicted peak: {predicted_gb:.1f} GB and what Python and its libraries take; {free:.1f} GB are free")


@contextlib.contextmanager
def explain_out_of_memory(predicted_gb: float | None, lower: str = "BATCH_SIZE"):
    """Turn a GPU that is too small into one line that says which constants to lower."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        card = torch.cuda.get_device_properties(0).total_memory / 1e9
        predicted = f" (predicted {predicted_gb:.1f} GB)" if predicted_gb else ""
        raise UserError(
            f"the GPU's {card:.1f} GB are not enough{predicted}: lower {lower} (raise GRADIENT_ACCUMULATION alike), "
            "then MAX_PROMPT_TOKENS in preprocess_data.py, then LORA_RANK"
        ) from None


@contextlib.contextmanager
def explain_resuming(checkpoint: Path | None):
    """Turn a damaged checkpoint to go on from into one line; ``None`` where nothing is gone on from."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        torn = isinstance(error, SafetensorError) or "PytorchStreamReader" in str(error)  # torch.load's only sign of it
        if checkpoint is None or not torn:
            raise
        raise UserError(f"{checkpoint}/ is damaged: remove it and run again") from None


def shuffled_stream(examples: int, start: int, count: int, seed: int) -> list[int]:
    """Indices ``start`` to ``start + count`` of an endless pass over the examples, shuffled anew at each round."""
    found: list[int] = []
    for epoch in range(start // examples, (start + count - 1) // examples + 1):
        generator = torch.Generator().manual_seed(seed * 1000003 + epoch)
        found += torch.randperm(examples, generator=generator).tolist()
    begin = start % examples
    return found[begin : begin + count]


def stream_passes(examples: int, start: int, count: int) -> list[int]:
    """How many of the rows of ``shuffled_stream`` belong to each round, in order."""
    rounds = range(start // examples, (start + count - 1) // examples + 1)
    return [min(start + count, (one + 1) * examples) - max(start, one * examples) for one in rounds]


def check_save_steps(save_steps: int, logging_steps: int) -> None:
    """Raise UserError where a checkpoint would fall between two points of the loss curve."""
    if save_steps % logging_steps:
        raise UserError(
            "SAVE_STEPS must be a multiple of LOGGING_STEPS, or a restart would lose part of the loss curve"
        )


def check_settings(s: dict) -> None:
    """Raise UserError for a constant that every training script has and that makes no sense."""
    names = ("LORA_RANK", "LEARNING_RATE", "BATCH_SIZE", "GRADIENT_ACCUMULATION", "SAVE_STEPS", "LOGGING_STEPS")
    check_positive(**{name: s[name] for name in names})
    check_seed(s["SEED"])
    check_choice("LR_SCHEDULE", s["LR_SCHEDULE"], LR_SCHEDULES)
    check_optimizer(s["OPTIMIZER"], s["WARMUP"])
    check_save_steps(s["SAVE_STEPS"], s["LOGGING_STEPS"])


def check_optimizer(optimizer: str | None, warmup: float) -> None:
    """Raise UserError for what the Trainer would refuse with a traceback."""
    known = [name.value for name in OptimizerNames]
    if optimizer is not None and optimizer not in known:
        near = difflib.get_close_matches(optimizer, known, n=1, cutoff=0)[0]
        raise UserError(f"OPTIMIZER = {optimizer!r} is none that transformers knows; did you mean {near!r}?")
    if warmup < 0:
        raise UserError(f"WARMUP is a share of the steps (below 1) or a number of them, not {warmup}")


def run_facts(base_model: str, base_precision: str, data_record: dict, dtype: torch.dtype) -> dict:
    """What decides the result of a training beside its constants; ``data_record`` is that of the data run."""
    return {
        "base_model": base_model,
        "base_precision": base_precision,
        "data": data_record["data"],
        "prepared": runs.fingerprint(data_record["settings"]),
        "dtype": str(dtype).removeprefix("torch."),  # a run must not go on in another one on another machine
    }


def train_lora(settings: dict, base_precision: str, script: str) -> None:
    """Train LoRA adapters on a base held in ``base_precision`` and write the run's folder.

    ``settings`` are the constants of the script, which explains each. Leaves ``adapter/``, ``merged/``,
    ``train_metrics.json``, ``loss_curve.csv`` and ``loss_curve.png``; checkpoints are kept until then, so that a killed
    run goes on.
    """
    s = settings
    check_choice("MERGE_INTO", s["MERGE_INTO"], (BETTER, *MERGE_INTO))
    check_positive(EPOCHS=s["EPOCHS"], MAX_STEPS=s["MAX_STEPS"])
    check_settings(s)
    if not 0 <= s["LORA_DROPOUT"] < 1:
        raise UserError(f"LORA_DROPOUT is a share, from 0 to below 1, not {s['LORA_DROPOUT']}")
    train_set, data_record = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "train")
    calibration, _ = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "calibration")
    runs.check_tokenised_for(s["BASE_MODEL"], s["DATA_RUN"], data_record)
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    facts = run_facts(s["BASE_MODEL"], base_precision, data_record, dtype)
    directory = runs.start_run(s["RESULTS_DIR"], s["RUN"], script, settings, facts, done="train_metrics.json")
    if directory is None:
        return
    runs.remove_partials(directory)
    models.quiet_libraries()
    print(f"{device.type}, {reason}")
    metrics = train_adapter(directory, s, base_precision, train_set, calibration, device, dtype)
    # accelerate's wrapper of forward is a reference cycle: without this the trained model stays beside the merged one.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    metrics["data"] = data_record["data"]
    metrics["merged"] = merge(directory, s, calibration, device, dtype)
    runs.write_json(directory / "train_metrics.json", metrics)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    print(
        f"trained {metrics['steps']} steps in {metrics['training_seconds'] / 60:.1f} min, "
        f"{metrics['tokens_per_second']:.0f} tokens/s, loss {metrics['train_loss']:.3f}; wrote {directory}/adapter, "
        "merged, train_metrics.json, loss_curve.csv and .png"
    )


def train_adapter(
    directory: Path, s: dict, base_precision: str, train_set, calibration, device: torch.device, dtype: torch.dtype
) -> dict:
    """Train, write ``adapter/`` and the loss curve, and return the metrics of the training."""
    set_seed(s["SEED"])
    path = models.base_model_path(s["BASE_MODEL"], s["RESULTS_DIR"])
    tokenizer = models.load_tokenizer(path)
    checkpointing = s["GRADIENT_CHECKPOINTING"] if s["GRADIENT_CHECKPOINTING"] is not None else device.type == "cuda"
    longest = max(train_set["length"])
    predicted_gb = memory.predict_lora_training_gb(
        models.base_config(s["BASE_MODEL"], s["RESULTS_DIR"]), base_precision, s["LORA_RANK"], s["BATCH_SIZE"], longest,
        1 + max(train_set["target_tokens"]), checkpointing, device.type, dtype.itemsize,
    )  # fmt: skip
    print_prediction(predicted_gb, device)
    with explain_out_of_memory(predicted_gb):
        model = models.load_base(path, base_precision, device, dtype)
    adapters = LoraConfig(
        r=s["LORA_RANK"],
        lora_alpha=s["LORA_ALPHA"],
        lora_dropout=s["LORA_DROPOUT"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with quantization.quiet():  # peft imports gptqmodel, which greets
        model = get_peft_model(model, adapters)
    models.compute_in_model_dtype(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{len(train_set)} examples, {sum(train_set['length'])} tokens an epoch; LoRA rank {s['LORA_RANK']}: "
        f"{trainable / 1e6:.1f} M of {models.parameter_count(model) / 1e6:.1f} M parameters are trained"
    )
    checkpoints = directory / "checkpoints"
    arguments = training_arguments(
        s, checkpoints, device, dtype, num_train_epochs=s["EPOCHS"], max_steps=s["MAX_STEPS"] or -1,
        gradient_checkpointing=checkpointing, save_steps=s["SAVE_STEPS"], save_total_limit=1,
        # bitsandbytes' int8 product keeps its input outside of what the other kind of checkpointing can discard.
        reentrant=base_precision == "int8",
    )  # fmt: skip
    collator = TargetCollator(tokenizer.pad_token_id)
    progress = ProgressAndCalibration(calibration, collator, 2 * s["BATCH_SIZE"], dtype)
    trainer = TargetTrainer(
        model=model,
        args=arguments,
        train_dataset=train_set.select_columns(TRAINING_COLUMNS),
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log as a dictionary
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint:
        print(f"going on from {checkpoint.name}")
    try:
        with explain_out_of_memory(predicted_gb), explain_resuming(checkpoint):
            if checkpoint and trained_to_the_end(checkpoint):
                load_trained(trainer, checkpoint, progress)
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UserError:
        if last_checkpoint(checkpoints) is None:  # nothing to go on with: lower constants must not be refused
            shutil.rmtree(checkpoints, ignore_errors=True)
        raise
    return finish(directory, trainer, tokenizer, s, predicted_gb, trainable, progress.clock.seconds())


def trained_to_the_end(checkpoint: Path) -> bool:
    """Whether a kill came after the last step."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state.global_step >= state.max_steps


def load_trained(trainer: TargetTrainer, checkpoint: Path, progress: Progress) -> None:
    """Bring a trainer to where its last step left it.

    Given such a checkpoint in the middle of an epoch, as a share of one leaves it, the Trainer would take a step more.
    """
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    set_peft_model_state_dict(trainer.model, adapter)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    with trainer.plain_attention():  # in which the last epoch is scored
        progress.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    progress.on_train_end(trainer.args, trainer.state, trainer.control)


def training_arguments(
    s: dict, directory: Path, device: torch.device, dtype: torch.dtype, reentrant: bool = False, **more
) -> TrainingArguments:
    """The Trainer's arguments from a script's constants ``s``; ``more`` is what the scripts do differently."""
    return TrainingArguments(
        output_dir=str(directory),
        learning_rate=s["LEARNING_RATE"],
        lr_scheduler_type=s["LR_SCHEDULE"],
        warmup_steps=s["WARMUP"],
        weight_decay=s["WEIGHT_DECAY"],
        max_grad_norm=s["MAX_GRAD_NORM"],
        per_device_train_batch_size=s["BATCH_SIZE"],
        gradient_accumulation_steps=s["GRADIENT_ACCUMULATION"],
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        optim=s["OPTIMIZER"] or ("adamw_bnb_8bit" if device.type == "cuda" else "adamw_torch_fused"),
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",
        logging_steps=s["LOGGING_STEPS"],
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        seed=s["SEED"],
        report_to="none",
        **more,
    )


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half-written ones, left by a kill, are removed."""
    whole = []
    for path in directory.glob("checkpoint-*"):
        try:  # the Trainer writes its state last
            runs.read_json(path / "trainer_state.json")
        except UserError:
            shutil.rmtree(path)
        else:
            whole.append(path)
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def finish(directory: Path, trainer, tokenizer, settings, predicted_gb, trainable, seconds) -> dict:
    """Write a run's adapter and loss curve, and return its metrics."""
    history = trainer.state.log_history
    curve = [
        {k: row[k] for k in ("step", "epoch", "loss", "learning_rate", "grad_norm")}
        | {"training_seconds": row["seconds"]}
        for row in history
        if "loss" in row
    ]
    calibration = [row for row in history if "calibration_nll" in row]
    runs.write_csv(directory / "loss_curve.csv", curve)
    charts.loss_curve(directory / "loss_curve.png", curve, calibration)
    tokens = int(trainer.state.num_input_tokens_seen)
    # The Trainer's own mean covers only the steps since the last restart.
    steps = [row["step"] - before["step"] for before, row in zip([{"step": 0}, *curve], curve, strict=False)]
    train_loss = sum(n * row["loss"] for n, row in zip(steps, curve, strict=True)) / sum(steps)
    metrics = {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch, 4),
        "train_loss": round(train_loss, 5),
        "calibration": calibration,
        "trainable_parameters": trainable,
        "tokens_seen": tokens,
        "training_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_memory_gb": memory.peak_memory_gb(),
        "predicted_memory_gb": round(predicted_gb, 3),
    }
    with runs.atomic_path(directory / "adapter") as partial:
        trainer.model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        models.write_model_card(
            partial,
            settings["BASE_MODEL"],
            f"LoRA adapter for FinQA programs, run `{settings['RUN']}`.",
            train_loss=metrics["train_loss"],
            rank=settings["LORA_RANK"],
        )
    return metrics


def merge(directory: Path, s: dict, calibration: datasets.Dataset, device: torch.device, dtype: torch.dtype) -> dict:
    """Merge a run's adapter into 16-bit weights: ``merged/``, a standard checkpoint and a run that can be named.

    ``MERGE_INTO`` says which weights: ``"dequantized"``, the quantized base as the adapter was trained against it, or
    ``"original"``, the base before it was quantized, whose rounding error the adapter may have learnt to undo.
    ``"better"`` makes both and keeps the one of lower NLL on the calibration split, where 16 bits fit the device.
    The weights are merged on the CPU, one after another, and written shard by shard.
    """
    record = runs.read_json(directory / "settings.json")
    path = models.base_model_path(s["BASE_MODEL"], s["RESULTS_DIR"])
    config = AutoConfig.from_pretrained(path)
    ways, reason = [s["MERGE_INTO"]], "asked for"
    if s["MERGE_INTO"] == BETTER:
        ways, reason = list(MERGE_INTO), "lower NLL on the calibration split"
        if device.type == "cuda" and memory.inference_gb(config, 2048) > torch.cuda.mem_get_info()[0] / 1e9:
            ways, reason = ["dequantized"], "not compared: the merged model does not fit this GPU"
    half = torch.float16 if dtype == torch.float16 else torch.bfloat16
    collator = TargetCollator(models.load_tokenizer(str(directory / "adapter")).pad_token_id)
    folders = {way: directory / f".merged-{way}.partial" for way in ways}
    scores: dict[str, dict[str, float]] = {}
    try:
        for way, folder in folders.items():
            models.merge_adapter(directory, s["RESULTS_DIR"], way == "original", folder, half)
            if len(ways) == 1:
                continue
            model = None
            try:
                model = models.load_base(str(folder), "auto", device, dtype).eval()
                nll, exact = score_targets(model, calibration, collator, 2 * s["BATCH_SIZE"], dtype)
            except torch.cuda.OutOfMemoryError:  # dequantized comes first and is there
                ways, scores, reason = ways[:1], {}, "not compared: the merged model does not fit this GPU"
                break
            finally:
                del model
            scores[way] = {
                "calibration_nll": round(nll.mean().item(), 5),
                "calibration_exact": round(exact.float().mean().item(), 5),
            }
        kept = min(ways, key=lambda way: scores[way]["calibration_nll"]) if scores else ways[0]
        adapter = hashlib.sha256((directory / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
        # The adapter's hash tells one training from another of the same settings.
        found = {"merged_into": kept, "why": reason, "scores": scores, "adapter": adapter}
        # What a run has, so that merged weights can be evaluated, quantized and started from by name.
        runs.write_json(folders[kept] / "settings.json", record | {"base_precision": "auto"})
        runs.write_json(folders[kept] / "train_metrics.json", found)
        shutil.rmtree(directory / "merged", ignore_errors=True)
        folders[kept].rename(directory / "merged")
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
    shown = "; ".join(
        f"{way}: NLL {score['calibration_nll']:.4f}, exact {score['calibration_exact']:.1%}"
        for way, score in scores.items()
    )
    print(f"merged into the {kept} weights ({reason}{': ' + shown if shown else ''})")
    return found
