"""Compiled blocks: the same training, while it lasts, and none where it does not pay or cannot be done."""

import copy

import datasets
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from fincompress import models
from fincompress.training import TargetTrainer, TrainingRows, compiled, training_arguments
from fincompress.training.loss import TargetCollator, score_targets
from tests.training.test_trainer import make_rows

CPU = torch.device("cpu")


def losses_of_training(base, folder, callbacks=()):
    settings = {
        "LEARNING_RATE": 1e-3, "LR_SCHEDULE": "constant_with_warmup", "WARMUP": 0, "WEIGHT_DECAY": 0, "SEED": 0,
        "MAX_GRAD_NORM": 1.0, "BATCH_SIZE": 2, "GRADIENT_ACCUMULATION": 1, "OPTIMIZER": None, "LOGGING_STEPS": 1,
    }  # fmt: skip
    arguments = training_arguments(settings, folder, CPU, torch.float32, max_steps=4, save_strategy="no")
    rows = TrainingRows(datasets.Dataset.from_list(make_rows(8)), None, None, 0)
    model = models.load_base(base, "fp32", CPU, torch.float32)
    trainer = TargetTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=TargetCollator(0), callbacks=[*callbacks]
    )
    trainer.train()
    return model, [row["loss"] for row in trainer.state.log_history if "loss" in row]


class Watch(TrainerCallback):
    """Looks at the model, and at a copy of it, at the end of the first step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.compiled = [block._compiled_call_impl is not None for block in model.model.layers]
        self.copied = [block._compiled_call_impl is not None for block in copy.deepcopy(model).model.layers]


def test_blocks_are_compiled_while_they_are_trained_and_learn_the_same(tiny_base, tmp_path, monkeypatch):
    _, expected = losses_of_training(tiny_base, tmp_path / "plain")
    monkeypatch.setattr(compiled, "STEPS", 4)
    watch, before = Watch(), counters["stats"]["unique_graphs"]
    model, losses = losses_of_training(tiny_base, tmp_path / "compiled", [watch])
    assert counters["stats"]["unique_graphs"] > before
    assert len(losses) == 4 and losses == pytest.approx(expected, rel=1e-4)
    assert all(watch.compiled) and not any(watch.copied)
    assert all(block._compiled_call_impl is None for block in model.model.layers)


def test_short_trainings_are_not_compiled(tiny_base, tmp_path):
    watch = Watch()
    losses_of_training(tiny_base, tmp_path, [watch])
    assert not any(watch.compiled)


def test_without_a_compiler_training_goes_on_and_says_why_it_is_slower(tiny_base, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("No working C++ compiler found\nin a long text")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(compiled, "STEPS", 4)
    compiled.compiler_works.cache_clear()
    watch = Watch()
    try:
        losses_of_training(tiny_base, tmp_path, [watch])
    finally:
        compiled.compiler_works.cache_clear()
    assert not any(watch.compiled)
    assert "blocks are not compiled, so slower by half: No working C++ compiler found\n" in capsys.readouterr().out


def test_scores_while_blocks_are_compiled_are_those_of_plain_blocks(tiny_base, monkeypatch):
    monkeypatch.setattr(compiled, "STEPS", 4)
    model = models.load_base(tiny_base, "auto", CPU, torch.bfloat16)
    scored = datasets.Dataset.from_list(make_rows(8)), TargetCollator(0), 4, torch.bfloat16
    plain = score_targets(model, *scored)[0]
    with compiled.compiled_blocks([model], 4):
        assert torch.equal(score_targets(model, *scored)[0], plain)
