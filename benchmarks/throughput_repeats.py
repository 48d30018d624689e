"""Whether the benchmark agrees with itself: two calls of benchmark_throughput.py, and how far their ratios are apart.

python benchmarks/throughput_repeats.py --RUNS="['qlora_4bit/merged', 'gptq_4bit', 'sapling/11']"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RUNS: list[str] = ["qlora_4bit/merged", "gptq_4bit"]  # finished runs, measured beside the base model
RESULTS_DIR: str = "results"  # where they lie
ROUNDS: int = 10  # of each call
NEW_TOKENS: int = 16  # decoded in a round
BATCH_SIZES: list[int] = []  # beside batch 1
# -----------------------------------------------------------------------------
configure(globals())

import json
import subprocess

from fincompress import provenance, runs
from fincompress.errors import UserError, run_script

CALLS = 2  # of the benchmark
SCRIPT = Path(__file__).resolve().parents[1] / "benchmark_throughput.py"


def main() -> None:
    calls, minutes, bandwidths = [], [], []
    for number in range(CALLS):
        overrides = {"RUNS": RUNS, "RESULTS_DIR": RESULTS_DIR, "ROUNDS": ROUNDS,
                     "NEW_TOKENS": NEW_TOKENS, "BATCH_SIZES": BATCH_SIZES}  # fmt: skip
        clock = runs.Stopwatch()
        command = [sys.executable, SCRIPT, *(f"--{name}={value}" for name, value in overrides.items())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"call {number + 1} of the benchmark failed")
        last = json.loads(done.stdout.splitlines()[-1])
        calls.append(last["runs"])
        bandwidths.append(f"{last['bandwidth_gb_per_s']:.0f}")
        minutes.append(f"{clock.seconds() / 60:.1f}")
    hardware = provenance.hardware()
    print(f"\n{hardware.get('gpu', hardware['cpu'])}, {hardware['cores']} cores; commit {provenance.code_version()}")
    print(
        f"{'run':<28}{'ratio to the base model':<26}" + "".join(f"{f'call {n + 1}':>9}" for n in range(CALLS)), end=""
    )
    print(f"{'apart':>9}")
    distances = []
    for run in RUNS:
        for name in ("decode_ratio", "prefill_ratio"):
            ratios = [call.get(run, {}).get(name) for call in calls]
            if None in ratios:
                print(f"{run:<28}{name:<26}{'not measured':>{9 * CALLS}}")
                continue
            shown = "".join(f"{ratio:>9.3f}" for ratio in ratios)
            apart = max(ratios) / min(ratios) - 1
            distances.append(apart)
            print(f"{run:<28}{name:<26}{shown}{apart:>9.1%}")
    furthest = f"{max(distances):.1%}" if distances else "nothing was measured twice: end other programs"
    print(f"furthest apart: {furthest}; minutes of each call, {1 + len(RUNS)} models: {', '.join(minutes)}")
    print(f"memory, GB/s at the start of each call: {', '.join(bandwidths)}")


if __name__ == "__main__":
    run_script(main)
