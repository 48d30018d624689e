"""Shared parts of the phase scripts: settings, runs, FinQA, models, training, generation."""

import os

# bitsandbytes 0.50 downloads native code from the Hub as it is imported, where the CPU has AVX512-BF16, and computes
# with it. An empty local kernel in its place lets bitsandbytes use its own library, as it does without a network.
os.environ.setdefault("LOCAL_KERNELS", f"kernels-community/quantization-bitsandbytes={os.devnull}")
