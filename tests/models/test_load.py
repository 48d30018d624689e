"""Loading: whole checkpoints or one line that says what is wrong; NF4 and int8 that train; offload."""

import json
import shutil
from contextlib import nullcontext
from unittest import mock

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt
from safetensors.torch import load_file
from training_rows import CPU, PAD, add_lora, bf16_loss, make_rows
from transformers import AutoModelForCausalLM

from fincompress import memory, models, runs
from fincompress.errors import UserError
from fincompress.training.loss import TargetCollator


def edit(file, **values):
    """Set entries of a folder's JSON file; None removes one."""

    def damage(folder):
        contents = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps({name: value for name, value in contents.items() if value is not None}))

    return damage


def write(file, text):
    return lambda folder: (folder / file).write_text(text)


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (pickle_weights, r"pytorch_model.bin is a pickle, .*: convert it to safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (write("model.safetensors", "hello"), "damaged or cannot be read"),
        (edit("config.json", vocab_size=100), "2 weights are mismatched, such as lm_head.weight"),
        (edit("config.json", vocab_size=5000), "2 weights are mismatched, such as lm_head.weight"),
        (edit("config.json", hidden_size=32), "weights are mismatched"),
        (edit("config.json", num_attention_heads=3), "not a multiple of the number of attention heads"),
        (edit("config.json", num_hidden_layers=3), "9 weights are missing, such as model.layers.2"),
        (edit("config.json", num_hidden_layers=1), "9 weights are unexpected, such as model.layers.1"),
        (edit("config.json", num_hidden_layers="two"), "expected int, got str"),
        (edit("config.json", model_type=None, architectures=None), "Unrecognized model"),
        (edit("config.json", model_type=["llama"]), "damaged or cannot be read"),
        (edit("config.json", model_type="custom", auto_map={"AutoModelForCausalLM": "x.Y"}), "model type `custom`"),
        (write("config.json", "[1]"), "config.json holds no JSON object"),
        (write("config.json", ""), "config.json is not readable as JSON"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_one_line(tiny_base, tmp_path, damage, says):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    damage(folder)
    with pytest.raises(UserError, match=says) as raised:
        models.load_base(str(folder), "bf16", CPU, torch.bfloat16)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def remove_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    "damage", [remove_tokenizer, write("tokenizer.json", "{}"), write("tokenizer_config.json", "[]")]
)
def test_a_tokenizer_that_is_missing_or_damaged_is_one_line(tiny_base, tmp_path, damage):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    damage(folder)
    with pytest.raises(UserError, match="damaged or cannot be read") as raised:
        models.load_tokenizer(str(folder))
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(tiny_base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    edit("config.json", vocab_size=100)(folder)
    with pytest.raises(UserError, match="tokenizer has 2048 tokens, its model 100: it is another model's"):
        models.load_tokenizer(str(folder))


def pickle_adapter(folder):
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (pickle_adapter, "adapter_model.bin is a pickle"),
        (edit("adapter_config.json", r=16), "size mismatch"),
        (edit("adapter_config.json", peft_type=None), "damaged or cannot be read"),
        (edit("adapter_config.json", peft_type="NONE"), "damaged or cannot be read"),
        (write("adapter_config.json", "{"), "damaged or cannot be read"),
        (write("adapter_model.safetensors", "hello"), "damaged or cannot be read"),
    ],
)
def test_an_adapter_that_is_damaged_is_one_line(tiny_base, tmp_path, damage, says):
    record = {"script": "train_qlora_4bit.py", "settings": {}, "base_model": tiny_base, "base_precision": "bf16"}
    runs.write_json(tmp_path / "settings.json", record)
    add_lora(models.load_base(tiny_base, "bf16", CPU, torch.bfloat16)).save_pretrained(tmp_path / "adapter")
    models.load_tokenizer(tiny_base).save_pretrained(tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(UserError, match=says) as raised:
        models.load_run(tmp_path, str(tmp_path), CPU, torch.bfloat16)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.fixture
def nf4(tiny_base):
    return add_lora(models.load_base(tiny_base, "nf4", CPU, torch.bfloat16, packed=True))


def test_every_adapter_still_has_a_gradient_after_an_evaluation_on_nf4(nf4):
    batch = TargetCollator(PAD)(make_rows(4))
    nf4.eval()
    with torch.no_grad():
        bf16_loss(nf4, batch)
    nf4.train()
    bf16_loss(nf4, batch).backward()
    grads = {name: p.grad for name, p in nf4.named_parameters() if "lora_B" in name}
    assert len(grads) == 14  # seven linear layers in each of two blocks
    assert [name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0] == []


def test_nf4_weights_survive_evaluation_saving_and_loading(tiny_base, tmp_path):
    batch = TargetCollator(PAD)(make_rows(4))
    base = models.load_base(tiny_base, "nf4", CPU, torch.bfloat16, packed=True).eval()
    with torch.no_grad():
        before = bf16_loss(base, batch).item()
        base.save_pretrained(tmp_path)
        assert bf16_loss(base, batch).item() == before
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert any(type(module).__name__ == "Linear4bit" for module in again.modules())
        assert bf16_loss(again, batch).item() == pytest.approx(before, abs=1e-3)


def test_dequantizing_nf4_once_changes_no_bit_of_loss_or_gradient(nf4, tiny_base):
    unpacked = add_lora(models.load_base(tiny_base, "nf4", CPU, torch.bfloat16))
    assert not any(type(module).__name__ == "Linear4bit" for module in unpacked.modules())
    batch = TargetCollator(PAD)(make_rows(4))
    results = []
    for model in (nf4, unpacked):
        loss = bf16_loss(model, batch)
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters() if p.requires_grad]))
    assert torch.equal(results[0][0], results[1][0]) and len(results[0][1]) == 28
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_dequantizing_int8_once_trains_as_bitsandbytes_does(tiny_base):
    packed = add_lora(models.load_base(tiny_base, "int8", CPU, torch.bfloat16, packed=True))
    assert sum(isinstance(module, bnb.nn.Linear8bitLt) for module in packed.modules()) == 14
    unpacked = add_lora(models.load_base(tiny_base, "int8", CPU, torch.bfloat16))
    assert not any(isinstance(module, bnb.nn.Linear8bitLt) for module in unpacked.modules())
    original = models.load_base(tiny_base, "bf16", CPU, torch.bfloat16)
    batch = TargetCollator(PAD)(make_rows(4))
    losses, grads = [], []
    for model in (packed, unpacked):
        loss = bf16_loss(model.train(), batch)
        loss.backward()
        losses.append(loss.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    # Unpacked by another formula: now and then the last bit of a weight differs.
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) != pytest.approx(bf16_loss(original, batch).item(), abs=1e-5)
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_int8_trains_by_the_product_of_a_gpu_as_by_that_of_a_cpu(recompute, tiny_base, monkeypatch):
    """bitsandbytes trains by another product on a CPU; that of a GPU rounds activations to int8 as well."""
    model = add_lora(models.load_base(tiny_base, "int8", CPU, torch.bfloat16, packed=True)).train()
    batch = TargetCollator(PAD)(make_rows(4))
    losses, grads = [], []
    for on_a_gpu in (False, True):
        if on_a_gpu:
            monkeypatch.setattr(bnb, "matmul", lambda x, w, bias, state: MatMul8bitLt.apply(x, w, None, bias, state))
            if recompute:  # as train_lora_8bit.py does there
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable({"use_reentrant": True})
        model.zero_grad()
        loss = bf16_loss(model, batch)
        loss.backward()
        losses.append(loss.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert losses[0] != losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert (grads[0] - grads[1]).norm() < 0.05 * grads[0].norm()


@pytest.mark.parametrize(
    ("blocks", "batch", "free", "on_the_gpu"),
    [
        (8, 2, 9.5, None),
        (32, 2, 9.5, 8.2e9),
        (18, 8, 9.5, 7.1e9),
        pytest.param(32, 8, 9.5, 5.7e9, marks=pytest.mark.real),
    ],
)
def test_what_a_gpu_does_not_hold_is_offloaded_beside_what_its_batch_needs(
    tmp_path, monkeypatch, blocks, batch, free, on_the_gpu
):
    config = models.shape_config("shape:llama-2-7b")
    config.num_hidden_layers = blocks
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(models.base, "free_memory", lambda device: int(free * 1e9))
    arguments = (str(tmp_path), torch.device("cuda"), batch, 768)
    if on_the_gpu is None:
        assert models.offload_if_needed(*arguments) == {}
    else:
        limit = models.offload_if_needed(*arguments)["max_memory"][0]
        assert abs(limit - on_the_gpu) < 0.4e9
    assert models.offload_if_needed(str(tmp_path), torch.device("cpu"), batch, 768) == {}


def test_a_batch_that_leaves_a_gpu_no_room_for_a_block_is_refused(tmp_path, monkeypatch):
    config = models.shape_config("shape:llama-2-7b")
    config.num_hidden_layers = 8
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(models.base, "free_memory", lambda device: int(3e9))
    with pytest.raises(UserError, match="16 sequences at once leave 3.0 GB of a GPU no room.*lower BATCH_SIZE"):
        models.offload_if_needed(str(tmp_path), torch.device("cuda"), 16, 768)
    needed = memory.inference_gb(config, 768, batch=2) + 0.3 - memory.weights_gb(config, "bf16")
    for room, refused in ((0.66, True), (1.2, False)):  # embeddings, a block, and one to be read into
        free = int((needed + room) * 1e9)
        monkeypatch.setattr(models.base, "free_memory", lambda device, free=free: free)
        with pytest.raises(UserError, match="of a GPU no room.*lower BATCH_SIZE") if refused else nullcontext():
            monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
            options = models.offload_if_needed(str(tmp_path), torch.device("cuda"), 2, 768)
            assert options["max_memory"][0] == pytest.approx(room * 1e9, abs=2)


def test_what_does_not_fit_into_main_memory_stays_packed_or_is_computed_in_bf16(tiny_base, tmp_path, monkeypatch):
    config = models.read_config(tiny_base)
    monkeypatch.setattr(models.base.provenance, "cpu_name", lambda: "a processor (no bf16)")
    gb = memory.parameter_sizes(config)["total"] * 4 / 1e9
    for room, fits in ((1.26 * gb, True), (1.24 * gb, False)):  # four fifths of it are for weights
        monkeypatch.setattr(memory.psutil, "virtual_memory", lambda room=room: mock.Mock(total=room * 1e9))
        assert models.pick_dtype(CPU, tiny_base)[0] == (torch.float32 if fits else torch.bfloat16)
        assert models.pick_dtype(CPU, str(tmp_path))[0] == torch.float32  # an adapter, whose base stays packed
        base = models.load_base(tiny_base, "nf4", CPU, torch.float32)
        assert any(isinstance(module, bnb.nn.Linear4bit) for module in base.modules()) != fits
        assert memory.stored_bytes(config, "nf4", "cpu", torch.float32) == (4 if fits else memory.NF4_BYTES)
