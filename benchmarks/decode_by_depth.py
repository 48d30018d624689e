"""Decoding at batch 1 by depth: SmolLM2 dense and with blocks taken out, rounds interleaved, ratios round by round.

Speed does not depend on which blocks go, so no training is needed. The ideal is the ratio of bytes: at batch 1 a token
reads every weight once.

    python benchmarks/decode_by_depth.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fincompress.settings import configure  # noqa: E402

# -----------------------------------------------------------------------------
RESULTS_DIR = "results"  # the embedded model is converted into base_models/ in here, once
BLOCKS = [30, 20, 11]  # depths to compare; the first is the dense model's
ROUNDS = 7  # rounds, each of which times every depth once
NEW_TOKENS = 48  # tokens decoded in a round, after a prompt of 64
# -----------------------------------------------------------------------------
configure(globals())

import statistics  # noqa: E402

from fincompress import generation, models, sapling  # noqa: E402
from fincompress.depth import repack  # noqa: E402
from fincompress.depth import sublayers as sub  # noqa: E402
from fincompress.errors import run_script  # noqa: E402


def main() -> None:
    models.quiet_libraries()
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    path = models.base_model_path(models.EMBEDDED, RESULTS_DIR)
    tokenizer = models.load_tokenizer(path)
    kept = {}
    for blocks in BLOCKS:
        model = models.load_base(path, "auto", device, dtype)
        sizes = sapling.parameter_sizes(model.config)
        full = repack.checkpoint_parameters(model, sizes)
        units = sub.units(model, "block")
        sub.remove(model, *(one for unit in units[blocks:] for one in unit))
        kept[blocks] = repack.packed_model(model), repack.checkpoint_parameters(model, sizes) / full
    times: dict[int, list[float]] = {blocks: [] for blocks in BLOCKS}
    for _ in range(ROUNDS):
        for blocks, (model, _) in kept.items():
            times[blocks].append(generation.decode_latency_ms(model, tokenizer, NEW_TOKENS, rounds=1))
    print(f"{models.EMBEDDED}, batch 1, {device.type}, {reason}")
    print(f"{'blocks':>6}{'share of bytes':>16}{'ms a token':>12}{'faster than dense':>19}{'ideal by bytes':>16}")
    for blocks, (_, share) in kept.items():
        ratios = [dense / this for dense, this in zip(times[BLOCKS[0]], times[blocks], strict=True)]
        print(
            f"{blocks:>6}{share:>16.1%}{statistics.median(times[blocks]):>12.1f}{statistics.median(ratios):>19.2f}"
            f"{1 / share:>16.2f}"
        )


if __name__ == "__main__":
    run_script(main)
