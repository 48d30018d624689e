#!/usr/bin/env bash
# Llama-2-7B on FinQA with a 10 GB GPU: written for such a card and not run on one. Needs the licence accepted on the Hub
# and a token in .env, 32 GB of main memory and about 130 GB of disk (mixed_*/merged can go after phase 1). Finished runs
# are skipped, a killed run resumes.
#
#   DATA_DIR=path/to/finqa recipes/llama2_7b_10gb.sh        without DATA_DIR FinQA is downloaded into data/
#
# EXTRA_DATA_DIR=path/to/tatqa adds TAT-QA to the first pass.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup_env.sh
export BASE_MODEL=${BASE_MODEL:-meta-llama/Llama-2-7b-hf} RESULTS_DIR=${RESULTS_DIR:-results-llama}
if [ -z "${DATA_DIR:-}" ] && ! grep -Eqs '^(export )?DATA_DIR=.' .env; then export DATA_DIR=data; fi

run() {
    printf '\n%s\n' "$*"
    python "$@"
}
lora=(--LEARNING_RATE=2e-4 --LORA_RANK=16 --LORA_ALPHA=32 --BATCH_SIZE=1 --GRADIENT_ACCUMULATION=16)

prompts=(--EVIDENCE_TOKENS=400 --MAX_PROMPT_TOKENS=640 --CALIBRATION_EXAMPLES=256 --TRAIN_EXAMPLES=None
    --EVAL_EXAMPLES=None)

run preprocess_data.py "${prompts[@]}"
run preprocess_data.py --RUN=mixed_data "${prompts[@]}" --PAGE_QUESTIONS=2500 --EXTRA_DATA_DIR="${EXTRA_DATA_DIR:-None}"
# A pass over more data, then FinQA with new figures: docs/recipe.md
run train_qlora_4bit.py --RUN=mixed_qlora --DATA_RUN=mixed_data "${lora[@]}" --EPOCHS=1
run train_qlora_4bit.py --START_FROM=mixed_qlora "${lora[@]}" --EPOCHS=3 --AUGMENT=figures
run train_lora_8bit.py --RUN=mixed_lora_8bit --DATA_RUN=mixed_data "${lora[@]}" --EPOCHS=1
run train_lora_8bit.py --START_FROM=mixed_lora_8bit "${lora[@]}" --EPOCHS=3 --AUGMENT=figures
run quantize_gptq.py --CALIBRATION_EXAMPLES=256 --BATCH_SIZE=1
# Down to the bytes of GPTQ's checkpoint
run sapling_train.py --UPDATE=qlora --TARGET_SIZE=0.29 "--HEAL_AT=[56,44,32]" --CYCLE_EPOCHS=0.25 --HEALING_EPOCHS=1 \
    --CALIBRATION_EXAMPLES=128 --SCAN_BATCH_SIZE=1 "${lora[@]}"
run quantize_gptq.py --SOURCE_RUN=sapling --RUN=sapling_gptq --CALIBRATION_EXAMPLES=256 --BATCH_SIZE=1

for name in qlora_4bit lora_8bit gptq_4bit sapling_gptq; do
    run evaluate.py --RUN=$name --BATCH_SIZE=2
done
for name in base qlora_4bit/merged sapling; do # what does not fit is read again for every token of a batch
    run evaluate.py --RUN=$name --BATCH_SIZE=8
done
run benchmark_throughput.py
run plot_pareto.py
