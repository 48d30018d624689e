#!/usr/bin/env bash
# All of SmolLM2-135M on real FinQA: every run, evaluated on all of dev once, and measured. Finished runs are
# skipped, a killed run resumes. By estimate thirty hours on two cores that multiply bf16, with a train.json of 1,964
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

# Phase 1: the ceiling, and 8-bit LoRA beside it. A pass over more data, then FinQA with redrawn
# numbers: docs/recipe.md
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

# Phase 3 with its teacher. Layers are dropped and patched without training in between; each depth then learns in phase 1's
# order, from the mixed data, then from FinQA with redrawn numbers: docs/recovery.md. The last depth has the bytes of GPTQ's
# checkpoint (43 %).
scan=(--CALIBRATION_EXAMPLES=128 --CYCLE_EPOCHS=0)
mixed=("${scan[@]}" --START_FROM=finqa_qlora --DATA_RUN=mixed_data --DROPS_EARLY=5 --DROPS_LATE=4 --HEALING_EPOCHS=1)
whole=(--TARGET_SIZE=1 "--HEAL_AT=[]")
figures=(--DATA_RUN=finqa_data --AUGMENT=figures)
further() { # further run depth [constants]: a depth of mixed_<run>, healed on FinQA
    run sapling_train.py --RUN="$1_$2" --START_FROM="mixed_$1/$2" --TEACHER=finqa_qlora "${whole[@]}" "${scan[@]}" \
        "${figures[@]}" --HEALING_EPOCHS=2 "${@:3}"
    healed+=("$1_$2")
}
healed=()
depths=(50 40 30 22 16)
run sapling_train.py --RUN=mixed_sapling "${mixed[@]}" --TARGET_SIZE=0.43 "--HEAL_AT=[50,40,30,22]"
for depth in "${depths[@]}"; do further sapling $depth; done
# Phase 1 trained on for as many examples, no layer dropped: with itself as teacher, and without
untaught=(--KL=0 --HIDDEN_STATES=0 --CROSS_ENTROPY=1)
run sapling_train.py --RUN=mixed_longer_taught "${mixed[@]}" "${whole[@]}"
further longer_taught 60
run sapling_train.py --RUN=mixed_longer "${mixed[@]}" "${whole[@]}" "${untaught[@]}"
further longer 60 "${untaught[@]}"

quantized=()
for name in "${healed[@]}"; do
    run quantize_gptq.py --SOURCE_RUN=$name/${name##*_} --RUN=${name}_gptq "${gptq[@]}"
    quantized+=(${name}_gptq)
done

for seed in 1 2; do
    run sapling_train.py --RUN=mixed_seed_$seed "${mixed[@]}" "--HEAL_AT=[30]" --SEED=$seed
    for depth in 30 22; do further seed_$seed $depth --SEED=$seed; done
done
# Other ways to drop layers, one shot, with the same teacher, healing and data
for criterion in last block_influence taylor random; do
    run sapling_train.py --RUN=mixed_$criterion "${mixed[@]}" --CRITERION=$criterion --SCHEDULE=one_shot \
        --DROP_UNIT=block "--HEAL_AT=[30]"
    for depth in 15 11; do further $criterion $depth --DROP_UNIT=block; done # blocks
done
# Adapters on an NF4 base, as for a 7B model: the base is shared with the teacher, so in one stage
run sapling_train.py --RUN=sapling_qlora --START_FROM=finqa_qlora "${figures[@]}" "${scan[@]}" --UPDATE=qlora \
    "--HEAL_AT=[30]" --HEALING_EPOCHS=4
# As the paper trains: no teacher, a quarter of the layers
run sapling_train.py --RUN=sapling_paper --START_FROM=finqa_qlora --DATA_RUN=finqa_data --CALIBRATION_EXAMPLES=128 \
    --RECOVERY=paper --FIRST_SCAN_EXAMPLES=16 --TARGET_SIZE=0.43 --CYCLE_EPOCHS=1 --DROPS_EARLY=5 --DROPS_LATE=4 \
    --HEALING_EPOCHS=2.5 --SAVE_EVERY=1

phases=(finqa_qlora finqa_qlora/merged finqa_lora_8bit finqa_gptq)
evaluate base "${phases[@]}" "${healed[@]}" "${quantized[@]}" sapling_qlora sapling_paper

published=results/published/finqa-smollm2-135m
mkdir -p $published
# The benchmark twice, to see whether it agrees with itself; the records are those of the second call. The other runs have
# the shapes of these, and with them not all models would fit into 24 GB at once, as turns at every measure need.
measured=("${phases[@]}")
for depth in "${depths[@]}"; do measured+=(sapling_$depth/$depth sapling_${depth}_gptq); done
run benchmarks/throughput_repeats.py --RUNS="$(list "${measured[@]}")" --ROUNDS=20 --NEW_TOKENS=32 \
    "--BATCH_SIZES=[]" | tee "$RESULTS_DIR/throughput_repeats.txt"
cp "$RESULTS_DIR/throughput_repeats.txt" $published
# What only led to others has a record too, of its cost
led=(finqa_data mixed_data mixed_qlora mixed_lora_8bit mixed_sapling mixed_longer mixed_longer_taught mixed_seed_1
    mixed_seed_2 mixed_last mixed_block_influence mixed_taylor mixed_random)
run benchmarks/publish.py --TO=$published \
    --RUNS="$(list base finqa_qlora finqa_lora_8bit finqa_gptq "${led[@]}" "${healed[@]}" "${quantized[@]}" sapling_qlora sapling_paper)"
run plot_pareto.py --RESULTS_DIR=$published --README=README.md
