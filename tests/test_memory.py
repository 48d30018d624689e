"""Memory: peaks that belong to this process, and sizes from a model's config alone."""

import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scripts import REPOSITORY
from transformers import AutoModelForCausalLM, LlamaConfig

from fincompress import memory, models
from fincompress.errors import UserError
from fincompress.sapling.student import widen

LLAMA = models.shape_config("shape:llama-2-7b")


def test_sizes_are_those_of_the_model_whatever_the_width_of_its_heads():
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 500}  # fmt: skip
    for kind, extra in (("llama", {}), ("qwen3", {"head_dim": 32}), ("mistral", {"head_dim": 8})):
        config = AutoConfig.for_model(kind, **shape, **extra)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        linear = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2)
        assert memory.weights_gb(config, "bf16") == pytest.approx(2 * linear / 1e9)


@pytest.mark.parametrize("patch_rank", [0, 24, 80])
def test_adapters_are_counted_as_they_are_made(patch_rank):
    """Also where patches want more of a rank than a projection has."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=500,
    )  # fmt: skip
    adapters = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_config(config), adapters)
    widen(model, patch_rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.adapter_parameters(config, 8, patch_rank) == trained


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "mixtral"])
def test_a_model_that_is_no_llama_is_one_line(kind):
    from transformers import AutoConfig

    with pytest.raises(UserError, match=kind):
        memory.weights_gb(AutoConfig.for_model(kind), "bf16")


def test_parameters_are_counted_as_if_dense_and_by_their_part(tiny_base):
    cpu = torch.device("cpu")
    dense, packed = (models.load_base(tiny_base, kind, cpu, torch.bfloat16, packed=True) for kind in ("bf16", "nf4"))
    count = sum(p.numel() for p in dense.parameters())
    for config in (dense.config, packed.config):
        sizes = memory.parameter_sizes(config)
        assert sizes["total"] == count == sizes["embeddings"] + 2 * (sizes["attention"] + sizes["mlp"])
    block = dense.model.layers[0]
    mlp = [*block.mlp.parameters(), *block.post_attention_layernorm.parameters()]
    assert sizes["mlp"] == sum(p.numel() for p in mlp)


def test_what_decoding_of_llama_holds_is_what_is_known_of_it():
    assert memory.weights_gb(LLAMA, "bf16") == pytest.approx(13.476, abs=0.01)
    assert memory.inference_gb(LLAMA, 4096) - memory.inference_gb(LLAMA, 0) == pytest.approx(
        2.147 + 0.405, abs=0.01
    )  # KV cache, and activations


@pytest.mark.real
def test_a_child_does_not_start_at_the_peak_of_its_parent():
    code = "from fincompress import memory; print(memory.peak_rss_gb())"
    heavy = (
        f"import subprocess, sys; x = bytearray(10**9); x[::4096] = b'a' * len(x[::4096]);"
        f"print(subprocess.run([sys.executable, '-c', {code!r}], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", heavy], cwd=REPOSITORY, capture_output=True, text=True)
    assert 0.05 < float(done.stdout) < 0.9, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_the_peak_starts_again():
    block = torch.ones(75_000_000)  # 0.3 GB
    before = memory.peak_rss_gb()
    del block
    now = memory.reset_peak()
    assert memory.peak_rss_gb() < before - 0.25
    assert memory.peak_rss_gb() == pytest.approx(now, abs=0.05)


def test_releasing_files_keeps_every_value(tiny_base):
    model = models.load_base(tiny_base, "auto", torch.device("cpu"), torch.bfloat16)
    model.register_buffer("packed", torch.arange(12).view(3, 4))  # as GPTQ's are: a view of what was read
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {parameter.data_ptr() for parameter in model.parameters()}
    memory.release_files(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not places & {parameter.data_ptr() for parameter in model.parameters()}
    assert model.packed._base is None and "packed" in dict(model.named_buffers())
