"""SmolLM2 without some of its layers: the scan finds what is known of it, and what is left is a standard model."""

import statistics

import datasets
import pytest
import torch
from scripts import run_script

from fincompress import models
from fincompress.depth import repack
from fincompress.depth import sublayers as sub
from fincompress.depth.scan import scan
from fincompress.depth.sublayers import SubLayer
from fincompress.training.loss import TargetCollator, target_logits

pytestmark = pytest.mark.real
CPU = torch.device("cpu")
DTYPE, _ = models.pick_dtype(CPU)  # bf16 that the CPU has to emulate takes many times as long


@pytest.fixture(scope="module")
def smollm2(results_dir):
    models.quiet_libraries()
    path = models.base_model_path(models.EMBEDDED, str(results_dir))
    return models.load_base(path, "auto", CPU, DTYPE).eval(), models.load_tokenizer(path)


@pytest.fixture(scope="module")
def questions(results_dir, finqa_dir, smollm2):
    """One batch of four real dev questions with their gold programs."""
    done = run_script(
        "preprocess_data.py", "--RUN=finqa_depth", "--TRAIN_EXAMPLES=8", "--CALIBRATION_EXAMPLES=8",
        "--EVAL_EXAMPLES=4", "--EVIDENCE_TOKENS=96", RESULTS_DIR=results_dir, DATA_DIR=finqa_dir,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = datasets.load_from_disk(str(results_dir / "finqa_depth" / "dev"))
    return TargetCollator(smollm2[1].pad_token_id)(list(rows))


def test_the_scan_finds_what_is_known_of_smollm2(smollm2, questions):
    model, _ = smollm2
    scores, whole = scan(model, sub.units(model, "sublayer"), [questions])
    lost = {score.unit[0]: float(score.nll.mean() - whole.nll.mean()) for score in scores}
    assert max(lost, key=lost.get) == SubLayer(0, "mlp") and lost[SubLayer(0, "mlp")] > 3
    attentions = [value for sublayer, value in lost.items() if sublayer.kind == "attention"]
    # The residual stream thrown away instead of skipped costs every attention about ten.
    assert sum(abs(value) < 0.4 for value in attentions) >= 26
    assert abs(statistics.median(attentions)) < 0.15


def test_smollm2_repacked_is_the_same_and_standard(smollm2, questions, tmp_path):
    from transformers import AutoModelForCausalLM

    path = smollm2[0].config._name_or_path
    model = models.load_base(path, "auto", CPU, DTYPE).eval()
    gone = [SubLayer(b, "mlp") for b in (5, 9, 20)] + [SubLayer(b, "attention") for b in (6, 9, 21)]
    sub.remove(model, *gone)
    packed = repack.repacked_model(model)
    with torch.no_grad():
        expected = target_logits(model, questions)[0]
        assert torch.equal(target_logits(packed, questions)[0], expected)
        models.write_checkpoint(tmp_path, packed, smollm2[1], torch.bfloat16)
        reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=DTYPE, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert reloaded.config.num_hidden_layers == 27
        assert torch.equal(target_logits(reloaded, questions)[0], expected)
