"""Write checkpoints: dense weights in shards, adapters merged in, configs, tokenizer and model card."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from fincompress import runs


def write_checkpoint(directory: Path, model: torch.nn.Module, tokenizer, dtype: torch.dtype) -> None:
    """Write a standard checkpoint in ``dtype``, whatever the model holds its weights in; adapters are merged."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    write_weights(directory, dense_tensors(base, dtype))
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.dtype = dtype
    config.use_cache = True  # the Trainer turns it off
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(directory)
    base.generation_config.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)


def write_weights(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: float = 2e9) -> None:
    """Write ``(name, tensor)`` pairs as a standard safetensors checkpoint; one shard at a time is held in memory."""
    directory.mkdir(parents=True, exist_ok=True)

    def shards() -> Iterator[dict[str, torch.Tensor]]:
        shard, size = {}, 0
        for name, tensor in tensors:
            if shard and size + tensor.nbytes > shard_bytes:
                yield shard
                shard, size = {}, 0
            shard[name] = tensor.contiguous()
            size += tensor.nbytes
        yield shard

    names, total = [], 0
    for number, shard in enumerate(shards()):
        save_file(shard, directory / f"{number}.safetensors", metadata={"format": "pt"})
        names.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
        shard.clear()  # before the next one is filled
    if len(names) == 1:
        (directory / "0.safetensors").rename(directory / "model.safetensors")
        return
    index = {}
    for number, inside in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (directory / f"{number}.safetensors").rename(directory / file)
        index |= dict.fromkeys(inside, file)
    index = {"metadata": {"total_size": total}, "weight_map": index}
    runs.write_json(directory / "model.safetensors.index.json", index)


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
