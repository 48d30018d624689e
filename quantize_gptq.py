"""Phase 2: 4-bit quantization of a finished run, one layer after another, by GPTQ (Frantar et al. 2023) or a baseline.

Reads the 16-bit weights of results/<SOURCE_RUN>/ and, for calibration, training prompts with their targets. Writes
results/<RUN>/: a standard checkpoint, which transformers and vLLM read, quant_log.csv (the error of every layer) and
quantize_metrics.json.

    python quantize_gptq.py                                            the merged QLoRA model, on a CPU or a GPU
    python quantize_gptq.py --SOURCE_RUN=sapling --RUN=sapling_gptq    every depth of SAPLING
    python quantize_gptq.py --METHOD=rtn --RUN=rtn_4bit                round-to-nearest, the baseline
    recipes/gguf.sh qlora_4bit/merged path/to/llama.cpp                llama.cpp's formats
"""

from fincompress.settings import check_choice, configure

# -----------------------------------------------------------------------------
# Where
SOURCE_RUN: str = "qlora_4bit/merged"  # a finished run with weights in 16 bits ("sapling": all its depths)
RESULTS_DIR: str = "results"  # every run gets a folder in here
RUN: str = "gptq_4bit"  # name of this run; of several depths each gets a folder in it: RUN/11
LLAMA_CPP: str | None = None  # folder of llama.cpp's sources, whose tools write its formats
# Method and format
METHOD: str = "gptq"  # or "rtn" (no calibration), "awq" (by activations); of llama.cpp "q4_0", "q4_k_m", "q8_0", "gguf"
BITS: int = 4  # 2, 3, 4 or 8 a weight; "awq", "q4_0", "q4_k_m": 4; "q8_0": 8; "gguf", not quantized: 16 or 32
GROUP_SIZE: int = 128  # weights that share a scale (-1: a whole row); the largest up to this that divides all widths
# Calibration
SEARCH_RANGES: bool = False  # "gptq": the range of least error for every group; twice as slow, better on FinQA
CALIBRATION_EXAMPLES: int = 32  # training prompts with their targets; fewer where the data has fewer
BATCH_SIZE: int = 8  # texts at once; lower it when memory is short
SEED: int = 0  # of the choice of texts
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import os
import shutil
from pathlib import Path

import torch

from fincompress import lineage, memory, models, provenance, quantization, runs
from fincompress.errors import NoKernel, UserError, run_script


def main() -> None:
    """Quantize each source, check that the result predicts where a kernel runs it, record the cost, and report."""
    check_choice("METHOD", METHOD, tuple(quantization.METHODS))
    quantization.METHODS[METHOD].require(LLAMA_CPP)
    models.quiet_libraries()
    for source in runs.with_depths(RESULTS_DIR, SOURCE_RUN):
        quantize_run(source, RUN if source == SOURCE_RUN else f"{RUN}/{source.rpartition('/')[2]}")


def quantize_run(source: str, run: str) -> None:
    """Quantize the finished run ``source`` to ``run``, if that is not done; what is wrong is said before it begins."""
    folder = models.dense_checkpoint(source, RESULTS_DIR)
    record = runs.read_json(folder / "settings.json")
    with models.explain_loading(str(folder)):
        size = sum(memory.checkpoint_bytes(folder).values())  # reads what a torn file lacks
    models.load_tokenizer(str(folder))  # gptqmodel reads it too, and would not say in a line what is wrong
    recipe = quantization.Recipe(BITS, GROUP_SIZE, SEARCH_RANGES, BATCH_SIZE, LLAMA_CPP)
    recipe = quantization.METHODS[METHOD].fit(recipe, models.read_config(str(folder)))
    texts = calibration_texts(record, source)
    identity = {
        "base_model": record["base_model"],
        "base_precision": f"{METHOD}-{BITS}bit",
        "data": record["data"],
        "data_hash": record["data_hash"],
        # A source that was trained again is another one, whatever its name.
        "source": provenance.fingerprint(
            record["settings"], record["data_hash"], runs.read_json(folder / "train_metrics.json")
        ),
        **lineage.facts(f"{METHOD.upper()} {BITS}-bit", RESULTS_DIR, folder.relative_to(RESULTS_DIR).as_posix()),
    }
    settings = SETTINGS | {"SOURCE_RUN": source, "DATA_RUN": record["settings"]["DATA_RUN"]}
    done = "quantize_metrics.json"
    if not (runs.run_directory(RESULTS_DIR, run) / done).exists():
        runs.check_room(runs.run_directory(RESULTS_DIR, run), 1.5 * size / 1e9)  # gptqmodel puts blocks on the disk
    directory = runs.start_run(RESULTS_DIR, run, "quantize_gptq.py", settings, identity, done)
    if directory is None:
        return
    try:
        write_quantized(directory, recipe, folder, record, texts)
    except BaseException as error:  # nothing can be resumed, and what is left would refuse a corrected constant
        # Interrupted while it was tried out, or beside another program on the GPU: only a wrong result is thrown away.
        if (directory / done).exists() and not isinstance(error, UserError):
            raise
        said = [log for log in directory.glob("*.log") if log.stat().st_size and isinstance(error, Exception)]
        for log in said:
            kept = log.replace(directory.with_name(f"{directory.name}.log"))
            print(f"what was said before it failed is in {kept}")
        shutil.rmtree(directory, ignore_errors=True)  # a thread of gptqmodel may still write there
        raise


def calibration_texts(record: dict, source: str) -> list[list[int]]:
    """Token ids of training prompts with their targets, drawn by the seed."""
    data_run = record["settings"]["DATA_RUN"]
    rows, data = runs.load_processed(RESULTS_DIR, data_run, "train", record["base_model"])
    if data["data"] != record["data"] or record["data_hash"] != data["data_hash"]:
        raise UserError(f"data run {data_run!r} holds other data than {source} was trained on: preprocess it as it was")
    wanted = CALIBRATION_EXAMPLES if quantization.METHODS[METHOD].calibrates else 1  # to try out the result
    if len(rows) < wanted:
        print(f"CALIBRATION_EXAMPLES = {wanted}: {data_run} has {len(rows)} training texts, all of which are taken")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))
    return [list(rows[i]["input_ids"]) for i in order[:wanted].tolist()]


def write_quantized(
    directory: Path, recipe: quantization.Recipe, source: Path, record: dict, texts: list[list[int]]
) -> None:
    """Write the quantized checkpoint and its metrics into the run's folder."""
    method = quantization.METHODS[METHOD]
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device, str(source))
    fits = recipe.group_size == GROUP_SIZE or GROUP_SIZE not in method.group_sizes
    asked = "" if fits else f" ({GROUP_SIZE} does not divide every input width)"
    read = f"{len(texts)} texts" if method.calibrates else "no calibration"
    print(f"{device.type}, {reason}; {METHOD}, {BITS} bits, groups of {recipe.group_size}{asked}, {read}")
    name = source.relative_to(RESULTS_DIR).as_posix()
    memory.reset_peak()  # that of the depth before
    clock = runs.Stopwatch()
    partial = directory / ".checkpoint.partial"
    method.quantize(source, partial, texts, recipe, device, directory / "gptqmodel.log")
    seconds, peak = clock.seconds(), memory.peak_memory_gb()
    models.write_rope(partial)
    models.save_tokenizer(models.load_tokenizer(str(source)), partial)
    text = f"Run `{name}`, quantized by {METHOD.upper()} to {BITS} bits in groups of {recipe.group_size}."
    models.write_model_card(partial, record["base_model"], text)
    runs.sync(partial)
    for path in partial.iterdir():
        os.replace(path, directory / path.name)
    partial.rmdir()
    metrics = {
        "source_run": name,
        "data": record["data"],
        "group_size": recipe.group_size,
        "kernel": None,  # until it is tried out
        "quantization_seconds": round(seconds, 1),
        "calibration_tokens": sum(map(len, texts)) if method.calibrates else 0,
        "peak_memory_gb": peak,
    }
    for when, folder in (("before", source), ("after", directory)):
        parts = memory.checkpoint_bytes(folder)
        metrics[f"size_{when}_gb"] = round(sum(parts.values()) / 1e9, 6)
        metrics[f"blocks_{when}_gb"] = round(parts["blocks"] / 1e9, 6)
    runs.remove_partials(directory, held=True)
    # It is finished before it is tried out: whoever will not wait for a kernel's compiler keeps it.
    runs.write_json(directory / "quantize_metrics.json", metrics)
    kernel = try_out(directory, texts[0], device, dtype)
    runs.write_json(directory / "quantize_metrics.json", metrics | {"kernel": kernel})
    sizes = f"{metrics['size_before_gb']:.3f} -> {metrics['size_after_gb']:.3f} GB"
    print(f"quantized in {seconds / 60:.1f} min: {sizes}; kernel here {kernel or 'none'}; wrote {directory}/")


def try_out(checkpoint: Path, tokens: list[int], device: torch.device, dtype: torch.dtype) -> str | None:
    """The kernel that runs the quantized model here; None, which is said, where none does: another machine may.

    Raises UserError where the checkpoint is not whole, or computes no numbers.
    """
    if device.type == "cuda":
        wait = "the first time a kernel is compiled, for up to 25 minutes (Ctrl-C keeps the model)"
        print(f"trying it out; {wait}", flush=True)
    try:
        model = models.load_base(str(checkpoint), "auto", device, dtype, packed=True)
    except NoKernel as error:
        print(f"quantized, but it cannot be run here: {error}")
        return None
    method = quantization.METHODS[METHOD]
    if not method.computes(model, tokens):
        raise UserError("the quantized model computes no numbers: raise CALIBRATION_EXAMPLES")
    return method.kernel(model)


if __name__ == "__main__":
    run_script(main)
