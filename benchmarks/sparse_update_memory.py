"""Peak memory of full fine-tuning against SAPLING's sparse update (r = 1/4), each in a fresh process.

Prints the peak of both, what the optimizer state alone saves (8 bytes a parameter that is not trained), and what
gradients and float32 copies save beside it. A few steps of SmolLM2 on random tokens: memory does not ask what they say.

    python benchmarks/sparse_update_memory.py
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fincompress.settings import configure  # noqa: E402

# -----------------------------------------------------------------------------
RESULTS_DIR: str = "results"  # the embedded model is converted into base_models/ in here, once
RATIO: float | None = None  # set by the script for its own subprocesses: share of sub-layers that is trained
BATCH_SIZE: int = 8  # sequences at once
TOKENS: int = 200  # tokens a sequence
STEPS: int = 4  # optimizer steps
# -----------------------------------------------------------------------------
configure(globals())
QUARTER: float = 0.25

import torch  # noqa: E402

from fincompress import memory, models  # noqa: E402
from fincompress.depth import sublayers as sub  # noqa: E402
from fincompress.errors import UserError, run_script, why_it_ended  # noqa: E402
from fincompress.training import loss  # noqa: E402


def main() -> None:
    if RATIO is not None:
        train(RATIO)
        return
    found = {}
    for ratio in (1.0, QUARTER):
        command = [sys.executable, __file__, *sys.argv[1:], f"--RATIO={ratio}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"r = {ratio} failed ({why_it_ended(done.returncode, done.stderr)})")
        *_, peak, trained = done.stdout.split()
        found[ratio] = float(peak), int(trained)
        print(f"r = {ratio:<5} {found[ratio][1] / 1e6:6.1f} M trained, peak {found[ratio][0]:.2f} GB")
    saved, untrained = found[1.0][0] - found[QUARTER][0], found[1.0][1] - found[QUARTER][1]
    print(f"saved {saved:.2f} GB; optimizer state of what is not trained: {8 * untrained / 1e9:.2f} GB, ", end="")
    print(f"its gradients and float32 copies: {6 * untrained / 1e9:.2f} GB")


def train(ratio: float) -> None:
    """A few steps as sapling_train.py makes them: what is trained in float32, what is frozen in 16 bits, autocast."""
    models.quiet_libraries()
    device = models.pick_device()
    dtype, _ = models.pick_dtype(device)
    path = models.base_model_path(models.EMBEDDED, RESULTS_DIR)
    model = models.load_base(path, "auto", device, dtype).train()
    every = sub.sublayers(model)
    # Attentions and MLPs alike: of each eight in a row the first (an attention) and the fourth (an MLP).
    chosen = [one for place, one in enumerate(every) if ratio == 1 or place % 8 in (0, 3)]
    model.requires_grad_(False)
    ends = [model.model.embed_tokens.weight, model.model.norm.weight]
    for parameter in [p for one in chosen for p in sub.parameters(model, one)] + ends:
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)  # as the Trainer is told to on a CPU
    ids = torch.randint(100, 40000, (BATCH_SIZE, TOKENS)).tolist()
    batch = loss.TargetCollator(0)([{"input_ids": row, "prompt_tokens": TOKENS - 20} for row in ids])
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    for _ in range(STEPS):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits, labels = loss.target_logits(model, batch)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100).backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = memory.peak_memory_gb()
    print(peak.get("vram_allocated", peak["rss"]), memory.count_parameters(trained))


if __name__ == "__main__":
    run_script(main)
