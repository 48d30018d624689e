"""Fixtures: a tiny random Llama for fast tests, and real FinQA where it lies at hand."""

import contextlib
import gc
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

pytest_plugins = ["sapling_runs"]
REPOSITORY = Path(__file__).parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub library is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # processes that test at once share the cores
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def run_script(*arguments, cwd=REPOSITORY, **environment):
    """Run a script of the repository as a person would; returns the completed process with its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=900,
    )


KILL = """
import os, pkgutil, runpy, signal, sys
owner, name, calls = pkgutil.resolve_name(sys.argv[1]), sys.argv[2], int(sys.argv[3])
function, seen = getattr(owner, name), []
def killing(*arguments, **options):
    found = function(*arguments, **options)
    seen.append(1)
    if len(seen) == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
setattr(owner, name, killing)
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_and_kill(owner, name, calls, *arguments, **environment):
    """Run a script in a process of its own, killed by SIGKILL as the call ``calls`` of a function of ``owner``, a
    module or a class by its full name, comes to its end."""
    done = run_script("-c", KILL, owner, name, calls, *arguments, **environment)
    assert done.returncode == -signal.SIGKILL, done.stderr


def run_in_process(script, *arguments, **environment):
    """``run_script`` without a process of its own, for a test to which the seconds of imports show nothing more."""
    from fincompress.settings import DEFAULTS

    out, err, before = io.StringIO(), io.StringIO(), dict(DEFAULTS)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        for name, value in environment.items():
            patch.setenv(name, str(value))
        DEFAULTS.clear()
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
            status = 0
        except SystemExit as left:
            status = left.code
        finally:
            DEFAULTS.clear()
            DEFAULTS.update(before)
    return subprocess.CompletedProcess([script, *arguments], status, out.getvalue(), err.getvalue())


def script_globals(name):
    """The globals of a script of the repository at its call of ``configure``: its constants and its docstring."""

    class Reached(Exception):
        pass

    found = {}

    def reached(namespace):
        found.update(namespace)
        raise Reached

    with mock.patch("fincompress.settings.configure", reached), contextlib.suppress(Reached):
        runpy.run_path(str(REPOSITORY / name), run_name="read")
    return found


def is_whole(path):
    """Whether a JSON file is there and written to its end."""
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


@pytest.fixture(autouse=True)
def few_objects_to_collect():
    """What is imported is never garbage: without it a collection takes milliseconds, not half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def synthetic_set_made_once():
    """The synthetic set as scripts within this process read it: three seconds each time that they are run."""
    from fincompress.finqa import examples, synthetic

    find, found = examples.find_records, {}

    def find_once(data_dir, split, seed):
        if data_dir != examples.SYNTHETIC:
            return find(data_dir, split, seed)
        made = split, seed, synthetic.DEFAULT_COUNTS[split]
        if made not in found:
            found[made] = json.dumps(find(data_dir, split, seed))
        return json.loads(found[made])

    with mock.patch.object(examples, "find_records", find_once):
        yield


@pytest.fixture(scope="session")
def results_dir(tmp_path_factory):
    """A results directory that all tests share, so that base models are made once."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def tiny_base(results_dir):
    """The folder of ``shape:tiny``: two blocks, 64 wide, random weights."""
    from fincompress import models

    models.quiet_libraries()
    return models.base_model_path("shape:tiny", str(results_dir))


@pytest.fixture(scope="session")
def finqa_dir():
    """The folder of real FinQA: FINQA_DIR, or beside the repository; tests that need it are skipped without."""
    directory = Path(os.environ.get("FINQA_DIR", REPOSITORY.parent / "shared" / "finqa"))
    if not (directory / "dev.json").exists():
        pytest.skip("real FinQA is not here: set FINQA_DIR")
    return directory
