"""Errors a person can cause: one clear line on stderr, exit status 2."""

from __future__ import annotations

import errno
import os
import sys


class UserError(Exception):
    """What is wrong, where, and what to do, in one line."""


def run_script(main) -> None:
    """Run a script's ``main`` and leave with status 2 and one line where a person can mend the cause.

    Anything else keeps its traceback: that is a bug, and the traceback is what its report needs.
    """
    try:
        main()
    except UserError as error:
        _leave(str(error))
    except BrokenPipeError:  # whoever read the output, as `head` does, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        _leave("stopped by the keyboard; the same command goes on from the last checkpoint", status=130)
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


def _leave(line: str, status: int = 2) -> None:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(status)
