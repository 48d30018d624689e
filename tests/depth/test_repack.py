"""What is left, packed into fewer blocks: the same logits, a standard checkpoint, zeros only for missing partners."""

import itertools

import pytest
import torch
from depth_models import CONFIGS, make_model
from peft import LoraConfig, get_peft_model
from scripts import REPOSITORY, run_script

from fincompress import memory, models
from fincompress.depth import repack
from fincompress.depth import sublayers as sub
from fincompress.depth.sublayers import SubLayer
from fincompress.training.loss import target_logits

A, M = (lambda block: SubLayer(block, "attention")), (lambda block: SubLayer(block, "mlp"))
PACKABLE = [M(2), A(3), A(4), M(4)]  # A2 M3: no slot stays empty, and where attentions differ by block A2 counts
MIXED = [A(0), M(2), M(3), A(5)]  # attention by attention, MLP by MLP


def test_pairs_are_the_fewest_blocks_in_the_same_order():
    left = [A(0), M(0), A(1), M(2), A(3), A(4), M(4), M(5)]
    blocks = repack.pair(left)
    assert blocks == [(A(0), M(0)), (A(1), M(2)), (A(3), None), (A(4), M(4)), (None, M(5))]
    for size in range(6):
        for chosen in itertools.combinations([kind(block) for block in range(3) for kind in (A, M)], size):
            flat = [sublayer for block in repack.pair(list(chosen)) for sublayer in block if sublayer is not None]
            assert flat == list(chosen)


@pytest.mark.parametrize("gone", [PACKABLE, MIXED])
def test_packed_logits_are_the_unpacked_ones_also_with_a_cache(any_model, batches, gone):
    sub.remove(any_model, *gone)
    packed = repack.repacked_model(any_model)
    for batch in batches:
        assert torch.equal(target_logits(packed, batch)[0], target_logits(any_model, batch)[0])
    ids = batches[0]["input_ids"][:, -6:]
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(packed.generate(ids, **arguments), packed.generate(ids, **arguments, use_cache=False))
    blocks = len(repack.pair(sub.sublayers(any_model)))
    assert packed.config.num_hidden_layers == blocks == len(packed.model.layers)
    assert 2 * blocks - len(sub.sublayers(any_model)) == (0 if gone == PACKABLE else 4)  # slots filled with zeros
    if hasattr(packed.config, "layer_types"):
        kept = [(block.attention or block.mlp).block for block in repack.pair(sub.sublayers(any_model))]
        assert packed.config.layer_types == [any_model.config.layer_types[block] for block in kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_packing_is_caught(model, batches, dtype):
    sub.remove(model.to(dtype), *PACKABLE)
    packed = repack.repacked_model(model)
    repack.check_equal(model, packed, batches[0])
    layers = packed.model.layers
    layers[1].post_attention_layernorm, layers[2].post_attention_layernorm = (
        layers[2].post_attention_layernorm,
        layers[1].post_attention_layernorm,
    )
    with pytest.raises(RuntimeError, match="changed the logits"):
        repack.check_equal(model, packed, batches[0])


def test_a_pruned_model_can_be_pruned_again(model, batches):
    sub.remove(model, *PACKABLE)
    again = repack.repacked_model(model)
    assert sub.sublayers(again) == [SubLayer(block, kind) for block in range(4) for kind in sub.KINDS]
    sub.remove(again, A(0), M(0))
    assert torch.equal(target_logits(repack.repacked_model(again), batches[0])[0], target_logits(again, batches[0])[0])


def test_what_is_written_is_of_the_models_type_and_attention_and_counted_before(model):
    model.to(torch.bfloat16).set_attn_implementation("eager")
    sizes = memory.parameter_sizes(model.config)
    sub.remove(model, *MIXED)
    packed = repack.repacked_model(model)
    assert packed.config._attn_implementation == "eager"
    assert {parameter.dtype for parameter in packed.parameters()} == {torch.bfloat16}
    assert repack.checkpoint_parameters(model, sizes) == sum(parameter.numel() for parameter in packed.parameters())


def test_of_the_lists_in_a_config_those_with_an_entry_a_block_alone_are_cut():
    config = CONFIGS["qwen3"]()
    config.eos_token_id = [2, 3, 4, 5, 6, 7]  # as many as there are blocks
    short = repack.shortened_config(config, 4)
    assert short.num_hidden_layers == 4 and short.layer_types == config.layer_types[:4]
    assert short.eos_token_id == config.eos_token_id and config.num_hidden_layers == 6


LOAD = """
import pathlib, sys, torch
from transformers import AutoModelForCausalLM
for path in map(pathlib.Path, sys.argv[1:]):
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], (path, info)
    ids = torch.load(path / "ids.pt", weights_only=True)
    torch.save(model(ids).logits, path / "logits.pt")
    assert model.generate(ids, max_new_tokens=6, do_sample=False, min_new_tokens=6).shape[1] == ids.shape[1] + 6
assert not any(name.startswith("fincompress") for name in sys.modules)
"""


@pytest.mark.real
def test_stock_transformers_loads_the_checkpoints_in_a_process_of_its_own(batches, tiny_base, tmp_path):
    expected, ids = {}, batches[0]["input_ids"][:, -6:].clamp(min=3)
    for family, (name, gone) in itertools.product(CONFIGS, {"packable": PACKABLE, "mixed": MIXED}.items()):
        model, path = make_model(family), tmp_path / f"{family}-{name}"
        sub.remove(model, *gone)
        models.write_checkpoint(path, repack.repacked_model(model), models.load_tokenizer(tiny_base), torch.float32)
        torch.save(ids, path / "ids.pt")
        expected[path] = model(ids, use_cache=False).logits
    (tmp_path / "load.py").write_text(LOAD)
    done = run_script("load.py", *expected, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for path, logits in expected.items():
        assert torch.allclose(torch.load(path / "logits.pt", weights_only=True), logits, atol=1e-5), path.name
        assert not any(str(folder) in (path / "config.json").read_text() for folder in (REPOSITORY, tmp_path))


@pytest.mark.parametrize("four_bits", [False, True])
def test_adapters_are_merged_into_what_is_written(model, batches, tiny_base, tmp_path, four_bits):
    if four_bits:  # as on a GPU: the weights stay packed while layers go
        models.write_checkpoint(tmp_path / "dense", model, models.load_tokenizer(tiny_base), torch.float32)
        model = models.load_base(str(tmp_path / "dense"), "nf4", torch.device("cpu"), torch.float32, packed=True).eval()
        assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
        with torch.no_grad(), sub.skipped(model, *PACKABLE):
            skipped = target_logits(model, batches[0])[0]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    sub.remove(wrapped, *PACKABLE)
    if four_bits:
        with torch.no_grad(), wrapped.disable_adapter():
            assert torch.equal(target_logits(wrapped, batches[0])[0], skipped)
    packed = repack.repacked_model(wrapped)
    repack.check_equal(wrapped, packed, batches[0])
    models.write_checkpoint(tmp_path / "model", packed, models.load_tokenizer(tiny_base), torch.float32)
    merged = models.load_base(str(tmp_path / "model"), "fp32", torch.device("cpu"), torch.float32).eval()
    with torch.no_grad():
        ours, theirs = target_logits(merged, batches[0])[0], target_logits(wrapped.eval(), batches[0])[0]
        with wrapped.disable_adapter():
            without = target_logits(wrapped, batches[0])[0]
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, without, atol=1e-2)
