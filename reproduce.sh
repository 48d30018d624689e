#!/usr/bin/env bash
# The main job on the embedded default (SmolLM2-135M, synthetic FinQA): preprocess, fine-tune with QLoRA, shrink with
# SAPLING, and evaluate every model on the way.
#
#   ./reproduce.sh           the recipe
#   ./reproduce.sh --quick   the same pipeline on a sliver of the data: a smoke test, its numbers mean nothing
#
# Finished phases are skipped; a killed run goes on. BASE_MODEL, DATA_DIR and RESULTS_DIR from the environment or .env are
# honoured: DATA_DIR=path/to/finqa ./reproduce.sh runs this same short recipe on real FinQA (README has the long one).
set -euo pipefail
cd "$(dirname "$0")"

setting() { # setting NAME default: from the environment, else .env, else the default
    local from_file
    from_file=$(sed -n "s/^ *$1 *= *['\"]\{0,1\}\([^'\"]*\)['\"]\{0,1\} *$/\1/p" .env 2>/dev/null | tail -n 1)
    printf '%s' "${!1:-${from_file:-$2}}"
}
DATA_DIR=$(setting DATA_DIR synthetic)
RESULTS_DIR=$(setting RESULTS_DIR results)
# The synthetic set has a test split to report on; on real FinQA development is reported on dev.
split=dev
if [ "$DATA_DIR" = synthetic ]; then split=test; fi

data=(--EVIDENCE_TOKENS=64 --MAX_PROMPT_TOKENS=256 --TRAIN_EXAMPLES=1300)
training=(--LEARNING_RATE=1.5e-3 --BATCH_SIZE=4 --EPOCHS=1)
sapling=(--START_FROM=qlora_4bit --FIRST_EPOCHS=0 --CYCLE_EPOCHS=0.15 --HEALING_EPOCHS=0.5 --DROPS_EARLY=5 --DROPS_LATE=3
    --CALIBRATION_EXAMPLES=128 --FIRST_SCAN_EXAMPLES=32 --SAVE_EVERY=3)
case "${1:-}" in
    "") ;;
    --quick)
        RESULTS_DIR=$RESULTS_DIR-quick
        data+=(--TRAIN_EXAMPLES=64 --CALIBRATION_EXAMPLES=16 --EVAL_EXAMPLES=16)
        training+=(--LOGGING_STEPS=2 --SAVE_STEPS=4)
        sapling+=(--CALIBRATION_EXAMPLES=16 --FIRST_SCAN_EXAMPLES=8 --SCAN_BATCH_SIZE=8 --DROPS_EARLY=10 --DROPS_LATE=10
            --LOGGING_STEPS=2)
        ;;
    *)
        echo "error: $0 takes --quick or nothing, not $1" >&2
        exit 2
        ;;
esac
export DATA_DIR RESULTS_DIR

source ./setup_env.sh
phase=0
run() { # run "what it is" command...: one line before, one after with its minutes
    phase=$((phase + 1))
    local began=$SECONDS
    printf '\n[%d of 6] %s\n' "$phase" "$1"
    shift
    "$@"
    printf '[%d of 6] took %dm%02ds\n' "$phase" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))
}
run "preprocess" python preprocess_data.py "${data[@]}"
run "accuracy of the base model" python evaluate.py --RUN=base --SPLIT="$split"
run "QLoRA 4-bit fine-tuning" python train_qlora_4bit.py "${training[@]}"
run "accuracy of QLoRA" python evaluate.py --RUN=qlora_4bit --SPLIT="$split"
run "SAPLING: layers dropped while fine-tuning" python sapling_train.py "${sapling[@]}"
every_depth() {
    local depth
    for depth in $(cd "$RESULTS_DIR/sapling" && printf '%s\n' [0-9]*/ | tr -d / | sort -rn); do
        python evaluate.py --RUN="sapling/$depth" --SPLIT="$split"
    done
}
run "accuracy of SAPLING's checkpoints" every_depth

printf '\nfinished in %dm%02ds; results are in %s/\n' $((SECONDS / 60)) $((SECONDS % 60)) "$RESULTS_DIR"
if [ "${1:-}" = --quick ]; then
    echo "QUICK RUN: a sliver of the data and of the training. Its numbers mean nothing."
fi
