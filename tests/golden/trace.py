"""Every phase on the embedded model with fixed small settings: losses, drops, sizes, and the programs it writes.

    python tests/golden/trace.py            compares with trace.json and says what differs
    python tests/golden/trace.py --record   writes trace.json

Takes about ten minutes on two cores. A change of the code that should change no result leaves the trace as it is.
Another processor rounds otherwise and trains other models: record on the machine that you compare on.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LORA = ["--EPOCHS=1", "--LEARNING_RATE=1e-3", "--LOGGING_STEPS=5"]
COMMANDS = [
    ["preprocess_data.py", "--TRAIN_EXAMPLES=320", "--CALIBRATION_EXAMPLES=32", "--EVAL_EXAMPLES=50"],
    ["train_qlora_4bit.py", *LORA],
    ["train_lora_8bit.py", "--MAX_STEPS=10", *LORA[1:]],
    ["quantize_gptq.py", "--CALIBRATION_EXAMPLES=16"],
    ["sapling_train.py", "--DEPTHS=[25,20]", "--RECOVERY_EPOCHS=0.4", "--CALIBRATION_EXAMPLES=32",
     "--PATCH_EXAMPLES=16", "--LOGGING_STEPS=5"],
    *(["evaluate.py", f"--RUN={run}", "--SPLIT=dev"] for run in ("qlora_4bit/merged", "gptq_4bit", "sapling")),
]  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            print(*command, flush=True)
            places = ["--BASE_MODEL=smollm2-135m", f"--RESULTS_DIR={folder}", "--DATA_DIR=synthetic"]
            known = (ROOT / command[0]).read_text()
            given = [place for place in places if f"\n{place[2:].partition('=')[0]}: " in known]
            subprocess.run([sys.executable, ROOT / command[0], *command[1:], *given], check=True, cwd=ROOT)
        trace = collect(Path(folder))
    path = HERE / "trace.json"
    if "--record" in sys.argv:
        path.write_text(json.dumps(trace, indent=1, ensure_ascii=False) + "\n")
        return
    differing = compare(json.loads(path.read_text()), trace)
    print("\n".join(differing) or "the same trace")
    raise SystemExit(bool(differing))


def collect(root: Path) -> dict:
    """What a rewrite must not change, by the run and the name of what it is."""
    trace = {}
    for path in sorted(root.rglob("loss_curve.csv")):
        rows = csv.DictReader(path.read_text().splitlines())
        trace[f"{path.parent.relative_to(root)} losses"] = [float(row["loss"]) for row in rows]
    for path in sorted(root.rglob("trajectory.csv")):
        rows = csv.DictReader(path.read_text().splitlines())
        trace[f"{path.parent.relative_to(root)} drops"] = [row["dropped"] for row in rows]
    for path in sorted(root.rglob("predictions_dev.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        trace[f"{path.parent.relative_to(root)} programs"] = [row["output"] for row in rows]
    for path in sorted(root.rglob("eval_dev.json")):
        record = json.loads(path.read_text())
        trace[f"{path.parent.relative_to(root)} size_gb"] = record["size_gb"]
        trace[f"{path.parent.relative_to(root)} accuracy"] = record["execution_accuracy"]["accuracy"]
    return trace


def compare(before: dict, now: dict) -> list[str]:
    """A line for each thing that differs."""
    lines = [f"{name}: gone" for name in before if name not in now] + [
        f"{name}: new" for name in now if name not in before
    ]
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            lines.append(f"{name}: {before[name]} -> {now[name]}")
    return sorted(lines)


if __name__ == "__main__":
    main()
