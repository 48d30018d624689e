"""What made a result: commit, library versions, hardware, command line, and fingerprints of what it was made from."""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from fincompress import distributed

LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes", "gptqmodel", "optimum", "accelerate", "datasets", "bm25s", "numpy",
    "xllamacpp",
)  # fmt: skip
BF16_FLAGS = ("amx_bf16", "avx512_bf16")  # of processors that multiply bf16 natively


def provenance() -> dict[str, object]:
    """What a run's ``settings.json`` says of who made it."""
    return {"code": code_version(), "versions": versions(), "hardware": hardware(), "command": command()}


def command() -> str:
    """The command line as typed, of this machine's folders the last part alone."""
    shown = ["python", Path(sys.argv[0]).name]
    for name, equals, value in (argument.partition("=") for argument in sys.argv[1:]):
        shown.append(name + equals + (Path(value).name if os.path.isabs(value) else value))
    return " ".join(shown)


def code_version() -> str | None:
    """The commit of this code, with ``+`` where files were changed since; None outside a git checkout."""
    root = Path(__file__).parents[1]
    git = ["git", f"--git-dir={root}/.git", f"--work-tree={root}", "describe", "--always", "--abbrev=40"]
    with contextlib.suppress(OSError):
        done = subprocess.run([*git, "--dirty=+", "--exclude=*"], capture_output=True, text=True)
        return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def hardware() -> dict[str, object]:
    """Processor, cores, memory in GB, the GPU where torch sees one, processes where there are several."""
    import psutil
    import torch

    machine: dict[str, object] = {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }
    if distributed.size() > 1:
        machine["processes"] = distributed.size()
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name(0)
        machine["vram_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return machine


def cpu_name() -> str:
    """The processor's name, its generation, which clouds leave out of the name, and its instructions for bf16: they
    decide the compute type, and the speed.
    """
    cpuinfo = {"model name": platform.processor() or platform.machine(), "flags": ""}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        cpuinfo |= {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    generation = [f"{key.split()[-1]} {cpuinfo[key]}" for key in ("cpu family", "model") if key in cpuinfo]
    special = [flag for flag in BF16_FLAGS if flag in cpuinfo["flags"].split()] or ["no bf16"]
    return f"{cpuinfo['model name']} ({', '.join(generation + special)})"


def fingerprint(*parts: object) -> str:
    """A short hash (16 hex digits) of JSON-serialisable values, to tell whether two runs saw the same thing."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
