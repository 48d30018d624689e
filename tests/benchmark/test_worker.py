"""What a worker measures of its model."""

from dataclasses import asdict

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fincompress import memory, models
from fincompress.benchmark import worker as workers
from fincompress.benchmark.subjects import Subject, weight_files

CPU = torch.device("cpu")


def load(path):
    worker = workers.Worker()
    return worker, worker.load(asdict(Subject("a", "shape:tiny", str(path), weight_files(str(path)))), "results", None)


def test_every_call_decodes_after_the_same_prompt(tiny_base, monkeypatch):
    worker, _ = load(tiny_base)
    calls = []
    original = type(worker.model).forward

    def forward(self, *arguments, **named):
        calls.append(named["input_ids"])
        return original(self, *arguments, **named)

    monkeypatch.setattr(type(worker.model), "forward", forward)
    for _ in range(2):
        assert len(worker.decode(context=64, batch=2, new_tokens=5)["seconds"]) == 5
    prompt, first, second = calls[0], calls[1:7], calls[7:]
    assert prompt.shape == (1, 64) and all(step.shape == (2, 1) for step in first)
    assert len(calls) == 13 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert worker.prompts[64][0].get_seq_length() == 64
    worker.decode(context=64, batch=1, new_tokens=5, keep=False)
    assert worker.prompts[64][0].get_seq_length() == 70  # no copy was made


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_per_token_leave_out_an_embedding_table_that_is_not_the_head(tmp_path, tiny_base, tied):
    config = LlamaConfig(**models.SHAPES["tiny"] | {"tie_word_embeddings": tied})
    model = AutoModelForCausalLM.from_config(config)
    models.write_checkpoint(tmp_path / "m", model, models.load_tokenizer(tiny_base), torch.float32)
    worker, loaded = load(tmp_path / "m")
    table = 2048 * 64 * worker.dtype.itemsize
    assert round(loaded["in_memory_gb"] * 1e9) - loaded["bytes_per_token"] == (0 if tied else table)


def test_packed_weights_count_with_their_scales_and_parameters_as_if_dense(tiny_base):
    model = models.load_base(tiny_base, "nf4", CPU, torch.bfloat16, packed=True)
    packed = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    weights = sum(m.in_features * m.out_features for m in packed)
    held = sum(workers.tensor_bytes(m.weight) for m in packed)
    assert 0.5 * weights < held < 0.75 * weights  # tiny matrices: the codebook of 256 scales weighs as well
    dense = models.load_base(tiny_base, "auto", CPU, torch.bfloat16)
    assert memory.parameter_sizes(model.config)["total"] == sum(p.numel() for p in dense.parameters())
    assert workers.kernel(model).startswith("Linear4bit") and workers.kernel(dense).startswith("Linear bfloat16")


def test_what_goes_wrong_in_a_command_is_a_reply(tmp_path, monkeypatch):
    worker = workers.Worker()
    nothing = asdict(Subject("a", "shape:tiny", str(tmp_path), []))
    assert str(tmp_path) in worker.answer("load", subject=nothing, results_dir="results", limit_gb=None)["error"]

    def full(seconds):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker, "bandwidth", full)
    assert worker.answer("bandwidth", seconds=0.1) == {"error": "out of memory"}
