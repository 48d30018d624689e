"""Every figure of the project: one hue for each method, one marker and line style for each of its runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402

from fincompress import runs  # noqa: E402
from fincompress.report.statistics import frontier  # noqa: E402

# Okabe and Ito's palette: told apart by colour-blind people, and in print.
BLUE, ORANGE, SKY, GREEN, YELLOW, PURPLE, GREY = (
    "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#4D4D4D"
)  # fmt: skip
# Hue of each kind of run (methods.KINDS), and the markers of its runs in turn.
STYLES = {
    "base": (GREY, "X"), "qlora": (BLUE, "s"), "merged": (BLUE, "D"), "lora_8bit": (PURPLE, "P"), "longer": (BLUE, "p"),
    "quantized": (ORANGE, "^<>"), "sapling": (GREEN, "oHd8"), "sapling_quantized": (YELLOW, "v^<>"),
    "pruning": (SKY, "dsh^"), "pruning_quantized": (SKY, "v^<>"), "other": (GREY, "*hp"),
}  # fmt: skip
LINES = ("-", "--", ":", "-.")
STEPS = ("1", "2", "3+")  # columns of accuracy_by_steps
plt.rcParams |= {"svg.hashsalt": "fincompress", "axes.spines.top": False, "axes.spines.right": False,
                 "figure.constrained_layout.use": True}  # fmt: skip


def save(figure, path: Path) -> None:
    """Write a figure whole or not at all, the same bytes each time, and release it."""
    with runs.atomic_path(path) as partial:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(partial, format=path.suffix[1:], dpi=150, metadata=metadata)
    plt.close(figure)


def styles(rows: list) -> dict[str, dict]:
    """Colour, marker and line style of each label of some rows."""
    found: dict[str, dict] = {}
    turns = {kind: zip(itertools.cycle(markers), itertools.cycle(LINES), strict=False)
             for kind, (_, markers) in STYLES.items()}  # fmt: skip
    for row in rows:
        if row.label not in found:
            marker, line = next(turns[row.kind])
            found[row.label] = {"color": STYLES[row.kind][0], "marker": marker, "linestyle": line}
    return found


def loss_curve(path: Path, curve: list[dict], calibration: list[dict]) -> None:
    """Training loss by step, with the calibration split's loss after each epoch; drops of layers are marked.

    ``curve`` has ``step`` and ``loss``, of SAPLING ``units_left`` too; ``calibration`` has ``step`` and
    ``calibration_nll``; either may be empty.
    """
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for rows, name, color, form in ((curve, "loss", BLUE, "-"), (calibration, "calibration_nll", ORANGE, "o-")):
        if rows:
            frame = pd.DataFrame(rows)
            label = "training" if name == "loss" else "calibration split"
            axes.plot(frame["step"], frame[name], form, color=color, linewidth=1.2, label=label)
            axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per target token)")
    if curve and "units_left" in curve[0]:
        depths = [list(group) for _, group in itertools.groupby(curve, key=lambda row: row["units_left"])]
        ends = [group[-1]["step"] for group in depths]
        for place, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if place:
                label = "layers dropped" if place == 1 else None
                axes.axvline(start, color=GREEN, linewidth=0.8, linestyle="--", label=label)
            if end - start > 0.05 * ends[-1]:
                text, middle = f"{depths[place][0]['units_left']} units", (start + end) / 2
                axes.text(
                    middle, 1.02, text, transform=axes.get_xaxis_transform(), ha="center", fontsize=7, color=GREEN
                )
    if curve or calibration:
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def layer_importance(path: Path, scores: list[dict], drops: list[dict]) -> None:
    """Heat map of layer against scan: how much worse the calibration NLL is without it; dropped ones go dark.

    ``scores`` are the rows of layer_scores.csv, ``drops`` those of trajectory.csv. A pair of neighbours is scored as
    one: each of its two sub-layers shows the better of the pairs that it could go with.
    """
    frame = pd.DataFrame([row for row in scores if row["purpose"] == "drop"])
    if not len(frame):  # nothing was dropped
        return
    if "nll" in frame and frame["nll"].notna().any():
        frame["value"] = (frame["nll"] - frame["nll_whole"]).clip(lower=1e-3)
        label, scale = "rise in NLL without it (nats per token)", matplotlib.colors.LogNorm(1e-3, 10)
    else:
        frame["value"] = frame.groupby("scan").cumcount() + 1  # rows stand in the order of dropping
        label, scale = "place in the criterion's order", None
    pairs = frame["unit"].str.contains("+", regex=False).any()  # then a block is a pair too
    frame["layer"] = frame["unit"].map(lambda unit: _parts(unit) if pairs else [unit])
    table = frame.explode("layer").pivot_table(index="layer", columns="scan", values="value", aggfunc="min")
    layers = sorted(table.index, key=lambda name: (int(name.partition(".")[2]), name))
    table = table.reindex(layers)
    figure, axes = plt.subplots(figsize=(3 + 0.35 * table.shape[1], 1.5 + 0.14 * len(layers)))
    axes.set_facecolor("#222222")
    image = axes.imshow(np.ma.masked_invalid(table.to_numpy()), aspect="auto", cmap="cividis", norm=scale)
    axes.set_yticks(range(len(layers)), layers, fontsize=5)
    axes.set_xticks(range(table.shape[1]), table.columns, fontsize=6)
    axes.set_xlabel("scan\ndark: dropped before it\ncross: dropped after it", fontsize=8)
    column = {scan: place for place, scan in enumerate(table.columns)}
    for row in drops:
        for layer in _parts(row["dropped"]) if pairs else [row["dropped"]]:
            if row["scan"] in column and layer in layers:
                axes.plot(column[row["scan"]], layers.index(layer), "x", color=ORANGE, markersize=4)
    figure.colorbar(image, label=label)
    save(figure, path)


def _parts(unit: str) -> list[str]:
    """The sub-layers of a unit's name: ``block.3`` is attention and MLP."""
    kind, _, number = unit.partition(".")
    return [f"attention.{number}", f"mlp.{number}"] if kind == "block" else unit.split("+")


def pareto(path: Path, rows: list, title: str) -> None:
    """Execution accuracy of rows (rows.Row) against size, seconds per question and memory, as ``path`` and ``.svg``.

    Checkpoints of one run are joined. Runs without a panel's measure are not in that panel.
    """
    panels = {
        "size (% of the base model's bytes)": lambda row: row.share_of_bytes and 100 * row.share_of_bytes,
        "time per question (s, batch 1)": lambda row: row.seconds_per_question,
        "peak memory of inference (GB)": lambda row: row.memory_gb,
    }
    figure, all_axes = plt.subplots(1, 3, figsize=(13, 6), sharey=True)
    looks, handles = styles(rows), {}
    for place, (axes, (name, cost)) in enumerate(zip(all_axes, panels.items(), strict=True)):
        axes.set_xlabel(f"← better      {name}")
        axes.yaxis.set_tick_params(labelleft=True)
        measured = [(cost(row), 100 * row.execution["accuracy"], row) for row in rows if cost(row) is not None]
        if not measured:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
            axes.set_xticks([])
            continue
        flags = frontier([point[:2] for point in measured])
        best = sorted({point[:2] for point, flag in zip(measured, flags, strict=True) if flag})
        axes.step(*zip(*best, strict=True), where="post", color="#B8B8B8", linewidth=3, zorder=1)
        for label, look in looks.items():
            members = sorted((point for point in measured if point[2].label == label), key=lambda point: point[0])
            if not members:
                continue
            xs, ys = [point[0] for point in members], [point[1] for point in members]
            ends = np.array([row.execution["interval"] for *_, row in members]).T * 100
            bars = np.abs(ends - ys)
            handles[label] = axes.errorbar(
                xs, ys, yerr=bars, **look, linewidth=1.2 if len(members) > 1 else 0, elinewidth=0.6, markersize=6,
                markeredgecolor="white", markeredgewidth=0.5, zorder=3,
            )  # fmt: skip
            for x, y, row in members:
                if row.sublayers_left and place and "quantized" not in row.kind:
                    axes.annotate(
                        row.sublayers_left, (x, y), xytext=(6, -8), textcoords="offset points", fontsize=7, zorder=4,
                        color=look["color"], path_effects=[withStroke(linewidth=2, foreground="white")],
                    )  # fmt: skip
        axes.set_xlim(left=0)
        if not place:
            _mark_depths(axes, measured)
    all_axes[0].set_ylabel("execution accuracy (%)      better →")
    figure.suptitle(title, fontsize=10)
    figure.legend(
        [handles[label] for label in looks if label in handles], [label for label in looks if label in handles],
        loc="outside lower center", ncol=3, frameon=False, fontsize=8,
        title="Bars: 95 % intervals. Grey line: Pareto frontier. Small numbers: sub-layers left.", title_fontsize=8,
    )  # fmt: skip
    for target in (path, path.with_suffix(".svg")):
        save(figure, target)


def _mark_depths(axes, measured: list[tuple]) -> None:
    """Sub-layers left on top of the panel of sizes, where every run of one depth has one size."""
    depths = {round(x, 1): row for x, _, row in measured if row.sublayers_left and "quantized" not in row.kind}
    kept: list[float] = []
    for x in sorted(depths):
        if not kept or x - kept[-1] > 4:
            kept.append(x)
    if kept:
        top = axes.secondary_xaxis("top")
        top.set_xticks(kept, [str(depths[x].sublayers_left) for x in kept], fontsize=7)
        total = depths[kept[0]].sublayers
        top.set_xlabel("sub-layers left" + (f" of {total}" if total else ""), fontsize=8)


def loss_curves(path: Path, rows: list, curves: dict[str, list[dict]], title: str) -> None:
    """Training loss of several runs: ``curves`` has the rows of loss_curve.csv by label of one of ``rows``.

    Losses are smoothed over five points, against a share of the run's own steps: recipes differ in their number.
    """
    figure, axes = plt.subplots(figsize=(8, 5))
    looks = styles(rows)
    for label, curve in curves.items():
        frame = pd.DataFrame(curve)
        losses = frame["loss"].where((frame["loss"] > 0) & np.isfinite(frame["loss"]))  # no number is logged as 0
        smooth = losses.rolling(5, min_periods=1, center=True).median()
        look = {name: looks[label][name] for name in ("color", "linestyle")}
        name = f"{label}, {frame['step'].max()} steps" + (", diverged" if losses.isna().any() else "")
        axes.plot(100 * frame["step"] / frame["step"].max(), smooth, label=name, linewidth=1.3, **look)
    if curves:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        figure.legend(loc="outside lower center", ncol=2, frameon=False, fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_xlabel("optimizer steps (% of the run)")
    axes.set_ylabel("← better      training loss (nats per target token)")
    axes.set_title(title, fontsize=9)
    save(figure, path)


def accuracy_by_steps(path: Path, rows: list, title: str) -> None:
    """Execution accuracy of rows by number of steps of the gold program, as shades with the numbers in them.

    Programs of three steps or more are counted together: FinQA has few of them.
    """
    counts = np.zeros((len(rows), len(STEPS), 2), dtype=int)
    for place, row in enumerate(rows):
        for steps, score in row.steps.items():
            counts[place, min(int(steps), len(STEPS)) - 1] += score["correct"], score["of"]
    shares = counts[:, :, 0] / np.maximum(counts[:, :, 1], 1)
    figure, axes = plt.subplots(figsize=(7, 1.4 + 0.4 * len(rows)))
    axes.imshow(shares, aspect="auto", cmap="cividis", vmin=0, vmax=max(0.01, shares.max(initial=0)))
    for line, column in np.ndindex(shares.shape):
        correct, of = counts[line, column]
        text = f"{100 * shares[line, column]:.0f} %  ({correct} of {of})" if of else "none"
        color = "black" if shares[line, column] > 0.6 * shares.max() else "white"
        axes.text(column, line, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(rows)), [f"{row.description}\n{row.run}" for row in rows], fontsize=7)
    axes.set_xticks(range(len(STEPS)), STEPS)
    axes.set_xlabel("steps of the gold program")
    axes.set_title(f"Execution accuracy (brighter is better)\n{title}", fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)
