"""How a shrinking model is trained: the Trainer of every phase with the loss against a teacher."""

import gc
from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from fincompress import distributed, training
from fincompress.sapling.losses import RecoveryLoss

WARMUP = 0.1  # share of a stage's steps over which the learning rate rises; then it falls as a cosine


class RecoveryTrainer(training.TargetTrainer):
    """``TargetTrainer`` with the loss ``recovery_loss``."""

    recovery_loss: RecoveryLoss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.recovery_loss(model, inputs, num_items_in_batch) * distributed.size()  # gradients are averaged

    def _load_from_checkpoint(self, checkpoint, model=None):
        """Adapters are read here: the Trainer's own then trains those of all units, and in some of its versions leaves
        out the student's where the teacher's lies beside it."""
        if not hasattr(self.model, "peft_config"):
            return super()._load_from_checkpoint(checkpoint, model)
        return set_peft_model_state_dict(self.model, load_file(Path(checkpoint, "adapter_model.safetensors")))


def train(
    model, rows: training.TrainingRows, loss: RecoveryLoss, folder: Path, settings: dict, *, name: str, tokenizer,
    device: torch.device, dtype: torch.dtype, recompute: bool = False, callbacks=(),
) -> tuple[RecoveryTrainer, float]:  # fmt: skip
    """Train ``model`` once on ``rows``; returns the trainer and the seconds that it took.

    What was stopped in here resumes from the last checkpoint in ``folder``, of which there is one every SAVE_STEPS.
    """
    gc.collect()  # accelerate's wrapper of forward is a reference cycle: copies that were scored stay without it
    arguments = training.training_arguments(
        settings, folder, device, dtype, warmup_steps=WARMUP, num_train_epochs=1,
        save_steps=settings["SAVE_STEPS"], save_total_limit=1, gradient_checkpointing=recompute,
    )  # fmt: skip
    progress = training.Progress(name)
    trainer = RecoveryTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=training.TargetCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=[progress, *callbacks],
        dtype=dtype,
    )
    trainer.recovery_loss = loss
    checkpoint = distributed.from_main(lambda: training.last_checkpoint(folder))
    if checkpoint:
        print(f"resuming from {checkpoint.name} of this stage")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    return trainer, progress.clock.seconds()
