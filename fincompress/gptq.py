"""GPTQ (Frantar et al. 2023) through gptqmodel: quantize a checkpoint, and what a quantized one needs to be used.

gptqmodel is the maintained successor of auto-gptq and writes the same format, which transformers and vLLM read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM

from fincompress import runs
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError

BITS = (2, 3, 4, 8)
GROUP_SIZES = (1024, 512, 256, 128, 64, 32, 16)
OFFLOAD = ".offload-"  # folder in a run where blocks wait that are done, as its name begins


def require() -> None:
    """Make gptqmodel importable on a small machine, or raise UserError where it is not installed."""
    missing = [name for name in ("gptqmodel", "optimum") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"GPTQ needs {' and '.join(missing)}: pip install -r requirements.txt")
    if (os.cpu_count() or 1) <= 2:  # its thread pool keeps two cores for itself, and refuses to start without more
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


@contextlib.contextmanager
def quiet(log: Path | None = None) -> Iterator[None]:
    """Send what gptqmodel prints, some thousand lines, to a file instead of the terminal; without one, away."""
    with open(log or os.devnull, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


@contextlib.contextmanager
def working_in(folder: str | Path) -> Iterator[None]:
    """Another current directory for a while: gptqmodel leaves its logs in the one it is called from."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def group_size_for(config, asked: int) -> int:
    """The largest group size up to ``asked`` that divides the input width of every linear layer of the blocks.

    -1, one group a row, fits always. Raises UserError where none fits, or ``asked`` is no group size of GPTQ's format.
    """
    if asked == -1:
        return asked
    if asked not in GROUP_SIZES:
        raise UserError(f"GROUP_SIZE is -1 or one of {', '.join(map(str, sorted(GROUP_SIZES)))}, not {asked}")
    widths = input_widths(config)
    fitting = [size for size in GROUP_SIZES if size <= asked and not any(width % size for width in widths)]
    if not fitting:
        raise UserError(f"no group size up to {asked} divides the input widths {sorted(widths)}: set GROUP_SIZE = -1")
    return fitting[0]


def input_widths(config) -> set[int]:
    """Input widths of the linear layers in the blocks of a model, from its config."""
    with torch.device("meta"):
        layers = sub.decoder(AutoModelForCausalLM.from_config(config)).layers
    return {module.in_features for module in layers.modules() if isinstance(module, torch.nn.Linear)}


def quantize(
    source: Path, target: Path, rows: list[list[int]], bits: int, group_size: int, desc_act: bool, damping: float,
    batch_size: int, device: torch.device, dtype: torch.dtype, log: Path,
) -> None:  # fmt: skip
    """Quantize the linear layers of the blocks of the checkpoint in ``source`` and write it to the folder ``target``.

    ``rows`` are calibration texts as token ids. ``dtype`` float32 computes in that; any other leaves it to gptqmodel,
    which takes the checkpoint's 16 bits. Embeddings, norms and head stay in the checkpoint's type. ``target`` also gets
    ``quant_log.csv``, the error of every layer. What gptqmodel prints goes to ``log``. Raises UserError where memory or
    a kernel is missing.
    """
    require()
    source, target = Path(source).resolve(), target.resolve()
    stored = AutoConfig.from_pretrained(source)
    calibration = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]
    with (
        tqdm(total=stored.num_hidden_layers, desc="quantizing", unit="block") as bar,
        # Blocks that are done wait there, gigabytes of a large model: not in /tmp, which may lie in memory.
        tempfile.TemporaryDirectory(dir=target.parent, prefix=OFFLOAD) as scratch,
        quiet(log),
        working_in(scratch),
    ):
        from gptqmodel import GPTQModel, QuantizeConfig

        def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
            bar.update(int(submodule_finalized))

        config = QuantizeConfig(
            bits=bits, group_size=group_size, desc_act=desc_act, damp_percent=damping, offload_to_disk_path=scratch,
            act_group_aware=group_size > 0 and not desc_act,  # whole groups in the order of their activations
        )  # fmt: skip
        compute = dtype if dtype == torch.float32 else "auto"  # bf16 on a CPU without it takes twice as long
        model = GPTQModel.load(str(source), config, device=str(device), dtype=compute)
        model.layer_callback = layer_complete
        try:
            model.quantize(calibration, batch_size=batch_size)
        except torch.OutOfMemoryError:
            raise UserError("the GPU's memory does not hold GPTQ's calibration: lower BATCH_SIZE") from None
        except NotImplementedError as error:
            raise UserError(f"gptqmodel has no kernel for {bits} bits on {device.type}: {error}") from None
        model.save(str(target))
    if compute == torch.float32:
        store_in(target, stored.dtype)
    forget_offload(target)


def store_in(directory: Path, dtype: torch.dtype) -> None:
    """Write the float32 tensors of a checkpoint in ``dtype``: what was not quantized, and only computed in float32."""
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        narrow = {name: t.to(dtype) if t.dtype == torch.float32 else t for name, t in tensors.items()}
        with runs.atomic_path(path) as partial:
            save_file(narrow, partial, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    if index.exists():
        found = runs.read_json(index)
        found["metadata"]["total_size"] = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        runs.write_json(index, found)
    config = runs.read_json(directory / "config.json")
    runs.write_json(directory / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})


def forget_offload(directory: Path) -> None:
    """Remove this machine's temporary folder from the configs that gptqmodel wrote."""
    for name in ("config.json", "quantize_config.json"):
        found = runs.read_json(directory / name)
        found.get("quantization_config", found).get("meta", {}).pop("offload_to_disk_path", None)
        runs.write_json(directory / name, found)


def is_gptq(path: str) -> bool:
    """Whether ``path`` is a folder that holds a GPTQ checkpoint."""
    config = Path(path) / "config.json"
    return config.exists() and runs.read_json(config).get("quantization_config", {}).get("quant_method") == "gptq"


def quantized_layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """``(name, module)`` of every layer that a GPTQ kernel runs."""
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            yield name, module


def backends(path: str, device: torch.device, dtype: torch.dtype) -> list[str | None]:
    """The kernels of gptqmodel's to load the GPTQ checkpoint in ``path`` with, the first one that takes it; None: its
    own choice.

    On a GPU that would be Machete where the GPU is new enough, which is not asked whether it compiles and has buffers
    that no checkpoint holds. Marlin is compiled with nvcc, for float16 at loading and for ``dtype`` at the first
    product, too late to take another. Triton's kernel, which takes a C compiler, and torch's unpack whole matrices.
    """
    if device.type != "cuda":
        return [None]
    from gptqmodel.utils.marlin import prewarm_marlin_extension

    compiled = runs.read_json(Path(path) / "config.json")["quantization_config"]["bits"] in (4, 8)
    for one in (torch.float16, dtype):
        try:
            compiled = compiled and prewarm_marlin_extension(one)
        except (ImportError, OSError, RuntimeError):
            compiled = False
    return ["gptq_marlin"] * compiled + ["gptq_triton", "gptq_torch"]


def kernel(model: torch.nn.Module) -> str | None:
    """The kernels that run a model's quantized layers, by name; None where nothing is quantized."""
    return "+".join(sorted({type(module).__name__ for _, module in quantized_layers(model)})) or None


@torch.no_grad()
def unpack(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Replace every quantized layer by a dense one of the values it stands for, in ``dtype``; returns the model."""
    for name, module in list(quantized_layers(model)):
        weight = module.dequantize_weight().T.to(dtype)  # kernels hold (in, out)
        dense = torch.nn.Linear(*weight.T.shape, bias=module.bias is not None, device="meta")
        dense.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
        if module.bias is not None:
            dense.bias = torch.nn.Parameter(module.bias.to(dtype), requires_grad=False)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, dense)
    model.is_quantized = False
    return model
