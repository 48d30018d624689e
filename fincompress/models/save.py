"""Write checkpoints: dense weights in shards, adapters merged in, configs, tokenizer and model card."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from fincompress import runs
from fincompress.errors import UserError


def write_checkpoint(directory: Path, model: torch.nn.Module, tokenizer, dtype: torch.dtype) -> None:
    """Write a standard checkpoint in ``dtype``, whatever the model holds its weights in; adapters are merged."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    write_weights(directory, dense_tensors(base, dtype))
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    write_configs(directory, config, base.generation_config, tokenizer, dtype)


def write_configs(directory: Path, config, generation_config, tokenizer, dtype: torch.dtype) -> None:
    """Write what a checkpoint of unquantized weights in ``dtype`` has beside them; changes ``config``."""
    config.dtype = dtype
    config.use_cache = True  # the Trainer turns it off
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(directory)
    generation_config.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)


def write_weights(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: float = 2e9) -> None:
    """Write ``(name, tensor)`` pairs as a standard safetensors checkpoint; one shard at a time is held in memory."""
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    total = size = 0

    def flush() -> None:
        save_file(shard, directory / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        shard[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(shards) == 1:
        (directory / "0.safetensors").rename(directory / "model.safetensors")
        return
    index = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{number}.safetensors").rename(directory / file)
        index |= dict.fromkeys(names, file)
    runs.write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
    )


@torch.no_grad()
def dense_tensors(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """``(name, tensor)`` of every weight in ``dtype`` on the CPU: dequantized, adapters merged, tied weights once.

    Goes module by module: no more than one of them is held dequantized, so a 4-bit 7B model on a GPU stays 4-bit there.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    inside, seen = None, set()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, LoraLayer):
            inside = name + "."
            weight = dequantize_module_weight(module.get_base_layer()).float()
            for adapter in module.active_adapters:
                weight = weight + module.get_delta_weight(adapter).float()
            yield f"{name}.weight", weight.to("cpu", dtype)
            if module.get_base_layer().bias is not None:
                yield f"{name}.bias", module.get_base_layer().bias.to("cpu", dtype)
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                value = dequantize_module_weight(module) if parameter_name == "weight" else parameter
                yield f"{name}.{parameter_name}", value.detach().to("cpu", dtype)


@torch.no_grad()
def merged_tensors(folder: Path, config, adapter: Path, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """``(name, tensor)`` of every weight of the checkpoint in ``folder``, a LoRA adapter of peft's added to it.

    Raises UserError where the files lack a weight that the adapter belongs to, or hold none as safetensors.
    """
    from peft import LoraConfig

    with torch.device("meta"):
        wanted = set(AutoModelForCausalLM.from_config(config).state_dict())
    wanted -= {"lm_head.weight"} if config.tie_word_embeddings else set()
    settings = LoraConfig.from_pretrained(adapter)
    scale = settings.lora_alpha / settings.r
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as lora:
        unused = set(lora.keys())
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as base:
                for name in sorted(wanted & set(base.keys())):
                    weight = base.get_tensor(name)
                    a, b = (f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight" for part in "AB")
                    if a in unused:
                        weight = weight.float() + scale * (lora.get_tensor(b).float() @ lora.get_tensor(a).float())
                        unused -= {a, b}
                    wanted.remove(name)
                    yield name, weight.to(dtype)
    if wanted or unused:
        lacking = sorted(wanted or unused)[0]
        raise UserError(f"the safetensors files in {folder} lack weights, such as {lacking}: nothing to merge into")


def save_tokenizer(tokenizer, directory: Path) -> None:
    """Save a tokenizer under a class name that every version of transformers, vLLM and llama.cpp knows."""
    tokenizer.save_pretrained(directory)
    path = Path(directory) / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's internal name
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for local in ("is_local", "local_files_only", "name_or_path"):
        settings.pop(local, None)
    runs.write_json(path, settings)


def write_model_card(directory: Path, base_model: str, text: str, **metrics: object) -> None:
    """A model card beside a checkpoint: what it is, what it came from, and numbers where there are some."""
    lines = ["---", "library_name: transformers", f"base_model: {base_model}", "---", "", text, ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in metrics.items()]
    runs.write_text(Path(directory) / "README.md", "\n".join(lines) + "\n")
