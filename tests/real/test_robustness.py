"""A twentieth of what benchmarks/robustness.py tries, drawn by a seed."""

import subprocess
import sys

import pytest
from scripts import REPOSITORY


@pytest.mark.real
def test_wrong_inputs_kills_and_mutated_programs_end_as_they_should():
    command = [sys.executable, "benchmarks/robustness.py", "--SHARE=0.05", "--SEED=0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.endswith("all passed\n")
