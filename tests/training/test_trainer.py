"""Batches of like length in an order of their own, resume from the last whole checkpoint, one-line errors."""

import datasets
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.state import PartialState
from scripts import script_globals
from training_rows import CPU, make_rows
from transformers import Trainer, TrainingArguments

from fincompress import models
from fincompress.errors import UserError
from fincompress.training import trainer
from fincompress.training.loss import TargetCollator
from fincompress.training.rows import TrainingRows


def sampler_of(lengths, seed, passes=None, fill=1):
    rows = datasets.Dataset.from_list([{"input_ids": [1], "prompt_tokens": 1, "length": length} for length in lengths])
    return trainer.LengthGroupedSampler(TrainingRows(rows, None, None, 0, passes), 8, seed, fill)


def test_sampler_visits_each_example_once_and_depends_on_seed_and_epoch_alone():
    lengths = [row["length"] for row in make_rows(203)]
    sampler = sampler_of(lengths, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(203))
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    resumed = sampler_of(lengths, seed=1)
    resumed.set_epoch(1)
    assert list(resumed) == second


@pytest.mark.parametrize("processes", [1, 2])
def test_a_pass_that_is_resumed_goes_on_in_its_own_order(processes):
    PartialState()
    sampler = sampler_of([1 + i % 7 for i in range(32)], seed=0, fill=processes)
    loader = torch.utils.data.DataLoader(sampler.rows, 4 // processes, sampler=sampler, collate_fn=list)
    loader = prepare_data_loader(loader, num_processes=processes, process_index=0, put_on_device=False)
    resumed = skip_first_batches(loader, 3)  # as the Trainer goes on behind a checkpoint
    resumed.set_epoch(2)
    rest = list(resumed.batch_sampler)
    assert sampler.rows.epoch == 2
    loader.set_epoch(2)
    assert list(loader.batch_sampler)[3:] == rest


def test_processes_that_share_batches_get_whole_ones_and_otherwise_the_same_order():
    lengths = [row["length"] for row in make_rows(202)]
    alone, shared = (list(sampler_of(lengths, seed=1, fill=fill)) for fill in (1, 8))
    assert shared[:202] == alone and len(shared) == len(sampler_of(lengths, seed=1, fill=8)) == 208
    assert shared[202:] == (alone[200:] * 3)  # what is over: in the mean over the batch each counts as it does alone


def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(trainer.distributed, "size", lambda: 4)
    wanted = {"AUGMENT": None, "REPORT_TO": None}
    constants = wanted | {"SAVE_STEPS": 1, "LOGGING_STEPS": 1, "BATCH_SIZE": 6}
    with pytest.raises(UserError, match="^BATCH_SIZE = 6 cannot be shared by 4 processes: make it a multiple of 4"):
        trainer.check_settings(constants)
    trainer.check_settings(constants | {"BATCH_SIZE": 8})


def test_sampler_groups_like_lengths():
    lengths = [row["length"] for row in make_rows(400)]

    def padding(order):
        batches = [[lengths[i] for i in order[k : k + 8]] for k in range(0, 400, 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(list(sampler_of(lengths, seed=0))) < padding(list(range(400))) / 4


@pytest.mark.parametrize(("start", "count"), [(0, 500), (0, 200), (70, 500), (150, 40)])
def test_copies_of_an_example_do_not_meet_in_a_whole_batch_of_a_pass(start, count):
    rows, passes = trainer.shuffled_stream(200, start, count, seed=0)
    assert trainer.shuffled_stream(200, 0, start + count, seed=0)[0][start:] == rows  # a stage goes on in one stream
    first = 0
    for part in passes:
        assert len(set(rows[first : first + part])) == part  # no example twice within a pass
        first += part
    examples = make_rows(200)
    lengths = [examples[i]["length"] for i in rows]
    order = list(sampler_of(lengths, seed=1, passes=passes))
    assert sorted(order) == list(range(count))
    batches = [[rows[i] for i in order[k : k + 8]] for k in range(0, count, 8)]
    whole = sum(part // 8 for part in passes)  # what is over of each pass comes last
    assert all(len(set(batch)) == 8 for batch in batches[:whole])
    assert set(order[: passes[0] // 8 * 8]) <= set(range(passes[0]))


def test_half_written_checkpoints_are_removed_and_the_newest_whole_one_is_taken(tmp_path):
    for step, whole in ((9, True), (100, True), (200, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert trainer.last_checkpoint(tmp_path).name == "checkpoint-100"
    assert not (tmp_path / "checkpoint-200").exists()
    assert trainer.last_checkpoint(tmp_path / "nothing") is None


def test_small_batches_of_one_step_are_the_large_batch(tiny_base, tmp_path):
    curves = []
    for batch, steps in ((4, 1), (2, 2)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=4, logging_steps=1,
            save_strategy="no", per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
            remove_unused_columns=False,
        )  # fmt: skip
        rows = TrainingRows(datasets.Dataset.from_list(make_rows(32)), None, None, 0)
        model = models.load_base(tiny_base, "fp32", CPU, torch.float32)
        target_trainer = trainer.TargetTrainer(
            model=model, args=arguments, train_dataset=rows, data_collator=TargetCollator(0)
        )
        assert isinstance(target_trainer.get_train_dataloader().batch_sampler.sampler, trainer.LengthGroupedSampler)
        target_trainer.train()
        curves.append([row["loss"] for row in target_trainer.state.log_history if "loss" in row])
    assert len(curves[0]) == 4 and curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training_with_its_step(tiny_base, tmp_path, monkeypatch, value):
    model, loss, steps = models.load_base(tiny_base, "fp32", CPU, torch.float32), trainer.target_loss, []

    def compute(*arguments):
        steps.append(1)
        return loss(*arguments) * (value if len(steps) == 3 else 1)

    monkeypatch.setattr(trainer, "target_loss", compute)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=5, save_strategy="no",
        per_device_train_batch_size=2, remove_unused_columns=False,
    )  # fmt: skip
    rows = TrainingRows(datasets.Dataset.from_list(make_rows(20)), None, None, 0)
    training = trainer.TargetTrainer(model=model, args=arguments, train_dataset=rows, data_collator=TargetCollator(0))
    with pytest.raises(UserError, match=f"^the loss is {value} at step 3: lower LEARNING_RATE"):
        training.train()
    assert len(steps) == 3


def test_attention_is_plain_products_while_a_cpu_trains_and_as_it_was_afterwards(tiny_base, tmp_path, monkeypatch):
    model, seen = models.load_base(tiny_base, "fp32", CPU, torch.float32), []
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(self.model.config._attn_implementation))
    before = model.config._attn_implementation
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer.TargetTrainer(model=model, args=arguments).train()
    assert before == "sdpa" and seen == ["eager"] and model.config._attn_implementation == before


@pytest.mark.parametrize(("dtype", "scaled"), [(torch.float32, "no"), (torch.bfloat16, "no"), (torch.float16, "fp16")])
def test_a_launchers_config_chooses_no_other_type_than_is_recorded(tmp_path, monkeypatch, dtype, scaled):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = trainer.training_arguments(script_globals("train_qlora_4bit.py"), tmp_path, CPU, dtype)
    used = Trainer(torch.nn.Linear(1, 1), arguments).accelerator.mixed_precision
    assert arguments.mixed_precision == used == scaled
