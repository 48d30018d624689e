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


def everything(root, data=DATA, questions=883, split="dev"):
    """One run of each method; SAPLING down to half the bytes is a little less accurate than GPTQ at 43 %."""
    common = {"data": data, "split": split}
    data_report(root)

    def run(name, script, values, accuracy, share, decode=None, seconds=None, precision="auto", **speed):
        settings(root / name, script, values, data=data, precision=precision)
        evaluation(root, name, answers(accuracy, questions), share, precision=precision, **common)
        if decode:
            throughput(root, name, decode, **speed)
        if seconds:
            runs.write_json(root / name / "train_metrics.json", {"training_seconds": seconds})

    run("base", "evaluate.py", {}, 0.01, 1.0, 23)
    run("qlora_4bit", "train_qlora_4bit.py", {"LORA_RANK": 32}, 0.30, 0.52, 22, 4000, precision="nf4", memory=0.4)
    evaluation(root, "qlora_4bit/merged", answers(0.295, questions), 1.0, **common)
    throughput(root, "qlora_4bit/merged", 24)
    run("lora_8bit", "train_lora_8bit.py", {"LORA_RANK": 32}, 0.31, 0.68, 12, 5000, precision="int8")
    run("gptq_4bit", "quantize_gptq.py", {"SOURCE_RUN": "qlora_4bit", "BITS": 4}, 0.27, 0.43, 20, prefill=120.0,
        memory=0.35)  # fmt: skip
    runs.write_json(root / "gptq_4bit" / "quantize_metrics.json", {"quantization_seconds": 150.0})
    families = {
        "sapling": ({"CRITERION": "calibration", "SCHEDULE": "successive"}, 0.30),
        "last": ({"CRITERION": "last", "SCHEDULE": "one_shot", "DROP_UNIT": "block"}, 0.15),
        "shortgpt": ({"CRITERION": "block_influence", "SCHEDULE": "one_shot", "DROP_UNIT": "block"}, 0.17),
    }
    for family, (values, start) in families.items():
        values = {"DROP_UNIT": "sublayer", "START_FROM": "qlora_4bit"} | values
        settings(root / family, "sapling_train.py", values, data=data)
        runs.write_json(root / family / "train_metrics.json", {"training_seconds": 3000.0, "scanning_seconds": 900.0})
        depths = range(60, 19, -4) if family == "sapling" else (12,)
        for left in depths:
            share = round(0.21 + 0.79 * (left / 60 if family == "sapling" else 0.36), 4)
            name = f"{family}/{left}"
            settings(root / name, "sapling_train.py", values, data=data)
            accuracy = start - 0.22 * (1 - share) ** 2 if family == "sapling" else start
            evaluation(root, name, answers(accuracy, questions, seed=left), share, **common)
            throughput(root, name, 23 / share, memory=0.5 * share)
            metrics = {"units_left": left, "training_seconds": 1000.0 + 50 * (60 - left), "scanning_seconds": 300.0}
            if left < 60:
                metrics["dropped"] = [f"block.{number}" for number in range((60 - left) // 2 if left > 12 else 18)]
            runs.write_json(root / name / "train_metrics.json", metrics)
    run("sapling_gptq", "quantize_gptq.py", {"SOURCE_RUN": "sapling/24", "BITS": 4}, 0.2, 0.26, 40, 100)


def drawn(path):
    """Whether a PNG holds a drawing: its size, and that it is not of one colour."""
    image = matplotlib.image.imread(path)
    return min(image.shape[:2]) > 100 and max(image.shape[:2]) < 4000 and image[..., :3].std() > 0.01
