"""What the file of a quantization method defines, and what all methods share: gptqmodel quantizes, packs and computes.

gptqmodel is the maintained successor of auto-gptq and AutoAWQ; transformers and vLLM read the formats it writes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GPTQConfig

from fincompress import runs
from fincompress.depth import sublayers as sub
from fincompress.errors import NoKernel, UserError

OFFLOAD = ".offload-"  # how the name of the folder begins in which quantized blocks wait on disk


@dataclass(frozen=True)
class Recipe:
    """How to quantize: the constants of ``quantize_gptq.py``."""

    bits: int = 4
    group_size: int = 128  # weights that share a scale; -1: a whole row
    desc_act: bool = False
    damping: float = 0.05
    batch_size: int = 8  # calibration texts at once


class Method(ABC):
    """A quantization method. A subclass in a file of this package is found by its ``name``.

    What is defined here holds for GPTQ's format: packed integers, a 16-bit scale and a packed zero for each group.
    """

    name: str  # value of METHOD, and the beginning of a run's recorded precision: "gptq-4bit"
    quant_method = "gptq"  # in the ``quantization_config`` of its checkpoints
    mark: str | None = None  # entry of that config's ``meta`` that no other method of this quant_method sets
    bits: tuple[int, ...] = (2, 3, 4, 8)
    group_sizes: tuple[int, ...] = (1024, 512, 256, 128, 64, 32, 16)
    calibrates = True  # whether it reads calibration texts
    orders_columns = False  # whether DESC_ACT is an option
    # Kernels of a GPU, best first. The first is compiled with nvcc, and is left out where that fails.
    gpu_kernels: tuple[str, ...] = ("gptq_marlin", "gptq_triton", "gptq_torch")
    kernel_config: type = GPTQConfig  # transformers' config that names the kernel to load with

    @abstractmethod
    def gptqmodel_config(self, recipe: Recipe, **common):
        """gptqmodel's config of the recipe; ``common`` are ``bits``, ``group_size`` and where to offload to."""

    def recognises(self, config: dict) -> bool:
        """Whether the ``quantization_config`` of a checkpoint says that this method made it."""
        marked = self.mark is None or bool(config.get("meta", {}).get(self.mark))
        return marked and config.get("quant_method") == self.quant_method

    def bits_per_weight(self, bits: int, group_size: int) -> float:
        """Stored bits per weight in groups of ``group_size`` > 0: the weight, and its share of a scale and a zero."""
        return bits + (16 + bits) / group_size

    def fit(self, recipe: Recipe, config) -> Recipe:
        """The recipe with the largest group size, up to the one asked for, that divides every input width of a model.

        Raises UserError where none does, or the method or its kernels do not take the recipe.
        """
        if recipe.bits not in self.bits:
            takes = f"is one of {', '.join(map(str, self.bits))}" if len(self.bits) > 1 else f"must be {self.bits[0]}"
            raise UserError(f"BITS = {recipe.bits}: {takes} with METHOD = {self.name!r}")
        if recipe.desc_act and not self.orders_columns:
            raise UserError(f"DESC_ACT = True: METHOD = {self.name!r} has no such order; set it to False")
        if recipe.group_size == -1:
            return recipe
        if recipe.group_size not in self.group_sizes:
            sizes = ", ".join(map(str, sorted(self.group_sizes)))
            raise UserError(f"GROUP_SIZE = {recipe.group_size}: is -1 or one of {sizes} with METHOD = {self.name!r}")
        widths = sorted({inputs for inputs, _ in linear_shapes(config)})
        for size in self.group_sizes:
            if size <= recipe.group_size and not any(width % size for width in widths):
                return replace(recipe, group_size=size)
        raise UserError(f"GROUP_SIZE = {recipe.group_size}: no size up to it divides the input widths {widths}; set -1")

    def compute_type(self, dtype: torch.dtype) -> torch.dtype | str:
        """What quantizing computes in where the device is best at ``dtype``; "auto" is the checkpoint's own type."""
        return "auto"

    def quantize(
        self, source: Path, target: Path, texts: list[list[int]], recipe: Recipe, device: torch.device,
        dtype: torch.dtype, log: Path,
    ) -> None:  # fmt: skip
        """Quantize the linear layers of the blocks of the checkpoint in ``source``; write it to the folder ``target``.

        ``texts`` are calibration texts as token ids. Embeddings, norms and head stay in the checkpoint's type.
        ``target`` also gets ``quant_log.csv``, the error of every layer. What gptqmodel prints goes to ``log``.
        Raises UserError where memory or a kernel is missing.
        """
        require()
        source, target = Path(source).resolve(), target.resolve()
        stored, compute = AutoConfig.from_pretrained(source), self.compute_type(dtype)
        calibration = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts]
        with (
            tqdm(total=stored.num_hidden_layers, desc="quantizing", unit="block") as bar,
            # Finished blocks wait there, gigabytes of a large model: not in /tmp, which may lie in memory.
            tempfile.TemporaryDirectory(dir=target.parent, prefix=OFFLOAD) as scratch,
            quiet(log),
            working_in(scratch),
        ):
            from gptqmodel import GPTQModel

            def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
                bar.update(int(submodule_finalized))

            common = {"bits": recipe.bits, "group_size": recipe.group_size, "offload_to_disk_path": scratch}
            config = self.gptqmodel_config(recipe, **common)
            model = GPTQModel.load(str(source), config, device=str(device), dtype=compute)
            model.layer_callback = layer_complete
            try:
                self.run(model, calibration, recipe.batch_size)
            except torch.OutOfMemoryError:
                raise UserError("the GPU's memory does not hold the calibration: lower BATCH_SIZE") from None
            except NotImplementedError as error:
                raise UserError(f"gptqmodel has no kernel for {recipe.bits} bits on {device.type}: {error}") from None
            bar.update(bar.total - bar.n)
            model.save(str(target))
        if compute == torch.float32:
            store_in(target, stored.dtype)
        forget_offload(target)

    def run(self, model, calibration: list[dict], batch_size: int) -> None:
        """Quantize gptqmodel's ``model`` in place."""
        model.quantize(calibration, batch_size=batch_size)

    def kernels(self, path: str, device: torch.device, dtype: torch.dtype) -> list[str | None]:
        """Kernels to try for the checkpoint at ``path``, best first; None lets gptqmodel choose, as on a CPU.

        On a GPU gptqmodel would choose Machete where the GPU is new enough, without asking whether it compiles. Marlin
        is compiled with nvcc, for float16 at loading and for ``dtype`` at the first product, too late for a fallback:
        both are tried here. Triton's kernel takes a C compiler; it and torch's dequantize whole matrices.
        """
        if device.type != "cuda":
            return [None]
        from gptqmodel.utils.marlin import prewarm_marlin_extension

        compiled = runs.read_json(Path(path) / "config.json")["quantization_config"]["bits"] in (4, 8)
        for needed in (torch.float16, dtype):
            try:
                compiled = compiled and prewarm_marlin_extension(needed)
            except (ImportError, OSError, RuntimeError):
                compiled = False
        return list(self.gpu_kernels[0 if compiled else 1 :])

    def load(self, path: str, device: torch.device, dtype: torch.dtype, options: dict) -> tuple:
        """``(model, loading info)`` of a checkpoint of this method, with the first kernel that takes it.

        ``options`` go to ``from_pretrained``. Raises NoKernel where no kernel of this machine runs it.
        """
        require()
        bits = runs.read_json(Path(path) / "config.json")["quantization_config"]["bits"]
        failure: Exception | None = None
        for kernel in self.kernels(path, device, dtype):
            chosen = {"quantization_config": self.kernel_config(bits=bits, backend=kernel)} if kernel else {}
            try:
                with quiet():
                    model, info = AutoModelForCausalLM.from_pretrained(path, **(options | chosen))
                    if kernel and "triton" in kernel:  # it is compiled in its first product
                        with torch.no_grad():
                            model(torch.zeros(1, 1, dtype=torch.long, device=model.device))
                return model, info
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of any kind, from compilers and their builders
                failure = error.with_traceback(None)  # whose frames hold what was loaded so far
        if isinstance(failure, (ImportError, RuntimeError)):
            why = str(failure).strip().partition("\n")[0] or type(failure).__name__
            raise NoKernel(f"no kernel on this machine runs {path} ({why})")
        raise failure

    def dense_weight(self, layer: torch.nn.Module) -> torch.Tensor:
        """The dequantized weight of a layer, (inputs, outputs), before its kernel ran once."""
        return layer.dequantize_weight()

    @torch.no_grad()
    def dequantize(self, model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
        """Replace every quantized layer by a dense one in ``dtype``; returns the model."""
        for name, layer in list(quantized_layers(model)):
            weight = self.dense_weight(layer).T.to(dtype)
            dense = torch.nn.Linear(*weight.T.shape, bias=layer.bias is not None, device="meta")
            dense.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
            if layer.bias is not None:
                dense.bias = torch.nn.Parameter(layer.bias.to(dtype), requires_grad=False)
            model.set_submodule(name, dense)
        model.is_quantized = False
        return model

    def kernel(self, model: torch.nn.Module) -> str | None:
        """Names of the kernels that run the quantized layers of a model; None where nothing is quantized."""
        return "+".join(sorted({type(layer).__name__ for _, layer in quantized_layers(model)})) or None


def quantized_layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """``(name, module)`` of every layer that holds packed weights."""
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            yield name, module


def linear_shapes(config) -> set[tuple[int, int]]:
    """``(inputs, outputs)`` of the linear layers in the blocks of a model, from its config."""
    with torch.device("meta"):
        layers = sub.decoder(AutoModelForCausalLM.from_config(config)).layers
    found = (module for module in layers.modules() if isinstance(module, torch.nn.Linear))
    return {(module.in_features, module.out_features) for module in found}


def require() -> None:
    """Make gptqmodel importable on a small machine, or raise UserError where it is not installed."""
    missing = [name for name in ("gptqmodel", "optimum") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"quantization needs {' and '.join(missing)}: pip install -r requirements.txt")
    if (os.cpu_count() or 1) <= 2:  # its thread pool keeps two cores for itself, and refuses to start without more
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


@contextlib.contextmanager
def quiet(log: Path | None = None) -> Iterator[None]:
    """Send what gptqmodel prints, thousands of lines, to a file instead of the terminal; without a file, away."""
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
