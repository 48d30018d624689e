"""Base models: named shapes, tokenizers that pad with a token of their own, and errors that say what to do."""

import json

import pytest
import torch

from fincompress import models, runs
from fincompress.errors import UserError

CPU = torch.device("cpu")


def test_padding_is_not_eos(tiny_base):
    tokenizer = models.load_tokenizer(tiny_base)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_a_cut_tokenizer_stays_in_its_vocabulary_and_loses_no_text(tiny_base):
    tokenizer = models.load_tokenizer(tiny_base)
    text = "Net sales rose 12.5% to $5,829 — naïve ü\nProgram:\nsubtract(5829, 5735), divide(#0, 5735)"
    ids = tokenizer(text).input_ids
    assert max(ids) < 2048
    assert tokenizer.decode(ids) == text


def test_a_checkpoint_with_weights_missing_is_refused(tiny_base, tmp_path):
    model = models.load_base(tiny_base, "fp32", CPU, torch.float32)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="not a whole checkpoint"):
        models.load_base(str(tmp_path), "fp32", CPU, torch.float32)


def test_a_damaged_checkpoint_is_one_line(tiny_base, tmp_path):
    models.load_base(tiny_base, "fp32", CPU, torch.float32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match="checkpoint"):
        models.load_base(str(tmp_path), "fp32", CPU, torch.float32)


@pytest.mark.parametrize("name", ["no-such/model", "/no/such/folder", "../nowhere"])
def test_a_model_that_is_nowhere_is_one_line(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no folder here") as raised:
        models.load_tokenizer(name)
    assert "\n" not in str(raised.value)


def test_a_gated_model_says_what_to_do():
    from huggingface_hub.errors import GatedRepoError

    refusal = GatedRepoError.__new__(GatedRepoError)  # its constructor wants the hub's reply
    with (
        pytest.raises(UserError, match="accept its licence.*HF_TOKEN"),
        models.explain_loading("meta-llama/Llama-2-7b-hf"),
    ):
        try:
            raise refusal
        except GatedRepoError as error:  # as transformers does it
            raise OSError("You are trying to access a gated repo.\nMake sure ...") from error


def test_an_unknown_shape_names_the_known_ones(results_dir):
    with pytest.raises(UserError, match="llama-2-7b"):
        models.base_model_path("shape:llama-3", str(results_dir))


def test_shapes_have_the_size_they_are_named_for():
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**models.SHAPES["llama-2-7b"]))
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616  # as published


def test_a_checkpoint_of_several_shards_is_whole_and_one_shard_at_a_time_is_held(tiny_base, tmp_path):
    from transformers import AutoModelForCausalLM

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


@pytest.mark.parametrize(
    ("blocks", "batch", "free", "on_the_gpu"),
    [
        (8, 2, 9.5, None),
        (32, 2, 9.5, 8.2e9),
        (32, 8, 9.5, 5.7e9),
        (18, 8, 9.5, 7.1e9),
        (32, 128, 9.5, "lower BATCH_SIZE"),
    ],
)
def test_what_a_gpu_does_not_hold_is_offloaded_beside_what_its_batch_needs(
    tmp_path, monkeypatch, blocks, batch, free, on_the_gpu
):
    config = models.shape_config("shape:llama-2-7b")
    config.num_hidden_layers = blocks
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * 1e9), int(10e9)))
    arguments = (str(tmp_path), torch.device("cuda"), batch, 768)
    if isinstance(on_the_gpu, str):
        with pytest.raises(UserError, match=on_the_gpu):
            models.offload_if_needed(*arguments)
    elif on_the_gpu is None:
        assert models.offload_if_needed(*arguments) == {}
    else:
        found = models.offload_if_needed(*arguments)["max_memory"][0]
        assert abs(found - on_the_gpu) < 0.4e9
    assert models.offload_if_needed(str(tmp_path), torch.device("cpu"), batch, 768) == {}
