"""The embedded model for real: it talks, it learns FinQA's programs in a few steps, and its adapter reloads."""

import datasets
import pytest
import torch
from scripts import run_script

from fincompress import models, runs
from fincompress.training import loss

pytestmark = pytest.mark.real
CPU = torch.device("cpu")
DTYPE, _ = models.pick_dtype(CPU)  # as the scripts do


@pytest.fixture(scope="module")
def smollm2(results_dir):
    models.quiet_libraries()
    return models.base_model_path(models.EMBEDDED, str(results_dir))


def test_the_converted_model_is_whole_and_talks(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(smollm2, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_a_few_steps_teach_it_the_form_of_programs(smollm2, results_dir, finqa_dir):
    environment = {"RESULTS_DIR": results_dir, "DATA_DIR": finqa_dir, "BASE_MODEL": models.EMBEDDED}
    done = run_script(
        "preprocess_data.py", "--RUN=finqa", "--TRAIN_EXAMPLES=48", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=8",
        "--EVIDENCE_TOKENS=64", **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = runs.read_json(results_dir / "finqa" / "data_report.json")
    assert report["source"] == "FinQA" and report["missing_splits"] == ["test"] and report["skipped"] == []

    train = ("train_qlora_4bit.py", "--RUN=real", "--DATA_RUN=finqa", "--LORA_RANK=16", "--EPOCHS=1", "--SAVE_STEPS=10")
    done = run_script(*train, **environment)
    assert done.returncode == 0, done.stderr
    metrics = runs.read_json(results_dir / "real" / "train_metrics.json")
    calibration = datasets.load_from_disk(str(results_dir / "finqa" / "calibration"))
    tokenizer = models.load_tokenizer(smollm2)
    collator = loss.TargetCollator(tokenizer.pad_token_id)
    base = models.load_base(smollm2, "nf4", CPU, DTYPE)
    before = loss.score_targets(base, calibration, collator, 12, DTYPE)[0].mean().item()
    after = metrics["calibration"][-1]["calibration_nll"]
    assert after < 0.5 * before

    # What was trained is what is loaded: the same loss, though evaluation ran between the steps.
    model, _ = models.load_run(results_dir / "real", str(results_dir), CPU, DTYPE)
    again = loss.score_targets(model, calibration, collator, 12, DTYPE)[0].mean().item()
    assert again == pytest.approx(after, rel=0.02)

    done = run_script("evaluate.py", "--RUN=real", "--SPLIT=dev", "--MAX_NEW_TOKENS=32", **environment)
    assert done.returncode == 0, done.stderr
    summary = runs.read_json(results_dir / "real" / "eval_dev.json")
    assert summary["questions"] == 8 and summary["ended_by_themselves"] >= 6
