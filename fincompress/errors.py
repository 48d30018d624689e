"""Errors a person can cause: one clear line on stderr, exit status 2."""

from __future__ import annotations

import errno
import os
import sys

_NO_ACCESS = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)


class UserError(Exception):
    """What is wrong, where, and what to do, in one line."""


class NoKernel(UserError):
    """A quantized model that nothing on this machine runs; another one may."""


def why_it_ended(status: int, stderr: str) -> str:
    """What a process that failed with ``status`` says of its cause."""
    if status == -9:
        return "killed, as when memory runs out"
    return f"status {status}: {(stderr.strip() or 'it said nothing').splitlines()[-1]}"


def run_script(main, resumes: bool = False) -> None:
    """Run a script's ``main`` and leave with status 2 and one line where a person can mend the cause.

    ``resumes`` says whether the same command resumes what Ctrl-C stopped, or starts it again.
    Anything else keeps its traceback: that is a bug, and the traceback is what its report needs.
    """
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # of stdout, as `| head` closes it; Python flushes it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        again = "resumes from the last checkpoint" if resumes else "starts again"
        print(f"error: stopped by the keyboard; the same command {again}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        line = _one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def _one_line(error: Exception) -> str | None:
    """What to tell the person who can mend an error; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    # Safetensors' error has no number, and torch.save says no more than that its writer failed.
    if os.strerror(errno.ENOSPC) in str(error) or "PytorchStreamWriter failed" in str(error):
        return "no space left on the disk: free some and run it again"
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        lower = "lower BATCH_SIZE (in training raise GRADIENT_ACCUMULATION alike; in SAPLING also SCAN_BATCH_SIZE)"
        return (
            f"the GPU's memory is not enough: {lower}, then MAX_PROMPT_TOKENS in preprocess_data.py, under another RUN"
        )
    if getattr(error, "errno", None) in _NO_ACCESS:
        return f"no access to {error.filename}: {error.strerror}; mend its permissions, or choose another RESULTS_DIR"
    return None
