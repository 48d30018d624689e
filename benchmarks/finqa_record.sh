#!/usr/bin/env bash
# The record on real FinQA that the README shows: every run, evaluated on all of dev once, and measured. By estimate ten
# hours on two cores; what is finished is skipped, and a killed run goes on.
#
#   DATA_DIR=path/to/finqa benchmarks/finqa_record.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup_env.sh
export RESULTS_DIR=${RESULTS_DIR:-results-finqa} # apart from reproduce.sh, which names some runs alike

run() {
    printf '\n%s\n' "$*"
    python "$@"
}
evaluate() {
    local name
    for name in "$@"; do run evaluate.py --RUN="$name" --DATA_RUN=finqa_data --SPLIT=dev; done
}

run preprocess_data.py --RUN=finqa_data --EVIDENCE_TOKENS=160

# Phase 1: the ceiling, and 8-bit LoRA beside it
recipe=(--DATA_RUN=finqa_data --LEARNING_RATE=7e-4 --BATCH_SIZE=4 --EPOCHS=3)
run train_qlora_4bit.py --RUN=finqa_qlora "${recipe[@]}"
run train_lora_8bit.py --RUN=finqa_lora_8bit "${recipe[@]}"

# Phase 2
run quantize_gptq.py --SOURCE_RUN=finqa_qlora/merged --RUN=finqa_gptq

# Phase 3, down to the bytes of GPTQ's checkpoint (43 %), and other ways to drop layers with as much training: 6.5 epochs
sapling=(--DATA_RUN=finqa_data --START_FROM=finqa_qlora --TARGET_SIZE=0.43 --CALIBRATION_EXAMPLES=128
    --FIRST_SCAN_EXAMPLES=16 --HEALING_EPOCHS=2.5)
run sapling_train.py --RUN=sapling "${sapling[@]}" --FIRST_EPOCHS=0 --CYCLE_EPOCHS=1 --DROPS_EARLY=5 --DROPS_LATE=4
for criterion in last block_influence random; do
    run sapling_train.py --RUN="$criterion" "${sapling[@]}" --FIRST_EPOCHS=4 \
        --CRITERION="$criterion" --SCHEDULE=one_shot --DROP_UNIT=block
done
run quantize_gptq.py --SOURCE_RUN=sapling/22 --RUN=finqa_sapling_gptq

depths() { (cd "$RESULTS_DIR" && printf '%s\n' "$1"/[0-9]*/ | sed 's,/$,,' | sort -t/ -k2 -rn); }
evaluate base finqa_qlora finqa_qlora/merged finqa_lora_8bit finqa_gptq $(depths sapling) \
    $(depths last) $(depths block_influence) $(depths random) finqa_sapling_gptq
names=$(printf "'%s', " finqa_qlora/merged finqa_qlora finqa_gptq $(depths sapling) finqa_sapling_gptq)
run benchmark_throughput.py --DATA_RUN=finqa_data --RUNS="[$names]"

published=results/published/finqa-smollm2-135m
names=$(printf "'%s', " finqa_data base finqa_qlora finqa_lora_8bit finqa_gptq sapling last block_influence random \
    finqa_sapling_gptq)
run benchmarks/publish.py --TO=$published --RUNS="[$names]"
run plot_pareto.py --RESULTS_DIR=$published
