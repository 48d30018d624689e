"""No script looks up a host where everything that its constants name is on this machine."""

import os
import subprocess
import sys

import pytest
from scripts import REPOSITORY

# Python imports sitecustomize at the start of every process, so workers are watched too.
WATCH = """
import os, sys, traceback

def watch(event, arguments):
    if event == "socket.getaddrinfo":
        with open(os.environ["LOOKUPS"], "a") as file:
            file.write(f"{sys.argv} looked up {arguments[0]}:\\n{''.join(traceback.format_stack()[-40:-1])}\\n")

sys.addaudithook(watch)
"""
TRAIN = ("--BATCH_SIZE=4", "--LORA_RANK=4", "--MAX_STEPS=2")
CHAIN = [
    ("preprocess_data.py", "--TRAIN_EXAMPLES=16", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=4",
     "--EVIDENCE_TOKENS=64", "--MAX_PROMPT_TOKENS=200"),
    ("train_qlora_4bit.py", *TRAIN),
    ("evaluate.py", "--RUN=qlora_4bit", "--MAX_NEW_TOKENS=4"),
    ("quantize_gptq.py", "--CALIBRATION_EXAMPLES=4"),
    ("benchmark_throughput.py", "--RUNS=['gptq_4bit']", "--ROUNDS=1", "--NEW_TOKENS=4"),
    ("plot_pareto.py",),
    ("predict.py", "--help"),
]  # fmt: skip


@pytest.mark.real
def test_no_script_looks_up_a_host_that_no_constant_names(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    lookups = tmp_path / "lookups.txt"
    inherited = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "LOCAL_KERNELS")}
    environment = inherited | {
        "PYTHONPATH": str(tmp_path), "LOOKUPS": str(lookups), "HF_HOME": str(tmp_path / "hub"),
        "BASE_MODEL": "shape:tiny", "DATA_DIR": "synthetic", "RESULTS_DIR": str(tmp_path / "results"),
    }  # fmt: skip
    for script in CHAIN:
        command = [sys.executable, *script]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert not lookups.exists(), lookups.read_text()
        assert done.returncode == 0, done.stderr
