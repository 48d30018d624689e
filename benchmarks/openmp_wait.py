"""What OpenMP's waiting costs: LoRA training steps of SmolLM2 with one process and with two, under five policies.

Prints tokens/s of each process and the ratio to OpenMP's default, which the scripts leave as it is, taken in one run.
Takes about seven minutes on two cores. Where two jobs share the cores, ``OMP_WAIT_POLICY=passive`` helps both.

    python benchmarks/openmp_wait.py
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

POLICIES = {
    "OpenMP's default": {},
    "passive, sleep at once": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "passive, spin 500 first": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "500"},
    "passive, spin 2,000 first": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"},
    "passive, spin 6,000 first": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "6000"},
}
BATCH, TOKENS, STEPS = 8, 205, 4  # a batch as FinQA at 160 evidence tokens makes it


def main() -> None:
    print(f"{'policy':<28}{'alone':>10}{'two at once, each':>20}   tokens/s")
    default = None
    for name, policy in POLICIES.items():
        alone = measure(policy, 1)[0]
        both = min(measure(policy, 2))
        default = default or (alone, both)
        print(
            f"{name:<28}{alone:>10.0f}{both:>20.0f}   x{alone / default[0]:.2f}, x{both / default[1]:.2f}", flush=True
        )


def measure(policy: dict[str, str], processes: int) -> list[float]:
    """Tokens/s of each of so many processes that train at once, each with as many threads as there are cores."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= policy | {"OMP_NUM_THREADS": str(os.cpu_count())}
    command = [sys.executable, __file__, "train"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return [float(process.communicate()[0].split()[-1]) for process in running]


def train() -> None:
    """Print the tokens/s of a few training steps, the first one left out."""
    import time

    from fincompress.settings import quiet_imports

    quiet_imports()
    import torch
    from peft import LoraConfig, get_peft_model

    from fincompress import models
    from fincompress.training import loss

    models.quiet_libraries()
    path = models.base_model_path(models.EMBEDDED, os.environ.get("RESULTS_DIR", "results"))
    model = models.load_base(path, "nf4", torch.device("cpu"), torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    models.compute_in_model_dtype(model)
    ids = torch.randint(100, 40000, (BATCH, TOKENS)).tolist()
    batch = loss.TargetCollator(0)([{"input_ids": row, "prompt_tokens": TOKENS - 20} for row in ids])
    for step in range(STEPS + 1):
        if step == 1:
            began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, labels = loss.target_logits(model, batch)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()).backward()
        model.zero_grad()
    print(STEPS * BATCH * TOKENS / (time.perf_counter() - began))


if __name__ == "__main__":
    train() if sys.argv[1:] == ["train"] else main()
