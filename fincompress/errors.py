"""Errors a person can cause: one clear line on stderr, exit status 2."""

from __future__ import annotations

import errno
import os
import select
import sys


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
    except UserError as error:
        _leave(str(error))
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        again = "resumes from the last checkpoint" if resumes else "starts again"
        _leave(f"stopped by the keyboard; the same command {again}", status=130)
    except Exception as error:
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        if number == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):  # safetensors' own error has no number
            _leave(f"no space left on the disk while writing {name or 'a result'}: free some and run it again")
        if "PytorchStreamWriter failed" in str(error):  # torch.save says no more than that
            _leave("a checkpoint could not be written: is the disk full? Free some of it and run it again")
        if type(error).__name__ == "OutOfMemoryError":  # torch's; training names the constants that it depends on
            _leave(
                "the GPU's memory is not enough: lower BATCH_SIZE, close what else runs on it, or use a smaller model"
            )
        if number in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            _leave(f"no access to {name}: {error.strerror}; mend its permissions, or choose another RESULTS_DIR")
        raise


def _nobody_reads() -> bool:
    """Whether the reader of stdout, such as `head`, has closed it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # of errors alone
    return bool(poll.poll(0))


def _leave(line: str, status: int = 2) -> None:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(status)
