#!/usr/bin/env bash
# The record on real FinQA with SmolLM2-135M: every run, evaluated on all of dev once, and measured. Finished runs are
# skipped, a killed run resumes. By estimate sixteen hours on two cores that multiply bf16, with a train.json of 1,964
# examples; all 6,251 of the release take three times as long and give other numbers. Speeds are ratios of one idle
# machine: nothing else should run during the last step.
#
#   DATA_DIR=path/to/finqa EXTRA_DATA_DIR=path/to/tatqa recipes/finqa_smollm2.sh
#
# EXTRA_DATA_DIR holds TAT-QA's dev and test files; its train file as well gives other numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup_env.sh
export RESULTS_DIR=${RESULTS_DIR:-results-finqa} # apart from reproduce.sh, which names some runs alike
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

if [ -z "${EXTRA_DATA_DIR:-}" ]; then
    echo "error: set EXTRA_DATA_DIR to a folder with TAT-QA's JSON files" >&2
    exit 2
fi

prompts=(--EVIDENCE_TOKENS=160 --MAX_PROMPT_TOKENS=512 --CALIBRATION_EXAMPLES=256 --TRAIN_EXAMPLES=None
    --EVAL_EXAMPLES=None)
run preprocess_data.py --RUN=finqa_data "${prompts[@]}"
if ! grep -q '"source": "FinQA"' "$RESULTS_DIR/finqa_data/data_report.json"; then
    echo "error: DATA_DIR does not hold FinQA's train.json and dev.json" >&2
    exit 2
fi

# Phase 1: the ceiling, and 8-bit LoRA beside it. A pass over more data, then FinQA with new
# figures: docs/recipe.md
run preprocess_data.py --RUN=mixed_data "${prompts[@]}" --EXTRA_DATA_DIR="$EXTRA_DATA_DIR" --PAGE_QUESTIONS=2500
first=(--DATA_RUN=mixed_data --LEARNING_RATE=7e-4 --EPOCHS=1 --MERGE_INTO=None)
second=(--DATA_RUN=finqa_data --LEARNING_RATE=7e-4 --EPOCHS=3 --AUGMENT=figures --MERGE_INTO=better)
run train_qlora_4bit.py --RUN=mixed_qlora "${first[@]}"
run train_qlora_4bit.py --RUN=finqa_qlora --START_FROM=mixed_qlora "${second[@]}"
run train_lora_8bit.py --RUN=mixed_lora_8bit "${first[@]}"
run train_lora_8bit.py --RUN=finqa_lora_8bit --START_FROM=mixed_lora_8bit "${second[@]}"

# Phase 2
gptq=(--CALIBRATION_EXAMPLES=256)
run quantize_gptq.py --SOURCE_RUN=finqa_qlora/merged --RUN=finqa_gptq "${gptq[@]}"

# Phase 3 with its teacher, healed at five depths, the last one of the bytes of GPTQ's checkpoint (43 %)
start=(--DATA_RUN=finqa_data --START_FROM=finqa_qlora --CALIBRATION_EXAMPLES=128)
schedule=(--CYCLE_EPOCHS=0.25 --DROPS_EARLY=5 --DROPS_LATE=4)
run sapling_train.py --RUN=sapling "${start[@]}" "${schedule[@]}" --TARGET_SIZE=0.43 "--HEAL_AT=[50,40,30,22]" \
    "--HEALING_EPOCHS=[1,1,3,3,3]"
half=("${schedule[@]}" "--HEAL_AT=[30,22]" "--HEALING_EPOCHS=[3,3,0]")
for seed in 1 2; do
    run sapling_train.py --RUN=sapling_seed_$seed "${start[@]}" "${half[@]}" --SEED=$seed
done
run sapling_train.py --RUN=sapling_qlora "${start[@]}" "${half[@]}" --UPDATE=qlora
# As the paper trains: no teacher, a quarter of the layers
run sapling_train.py --RUN=sapling_paper "${start[@]}" --RECOVERY=paper --FIRST_SCAN_EXAMPLES=16 --TARGET_SIZE=0.43 \
    --CYCLE_EPOCHS=1 --DROPS_EARLY=5 --DROPS_LATE=4 --HEALING_EPOCHS=2.5 --SAVE_EVERY=1
# Other ways to drop layers, one shot, with the same teacher and as many examples as SAPLING's depth has seen
pruned=()
for criterion in last block_influence taylor random; do
    run sapling_train.py --RUN=one_shot_$criterion "${start[@]}" --CRITERION=$criterion --SCHEDULE=one_shot \
        --DROP_UNIT=block "--HEAL_AT=[30,22]" --HEALING_EPOCHS=4
    pruned+=(one_shot_$criterion)
done
# Phase 1 trained on for as many examples, no layer dropped: with itself as teacher, and without
longer=("${start[@]}" --TARGET_SIZE=1 "--HEAL_AT=[]" --HEALING_EPOCHS=4)
run sapling_train.py --RUN=longer_taught "${longer[@]}"
run sapling_train.py --RUN=longer "${longer[@]}" --KL=0 --HIDDEN_STATES=0 --CROSS_ENTROPY=1

quantized=()
for name in sapling longer longer_taught; do
    run quantize_gptq.py --SOURCE_RUN=$name --RUN=${name}_gptq "${gptq[@]}"
    quantized+=(${name}_gptq)
done

others=(sapling_seed_1 sapling_seed_2 sapling_qlora sapling_paper longer longer_taught "${pruned[@]}")
phases=(finqa_qlora finqa_qlora/merged finqa_lora_8bit finqa_gptq)
evaluate base "${phases[@]}" sapling "${quantized[@]}" "${others[@]}"

published=results/published/finqa-smollm2-135m
mkdir -p $published
# The benchmark twice, to see whether it agrees with itself; the records are those of the second call. The other runs have
# the shapes of these, and with them not all models would fit into 24 GB at once, as turns at every measure need.
depths=($(cd "$RESULTS_DIR" && printf '%s\n' sapling/[0-9]*/ sapling_gptq/[0-9]*/ | sed 's,/$,,'))
run benchmarks/throughput_repeats.py --DATA_RUN=finqa_data --RUNS="$(list "${phases[@]}" "${depths[@]}")" \
    --ROUNDS=20 --NEW_TOKENS=32 "--BATCH_SIZES=[]" |
    tee "$RESULTS_DIR/throughput_repeats.txt"
cp "$RESULTS_DIR/throughput_repeats.txt" $published
run benchmarks/publish.py --TO=$published \
    --RUNS="$(list finqa_data mixed_data base mixed_qlora mixed_lora_8bit finqa_qlora finqa_lora_8bit finqa_gptq sapling "${quantized[@]}" "${others[@]}")"
run plot_pareto.py --RESULTS_DIR=$published --README=README.md
