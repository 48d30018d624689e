#!/usr/bin/env bash
# The main job on the embedded default (SmolLM2-135M, synthetic FinQA): preprocess, fine-tune with QLoRA and with 8-bit
# LoRA, quantize with GPTQ, shrink with SAPLING, shrink and quantize; evaluate every model on the way, measure its speed
# and memory, and end with the table, the charts and advice.
#
#   ./reproduce.sh           the recipe: the constants at the top of the scripts
#   ./reproduce.sh --quick   the same pipeline on a sliver of the data: a smoke test, its numbers mean nothing
#
# Finished phases are skipped; a killed run resumes. BASE_MODEL, DATA_DIR and RESULTS_DIR are read from the environment
# and from .env. Other recipes are in recipes/.
set -euo pipefail
cd "$(dirname "$0")"

case "$# ${1:-}" in
    "0 ") quick=no ;;
    "1 --quick") quick=yes ;;
    *)
        echo "error: $0 takes --quick or nothing" >&2
        exit 2
        ;;
esac
source ./setup_env.sh
SECONDS=0 # times are those of the phases, after the install
RESULTS_DIR=$(setting RESULTS_DIR results)
RESULTS_DIR=${RESULTS_DIR%/}

data=() training=() gptq=() sapling=() benchmark=() # overrides of the scripts' constants, which each script prints
if [ "$quick" = yes ]; then
    RESULTS_DIR=$RESULTS_DIR-quick
    data=(--TRAIN_EXAMPLES=32 --CALIBRATION_EXAMPLES=16 --EVAL_EXAMPLES=8)
    training=(--LOGGING_STEPS=2 --SAVE_STEPS=4)
    gptq=(--CALIBRATION_EXAMPLES=4)
    sapling=(--CALIBRATION_EXAMPLES=4 --PATCH_EXAMPLES=4 --DEPTHS=[0.5] --LOGGING_STEPS=2 --SAVE_STEPS=4)
    benchmark=(--ROUNDS=1 --NEW_TOKENS=4)
fi
export RESULTS_DIR
mkdir -p "$RESULTS_DIR"
exec 9>"$RESULTS_DIR/.reproduce.lock" # held by whatever this starts, until the last of it ends
if command -v flock >/dev/null && ! flock --nonblock 9; then
    echo "error: another reproduce.sh works in $RESULTS_DIR/: wait for it, or choose another RESULTS_DIR" >&2
    exit 2
fi

phases=(preprocess
    "untuned model: evaluate" "QLoRA: train" "QLoRA: evaluate" "8-bit LoRA: train" "8-bit LoRA: evaluate"
    "GPTQ: quantize" "GPTQ: evaluate" "SAPLING: remove layers and train" "SAPLING: evaluate"
    "SAPLING + GPTQ: quantize" "SAPLING + GPTQ: evaluate" "speed and memory" "table, chart, advice")
shares=(2 2 17 3 5 4 7 3 31 4 7 4 10 1) # of the whole time, to tell how much is left
phase=0 spent=0 share=0
run() { # run command...: the next phase, one line before and one after with its minutes and what is left
    local began=$SECONDS name=${phases[phase]} seconds left=
    printf '\n[%d of %d] %s\n' $((phase + 1)) ${#phases[@]} "$name"
    "$@"
    seconds=$((SECONDS - began))
    if [ $seconds -ge 15 ]; then # one that was finished before says nothing about the speed
        spent=$((spent + seconds)) share=$((share + shares[phase]))
    fi
    phase=$((phase + 1))
    if [ $share -gt 0 ] && [ $phase -lt ${#phases[@]} ]; then
        left=", about $((spent * ($(IFS=+; echo "${shares[*]:phase}")) / share / 60 + 1)) min left"
    fi
    printf '[%d of %d] %s took %dm%02ds, all so far %dm%02ds%s\n' $phase ${#phases[@]} "$name" \
        $((seconds / 60)) $((seconds % 60)) $((SECONDS / 60)) $((SECONDS % 60)) "$left"
}
evaluate() { # evaluate run...
    local name
    for name in "$@"; do python evaluate.py --RUN="$name"; done
}
measured() { # measured run...: whether the speed of each was measured since it was made
    local name found
    for name in "$@"; do
        found=$(find "$RESULTS_DIR/$name" -maxdepth 1 -name 'throughput_*.json' -newer "$RESULTS_DIR/$name/settings.json" \
            2>/dev/null)
        [ -n "$found" ] || return 1
    done
}
measure() { # four models beside the untuned one
    local names largest
    largest=$(find "$RESULTS_DIR/sapling" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -rn | head -n 1)
    names=(qlora_4bit/merged gptq_4bit "sapling/$largest" "sapling_gptq/$largest")
    if measured "${names[@]}"; then
        echo "measured already, skipped (remove throughput_*.json of a run to measure all of them again)"
        return
    fi
    python benchmark_throughput.py --RUNS="[$(printf "'%s', " "${names[@]}")]" "${benchmark[@]}"
}
run python preprocess_data.py "${data[@]}"
run python evaluate.py --RUN=base --MAX_NEW_TOKENS=32 # which no program needs more of; it never ends by itself
run python train_qlora_4bit.py "${training[@]}"
run evaluate qlora_4bit/merged
run python train_lora_8bit.py "${training[@]}"
run evaluate lora_8bit
run python quantize_gptq.py "${gptq[@]}"
run evaluate gptq_4bit
run python sapling_train.py "${sapling[@]}"
run evaluate sapling
run python quantize_gptq.py --SOURCE_RUN=sapling --RUN=sapling_gptq "${gptq[@]}"
run evaluate sapling_gptq
run measure
run python plot_pareto.py

printf '\nfinished in %dm%02ds; table: %s/results.md, chart: %s/pareto.png\n' $((SECONDS / 60)) $((SECONDS % 60)) \
    "$RESULTS_DIR" "$RESULTS_DIR"
if [ "$quick" = yes ]; then
    echo "QUICK RUN: a sliver of the data and of the training. Its numbers mean nothing."
else
    echo "next: ask a model a question (README, \"Use a checkpoint\"), or use your own data (README, \"Use your own data\")"
fi
