"""Runs of sapling_train.py on a random decoder of six layers, made once for all tests that look at them."""

import json

import pytest
from scripts import run_in_process, script_globals

DATA = ("preprocess_data.py", "--RUN=six_data", "--TRAIN_EXAMPLES=32", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=8",
        "--EVIDENCE_TOKENS=64", "--MAX_PROMPT_TOKENS=160")  # fmt: skip
SMALL = {"DATA_RUN": "six_data", "CALIBRATION_EXAMPLES": 8, "LOGGING_STEPS": 1, "SAVE_STEPS": 2, "LEARNING_RATE": 1e-3,
         "PATCH_EXAMPLES": 8, "DEPTHS": [5, 4], "DROPS_PER_CYCLE": 1, "RECOVERY_EPOCHS": 0.5, "BATCH_SIZE": 2,
         "LORA_RANK": 4}  # fmt: skip
PAPER = {"START_FROM": None, "TEACHER": None, "DROP_UNIT": "sublayer", "PATCH_EXAMPLES": 0, "TRAIN_SHARE": 0.25,
         "CYCLE_EPOCHS": 0.5, "DEPTHS": [6, 3]}  # fmt: skip
TAUGHT = {"START_FROM": "six_qlora"}
QLORA = TAUGHT | {"UPDATE": "qlora", "TRAIN_SHARE": 0.5}


def command(run, *constants, **changed):
    """A command line of sapling_train.py on the six layers."""
    values = SMALL | {name: value for group in constants for name, value in group.items()} | changed
    return ("sapling_train.py", f"--RUN={run}", *(f"--{name}={value}" for name, value in values.items()))


def read(path):
    return json.loads(path.read_text())


def done(*arguments, **environment):
    """Run a script here that has to end well; returns what it printed."""
    process = run_in_process(*arguments, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def settings_of(environment, *groups, **changed):
    """The constants of sapling_train.py for the six layers, as ``main`` hands them on."""
    constants = {name: value for name, value in script_globals("sapling_train.py").items() if name.isupper()}
    groups = {name: value for group in groups for name, value in group.items()}
    return constants | environment | SMALL | groups | changed


@pytest.fixture(scope="session")
def six(results_dir, tiny_base):
    """The environment of a data run for a random Llama of six layers, in which most of its bytes lie."""
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
def phase_1(six):
    """A QLoRA run on the same data; what its adapter learns is small beside the weights, as it is of a real model."""
    results, environment = six
    done("train_qlora_4bit.py", "--DATA_RUN=six_data", "--RUN=six_qlora", "--LORA_RANK=4",
         "--LEARNING_RATE=2e-3", "--EPOCHS=1", **environment)  # fmt: skip
    return results / "six_qlora"


@pytest.fixture(scope="session")
def sapling(six, phase_1):
    """A finished run with the script's own way to recover: its folder, its environment and what it printed."""
    results, environment = six
    return results / "sapling", environment, done(*command("sapling", TAUGHT), **environment)


def assert_same_run(unbroken, broken):
    """Two runs dropped the same, by the same scores, and left the same weights at every depth."""
    import pandas as pd

    tables = [pd.read_csv(d / "trajectory.csv") for d in (unbroken, broken)]
    for name in set(tables[0]) & {"dropped", "decided_by", "nll_alone"}:
        assert tables[0][name].tolist() == tables[1][name].tolist(), name
    assert pd.read_csv(unbroken / "loss_curve.csv").equals(pd.read_csv(broken / "loss_curve.csv"))
    facts = [read(d / "train_metrics.json") for d in (unbroken, broken)]
    assert facts[0]["tokens_seen"] == facts[1]["tokens_seen"]
    depths = [sorted(path.name for path in d.iterdir() if path.is_dir()) for d in (unbroken, broken)]
    assert depths[0] == depths[1] and not list(broken.glob("state*"))
    for depth in depths[0]:
        weights = [(d / depth / "model.safetensors").read_bytes() for d in (unbroken, broken)]
        assert weights[0] == weights[1], depth
