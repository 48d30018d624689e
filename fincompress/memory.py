"""Memory: what a process took, and what training and decoding are predicted to take, from a model's config alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from fincompress.depth import sublayers as sub
from fincompress.errors import UserError
from fincompress.quantization import METHODS

NF4_BYTES = 0.516  # 4 bits a weight and the double-quantized scales: 8 bits per 64 weights, 32 bits per 64 * 256
BASE_BYTES = {"nf4": NF4_BYTES, "int8": 1.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
BASE_BYTES |= {name: method.bits_per_weight(4, 128) / 8 for name, method in METHODS.items()}
CUDA_CONTEXT_GB = 0.5  # what a process that uses CUDA takes of the card before it holds anything


def peak_memory_gb() -> dict[str, float]:
    """Peak of this process in GB (1e9 bytes): resident memory, and on a GPU allocated and reserved memory."""
    peak = {"rss": round(peak_rss_gb(), 3)}
    if torch.cuda.is_available():
        peak["vram_allocated"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        peak["vram_reserved"] = round(torch.cuda.max_memory_reserved() / 1e9, 3)
    return peak


def peak_rss_gb() -> float:
    """Peak resident memory of this process in GB.

    On Linux from /proc: ``ru_maxrss`` of a process starts at what its parent held when it was made.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def reset_peak() -> float:
    """Start the peaks of this process anew; returns the resident memory now, in GB.

    Only Linux can forget the peak of resident memory: elsewhere it stays that of the whole process.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what is reserved and unused would count as reserved from the start
        torch.cuda.reset_peak_memory_stats()
    return psutil.Process().memory_info().rss / 1e9


def release_files(model: torch.nn.Module) -> None:
    """Copy tensors out of the checkpoint's file, so that its pages, mapped as long as one tensor lies in it, can go.

    For a model whose other weights were unpacked into memory of their own: both would count.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    for module in model.modules():  # a buffer that was loaded is a view, whose base would keep the file
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.clone())
    release_unused()


def release_unused() -> None:
    """Hand what loading and unpacking needed back to the system.

    glibc otherwise keeps it, in pieces too small for training to use.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def predict_lora_training_gb(
    config,
    precision: str,
    rank: int,
    batch: int,
    tokens: int,
    target_tokens: int,
    checkpointing: bool,
    device: str = "cuda",
    compute_bytes: int = 2,
    ratio: float = 1.0,
    frozen_adapters: bool = False,
) -> float:
    """Predicted peak in GB of training LoRA (all linear layers) on a Llama-like model, from its config alone.

    ``batch`` sequences of ``tokens`` tokens each, the head computed for ``target_tokens`` of them, arithmetic in
    ``compute_bytes`` bytes a number. Counts the base in its precision (NF4 is unpacked on a CPU), the adapter in
    float32 with its gradient, AdamW's moments (8-bit on a GPU) and a copy for autocast, what the backward pass needs,
    and the logits. ``ratio`` is the share of attentions and MLPs whose adapters are trained; the others have none, or
    ``frozen_adapters``. Not in it: the CUDA context (``CUDA_CONTEXT_GB``), and on a CPU what Python and its libraries
    take.
    """
    linear, ends = _matrices(config)
    hidden, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    every = _adapter_parameters(config, rank)
    adapter = ratio * every
    stored = _stored_bytes(precision, device, compute_bytes)
    # Packed weights are unpacked for the product, one matrix at a time.
    unpacked = hidden * inner * compute_bytes if stored < compute_bytes else 0
    weights = linear * stored + ends * compute_bytes + unpacked
    state = adapter * (4 + 4 + _moment_bytes(device) + _cast_bytes(compute_bytes))
    state += frozen_adapters * (every - adapter) * 4
    # Each norm keeps a float32 copy of the stream; adapters keep their inputs, some of which they share.
    token = 2 * (4 + 4 * hidden) + compute_bytes * (3 * inner + ratio * (2 * hidden + inner + 7 * rank))
    token += _attention_bytes(config, tokens, compute_bytes, eager=device == "cpu")
    activations = _kept(config, batch * tokens, [token] * blocks, checkpointing, compute_bytes)
    return (weights + state + activations + _logits(config, batch * target_tokens, compute_bytes)) / 1e9


def predict_training_gb(
    config,
    batch: int,
    tokens: int,
    target_tokens: int,
    checkpointing: bool,
    ratio: float = 1.0,
    train_ends: bool = True,
    device: str = "cuda",
    compute_bytes: int = 2,
) -> float:
    """Predicted peak in GB of training weights themselves, from the config alone: all, or SAPLING's share of them.

    ``ratio`` is the share of attentions and MLPs that is trained, ``train_ends`` whether embeddings and head are. What
    is trained is held in float32 with its gradient, AdamW's moments and a copy for autocast; what is frozen is not. Of
    gradients and activations the larger counts: one grows while the other is given back.
    """
    linear, ends = _matrices(config)
    hidden, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    trained = ratio * linear + train_ends * ends
    weights = (linear + ends - trained) * compute_bytes
    weights += trained * (4 + _moment_bytes(device) + _cast_bytes(compute_bytes))
    if train_ends:  # bitsandbytes keeps an embedding's moments in float32
        weights += config.vocab_size * hidden * (8 - _moment_bytes(device))
    attention = _attention_bytes(config, tokens, compute_bytes, eager=device == "cpu")
    # Autocast copies an input once for each of the products that need it for a weight's gradient.
    copies = (3, 2) if compute_bytes < 4 else (1, 1)
    frozen = 2 * (4 + 4 * hidden) + compute_bytes * 3 * inner + attention
    whole = 2 * (4 + 8 * hidden) + compute_bytes * (sum(copies) * hidden + 4 * inner) + attention
    kept = [ratio * whole + (1 - ratio) * frozen] * blocks
    activations = _kept(config, batch * tokens, kept, checkpointing, 4 if train_ends else compute_bytes)
    backward = activations + _logits(config, batch * target_tokens, compute_bytes)
    if train_ends:  # the last norm; and the head's gradient comes first, as computed and then in float32
        backward += batch * tokens * 8 * hidden + config.vocab_size * hidden * (4 + _cast_bytes(compute_bytes))
    return (weights + max(backward, trained * 4)) / 1e9


def predict_teacher_gb(
    config,
    batch: int,
    tokens: int,
    target_tokens: int,
    compute_bytes: int = 2,
    adapter_rank: int | None = None,
    hidden_states: bool = True,
) -> float:
    """Predicted GB that a teacher adds to the training of SAPLING.

    A model of its own is held in ``compute_bytes`` a weight. With ``adapter_rank`` it shares the student's base and
    adds a float32 adapter. Hidden states are one a block, for ``batch`` sequences of ``tokens`` tokens.
    """
    linear, ends = _matrices(config)
    own = (linear + ends) * compute_bytes if adapter_rank is None else 4 * _adapter_parameters(config, adapter_rank)
    # The teacher's states, and float32 copies of both models' where they are compared, one block after another.
    states = batch * tokens * config.hidden_size * (compute_bytes * (config.num_hidden_layers + 1) + 4 * 4)
    # Both models' distributions over the target tokens, in float32, beside the teacher's logits.
    distributions = batch * target_tokens * config.vocab_size * (compute_bytes + 2 * 4)
    return (own + hidden_states * states + distributions) / 1e9


def predict_methods(
    config, half, batch: int, tokens: int, target_tokens: int, rank: int, ratio: float, device: str
) -> dict[str, float]:
    """Predicted peak in GB of training and of decoding (batch 1, ``tokens`` of context), by method.

    ``half`` is the config after SAPLING. Activations are recomputed on a GPU, as the training scripts do by default.
    """
    shape, rest = (batch, tokens, target_tokens, device == "cuda"), {"device": device}

    def decoding(config, precision: str, rank: int = 0) -> float:
        return inference_gb(config, tokens, 1, precision, tokens, device, rank=rank)

    return {
        "train QLoRA (NF4 base)": predict_lora_training_gb(config, "nf4", rank, *shape, **rest),
        "train 8-bit LoRA": predict_lora_training_gb(config, "int8", rank, *shape, **rest),
        "train in full": predict_training_gb(config, *shape, **rest),
        f"train SAPLING, r = {ratio:g}": predict_training_gb(config, *shape, ratio=ratio, **rest),
        "train SAPLING, UPDATE = qlora": predict_lora_training_gb(config, "nf4", rank, *shape, ratio=ratio, **rest),
        "train SAPLING, qlora with its teacher": predict_lora_training_gb(config, "nf4", rank, *shape, **rest)
        + predict_teacher_gb(config, batch, tokens, target_tokens, adapter_rank=rank),
        "decode in 16 bits": decoding(config, "bf16"),
        "decode QLoRA (NF4 base)": decoding(config, "nf4", rank),
        "decode 8-bit LoRA": decoding(config, "int8", rank),
        "decode GPTQ 4-bit": decoding(config, "gptq"),
        f"decode SAPLING, {half.num_hidden_layers} of {config.num_hidden_layers} blocks": decoding(half, "bf16"),
        "decode SAPLING + GPTQ": decoding(half, "gptq"),
    }


def weights_gb(config, precision: str) -> float:
    """GB of a Llama-like model's weights, the blocks' linear layers in ``precision`` and the ends in 16 bits."""
    linear, ends = _matrices(config)
    return (linear * BASE_BYTES[precision] + ends * 2) / 1e9


def inference_gb(
    config,
    context: int,
    batch: int = 1,
    precision: str = "bf16",
    prompt: int = 0,
    device: str = "cuda",
    compute_bytes: int = 2,
    rank: int = 0,
) -> float:
    """Predicted GB to decode with a Llama-like model: weights, a KV cache of ``context`` tokens, and a prefill's peak.

    ``prompt`` tokens a sequence are prefilled at once; 0 leaves that out. Activations, and an adapter of ``rank`` on
    every linear layer, are in ``compute_bytes`` bytes.
    """
    linear, ends = _matrices(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    stored = _stored_bytes(precision, device, compute_bytes)
    adapter = _adapter_parameters(config, rank) * compute_bytes
    cache = batch * context * config.num_hidden_layers * 2 * _attention_widths(config)[1] * compute_bytes
    # An MLP's gate, its activation and the other factor, beside the stream, its float32 copy and its normed form.
    prefill = batch * prompt * ((3 * inner + 2 * hidden) * compute_bytes + 4 * hidden)
    unpacked = hidden * inner * compute_bytes if prompt and stored < compute_bytes else 0  # one matrix at a time
    return (linear * stored + ends * compute_bytes + adapter + cache + prefill + unpacked) / 1e9


def _stored_bytes(precision: str, device: str, compute_bytes: int) -> float:
    """Bytes a weight of the blocks takes once loaded: 16-bit ones as computed with, bitsandbytes' unpacked on a CPU."""
    dense = precision in ("auto", "bf16", "fp16") or (precision in ("nf4", "int8") and device == "cpu")
    return compute_bytes if dense else BASE_BYTES[precision]


def checkpoint_bytes(directory: Path) -> dict[str, int]:
    """Bytes of the tensors in a folder's safetensors: of ``blocks`` and of ``ends`` (embeddings, last norm, head)."""
    found = {"blocks": 0, "ends": 0}
    for path in Path(directory).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_tensor(name)
                found["blocks" if ".layers." in name else "ends"] += tensor.nbytes
    return found


def _attention_widths(config) -> tuple[int, int]:
    """Of all queries and of all keys; not every model's queries are as wide as its hidden size (Qwen3's are wider)."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head, config.num_key_value_heads * head


def count_parameters(parameters: Iterable[torch.nn.Parameter]) -> int:
    """How many there are once dense: the ``numel`` of a packed 4-bit parameter counts its bytes."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in parameters)
    return sum(parameter.numel() if state is None else state.shape.numel() for parameter, state in states)


def parameter_sizes(config, matrices_only: bool = False) -> dict[str, int]:
    """Parameters of one ``attention`` and one ``mlp`` (each with its norm), of the ``ends`` (embeddings, last norm,
    head), and in ``total``, of a model of this config once dense. ``matrices_only`` leaves out norms and biases.

    Raises UserError for a model that is not built of Llama-like blocks.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    def count(parameters: Iterable[torch.nn.Parameter]) -> int:
        return count_parameters(p for p in parameters if p.dim() > 1 or not matrices_only)

    sizes = {kind: count(sub.parameters(model, sub.SubLayer(0, kind))) for kind in sub.KINDS}
    total = count(model.parameters())
    return sizes | {"ends": total - config.num_hidden_layers * sum(sizes.values()), "total": total}


def _matrices(config) -> tuple[int, int]:
    """Parameters of the blocks' linear layers, and of embeddings and head; refuses what is not built like a Llama."""
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    if not all(hasattr(config, name) for name in (*needed, "vocab_size")):
        raise UserError(f"sizes are computed for Llama-like models; a {config.model_type} is not built like one")
    if any(getattr(config, name, None) for name in ("num_local_experts", "num_experts")):
        raise UserError(f"sizes are computed for models without experts; a {config.model_type} has them")
    sizes = parameter_sizes(config, matrices_only=True)
    return sizes["total"] - sizes["ends"], sizes["ends"]


def _adapter_parameters(config, rank: int) -> int:
    """Parameters of LoRA on every linear layer of the blocks: two matrices each, of its input's and output's width."""
    hidden, (query, kv) = config.hidden_size, _attention_widths(config)
    widths = 2 * (hidden + query) + 2 * (hidden + kv) + 3 * (hidden + config.intermediate_size)
    return config.num_hidden_layers * rank * widths


def _moment_bytes(device: str) -> int:
    """Bytes of AdamW's two moments a parameter: 8-bit on a GPU, float32 on a CPU."""
    return 2 if device == "cuda" else 8


def _cast_bytes(compute_bytes: int) -> int:
    """Bytes of the copy that autocast keeps of a float32 weight from the forward pass to the backward pass."""
    return compute_bytes if compute_bytes < 4 else 0


def _attention_bytes(config, tokens: int, compute_bytes: int, eager: bool = False) -> int:
    """Bytes a token that attention keeps: queries, keys and values of every head, output, log-sum-exp, and the mask.

    ``eager`` attention keeps every head's softmax instead of the last two, in float32 and as computed with.
    """
    heads, streams = config.num_attention_heads, compute_bytes * 4 * _attention_widths(config)[0]
    if eager:
        return streams + heads * tokens * (4 + _cast_bytes(compute_bytes))
    return streams + compute_bytes * tokens + 4 * heads


def _kept(config, tokens: int, blocks: list[float], checkpointing: bool, stream_bytes: int) -> float:
    """Bytes that the backward pass needs of all blocks, or of one and what enters each of the others."""
    if checkpointing:
        return tokens * (max(blocks) + config.hidden_size * stream_bytes * len(blocks))
    return tokens * sum(blocks)


def _logits(config, targets: int, compute_bytes: int) -> float:
    """Bytes of the logits at their peak, early in the backward pass: as computed, log-softmax and two gradients."""
    return targets * config.vocab_size * (compute_bytes + 3 * 4)
