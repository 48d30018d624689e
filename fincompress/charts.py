"""Every figure of the project."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from fincompress import runs  # noqa: E402

# Okabe and Ito's palette: told apart by colour-blind people, and in print.
BLUE, ORANGE = "#0072B2", "#D55E00"


def save(figure, path: Path) -> None:
    """Write a figure whole or not at all, and release it."""
    with runs.atomic_path(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=150, bbox_inches="tight")
    plt.close(figure)


def loss_curve(path: Path, curve: list[dict], calibration: list[dict]) -> None:
    """Training loss by step, as logged, with the calibration split's loss after each epoch.

    ``curve`` has ``step`` and ``loss``; ``calibration`` has ``step`` and ``calibration_nll``; either may be empty.
    """
    figure, axes = plt.subplots(figsize=(6, 3.5))
    if curve:
        frame = pd.DataFrame(curve)
        axes.plot(frame["step"], frame["loss"], color=BLUE, linewidth=1.2, label="training")
    if calibration:
        frame = pd.DataFrame(calibration)
        axes.plot(frame["step"], frame["calibration_nll"], "o-", color=ORANGE, label="calibration split")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per target token)")
    if curve or calibration:
        axes.set_yscale("log")
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
