"""Writing: shards that are a whole checkpoint, and adapters merged into weights read one by one."""

import weakref

import torch
from transformers import AutoModelForCausalLM

from fincompress import models, runs


def test_a_checkpoint_of_several_shards_is_whole_and_one_shard_at_a_time_is_held(tiny_base, tmp_path):
    expected = AutoModelForCausalLM.from_pretrained(tiny_base)
    written: list[weakref.ref] = []
    limit = 2 * max(parameter.nbytes for parameter in expected.parameters())

    def tensors():
        for name, parameter in expected.named_parameters():
            tensor = parameter.detach().clone()
            written.append(weakref.ref(tensor))
            assert sum(one().nbytes for one in written if one() is not None) <= limit + tensor.nbytes
            yield name, tensor

    models.write_weights(tmp_path, tensors(), shard_bytes=limit)
    expected.config.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 and shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < 1.01 * limit + 10_000 for shard in shards)
    index = runs.read_json(tmp_path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in expected.parameters())
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
