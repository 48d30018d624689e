"""Base models: named shapes, tokenizers that pad with a token of their own, and errors that say what to do."""

import json
import threading
from unittest import mock

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from fincompress import models, quantization, runs
from fincompress.errors import UserError


def test_padding_has_a_token_of_its_own(tiny_base):
    tokenizer = models.load_tokenizer(tiny_base)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_what_pads_with_eos_and_has_no_unknown_token_gets_another_special_one_as_qwen_s_does(tmp_path):
    words = {"<|endoftext|>": 0, "<|fim_pad|>": 1, "a": 2}
    text = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=text, **ends).save_pretrained(tmp_path)
    assert models.load_tokenizer(str(tmp_path)).pad_token == "<|fim_pad|>"


def test_a_cut_tokenizer_stays_in_its_vocabulary_and_loses_no_text(tiny_base):
    tokenizer = models.load_tokenizer(tiny_base)
    text = "Net sales rose 12.5% to $5,829 — naïve ü\nProgram:\nsubtract(5829, 5735), divide(#0, 5735)"
    ids = tokenizer(text).input_ids
    assert max(ids) < 2048
    assert tokenizer.decode(ids) == text


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


def test_weights_that_cannot_be_quantized_are_not_said_to_be_missing_on_the_hub():
    with pytest.raises(UserError, match="^an/id cannot be loaded: no kernel"), models.explain_loading("an/id"):
        raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory")])
def test_memory_that_is_not_enough_is_no_damaged_checkpoint(tmp_path, error):
    with pytest.raises(type(error)) as raised, models.explain_loading(str(tmp_path)):
        raise error
    assert raised.value is error


def test_an_unknown_shape_names_the_known_ones(results_dir):
    with pytest.raises(UserError, match="llama-2-7b"):
        models.base_model_path("shape:llama-3", str(results_dir))


def test_a_base_model_that_another_process_makes_is_waited_for(tmp_path):
    made = tmp_path / "base_models" / "shape-tiny"
    made.mkdir(parents=True)
    with runs.alone(made.parent):
        waiting = threading.Thread(target=models.base_model_path, args=("shape:tiny", str(tmp_path)))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
        (made / "config.json").write_text("the other one's")
    waiting.join(60)
    assert not waiting.is_alive() and (made / "config.json").read_text() == "the other one's"


def test_awq_on_a_gpu_computes_in_fp16_as_its_library_does(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    assert models.pick_dtype(torch.device("cuda"), str(tmp_path))[0] == torch.bfloat16
    config = {"quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert quantization.method_of(tmp_path).name == "awq"
    assert models.pick_dtype(torch.device("cuda"), str(tmp_path))[0] == torch.float16


def test_shapes_have_the_size_they_are_named_for():
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**models.SHAPES["llama-2-7b"]))
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616  # as published


def card(monkeypatch, gb):
    """As if there were a GPU of ``gb`` GB; returns the shares of it that were asked for."""
    shares = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: mock.Mock(total_memory=gb * 1e9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    return shares


def test_a_large_card_is_made_a_small_one(monkeypatch):
    shares = card(monkeypatch, 80)
    assert models.pick_device() == torch.device("cuda:1") and shares == []
    monkeypatch.setenv("VRAM_CAP_GB", "10")
    device = models.pick_device()
    assert shares == [pytest.approx(9.5 / 80)]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(79e9), int(80e9)))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: shares[-1])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: int(2e9))
    assert models.free_memory(device) == pytest.approx(7.5e9)


@pytest.mark.parametrize("cap", ["100", "0.5", "0", "-3", "ten", "1e1"])
def test_a_cap_that_is_no_part_of_the_card_is_one_line(monkeypatch, cap):
    card(monkeypatch, 80)
    monkeypatch.setenv("VRAM_CAP_GB", cap)
    with pytest.raises(UserError, match=f"VRAM_CAP_GB={cap}: the card has 80.0 GB"):
        models.pick_device()
