"""The loss sees the target and its EOS alone; batches, restarts and evaluation between steps change nothing."""

import bitsandbytes as bnb
import datasets
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fincompress import generation, models, runs, targets, training
from fincompress.errors import UserError

CPU = torch.device("cpu")
EOS, PAD = 2, 0


def make_rows(count, seed=0, longest=40):
    """Rows as preprocess_data.py writes them, of random tokens and various lengths, each ending in EOS."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        prompt, target = torch.randint(3, longest, (2,), generator=generator).tolist()
        ids = torch.randint(10, 2000, (prompt + target,), generator=generator).tolist() + [EOS]
        rows.append(
            {"input_ids": ids, "prompt_tokens": prompt, "target_tokens": target + 1, "length": prompt + target + 1}
        )
    return rows


@pytest.fixture
def model(tiny_base):
    return models.load_base(tiny_base, "fp32", CPU, torch.float32)


def add_lora(model):
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    models.compute_in_model_dtype(model)
    return model


def test_labels_are_the_target_with_its_eos_and_nothing_else():
    rows = make_rows(6)
    batch = targets.TargetCollator(PAD)(rows)
    for row, labels, ids, mask in zip(rows, batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True):
        assert labels[labels != -100].tolist() == row["input_ids"][row["prompt_tokens"] :]
        assert labels[-1] == EOS
        assert ids[mask == 1].tolist() == row["input_ids"]
        assert (ids[mask == 0] == PAD).all()


def test_loss_is_the_mean_over_target_tokens_whatever_the_padding(model):
    rows = make_rows(5)
    batch = targets.TargetCollator(PAD)(rows)
    logits, labels = targets.target_logits(model, batch)
    ours = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    losses = []
    for row in rows:  # one row at a time, no padding, the whole head
        ids = torch.tensor([row["input_ids"]])
        full = model(ids).logits[0, row["prompt_tokens"] - 1 : -1]
        losses.append(F.cross_entropy(full, ids[0, row["prompt_tokens"] :], reduction="none"))
    assert ours.item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)


def test_sampler_visits_each_example_once_and_depends_on_seed_and_epoch_alone():
    lengths = [row["length"] for row in make_rows(203)]
    sampler = training.LengthGroupedSampler(lengths, 8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(203))
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    resumed = training.LengthGroupedSampler(lengths, 8, seed=1)
    resumed.set_epoch(1)
    assert list(resumed) == second


def test_sampler_groups_like_lengths():
    lengths = [row["length"] for row in make_rows(400)]

    def padding(order):
        batches = [[lengths[i] for i in order[k : k + 8]] for k in range(0, 400, 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(list(training.LengthGroupedSampler(lengths, 8, seed=0))) < padding(list(range(400))) / 4


@pytest.mark.parametrize(("start", "count"), [(0, 500), (0, 200), (70, 500), (150, 40)])
def test_copies_of_an_example_do_not_meet_in_a_whole_batch_of_a_pass(start, count):
    rows = training.shuffled_stream(200, start, count, seed=0)
    passes = training.stream_passes(200, start, count)
    first = 0
    for part in passes:
        assert len(set(rows[first : first + part])) == part  # no example twice within a pass
        first += part
    lengths = [make_rows(200)[i]["length"] for i in rows]
    order = list(training.LengthGroupedSampler(lengths, 8, seed=1, passes=passes))
    assert sorted(order) == list(range(count))
    batches = [[rows[i] for i in order[k : k + 8]] for k in range(0, count, 8)]
    whole = sum(part // 8 for part in passes)  # what is over of each pass comes last
    assert all(len(set(batch)) == 8 for batch in batches[:whole])
    assert set(order[: passes[0] // 8 * 8]) <= set(range(passes[0]))


def test_exact_match_and_nll_agree_with_one_row_at_a_time(model):
    rows = make_rows(7)
    # Make two targets the ones that greedy decoding writes, so that exact match has something to find.
    for row in rows[:2]:
        ids = torch.tensor([row["input_ids"][: row["prompt_tokens"]]])
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        row.update(input_ids=ids[0].tolist(), target_tokens=4, length=ids.shape[1])
    nll, exact = targets.score_targets(
        model, datasets.Dataset.from_list(rows), targets.TargetCollator(PAD), batch_size=3, dtype=torch.float32
    )
    assert exact.tolist() == [True, True] + [False] * 5
    for row, value in zip(rows, nll.tolist(), strict=True):
        ids = torch.tensor([row["input_ids"]])
        losses = F.cross_entropy(model(ids).logits[0, row["prompt_tokens"] - 1 : -1], ids[0, row["prompt_tokens"] :])
        assert value == pytest.approx(losses.item(), abs=1e-4)


@pytest.fixture
def nf4(tiny_base):
    return add_lora(models.load_base(tiny_base, "nf4", CPU, torch.bfloat16, packed=True))


def bf16_loss(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, labels = targets.target_logits(model, batch)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def test_every_adapter_still_has_a_gradient_after_an_evaluation_on_nf4(nf4):
    batch = targets.TargetCollator(PAD)(make_rows(4))
    nf4.eval()
    with torch.no_grad():
        bf16_loss(nf4, batch)
    nf4.train()
    bf16_loss(nf4, batch).backward()
    grads = {name: p.grad for name, p in nf4.named_parameters() if "lora_B" in name}
    assert len(grads) == 14  # seven linear layers in each of two blocks
    assert [name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0] == []


def test_nf4_weights_survive_evaluation_saving_and_loading(tiny_base, tmp_path):
    batch = targets.TargetCollator(PAD)(make_rows(4))
    base = models.load_base(tiny_base, "nf4", CPU, torch.bfloat16, packed=True).eval()
    with torch.no_grad():
        before = bf16_loss(base, batch).item()
        base.save_pretrained(tmp_path)
        assert bf16_loss(base, batch).item() == before
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert any(type(module).__name__ == "Linear4bit" for module in again.modules())
        assert bf16_loss(again, batch).item() == pytest.approx(before, abs=1e-3)


def test_unpacking_nf4_once_changes_no_bit_of_loss_or_gradient(nf4, tiny_base):
    unpacked = add_lora(models.load_base(tiny_base, "nf4", CPU, torch.bfloat16))
    assert not any(type(module).__name__ == "Linear4bit" for module in unpacked.modules())
    batch = targets.TargetCollator(PAD)(make_rows(4))
    found = []
    for model in (nf4, unpacked):
        loss = bf16_loss(model, batch)
        loss.backward()
        found.append((loss, [p.grad for p in model.parameters() if p.requires_grad]))
    assert torch.equal(found[0][0], found[1][0]) and len(found[0][1]) == 28
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_unpacking_int8_once_trains_as_bitsandbytes_does(tiny_base):
    packed = add_lora(models.load_base(tiny_base, "int8", CPU, torch.bfloat16, packed=True))
    assert sum(isinstance(module, bnb.nn.Linear8bitLt) for module in packed.modules()) == 14
    unpacked = add_lora(models.load_base(tiny_base, "int8", CPU, torch.bfloat16))
    assert not any(isinstance(module, bnb.nn.Linear8bitLt) for module in unpacked.modules())
    original = models.load_base(tiny_base, "bf16", CPU, torch.bfloat16)
    batch = targets.TargetCollator(PAD)(make_rows(4))
    losses, grads = [], []
    for model in (packed, unpacked):
        loss = bf16_loss(model.train(), batch)
        loss.backward()
        losses.append(loss.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    # Unpacked by another formula: now and then the last bit of a weight differs.
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) != pytest.approx(bf16_loss(original, batch).item(), abs=1e-5)
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()


def write_adapter(directory, base, precision, weights):
    """A run's folder with an adapter that was trained on ``precision``; returns it on the base in ``weights``."""
    model = add_lora(models.load_base(base, weights, CPU, torch.bfloat16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros at the start
                parameter.normal_(0, 0.1)
    model.save_pretrained(directory / "adapter")
    models.load_tokenizer(base).save_pretrained(directory / "adapter")
    runs.write_json(directory / "settings.json", {"base_model": base, "base_precision": precision})
    return model


@pytest.mark.parametrize("precision", ["nf4", "int8"])
@pytest.mark.parametrize("into", ["dequantized", "original"])
def test_merged_logits_equal_the_adapters_on_the_base_that_was_merged_into(precision, into, tiny_base, tmp_path):
    weights = precision if into == "dequantized" else "bf16"
    model = write_adapter(tmp_path / "run", tiny_base, precision, weights)
    models.merge_adapter(tmp_path / "run", str(tmp_path), into == "original", tmp_path / "merged", torch.bfloat16)
    merged = models.load_base(str(tmp_path / "merged"), "bf16", CPU, torch.bfloat16)
    batch = targets.TargetCollator(PAD)(make_rows(4))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = [targets.target_logits(m.eval(), batch)[0].float() for m in (model, merged)]
        base = targets.target_logits(models.load_base(tiny_base, weights, CPU, torch.bfloat16), batch)[0].float()
    # The sum is rounded to 16 bits once, after merging.
    assert (logits[0] - logits[1]).norm() < 0.02 * (logits[0] - base).norm()


def test_decoding_runs_the_head_for_the_last_position_alone_and_copies_it_for_no_row(tiny_base, tmp_path):
    write_adapter(tmp_path / "run", tiny_base, "nf4", "nf4")
    model, tokenizer = models.load_run(tmp_path / "run", str(tmp_path), CPU, torch.bfloat16)
    seen = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: seen.append((output.shape[1], args[0].is_contiguous())))
    generation.generate(model, tokenizer, datasets.Dataset.from_list(make_rows(4)), 4, 3)
    assert seen and set(seen) == {(1, True)}


@pytest.mark.parametrize("better", training.MERGE_INTO)
def test_the_merge_of_lower_calibration_nll_is_kept(better, tiny_base, tmp_path, monkeypatch):
    write_adapter(tmp_path / "run", tiny_base, "nf4", "nf4")
    scored = []

    def score(model, *arguments):  # of the two in turn
        scored.append(model.get_decoder().layers[0].mlp.up_proj.weight.clone())
        nll = 1.0 if training.MERGE_INTO[len(scored) - 1] == better else 2.0
        return torch.tensor([nll]), torch.tensor([True])

    monkeypatch.setattr(training, "score_targets", score)
    settings = {"MERGE_INTO": "better", "BASE_MODEL": tiny_base, "RESULTS_DIR": str(tmp_path), "BATCH_SIZE": 4}
    found = training.merge(tmp_path / "run", settings, None, CPU, torch.bfloat16)
    assert found["merged_into"] == better and len(found["scores"]) == 2
    merged = models.load_base(str(tmp_path / "run" / "merged"), "auto", CPU, torch.bfloat16)
    weight = merged.get_decoder().layers[0].mlp.up_proj.weight
    assert [torch.equal(weight, one) for one in scored] == [way == better for way in training.MERGE_INTO]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter", "merged", "settings.json"]


def test_a_base_that_lacks_weights_is_not_merged_into(tiny_base, tmp_path):
    write_adapter(tmp_path / "run", tiny_base, "nf4", "nf4")
    adapter = tmp_path / "run" / "adapter"
    with pytest.raises(UserError, match="lack weights, such as lm_head.weight"):
        list(models.merged_tensors(adapter, models.read_config(tiny_base), adapter, torch.bfloat16))


def test_parameters_of_a_4_bit_model_are_counted_unpacked(tiny_base, nf4):
    dense = models.load_base(tiny_base, "fp32", CPU, torch.float32)
    adapters = sum(p.numel() for name, p in nf4.named_parameters() if "lora_" in name)
    assert models.parameter_count(nf4) - adapters == sum(p.numel() for p in dense.parameters())


def test_half_written_checkpoints_are_removed_and_the_newest_whole_one_is_taken(tmp_path):
    for step, whole in ((9, True), (100, True), (200, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert training.last_checkpoint(tmp_path).name == "checkpoint-100"
    assert not (tmp_path / "checkpoint-200").exists()
    assert training.last_checkpoint(tmp_path / "nothing") is None


def test_attention_is_plain_products_while_a_cpu_trains_and_as_it_was_afterwards(model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training.Trainer, "train", lambda self: seen.append(self.model.config._attn_implementation))
    before = model.config._attn_implementation
    arguments = training.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    training.TargetTrainer(model=model, args=arguments).train()
    assert before == "sdpa" and seen == ["eager"] and model.config._attn_implementation == before


def test_a_gpu_that_is_too_small_names_the_need_and_the_constants_to_lower(monkeypatch):
    card = type("Card", (), {"total_memory": 10e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    with (
        pytest.raises(UserError, match=r"10.0 GB are not enough \(predicted 12.3 GB\): lower BATCH_SIZE .*LORA_RANK"),
        training.explain_out_of_memory(12.3),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_a_bug_while_a_run_goes_on_is_not_taken_for_a_damaged_checkpoint(tmp_path):
    torch.save({"a": torch.zeros(9)}, tmp_path / "optimizer.pt")
    whole = (tmp_path / "optimizer.pt").read_bytes()
    (tmp_path / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged: remove it"), training.explain_resuming(tmp_path):
        torch.load(tmp_path / "optimizer.pt")
    for checkpoint, error in ((tmp_path, RuntimeError("shapes differ")), (None, RuntimeError("PytorchStreamReader"))):
        with pytest.raises(RuntimeError, match=str(error)), training.explain_resuming(checkpoint):
            raise error
