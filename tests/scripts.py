"""Ways to run a script of the repository: in a process of its own, killed half-way, within the test's process."""

import contextlib
import ctypes
import gc
import io
import multiprocessing
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FINQA = Path(os.environ.get("FINQA_DIR") or REPOSITORY.parent / "shared" / "finqa")
needs_finqa = pytest.mark.skipif(
    not (FINQA / "dev.json").is_file(), reason="real FinQA is not here: set FINQA_DIR to its folder"
)
PR_SET_PDEATHSIG = 1  # sys/prctl.h
# Importing takes seconds: one process does it, and scripts run in forks of that. Not gptqmodel, whose threads a fork
# would miss.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "transformers.trainer",
        "transformers.models.llama.modeling_llama",
        "peft",
        "matplotlib.pyplot",
        "scipy.stats",
        "pytest",
    ]
)


def run_script(*arguments, cwd=REPOSITORY, kill=None, seconds=900, **environment):
    """Run a script of the repository as a person would; returns the completed process with its output as text.

    It is killed after ``seconds``.
    """
    arguments, environment = [*map(str, arguments)], {name: str(value) for name, value in environment.items()}
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("out", "err")]
        for path in outputs:
            path.touch()  # a kill may come first
        process = FORKS.Process(target=_run, args=(arguments, cwd, os.environ | environment, outputs, kill))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        out, err = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def run_ranks(*arguments, kill=None, of_second=(), **environment):
    """A script in two processes that share the work through gloo on the CPU; what each of them left, rank 0 first.

    As under torchrun, which imports for seconds more, a store outlives both. The second one has the environment
    ``of_second`` too, and is killed as ``run_and_kill`` says; a factor at the end of ``kill`` changes the call's result
    instead.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launch = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    launch |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": 0}
    ranks = [environment | launch | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_script, *arguments, **ranks[0])
        second = pool.submit(run_script, *arguments, kill=kill, **ranks[1] | dict(of_second))
    return first.result(), second.result()


def run_and_kill(owner, name, calls, *arguments, **environment):
    """Run a script in a process of its own, killed by SIGKILL as the call ``calls`` of a function of ``owner``, a
    module or a class by its full name, comes to its end."""
    done = run_script(*arguments, kill=(owner, name, calls), **environment)
    assert done.returncode == -signal.SIGKILL, done.stderr


def _run(arguments, cwd, environment, outputs, kill):
    gc.freeze()
    for file, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = arguments
    # What a script spawns is a fork too, and ends with the script, whose end of a pipe it may hold itself.
    # tests/benchmark/test_rounds.py and tests/test_memory.py have a process of its own.
    context = multiprocessing.get_context
    os.register_at_fork(after_in_child=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    multiprocessing.get_context = lambda method=None: context("fork" if method == "spawn" else method)
    if kill:
        owner, name, *how = kill
        _kill_at_call(pkgutil.resolve_name(owner), name, *how)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        release_runs()  # multiprocessing leaves without what atexit does


def _kill_at_call(owner, name, calls, factor=None):
    function, seen = getattr(owner, name), []

    def killing(*arguments, **options):
        result = function(*arguments, **options)
        seen.append(1)
        if len(seen) == calls and factor is not None:
            return factor * result
        if len(seen) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)


def run_in_process(script, *arguments, **environment):
    """``run_script`` without a process of its own, for a test to which the seconds of imports show nothing more."""

    release_runs()
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        for name, value in environment.items():
            patch.setenv(name, str(value))
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
            status = 0
        except SystemExit as left:
            status = left.code
        finally:
            release_runs()
    return subprocess.CompletedProcess([script, *arguments], status, out.getvalue(), err.getvalue())


def release_runs():
    """What the end of a process does with the run folders that it holds."""
    from fincompress.runs import release

    release()


def script_globals(name):
    """The globals of a script of the repository at its call of ``configure``: its constants and its docstring."""

    class Reached(Exception):
        pass

    constants = {}

    def reached(namespace):
        constants.update(namespace)
        raise Reached

    with mock.patch("fincompress.settings.configure", reached), contextlib.suppress(Reached):
        runpy.run_path(str(REPOSITORY / name), run_name="read")
    return constants
