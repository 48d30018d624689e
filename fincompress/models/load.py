"""Load a base model or a run: bf16, NF4, int8, quantized or an adapter, on one device or offloaded."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from fincompress import memory, quantization, runs
from fincompress.errors import UserError
from fincompress.models import base


def load_base(
    path: str, precision: str, device: torch.device, dtype: torch.dtype, packed: bool | None = None, **options
):
    """Load the model at ``path`` on ``device``.

    ``precision`` is "auto" (that is, ``dtype``), "nf4" (bitsandbytes' 4-bit NormalFloat with double quantization,
    Dettmers et al. 2023) or "int8" (its LLM.int8, Dettmers et al. 2022); the last two compute in ``dtype``. ``packed``
    says whether quantized weights, a checkpoint's too, stay packed in memory; None: on a GPU, and bitsandbytes' on a
    CPU too where they would not fit otherwise. On a CPU bitsandbytes trains by dequantizing every weight at every call,
    to the values that are dequantized once here, and kernels for 4-bit checkpoints read a prompt half as fast as dense
    weights do. ``options`` go to ``from_pretrained``.
    Raises UserError where the model is missing, gated or unreadable, where parameters are missing from it, or where no
    kernel runs its quantized weights.
    """
    method = quantization.method_of(path)
    if packed is None:
        packed = device.type == "cuda" or (
            precision != "auto" and memory.stays_packed(base.read_config(path), device.type, dtype)
        )
    options = {"device_map": {"": device}, "dtype": dtype, "output_loading_info": True} | options
    options |= {"use_safetensors": True, "ignore_mismatched_sizes": True}  # told below, in one line
    if precision == "nf4":  # given as None, it would hide that a checkpoint is quantized itself
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    elif precision == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    with base.explain_loading(path):
        if method:
            model, info = method.load(path, device, dtype, options)
        else:
            model, info = AutoModelForCausalLM.from_pretrained(path, **options)
    # A checkpoint whose config promises more than it holds loads all the same, with random weights in the gaps.
    for kind in ("missing", "mismatched", "unexpected"):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[f"{kind}_keys"])
        names = [name for name in names if kind != "unexpected" or (".layers." in name and "rotary" not in name)]
        if names:
            reason = f"by its config.json {len(names)} weights are {kind}, such as {names[0]}"
            raise UserError(f"{path} is not a whole checkpoint: {reason}")
    if method:
        return model if packed else method.dequantize(model, dtype)
    if "quantization_config" in options and not packed:
        model = model.dequantize(dtype=dtype)
        memory.release_files(model)
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights in place, at the first forward pass in eval mode:
        # gradients stop there, and ``state_dict`` saves garbage.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def compute_in_model_dtype(model: torch.nn.Module) -> None:
    """Let LoRA layers take activations as they come, and leave the arithmetic to autocast.

    peft casts each layer's input to the adapter's float32, only for autocast to cast it back: with adapters on all
    linear layers that copying is a quarter of a training step on a CPU.
    """
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def run_path(run: str, base_model: str, results_dir: str) -> str:
    """What ``load_run`` loads for a run's name: the folder of a finished run, or ``base_model`` for an untuned one."""
    if runs.is_untuned(run):
        return base.base_model_path(base_model, results_dir)
    return str(runs.finished_run(results_dir, run))


def load_run(path: str | Path, results_dir: str, device: torch.device, dtype: torch.dtype, **options):
    """``(model, tokenizer)`` of a base model or a finished run; an adapter is put on the base it was trained against.

    ``options`` are for a checkpoint, as in ``load_base``.
    """
    if not (Path(path) / "adapter").exists():
        return load_base(str(path), "auto", device, dtype, **options).eval(), base.load_tokenizer(str(path))
    model, tokenizer = load_adapter(Path(path), results_dir, device, dtype)
    for parameter in model.parameters():  # the adapter was trained in float32; the products were computed in dtype
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)
    return model.eval(), tokenizer


def load_adapter(
    directory: Path, results_dir: str, device: torch.device, dtype: torch.dtype, packed: bool | None = None
):  # fmt: skip
    """``(model, tokenizer)``: the adapter of a run, loaded in float32, on the base it was trained against.

    ``packed`` is for ``load_base``.
    """
    from peft import PeftModel

    record = runs.read_json(directory / "settings.json")
    adapter = directory / "adapter"
    path = base.base_model_path(record["base_model"], results_dir)
    if "base" in record and Path(path).exists() and record["base"] != base.base_fingerprint(path):
        raise UserError(f"{path}/ holds another model by now than the adapter of {directory.name} was trained on")
    model = load_base(path, record["base_precision"], device, dtype, packed)
    with base.explain_loading(str(adapter)), quantization.quiet():  # peft imports gptqmodel, which greets
        return PeftModel.from_pretrained(model, adapter), base.load_tokenizer(str(adapter))


def offload_if_needed(path: str, device: torch.device, batch: int, tokens: int) -> dict:
    """Options of ``load_base`` that leave in main memory what the GPU does not hold of 16-bit weights at ``path``.

    What ``batch`` sequences of ``tokens`` tokens need beside the weights is kept free. Raises UserError where that
    leaves no room for a block: all would be computed on the CPU.
    """
    if device.type != "cuda" or quantization.method_of(path) or (Path(path) / "adapter").exists():
        return {}
    memory.release_unused()  # of the model before, an offloaded one in cycles of references
    torch.cuda.empty_cache()
    config, free = base.read_config(path), base.free_memory(device) / 1e9
    needed = memory.inference_gb(config, tokens, batch=batch) + 0.3  # scratch memory of kernels
    if needed <= free:
        return {}
    room = free - needed + memory.weights_gb(config, "bf16")
    # accelerate fills the GPU from the embeddings on, and keeps room for the largest block, to be read into.
    embeddings = 2 * config.vocab_size * config.hidden_size / 1e9
    if room < embeddings + 2 * (memory.weights_gb(config, "bf16") - embeddings) / config.num_hidden_layers:
        raise UserError(f"{batch} sequences at once leave {free:.1f} GB of a GPU no room for weights: lower BATCH_SIZE")
    print(
        f"{needed:.1f} GB do not fit into {free:.1f} GB: a part is offloaded to main memory; a smaller BATCH_SIZE helps"
    )
    return {"device_map": "auto", "max_memory": {torch.cuda.current_device(): int(room * 1e9), "cpu": 10**12}}


def dense_checkpoint(run: str, results_dir: str) -> Path:
    """The folder of a finished run's weights in 16 bits: the run's own, or ``merged/`` where it trained an adapter.

    Raises UserError where there is none, and where the weights are quantized.
    """
    directory = runs.finished_run(results_dir, run)
    if not (directory / "config.json").exists():
        directory = directory / "merged"
    if not (directory / "config.json").exists():
        raise UserError(f"run {run!r} has no weights in 16 bits, only an adapter or a folder of depths")
    if "quantization_config" in runs.read_json(directory / "config.json"):
        raise UserError(f"run {run!r} is quantized already: name the run it came from")
    return directory


def size_gb(run_directory: Path | None, base_model: str, results_dir: str) -> float:
    """GB of the weights that are evaluated: of a checkpoint, of an adapter and its base, or of the base, which is
    computed with in 16 bits if it is not quantized.
    """
    if run_directory is None and quantization.method_of(base_model):
        run_directory = Path(base_model)
    if run_directory is not None and (run_directory / "config.json").exists():
        files = [*run_directory.glob("*.safetensors"), *run_directory.glob("*.gguf")]
        return sum(path.stat().st_size for path in files) / 1e9
    precision, adapter = "bf16", 0
    if run_directory is not None:
        precision = runs.read_json(run_directory / "settings.json")["base_precision"]
        adapter = (run_directory / "adapter" / "adapter_model.safetensors").stat().st_size
    return memory.weights_gb(base.base_config(base_model, results_dir), precision) + adapter / 1e9
