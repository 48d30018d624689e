#!/usr/bin/env bash
# Creates .venv, installs, and runs the tests; arguments go to pytest (./run_tests.sh -m "not real" takes seconds).
set -euo pipefail
cd "$(dirname "$0")"
source ./setup_env.sh
ruff check .
# Two at once, each file whole in one process (tests/conftest.py): tests of small models use one core.
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
