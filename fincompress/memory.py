"""Memory: what a process took and gives back, and how large a model and its parts are, from its config alone."""

import contextlib
import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from gguf import GGUFReader
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from fincompress.depth import sublayers as sub
from fincompress.quantization import METHODS

NF4_BYTES = 0.516  # 4 bits a weight and the double-quantized scales: 8 bits per 64 weights, 32 bits per 64 * 256
BASE_BYTES = {"nf4": NF4_BYTES, "int8": 1.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
BASE_BYTES |= {
    f"{name}-{bits}bit": method.bits_per_weight(bits, 128) / 8
    for name, method in METHODS.items()
    for bits in method.bits
}
CUDA_CONTEXT_GB = 0.5  # what a process that uses CUDA takes of the card before it holds anything
FRAGMENTATION = 0.05  # share of the peak that CUDA's allocator takes on top, in pieces too small to use


def peak_memory_gb() -> dict[str, float]:
    """Peak of this process in GB (1e9 bytes): resident memory, and on a GPU allocated and reserved memory.

    ``vram_used`` is what the card has in use now, of all processes: with CUDA's context.
    """
    peak = {"rss": round(peak_rss_gb(), 3)}
    if torch.cuda.is_available():
        peak["vram_allocated"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        peak["vram_reserved"] = round(torch.cuda.max_memory_reserved() / 1e9, 3)
        free, total = torch.cuda.mem_get_info()
        peak["vram_used"] = round((total - free) / 1e9, 3)
    return peak


def peak_rss_gb() -> float:
    """Peak resident memory of this process in GB; ``ru_maxrss`` would start at what its parent held."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e9


def reset_peak() -> float:
    """Start the peaks of this process again; returns the resident memory now, in GB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what is reserved and unused would count as reserved from the start
        torch.cuda.reset_peak_memory_stats()
    return psutil.Process().memory_info().rss / 1e9


def on_a_card(gb: float) -> float:
    """GB that a process takes of a GPU whose tensors are predicted to take ``gb`` at their peak."""
    return gb * (1 + FRAGMENTATION) + CUDA_CONTEXT_GB


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


def weights_gb(config, precision: str) -> float:
    """GB of a Llama-like model's weights, the blocks' matrices in ``precision``, embeddings and head in 16 bits."""
    sizes = parameter_sizes(config, matrices_only=True)
    return ((sizes["total"] - sizes["embeddings"]) * BASE_BYTES[precision] + sizes["embeddings"] * 2) / 1e9


def adapter_parameters(config, rank: int, patch_rank: int = 0) -> int:
    """Parameters of LoRA on every linear layer of the blocks, with at least ``patch_rank`` where patches go."""
    with torch.device("meta"):
        block = sub.decoder(AutoModelForCausalLM.from_config(config)).layers[0]
    count = 0
    for name, layer in block.named_modules():
        if isinstance(layer, torch.nn.Linear):
            widened = min(patch_rank, *layer.weight.shape) if name.endswith(tuple(sub.PROJECTIONS.values())) else 0
            count += max(rank, widened) * sum(layer.weight.shape)
    return config.num_hidden_layers * count


def inference_gb(
    config, tokens: int, precision: str = "auto", rank: int = 0, batch: int = 1, device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> float:  # fmt: skip
    """GB that reading and continuing ``batch`` sequences takes, of ``tokens`` tokens each with what is written.

    Weights (an adapter of ``rank`` with them), the KV cache, the widest activations of a block, and of packed weights
    one matrix, unpacked. ``precision`` is that of the blocks' matrices; all else is in ``dtype``.
    """
    sizes, size = parameter_sizes(config, matrices_only=True), dtype.itemsize
    stored = stored_bytes(config, precision, device, dtype)
    weights = (sizes["total"] - sizes["embeddings"]) * stored + sizes["embeddings"] * size
    adapter = size * adapter_parameters(config, rank) if rank else 0
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = config.num_hidden_layers * 2 * config.num_key_value_heads * head
    activations = 4 * config.hidden_size + 3 * config.intermediate_size
    unpacked = config.hidden_size * config.intermediate_size * size if stored < size else 0
    return (weights + adapter + batch * tokens * (cache + activations) * size + unpacked) / 1e9


def quantizing_gb(config, tokens: int, texts: int) -> float:
    """GB of GPTQ in its first block, on ``texts`` texts of ``tokens`` tokens, as gptqmodel 7.6 computes it.

    It holds the embeddings, one block and the stream of all texts in 16 bits; what else the model has lies on the disk.
    Of one layer after another it sums up the Hessian of its inputs in float32 and factorizes it, in two copies more.
    """
    sizes = parameter_sizes(config)
    held = (config.vocab_size + texts * tokens) * config.hidden_size + sizes["attention"] + sizes["mlp"]
    return (2 * held + 3 * 4 * max(config.hidden_size, config.intermediate_size) ** 2) / 1e9


def fits_main_memory(config, dtype: torch.dtype) -> bool:
    """Whether a model's weights in ``dtype`` take at most four fifths of this machine's main memory."""
    return parameter_sizes(config)["total"] * dtype.itemsize <= 0.8 * psutil.virtual_memory().total


def stays_packed(config, device: str, dtype: torch.dtype) -> bool:
    """Whether bitsandbytes' weights stay packed in memory: on a GPU, and where they would not fit otherwise."""
    return device != "cpu" or not fits_main_memory(config, dtype)


def stored_bytes(config, precision: str, device: str, dtype: torch.dtype) -> float:
    """Bytes a weight of the blocks takes once loaded: 16-bit ones as computed with, and so bitsandbytes' unpacked."""
    unpacked = precision in ("nf4", "int8") and not stays_packed(config, device, dtype)
    return dtype.itemsize if unpacked or precision in ("auto", "bf16", "fp16") else BASE_BYTES[precision]


def checkpoint_bytes(directory: Path) -> dict[str, int]:
    """Bytes of the tensors in a folder's files: of ``blocks`` and of ``embeddings`` (embeddings, last norm, head)."""
    sizes = {"blocks": 0, "embeddings": 0}
    for path in Path(directory).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_tensor(name)
                sizes["blocks" if ".layers." in name else "embeddings"] += tensor.nbytes
    for path in Path(directory).glob("*.gguf"):
        for tensor in GGUFReader(path).tensors:
            sizes["blocks" if tensor.name.startswith("blk.") else "embeddings"] += int(tensor.n_bytes)
    return sizes


def parameter_sizes(config, matrices_only: bool = False) -> dict[str, int]:
    """Parameters of one ``attention`` and one ``mlp`` (each with its norm), of the ``embeddings`` (with head and
    last norm), and in ``total``, of a model of this config once dense. ``matrices_only`` leaves out norms and biases.

    Raises UserError for a model that is not built of Llama-like blocks.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    def count(parameters: Iterable[torch.nn.Parameter]) -> int:
        return sum(p.numel() for p in parameters if p.dim() > 1 or not matrices_only)

    sizes = {kind: count(sub.parameters(model, sub.SubLayer(0, kind))) for kind in sub.KINDS}
    total = count(model.parameters())
    return sizes | {"embeddings": total - config.num_hidden_layers * sum(sizes.values()), "total": total}
