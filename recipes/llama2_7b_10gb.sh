#!/usr/bin/env bash
# Llama-2-7B on FinQA with a 10 GB GPU: written for such a card and not run on one. Needs the licence accepted on the Hub
# and a token in .env, 32 GB of main memory and about 115 GB of disk. Finished runs are skipped, a killed run resumes.
#
#   DATA_DIR=path/to/finqa recipes/llama2_7b_10gb.sh        without DATA_DIR FinQA is downloaded into data/
#
# EXTRA_DATA_DIR=path/to/tatqa adds TAT-QA to the first pass. REHEARSE=1 runs every command on a handful of examples, with
# short prompts, few steps and drops and two blocks of GPTQ: it shows that they work at this size, on a CPU with 24 GB too
# (an older form took 86 minutes: docs/gpu.md). BASE_MODEL=shape:llama-2-7b needs no licence: its weights are random.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup_env.sh
BASE_MODEL=${BASE_MODEL:-meta-llama/Llama-2-7b-hf} RESULTS_DIR=$(setting RESULTS_DIR results-llama)
DATA_DIR=$(setting DATA_DIR data)
export BASE_MODEL RESULTS_DIR DATA_DIR
if [ -z "${REHEARSE:-}" ] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    built=$(python -c 'import torch; print(torch.__version__, "for CUDA", torch.version.cuda)')
    echo "error: torch finds no CUDA GPU (it is $built: docs/gpu.md), and a CPU would take months; REHEARSE=1 tries the commands" >&2
    exit 2
fi
case "$(nvcc --version 2>/dev/null)" in
    *"release $(python -c 'import torch; print(str(torch.version.cuda).partition(".")[0])')."*) ;;
    *) echo "no nvcc of torch's CUDA: Marlin, GPTQ's fast kernel, cannot be compiled; speeds of another do not count" ;;
esac

run() {
    printf '\n%s\n' "$*"
    python "$@"
}
# What is measured together: more does not fit, nor do 22 and more blocks in 16 bits, nor the last two beside a desktop.
measured=("'qlora_4bit'" "'lora_8bit'" "'gptq_4bit'" "'sapling_gptq/28'" "'sapling_gptq/22'" "'sapling_gptq/16'"
    "'sapling/16'" "'sapling/8'" "'gptq_4bit', 'sapling_gptq/8'")
sliver=() steps=() few_texts=() one_scan=() recovery=() short=() quick=() # what a rehearsal overrides
if [ -n "${REHEARSE:-}" ]; then
    sliver=(--EVIDENCE_TOKENS=100 --MAX_PROMPT_TOKENS=256 --TRAIN_EXAMPLES=16 --CALIBRATION_EXAMPLES=4 --EVAL_EXAMPLES=2)
    steps=(--MAX_STEPS=2 --GRADIENT_ACCUMULATION=1 --LOGGING_STEPS=1)
    few_texts=(--CALIBRATION_EXAMPLES=8)
    one_scan=("--DEPTHS=[0.94]")
    recovery=(--RECOVERY_EPOCHS=0.2 --CALIBRATION_EXAMPLES=2 --GRADIENT_ACCUMULATION=1)
    short=(--MAX_NEW_TOKENS=8)
    measured=("'gptq_4bit'")
    quick=(--ROUNDS=1 --NEW_TOKENS=4 "--BATCH_SIZES=[2]")
fi
lora=(--LEARNING_RATE=2e-4 --LORA_RANK=16 --BATCH_SIZE=1 --GRADIENT_ACCUMULATION=16)

prompts=(--EVIDENCE_TOKENS=400 --MAX_PROMPT_TOKENS=640 --CALIBRATION_EXAMPLES=256 --TRAIN_EXAMPLES=None
    --EVAL_EXAMPLES=None "${sliver[@]}")

run preprocess_data.py "${prompts[@]}"
run preprocess_data.py --RUN=mixed_data "${prompts[@]}" --PAGE_QUESTIONS=2500 --EXTRA_DATA_DIR="${EXTRA_DATA_DIR:-None}"
# A pass over more data, then FinQA with redrawn numbers: docs/data.md
run train_qlora_4bit.py --RUN=mixed_qlora --DATA_RUN=mixed_data "${lora[@]}" --EPOCHS=1 --MERGE=False "${steps[@]}"
run train_qlora_4bit.py --START_FROM=mixed_qlora "${lora[@]}" --EPOCHS=3 --AUGMENT=figures "${steps[@]}"
run train_lora_8bit.py --RUN=mixed_lora_8bit --DATA_RUN=mixed_data "${lora[@]}" --EPOCHS=1 --MERGE=False "${steps[@]}"
run train_lora_8bit.py --START_FROM=mixed_lora_8bit "${lora[@]}" --EPOCHS=3 --AUGMENT=figures --MERGE=False \
    "${steps[@]}"
run quantize_gptq.py --CALIBRATION_EXAMPLES=256 --SEARCH_RANGES=True --BATCH_SIZE=1 "${few_texts[@]}"
# Down to the bytes of GPTQ's checkpoint; and phase 1 trained on for as many passes as its 22 blocks, none dropped
sapling=(--UPDATE=qlora --AUGMENT=figures --CALIBRATION_EXAMPLES=128 "${lora[@]}")
run sapling_train.py "${sapling[@]}" "--DEPTHS=[28,22,16,8]" --RECOVERY_EPOCHS=1 \
    --DROPS_PER_CYCLE=2 "${recovery[@]}" "${one_scan[@]}"
run sapling_train.py "${sapling[@]}" --RUN=longer "--DEPTHS=[1.0]" --RECOVERY_EPOCHS=2 "${recovery[@]}"
for name in sapling longer; do
    run quantize_gptq.py --SOURCE_RUN=$name --RUN=${name}_gptq --CALIBRATION_EXAMPLES=256 --SEARCH_RANGES=True --BATCH_SIZE=1 "${few_texts[@]}"
done

for name in qlora_4bit lora_8bit gptq_4bit sapling_gptq longer_gptq; do # without a kernel the others still are
    run evaluate.py --RUN=$name --BATCH_SIZE=2 "${short[@]}" || echo "not evaluated: $name" >&2
done
# What does not fit is read again for every token of a batch: half a day and more
for name in base qlora_4bit/merged sapling longer; do
    run evaluate.py --RUN=$name --BATCH_SIZE=8 "${short[@]}"
done
for names in "${measured[@]}"; do # speeds of two calls are shown and decide nothing
    run benchmark_throughput.py "--RUNS=[$names]" "${quick[@]}" || echo "not measured: $names" >&2
done
run plot_pareto.py
