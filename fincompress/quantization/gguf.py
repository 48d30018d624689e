"""llama.cpp's formats: its own converter and quantizer write one GGUF file, and a Python binding computes with it.

Q4_0 and Q8_0 share a 16-bit scale among 32 weights. Q4_K_M shares scales among 256 weights, which have 6-bit scales by
32, and gives some matrices more bits. Matrices whose width is no multiple of 256 get Q5_0 or Q8_0 instead.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from gguf import GGUFReader
from transformers import AutoConfig

from fincompress import runs
from fincompress.errors import NoKernel, UserError
from fincompress.quantization.method import Method, Recipe

FILE = "model.gguf"
ROPE_THETA = 10000.0  # the rotary base where none is written
CONVERTER, QUANTIZER, BINDING = "convert_hf_to_gguf.py", "llama-quantize", "xllamacpp"


class Format:
    """What llama.cpp's types share: embeddings and head are quantized as well, and no texts are needed."""

    quant_method = "gguf"
    calibrates = False
    group_sizes = (32,)
    stored_bits: float  # a weight with its share of the scales
    converted = "auto"  # the converter's type: the 16-bit one of the checkpoint, where the quantizer comes after it
    quantized: str | None = None  # the quantizer's type

    def require(self, llama_cpp: str | None) -> None:
        if not llama_cpp or not Path(llama_cpp, CONVERTER).exists():
            raise UserError(
                f"METHOD = {self.name!r} needs llama.cpp's sources: set LLAMA_CPP to a folder that holds {CONVERTER}"
            )
        if not installed("sentencepiece"):
            raise UserError("llama.cpp's converter needs the package sentencepiece: pip install sentencepiece")
        if self.quantized and quantizer(llama_cpp) is None:
            raise UserError(
                f"METHOD = {self.name!r} needs {QUANTIZER}, in PATH or {llama_cpp}/build/bin: "
                f"cmake -B build && cmake --build build --target {QUANTIZER}, in that folder"
            )

    def bits_per_weight(self, bits: int, group_size: int) -> float:
        return self.stored_bits

    def fit(self, recipe: Recipe, config) -> Recipe:
        return replace(super().fit(replace(recipe, group_size=-1), config), group_size=self.group_sizes[0])

    def quantize(
        self, source: Path, target: Path, texts: list[list[int]], recipe: Recipe, device: torch.device, log: Path
    ) -> None:
        target.mkdir()
        log = log.with_name("llama_cpp.log")
        dense = target / ("dense.gguf" if self.quantized else FILE)
        converter, kind = Path(recipe.llama_cpp, CONVERTER), "f32" if recipe.bits == 32 else self.converted
        call([sys.executable, converter, source, "--outtype", kind, "--outfile", dense], log)
        if self.quantized:
            threads = torch.get_num_threads()
            call([quantizer(recipe.llama_cpp), dense, target / FILE, self.quantized, threads], log)
            dense.unlink()
        check_rope(target / FILE, AutoConfig.from_pretrained(source))
        config = runs.read_json(source / "config.json")
        config["quantization_config"] = {"quant_method": "gguf", "bits": recipe.bits, "meta": {self.name: True}}
        runs.write_json(target / "config.json", config)

    def load(self, path: str, device: torch.device, dtype: torch.dtype, options: dict) -> tuple:
        if not installed(BINDING):
            raise NoKernel(f"{path} is a GGUF file, which needs the package {BINDING}: pip install {BINDING}")
        return LlamaCpp(Path(path)), {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}

    def computes(self, model: LlamaCpp, tokens: list[int]) -> bool:
        logprob = model.complete(tokens, 1, logprobs=1)["choices"][0]["logprobs"]["content"][0]["logprob"]
        return logprob is not None and math.isfinite(logprob)

    def dequantize(self, model: LlamaCpp, dtype: torch.dtype) -> LlamaCpp:
        return model  # llama.cpp computes with the weights as they are stored

    def kernel(self, model: LlamaCpp) -> str:
        return model.kernel


class GGUF(Format, Method):
    """Not quantized: the checkpoint's own 16 bits, or 32, for comparison with transformers."""

    name = mark = "gguf"
    bits = (16, 32)
    group_sizes = (1,)

    def bits_per_weight(self, bits: int, group_size: int) -> float:
        return bits


class Q8_0(Format, Method):
    """Its converter writes it, so it needs no quantizer."""

    name = mark = converted = "q8_0"
    bits = (8,)
    stored_bits = 8.5


class Q4_0(Format, Method):
    """The fastest of its 4-bit types on CPUs."""

    name = mark = "q4_0"
    quantized = "Q4_0"
    bits = (4,)
    stored_bits = 4.5


class Q4KM(Format, Method):
    """The 4-bit type that most GGUF files have."""

    name = mark = "q4_k_m"
    quantized = "Q4_K_M"
    bits = (4,)
    stored_bits = 4.85


class LlamaCpp(torch.nn.Module):
    """The GGUF file in a folder, run by llama.cpp, with what ``generation`` and the benchmark use of a model.

    The binding is llama.cpp's server within this process; it takes prompts as token ids and adds none. It starts with
    the first prompt, for one that has answered nothing may hang at its end, and again for a longer prompt than its
    context holds. In a file of 32 bits the KV cache has 32 bits too.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Path):
        super().__init__()
        self.path = folder / FILE
        self.config = AutoConfig.from_pretrained(folder)
        self.bits = runs.read_json(folder / "config.json")["quantization_config"]["bits"]
        self.generation_config = SimpleNamespace()
        self.kernel = f"llama.cpp ({BINDING} {importlib.metadata.version(BINDING)})"
        self.server, self.context = None, 0

    def start(self, tokens: int) -> None:
        """Hold a context of so many tokens."""
        if tokens <= self.context:
            return
        import xllamacpp

        self.server, self.context = None, -(-tokens // 256) * 256  # in steps of 256, as llama.cpp counts it
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(self.path), self.context, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
        settings.verbosity, settings.cache_ram_mib, settings.fit_params = -1, 0, False
        if self.bits == 32:
            settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self.server = xllamacpp.Server(settings)
        except RuntimeError:
            self.context = 0
            raise UserError(f"llama.cpp cannot load {self.path}: it is damaged, or {BINDING} is too old") from None

    def complete(self, ids: list[int], new_tokens: int, **options) -> dict:
        """llama.cpp's reply: a greedy continuation of at most ``new_tokens`` tokens."""
        self.start(len(ids) + new_tokens)
        asked = {"prompt": ids, "max_tokens": new_tokens, "temperature": 0, "cache_prompt": False} | options
        reply = self.server.handle_completions(asked)
        if "error" in reply:
            raise RuntimeError(f"llama.cpp: {reply['error']['message']}")
        return reply

    def generate(
        self, input_ids, attention_mask, max_new_tokens: int, eos_token_id: int, pad_token_id: int, **unused
    ) -> torch.Tensor:
        """Prompts, one after another, with their continuations, as transformers' ``generate`` returns them.

        Tokens are known by their probabilities, which llama.cpp does not give of one that ends within a character.
        """
        continuations = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            (choice,) = self.complete(ids[mask.bool()].tolist(), max_new_tokens, logprobs=1)["choices"]
            tokens = [token["id"] for token in choice["logprobs"]["content"]]
            if choice["finish_reason"] == "stop" and eos_token_id not in tokens:
                tokens.append(eos_token_id)
            continuations.append(torch.tensor(tokens))
        padded = torch.nn.utils.rnn.pad_sequence(continuations, batch_first=True, padding_value=pad_token_id)
        return torch.cat([input_ids, padded], dim=1)

    def time_prefill(self, ids: list[int]) -> tuple[list[int], int, float]:
        """``generation.time_prefill`` of this prompt; the cache is the prompt itself, for llama.cpp holds its keys."""
        if torch.cuda.is_available():
            raise UserError(f"{BINDING} is not measured beside a GPU: set CUDA_VISIBLE_DEVICES=")
        self.start(len(ids) + 1)
        began = time.perf_counter()
        self.complete(ids, 1)
        return ids, ids[-1], time.perf_counter() - began

    def time_decoding(self, cache: list[int], token: int, new_tokens: int, batch: int) -> list[float]:
        """``generation.time_decoding``, the mean for each step, as llama.cpp times them."""
        if batch > 1:
            raise UserError("llama.cpp is measured at batch 1 alone")
        reply = self.complete([*cache, token], new_tokens + 1, cache_prompt=True, ignore_eos=True)
        return [reply["timings"]["predicted_ms"] / 1e3 / new_tokens] * new_tokens  # timed from the first token on

    def bytes_per_token(self) -> int:
        """Bytes of the weights that are read for a token: all but an embedding table that is not also the head."""
        sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(self.path).tensors}
        return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def check_rope(path: Path, config) -> None:
    """Raise UserError where a GGUF file lacks the rotary base of its config, which a converter may have overlooked."""
    fields = GGUFReader(path).fields
    written = next((field.contents() for name, field in fields.items() if name.endswith(".rope.freq_base")), ROPE_THETA)
    wanted = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", ROPE_THETA)
    if not math.isclose(written, wanted, rel_tol=1e-6):
        raise UserError(f"{CONVERTER} is too old: it wrote a rotary base of {written:g}, the model's is {wanted:g}")


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def quantizer(llama_cpp: str) -> str | None:
    """The path of llama.cpp's quantizer; None where it was not built."""
    return shutil.which(QUANTIZER, path=os.pathsep.join([f"{llama_cpp}/build/bin", os.environ.get("PATH", "")]))


def call(command: list, log: Path) -> None:
    """Run one of llama.cpp's tools, what it says into a file; raises UserError with its last line where it fails."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(done.stdout)
    if done.returncode:
        said = done.stdout.strip().rpartition("\n")[2] or f"status {done.returncode}"
        raise UserError(f"llama.cpp's {Path(command[command[0] == sys.executable]).name} failed: {said}")
