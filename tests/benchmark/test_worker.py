"""What a worker measures of its model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fincompress import models
from fincompress.benchmark import worker as workers
from fincompress.benchmark.subjects import Subject
from fincompress.errors import UserError

CPU = torch.device("cpu")


def load(path):
    worker = workers.Worker()
    return worker, worker.load(Subject("a", "shape:tiny", str(path)), "results", 8.0, prompt=16, new_tokens=4)


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_per_token_leave_out_an_embedding_table_that_is_not_the_head(tmp_path, tiny_base, tied):
    config = LlamaConfig(**models.SHAPES["tiny"] | {"tie_word_embeddings": tied})
    model = AutoModelForCausalLM.from_config(config)
    models.write_checkpoint(tmp_path / "m", model, models.load_tokenizer(tiny_base), torch.float32)
    worker, loaded = load(tmp_path / "m")
    parameters = sum(parameter.numel() for parameter in model.parameters()) - (0 if tied else 2048 * 64)
    assert loaded["bytes_per_token"] == pytest.approx(parameters * worker.dtype.itemsize, rel=0.01)
    assert len(worker.decode(context=64, batch=2, new_tokens=5)) == 5 and len(worker.prefill(64)) == 1


def test_a_kernel_is_named_after_the_layers_that_compute(tiny_base):
    packed = models.load_base(tiny_base, "nf4", CPU, torch.bfloat16, packed=True)
    dense = models.load_base(tiny_base, "auto", CPU, torch.bfloat16)
    assert workers.kernel(packed).startswith("Linear4bit") and workers.kernel(dense) == "Linear; attention sdpa"


def test_what_goes_wrong_in_a_command_is_a_user_error(tmp_path, monkeypatch):
    worker = workers.Worker()
    nothing = Subject("a", "shape:tiny", str(tmp_path))
    with pytest.raises(UserError, match=str(tmp_path)):
        worker.ask("load", nothing, "results", 8.0, 16, 4)

    def full(tokens):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker, "prefill", full)
    with pytest.raises(UserError, match="^out of memory$"):
        worker.ask("prefill", 4)
