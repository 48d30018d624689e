"""How a shrinking model is trained: with the loss against its teacher, and with moments that outlive a drop."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from transformers import PrinterCallback

from fincompress import provenance, training
from fincompress.sapling import losses
from fincompress.sapling.state import Moments
from fincompress.sapling.teacher import Teacher, TeachingCache
from fincompress.training.loss import IGNORE, target_outputs

if TYPE_CHECKING:
    from fincompress.sapling.run import Run


@dataclass
class Recovery:
    """The loss of one batch: ``kl`` * KL + ``cross_entropy`` * CE, and hidden states scaled by ``hidden_states``."""

    kl: float
    cross_entropy: float
    hidden_states: float
    temperature: float
    teacher: Teacher | None = None  # None where both weights of what it says are 0
    cache: TeachingCache | None = None  # asks the teacher once an example, and not about hidden states

    def loss(self, model, batch: dict[str, torch.Tensor], targets: torch.Tensor | int | None = None) -> torch.Tensor:
        """Mean loss per target token; ``targets`` is their number where the optimizer's step sees several batches."""
        logits, labels, states = target_outputs(model, batch, hidden_states=self.hidden_states > 0)
        counted = labels.ne(IGNORE)
        logits, tokens = logits[counted], labels[counted]
        count = len(tokens) if targets is None else targets
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.cross_entropy:
            loss = loss + self.cross_entropy * F.cross_entropy(logits.float(), tokens, reduction="sum") / count
        if self.teacher is None and self.cache is None:
            return loss
        if self.cache is not None:
            teaching, theirs = self.cache(batch), None
        else:
            taught, theirs = self.teacher(batch, hidden_states=self.hidden_states > 0)
            teaching = losses.Teaching.from_logits(taught, self.temperature)
        if self.kl:
            loss = loss + self.kl * losses.kl(logits, teaching, self.temperature).sum() / count
        if theirs is None:
            return loss
        distance = losses.hidden_distance(states, theirs, losses.matched_blocks(model), batch["attention_mask"])
        return losses.with_hidden_states(loss, distance, self.hidden_states)


class RecoveryTrainer(training.TargetTrainer):
    """``TargetTrainer`` with the loss of a ``Recovery``, whose optimizer starts from the ``moments`` it is given."""

    recovery: Recovery
    moments: Moments | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.recovery.loss(model, inputs, num_items_in_batch)

    def create_optimizer(self, *arguments, **options):
        optimizer = super().create_optimizer(*arguments, **options)
        for name, parameter in self.model.named_parameters():
            if self.moments and name in self.moments:
                optimizer.state[parameter] = self.moments[name]
        return optimizer

    def _save_checkpoint(self, *arguments, **options):
        super()._save_checkpoint(*arguments, **options)
        self.write_cache()

    def write_cache(self) -> None:
        """Keep what the teacher said: a killed run would ask again in other batches."""
        if self.recovery.cache is not None:
            self.recovery.cache.write()

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
    cache = open_cache(run)
    gc.collect()  # accelerate's wrapper of forward is a reference cycle: copies that were scored stay without it
    checkpoints = run.directory / folder
    indices, passes = training.shuffled_stream(len(run.train_set), state.examples_seen, count, s["SEED"])
    columns = training.TRAINING_COLUMNS + (["row"] if cache is not None else [])
    arguments = training.training_arguments(
        s | {"LR_SCHEDULE": schedule}, checkpoints, student.device, student.dtype, num_train_epochs=1,
        save_steps=s["SAVE_STEPS"], save_total_limit=1, gradient_checkpointing=student.recomputes,
    )  # fmt: skip
    progress = training.Progress(name)
    trainer = RecoveryTrainer(
        model=student.model,
        args=arguments,
        train_dataset=run.train_set.select(indices).select_columns(columns),
        data_collator=run.collator,
        processing_class=run.tokenizer,
        callbacks=[progress, *callbacks],
    )
    trainer.passes = passes
    trainer.moments = moments
    trainer.recovery = Recovery(s["KL"], s["CROSS_ENTROPY"], s["HIDDEN_STATES"], s["TEMPERATURE"], run.teacher, cache)
    trainer.remove_callback(PrinterCallback)
    checkpoint = training.last_checkpoint(checkpoints)
    if checkpoint:
        print(f"going on from {checkpoint.name} of this stage")
    with run.explain_out_of_memory():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.write_cache()
    student.model.eval()
    step = state.loss_curve[-1]["step"] if state.loss_curve else 0
    state.loss_curve += [
        {"step": step + row["step"], "stage": name.partition(",")[0], "units_left": student.left}
        | {key: row[key] for key in ("loss", "learning_rate")}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    return trainer, progress.clock.seconds()


def open_cache(run: Run) -> TeachingCache | None:
    """What the teacher says of the training set; None where its hidden states are needed too."""
    s = run.settings
    if s["KL"] == 0 or s["HIDDEN_STATES"] > 0:
        return None
    if run.cache is None:
        if "row" not in run.train_set.column_names:
            run.train_set = run.train_set.add_column("row", list(range(len(run.train_set))))
        identity = provenance.fingerprint(run.facts, s["TEACHER"], s["TEMPERATURE"], losses.TOP_K)
        run.cache = TeachingCache(run.directory / "teaching.safetensors", identity, run.teacher, s["TEMPERATURE"])
    return run.cache
