"""The patch in closed form: the projection before a dropped unit takes up what the unit did."""

import copy
import weakref

import pytest
import torch
from depth_models import CONFIGS, make_batches, make_model
from peft import LoraConfig, get_peft_model

from fincompress.depth import sublayers as sub
from fincompress.depth.scan import scan, trace
from fincompress.sapling import patch
from fincompress.sapling.patch import absorb


def after(model, batch, unit):
    """The stream after a unit, at the tokens that are no padding."""
    return trace(model, batch).around(unit[0], unit[-1])[1][batch["attention_mask"].bool()]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", ["mlp.2+attention.3", "block.2"])
def test_without_a_unit_the_stream_is_nearer_to_what_it_was_when_the_layer_before_is_patched(family, name):
    (batch,) = make_batches(1)
    model, unit = make_model(family), sub.parse_unit(name)
    wanted = after(model, batch, unit)
    with sub.skipped(model, *unit):
        unpatched = (after(model, batch, unit) - wanted).norm()
    changed = absorb(model, unit, [batch])
    sub.remove(model, *unit)
    assert (after(model, batch, unit) - wanted).norm() < 0.9 * unpatched
    names = [key for key, parameter in model.named_parameters() if any(parameter is weight for weight in changed)]
    assert names == [f"model.layers.{'2.self_attn.o_proj' if 'mlp' in name else '1.mlp.down_proj'}.weight"]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("drop_unit", "packable"), [("sublayer", False), ("sublayer", True), ("block", False)])
def test_a_unit_is_scored_as_it_is_dropped(monkeypatch, drop_unit, packable, cached):
    """With the patch that it would leave behind; sums of a few units are held at once."""
    batches, model = make_batches(), make_model()
    widest, hidden = model.config.intermediate_size, model.config.hidden_size
    monkeypatch.setattr(patch, "SUMS_GB", 4.5 * 4 * widest * (widest + hidden) / 1e9)  # of four units
    sub.remove(model, sub.SubLayer(1, "attention"), sub.SubLayer(3, "mlp"))
    units = sub.units(model, drop_unit, packable)
    patches = patch.fit_patches(model, units, batches[:2])
    assert set(patches) == set(units[1:])  # before the first one nothing stands
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    scores, _ = scan(model, units, batches, cached=cached, patches=patches)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    unpatched, _ = scan(model, units, batches)
    for score, plain in zip(scores, unpatched, strict=True):
        left = copy.deepcopy(model)
        absorb(left, score.unit, batches[:2])
        sub.remove(left, *score.unit)
        _, whole = scan(left, [], batches)
        assert torch.allclose(score.nll, whole.nll, atol=1e-4)
        assert torch.equal(score.exact, whole.exact)
        assert torch.equal(score.nll, plain.nll) == (score.unit == units[0])


def test_sums_of_a_pass_are_gone_before_the_next(monkeypatch):
    """Of a large model they are gigabytes."""
    alive, sums = [], patch._sums

    def watched(*arguments):
        assert not [one for one in alive if one() is not None]
        made = sums(*arguments)
        alive.extend(weakref.ref(tensor) for _, *both in made.values() for tensor in both)
        return made

    monkeypatch.setattr(patch, "_sums", watched)
    monkeypatch.setattr(patch, "units_at_once", lambda config: 2)
    model = make_model()
    patch.fit_patches(model, sub.units(model, "block", False), make_batches()[:1])
    assert len(alive) > 2


def test_a_unit_that_adds_what_the_projection_could_add_is_taken_up_whole(monkeypatch):
    """An MLP whose output is a linear map of the attention's inputs cannot be had; a copy of a projection's can."""
    monkeypatch.setattr("fincompress.sapling.patch.RIDGE", 1e-9)
    batches, model, unit = make_batches(), make_model(), sub.parse_unit("mlp.2")
    seen = []
    o_proj = model.model.layers[2].self_attn.o_proj
    hook = o_proj.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    linear = torch.nn.Linear(o_proj.in_features, o_proj.out_features, bias=False)
    add = model.model.layers[2].mlp.register_forward_hook(lambda *_: linear(seen[-1]))
    with torch.no_grad():
        wanted, before = after(model, batches[0], unit), o_proj.weight.clone()
        absorb(model, unit, batches)
        hook.remove()
        add.remove()
        sub.remove(model, *unit)
        assert torch.allclose(o_proj.weight - before, linear.weight, atol=1e-3)
        assert torch.allclose(after(model, batches[0], unit), wanted, atol=1e-3)


def test_the_sums_of_a_patch_are_not_those_of_16_bits(monkeypatch):
    """Where a run computes in bf16: the model's products are in it, those of the regression are not."""
    inputs, streams, solved = [], [], []
    batches, model = make_batches(2), make_model()
    layer, masks = model.model.layers[2], [batch["attention_mask"].bool() for batch in batches]
    layer.self_attn.o_proj.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    layer.post_attention_layernorm.register_forward_pre_hook(lambda module, arguments: streams.append(arguments[0]))
    solve = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda gram, cross: solved.append(gram) or solve(gram, cross))
    with torch.autocast("cpu", torch.bfloat16):
        absorb(model, sub.parse_unit("mlp.2"), batches)
    weighted = torch.cat(
        [
            x[real].double() / stream[real].double().norm(dim=-1, keepdim=True)
            for x, stream, real in zip(inputs, streams, masks, strict=True)
        ]
    )
    wanted = weighted.T @ weighted
    wanted.diagonal().add_(0.01 * wanted.diagonal().mean())
    assert torch.allclose(solved[0], wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max())


def test_a_patch_of_16_bit_weights_is_not_rounded_to_16_bits():
    batches, wide, narrow = make_batches(), make_model(), make_model()
    weights = [model.model.layers[2].self_attn.o_proj.weight for model in (wide, narrow)]
    for weight in weights:  # both begin with values that bf16 has
        weight.data = weight.data.bfloat16()
    weights[0].data = weights[0].data.float()
    with torch.autocast("cpu", torch.bfloat16):
        for model in (wide, narrow):
            absorb(model, sub.parse_unit("mlp.2"), batches)
    assert torch.equal(*weights) and not torch.equal(weights[1], weights[1].bfloat16().float())


def adapted(rank, learned=0.0):
    """The model with an adapter on every projection, which may have ``learned`` something already."""
    model = get_peft_model(make_model(), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=learned)
    return model


def test_an_adapter_of_full_rank_takes_up_what_the_weight_would():
    batches, unit = make_batches(), sub.parse_unit("mlp.2")
    adapter, weight = adapted(32, learned=0.01), adapted(32, learned=0.01).merge_and_unload()
    o_proj = adapter.base_model.model.model.layers[2].self_attn.o_proj
    base = o_proj.base_layer.weight.clone()
    changed = absorb(adapter, unit, batches, adapters=True)
    absorb(weight, unit, batches)
    assert [id(p) for p in changed] == [id(o_proj.lora_A["default"].weight), id(o_proj.lora_B["default"].weight)]
    assert torch.equal(o_proj.base_layer.weight, base)
    wanted = weight.model.layers[2].self_attn.o_proj.weight
    assert torch.allclose(base + o_proj.get_delta_weight("default"), wanted, atol=1e-4)


def test_a_patched_adapter_trains_as_the_one_that_a_killed_run_reads_back():
    changed = absorb(adapted(4), sub.parse_unit("mlp.2"), make_batches(), adapters=True)
    read = [torch.nn.Parameter(p.detach().contiguous().clone()) for p in changed]
    gradients = [torch.randn(p.shape) for p in changed]
    for parameters in (changed, read):
        optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
        optimizer.load_state_dict(moments_of(parameters, optimizer))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(changed, read, strict=True))


def moments_of(parameters, optimizer):
    """A state of the optimizer as a file holds it: other moments for each element, row after row."""
    moment = [torch.arange(p.numel()).reshape(p.shape) / p.numel() for p in parameters]
    state = {n: {"step": torch.tensor(1.0), "exp_avg": m, "exp_avg_sq": m + 1} for n, m in enumerate(moment)}
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def test_an_adapter_of_low_rank_takes_up_what_the_stream_misses_most():
    """Nearer to the stream than the whole patch cut to that rank by its singular values, as if inputs were alike."""
    batches, unit = make_batches(), sub.parse_unit("mlp.2+attention.3")
    wanted = [after(adapted(4), batch, unit) for batch in batches]

    def missed(model):
        sub.remove(model, *unit)
        return sum((after(model, batch, unit) - stream).norm() for batch, stream in zip(batches, wanted, strict=True))

    def o_proj(model):
        return model.base_model.model.model.layers[2].self_attn.o_proj

    ours, cut, whole = adapted(4), adapted(4), adapted(32)
    absorb(ours, unit, batches, adapters=True)
    absorb(whole, unit, batches, adapters=True)
    left, values, right = torch.linalg.svd(o_proj(whole).get_delta_weight("default"))
    target = o_proj(cut)
    target.lora_A["default"].weight.data = right[:4] / target.scaling["default"]
    target.lora_B["default"].weight.data = left[:, :4] * values[:4]
    assert missed(ours) < missed(cut) < missed(adapted(4))


def test_a_base_that_a_teacher_shares_stays_as_it_is():
    model = make_model()
    before = [parameter.clone() for parameter in model.parameters()]
    assert absorb(model, sub.parse_unit("mlp.2"), make_batches(1), adapters=True) == []
    assert all(map(torch.equal, before, model.parameters()))


def test_a_unit_after_an_empty_slot_has_nothing_to_be_taken_up_by():
    model = make_model()
    for parameter in model.model.layers[1].mlp.parameters():
        parameter.data.zero_()
    assert absorb(model, sub.parse_unit("block.2"), make_batches(1)) == []


def test_the_first_unit_has_no_projection_before_it():
    model = make_model()
    before = [parameter.clone() for parameter in model.parameters()]
    assert absorb(model, sub.parse_unit("block.0"), make_batches(1)) == []
    assert all(map(torch.equal, before, model.parameters()))
