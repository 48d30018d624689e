"""llama.cpp's formats: what is written, what the binding is asked and gives, and what is refused."""

import shutil
import sys
from importlib import metadata, util
from types import ModuleType, SimpleNamespace

import datasets
import llama_cpp
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fincompress import generation, memory, models, quantization, runs
from fincompress.benchmark import worker as workers
from fincompress.benchmark.subjects import Subject
from fincompress.errors import NoKernel, UserError
from fincompress.quantization import METHODS, Recipe, gguf

CPU = torch.device("cpu")
BITS = {"gguf": 32, "q8_0": 8, "q4_0": 4, "q4_k_m": 4}


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    """The folder of a random Llama whose next tokens are far apart in probability."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_base, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(base, tmp_path_factory):
    """A stand-in for llama.cpp's sources."""
    return llama_cpp.stand_in(tmp_path_factory.mktemp("llama") / "cpp", base)


@pytest.fixture(scope="module")
def written(base, sources, tmp_path_factory):
    """``{method: folder}``: the base in each format, as the stand-in writes it."""
    folder = tmp_path_factory.mktemp("written")
    for name, bits in BITS.items():
        recipe = METHODS[name].fit(Recipe(bits, llama_cpp=sources), AutoConfig.from_pretrained(base))
        METHODS[name].quantize(base, folder / name, [], recipe, CPU, folder / "log")
        AutoTokenizer.from_pretrained(base).save_pretrained(folder / name)
    return {name: folder / name for name in BITS}


class Server:
    """Stands in for the binding's: answers with the number of its context, then EOS where there is room for it."""

    asked: list[dict] = []

    def __init__(self, settings):
        if not settings.model.path.endswith("q4_0/model.gguf"):
            raise RuntimeError("Failed to init server")
        self.context = settings.n_ctx

    def handle_completions(self, asked):
        self.asked.append(asked)
        ids = [self.context, 2][: asked["max_tokens"]]
        reason = "stop" if 2 in ids else "length"
        content = [{"id": token, "logprob": -0.5} for token in ids]
        timings = {"predicted_ms": 21.0, "predicted_per_token_ms": 5.25}  # some versions count the first token too
        return {"choices": [{"finish_reason": reason, "logprobs": {"content": content}}], "timings": timings}


@pytest.fixture
def binding(monkeypatch):
    """A stand-in for the binding; returns what it is asked."""
    module = ModuleType("xllamacpp")
    module.__spec__ = util.spec_from_loader("xllamacpp", loader=None)
    module.Server, version = Server, metadata.version
    module.ggml_type = SimpleNamespace(GGML_TYPE_F32="f32")
    module.llama_flash_attn_type = SimpleNamespace(LLAMA_FLASH_ATTN_TYPE_DISABLED=0)
    module.CommonParams = lambda: SimpleNamespace(
        model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
    )
    monkeypatch.setitem(sys.modules, "xllamacpp", module)
    monkeypatch.setattr(metadata, "version", lambda name: "1.2" if name == "xllamacpp" else version(name))
    monkeypatch.setattr(Server, "asked", [])
    return Server.asked


def load(path):
    return models.load_base(str(path), "auto", CPU, torch.bfloat16)


def questions(*lengths):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(20, 2000, (length,), generator=generator).tolist() for length in lengths]
    return datasets.Dataset.from_list([{"input_ids": prompt, "prompt_tokens": len(prompt)} for prompt in ids])


# ------------------------------------------------------------------------------------------------ what is written


def test_a_file_is_known_as_its_methods_and_its_size_is_counted(base, written, tmp_path):
    for name, path in written.items():
        assert quantization.method_of(path) is METHODS[name]
        assert sorted(file.name for file in path.glob("*.gguf")) == ["model.gguf"]  # what it was made of is gone
        assert models.size_gb(path, "shape:tiny", str(tmp_path)) == (path / "model.gguf").stat().st_size / 1e9
        assert models.size_gb(None, str(path), str(tmp_path)) == models.size_gb(path, "shape:tiny", str(tmp_path))
    before, after = memory.checkpoint_bytes(base), memory.checkpoint_bytes(written["gguf"])
    assert after == {part: 2 * size for part, size in before.items()}  # 32 bits of 16
    assert models.base.read_config(str(written["gguf"])).num_hidden_layers == 2


def test_a_file_is_no_source_of_16_bit_weights(written, tmp_path):
    made = tmp_path / "run"
    made.symlink_to(written["gguf"])
    runs.write_json(made / "train_metrics.json", {})
    with pytest.raises(UserError, match="is quantized already"):
        models.dense_checkpoint("run", str(tmp_path))


def test_a_group_is_the_formats_and_bits_are_checked(base):
    config = AutoConfig.from_pretrained(base)
    assert METHODS["q4_k_m"].fit(Recipe(bits=4, group_size=128), config).group_size == 32
    with pytest.raises(UserError, match="BITS = 4: METHOD = 'q8_0' takes 8"):
        METHODS["q8_0"].fit(Recipe(bits=4), config)


# ------------------------------------------------------------------------------------------------ what is computed


def test_greedy_outputs_in_32_bits_are_those_of_transformers(base, written):
    pytest.importorskip("xllamacpp", reason="the optional package xllamacpp is not installed")
    tokenizer, asked = models.load_tokenizer(str(base)), questions(5, 60, 9, 300)
    dense = models.load_base(str(base), "auto", CPU, torch.float32).eval()
    generated = [generation.generate(model, tokenizer, asked, 2, 24) for model in (load(written["gguf"]), dense)]
    ours, theirs = ([row["output"].replace("\ufffd", "") for row in outputs] for outputs in generated)
    assert ours == theirs and len(set(ours)) == 4


def test_the_benchmark_measures_the_binding(written):
    pytest.importorskip("xllamacpp", reason="the optional package xllamacpp is not installed")
    worker = workers.Worker()
    loaded = worker.load(Subject("a", "shape:tiny", str(written["q8_0"]), "q8_0"), "results", 8.0, 300, 4)
    assert loaded["kernel"].startswith("llama.cpp (xllamacpp 2")
    assert min(*worker.prefill(300), *worker.decode(context=64, batch=1, new_tokens=4)) > 0


def test_prompts_are_token_ids_without_padding_and_outputs_end_at_eos(base, written, binding):
    asked = questions(300, 5)
    rows = generation.generate(load(written["q4_0"]), models.load_tokenizer(str(base)), asked, 2, 24)
    assert [request["prompt"] for request in binding] == list(asked["input_ids"])
    assert all(request["temperature"] == 0 and request["max_tokens"] == 24 for request in binding)
    assert [(row["ended"], row["new_tokens"]) for row in rows] == [(True, 2), (True, 2)]
    cut = generation.generate(load(written["q4_0"]), models.load_tokenizer(str(base)), asked, 1, 1)
    assert [(row["ended"], row["new_tokens"]) for row in cut] == [(False, 1), (False, 1)]


def test_a_context_grows_with_the_prompt(written, binding):
    model = load(written["q4_0"])
    for length, context in ((1, 256), (200, 256), (256, 512), (3, 512)):
        reply = model.complete([5] * length, 1)
        assert reply["choices"][0]["logprobs"]["content"][0]["id"] == context


def test_decoding_takes_the_cache_of_the_prompt_and_one_sequence(written, binding):
    model = load(written["q4_0"])
    cache, token, seconds = generation.time_prefill(model, 16)
    assert seconds > 0 and binding[-1]["cache_prompt"] is False
    assert generation.time_decoding(model, cache, token, 3) == [0.007] * 3
    assert binding[-1]["prompt"] == [*cache, token] and binding[-1]["cache_prompt"] and binding[-1]["max_tokens"] == 4
    with pytest.raises(UserError, match="batch 1 alone"):
        generation.time_decoding(model, cache, token, 3, batch=4)
    assert workers.kernel(model) == "llama.cpp (xllamacpp 1.2)"
    table = 4 * 2048 * 64
    assert workers.bytes_per_token(model) == sum(memory.checkpoint_bytes(written["q4_0"]).values()) - table


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_missing_package_is_one_line_that_names_it(written, sources, monkeypatch):
    monkeypatch.setattr(gguf, "installed", lambda package: False)
    with pytest.raises(NoKernel, match="needs the package xllamacpp: pip install xllamacpp$"):
        load(written["gguf"])
    with pytest.raises(UserError, match="needs the package sentencepiece: pip install sentencepiece$"):
        METHODS["gguf"].require(sources)


def test_missing_tools_are_named_before_anything_is_begun(base, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "installed", lambda package: True)
    monkeypatch.setenv("PATH", "/nowhere")
    for folder in (None, str(tmp_path)):
        with pytest.raises(UserError, match="set LLAMA_CPP to a folder that holds convert_hf_to_gguf.py"):
            METHODS["q8_0"].require(folder)
    without = llama_cpp.stand_in(tmp_path / "cpp", base, tool=False)
    METHODS["q8_0"].require(without)
    with pytest.raises(UserError, match=f"'q4_0' needs llama-quantize, in PATH or {without}/build/bin"):
        METHODS["q4_0"].require(without)


def test_a_tool_that_fails_is_one_line_with_what_it_said(base, tmp_path):
    folder = llama_cpp.stand_in(tmp_path / "cpp", base)
    with pytest.raises(UserError, match="^llama.cpp's convert_hf_to_gguf.py failed: no config.json$"):
        METHODS["q8_0"].quantize(tmp_path, tmp_path / "out", [], Recipe(8, llama_cpp=folder), CPU, tmp_path / "log")
    assert (tmp_path / "llama_cpp.log").read_text() == "no config.json\n"


def test_a_converter_that_overlooks_the_rotary_base_is_refused(base, sources, tmp_path):
    """As one of before transformers 5 does: such a file answers, and worse."""
    shutil.copytree(base, tmp_path / "base")
    config = runs.read_json(base / "config.json")
    config["rope_parameters"]["rope_theta"] = 100000.0
    runs.write_json(tmp_path / "base" / "config.json", config | {"rope_theta": 100000.0})
    with pytest.raises(UserError, match="too old: it wrote a rotary base of 10000, the model's is 100000$"):
        METHODS["q8_0"].quantize(
            tmp_path / "base", tmp_path / "out", [], Recipe(8, llama_cpp=sources), CPU, tmp_path / "log"
        )


def test_a_damaged_file_is_refused_in_one_line(base, written, binding):
    model, tokenizer = load(written["gguf"]), models.load_tokenizer(str(base))
    with pytest.raises(UserError, match="llama.cpp cannot load .*model.gguf"):
        generation.generate(model, tokenizer, questions(5), 1, 4)
