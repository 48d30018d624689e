"""What a step of AdamW costs on a CPU, one tensor after another or fused, for what LoRA and SAPLING train of SmolLM2.

    python benchmarks/optimizer_step.py

A training step of the recipes takes about a second on two cores: adapters are 420 small tensors, and one after another
they are updated in a tenth of a millisecond each. Both compute the same, up to the order of floating-point operations.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fincompress.settings import configure  # noqa: E402

# -----------------------------------------------------------------------------
ROUNDS = 5  # steps of each, in turn; the median counts
# -----------------------------------------------------------------------------
configure(globals())

import statistics  # noqa: E402
import time  # noqa: E402

import torch  # noqa: E402

WIDTHS = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]  # of a block
TRAINED = {
    "LoRA of rank 32 on 30 blocks": [shape for out, width in 30 * WIDTHS for shape in ((32, width), (out, 32))],
    "a quarter of the blocks and the embeddings": [(49152, 576), *(8 * WIDTHS)],
}


def main() -> None:
    for name, shapes in TRAINED.items():
        optimizers = {way: adamw(shapes, fused=way == "fused") for way in ("one by one", "fused")}
        seconds: dict[str, list[float]] = {way: [] for way in optimizers}
        for _ in range(ROUNDS + 1):
            for way, optimizer in optimizers.items():
                began = time.perf_counter()
                optimizer.step()
                seconds[way].append(time.perf_counter() - began)
        times = {way: statistics.median(found[1:]) for way, found in seconds.items()}
        shown = ", ".join(f"{way} {1e3 * found:.1f} ms" for way, found in times.items())
        print(f"{name}: {shown}: {times['one by one'] / times['fused']:.1f} times faster")


def adamw(shapes: list[tuple[int, int]], fused: bool) -> torch.optim.Optimizer:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return torch.optim.AdamW(parameters, fused=fused)


if __name__ == "__main__":
    main()
