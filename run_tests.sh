#!/usr/bin/env bash
# Creates .venv, installs, and runs the tests; arguments go to pytest (./run_tests.sh -m "not real" takes seconds).
set -euo pipefail
cd "$(dirname "$0")"
source ./setup_env.sh
ruff check .
exec python -m pytest "$@"
