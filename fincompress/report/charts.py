"""Every figure of the project: one hue for each method, one marker and line style for each of its runs."""

from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, PercentFormatter

from fincompress import runs
from fincompress.report.statistics import frontier

# Okabe and Ito's palette: told apart by colour-blind people, and in print.
BLUE, ORANGE, SKY, GREEN, YELLOW, PURPLE, GREY = (
    "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#4D4D4D"
)  # fmt: skip
# Hue of each kind of run (methods.KINDS), and the markers of its runs in turn.
STYLES = {
    "base": (GREY, "X"), "qlora": (BLUE, "s"), "merged": (BLUE, "Dd"), "lora_8bit": (PURPLE, "P"),
    "longer": (BLUE, "pv8"), "quantized": (ORANGE, "^<>"), "sapling": (GREEN, "odsXP*h"),
    "sapling_quantized": (YELLOW, "v^<>ph8"),
    "pruning": (SKY, "dsh^"), "pruning_quantized": (SKY, "v^<>"), "other": (GREY, "*hp"),
}  # fmt: skip
LINES = ("-", "--", ":", "-.")
PANELS = {"share_of_bytes": "size (% of the base model's bytes)",
          "seconds_per_question": "time per question (s, batch 1)",
          "inference_memory_gb": "peak memory of inference (GB)"}  # fmt: skip
STEPS = ("1", "2", "3+")  # columns of accuracy_by_steps
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}


def save(figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and release it."""
    with runs.atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)


def loss_curve(path: Path, curve: list[dict], calibration: list[dict]) -> None:
    """Training loss by step, with the calibration split's loss after each epoch; drops of layers are marked.

    ``curve`` has ``step`` and ``loss``, of SAPLING ``units_left`` too; ``calibration`` has ``step`` and
    ``calibration_nll``; either may be empty. With a teacher the loss is a weighted sum, which has no unit.
    """
    figure, axes = plt.subplots(figsize=(7, 3.5))
    training = pd.DataFrame(curve, columns=["step", "loss", "units_left"])
    axes.plot(training["step"], training["loss"], color=BLUE, linewidth=1.2, label="training")
    if calibration:
        scores = pd.DataFrame(calibration)
        axes.plot(scores["step"], scores["calibration_nll"], "o-", color=ORANGE, label="calibration split")
    drops = training.groupby("units_left", sort=False)["step"].max()[:-1]
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


def styles(rows: list) -> dict[str, dict]:
    """Colour, marker and line style of each ``chart_label`` of some rows."""
    looks: dict[str, dict] = {}
    turns: Counter = Counter()
    for row in rows:
        if row.chart_label not in looks:
            (color, markers), turn = STYLES[row.kind], turns[row.kind]
            marker, line = markers[turn % len(markers)], LINES[turn % len(LINES)]
            looks[row.chart_label] = {"color": color, "marker": marker, "linestyle": line}
            turns[row.kind] += 1
    return looks


def pareto(path: Path, rows: list, title: str) -> None:
    """Execution accuracy of rows (rows.Row) against size, seconds per question and memory.

    Depths of one label are joined; of a mean over seeds these are dots. Rows without a panel's measure are not in it.
    """
    figure, all_axes = plt.subplots(1, len(PANELS), figsize=(13, 6), sharey=True)
    looks, handles = styles(rows), {}
    for axes, (cost, name) in zip(all_axes, PANELS.items(), strict=True):
        axes.set_xlabel(f"← better      {name}")
        axes.yaxis.set_tick_params(labelleft=True)
        measured = pd.DataFrame([vars(row) for row in rows if getattr(row, cost) is not None])
        if measured.empty:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
            axes.set_xticks([])
            continue
        measured = measured.sort_values(cost)
        best = measured[frontier(measured[cost], measured["execution_accuracy"])]
        axes.step(best[cost], best["execution_accuracy"], where="post", color="#B8B8B8", linewidth=3, zorder=1)
        for label, members in measured.groupby("chart_label", sort=False):
            accuracy, look = members["execution_accuracy"], looks[label]
            bars = accuracy - members["execution_accuracy_low"], members["execution_accuracy_high"] - accuracy
            drawn = axes.errorbar(
                members[cost], accuracy, yerr=bars, **look, linewidth=1.2 if len(members) > 1 else 0, elinewidth=0.6,
                markersize=6, markeredgecolor="white", markeredgewidth=0.5, zorder=3,
            )  # fmt: skip
            handles.setdefault(label, drawn)  # the first panel has all points
            for row in members.itertuples():
                accuracies = [seed.execution_accuracy for seed in row.seeds]
                axes.scatter([getattr(row, cost)] * len(accuracies), accuracies, s=5, color=look["color"], zorder=2)
                if row.depth:
                    axes.annotate(
                        f"{row.sublayers_left:.0f}", (getattr(row, cost), row.execution_accuracy), xytext=(6, -8),
                        textcoords="offset points", fontsize=7, zorder=4, color=look["color"],
                        path_effects=[withStroke(linewidth=2, foreground="white")],
                    )  # fmt: skip
        axes.set_xlim(left=0)
    for axis in (all_axes[0].xaxis, all_axes[0].yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    all_axes[0].set_ylabel("execution accuracy (%)      better →")
    figure.suptitle(title, fontsize=10)
    named = [label for label in looks if label in handles]
    figure.legend(
        [handles[label] for label in named], named, loc="outside lower center", ncol=3, frameon=False, fontsize=8,
        title="Bars: 95 % intervals. Grey line: Pareto frontier. Small numbers: sub-layers left, two a block. "
        "Where a recipe has several seeds, their mean; dots: each.",
        title_fontsize=8,
    )  # fmt: skip
    save(figure, path)


def accuracy_by_steps(path: Path, rows: list, title: str) -> None:
    """Execution accuracy of rows by number of steps of the gold program, as shades with the numbers in them.

    Programs of three steps or more are counted together: FinQA has few of them. Seeds of a recipe are added up.
    """
    counts = np.zeros((len(rows), len(STEPS), 2), dtype=int)
    for place, row in enumerate(rows):
        for steps, score in row.steps.items():
            counts[place, min(int(steps), len(STEPS)) - 1] += score["correct"], score["of"]
    shares = counts[:, :, 0] / np.maximum(counts[:, :, 1], 1)
    figure, axes = plt.subplots(figsize=(7, 1.4 + 0.4 * len(rows)))
    axes.imshow(shares, aspect="auto", cmap="cividis", vmin=0, vmax=max(0.01, shares.max()))
    for line, column in np.ndindex(shares.shape):
        correct, of = counts[line, column]
        text = f"{100 * shares[line, column]:.0f} %  ({correct} of {of})" if of else "none"
        color = "black" if shares[line, column] > 0.6 * shares.max() else "white"
        axes.text(column, line, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(rows)), [f"{row.description}\n{row.title}" for row in rows], fontsize=7)
    axes.set_xticks(range(len(STEPS)), STEPS)
    axes.set_xlabel("steps of the gold program")
    axes.set_title(f"Execution accuracy (brighter is better)\n{title}", fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)
