#!/usr/bin/env bash
# SAPLING as its paper trains it (Hu et al., ACL 2025, arXiv 2412.11242): a quarter of the sub-layers is trained, an epoch
# between two drops, on the gold programs alone. Run it after train_qlora_4bit.py; further constants are handed on.
#
#   recipes/trimllm_paper.sh --DEPTHS=[15]
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup_env.sh
python sapling_train.py --RUN=paper --TEACHER=None --PATCH_EXAMPLES=0 --DROP_UNIT=sublayer --DROPS_PER_CYCLE=1 \
    --TRAIN_SHARE=0.25 --CYCLE_EPOCHS=1 --RECOVERY_EPOCHS=1 "$@"
