"""Memory: what a run took, and what a LoRA run is predicted to take."""

from __future__ import annotations

import resource
import sys

import torch

NF4_BYTES = 0.516  # 4 bits a weight and the double-quantized scales: 8 bits per 64 weights, 32 bits per 64 * 256
BASE_BYTES = {"nf4": NF4_BYTES, "int8": 1.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}


def peak_memory_gb() -> dict[str, float]:
    """Peak of this process in GB (1e9 bytes): resident memory, and on a GPU allocated and reserved memory."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    peak = {"rss": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)}
    if torch.cuda.is_available():
        peak["vram_allocated"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        peak["vram_reserved"] = round(torch.cuda.max_memory_reserved() / 1e9, 3)
    return peak


def predict_lora_training_gb(
    config, precision: str, rank: int, batch: int, tokens: int, target_tokens: int, checkpointing: bool
) -> float:
    """Predicted peak in GB of training LoRA (all linear layers) on a Llama-like model, from its config alone.

    ``batch`` sequences of ``tokens`` tokens each, the head computed for ``target_tokens`` of them. Counts the base in
    its precision, the adapter with gradient and two 8-bit moments, what the backward pass needs, and the logits in
    float32 with their gradient; the CUDA context (about 0.5 GB) is not in it.
    """
    hidden, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads_kv = config.num_key_value_heads * (getattr(config, "head_dim", None) or hidden // config.num_attention_heads)
    linear = blocks * (2 * hidden * hidden + 2 * hidden * heads_kv + 3 * hidden * inner)
    ends = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    adapter = blocks * rank * (2 * 2 * hidden + 2 * (hidden + heads_kv) + 3 * (hidden + inner))
    # One block keeps about 16 hidden-wide and 5 inner-wide bf16 tensors for its backward pass.
    block = batch * tokens * (16 * hidden + 5 * inner) * 2
    activations = block + batch * tokens * hidden * 2 * blocks if checkpointing else block * blocks
    logits = batch * target_tokens * config.vocab_size * (2 + 4 + 4)
    total = linear * BASE_BYTES[precision] + ends * 2 + adapter * (4 + 4 + 2) + activations + logits
    return total / 1e9
