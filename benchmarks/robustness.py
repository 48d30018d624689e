"""Wrong inputs, damaged files, kills and mutated programs, tried on a tiny random model as a person meets them.

Every wrong input has to end with status 2, one line on stderr and nothing left behind, and the corrected command has to
work; a damaged file ends likewise, or does not matter to the script. Every killed command has to end, when it is run
again, with the same weights, predictions and scores as one that nobody killed. No program, however it is mutated, may
raise or take long. Prints a table, and exits with status 1 where one of these fails.

    python benchmarks/robustness.py                     all: about 15 minutes on one core
    python benchmarks/robustness.py --SHARE=0.1 --SEED=3    a tenth of it, drawn by the seed
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fincompress.settings import configure

# -----------------------------------------------------------------------------
SHARE: float = 1.0  # of the wrong inputs, kills and programs that are tried
KILLS: int = 40  # at random moments, over all phases
PROGRAMS: int = 200_000  # mutated programs that are executed
SEED: int = 0  # of what is drawn
# -----------------------------------------------------------------------------
configure(globals())

import hashlib
import itertools
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass

from scripts import run_script, script_globals

from fincompress.finqa import program, synthetic
from fincompress.settings import ENVIRONMENT, constant_types

TRAIN = ("--BATCH_SIZE=4", "--LOGGING_STEPS=1", "--SAVE_STEPS=2", "--LORA_RANK=4", "--EPOCHS=1")
SAPLING = (
    "sapling_train.py", "--START_FROM=qlora_4bit", "--CALIBRATION_EXAMPLES=8", "--DROPS_PER_CYCLE=1",
    "--LOGGING_STEPS=1", "--SAVE_STEPS=2", "--DEPTHS=[0.5]", "--RECOVERY_EPOCHS=1", "--BATCH_SIZE=4",
)  # fmt: skip
# Each phase as it is run once before anything is tried, and the run that it makes.
PHASES = {
    "data": ("preprocess_data.py", "--TRAIN_EXAMPLES=32", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=8",
             "--EVIDENCE_TOKENS=64", "--MAX_PROMPT_TOKENS=200"),
    "qlora_4bit": ("train_qlora_4bit.py", *TRAIN),
    "lora_8bit": ("train_lora_8bit.py", *TRAIN),
    "gptq_4bit": ("quantize_gptq.py", "--CALIBRATION_EXAMPLES=8"),
    "sapling": SAPLING,
    "base": ("evaluate.py", "--RUN=base", "--SPLIT=test", "--MAX_NEW_TOKENS=8"),
}  # fmt: skip
LAST = {"predict.py": ("predict.py", "--TOKENS=300"), "plot_pareto.py": ("plot_pareto.py", "--README=None"),
        "benchmark_throughput.py": ("benchmark_throughput.py", "--RUNS=['qlora_4bit']", "--ROUNDS=1",
                                    "--NEW_TOKENS=2")}  # fmt: skip
COMMANDS = {command[0]: command for command in PHASES.values()} | LAST
KILLED = PHASES | {"benchmark": LAST["benchmark_throughput.py"], "report": LAST["plot_pareto.py"]}
CHOICES = ("AUGMENT", "CRITERION", "DROP_UNIT", "EVIDENCE", "METHOD",
           "REPORT_TO", "SPLIT", "UPDATE", "BASE_MODEL")  # fmt: skip
SOURCES = ("DATA_RUN", "SOURCE_RUN", "START_FROM", "TEACHER")  # constants that name a run
NAMES = ("", ".", "..", "../a", ".hidden", "a/../b", "published", "a\nb", "x" * 101, "base_a")
DAMAGES = {"empty": b"", "half": None, "a list": b"[]", "no keys": b"{}", "binary": bytes(range(256))}


@dataclass
class Case:
    """One thing that is wrong: arguments of a script, or a file of a run before the script reads it."""

    script: str
    arguments: tuple[str, ...] = ()
    file: str | None = None
    damage: str | None = None

    def __str__(self) -> str:
        shown = " ".join(argument[:40] for argument in self.arguments)
        return f"{self.script} {shown}" if not self.file else f"{self.script}, {self.file}: {self.damage}"


def main() -> None:
    draw = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        seconds = make_runs(good)
        failures = [
            *try_wrong_inputs(good, sample(draw, list(wrong_inputs()))),
            *try_kills(good, seconds, draw, max(1, round(KILLS * SHARE))),
            *try_programs(draw, round(PROGRAMS * SHARE)),
        ]
    print("\nall passed" if not failures else f"\n{len(failures)} failed:\n" + "\n".join(failures))
    raise SystemExit(bool(failures))


def sample(draw: random.Random, cases: list) -> list:
    return sorted(draw.sample(cases, max(1, round(len(cases) * SHARE))), key=str)


def run(results: Path, *command: str, **options):
    places = {"RESULTS_DIR": results, "DATA_DIR": results.parent / "finqa", "BASE_MODEL": "shape:tiny"}
    return run_script(*command, **places, **options)


def make_runs(good: Path) -> dict[str, float]:
    """Run everything that is killed later once; returns the seconds of each."""
    data, seconds = good.parent / "finqa", {}
    data.mkdir()
    for split in ("train", "dev", "test"):
        (data / f"{split}.json").write_text(json.dumps(synthetic.generate(split, 60)))
    for name, command in KILLED.items():
        began = time.perf_counter()
        done = run(good, *command)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        seconds[name] = time.perf_counter() - began
    return seconds


# --- wrong inputs -----------------------------------------------------------------------------------------------------


def wrong_inputs():
    """Every case: values by the type of each constant, choices, names and runs, then damaged files."""
    for script in COMMANDS:
        for arguments in (("--NOPE=1",), ("nope",), ("--",), ("--RUN",)):
            yield Case(script, arguments)
        for name, types in constant_types(script_globals(script)).items():
            own = script == "benchmark_throughput.py" and name in (*SOURCES, "BASE_MODEL")  # its RUNS bring theirs
            if name in CHOICES and not own:
                yield Case(script, (f"--{name}=nonsense",))
            if name in SOURCES and not own:
                yield from (Case(script, (f"--{name}={value}",)) for value in ("nothing", "../a"))
            if name == "RUN" and script != "evaluate.py":
                yield from (Case(script, (f"--RUN={value}",)) for value in NAMES)
            if name == "RUNS":
                yield from (Case(script, (f"--RUNS={value}",)) for value in ("['nothing']", "[1]", "["))
            if str in types or name in ENVIRONMENT:
                continue
            yield Case(script, (f"--{name}=nonsense",))
            if {int, float} & set(types):
                yield from (Case(script, (f"--{name}={value}",)) for value in ("1e999", "nan", "10**30", "-7"))
    reads = {
        "train_qlora_4bit.py": ("data/settings.json", "data/data_report.json", "data/train/state.json"),
        "quantize_gptq.py": ("qlora_4bit/settings.json", "qlora_4bit/merged/config.json",
                             "qlora_4bit/merged/model.safetensors", "qlora_4bit/merged/tokenizer.json"),
        "sapling_train.py": ("qlora_4bit/settings.json", "qlora_4bit/merged/model.safetensors",
                             "qlora_4bit/merged/config.json", "data/data_report.json"),
        "evaluate.py": ("data/settings.json", "base_models/shape-tiny/config.json", "gptq_4bit/settings.json",
                        "base_models/shape-tiny/model.safetensors", "qlora_4bit/train_metrics.json"),
        "plot_pareto.py": ("base/eval_test.json", "base/settings.json", "base/predictions_test.jsonl"),
    }  # fmt: skip
    for script, files in reads.items():
        yield from (Case(script, (), *pair) for pair in itertools.product(files, DAMAGES))


def try_wrong_inputs(good: Path, cases: list[Case]):
    """Print a line for each case; yields those that did not end as they should."""
    print(f"{len(cases)} wrong inputs\nstatus  lines  left  corrected  input")
    results = good.parent / "results"
    works: dict[str, bool] = {}  # whether the corrected command does; where nothing was left behind, once a script
    for case in cases:
        shutil.rmtree(results, ignore_errors=True)
        shutil.copytree(good, results)
        if case.file:
            damage(results / case.file, case.damage)
        before = contents(results)
        fresh = () if case.script in LAST or any("--RUN=" in text for text in case.arguments) else ("--RUN=fresh",)
        if case.script == "evaluate.py":  # another run's name is no new run there
            fresh = ("--RUN=base_fresh",)
        done = run(results, *COMMANDS[case.script], *fresh, *case.arguments)
        lines = done.stderr.count("\n")
        left = sorted(set(contents(results).items()) - set(before.items()))
        # What is damaged may not matter to the script; then it does its work.
        refused = done.returncode == 2 and lines == 1 and done.stderr.startswith("error: ") and not left
        well = refused or (bool(case.file) and done.returncode == 0)
        if case.file:
            shutil.copy(good / case.file, results / case.file)
        if case.file or case.script not in works:
            works[case.script] = run(results, *COMMANDS[case.script], *fresh).returncode == 0
        corrected = "yes" if works[case.script] else "NO"
        print(f"{done.returncode:>6}{lines:>7}{len(left):>6}  {corrected:<11}{case}", flush=True)
        if not well or corrected == "NO":
            said = done.stderr.strip().splitlines()[-1:]
            yield f"{case}: status {done.returncode}, {lines} lines, left {left[:3]}, {' '.join(said)}"


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if DAMAGES[how] is None else DAMAGES[how])


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file by its name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- kills ------------------------------------------------------------------------------------------------------------


def try_kills(good: Path, seconds: dict[str, float], draw: random.Random, count: int):
    """Kill phases at random moments and run them again; yields those from which something else came out."""
    print(f"\n{count} kills\nphase          after s  same")
    names = draw.sample(list(KILLED), len(KILLED))
    for name in itertools.islice(itertools.cycle(names), count):
        results = good.parent / "killed"
        shutil.rmtree(results, ignore_errors=True)
        shutil.copytree(good, results)
        shutil.rmtree(results / name, ignore_errors=True)
        after = draw.uniform(0.02, 0.95) * seconds[name]
        run(results, *KILLED[name], seconds=after)
        done = run(results, *KILLED[name])
        same = done.returncode == 0 and outcome(results) == outcome(good)
        print(f"{name:<13}{after:>8.2f}  {'yes' if same else 'NO'}", flush=True)
        if not same:
            said = " ".join(done.stderr.strip().splitlines()[-1:])
            yield f"{name} killed after {after:.2f} s: {said or 'another result'}"


def outcome(folder: Path) -> dict[str, str]:
    """What decides: weights, predictions and rows, without seconds and gigabytes, and names of half-written files."""
    wanted = (".safetensors", ".jsonl", ".arrow")
    return {name: digest for name, digest in contents(folder).items() if name.endswith(wanted) or ".partial" in name}


# --- programs ---------------------------------------------------------------------------------------------------------


def try_programs(draw: random.Random, count: int):
    """Execute mutated programs; yields those that raise or take longer than a second."""
    examples = [example for split in ("train", "dev") for example in synthetic.generate(split, 200)]
    pieces = ["(", ")", ",", "#0", "#9", "const_1", "const_m1", "1e308", "-0", "%", "nan", "\ud800", "table_max(",
              "exp(", "divide(", "none", "9" * 400, " "]  # fmt: skip
    ends: Counter = Counter()
    for _ in range(count):
        example = draw.choice(examples)
        text = example["qa"]["program"]
        for _ in range(draw.randint(1, 6)):
            at, width = draw.randrange(len(text) + 1), draw.choice((0, 0, 1, 3, 9))
            text = text[:at] + draw.choice(pieces) + text[at + width :]
        began = time.perf_counter()
        try:
            value = program.execute(program.tokenize(text), example["table"])
            ends["invalid" if value is None else "executed"] += 1
        except Exception as error:  # whatever it is, it is what this looks for
            yield f"{text!r} raised {error!r}"
        if time.perf_counter() - began > 1:
            yield f"{text!r} took {time.perf_counter() - began:.1f} s"
    print(f"\n{count} mutated programs: {dict(ends)}")


if __name__ == "__main__":
    main()
