"""Runs of sapling_train.py on a random decoder of six blocks, made once for all tests that look at them."""

import json

import pytest
from scripts import run_in_process, script_globals

DATA = ("preprocess_data.py", "--RUN=six_data", "--TRAIN_EXAMPLES=32", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=8",
        "--EVIDENCE_TOKENS=64", "--MAX_PROMPT_TOKENS=160")  # fmt: skip
SAPLING = ("sapling_train.py", "--DATA_RUN=six_data", "--CALIBRATION_EXAMPLES=8", "--FIRST_SCAN_EXAMPLES=4",
           "--SCAN_BATCH_SIZE=4", "--DROP_UNIT=sublayer", "--DROPS_EARLY=1", "--DROPS_LATE=1", "--LOGGING_STEPS=1",
           "--LEARNING_RATE=1e-3",
           "--FIRST_EPOCHS=0.5", "--CYCLE_EPOCHS=0.5", "--HEALING_EPOCHS=0.5", "--TARGET_SIZE=0.52",
           # Algorithm 1 without a teacher, as RECOVERY = "paper" sets it
           "--START_FROM=None", "--KL=0", "--CROSS_ENTROPY=1", "--HIDDEN_STATES=0", "--HEAL_AT=[]",
           "--KEEP_MOMENTS=False", "--TRAIN_RATIO=0.25", "--HEALING_TRAIN_RATIO=0.25", "--TRAIN_ENDS=True",
           "--LR_SCHEDULE=cosine", "--PATCH_EXAMPLES=0", "--KEEP_HEALED=False",
           "--SAVE_EVERY=1")  # fmt: skip
QLORA = ("--UPDATE=qlora", "--START_FROM=six_qlora", "--LORA_RANK=4", "--LORA_ALPHA=8")
TAUGHT = ("--START_FROM=six_qlora", "--KL=1", "--CROSS_ENTROPY=0.3", "--HIDDEN_STATES=1", "--KEEP_MOMENTS=True",
          "--TRAIN_RATIO=1", "--HEALING_TRAIN_RATIO=1", "--TRAIN_ENDS=False", "--LR_SCHEDULE=constant_with_warmup",
          "--SAVE_EVERY=None", "--FIRST_EPOCHS=0", "--CYCLE_EPOCHS=1", "--HEAL_AT=[10]",
          "--HEALING_EPOCHS=0.5", "--TARGET_SIZE=0.8", "--SAVE_STEPS=2")  # fmt: skip


def read(path):
    return json.loads(path.read_text())


def done(*arguments, **environment):
    """Run a script here that has to end well; returns what it printed."""
    process = run_in_process(*arguments, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def settings_of(environment, **changed):
    """The constants of sapling_train.py for the six blocks, as ``main`` hands them on."""
    constants = {name: value for name, value in script_globals("sapling_train.py").items() if name.isupper()}
    small = {"DATA_RUN": "six_data", "CALIBRATION_EXAMPLES": 8, "FIRST_SCAN_EXAMPLES": 4, "HEAL_AT": []}
    small |= {"DROP_UNIT": "sublayer", "TRAIN_RATIO": 0.25, "HEALING_TRAIN_RATIO": 0.25}
    return constants | environment | small | changed


@pytest.fixture(scope="session")
def six(results_dir, tiny_base):
    """The environment of a data run for a random Llama of six blocks, most of whose bytes lie in the blocks."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from fincompress import models

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    folder = results_dir / "six"
    models.write_checkpoint(
        folder, AutoModelForCausalLM.from_config(config), models.load_tokenizer(tiny_base), torch.bfloat16
    )
    environment = {"BASE_MODEL": str(folder), "DATA_DIR": "synthetic", "RESULTS_DIR": str(results_dir)}
    done(*DATA, **environment)
    return results_dir, environment


@pytest.fixture(scope="session")
def sapling(six):
    """A finished run without a teacher: its folder, its environment and what it printed."""
    results, environment = six
    return results / "sapling", environment, done(*SAPLING, **environment)


@pytest.fixture(scope="session")
def phase_1(six):
    """A QLoRA run on the same data; what its adapter learns is small beside the weights, as it is of a real model."""
    results, environment = six
    done("train_qlora_4bit.py", "--DATA_RUN=six_data", "--RUN=six_qlora", "--LORA_RANK=4",
         "--LEARNING_RATE=2e-3", "--EPOCHS=1", **environment)  # fmt: skip
    return results / "six_qlora"


@pytest.fixture(scope="session", params=["full", pytest.param("qlora", marks=pytest.mark.real)])
def taught(request, six, phase_1):
    """A run that learns from phase 1, and heals two depths, and its command; adapters are patched, and half trained."""
    results, environment = six
    half = (*QLORA, "--TRAIN_RATIO=0.5", "--HEALING_TRAIN_RATIO=0.5", "--PATCH_EXAMPLES=8")
    command = (*SAPLING, *TAUGHT, *(half if request.param == "qlora" else ()))
    run = f"taught_{request.param}"
    done(*command, f"--RUN={run}", **environment)
    return results / run, command


def assert_same_run(unbroken, broken):
    """Two runs dropped the same, by the same scores, and left the same weights at every depth."""
    import pandas as pd

    tables = [pd.read_csv(d / "trajectory.csv") for d in (unbroken, broken)]
    for name in set(tables[0]) & {"dropped", "decided_by", "nll_alone", "nll_after_training"}:
        assert tables[0][name].tolist() == tables[1][name].tolist(), name
    assert pd.read_csv(unbroken / "loss_curve.csv").equals(pd.read_csv(broken / "loss_curve.csv"))
    facts = [read(d / "train_metrics.json") for d in (unbroken, broken)]
    assert facts[0]["tokens_seen"] == facts[1]["tokens_seen"]
    depths = [sorted(path.name for path in d.iterdir() if path.is_dir()) for d in (unbroken, broken)]
    assert depths[0] == depths[1] and not list(broken.glob("state*"))
    for depth in depths[0]:
        weights = [(d / depth / "model.safetensors").read_bytes() for d in (unbroken, broken)]
        assert weights[0] == weights[1], depth
