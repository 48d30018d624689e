"""A few training steps, and a Trainer, on small random models."""

import datasets
import torch
from transformers import TrainingArguments

from fincompress.sapling.losses import RecoveryLoss
from fincompress.sapling.recovery import RecoveryTrainer
from fincompress.training.loss import TargetCollator
from fincompress.training.rows import TrainingRows


def training_steps(model, loss, batches, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        loss(model, batches[step % len(batches)]).backward()
        optimizer.step()
        optimizer.zero_grad()


def make_trainer(model, folder, steps=3, callbacks=(), **options):
    rows = [{"input_ids": list(range(3, 12 + i)), "prompt_tokens": 4, "length": 9 + i} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-3, use_cpu=True,
        report_to="none", disable_tqdm=True, remove_unused_columns=False, lr_scheduler_type="constant",
        save_strategy="no",
    )  # fmt: skip
    trainer = RecoveryTrainer(
        model=model, args=arguments, data_collator=TargetCollator(0), callbacks=list(callbacks),
        train_dataset=TrainingRows(datasets.Dataset.from_list(rows), None, None, 0), **options,
    )  # fmt: skip
    trainer.recovery_loss = RecoveryLoss(None)
    return trainer
