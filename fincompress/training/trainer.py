"""The Trainer that every phase uses: loss on the target alone, batches of like length, one progress bar, resume."""

import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from bitsandbytes.optim import GlobalOptimManager
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from fincompress import distributed, memory, models, runs
from fincompress.errors import UserError
from fincompress.settings import check_choice
from fincompress.training.loss import target_logits, target_loss
from fincompress.training.report import check_report_to
from fincompress.training.rows import FIGURES, TrainingRows

WINDOW = 50  # batches that are sorted by length together
WARMUP = 0.05  # share of all steps over which the learning rate rises: adapters start at zero and take little harm


class TargetTrainer(Trainer):
    """``Trainer`` with the loss on target tokens alone, and batches of like length in an order of its own.

    Its training set are ``TrainingRows``. Several processes share each batch. ``dtype`` is what it computes in.
    """

    def __init__(self, *arguments, dtype: torch.dtype = torch.float32, **options):
        super().__init__(*arguments, **options)
        self.dtype = dtype
        self.remove_callback(PrinterCallback)  # it prints every log as a dictionary

    def train(self, *arguments, **options):
        """``Trainer.train``, on a CPU with attention as plain products.

        The backward pass of torch's flash attention takes a CPU several times as long for prompts of some hundred
        tokens: a seventh of a step.
        """
        before = self.model.config._attn_implementation
        if self.args.use_cpu:
            self.model.set_attn_implementation("eager")
        try:
            return super().train(*arguments, **options)
        finally:
            self.model.set_attn_implementation(before)

    def compute_loss_context_manager(self):
        """bf16 by autocast around the loss. accelerate's, around the model, would give out all that a model returns in
        float32: hidden states that are to be matched would take twice the memory.
        """
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def training_step(self, *arguments, **options):
        """``Trainer.training_step``; raises UserError where the loss is not finite: every later step would be lost."""
        loss = super().training_step(*arguments, **options)
        whole = distributed.total(loss) / distributed.size()
        if not torch.isfinite(whole):
            step = self.state.global_step + 1
            raise UserError(f"the loss is {whole.item()} at step {step}: lower LEARNING_RATE, under another RUN")
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits, labels = target_logits(model, inputs)
        loss = target_loss(logits, labels, num_items_in_batch) * distributed.size()  # gradients are averaged
        return (loss, logits) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None):
        args = self.args
        batch_size, shares = args.train_batch_size * args.world_size, args.world_size > 1
        step = batch_size * args.gradient_accumulation_steps
        return LengthGroupedSampler(self.train_dataset, step, args.seed, fill=batch_size if shares else 1)


class LengthGroupedSampler(torch.utils.data.Sampler):
    """Shuffled order in which neighbours have like lengths; epoch k's order depends on the seed and k alone.

    transformers' own sampler draws from the global generator: a resumed run would see another order than an unbroken
    one. Where the rows are several passes over the same examples, one pass comes after another: shuffled together,
    copies of an example, which are of one length, would meet in a batch. The order is filled up to a multiple of
    ``fill`` by repeating what is over: processes that share batches need whole ones.
    """

    def __init__(self, rows: TrainingRows, batch_size: int, seed: int, fill: int = 1):
        self.rows, self.lengths, self.batch_size, self.seed = rows, rows.lengths, batch_size, seed
        self.fill = fill

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch, also of a resumed one."""
        self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.fill) * self.fill

    def __iter__(self) -> Iterator[int]:
        order = list(self._order())
        yield from order
        over = order[len(order) - len(order) % self.fill :]
        yield from itertools.islice(itertools.cycle(over), len(self) - len(order))

    def _order(self) -> Iterator[int]:
        generator = _generator(self.seed, self.rows.epoch)
        size = WINDOW * self.batch_size
        begin, short = 0, []
        for rows in self.rows.passes:
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


def shuffled_stream(examples: int, start: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices ``start`` to ``start + count`` of an endless stream over the examples, shuffled again at each pass.

    Also returns how many of them belong to each pass, in order.
    """
    indices, passes = [], []
    for epoch in range(start // examples, (start + count - 1) // examples + 1):
        order = torch.randperm(examples, generator=_generator(seed, epoch)).tolist()
        part = order[max(0, start - epoch * examples) : start + count - epoch * examples]
        indices += part
        passes.append(len(part))
    return indices, passes


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1000003 + epoch)


class Progress(TrainerCallback):
    """One progress bar for a stage of training; keeps the clock across restarts.

    The last step leaves no checkpoint: from one in the middle of an epoch the Trainer would take a step too many.
    """

    def __init__(self, name: str = "training"):
        self.name = name
        self.bar: tqdm | None = None
        self.clock = runs.Stopwatch()

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock = runs.Stopwatch(max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0))
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", smoothing=0.05,
            disable=not distributed.is_main(),
        )  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last steps too, and those of a run shorter than LOGGING_STEPS
            control.should_save = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        # log_history is saved with each checkpoint, so a resumed run finds its clock there.
        state.log_history[-1]["seconds"] = round(self.clock.seconds(), 1)
        if "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half-written ones, left by a kill, are removed."""
    for path in directory.glob("checkpoint-*"):
        try:
            runs.read_json(path / "trainer_state.json")  # the Trainer writes it last
        except UserError:
            shutil.rmtree(path)
    return max(directory.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), default=None)


def check_settings(s: dict) -> None:
    """Raise UserError for a constant that every training script has and that makes no sense."""
    check_choice("AUGMENT", s["AUGMENT"] or FIGURES, (FIGURES,))
    if s["SAVE_STEPS"] % s["LOGGING_STEPS"]:
        raise UserError("SAVE_STEPS must be a multiple of LOGGING_STEPS, or a restart loses part of the loss curve")
    if s["BATCH_SIZE"] % distributed.size():
        raise UserError(
            f"BATCH_SIZE = {s['BATCH_SIZE']} cannot be shared by {distributed.size()} processes: make it a multiple of "
            f"{distributed.size()}, and GRADIENT_ACCUMULATION as much smaller as it gets larger"
        )
    check_report_to(s["REPORT_TO"])


def release_model() -> None:
    """Give back what a trained model held, once nothing refers to it.

    accelerate's wrapper of forward is a reference cycle, and an 8-bit optimizer registers the embeddings for good.
    """
    GlobalOptimManager.get_instance().module_weight_config_triple.clear()
    memory.release_unused()
    torch.cuda.empty_cache()


def default_optimizer(device: str) -> str:
    return "adamw_bnb_8bit" if device == "cuda" else "adamw_torch_fused"


def run_facts(
    s: dict, base_precision: str, data_record: dict, device: torch.device, dtype: torch.dtype
) -> dict[str, object]:
    """What decides the result of a training beside its constants ``s``; ``data_record`` is that of the data run."""
    made = models.base_fingerprint(s["BASE_MODEL"])
    return ({"base": made} if made else {}) | {
        "base_model": s["BASE_MODEL"],
        "base_precision": base_precision,
        "data": data_record["data"],
        "data_hash": data_record["data_hash"],
        # A run must not be resumed with another one of these on another machine.
        "dtype": str(dtype).removeprefix("torch."),
        "optimizer": default_optimizer(device.type),
    }


def training_arguments(
    s: dict, directory: Path, device: torch.device, dtype: torch.dtype, reentrant: bool = False, **options
) -> TrainingArguments:
    """The Trainer's arguments from a script's constants ``s``; ``options`` is what the scripts do differently.

    The learning rate rises over WARMUP and falls as a cosine. There is no weight decay, and gradients are clipped to
    norm 1, as the Trainer does by default. Of several processes each takes its share of BATCH_SIZE: a step sees as many
    examples as with one.
    """
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": WARMUP}
    arguments = TrainingArguments(
        output_dir=str(directory),
        learning_rate=s["LEARNING_RATE"],
        per_device_train_batch_size=s["BATCH_SIZE"] // distributed.size(),
        gradient_accumulation_steps=s["GRADIENT_ACCUMULATION"],
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        optim=default_optimizer(device.type),
        fp16=dtype == torch.float16,  # which scales gradients; bf16 is TargetTrainer's
        use_cpu=device.type == "cpu",
        logging_steps=s["LOGGING_STEPS"],
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,  # all that is trained is used; reentrant recomputation allows no search
        seed=s["SEED"],
        report_to="none",  # Report hands on what is logged, over all stages of a run
        **schedule | options,
    )
    # accelerate's launcher says so by its own config, which would train in another type than is recorded.
    arguments.mixed_precision = "fp16" if arguments.fp16 else "no"
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process that sees several GPUs would split each batch among them
    return arguments
