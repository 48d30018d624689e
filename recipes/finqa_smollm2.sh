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

first=(--DATA_RUN=mixed_data --LEARNING_RATE=7e-4 --EPOCHS=1 --MERGE_INTO=None)
second=(--DATA_RUN=finqa_data --LEARNING_RATE=3e-4 --EPOCHS=3 --AUGMENT=figures)
learn=(--DATA_RUN=finqa_data --AUGMENT=figures "--HEAL_AT=[]" --CALIBRATION_EXAMPLES=128 --DROPS_EARLY=2 --DROPS_LATE=2)
quantize() { # quantize run source: in 4 bits, and answer dev
    run quantize_gptq.py --RUN="$1" --SOURCE_RUN="$2" --CALIBRATION_EXAMPLES=256
    evaluate "$1"
}
heal() { # heal run start share passes [constants]: drop to this share of the start's bytes, learn, and answer dev
    run sapling_train.py --RUN="$1" --START_FROM="$2" --TARGET_SIZE="$3" --HEALING_EPOCHS="$4" --TEACHER="${s}_qlora" \
        --SEED="$seed" "${learn[@]}" "${@:5}"
    evaluate "$1"
}
heal_and_quantize() {
    heal "$@"
    quantize "${1}_gptq" "$1/${1##*_}"
}
for seed in 0 1 2; do
    s=seed_$seed
    # Phase 1: a pass over more data, then FinQA with redrawn numbers (docs/recipe.md), and phase 2
    run train_qlora_4bit.py --RUN=${s}_mixed --SEED=$seed "${first[@]}"
    run train_qlora_4bit.py --RUN=${s}_qlora --START_FROM=${s}_mixed --SEED=$seed "${second[@]}"
    evaluate ${s}_qlora/merged
    quantize ${s}_gptq ${s}_qlora/merged
    # Phase 3. Blocks are dropped and patched, two at a time, without training in between; what is left then learns from
    # FinQA with redrawn numbers. Fewer blocks are made of the 20 healed, which costs less than as many passes for each:
    # docs/recovery.md
    heal_and_quantize ${s}_blocks_20 ${s}_qlora 0.74 4
    heal ${s}_blocks_15 ${s}_blocks_20/20 0.83 3
    # Phase 1 trained on, whole, itself as teacher, for as many examples as 20 blocks learn from
    heal_and_quantize ${s}_longer_30 ${s}_qlora 1 4
done

seed=0 s=seed_0 # all else once
quantize ${s}_blocks_15_gptq ${s}_blocks_15/15
# Both sides at their best: 20 blocks made of the longer phase 1, which is their teacher
heal_and_quantize ${s}_longer_20 ${s}_longer_30/30 0.74 4 --TEACHER=${s}_longer_30/30
heal_and_quantize ${s}_blocks_25 ${s}_qlora 0.87 4
heal_and_quantize ${s}_blocks_11 ${s}_blocks_20/20 0.69 3
heal_and_quantize ${s}_blocks_8 ${s}_blocks_20/20 0.58 3 # the bytes of GPTQ's checkpoint (43 %)
heal ${s}_untaught_30 ${s}_qlora 1 4 --TEACHER=None --KL=0 --HIDDEN_STATES=0 --CROSS_ENTROPY=1
# Other ways to drop half of the layers, at once, with the same teacher and as many examples as 20 and then 15 learn from
for criterion in block_influence taylor; do
    heal ${s}_${criterion}_15 ${s}_qlora 0.61 7 --CRITERION=$criterion --SCHEDULE=one_shot
done
quantize ${s}_taylor_15_gptq ${s}_taylor_15/15
heal ${s}_taylor_15_again ${s}_qlora 0.61 7 --CRITERION=taylor --SCHEDULE=one_shot --SEED=1 # phase 1 as above, another healing
heal_and_quantize ${s}_taylor_20 ${s}_qlora 0.74 4 --CRITERION=taylor --SCHEDULE=one_shot
heal ${s}_taylor_11 ${s}_taylor_20/20 0.69 3 --CRITERION=taylor --SCHEDULE=one_shot
# Adapters on an NF4 base, which teacher and model share, as for a 7B model; as many passes as the 20 above
heal ${s}_adapters_20 ${s}_qlora 0.74 4 --UPDATE=qlora --LEARNING_RATE=6e-4
# As the paper trains: no teacher, a quarter of the layers; phase 1 stands for its first epoch. The figures are redrawn,
# as for all others
run sapling_train.py --RUN=${s}_paper --START_FROM=${s}_qlora --DATA_RUN=finqa_data --CALIBRATION_EXAMPLES=128 \
    --RECOVERY=paper --DROP_UNIT=sublayer --FIRST_SCAN_EXAMPLES=16 --TARGET_SIZE=0.43 --CYCLE_EPOCHS=1 --DROPS_LATE=4 \
    --HEALING_EPOCHS=2.5 --AUGMENT=figures --SAVE_EVERY=1
evaluate ${s}_paper
run train_lora_8bit.py --RUN=${s}_mixed_8bit "${first[@]}"
run train_lora_8bit.py --RUN=${s}_lora_8bit --START_FROM=${s}_mixed_8bit "${second[@]}"
evaluate ${s}_qlora ${s}_lora_8bit

# The benchmark twice, to see whether it agrees with itself; the records are those of the second call. Most other runs have
# the shapes of these, so their speeds; with them not all models would fit into 24 GB at once, as turns at every measure need.
measured=(${s}_qlora ${s}_qlora/merged ${s}_lora_8bit ${s}_gptq)
for left in 25 20 15 11 8; do measured+=(${s}_blocks_$left/$left ${s}_blocks_${left}_gptq); done
run benchmarks/throughput_repeats.py --RUNS="$(list "${measured[@]}")" --ROUNDS=20 --NEW_TOKENS=32 \
    "--BATCH_SIZES=[]" | tee "$RESULTS_DIR/throughput_repeats.txt"
run plot_pareto.py
