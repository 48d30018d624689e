"""Write checkpoints: dense weights in shards, adapters merged in, configs, tokenizer and model card."""

import copy
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import GenerationConfig

from fincompress import runs


def write_checkpoint(directory: Path, model: torch.nn.Module, tokenizer, dtype: torch.dtype) -> None:
    """Write a standard checkpoint in ``dtype``, whatever the model holds its weights in; adapters are merged."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(directory, base, dtype)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.dtype = dtype
    config.use_cache = True  # the Trainer turns it off
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(directory)
    write_rope(directory)
    # Not what the base says of sampling and of penalties on repetition: figures are copied.
    ends = {name: getattr(base.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ends).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)


def write_rope(directory: Path) -> None:
    """Write a config's ``rope_theta`` and ``rope_scaling`` where tools older than transformers 5 look for them.

    They would take 10,000 and none without a word: such a model answers, and worse.
    """
    config = runs.read_json(directory / "config.json")
    scaling = dict(config.get("rope_parameters") or {})
    if "rope_theta" in scaling:
        older = {"rope_theta": scaling.pop("rope_theta")}
        if scaling.get("rope_type", "default") != "default":
            older["rope_scaling"] = scaling
        runs.write_json(directory / "config.json", config | older)


@torch.no_grad()
def write_weights(directory: Path, model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Write a model's weights in ``dtype``, in shards of at most 5 GB; main memory holds one of them at a time.

    Goes weight by weight, so a 4-bit 7B model on a GPU stays 4-bit there.
    """
    weights = {name: (shape, compute) for name, shape, compute in dense_weights(model)}
    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, _) in weights.items()}
    split = split_torch_state_dict_into_shards(empty)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, (_, compute) in weights.items():
        file = split.tensor_to_filename[name]
        # A copy: views of the file they were read from would all be written into one shard.
        shards.setdefault(file, {})[name] = compute().detach().to("cpu", dtype, copy=True).contiguous()
        if len(shards[file]) == len(split.filename_to_tensors[file]):
            save_file(shards.pop(file), directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        runs.write_json(directory / "model.safetensors.index.json", index)


def dense_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Size, Callable[[], torch.Tensor]]]:
    """``(name, shape, what computes it)`` of every weight once dense: dequantized, adapters merged, tied weights once.

    Unlike peft's own merging, sums are rounded to 16 bits once, and never to 4 or 8.
    """
    for name, parameter in model.named_parameters():  # tied ones once
        path, _, kind = name.rpartition(".")
        if ".lora_" in path:
            continue
        base, path = model.get_submodule(path), path.removesuffix(".base_layer")
        state, module = getattr(parameter, "quant_state", None), model.get_submodule(path)
        compute = functools.partial(dense_weight, module, base) if kind == "weight" else parameter.clone
        yield f"{path}.{kind}", parameter.shape if state is None else state.shape, compute


def dense_weight(module: torch.nn.Module, base: torch.nn.Module) -> torch.Tensor:
    """The weight of a layer ``base``, with what the adapters of ``module``, if it has some, add to it."""
    from peft.utils.integrations import dequantize_module_weight

    value = dequantize_module_weight(base)
    if base is module:
        return value
    return sum((module.get_delta_weight(adapter).float() for adapter in module.active_adapters), value.float())


def save_tokenizer(tokenizer, directory: Path) -> None:
    """Save a tokenizer under a class name that every version of transformers, vLLM and llama.cpp knows.

    Where it was loaded beside SentencePiece's file, as Llama-2's is, that goes with it: llama.cpp merges by its scores,
    and without them reads a text as other tokens.
    """
    tokenizer.save_pretrained(directory)
    pieces = Path(getattr(tokenizer, "vocab_file", None) or "")
    if pieces.suffix == ".model" and pieces.is_file():
        shutil.copyfile(pieces, Path(directory) / pieces.name)
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
