"""benchmarks/page_prefix.py: questions behind one prefix get the outputs and the loss that each gets with it alone."""

import dataclasses
import runpy

import datasets
import pytest
import torch

from fincompress import generation, models
from fincompress.finqa import examples, synthetic
from fincompress.training.loss import TargetCollator, target_logits, target_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path("benchmarks/page_prefix.py")


@pytest.fixture(scope="module")
def parts(tiny_base):
    model = models.load_base(tiny_base, "fp32", CPU, torch.float32).eval().double()  # no rounding decides a token
    with torch.no_grad():
        model.lm_head.weight.mul_(5)  # clear winners
    return model, models.load_tokenizer(tiny_base)


@pytest.fixture(scope="module")
def pages(script, parts):
    """Three pages with one, two and three questions."""
    records = synthetic.generate("dev", count=6)
    asked = [examples.parse_example(record) for record in records]
    groups = [asked[:1], asked[1:3], asked[3:]]
    for group in groups:  # of one page
        first = group[0]
        page = {"table": first.table, "pre_text": first.pre_text, "post_text": first.post_text}
        group[1:] = [dataclasses.replace(one, **page) for one in group[1:]]
    return [script["make_page"](group, parts[1]) for group in groups]


def questions(pages):
    return [question for page in pages for question in page["questions"]]


def test_a_shared_cache_gives_the_outputs_of_prompts_alone(script, parts, pages):
    model, tokenizer = parts
    expected = generation.generate(model, tokenizer, datasets.Dataset.from_list(questions(pages)), 1, 96)
    found = script["generate_by_page"](model, tokenizer, pages)
    assert found == [one["output"] for one in expected]
    assert len(set(found)) > 4


def test_packed_questions_have_the_loss_of_each_alone(script, parts, pages):
    model, tokenizer = parts
    model.set_attn_implementation("eager")
    inputs, positions, targets = script["pack"](pages, tokenizer.pad_token_id, torch.float64)
    with torch.no_grad():
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        packed = torch.nn.functional.cross_entropy(model.lm_head(hidden[positions]), targets, reduction="none")
        alone = []
        for one in questions(pages):
            logits, labels = target_logits(model, TargetCollator(tokenizer.pad_token_id)([one]))
            alone.append(float(target_loss(logits, labels)))
    sizes = [len(one["target"]) for one in questions(pages)]
    assert [float(part.mean()) for part in packed.split(sizes)] == pytest.approx(alone, abs=1e-4)
