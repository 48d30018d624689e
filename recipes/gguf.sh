#!/usr/bin/env bash
# A run in llama.cpp's formats: Q8_0 and, where llama-quantize was built, Q4_K_M and Q4_0. Each is a run of its own, which
# evaluate.py and benchmark_throughput.py take: qlora_4bit_q8_0, sapling_q4_k_m/20. Of "sapling" every depth is converted.
#
#   recipes/gguf.sh qlora_4bit/merged path/to/llama.cpp     or LLAMA_CPP=path/to/llama.cpp recipes/gguf.sh sapling/20
#
# The folder holds llama.cpp's sources; its converter needs the package sentencepiece.
set -euo pipefail
if [ -n "${2:-${LLAMA_CPP:-}}" ]; then LLAMA_CPP=$(realpath -m "${2:-$LLAMA_CPP}") && export LLAMA_CPP; fi
cd "$(dirname "$0")/.."
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ -z "${LLAMA_CPP:-}" ]; then
    echo "error: $0 takes a run and a folder of llama.cpp, as in: $0 sapling/20 path/to/llama.cpp" >&2
    exit 2
fi
source ./setup_env.sh

types=(q8_0)
if PATH="$LLAMA_CPP/build/bin:$PATH" command -v llama-quantize >/dev/null; then
    types+=(q4_k_m q4_0)
else
    echo "llama-quantize is neither in $LLAMA_CPP/build/bin nor in PATH: Q8_0 alone"
fi
name=${1%/merged} depth=
if [[ $name =~ ^(.+)(/[0-9]+)$ ]]; then name=${BASH_REMATCH[1]} depth=${BASH_REMATCH[2]}; fi
for type in "${types[@]}"; do
    bits=${type#q}
    python quantize_gptq.py --METHOD="$type" --BITS="${bits%%_*}" --SOURCE_RUN="$1" --RUN="${name}_$type$depth"
done
