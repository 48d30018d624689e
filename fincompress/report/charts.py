"""Every figure of the project: loss curves, which layers can go, and accuracy against what a model costs."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from fincompress import runs

# Okabe and Ito's palette: told apart by colour-blind people, and in print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#4D4D4D"
# Colour and marker of each series: markers differ too, for prints in grey.
SERIES = {"fine-tuned": (GREY, "s"), "+ GPTQ": (ORANGE, "^"), "SAPLING": (GREEN, "o"), "SAPLING + GPTQ": (BLUE, "D")}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}


def save(figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and release it."""
    with runs.atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)


def loss_curve(path: Path, curve: list[dict], calibration: list[dict]) -> None:
    """Training loss by step, with the calibration split's loss after each epoch; drops of layers are marked.

    ``curve`` has ``step`` and ``loss``, of SAPLING ``layers`` too; ``calibration`` has ``step`` and
    ``calibration_nll``; either may be empty. With a teacher the loss is a weighted sum, which has no unit.
    """
    figure, axes = plt.subplots(figsize=(7, 3.5))
    training = pd.DataFrame(curve, columns=["step", "loss", "layers"])
    axes.plot(training["step"], training["loss"], color=BLUE, linewidth=1.2, label="training")
    if calibration:
        scores = pd.DataFrame(calibration)
        axes.plot(scores["step"], scores["calibration_nll"], "o-", color=ORANGE, label="calibration split")
    drops = training.groupby("layers", sort=False)["step"].max()[:-1]
    for step in drops:
        axes.axvline(step, color=GREEN, linewidth=0.8, linestyle="--")
    name = "optimizer step" + " (dashed: layers dropped)" * bool(len(drops))
    axes.set(yscale="log", xlabel=name, ylabel="loss" + " (nats per target token)" * bool(calibration))
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 4)), major_formatter="{x:g}", minor_formatter="")
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def layer_importance(path: Path, scores: list[dict]) -> None:
    """Heat map of sub-layer against scan: how much calibration NLL (or KL) rises without it; white once it was dropped.

    ``scores`` are the rows of layer_scores.csv. A sub-layer has the value of the best of the units that it belongs to.
    There is no figure of a criterion without a scan.
    """
    frame = pd.DataFrame([row for row in scores if row["purpose"] == "drop" and row.get("nll") is not None])
    if frame.empty:
        return
    frame["rise"] = (frame["nll"] - frame["nll_whole"]).clip(lower=1e-3)
    names = frame["unit"].str.replace(r"block\.(\d+)", r"attention.\1+mlp.\1", regex=True)
    table = frame.assign(layer=names.str.split("+")).explode("layer")
    table = table.pivot_table(index="layer", columns="scan", values="rise", aggfunc="min")
    table = table.sort_index(key=lambda layers: layers.str.extract(r"(\d+)", expand=False).astype(int), kind="stable")
    figure, axes = plt.subplots(figsize=(3 + 0.35 * table.shape[1], 1.5 + 0.14 * len(table)))
    image = axes.imshow(table, aspect="auto", cmap="cividis", norm=LogNorm(1e-3, 10))
    axes.set_yticks(range(len(table)), table.index, fontsize=5)
    axes.set_xticks(range(table.shape[1]), table.columns, fontsize=6)
    axes.set_xlabel("scan", fontsize=8)
    figure.colorbar(image, label="rise in NLL or KL without it (nats per token)")
    save(figure, path)


def scatter(path: Path, rows: pd.DataFrame, cost: str, name: str, label: str) -> None:
    """Accuracy of models against one cost, one marker for each of four series, with labels on the points.

    ``rows`` have ``series``, ``label`` (text beside the point), ``execution_accuracy`` with its interval, and ``cost``,
    a column of which less is better, or more where ``name`` is a speed. Rows without that cost are left out; the thin
    line joins those that no other beats in both.
    """
    rows = rows[rows[cost].notna() & rows["series"].isin(SERIES)].sort_values(cost)
    figure, axes = plt.subplots(figsize=(7, 4.6))
    accuracy = 100 * rows["execution_accuracy"]
    better = -rows[cost] if "tokens/s" in name else rows[cost]
    best = rows[frontier(better, accuracy)]
    axes.plot(best[cost], 100 * best["execution_accuracy"], color="#B0B0B0", linewidth=0.9, zorder=1)
    for series, (color, marker) in SERIES.items():
        members = rows[rows["series"] == series]
        if members.empty:
            continue
        high = 100 * members["execution_accuracy"]
        bars = [high - 100 * members["execution_accuracy_low"], 100 * members["execution_accuracy_high"] - high]
        axes.errorbar(
            members[cost], high, yerr=bars, color=color, marker=marker, linestyle="none", elinewidth=0.8, capsize=2,
            markersize=8, markeredgecolor="white", markeredgewidth=0.6, zorder=3, label=series,
        )  # fmt: skip
    axes.set(xlabel=name, ylabel="execution accuracy (%)")
    axes.margins(x=0.14, y=0.1)
    axes.grid(color="#EEEEEE", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(SERIES))
    colors = [SERIES[series][0] for series in rows["series"]]
    ends = {end: 100 * rows[f"execution_accuracy_{end}"] for end in ("low", "high")}
    place_labels(axes, pd.DataFrame({"x": rows[cost], "y": accuracy, "text": rows[label], "color": colors} | ends))
    save(figure, path)


def place_labels(axes, points: pd.DataFrame) -> None:
    """Write ``text`` in ``color`` beside each point: ``x``, ``y``, with a bar from ``low`` to ``high``."""
    figure = axes.get_figure()
    figure.canvas.draw()
    renderer, taken = figure.canvas.get_renderer(), []
    for point in points.itertuples():
        (x, low), (_, high) = axes.transData.transform([(point.x, point.low), (point.x, point.high)])
        y = axes.transData.transform((point.x, point.y))[1]
        taken += [Bbox.from_bounds(x - 1, low, 2, high - low), Bbox.from_bounds(x - 9, y - 9, 18, 18)]
    sides = ((12, "left"), (-12, "right"))
    places = [(dx, dy, side) for dy in (0, 14, -14, 28, -28) for dx, side in sides]
    for point in points.itertuples():

        def write(dx, dy, side, point=point):
            return axes.annotate(
                point.text, (point.x, point.y), xytext=(dx, dy), textcoords="offset points", ha=side, va="center",
                fontsize=9, color=point.color, zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip

        boxes = []
        for place in places:
            note = write(*place)
            boxes.append(note.get_window_extent(renderer))
            note.remove()
        inside = axes.get_window_extent(renderer)
        covered = [sum(map(box.overlaps, taken)) + 3 * (box.x0 < inside.x0 or box.x1 > inside.x1) for box in boxes]
        best = covered.index(min(covered))
        write(*places[best])
        taken.append(boxes[best])


def frontier(costs, gains) -> list[bool]:
    """Which points no other dominates: none costs at most as much and gains at least as much, one of them strictly."""
    x, y = np.asarray(costs, dtype=float), np.asarray(gains, dtype=float)
    as_good = (x <= x[:, None]) & (y >= y[:, None])
    better = (x < x[:, None]) | (y > y[:, None])
    return list(~(as_good & better).any(axis=1) & ~np.isnan(x))
