"""Memory: what a run took, and what a LoRA run is predicted to take."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from safetensors import safe_open

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
    adapter = blocks * rank * (2 * 2 * hidden + 2 * (hidden + _key_value_width(config)) + 3 * (hidden + inner))
    linear, ends = _parameters(config)
    weights = linear * BASE_BYTES[precision] + ends * 2 + adapter * (4 + 4 + 2)
    return (weights + _activations(config, batch, tokens, target_tokens, checkpointing)) / 1e9


def predict_training_gb(
    config, trained: int, batch: int, tokens: int, target_tokens: int, checkpointing: bool, optimizer_bytes: int = 8
) -> float:
    """Predicted peak in GB of training ``trained`` of the weights themselves, from the config alone.

    What is trained is held in float32 with its gradient and AdamW's two moments (``optimizer_bytes`` a parameter), what
    is frozen in 16 bits.
    """
    linear, ends = _parameters(config)
    weights = (linear + ends - trained) * 2 + trained * (4 + 4 + optimizer_bytes)
    return (weights + _activations(config, batch, tokens, target_tokens, checkpointing)) / 1e9


def weights_gb(config, precision: str) -> float:
    """GB of a Llama-like model's weights, the blocks' linear layers in ``precision`` and the ends in 16 bits."""
    linear, ends = _parameters(config)
    return (linear * BASE_BYTES[precision] + ends * 2) / 1e9


def inference_gb(config, context: int, batch: int = 1) -> float:
    """Predicted GB to decode with a Llama-like model in 16 bits: its weights and a KV cache of ``context`` tokens."""
    cache = batch * context * config.num_hidden_layers * 2 * _key_value_width(config)
    return (sum(_parameters(config)) + cache) * 2 / 1e9


def checkpoint_bytes(directory: Path) -> dict[str, int]:
    """Bytes of the tensors in a folder's safetensors: of ``blocks`` and of ``ends`` (embeddings, last norm, head)."""
    found = {"blocks": 0, "ends": 0}
    for path in Path(directory).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_tensor(name)
                found["blocks" if ".layers." in name else "ends"] += tensor.nbytes
    return found


def _key_value_width(config) -> int:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads * head


def _parameters(config) -> tuple[int, int]:
    """Parameters of the blocks' linear layers, and of embeddings and head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    linear = 2 * hidden * hidden + 2 * hidden * _key_value_width(config) + 3 * hidden * inner
    return config.num_hidden_layers * linear, config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)


def _activations(config, batch: int, tokens: int, target_tokens: int, checkpointing: bool) -> float:
    """Bytes that the backward pass needs: activations in 16 bits, logits in 16 and 32 bits with their gradient."""
    hidden, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    # One block keeps about 16 hidden-wide and 5 inner-wide 16-bit tensors for its backward pass.
    block = batch * tokens * (16 * hidden + 5 * inner) * 2
    activations = block + batch * tokens * hidden * 2 * blocks if checkpointing else block * blocks
    return activations + batch * target_tokens * config.vocab_size * (2 + 4 + 4)
