"""What a script leaves behind on stderr, and its exit status, for each kind of failure."""

import errno
import os
import subprocess
import sys

import pytest
from scripts import REPOSITORY

from fincompress import distributed
from fincompress.errors import UserError, run_script
from fincompress.runs import atomic_path

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, the disk that is always full")


def leave(capsys, main):
    """Exit status and stderr of a script whose ``main`` this is."""
    with pytest.raises(SystemExit) as left:
        run_script(main)
    return left.value.code, capsys.readouterr().err


def failing(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("RUN is wrong: mend it"), 2, "error: RUN is wrong: mend it\n"),
        (KeyboardInterrupt(), 130, "error: stopped by the keyboard"),
        (OSError(errno.EACCES, "Not yours", "results/x"), 2, "error: no access to results/x: Not yours; mend"),
        (OSError(errno.EROFS, "Read-only", "results/x"), 2, "error: no access to results/x: Read-only"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x"), 2, "error: no access to file/x: Not a dir"),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "data/train.json"),
            2,
            "error: no access to data/train.json",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            2,
            "error: no space left on the disk, or in a quota of it: free some",
        ),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 2, "error: no space left on the disk, or in a quota of it"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), 2, "error: no space left on the disk"),
        (MemoryError(), 2, "error: the main memory is not enough"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), 2, "error: the main memory is not enough"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "error: the main"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 2, "error: the GPU memory is not enough: lower"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), 2, "error: the GPU memory is not"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), 2, "error: the GPU memory is not"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing"), 2, "error: no space left on the disk"),
    ],
)
def test_a_failure_that_a_person_can_mend_is_one_line_and_its_status(capsys, error, status, said):
    code, err = leave(capsys, failing(error))
    assert code == status
    assert err.startswith(said) and err.count("\n") == 1


@pytest.mark.parametrize(("resumes", "again"), [(True, "resumes from the last checkpoint"), (False, "starts again")])
def test_ctrl_c_says_what_the_same_command_does(capsys, resumes, again):
    with pytest.raises(SystemExit):
        run_script(failing(KeyboardInterrupt()), resumes=resumes)
    assert capsys.readouterr().err == f"error: stopped by the keyboard; the same command {again}\n"


@needs_full
def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file(tmp_path, capsys):
    path = tmp_path / "run" / "metrics.json"

    def main():
        with atomic_path(path) as partial:
            partial.symlink_to("/dev/full")
            partial.write_text("text")

    code, err = leave(capsys, main)
    assert code == 2
    assert err.startswith("error: no space left on the disk") and err.count("\n") == 1
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "No file", "x"), SystemExit(5)])
def test_a_bug_is_not_dressed_up_as_an_error_of_the_person(error):
    with pytest.raises(type(error)) as raised:
        run_script(failing(error))
    assert raised.value is error


def test_a_bug_keeps_its_traceback_and_its_status():
    done = subprocess.run(
        [sys.executable, "-c", "from fincompress.errors import run_script\nrun_script(lambda: 1 / 0)"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("ZeroDivisionError: division by zero\n")


def run_python(code, **options):
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, **options)


@needs_full
@pytest.mark.parametrize("lines", [1, 1000])
def test_a_full_stdout_is_one_line(lines):
    code = "from fincompress.errors import run_script; "
    code += f"run_script(lambda: [print('x' * 1000) for _ in range({lines})])"
    with open("/dev/full", "w") as full:
        done = run_python(code, stdout=full)
    assert done.returncode == 2 and done.stderr.startswith("error: no space left") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        ("KeyboardInterrupt", 130, "error: stopped by the keyboard; the same command starts again\n"),
        ("BrokenPipeError", 1, ""),
        ("UserError('mend it')", 2, "error: mend it\n"),
    ],
)
def test_what_ends_a_script_while_it_imports_is_one_line(raised, status, said):
    done = run_python(f"from fincompress.errors import UserError, watch_start; watch_start(); raise {raised}")
    assert (done.returncode, done.stderr) == (status, said)


def test_what_a_terminal_cannot_show_is_escaped():
    code = "from fincompress.errors import watch_start; watch_start(); print('\\u2190 \\ud800')"
    done = run_python(code, stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "\\u2190 \\ud800\n")


def test_an_error_stands_on_a_line_of_its_own_after_a_progress_bar():
    code = "from fincompress.errors import UserError, run_script\nfrom tqdm import tqdm\ndef main():\n"
    code += "    bar = tqdm(total=9)\n    bar.update()\n    raise UserError('mend it')\nrun_script(main)"
    assert run_python(code).stderr.splitlines()[-1] == "error: mend it"


@pytest.mark.parametrize("lines", [1, 1000])  # less than a pipe and Python's buffer hold, and more
def test_a_closed_pipe_is_not_reported(lines):
    """As `python evaluate.py | head` closes it."""
    code = "import sys; from fincompress.errors import run_script; "
    code += f"run_script(lambda: [sys.stdin.read()] + [print('x' * 1000) for _ in range({lines})])"
    script = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=REPOSITORY, env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    script.stdout.close()
    script.stdin.close()
    assert (script.stderr.read(), script.wait()) == ("", 1)


@pytest.mark.parametrize("left", [{"WORLD_SIZE": "4"}, {"RANK": "3"}])
def test_half_of_a_launchers_variables_is_no_launch(monkeypatch, left):
    """As a job scheduler may leave them in the environment of every job."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    distributed.join()
    assert distributed.is_main() and distributed.size() == 1
