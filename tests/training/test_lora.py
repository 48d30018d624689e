"""LoRA: an adapter merged into the weights it was trained against is the adapter on them."""

import shutil

import datasets
import pytest
import torch
from training_rows import CPU, PAD, make_rows, write_adapter

from fincompress import generation, models, runs, training
from fincompress.errors import UserError
from fincompress.training import lora, loss


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_merged_logits_equal_the_adapters_on_the_base_that_it_was_trained_on(precision, tiny_base, tmp_path):
    model = write_adapter(tmp_path / "run", tiny_base, precision, precision)
    lora.merge_adapter(tmp_path / "run", str(tmp_path), tmp_path / "merged", torch.bfloat16)
    merged = models.load_base(str(tmp_path / "merged"), "bf16", CPU, torch.bfloat16)
    batch = loss.TargetCollator(PAD)(make_rows(4))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = [loss.target_logits(m.eval(), batch)[0].float() for m in (model, merged)]
        base = loss.target_logits(models.load_base(tiny_base, precision, CPU, torch.bfloat16), batch)[0].float()
    # The sum is rounded to 16 bits once, after merging.
    assert (logits[0] - logits[1]).norm() < 0.02 * (logits[0] - base).norm()


def test_a_base_is_quantized_for_the_merge_as_it_was_for_the_training(tiny_base, tmp_path):
    """Of weights in fp16 some have another NF4 code once they are rounded to bf16."""
    model, tokenizer = models.load_base(tiny_base, "fp32", CPU, torch.float32), models.load_tokenizer(tiny_base)
    models.write_checkpoint(tmp_path / "fp16", model, tokenizer, torch.float16)
    write_adapter(tmp_path / "run", str(tmp_path / "fp16"), "nf4", "nf4")
    trained_on = models.load_base(str(tmp_path / "fp16"), "nf4", CPU, torch.float32).get_decoder().layers[0].mlp.up_proj
    adapter = models.load_adapter(tmp_path / "run", str(tmp_path), CPU, torch.float32)[0].get_base_model()
    delta = adapter.get_decoder().layers[0].mlp.up_proj.get_delta_weight("default")
    lora.merge_adapter(tmp_path / "run", str(tmp_path), tmp_path / "merged", torch.float32)
    merged = models.load_base(str(tmp_path / "merged"), "auto", CPU, torch.bfloat16).get_decoder().layers[0].mlp.up_proj
    assert torch.equal(merged.weight, (trained_on.weight + delta).to(torch.bfloat16))


def test_an_adapter_is_put_on_no_other_model_than_it_was_trained_on(tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    write_adapter(tmp_path / "run", str(base), "nf4", "nf4")
    record = runs.read_json(tmp_path / "run" / "settings.json")
    facts = training.run_facts({"BASE_MODEL": str(base)}, "nf4", {"data": {}, "data_hash": "d"}, CPU, torch.bfloat16)
    runs.write_json(tmp_path / "run" / "settings.json", record | facts)
    models.load_run(tmp_path / "run", str(tmp_path), CPU, torch.bfloat16)
    model = models.load_base(str(base), "auto", CPU, torch.bfloat16)
    for parameter in model.parameters():  # as training it again would
        parameter.data *= 2
    model.save_pretrained(base)  # as large as before
    with pytest.raises(UserError, match="base/ holds another model by now than the adapter of run was trained on"):
        models.load_run(tmp_path / "run", str(tmp_path), CPU, torch.bfloat16)
    shutil.rmtree(base)
    with pytest.raises(UserError, match="base cannot be loaded|base is no|no such|does not exist"):
        models.load_run(tmp_path / "run", str(tmp_path), CPU, torch.bfloat16)


def test_decoding_runs_the_head_for_the_last_position_alone_and_copies_it_for_no_row(tiny_base, tmp_path):
    write_adapter(tmp_path / "run", tiny_base, "nf4", "nf4")
    model, tokenizer = models.load_run(tmp_path / "run", str(tmp_path), CPU, torch.bfloat16)
    seen = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: seen.append((output.shape[1], args[0].is_contiguous())))
    generation.generate(model, tokenizer, datasets.Dataset.from_list(make_rows(4)), 4, 3)
    assert seen and set(seen) == {(1, True)}
