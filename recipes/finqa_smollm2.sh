#!/usr/bin/env bash
# All of SmolLM2-135M on real FinQA: every run, evaluated on all of dev once, and measured. Finished runs are
# skipped, a killed run resumes. By estimate 37 hours on two cores that multiply bf16, with a train.json of 1,964
# examples; all 6,251 of the release take three times as long and give other numbers. Speeds are ratios of one idle
# machine: nothing else should run during the last step.
#
#   DATA_DIR=path/to/finqa EXTRA_DATA_DIR=path/to/tatqa recipes/finqa_smollm2.sh
#
# EXTRA_DATA_DIR holds TAT-QA's tatqa_dataset_dev.json and tatqa_dataset_test_gold.json; its train file as well gives other
# numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup_env.sh
RESULTS_DIR=$(setting RESULTS_DIR results-finqa) # apart from reproduce.sh, which names some runs alike
export RESULTS_DIR
export BASE_MODEL=smollm2-135m

run() {
    printf '\n%s\n' "$*"
    python "$@"
}
evaluate() {
    local name
    for name in "$@"; do run evaluate.py --RUN="$name" --DATA_RUN=finqa_data; done
}
list() { printf '['; printf "'%s', " "$@"; printf ']'; }

if [ "$(setting DATA_DIR synthetic)" = synthetic ]; then
    echo "error: set DATA_DIR to a folder with FinQA's train.json and dev.json" >&2
    exit 2
fi
if [ -z "${EXTRA_DATA_DIR:-}" ]; then
    echo "error: set EXTRA_DATA_DIR to a folder with TAT-QA's JSON files" >&2
    exit 2
fi

prompts=(--EVIDENCE_TOKENS=160 --MAX_PROMPT_TOKENS=512 --CALIBRATION_EXAMPLES=256 --TRAIN_EXAMPLES=None
    --EVAL_EXAMPLES=None)
run preprocess_data.py --RUN=finqa_data "${prompts[@]}"
if [ ! -d "$RESULTS_DIR/finqa_data/dev" ]; then
    echo "error: DATA_DIR has no dev.json, which every run answers: add it, and remove $RESULTS_DIR/finqa_data/" >&2
    exit 2
fi

run preprocess_data.py --RUN=mixed_data "${prompts[@]}" --EXTRA_DATA_DIR="$EXTRA_DATA_DIR" --PAGE_QUESTIONS=2500
evaluate base

first=(--DATA_RUN=mixed_data --LEARNING_RATE=7e-4 --EPOCHS=1 --MERGE=False)
second=(--DATA_RUN=finqa_data --LEARNING_RATE=3e-4 --EPOCHS=3 --AUGMENT=figures)
learn=(--DATA_RUN=finqa_data --AUGMENT=figures --CALIBRATION_EXAMPLES=128 --DROPS_PER_CYCLE=2)
quantize() { # quantize run source: in 4 bits, and answer dev
    run quantize_gptq.py --RUN="$1" --SOURCE_RUN="$2" --CALIBRATION_EXAMPLES=256 --SEARCH_RANGES=True
    evaluate "$1"
}
recover() { # recover run start layers passes [constants]: drop to so many layers, learn, and answer dev
    run sapling_train.py --RUN="$1" --START_FROM="$2" "--DEPTHS=[$3]" --RECOVERY_EPOCHS="$4" --TEACHER="${s}_qlora" \
        --SEED="$seed" "${learn[@]}" "${@:5}"
    evaluate "$1"
}
recover_and_quantize() {
    recover "$@"
    quantize "${1}_gptq" "$1/${1##*_}"
}
for seed in 0 1 2; do
    s=seed_$seed
    # Phase 1: a pass over more data, then FinQA with redrawn numbers (docs/data.md), and phase 2
    run train_qlora_4bit.py --RUN=${s}_mixed --SEED=$seed "${first[@]}"
    run train_qlora_4bit.py --RUN=${s}_qlora --START_FROM=${s}_mixed --SEED=$seed "${second[@]}"
    evaluate ${s}_qlora/merged
    quantize ${s}_gptq ${s}_qlora/merged
    # Phase 3. Blocks are dropped and patched, two at a time, without training in between; what is left then learns from
    # FinQA with redrawn numbers. Fewer blocks are made of the 20 recovered, which costs less than as many passes for each:
    # docs/method.md
    recover_and_quantize ${s}_layers_20 ${s}_qlora 20 4
    recover ${s}_layers_15 ${s}_layers_20/20 15 3
    # Phase 1 trained on, whole, itself as teacher, for as many examples as 20 blocks learn from
    recover_and_quantize ${s}_layers_30 ${s}_qlora 30 4
done

seed=0 s=seed_0 # all else once
quantize ${s}_layers_15_gptq ${s}_layers_15/15
# Both sides at their best: 20 blocks made of the longer phase 1, which is their teacher
recover_and_quantize ${s}_both_20 ${s}_layers_30/30 20 4 --TEACHER=${s}_layers_30/30
recover_and_quantize ${s}_layers_25 ${s}_qlora 25 4
recover_and_quantize ${s}_layers_11 ${s}_layers_20/20 11 3
recover_and_quantize ${s}_layers_8 ${s}_layers_20/20 8 3 # the bytes of GPTQ's checkpoint (43 %)
recover ${s}_no_teacher_30 ${s}_qlora 30 4 --TEACHER=None
# Other ways to drop half of the layers, at once, with the same teacher and as many examples as 20 and then 15 learn from
for criterion in block_influence taylor; do
    recover ${s}_${criterion}_15 ${s}_qlora 15 7 --CRITERION=$criterion --DROPS_PER_CYCLE=None
done
quantize ${s}_taylor_15_gptq ${s}_taylor_15/15
recover ${s}_taylor_15_again ${s}_qlora 15 7 --CRITERION=taylor --DROPS_PER_CYCLE=None --SEED=1 # phase 1 as above, another recovery
recover_and_quantize ${s}_taylor_20 ${s}_qlora 20 4 --CRITERION=taylor --DROPS_PER_CYCLE=None
recover ${s}_taylor_11 ${s}_taylor_20/20 11 3 --CRITERION=taylor --DROPS_PER_CYCLE=None
# Adapters on an NF4 base, which teacher and model share, as for a 7B model; as many passes as the 20 above
recover ${s}_adapters_20 ${s}_qlora 20 4 --UPDATE=qlora --LEARNING_RATE=6e-4
# As the paper trains: no teacher, a quarter of the layers; phase 1 stands for its first epoch. The figures are redrawn,
# as for all others
run sapling_train.py --RUN=${s}_paper --START_FROM=${s}_qlora --DATA_RUN=finqa_data --CALIBRATION_EXAMPLES=128 \
    --TEACHER=None --DROP_UNIT=sublayer --DEPTHS=[15] --CYCLE_EPOCHS=1 --DROPS_PER_CYCLE=4 \
    --PATCH_EXAMPLES=0 --TRAIN_SHARE=0.25 --RECOVERY_EPOCHS=2.5 --AUGMENT=figures
evaluate ${s}_paper
run train_lora_8bit.py --RUN=${s}_mixed_8bit "${first[@]}"
run train_lora_8bit.py --RUN=${s}_lora_8bit --START_FROM=${s}_mixed_8bit "${second[@]}"
evaluate ${s}_qlora ${s}_lora_8bit

# Most other runs have the shapes of these, so their speeds; with them not all models would fit into 24 GB at once, as turns
# at every measure need.
measured=(${s}_qlora ${s}_qlora/merged ${s}_lora_8bit ${s}_gptq)
for left in 25 20 15 11 8; do measured+=(${s}_layers_$left/$left ${s}_layers_${left}_gptq); done
run benchmark_throughput.py --RUNS="$(list "${measured[@]}")" --ROUNDS=20 --NEW_TOKENS=32 \
    "--BATCH_SIZES=[]"
run plot_pareto.py
