#!/usr/bin/env bash
# What a GPU of 10 GB does with Llama-2-7B, in about 20 minutes, 45 the first time, on any CUDA card of 10 GB and more: a few
# steps of each phase on a model of that shape with random weights, no process taking more than VRAM_CAP_GB. Prints predicted
# and measured memory, rates and kernels side by side, what the README says of them, and writes gpu_check.json, which you are
# welcome to send us.
#
#   benchmarks/gpu_check.sh
#
# Needs 50 GB of disk and 32 GB of main memory. Finished phases are skipped. BASE_MODEL=shape:tiny tries the script itself.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup_env.sh
export BASE_MODEL=${BASE_MODEL:-shape:llama-2-7b} DATA_DIR=synthetic
trial=${BASE_MODEL#shape:llama-2-7b} # another model has a folder of its own
export RESULTS_DIR=${RESULTS_DIR:-results-gpu-check${trial:+-trial}}
export VRAM_CAP_GB=${VRAM_CAP_GB:-10}
if [ "$BASE_MODEL" = shape:llama-2-7b ] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    built=$(python -c 'import torch; print(torch.__version__, "for CUDA", torch.version.cuda)')
    echo "error: torch finds no CUDA GPU (it is $built: docs/gpu.md); BASE_MODEL=shape:tiny tries this script without one" >&2
    exit 2
fi

# MiB of the card that others hold; a driver that fails says so where the number would stand.
card=${CUDA_VISIBLE_DEVICES:-0}
before=$(nvidia-smi --id="${card%%,*}" --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null | grep -xE '[0-9]+' || echo 0)

run() {
    printf '\n%s\n' "$*"
    python "$@"
}
# Batches and ranks are those of recipes/llama2_7b_10gb.sh; prompts are whole synthetic pages, many of them below its 640 tokens
lora=(--LORA_RANK=16 --BATCH_SIZE=1 --GRADIENT_ACCUMULATION=4 --MAX_STEPS=8 --LOGGING_STEPS=1 --SAVE_STEPS=1000)

mkdir -p "$RESULTS_DIR"
run predict.py | tee "$RESULTS_DIR/predicted.txt"
tail -n 1 "$RESULTS_DIR/predicted.txt" >"$RESULTS_DIR/predicted.json"
run preprocess_data.py --EVIDENCE=page --MAX_PROMPT_TOKENS=640 --TRAIN_EXAMPLES=64 --CALIBRATION_EXAMPLES=8 --EVAL_EXAMPLES=8
run train_qlora_4bit.py "${lora[@]}"
run train_lora_8bit.py "${lora[@]}" --MERGE=False
run quantize_gptq.py --CALIBRATION_EXAMPLES=16 --BATCH_SIZE=1
run sapling_train.py --UPDATE=qlora "--DEPTHS=[0.94]" --DROPS_PER_CYCLE=2 --RECOVERY_EPOCHS=0.5 \
    --CALIBRATION_EXAMPLES=4 --LORA_RANK=16 --BATCH_SIZE=1 \
    --GRADIENT_ACCUMULATION=4 --LOGGING_STEPS=1
run evaluate.py --RUN=qlora_4bit --SPLIT=test --BATCH_SIZE=2 --MAX_NEW_TOKENS=16
run benchmark_throughput.py "--RUNS=['qlora_4bit', 'gptq_4bit']" --ROUNDS=2 --VRAM_LIMIT_GB="$VRAM_CAP_GB"
run benchmarks/gpu_check.py --VRAM_CAP_GB="$VRAM_CAP_GB" --USED_BEFORE_MIB="$before"
