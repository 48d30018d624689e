#!/usr/bin/env bash
# Upload a run's checkpoint with its model card to the Hugging Face Hub. The token, with write access, comes from .env
# (HF_TOKEN). A new repository is private: read its card, then publish it on its page.
#
#   recipes/push.sh sapling/20 user/name        RESULTS_DIR=... for a run that lies elsewhere than in results/
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -ne 2 ]; then
    echo "error: $0 takes a run and a repository, as in: $0 sapling/20 user/name" >&2
    exit 2
fi
source ./setup_env.sh
python recipes/push.py --RUN="$1" --REPOSITORY="$2"
