"""Every figure of the project."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
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


def layer_importance(path: Path, scores: list[dict], drops: list[dict]) -> None:
    """Heat map of unit against scan: how much worse the calibration NLL is without the unit; dropped ones go dark.

    ``scores`` are the rows of layer_scores.csv, ``drops`` those of trajectory.csv.
    """
    if not scores:  # nothing was dropped
        return
    frame = pd.DataFrame(scores)
    if "nll" in frame and frame["nll"].notna().any():
        frame["value"] = (frame["nll"] - frame["nll_whole"]).clip(lower=1e-3)
        label, scale = "NLL lost without it (nats per token)", matplotlib.colors.LogNorm(1e-3, 10)
    else:
        frame["value"] = frame["score"].rank(pct=True)
        label, scale = "place in the criterion's order", None
    units = sorted(frame["unit"].unique(), key=lambda name: (int(re.search(r"\d+", name)[0]), name))
    table = frame.pivot_table(index="unit", columns="scan", values="value").reindex(units)
    figure, axes = plt.subplots(figsize=(2 + 0.35 * table.shape[1], 1.5 + 0.14 * len(units)))
    axes.set_facecolor("#222222")
    shown = axes.imshow(np.ma.masked_invalid(table.to_numpy()), aspect="auto", cmap="cividis", norm=scale)
    axes.set_yticks(range(len(units)), units, fontsize=5)
    axes.set_xticks(range(table.shape[1]), table.columns, fontsize=6)
    axes.set_xlabel("scan (dark: dropped before it)")
    column = {scan: place for place, scan in enumerate(table.columns)}
    for row in drops:
        if row["scan"] in column:
            axes.plot(column[row["scan"]], units.index(row["dropped"]), "x", color=ORANGE, markersize=4)
    figure.colorbar(shown, label=label)
    save(figure, path)
