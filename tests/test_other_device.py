"""No step mixes tensors of a GPU with those of the CPU, as far as that shows on a device that torch makes up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

pytestmark = [
    pytest.mark.real,  # starts a process
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="an older torch makes no device up",
    ),
]


def run(*arguments):
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    return subprocess.run(
        [sys.executable, here / "other_device.py", *arguments], env=environment, capture_output=True, text=True
    )


def test_training_scanning_and_dropping_stay_on_their_device():
    done = run()
    assert done.returncode == 0, done.stderr


def test_what_lies_on_another_device_shows():
    done = run("labels")
    assert done.returncode == 1 and "Expected all tensors to be on the same device" in done.stderr
