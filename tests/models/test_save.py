"""Writing: whatever the model holds its weights in, a standard checkpoint of copies, tied weights once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from fincompress import models
from fincompress.models import save


def test_a_checkpoint_is_whole_standard_and_in_the_type_asked_for(tiny_base, tmp_path):
    expected = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    models.write_checkpoint(tmp_path, expected, models.load_tokenizer(tiny_base), torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    saved, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and saved.dtype == torch.bfloat16
    assert all(torch.equal(value.bfloat16(), saved.state_dict()[name]) for name, value in expected.state_dict().items())
    assert models.load_tokenizer(str(tmp_path)).get_vocab() == models.load_tokenizer(tiny_base).get_vocab()


def test_a_checkpoint_says_where_text_ends_and_nothing_of_sampling_or_penalties(tiny_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    ends = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0}
    options = {"repetition_penalty": 1.1, "temperature": 0.6, "do_sample": True}
    model.generation_config = GenerationConfig(**ends | options)
    models.write_checkpoint(tmp_path, model, models.load_tokenizer(tiny_base), torch.bfloat16)
    written = GenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(written, name) for name in ends} == ends
    assert {name: getattr(written, name) for name in options} == dict.fromkeys(options)


@pytest.mark.parametrize(
    "scaling", [None, {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 64}]
)  # fmt: skip
def test_a_rotary_base_and_its_scaling_stand_where_older_tools_look_for_them_too(tiny_base, tmp_path, scaling):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.config.rope_parameters |= {"rope_theta": 100000.0} | (scaling or {})
    models.write_checkpoint(tmp_path, model, models.load_tokenizer(tiny_base), torch.bfloat16)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 100000.0 and written.get("rope_scaling") == scaling
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters == model.config.rope_parameters
    assert json.loads((Path(tiny_base) / "config.json").read_text())["rope_theta"] == 10000.0


def test_a_large_model_is_written_shard_after_shard(tiny_base, tmp_path, monkeypatch):
    """Never two shards in memory; whole once it is read again."""
    model, split, held = AutoModelForCausalLM.from_pretrained(tiny_base), save.split_torch_state_dict_into_shards, []
    monkeypatch.setattr(
        save, "split_torch_state_dict_into_shards", lambda weights: split(weights, max_shard_size="200KB")
    )
    write = save.save_file
    monkeypatch.setattr(
        save, "save_file", lambda shard, *rest, **options: held.append(len(shard)) or write(shard, *rest, **options)
    )
    save.write_checkpoint(tmp_path, model, models.load_tokenizer(tiny_base), torch.float32)
    assert len(held) == len(list(tmp_path.glob("model-*.safetensors"))) > 2 and sum(held) == len(model.state_dict())
    saved, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())
