"""Phase 2: 4-bit quantization of a finished run, one layer after another, by GPTQ (Frantar et al. 2023) or a baseline.

Reads the 16-bit weights of results/<SOURCE_RUN>/ and, for calibration, training prompts with their targets. Writes
results/<RUN>/: a standard checkpoint, which transformers and vLLM read, quant_log.csv (the error of every layer) and
quantize_metrics.json. Rebuilds results/quantization_report.csv, as evaluate.py does later.

    python quantize_gptq.py                                            the merged QLoRA model, on a CPU or a GPU
    python quantize_gptq.py --SOURCE_RUN=sapling --RUN=sapling_gptq    every depth of SAPLING
    python quantize_gptq.py --METHOD=rtn --RUN=rtn_4bit                round-to-nearest, the baseline
    python quantize_gptq.py --CALIBRATION=general --RUN=gptq_general   what other text does to it
"""

from fincompress.settings import check_choice, check_positive, configure

# -----------------------------------------------------------------------------
# Where
SOURCE_RUN: str | list = (
    "qlora_4bit/merged"  # a finished run with weights in 16 bits ("sapling": all its depths), or several
)
RESULTS_DIR = "results"  # every run gets a folder in here
RUN = "gptq_4bit"  # name of this run; of several sources each gets a folder in it: RUN/22
# Method and format
METHOD = "gptq"  # or "rtn" (round-to-nearest, no calibration), "awq" (activation-aware scales)
BITS = 4  # 2, 3, 4 or 8 a weight; "awq": 4
GROUP_SIZE = 128  # weights that share a scale (-1: a whole row); the largest size up to this that divides all widths
DESC_ACT = False  # "gptq": quantize columns in the order of their activations: more accurate, slower to run
DAMPING: float = 0.05  # "gptq": what is added to the Hessian's diagonal, as a share of its mean
# Calibration
CALIBRATION = "prompts"  # "prompts" of the training split with their targets, or "general" text: Python's own manual
CALIBRATION_EXAMPLES = 128  # texts, at least so many for a result that counts
BATCH_SIZE = 8  # texts at once; lower it when memory is short
SEED = 0  # of the choice of texts
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import os  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from fincompress import memory, models, provenance, quantization, runs  # noqa: E402
from fincompress.errors import NoKernel, UserError, run_script  # noqa: E402
from fincompress.report import tables  # noqa: E402

GENERAL_TOKENS = 256  # length of a text of CALIBRATION = "general"


def main() -> None:
    """Quantize each source, check that the result predicts where a kernel runs it, record the cost, and report."""
    check_choice("CALIBRATION", CALIBRATION, ("prompts", "general"))
    check_positive(CALIBRATION_EXAMPLES=CALIBRATION_EXAMPLES, BATCH_SIZE=BATCH_SIZE)
    if not 0 < DAMPING < 1:
        raise UserError(f"DAMPING is a share, above 0 and below 1, not {DAMPING}")
    method = quantization.method_named(METHOD)
    quantization.require()
    models.quiet_libraries()
    sources = [Source(method, name, run) for name, run in named_runs().items()]  # all are checked before one is begun
    for source in sources:
        source.quantize()
    tables.write_quantization_report(RESULTS_DIR)


def named_runs() -> dict[str, str]:
    """Each source and the run that it is quantized to."""
    sources = runs.with_depths(RESULTS_DIR, SOURCE_RUN) if isinstance(SOURCE_RUN, str) else SOURCE_RUN
    if sources == [SOURCE_RUN]:
        return {SOURCE_RUN: RUN}
    if not sources or not all(isinstance(name, str) for name in sources):
        raise UserError(f"SOURCE_RUN is a finished run, or a list of such, not {SOURCE_RUN}")
    named = {name: f"{RUN}/{name.rpartition('/')[2]}" for name in sources}
    if len(set(named.values())) < len(sources):
        raise UserError(f"SOURCE_RUN = {SOURCE_RUN}: two end alike and would share a folder; take two calls")
    return named


class Source:
    """A finished run to quantize, checked as far as that takes no time."""

    def __init__(self, method: quantization.Method, name: str, run: str):
        self.method, self.name, self.run = method, name, run
        self.folder = models.dense_checkpoint(name, RESULTS_DIR)
        self.record = runs.read_json(self.folder / "settings.json")
        with models.explain_loading(str(self.folder)):
            memory.checkpoint_bytes(self.folder)  # reads what a torn file lacks, before anything is begun
        recipe = quantization.Recipe(BITS, GROUP_SIZE, DESC_ACT, DAMPING, BATCH_SIZE)
        self.recipe = self.method.fit(recipe, AutoConfig.from_pretrained(self.folder))
        self.tokenizer = models.load_tokenizer(str(self.folder))
        self.texts = calibration_texts(self.tokenizer, self.record["settings"]["DATA_RUN"], self.record, name)

    def quantize(self) -> None:
        record = self.record
        facts = {
            "base_model": record["base_model"],
            "base_precision": f"{METHOD}-{BITS}bit",
            "data": record["data"],
            # A source that was trained again is another one, whatever its name.
            "source": provenance.fingerprint(
                record["settings"], record.get("prepared"), runs.read_json(self.folder / "train_metrics.json")
            ),
        }
        settings = SETTINGS | {"SOURCE_RUN": self.name, "DATA_RUN": record["settings"]["DATA_RUN"]}
        done = "quantize_metrics.json"
        directory = runs.start_run(RESULTS_DIR, self.run, "quantize_gptq.py", settings, facts, done=done)
        if directory is None:
            return
        try:
            quantize(directory, self)
        except BaseException:  # nothing can be resumed, and what is left would refuse a corrected constant
            shutil.rmtree(directory)
            raise


def calibration_texts(tokenizer, data_run: str, record: dict, source: str) -> list[list[int]]:
    """Token ids of the calibration texts, drawn by the seed: never from a page of calibration, dev or test."""
    if CALIBRATION == "prompts":
        rows, data = runs.load_processed(RESULTS_DIR, data_run, "train")
        if data["data"] != record["data"]:
            raise UserError(f"data run {data_run!r} holds other data than {source} was trained on")
        texts = rows["input_ids"]
    else:
        from pydoc_data.topics import topics  # the language reference, in every Python

        ids = tokenizer("\n".join(topics[name] for name in sorted(topics))).input_ids
        texts = [ids[i : i + GENERAL_TOKENS] for i in range(0, len(ids) - GENERAL_TOKENS, GENERAL_TOKENS)]
    if len(texts) < CALIBRATION_EXAMPLES:
        raise UserError(
            f"CALIBRATION_EXAMPLES = {CALIBRATION_EXAMPLES}, but there are {len(texts)} texts to calibrate on: lower it"
        )
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(SEED))
    return [list(texts[i]) for i in order[:CALIBRATION_EXAMPLES].tolist()]


def quantize(directory: Path, source: Source) -> None:
    """Write the quantized checkpoint and its metrics into the run's folder."""
    method, texts, group_size = source.method, source.texts, source.recipe.group_size
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    asked = "" if group_size == GROUP_SIZE else f" ({GROUP_SIZE} does not divide every input width)"
    read = f"{len(texts)} texts ({CALIBRATION})" if method.calibrates else "no calibration"
    print(f"{device.type}, {reason}; {METHOD}, {BITS} bits, groups of {group_size}{asked}, {read}")
    clock = runs.Stopwatch()
    partial, log = directory / ".checkpoint.partial", directory / "gptqmodel.log"
    runs.remove_partials(directory)
    for left in directory.glob(f"{quantization.OFFLOAD}*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    log.unlink(missing_ok=True)
    try:
        method.quantize(source.folder, partial, texts, source.recipe, device, dtype, log)
        seconds = clock.seconds()
        models.save_tokenizer(source.tokenizer, partial)
        models.write_model_card(
            partial,
            source.record["base_model"],
            f"Run `{source.name}`, quantized by {METHOD.upper()} to {BITS} bits in groups of {group_size}.",
        )
        kernel = try_out(method, partial, texts[0], device, dtype)
        for path in partial.iterdir():
            os.replace(path, directory / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    before, after = memory.checkpoint_bytes(source.folder), memory.checkpoint_bytes(directory)
    metrics = {
        "source_run": source.folder.relative_to(RESULTS_DIR).as_posix(),
        "data": source.record["data"],
        "group_size": group_size,
        "kernel": kernel,
        "quantization_seconds": round(seconds, 1),
        "calibration_tokens": sum(map(len, texts)) if method.calibrates else 0,
        "peak_memory_gb": memory.peak_memory_gb(),
        "size_before_gb": round(sum(before.values()) / 1e9, 6),
        "size_after_gb": round(sum(after.values()) / 1e9, 6),
        "blocks_before_gb": round(before["blocks"] / 1e9, 6),
        "blocks_after_gb": round(after["blocks"] / 1e9, 6),
    }
    runs.write_json(directory / "quantize_metrics.json", metrics)
    print(
        f"quantized in {seconds / 60:.1f} min: {metrics['size_before_gb']:.3f} -> {metrics['size_after_gb']:.3f} GB, "
        f"blocks alone to {after['blocks'] / before['blocks']:.1%}, embeddings, head and norms stay at "
        f"{metrics['size_after_gb'] - metrics['blocks_after_gb']:.3f} GB; kernel here "
        f"{kernel or 'none'}; wrote {directory}/"
    )


def try_out(
    method: quantization.Method, checkpoint: Path, tokens: list[int], device: torch.device, dtype: torch.dtype
) -> str | None:
    """The kernel that runs the quantized model here; None, which is said, where none does: another machine may.

    Raises UserError where the checkpoint is not whole, or computes no numbers.
    """
    try:
        model = models.load_base(str(checkpoint), "auto", device, dtype, packed=True)
    except NoKernel as error:
        print(f"quantized, but it cannot be run here: {error}")
        return None
    with torch.no_grad():
        logits = model(torch.tensor([tokens], device=device)).logits
    if not torch.isfinite(logits).all():
        raise UserError("the quantized model computes no numbers: raise DAMPING or CALIBRATION_EXAMPLES")
    return method.kernel(model)


if __name__ == "__main__":
    run_script(main)
