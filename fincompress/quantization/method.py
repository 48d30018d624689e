"""What the file of a quantization method defines, and what all methods share: gptqmodel quantizes, packs and computes.

gptqmodel is the maintained successor of auto-gptq and AutoAWQ; transformers and vLLM read the formats it writes.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GPTQConfig

from fincompress import runs
from fincompress.depth import sublayers as sub
from fincompress.errors import NoKernel, UserError


@dataclass(frozen=True)
class Recipe:
    """How to quantize: the constants of ``quantize_gptq.py``."""

    bits: int = 4
    group_size: int = 128  # weights that share a scale; -1: a whole row
    search_ranges: bool = False  # of every group: the one of least error, or that of its largest weight
    batch_size: int = 8  # calibration texts at once
    llama_cpp: str | None = None  # folder of llama.cpp's sources


class Method:
    """A quantization method. A subclass in a file of this package is found by its ``name``.

    What is defined here holds for GPTQ's format: packed integers, a 16-bit scale and a packed zero for each group.
    """

    name: str  # value of METHOD, and the beginning of a run's recorded precision: "gptq-4bit"
    quant_method = "gptq"  # in the ``quantization_config`` of its checkpoints
    mark: str | None = None  # entry of that config's ``meta`` that no other method of this quant_method sets
    bits: tuple[int, ...] = (2, 3, 4, 8)
    group_sizes: tuple[int, ...] = (1024, 512, 256, 128, 64, 32, 16)
    calibrates = True  # whether it reads calibration texts
    # Kernels of a GPU, best first. The first is compiled with nvcc, and is left out where that fails.
    gpu_kernels: tuple[str, ...] = ("gptq_marlin", "gptq_triton", "gptq_torch")
    kernel_config: type = GPTQConfig  # transformers' config that names the kernel to load with

    def require(self, llama_cpp: str | None) -> None:
        """Raise UserError where what quantizes is not installed."""
        require()

    def gptqmodel_config(self, recipe: Recipe, **common):
        """gptqmodel's config of the recipe; ``common`` are ``bits``, ``group_size`` and where to offload to."""
        raise NotImplementedError

    def bits_per_weight(self, bits: int, group_size: int) -> float:
        """Stored bits per weight in groups of ``group_size`` > 0: the weight, and its share of a scale and a zero."""
        return bits + (16 + bits) / group_size

    def fit(self, recipe: Recipe, config) -> Recipe:
        """The recipe with the largest group size, up to the one asked for, that divides every input width of a model.

        Raises UserError where none does, or the method or its kernels do not take the recipe.
        """
        takes = f"METHOD = {self.name!r} takes "
        if recipe.bits not in self.bits:
            raise UserError(f"BITS = {recipe.bits}: {takes}{', '.join(map(str, self.bits))}")
        if recipe.group_size == -1:
            return recipe
        if recipe.group_size not in self.group_sizes:
            raise UserError(f"GROUP_SIZE = {recipe.group_size}: {takes}-1, {', '.join(map(str, self.group_sizes))}")
        with torch.device("meta"):
            layers = sub.decoder(AutoModelForCausalLM.from_config(config)).layers
        widths = sorted({module.in_features for module in layers.modules() if isinstance(module, torch.nn.Linear)})
        for size in self.group_sizes:
            if size <= recipe.group_size and not any(width % size for width in widths):
                return replace(recipe, group_size=size)
        raise UserError(f"GROUP_SIZE = {recipe.group_size}: no size up to it divides the input widths {widths}; set -1")

    def quantize(
        self, source: Path, target: Path, texts: list[list[int]], recipe: Recipe, device: torch.device, log: Path
    ) -> None:
        """Quantize the linear layers of the blocks of the checkpoint in ``source``; write it to the folder ``target``.

        ``texts`` are calibration texts as token ids. Embeddings, norms and head stay in the checkpoint's type.
        ``target`` also gets ``quant_log.csv``, the error of every layer. What gptqmodel prints goes to ``log``.
        """
        require()
        calibration = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts]
        with (
            tqdm(total=AutoConfig.from_pretrained(source).num_hidden_layers, desc="quantizing", unit="block") as bar,
            # Finished blocks wait there, gigabytes of a large model: not in /tmp, which may lie in memory. A thread of
            # gptqmodel may still write there at the end; what is left goes with the run's other partial files.
            tempfile.TemporaryDirectory(
                dir=target.parent, prefix=".offload-", suffix=".partial", ignore_cleanup_errors=True
            ) as scratch,
            quiet(log),
        ):
            from gptqmodel import GPTQModel
            from gptqmodel.looper import loop_processor

            def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
                bar.update(int(submodule_finalized))

            loop_processor._PROJECT_LOG_DIR = Path(scratch)  # or its logs lie in the folder that one works in
            common = {"bits": recipe.bits, "group_size": recipe.group_size, "offload_to_disk_path": scratch}
            config = self.gptqmodel_config(recipe, **common)
            model = GPTQModel.load(str(source), config, device=str(device), dtype="auto")
            model.layer_callback = layer_complete
            self.run(model, calibration, recipe.batch_size)
            bar.update(bar.total - bar.n)
            model.save(str(target))
        for name in ("config.json", "quantize_config.json"):  # name that folder of this machine
            saved_config = runs.read_json(target / name)
            saved_config.get("quantization_config", saved_config).get("meta", {}).pop("offload_to_disk_path", None)
            runs.write_json(target / name, saved_config)

    def run(self, model, calibration: list[dict], batch_size: int) -> None:
        """Quantize gptqmodel's ``model`` in place."""
        model.quantize(calibration, batch_size=batch_size)

    def kernels(self, device: torch.device) -> tuple[str | None, ...]:
        """Kernels to try, best first; None lets gptqmodel choose, as on a CPU.

        On a GPU gptqmodel would choose Machete where the GPU is new enough, without asking whether it compiles.
        """
        return self.gpu_kernels if device.type == "cuda" else (None,)

    def load(self, path: str, device: torch.device, dtype: torch.dtype, options: dict) -> tuple:
        """``(model, loading info)`` of a checkpoint of this method, with the first kernel that takes it.

        ``options`` go to ``from_pretrained``. Raises NoKernel where no kernel of this machine runs it.
        """
        require()
        bits = runs.read_json(Path(path) / "config.json")["quantization_config"]["bits"]
        failure, why = None, ""
        for kernel in self.kernels(device):
            if failure:
                print(f"{path}: {kernel} is its kernel, for another one failed ({why})", file=sys.stderr)
            chosen = {"quantization_config": self.kernel_config(bits=bits, backend=kernel)} if kernel else {}
            try:
                return load_with_kernel(path, options | chosen, compiles=kernel is not None)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of any kind, from compilers and their builders
                failure = error.with_traceback(None)  # whose frames hold what was loaded so far
                why = str(failure).strip().partition("\n")[0] or type(failure).__name__
        if isinstance(failure, (ImportError, RuntimeError, subprocess.SubprocessError)):  # the last: of a compiler
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

    def computes(self, model: torch.nn.Module, tokens: list[int]) -> bool:
        """Whether a quantized model computes numbers from these tokens."""
        with torch.no_grad():
            return bool(torch.isfinite(model(torch.tensor([tokens], device=model.device)).logits).all())

    def kernel(self, model: torch.nn.Module) -> str | None:
        """Names of the kernels that run the quantized layers of a model; None where nothing is quantized."""
        return "+".join(sorted({type(layer).__name__ for _, layer in quantized_layers(model)})) or None


def load_with_kernel(path: str, options: dict, compiles: bool) -> tuple:
    """``(model, loading info)``; where a kernel ``compiles``, after its first product, which may fail."""
    with quiet(), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")  # of a kernel, which is used
        model, info = AutoModelForCausalLM.from_pretrained(path, **options)
        if compiles:
            model(torch.zeros(1, 1, dtype=torch.long, device=model.device))
    return model, info


def quantized_layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """``(name, module)`` of every layer that holds packed weights."""
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            yield name, module


def require() -> None:
    """Make gptqmodel importable on a small machine, or raise UserError where it is not installed."""
    missing = [name for name in ("gptqmodel", "optimum") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"quantization needs {' and '.join(missing)}: pip install -r requirements.txt")
    if (os.cpu_count() or 1) <= 2:  # its thread pool keeps two cores for itself, and refuses to start without more
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ.setdefault("MAX_JOBS", "4")  # of Marlin's files compiled at once: each takes gigabytes


@contextlib.contextmanager
def quiet(log: Path | None = None) -> Iterator[None]:
    """Send what gptqmodel prints, thousands of lines, to a file instead of the terminal; without a file, away."""
    with open(log or os.devnull, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield
