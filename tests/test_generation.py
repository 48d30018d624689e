"""Batched decoding writes for each question what the model writes for it alone, in the order of the questions."""

import copy
import functools

import datasets
import pytest
import torch
from training_rows import make_rows

from fincompress import generation, models

CPU = torch.device("cpu")
NEW = 12


@pytest.fixture(scope="module")
def parts(tiny_base):
    """A random model of varied output in float32, its tokenizer, and questions of many lengths."""
    model = models.load_base(tiny_base, "fp32", CPU, torch.float32).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(5)  # clear winners, so that no padding decides by its rounding
    return model, models.load_tokenizer(tiny_base), datasets.Dataset.from_list(make_rows(11))


@torch.no_grad()
def alone(model, row):
    """Greedy tokens after one prompt, the whole network run again for each of them: no batch, no padding, no cache."""
    ids = row["input_ids"][: row["prompt_tokens"]]
    for _ in range(NEW):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[row["prompt_tokens"] :]


@pytest.mark.parametrize("batch_size, stage", [(1, 5), (4, 1), (64, 5), (64, NEW)])
def test_outputs_are_those_of_each_prompt_alone_and_end_before_eos(parts, batch_size, stage, monkeypatch):
    model, tokenizer, rows = parts
    monkeypatch.setattr(generation, "STAGE", stage)
    expected = [alone(model, row) for row in rows]
    end = expected[3][5]  # a token that some of them write, so as to end there
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    assert tokenizer.eos_token_id == end
    generated = generation.generate(model, tokenizer, rows, batch_size, NEW)
    assert len({tuple(tokens) for tokens in expected}) > 8 and 0 < sum(row["ended"] for row in generated) < len(rows)
    for tokens, row in zip(expected, generated, strict=True):
        ended = end in tokens
        cut = tokens[: tokens.index(end)] if ended else tokens
        assert row == {
            "output": tokenizer.decode(cut, skip_special_tokens=True), "ended": ended, "new_tokens": len(cut) + ended
        }  # fmt: skip


def test_a_repetition_penalty_of_the_checkpoint_is_none_on_figures_that_are_copied(parts):
    model, tokenizer, rows = parts
    expected = generation.generate(model, tokenizer, rows, 4, NEW)
    model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 5.0, 1
    assert generation.generate(model, tokenizer, rows, 4, NEW) == expected


def test_what_has_ended_leaves_the_batch_after_every_stage(parts, monkeypatch):
    model, tokenizer, rows = parts
    expected = [alone(model, row) for row in rows]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(expected[3][5])
    sizes, original = [], type(model).forward

    @functools.wraps(original)  # generate() reads its arguments
    def forward(self, input_ids, **named):
        sizes.append(len(input_ids))
        return original(self, input_ids=input_ids, **named)

    monkeypatch.setattr(generation, "STAGE", 4)
    monkeypatch.setattr(type(model), "forward", forward)
    generation.generate(model, tokenizer, rows, len(rows), NEW)
    going_on = [sum(tokenizer.eos_token_id not in tokens[:made] for tokens in expected) for made in (0, 4, 8)]
    assert len(rows) == going_on[0] > going_on[2] > 0
    assert sizes == [count for count in going_on for _ in range(4)]


@torch.no_grad()
def test_timed_decoding_is_greedy_as_generate_does_it_and_not_stopped_by_eos(parts, monkeypatch):
    model, _, _ = parts
    steps = []
    original = type(model).forward

    def forward(self, *arguments, **named):
        steps.append(named["input_ids"])
        return original(self, *arguments, **named)

    cache, token, seconds = generation.time_prefill(model, 64)
    monkeypatch.setattr(type(model), "forward", forward)
    assert seconds > 0 and len(generation.time_decoding(model, cache, token, NEW, batch=2)) == NEW
    assert generation.decode_latency_ms(model, NEW) > 0
    monkeypatch.undo()
    prompt, written = steps[NEW + 1], torch.cat(steps[: NEW + 1], 1)
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                              max_new_tokens=NEW + 1, eos_token_id=None)  # fmt: skip
    assert written.tolist() == [expected[0, 64:].tolist()] * 2 and len(steps) == NEW + 1 + 1 + NEW + 1
