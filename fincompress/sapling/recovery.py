"""How a shrinking model is trained: with the loss against its teacher, and with moments that outlive a drop."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from fincompress import distributed, runs, training
from fincompress.sapling import losses
from fincompress.sapling.state import Moments
from fincompress.sapling.teacher import TeachingCache
from fincompress.training.loss import at_targets, target_outputs

if TYPE_CHECKING:
    from fincompress.sapling.run import Run


@dataclass
class Recovery:
    """The loss of one batch: ``kl`` * KL + ``cross_entropy`` * CE, and hidden states scaled by ``hidden_states``."""

    kl: float
    cross_entropy: float
    hidden_states: float
    temperature: float
    # What says a batch's Teaching: ``Teacher.teach`` or a TeachingCache; None where both weights of what it says are 0
    teaching: Callable[[dict[str, torch.Tensor]], losses.Teaching] | None = None

    def loss(self, model, batch: dict[str, torch.Tensor], targets: torch.Tensor | int | None = None) -> torch.Tensor:
        """Mean loss per target token; ``targets`` is their number where the optimizer's step sees several batches."""
        logits, labels, states = target_outputs(model, batch, hidden_states=self.hidden_states > 0)
        logits, tokens = at_targets(logits, labels), at_targets(labels, labels)
        count = len(tokens) if targets is None else targets
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.cross_entropy:
            loss = loss + self.cross_entropy * F.cross_entropy(logits.float(), tokens, reduction="sum") / count
        if self.teaching is None:
            return loss
        taught = self.teaching(batch)
        if self.kl:
            loss = loss + self.kl * losses.kl(logits, taught, self.temperature).sum() / count
        if self.hidden_states == 0:
            return loss
        blocks = losses.matched_blocks(getattr(model, "module", model))  # where several processes train one
        ours = losses.at_positions(states, blocks, batch["attention_mask"])
        return losses.with_hidden_states(
            loss, losses.hidden_distance(ours, taught.hidden[:, blocks]), self.hidden_states
        )


class RecoveryTrainer(training.TargetTrainer):
    """``TargetTrainer`` with the loss of a ``Recovery``, whose optimizer starts from the ``moments`` it is given."""

    recovery: Recovery
    moments: Moments | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.recovery.loss(model, inputs, num_items_in_batch) * distributed.size()  # gradients are averaged

    def create_optimizer(self, *arguments, **options):
        optimizer = super().create_optimizer(*arguments, **options)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and self.moments and name in self.moments:
                optimizer.state[parameter] = self.moments[name]
        return optimizer

    def _load_from_checkpoint(self, checkpoint, model=None):
        """Adapters are read here: the Trainer's own then trains those of all units, and in some of its versions leaves
        out the student's where the teacher's lies beside it."""
        if not hasattr(self.model, "peft_config"):
            return super()._load_from_checkpoint(checkpoint, model)
        return set_peft_model_state_dict(self.model, load_file(Path(checkpoint, "adapter_model.safetensors")))

    def moments_by_name(self) -> Moments:
        """What the optimizer keeps of each trained parameter that is still in the model."""
        state = self.optimizer.state
        return {name: dict(state[p]) for name, p in self.model.named_parameters() if p in state and state[p]}


def train_stage(
    run: Run, count: int, name: str, folder: str, schedule: str, callbacks=(), moments: Moments | None = None
) -> tuple[RecoveryTrainer, float]:
    """Train on the next ``count`` examples of the stream; returns the trainer and the seconds that it took.

    A run that was killed in here resumes from the last checkpoint in ``folder``, after SAVE_STEPS.
    """
    s, state, student = run.settings, run.state, run.student
    teaching = open_teaching(run)
    gc.collect()  # accelerate's wrapper of forward is a reference cycle: copies that were scored stay without it
    checkpoints = run.directory / folder
    indices, passes = training.shuffled_stream(len(run.train_set), state.examples_seen, count, s["SEED"])
    rows = training.TrainingRows(
        run.train_set.select(indices), run.tokenizer, s["AUGMENT"], s["SEED"], passes,
        state.examples_seen // len(run.train_set), s["START_FROM"],
    )  # fmt: skip
    arguments = training.training_arguments(
        s, checkpoints, student.device, student.dtype, lr_scheduler_type=schedule,
        warmup_steps=s["WARMUP"], num_train_epochs=1,
        save_steps=s["SAVE_STEPS"], save_total_limit=1, gradient_checkpointing=student.recomputes,
    )  # fmt: skip
    progress = training.Progress(name)
    step = run.report.before = state.steps
    trainer = RecoveryTrainer(
        model=student.model,
        args=arguments,
        train_dataset=rows,
        data_collator=run.collator,
        processing_class=run.tokenizer,
        callbacks=[progress, *callbacks, run.report],
        dtype=student.dtype,
    )
    trainer.moments = moments
    trainer.recovery = Recovery(s["KL"], s["CROSS_ENTROPY"], s["HIDDEN_STATES"], s["TEMPERATURE"], teaching)
    checkpoint = distributed.from_main(lambda: training.last_checkpoint(checkpoints))
    if checkpoint:
        print(f"resuming from {checkpoint.name} of this stage")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    student.model.eval()
    state.loss_curve += [
        {"step": step + row["step"], "stage": name.partition(",")[0], "units_left": student.left}
        | {key: row[key] for key in ("loss", "learning_rate")}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    return trainer, progress.clock.seconds()


def open_teaching(run: Run) -> TeachingCache | Callable[[dict], losses.Teaching] | None:
    """What says a batch's ``Teaching``: a cache of a fixed training set where CACHE_GB has room, else the teacher.

    Of several processes each sees other examples in every pass: they ask the teacher.
    """
    s = run.settings
    hidden, temperature = s["HIDDEN_STATES"] > 0, s["TEMPERATURE"]
    if s["KL"] == 0 and not hidden:
        return None
    teacher, config, dtype, count = run.teacher, run.student.config, run.student.dtype, len(run.train_set)
    size = sum(run.train_set["target_tokens"]) * losses.TOP_K * 8  # an id and a float32 each
    if hidden:
        size += count * config.num_hidden_layers * losses.POSITIONS * config.hidden_size * dtype.itemsize
    if s["AUGMENT"] or size > 1e9 * s["CACHE_GB"] or distributed.size() > 1:
        return functools.partial(teacher.teach, temperature=temperature, hidden_states=hidden)
    folder = run.directory / "teaching"
    if not folder.exists():
        runs.check_room(run.directory, size / 1e9)
    if "row" not in run.train_set.column_names:
        run.train_set = run.train_set.add_column("row", list(range(count)))
    return TeachingCache(folder, teacher, temperature, dtype if hidden else None)
