"""Errors a person can cause: one clear line on stderr, exit status 2."""

import errno
import io
import os
import sys

_NO_ACCESS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG
)  # fmt: skip
# Safetensors' error has no number, and torch.save says no more than that its writer failed.
_NO_ROOM = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "PytorchStreamWriter failed")
_NO_MEMORY = os.strerror(errno.ENOMEM), "DefaultCPUAllocator: can't allocate memory"
# Of a GPU that is nearly full when CUDA or cuBLAS takes its own part.
_NO_GPU_MEMORY = "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"


class UserError(Exception):
    """What is wrong, where, and what to do, in one line."""


class NoKernel(UserError):
    """A quantized model that nothing on this machine runs; another one may."""


def run_script(main, resumes: bool = False) -> None:
    """Run a script's ``main`` and leave with status 2 and one line where a person can mend the cause.

    ``resumes`` says whether the same command resumes what Ctrl-C stopped, or starts it again.
    Anything else keeps its traceback: that is a bug, and the traceback is what its report needs.
    """
    try:
        main()
        sys.stdout.flush()
    except BaseException as error:
        status = report(error, "resumes from the last checkpoint" if resumes else "starts again")
        if status is None:
            raise
        raise SystemExit(status) from None


def watch_start() -> None:
    """Until ``run_script`` takes over, while libraries are imported for seconds: the same lines, the same status.

    From here on stdout escapes what a terminal's encoding does not have.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")

    def leave(kind, error, trace):
        status = report(error, "starts again")
        if status is None:
            sys.__excepthook__(kind, error, trace)
        else:
            os._exit(status)

    sys.excepthook = leave


def report(error: BaseException, again: str) -> int | None:
    """Say on stderr, on a line of its own, what a person can mend; returns the exit status, None for a bug."""
    if isinstance(error, BrokenPipeError):  # of stdout, as `| head` closes it
        status, line = 1, ""
    elif isinstance(error, KeyboardInterrupt):
        status, line = 130, f"error: stopped by the keyboard; the same command {again}\n"
    elif isinstance(error, Exception) and (mendable := _one_line(error)):
        status, line = 2, f"error: {mendable}\n"
    else:
        return None
    if "tqdm" in sys.modules:  # a progress bar leaves the cursor in its line until it is closed
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
    sys.stderr.write(line)
    try:
        sys.stdout.flush()
    except OSError:  # closed or full: Python would flush it once more, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def memory_is_full(error: BaseException) -> str | None:
    """``"GPU"`` or ``"main"`` where an error says that this memory is not enough, else None."""
    said = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(text in said for text in _NO_GPU_MEMORY):
        return "GPU"
    return "main" if isinstance(error, MemoryError) or any(text in said for text in _NO_MEMORY) else None


def _one_line(error: Exception) -> str | None:
    """What to tell the person who can mend an error; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if any(said in str(error) for said in _NO_ROOM):
        return "no space left on the disk, or in a quota of it: free some and run it again"
    if memory := memory_is_full(error):
        lower = "lower BATCH_SIZE (in training raise GRADIENT_ACCUMULATION alike), then MAX_PROMPT_TOKENS in"
        lower = lower if memory == "GPU" else "end other programs, or lower BATCH_SIZE, then MAX_PROMPT_TOKENS in"
        return f"the {memory} memory is not enough: {lower} preprocess_data.py, under another RUN"
    if getattr(error, "errno", None) in _NO_ACCESS:
        place = error.filename or "a file"
        return f"no access to {place}: {error.strerror}; mend its permissions, or choose another RUN or RESULTS_DIR"
    return None
