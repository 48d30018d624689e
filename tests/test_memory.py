"""Memory: peaks that belong to this process, and predictions held against what torch keeps and what a process takes."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scripts import REPOSITORY, run_in_process
from transformers import AutoModelForCausalLM, LlamaConfig

from fincompress import memory, models
from fincompress.errors import UserError
from fincompress.training import loss

SHAPE = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
TOKENS = 48
LLAMA = models.shape_config("shape:llama-2-7b")


def test_sizes_are_those_of_the_model_whatever_the_width_of_its_heads():
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 500}  # fmt: skip
    for kind, more in (("llama", {}), ("qwen3", {"head_dim": 32}), ("mistral", {"head_dim": 8})):
        config = AutoConfig.for_model(kind, **shape, **more)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        linear = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2)
        assert memory.weights_gb(config, "bf16") == pytest.approx(2 * linear / 1e9)


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "mixtral"])
def test_a_model_that_is_no_llama_is_one_line(kind):
    from transformers import AutoConfig

    with pytest.raises(UserError, match=kind):
        memory.weights_gb(AutoConfig.for_model(kind), "bf16")


def test_parameters_are_counted_as_if_dense_and_by_their_part(tiny_base):
    cpu = torch.device("cpu")
    dense, packed = (models.load_base(tiny_base, kind, cpu, torch.bfloat16, packed=True) for kind in ("bf16", "nf4"))
    count = sum(p.numel() for p in dense.parameters())
    assert sum(p.numel() for p in packed.parameters()) < memory.count_parameters(packed.parameters()) == count
    for config in (dense.config, packed.config):
        sizes = memory.parameter_sizes(config)
        assert sizes["total"] == count == sizes["ends"] + 2 * (sizes["attention"] + sizes["mlp"])
    block = dense.model.layers[0]
    mlp = [*block.mlp.parameters(), *block.post_attention_layernorm.parameters()]
    assert sizes["mlp"] == sum(p.numel() for p in mlp)


def model_to_train(kind, dtype):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).to(dtype)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        models.compute_in_model_dtype(model)
    model.set_attn_implementation("eager")  # as TargetTrainer does on a CPU
    for name, parameter in model.named_parameters():
        in_block = ".layers." in name
        parameter.requires_grad_("lora_" in name if kind == "lora" else kind == "full" or not in_block)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def bytes_kept(model, dtype, batch):
    """Bytes that autograd keeps between forward and backward, each storage once, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    lengths = [TOKENS - 3 * i for i in range(batch)]  # a batch with padding needs its mask
    rows = [{"input_ids": torch.randint(3, 500, (n,)).tolist(), "prompt_tokens": n - 4} for n in lengths]
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        logits, _ = loss.target_logits(model, loss.TargetCollator(0)(rows))
    assert logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kind", ["lora", "full", "frozen"])
def test_predicted_activations_are_what_autograd_keeps(kind, dtype):
    config, model = LlamaConfig(**SHAPE), model_to_train(kind, dtype)

    def predicted(batch):
        shape = (batch, TOKENS, 0, False)
        if kind == "lora":
            return memory.predict_lora_training_gb(config, "nf4", 4, *shape, "cpu", dtype.itemsize)
        return memory.predict_training_gb(config, *shape, float(kind == "full"), True, "cpu", dtype.itemsize)

    # What does not grow with the batch (weights, their copies for autocast, optimizer) cancels.
    kept = bytes_kept(model, dtype, 12) - bytes_kept(model, dtype, 8)
    assert (predicted(12) - predicted(8)) * 1e9 == pytest.approx(kept, rel=0.06)


def test_predictions_for_llama_agree_with_what_is_known_of_it():
    assert memory.weights_gb(LLAMA, "bf16") == pytest.approx(13.476, abs=0.01)
    assert memory.inference_gb(LLAMA, 4096) - memory.inference_gb(LLAMA, 0) == pytest.approx(2.147, abs=0.01)
    shape = (1, 512, 64, True)
    full, sparse = (memory.predict_training_gb(LLAMA, *shape, ratio=ratio) for ratio in (1.0, 0.25))
    qlora, int8 = (memory.predict_lora_training_gb(LLAMA, base, 16, *shape) for base in ("nf4", "int8"))
    assert qlora < int8 < 10 < sparse < full
    assert memory.predict_lora_training_gb(LLAMA, "nf4", 16, *shape, device="cpu") > 2 * qlora  # unpacked there
    adapter = 39_976_960  # parameters of rank 16 on every linear layer
    decoding = [memory.inference_gb(LLAMA, 0, precision="nf4", rank=rank) for rank in (0, 16)]
    assert decoding[1] - decoding[0] == pytest.approx(2 * adapter / 1e9)
    one, frozen = (
        memory.predict_lora_training_gb(LLAMA, "nf4", 16, *shape, ratio=0.25, frozen_adapters=frozen)
        for frozen in (False, True)
    )
    assert frozen - one == pytest.approx(0.75 * adapter * 4 / 1e9)


def test_recomputing_and_smaller_batches_need_less():
    config = LlamaConfig(**SHAPE)
    every = memory.predict_training_gb(config, 8, 256, 32, False)
    assert memory.predict_training_gb(config, 8, 256, 32, True) < every
    assert memory.predict_training_gb(config, 4, 256, 32, False) < every
    assert memory.predict_training_gb(config, 8, 256, 32, False, ratio=0.25) < every


def test_a_child_does_not_start_at_the_peak_of_its_parent():
    code = "from fincompress import memory; print(memory.peak_rss_gb())"
    heavy = (
        f"import subprocess, sys; x = bytearray(10**9); x[::4096] = b'a' * len(x[::4096]);"
        f"print(subprocess.run([sys.executable, '-c', {code!r}], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", heavy], cwd=REPOSITORY, capture_output=True, text=True)
    assert 0.05 < float(done.stdout) < 0.9, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_the_peak_starts_anew():
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


@pytest.mark.real
def test_predicted_memory_is_what_a_process_takes(tiny_base, tmp_path):
    """benchmarks/predicted_memory.py on a random model just large enough to stand out from a process's own noise."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    models.write_checkpoint(tmp_path / "model", model, models.load_tokenizer(tiny_base), torch.bfloat16)
    # In fp32 glibc keeps a fifth of what was freed, which is no part of the prediction; in bf16 far less.
    in_fp32 = models.pick_dtype(torch.device("cpu"))[0] == torch.float32
    give_back = {"MALLOC_MMAP_THRESHOLD_": str(2**20)} if in_fp32 else {}
    done = run_in_process(  # which starts a process for each case
        "benchmarks/predicted_memory.py", f"--BASE_MODEL={tmp_path / 'model'}", "--STEPS=2", "--BATCH_SIZE=16",
        "--CASES=['qlora', 'sapling', 'decode']", RESULTS_DIR=tmp_path, **give_back,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert set(rows) == {"qlora", "sapling", "decode"}
    for case, row in rows.items():
        # A small model: what a process happens to take beside it is a larger part than in SmolLM2.
        beside = 0.01 if case == "decode" else 0.03
        # In fp32 SAPLING's activations and logits do not peak together: predicted 16 to 18 % too high, the safe side.
        above = 0.20 if case == "sapling" and in_fp32 else 0.15
        error = row["predicted_gb"] - row["measured_gb"]
        assert -0.15 * row["measured_gb"] - beside < error < above * row["measured_gb"] + beside, (case, row)


def test_methods_are_predicted_from_the_config_alone():
    half = LlamaConfig(**(LLAMA.to_dict() | {"num_hidden_layers": 16}))
    on_gpu = memory.predict_methods(LLAMA, half, 1, 736, 96, 16, 0.25, "cuda")
    assert on_gpu["decode SAPLING, 16 of 32 blocks"] < 0.6 * on_gpu["decode in 16 bits"]
    assert on_gpu["train QLoRA (NF4 base)"] < 10 < on_gpu["train in full"]
    # A teacher that shares the base adds its adapter, hidden states and logits, and no second model.
    taught = on_gpu["train SAPLING, qlora with its teacher"] - on_gpu["train QLoRA (NF4 base)"]
    assert 0.2 < taught < 0.6
    own = memory.predict_teacher_gb(LLAMA, 1, 736, 96)
    assert own > memory.weights_gb(LLAMA, "bf16") > 13
