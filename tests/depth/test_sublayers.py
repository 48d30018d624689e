"""A skipped sub-layer is an exact identity on the residual stream, and nothing of a skip stays behind."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, GraniteConfig

from fincompress.depth import sublayers as sub
from fincompress.depth.sublayers import SubLayer
from fincompress.errors import UserError
from fincompress.training.loss import target_logits


def stream_through(model, batch, block):
    """What enters and what leaves a block."""
    stream = {}
    hooks = [
        sub.decoder(model).layers[block].register_forward_pre_hook(lambda m, args: stream.update(before=args[0])),
        sub.decoder(model).layers[block].register_forward_hook(lambda m, args, output: stream.update(after=output)),
    ]
    with torch.no_grad():
        target_logits(model, batch)
    for hook in hooks:
        hook.remove()
    return stream["before"], stream["after"]


def by_hand(model, batch, gone):
    """Logits of every position, the residual stream written out, with no part of the code under test."""
    decoder = model.model
    with torch.no_grad():
        arguments = {}
        hook = decoder.layers[0].register_forward_pre_hook(lambda m, a, k: arguments.update(k), with_kwargs=True)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
        model(**inputs, use_cache=False)
        hook.remove()
        x = decoder.embed_tokens(batch["input_ids"])
        for number, block in enumerate(decoder.layers):
            if SubLayer(number, "attention") not in gone:
                x = x + block.self_attn(block.input_layernorm(x), **arguments)[0]
            if SubLayer(number, "mlp") not in gone:
                x = x + block.mlp(block.post_attention_layernorm(x))
        return model.lm_head(decoder.norm(x))


@pytest.mark.parametrize("block", [0, 3, 5])
def test_a_block_without_both_passes_the_stream_on_to_the_bit(any_model, batches, block):
    unit = (SubLayer(block, "attention"), SubLayer(block, "mlp"))
    with sub.skipped(any_model, *unit):
        before, after = stream_through(any_model, batches[0], block)
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", sub.KINDS)
@pytest.mark.parametrize("block", [0, 2, 5])
def test_skipping_equals_the_stream_written_out(model, batches, kind, block):
    # The released code of SAPLING throws the stream away when an attention is dropped; this fails if a skip does.
    gone = [SubLayer(block, kind)]
    expected = by_hand(model, batches[0], gone)
    with sub.skipped(model, *gone), torch.no_grad():
        logits, labels = target_logits(model, batches[0])
    assert torch.allclose(logits, expected[:, -labels.shape[1] - 1 : -1], atol=1e-5)
    assert not torch.allclose(logits, by_hand(model, batches[0], [])[:, -labels.shape[1] - 1 : -1], atol=1e-3)


def test_nothing_of_a_skip_stays_behind(model, batches):
    before = target_logits(model, batches[0])[0]
    modules = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(KeyError), sub.skipped(model, SubLayer(1, "attention"), SubLayer(1, "mlp"), SubLayer(4, "mlp")):
        raise KeyError
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(target_logits(model, batches[0])[0], before)


def test_removal_equals_skipping_and_gives_the_parameters_back(any_model, batches):
    gone = [SubLayer(0, "attention"), SubLayer(2, "mlp"), SubLayer(5, "attention"), SubLayer(5, "mlp")]
    with sub.skipped(any_model, *gone):
        skipped = target_logits(any_model, batches[0])[0]
    size = sum(p.numel() for p in any_model.parameters())
    sizes = sum(p.numel() for sublayer in gone for p in sub.parameters(any_model, sublayer))
    sub.remove(any_model, *gone)
    assert torch.equal(target_logits(any_model, batches[0])[0], skipped)
    assert sum(p.numel() for p in any_model.parameters()) == size - sizes
    assert sub.sublayers(any_model) == [
        SubLayer(block, kind) for block in range(6) for kind in sub.KINDS if SubLayer(block, kind) not in gone
    ]


def test_a_cache_serves_a_model_with_sublayers_removed(model, batches):
    sub.remove(model, SubLayer(0, "attention"), SubLayer(3, "mlp"), SubLayer(4, "attention"))
    assert [model.model.layers[block].self_attn.layer_idx for block in (1, 2, 3, 5)] == [0, 1, 2, 3]  # slots, no gaps
    ids = batches[0]["input_ids"][:1, -6:]
    cached = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_lora_inside_is_dropped_with_its_sublayer(model, batches):
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    sub.remove(wrapped, SubLayer(2, "mlp"))
    assert SubLayer(2, "mlp") not in sub.sublayers(wrapped)
    assert not [name for name, _ in wrapped.named_parameters() if ".layers.2.mlp" in name]
    target_logits(wrapped, batches[0])[0].sum().backward()


def test_units_are_sublayers_or_what_is_left_of_blocks(model):
    assert len(sub.units(model, "sublayer")) == 12
    assert [sub.unit_name(unit) for unit in sub.units(model, "block")] == [f"block.{n}" for n in range(6)]
    sub.remove(model, SubLayer(1, "attention"), SubLayer(2, "attention"), SubLayer(2, "mlp"))
    assert [sub.unit_name(unit) for unit in sub.units(model, "block")] == ["block.0", "mlp.1"] + [
        f"block.{n}" for n in (3, 4, 5)
    ]


def test_packable_units_are_neighbours_and_leave_whole_blocks(model):
    pairs = sub.units(model, "sublayer", packable=True)
    assert [sub.unit_name(pair) for pair in pairs[:4]] == [
        "block.0", "mlp.0+attention.1", "block.1", "mlp.1+attention.2",
    ]  # fmt: skip
    assert len(pairs) == 11 and all(sub.parse_unit(sub.unit_name(pair)) == pair for pair in pairs)
    for name in ("mlp.0+attention.1", "block.3", "mlp.2+attention.4"):
        assert name in [sub.unit_name(pair) for pair in sub.units(model, "sublayer", packable=True)]
        sub.remove(model, *sub.parse_unit(name))
        assert [s.kind for s in sub.sublayers(model)] == ["attention", "mlp"] * (len(sub.sublayers(model)) // 2)


SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2),
        GPTNeoXConfig(**SMALL),
        GraniteConfig(**SMALL),  # built alike, but scales what is added to the stream
    ],
)
def test_another_architecture_is_refused(config):
    with pytest.raises(UserError, match=f"a {config.model_type} is not built like a Llama: llama, "):
        sub.units(AutoModelForCausalLM.from_config(config), "sublayer")
