"""Writing: shards that are a whole checkpoint, and adapters merged into weights read one by one."""

import pytest
import torch
from training_rows import write_adapter
from transformers import AutoModelForCausalLM

from fincompress import models, runs
from fincompress.errors import UserError


def test_a_checkpoint_of_several_shards_is_whole_and_one_shard_at_a_time_is_held(tiny_base, tmp_path):
    expected = AutoModelForCausalLM.from_pretrained(tiny_base)
    held: list[int] = []

    def tensors():
        for name, parameter in expected.named_parameters():
            held.append(parameter.nbytes)
            yield name, parameter.detach()

    limit = 2 * max(parameter.nbytes for parameter in expected.parameters())
    models.write_weights(tmp_path, tensors(), shard_bytes=limit)
    expected.config.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 and shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < 1.01 * limit + 10_000 for shard in shards)
    index = runs.read_json(tmp_path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(held)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


def test_a_base_that_lacks_weights_is_not_merged_into(tiny_base, tmp_path):
    write_adapter(tmp_path / "run", tiny_base, "nf4", "nf4")
    adapter = tmp_path / "run" / "adapter"
    with pytest.raises(UserError, match="lack weights, such as lm_head.weight"):
        list(models.merged_tensors(adapter, models.read_config(tiny_base), adapter, torch.bfloat16))
