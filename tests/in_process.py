"""A script's ``main`` in the process of the tests: what ``run_script`` shows, without ten seconds of imports."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from unittest import mock

from conftest import REPOSITORY

from fincompress import settings


def run_here(script, *overrides, **environment):
    """Run a script with these overrides; returns status and output as a completed process does."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    variables = {"HF_HUB_OFFLINE": "1"} | {name: str(value) for name, value in environment.items()}
    with (
        mock.patch.object(sys, "argv", [script, *map(str, overrides)]),
        mock.patch.dict(os.environ, variables),
        mock.patch.dict(settings.DEFAULTS, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as left:
            status = left.code
    return subprocess.CompletedProcess([script, *overrides], status, out.getvalue(), err.getvalue())
