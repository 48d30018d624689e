"""Results folders by hand: records as the scripts leave them, with numbers that were made up."""

import matplotlib.image
import numpy as np

from fincompress import runs
from fincompress.finqa import scoring

DATA = {"source": "FinQA", "fingerprint": "f0"}
HARDWARE = {"cpu": "Some CPU", "cores": 2, "threads": 2, "memory_gb": 16.0}


def settings(folder, script, values=None, data=DATA, base_model="smollm2-135m", hardware=HARDWARE, precision="auto"):
    runs.write_json(
        folder / "settings.json",
        {"script": script, "settings": values or {}, "base_model": base_model, "base_precision": precision,
         "data": data, "hardware": hardware, "command": f"python {script}"},
    )  # fmt: skip


def evaluation(
    root, run, right, share=1.0, split="dev", data=DATA, base_model="smollm2-135m", precision="auto", decoding=None
):
    """``eval_<split>.json`` and the predictions of a run; ``right`` is the verdict on each question."""
    right = [bool(x) for x in right]
    verdicts = [
        {"id": f"P/{n}", "output": "x", "execution_correct": x, "program_correct": x} for n, x in enumerate(right)
    ]
    steps = {}
    for n, x in enumerate(right):
        steps.setdefault(str(1 + n * n % 7 % 5), []).append(x)
    runs.write_jsonl(root / run / f"predictions_{split}.jsonl", verdicts)
    runs.write_json(
        root / run / f"eval_{split}.json",
        {"run": run, "base_model": base_model, "base_precision": precision, "size_gb": round(0.269 * share, 4),
         "share_of_base": share, "data": data, "split": split, "questions": len(right),
         "decoding": decoding or {},
         "execution_accuracy": scoring.accuracy(right), "program_accuracy": scoring.accuracy(right),
         "invalid": scoring.accuracy([False] * len(right)),
         "steps": {name: scoring.accuracy(flags) for name, flags in sorted(steps.items())}},
    )  # fmt: skip


def throughput(
    root, run, decode, prefill=800.0, memory=0.5, device="cpu", hardware=HARDWARE, base=23.0, spread=0.01, seed=None,
    kernel="dense", bandwidth=0.5,
):  # fmt: skip
    """Rounds of one call, that in which the base model decodes at about ``base`` tokens/s."""
    noise = 1 + spread * np.random.default_rng(len(run) if seed is None else seed).standard_normal((2, 5))
    drift = 1 + 0.1 * np.sin(np.arange(5) + base)

    def entry(rate, reference, noise):
        rounds = [float(f"{x:.6g}") for x in rate * noise * drift]
        ratios = [float(f"{x:.6g}") for x in rate * noise / reference]
        return {
            name: {"median": float(np.median(values)), "low": min(values), "high": max(values), "rounds": values}
            for name, values in (("tokens_per_s", rounds), ("ratio", ratios))
        }

    record = {
        "run": run, "base_model": "smollm2-135m", "device": device, "hardware": hardware, "kernel": kernel,
        "reference": "base", "call": f"base at {base}", "data_run": "data",
        "prefill": {"median": {"prompt_tokens": 186} | entry(prefill, 800.0, noise[0])},
        "decode": {"1": entry(decode, base, noise[1])}, "inference_memory_gb": memory, "size_gb": 0.2,
        "ceiling": {"share_of_bandwidth": bandwidth},
    }  # fmt: skip
    runs.write_json(root / run / f"throughput_{device}.json", record)


def answers(share, questions=883, noise=0.02, seed=0):
    """Verdicts of one of many runs that find much the same questions hard; ``share`` of them are right."""
    generator = np.random.default_rng(7)
    hard = generator.random(questions)
    luck = np.random.default_rng(seed + int(1e6 * share)).random(questions)
    return (hard < share) ^ (luck < noise)


def data_report(root):
    """Of the data run that the benchmark took its prompts from."""
    runs.write_json(root / "data" / "data_report.json", {"splits": {"dev": {"target_tokens": {"p50": 18}}}})


def model(root, run, step, lineage, accuracy, share, seed, data=DATA):
    """An evaluated run: its step, the steps before it, and answers of which about ``accuracy`` are right."""
    settings(root / run, "made_up.py", {"SEED": seed}, data=data)
    record = runs.read_json(root / run / "settings.json")
    runs.write_json(root / run / "settings.json", record | {"step": step, "lineage": lineage})
    evaluation(root, run, answers(accuracy, seed=seed), share, data=data)


def drawn(path):
    """Whether a PNG holds a drawing: its size, and that it is not of one colour."""
    image = matplotlib.image.imread(path)
    return min(image.shape[:2]) > 100 and max(image.shape[:2]) < 4000 and image[..., :3].std() > 0.01
