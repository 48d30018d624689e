"""Simulated memory against what the same steps allocate on real tensors, and against torch's own tracker."""

import copy
import json

import pytest
import torch
from scripts import run_in_process
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from fincompress import memory, models, quantization, simulation
from fincompress.depth import scan
from fincompress.depth import sublayers as sub
from fincompress.sapling import patch, simulated
from fincompress.sapling.losses import RecoveryLoss
from fincompress.sapling.student import PATCH_RANK
from fincompress.sapling.teacher import ADAPTER, SharedTeacher, Teacher

TINY = models.shape_config("shape:tiny")
SMALL = LlamaConfig(**TINY.to_dict() | {"hidden_size": 512, "intermediate_size": 1536})
SHAPE = (3, 96, 16)  # sequences, tokens, target tokens


def real_model(config=TINY):
    torch.manual_seed(0)
    # A copy: the attention that is set on a model is set on its config, which is every other test's.
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16).requires_grad_(False)


def allocated(make, precision=torch.bfloat16):
    """Peak in GB of what ``make`` gives and of two training steps with it, on real tensors."""
    with simulation.Costs() as costs:
        model, loss_of = make()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, data = torch.optim.AdamW(trained, fused=True), simulation.batch_of(*SHAPE)
        model.train()
        for _ in range(2):
            with torch.autocast("cpu", precision):
                loss = loss_of(model, data)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss
    return costs.gb


def blocks_trained(model):
    for parameter in [p for sublayer in sub.sublayers(model) for p in sub.parameters(model, sublayer)]:
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()
    model.set_attn_implementation("eager")
    return model


def test_what_is_simulated_is_what_the_same_steps_allocate():
    def adapters():
        model = simulation.with_adapters(real_model(), 8)
        model = model.to_empty(device="cpu") if any(p.is_meta for p in model.parameters()) else model
        model.set_attn_implementation("eager")
        return model, simulation._learn_targets(model)

    def whole():
        model, teacher = blocks_trained(real_model()), Teacher(real_model())
        return model, RecoveryLoss(teacher.teach)

    options = {"device": "cpu"}
    predicted = simulation.training(TINY, *SHAPE, "nf4", 8, **options).gb
    assert predicted == pytest.approx(allocated(adapters), rel=0.02)
    assert simulated.recovering(TINY, *SHAPE, **options).gb == pytest.approx(allocated(whole), rel=0.02)


def test_a_teacher_that_shares_the_base_is_simulated_as_it_allocates():
    def shared():
        model = simulation.with_adapters(real_model(), 8, ("default", ADAPTER), PATCH_RANK).to_empty(device="cpu")
        model.set_attn_implementation("eager")
        teacher = SharedTeacher(model, {}, True)
        return model, RecoveryLoss(teacher.teach)

    predicted = simulated.recovering(TINY, *SHAPE, rank=8, device="cpu").gb
    assert predicted == pytest.approx(allocated(shared), rel=0.02)


def test_a_scan_is_simulated_as_it_allocates():
    with simulation.Costs() as costs, torch.autocast("cpu", torch.bfloat16):
        model = real_model().eval()
        before = [sublayer for sublayer in sub.sublayers(model) if sublayer.kind == "mlp"]
        seen = scan.trace(model, simulation.batch_of(*SHAPE), before)
        scan.scores_without(model, (sub.sublayers(model)[0],), seen)
    assert simulation.scanning(TINY, *SHAPE, device="cpu").gb == pytest.approx(costs.gb, rel=0.02)


def test_fitting_patches_is_simulated_as_it_allocates(monkeypatch):
    monkeypatch.setattr(simulated, "PATCH_RANK", 64)
    deep, shape = LlamaConfig(**SMALL.to_dict() | {"num_hidden_layers": 6}), (1, 48, 16)
    with simulation.Costs() as costs, torch.autocast("cpu", torch.bfloat16):
        model = simulation.with_adapters(real_model(deep), 8, ("default", ADAPTER), 64).to_empty(device="cpu").eval()
        batch = simulation.batch_of(*shape)
        for weight in model.parameters():
            weight.data.fill_(0.01)
        costs.peak = costs.now  # without what making the model took
        sums = patch._sums(model, sub.units(model, "block"), [batch, batch])
    assert len(sums) == 5  # the first has no projection before it
    predicted = simulated.scanning(deep, *shape, rank=8, device="cpu").gb
    assert predicted - patch.sums_bytes(deep) / 1e9 == pytest.approx(costs.gb, rel=0.05)


@pytest.mark.parametrize("batch", [1, 3])
def test_inference_takes_what_is_predicted(batch):
    deep = LlamaConfig(**SMALL.to_dict() | {"num_hidden_layers": 12, "num_key_value_heads": 4})  # much of it is cache
    with simulation.Costs() as costs, torch.no_grad():
        model, cache = real_model(deep), DynamicCache()
        costs.peak = costs.now
        ids = torch.zeros(batch, 600, dtype=torch.long)
        for input_ids in (ids, ids[:, :1]):
            model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    assert memory.inference_gb(deep, 600, batch=batch, device="cpu") == pytest.approx(costs.gb, rel=0.05)


def test_gptq_of_a_layer_holds_three_hessians_at_once():
    def layer():
        return torch.nn.Linear(1024, 384, bias=False, dtype=torch.bfloat16).requires_grad_(False)

    quantization.require()
    with quantization.quiet():
        from gptqmodel import QuantizeConfig
        from gptqmodel.quantization.gptq import GPTQ

        with simulation.Costs() as costs:
            task = GPTQ(layer(), QuantizeConfig(bits=4, group_size=128, act_group_aware=True))
            task.quantizer.configure(perchannel=True)
            for _ in range(2):
                task.add_batch(torch.randn(4, 96, 1024).to(torch.bfloat16), None)
            summed = costs.peak
            task.quantize()
    hessian = 4 * 1024**2
    assert summed < costs.peak == pytest.approx(3 * hessian, rel=0.25)  # and weights, in float32


def test_gptq_holds_embeddings_one_block_its_texts_and_three_hessians():
    block = sum(p.numel() for p in sub.decoder(real_model(SMALL)).layers[0].parameters())
    embeddings, wide, texts = SMALL.vocab_size * 512, SMALL.intermediate_size**2, 64 * 96 * 512
    peak = memory.quantizing_gb(SMALL, 96, 64)
    assert peak == pytest.approx((2 * (embeddings + block + texts) + 3 * 4 * wide) / 1e9)
    deeper = LlamaConfig(**SMALL.to_dict() | {"num_hidden_layers": 8})
    assert memory.quantizing_gb(deeper, 96, 64) == peak


def test_allocations_add_up_to_what_torch_s_own_tracker_finds():
    def step(model, optimizer):
        loss = model(torch.zeros(2, 64, dtype=torch.long), use_cache=False).logits.float().square().sum()
        loss.backward()
        optimizer.step()

    def made():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(TINY), attn_implementation="eager")
        return model, torch.optim.AdamW(model.parameters())

    with FakeTensorMode():
        model, optimizer = made()
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            step(model, optimizer)
    theirs = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    with FakeTensorMode(), simulation.Costs() as costs:
        step(*made())
    assert costs.peak == pytest.approx(theirs, rel=0.02)


@pytest.mark.real  # many simulations
def test_recomputing_smaller_batches_and_packed_weights_need_less():
    def peak(batch=4, **options):
        return simulation.training(SMALL, batch, 128, 16, **options).gb

    qlora = {"precision": "nf4", "rank": 8}
    usual = peak(**qlora)
    assert peak(recompute=True, **qlora) < usual
    assert peak(2, **qlora) < usual < peak(precision="int8", rank=8) < peak(rank=8)
    assert peak(device="cpu", **qlora) > usual  # unpacked there


def test_a_simulation_leaves_no_trace_in_the_next():
    """A CPU trains with other attention than a GPU."""
    first = simulation.training(TINY, *SHAPE, "nf4", 8)
    simulation.training(TINY, *SHAPE, "nf4", 8, device="cpu")
    again = simulation.training(TINY, *SHAPE, "nf4", 8)
    assert (again.gb, again.flops, again.moved, again.calls) == (first.gb, first.flops, first.moved, first.calls)


def test_the_work_of_attention_is_half_of_the_square_of_tokens():
    short, long = (simulation.training(TINY, 1, tokens, 32, "nf4", 8).flops for tokens in (512, 1024))
    square = 2 * 2 * TINY.hidden_size * TINY.num_hidden_layers * (1024**2 - 2 * 512**2)  # two products forward
    assert (long - 2 * short) / square == pytest.approx((1 + 2.5) / 2, abs=0.1)  # and five in the backward pass


def test_work_is_counted_as_it_is_known():
    batch, tokens, targets = SHAPE
    costs, again = (simulation.training(SMALL, *SHAPE, "auto", 8, recompute=recompute) for recompute in (False, True))
    linear = sum(p.numel() for name, p in real_model(SMALL).named_parameters() if ".layers." in name and p.dim() == 2)
    passes = 2 * batch * tokens * linear  # FLOPs of one pass through the blocks
    # Forward and back to the inputs; the rest is adapters, attention and the head.
    assert (costs.flops / passes, (again.flops - costs.flops) / passes) == (
        pytest.approx(2.2, abs=0.2),
        pytest.approx(1.1, abs=0.1),
    )
    assert costs.seconds(1e-3, 1e9) == pytest.approx(costs.flops / 1e9, rel=1e-3)
    assert costs.seconds(1e9, 1.0) == pytest.approx(costs.moved / 1e9, rel=1e-3)
    assert costs.seconds(1e9, 1e9, 1.0) == costs.calls


@pytest.mark.real  # half a minute
def test_the_script_names_every_phase_and_its_hours(tmp_path):
    constants = ("--BASE_MODEL=shape:tiny", "--TOKENS=90", f"--EXAMPLES={10**9}")
    done = run_in_process("predict.py", *constants, f"--RESULTS_DIR={tmp_path}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["memory"]) == 12 and all(0.5 <= row["cuda"] < 0.7 for row in report["memory"])
    assert all(row["RTX 3080"] >= row["A100"] > 0 for row in report["hours"])
    assert not list(tmp_path.iterdir())


def test_hours_are_of_cards_that_the_training_fits_as_it_was_asked_for(monkeypatch):
    import predict

    monkeypatch.setattr(predict, "CARDS", {"small": [2.0, 60.0, 760.0], "large": [24.0, 60.0, 760.0]})
    config = models.base_config("shape:tiny", "unused")
    peaks = [{"phase": phase, "cuda": 3.0} for phase in predict.PHASES]
    for row in predict.print_hours(config, peaks):
        assert row["small"] is None and row["large"] >= 0
