"""Every figure of the project."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from fincompress import runs  # noqa: E402

# Okabe and Ito's palette: told apart by colour-blind people, and in print.
BLUE, ORANGE, SKY, GREEN, YELLOW, PURPLE, GREY = (
    "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#4D4D4D"
)  # fmt: skip
# Colour and marker of each kind of method (comparison.KINDS); the marker alone tells them apart without colour.
STYLES = {
    "base": (GREY, "X"), "qlora": (BLUE, "s"), "merged": (SKY, "D"), "lora_8bit": (PURPLE, "P"), "gptq": (ORANGE, "^"),
    "longer": (BLUE, "p"), "sapling": (GREEN, "o"), "sapling_gptq": (YELLOW, "v"), "pruning": (GREY, "d"),
    "pruning_gptq": (GREY, "<"), "other": (GREY, "*"),
}  # fmt: skip
plt.rcParams["svg.hashsalt"] = "fincompress"  # the same figure gives the same file


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
    """Heat map of layer against scan: how much worse the calibration NLL is without it; dropped ones go dark.

    ``scores`` are the rows of layer_scores.csv, ``drops`` those of trajectory.csv. A pair of neighbours is scored as
    one: each of its two sub-layers shows the better of the pairs that it could go with.
    """
    frame = pd.DataFrame([row for row in scores if row["purpose"] == "drop"])
    if not len(frame):  # nothing was dropped
        return
    if "nll" in frame and frame["nll"].notna().any():
        frame["value"] = (frame["nll"] - frame["nll_whole"]).clip(lower=1e-3)
        label, scale = "NLL lost without it (nats per token)", matplotlib.colors.LogNorm(1e-3, 10)
    else:
        frame["value"] = frame["score"].rank(pct=True)
        label, scale = "place in the criterion's order", None
    pairs = frame["unit"].str.contains("+", regex=False).any()  # then a block is a pair too
    frame["layer"] = frame["unit"].map(lambda unit: _parts(unit) if pairs else [unit])
    table = frame.explode("layer").pivot_table(index="layer", columns="scan", values="value", aggfunc="min")
    layers = sorted(table.index, key=lambda name: (int(name.partition(".")[2]), name))
    table = table.reindex(layers)
    figure, axes = plt.subplots(figsize=(2 + 0.35 * table.shape[1], 1.5 + 0.14 * len(layers)))
    axes.set_facecolor("#222222")
    shown = axes.imshow(np.ma.masked_invalid(table.to_numpy()), aspect="auto", cmap="cividis", norm=scale)
    axes.set_yticks(range(len(layers)), layers, fontsize=5)
    axes.set_xticks(range(table.shape[1]), table.columns, fontsize=6)
    axes.set_xlabel("scan (dark: dropped before it; cross: dropped after it)")
    column = {scan: place for place, scan in enumerate(table.columns)}
    for row in drops:
        for layer in _parts(row["dropped"]) if pairs else [row["dropped"]]:
            if row["scan"] in column and layer in layers:
                axes.plot(column[row["scan"]], layers.index(layer), "x", color=ORANGE, markersize=4)
    figure.colorbar(shown, label=label)
    save(figure, path)


def _parts(unit: str) -> list[str]:
    """The sub-layers of a unit's name: ``block.3`` is attention and MLP."""
    kind, _, number = unit.partition(".")
    return [f"attention.{number}", f"mlp.{number}"] if kind == "block" else unit.split("+")


def pareto(path: Path, points: list[dict], title: str) -> None:
    """Execution accuracy against size, and beside it against decode throughput, as ``path`` and beside it as ``.svg``.

    A point has ``kind``, ``label``, ``number`` (layers left, shown at points of a ``series``) and ``series`` (points of
    one are joined; None: alone), ``accuracy``, ``low`` and ``high`` (shares), ``share`` (of the base's bytes) and
    ``decode`` (tokens/s), ``share_frontier`` and ``decode_frontier``. A point without ``accuracy`` or without a panel's
    measure is not in that panel; a panel without points says that it was not measured.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True, layout="constrained", dpi=150)
    points = [point for point in points if point["accuracy"] is not None]
    highest = max((point["high"] for point in points), default=1)
    lowest = min((point["low"] for point in points), default=0)
    room = 0.08 * (highest - lowest) + 0.005
    panels[0].set_ylim(100 * max(-room / 2, lowest - room), 100 * (highest + room))
    panels[0].set_xlabel("size (% of the base model's bytes in 16 bits)")
    panels[1].set_xlabel("decode throughput at batch 1 (tokens/s)")
    panels[0].set_ylabel("execution accuracy (%)")
    panels[1].yaxis.set_tick_params(labelleft=True)
    figure.suptitle("\n".join(textwrap.wrap(title, 130)), fontsize=9)
    note = (
        "Bars: 95 % Wilson intervals. Grey line: Pareto frontier. Faded: dominated. Numbers: sub-layers or blocks left."
    )
    if any(point["decode"] is None for point in points):
        note += " Runs without a measured speed are missing on the right."
    figure.supxlabel(note, fontsize=7.5, color=GREY)
    paths = sorted({(point["series"], point["kind"]) for point in points if point["series"]})
    dashes = {"sapling": itertools.cycle(("-", (0, (6, 3)), "-."))}  # one for each of several runs, the same in both
    styles = {series: next(dashes.get(kind, itertools.repeat(":"))) for series, kind in paths}
    drawn = []
    for axes, measure, scale in zip(panels, ("share", "decode"), (100, 1), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        inside = [point for point in points if point[measure] is not None]
        if inside:
            drawn.append((axes, *_panel(axes, inside, measure, scale, styles)))
        else:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
            axes.set_xticks([])
    figure.draw_without_rendering()  # fixes where everything is, so that labels can be placed
    figure.set_layout_engine("none")
    for axes, labels, obstacles, lines in drawn:
        _place_labels(figure, axes, labels, obstacles, lines)
    with runs.atomic_path(path) as partial:
        figure.savefig(partial, format="png")
    with runs.atomic_path(path.with_suffix(".svg")) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})
    plt.close(figure)


def _panel(axes, points: list[dict], measure: str, scale: float, styles: dict) -> tuple[list, list, list]:
    """Draw points, paths (``styles``: line style by series) and frontier; returns what ``_place_labels`` takes."""
    values = [scale * point[measure] for point in points]
    margin = 0.12 * (max(values) - min(values)) or 0.2 * max(values)
    axes.set_xlim(max(0, min(values) - margin), max(values) + margin)
    best = sorted((p for p in points if p[f"{measure}_frontier"]), key=lambda p: p[measure])
    corners = [(scale * p[measure], 100 * p["accuracy"]) for p in best]
    # What is reached at a size is reached at any larger one; at a speed, at any lower one.
    between = [(b[0], a[1]) if measure == "share" else (a[0], b[1]) for a, b in itertools.pairwise(corners)]
    steps = [corner for pair in itertools.zip_longest(corners, between) for corner in pair if corner]
    axes.plot(*zip(*steps, strict=True), color="#B8B8B8", linewidth=2.5, zorder=1, solid_capstyle="round")
    paths = [steps]
    for series in sorted({p["series"] for p in points if p["series"]}):
        members = sorted((p for p in points if p["series"] == series), key=lambda p: p["share"] or 0)
        path = [(scale * p[measure], 100 * p["accuracy"]) for p in members]
        color, style = STYLES[members[0]["kind"]][0], styles[series]
        axes.plot(*zip(*path, strict=True), linewidth=1, zorder=2, color=color, linestyle=style)
        paths.append(path)
    # Labels that must be there come first: whole methods, then one name a path, then the depths along it.
    labels = []
    named = {id(_most_alone(points, series, measure)) for series in {p["series"] for p in points} - {None}}
    for point in sorted(points, key=lambda p: (p["share"] or 0, p["label"])):
        color, marker = STYLES[point["kind"]]
        x, y = scale * point[measure], 100 * point["accuracy"]
        shown = point[f"{measure}_frontier"]
        axes.errorbar(
            x, y, yerr=[[max(0, y - 100 * point["low"])], [max(0, 100 * point["high"] - y)]], fmt=marker, color=color,
            alpha=1 if shown else 0.4, markersize=6.5, elinewidth=1, zorder=3, markeredgecolor="white",
            markeredgewidth=0.5,
        )  # fmt: skip
        dark = "black" if shown else "#606060"
        if point["series"] is None:
            labels.append((0, x, y, "\n".join(textwrap.wrap(point["label"], 24)), dark, 7.5))
            continue
        if id(point) in named:
            labels.append((1, x, y, "\n".join(textwrap.wrap(point["series"], 24)), color, 7.5))
        if point["number"] is not None:
            labels.append((2, x, y, str(point["number"]), dark, 6))
    labels.sort(key=lambda label: label[0])
    obstacles = [(scale * p[measure], 100 * p["accuracy"], 100 * p["low"], 100 * p["high"]) for p in points]
    return labels, obstacles, [np.linspace(a, b, 16) for path in paths for a, b in itertools.pairwise(path)]


def _most_alone(points: list[dict], series: str, measure: str) -> dict:
    """The point of a series that is farthest from those of others: the series' name stands there."""
    place = np.array([(point[measure], point["accuracy"]) for point in points], dtype=float)
    place /= np.maximum(np.ptp(place, axis=0), 1e-9)
    inside = np.array([point["series"] == series for point in points])
    if inside.all():
        return points[0]
    away = np.linalg.norm(place[inside][:, None] - place[~inside][None], axis=2).min(axis=1)
    return points[np.flatnonzero(inside)[away.argmax()]]


def _place_labels(figure, axes, labels: list, obstacles: list, lines: list) -> None:
    """Put each label where it hides no marker and no other label, as near to its point as that allows.

    ``labels`` are ``(rank, x, y, text, colour, size)``, ``obstacles`` ``(x, y, low, high)`` of points with their bars,
    ``lines`` points along what is drawn, shape (points, 2). Tries the same places in the same order every time, so the
    same points give the same figure. A label of rank 2 that finds no free place beside its point is left out; any other
    gets the best place there is, with a thin line to its point where that is far.
    """
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    frame, to_pixels, to_data = axes.get_window_extent(renderer), axes.transData, axes.transData.inverted()
    hard, soft, weights = [], [], []  # boxes (left, bottom, right, top) in pixels
    markers = to_pixels.transform([obstacle[:2] for obstacle in obstacles])
    for x, y, low, high in obstacles:
        (px, py), (_, bottom), (_, top) = to_pixels.transform([(x, y), (x, low), (x, high)])
        hard.append((px - 4.5 * pixel, py - 4.5 * pixel, px + 4.5 * pixel, py + 4.5 * pixel))
        soft.append((px - pixel, bottom, px + pixel, top))
        weights.append(15.0)
    for px, py in to_pixels.transform(np.concatenate(lines)) if lines else []:
        soft.append((px - 1.5 * pixel, py - 1.5 * pixel, px + 1.5 * pixel, py + 1.5 * pixel))
        weights.append(3.0)
    soft, weights, inside = np.array(soft), np.array(weights), np.array([frame.extents])
    for rank, x, y, text, color, size in labels:
        shown = axes.text(x, y, text, fontsize=size, color=color, linespacing=0.95, va="bottom", zorder=5)
        extent = shown.get_window_extent(renderer)
        width, height = extent.width, extent.height
        px, py = to_pixels.transform((x, y))
        places = []
        for reach, angle in itertools.product((8, 11, 16, 26, 40, 58, 80, 110, 150), range(0, 360, 30)):
            dx, dy = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            left = px + reach * pixel * dx + (0.5 * dx - 0.5) * width
            bottom = py + reach * pixel * dy + (0.5 * dy - 0.5) * height
            box = (left, bottom, left + width, bottom + height)
            hidden = width * height - _overlap(box, inside).sum() + _overlap(box, np.array(hard)).sum()
            crossed = weights[_overlap(box, soft) > 0].sum()
            away = np.hypot(*(markers - np.clip(markers, box[:2], box[2:])).T)
            crossed += 6 * (away < np.hypot(px - np.clip(px, left, box[2]), py - np.clip(py, bottom, box[3]))).sum()
            places.append((round(hidden), crossed + reach / 6, len(places), reach, box))
        hidden, _, _, reach, box = min(places if rank < 2 else [place for place in places if place[3] <= 16])
        if rank == 2 and hidden:
            shown.remove()
            continue
        hard.append((box[0] - pixel, box[1] - pixel, box[2] + pixel, box[3] + pixel))
        shown.set_position(to_data.transform(box[:2]))
        if reach > 16:
            nearest = (min(max(px, box[0]), box[2]), min(max(py, box[1]), box[3]))
            axes.plot(*zip((x, y), to_data.transform(nearest), strict=True), color="#999999", linewidth=0.5, zorder=2.5)


def _overlap(box: tuple[float, float, float, float], others: np.ndarray) -> np.ndarray:
    """The area that a box ``(left, bottom, right, top)`` shares with each of ``others``, shape (boxes, 4)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def loss_curves(path: Path, curves: list[dict], title: str) -> None:
    """Training loss of several runs in one figure; each is ``{"label", "kind", "steps", "losses"}``.

    Losses are as logged, smoothed over five points and left out where they are no positive numbers, as a share of the
    run's own steps: recipes differ in their number.
    """
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    ends = []
    for place, curve in enumerate(curves):
        color, _ = STYLES[curve["kind"]]
        # A loss that is no number is logged as 0.
        finite = pd.Series(curve["losses"], dtype=float).where(lambda losses: (losses > 0) & np.isfinite(losses))
        smooth = finite.rolling(5, min_periods=1, center=True).median()
        share = 100 * np.asarray(curve["steps"], dtype=float) / max(curve["steps"])
        style = ("-", "--", ":", "-.")[sum(c["kind"] == curve["kind"] for c in curves[:place]) % 4]
        axes.plot(share, smooth, color=color, linewidth=1.3, linestyle=style)
        if smooth.notna().any():
            diverged = ", diverged" if finite.isna().any() else ""
            ends.append((smooth.dropna().iloc[-1], f"{curve['label']} ({max(curve['steps'])} steps{diverged})", color))
    if curves:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.tick_params(axis="y", which="minor", labelsize=7)
    else:
        axes.text(0.5, 0.5, "no run left a loss curve", transform=axes.transAxes, ha="center", color=GREY)
    axes.set_xlim(0, 100)
    axes.set_xlabel("optimizer steps (% of the run)")
    axes.set_ylabel("training loss (nats per target token)")
    axes.set_title("\n".join(textwrap.wrap(title, 100)), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    _label_ends(figure, axes, ends)
    save(figure, path)


def _label_ends(figure, axes, ends: list[tuple[float, str, str]]) -> None:
    """Write ``(y, text, colour)`` to the right of the axes at their heights, pushed apart where they would overlap."""
    figure.draw_without_rendering()
    line = 10 * figure.dpi / 72
    floor = axes.get_window_extent().y0
    heights = sorted(((axes.transData.transform((0, y))[1], y, text, color) for y, text, color in ends))
    placed: list[float] = []
    for height, *_ in heights:
        placed.append(max(height, placed[-1] + line if placed else floor))
    for (height, _, text, color), target in zip(heights, placed, strict=True):
        fraction = axes.transAxes.inverted().transform((0, target))[1]
        start = axes.transAxes.inverted().transform((0, height))[1]
        axes.annotate(
            text, (1.0, start), (1.03, fraction), xycoords="axes fraction", textcoords="axes fraction", fontsize=7.5,
            color=color, va="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "relpos": (0, 0.5)},
        )  # fmt: skip


def accuracy_by_steps(path: Path, methods: list[dict], title: str) -> None:
    """Execution accuracy by number of steps of the gold program, a row a method, as shades with the numbers in them.

    A method is ``{"label", "steps": {"1": {"correct", "of"}, ...}}``. Programs of five steps or more are counted
    together: FinQA has few of them. Read along a row, a method that lost only the hard questions shows.
    """
    columns = [str(n) for n in range(1, 5)] + ["5 or more"]
    counts = np.zeros((len(methods), len(columns), 2))
    for place, method in enumerate(methods):
        for steps, score in method["steps"].items():
            counts[place, min(int(steps), 5) - 1] += score["correct"], score["of"]
    used = counts[:, :, 1].sum(axis=0) > 0
    columns, counts = [c for c, use in zip(columns, used, strict=True) if use], counts[:, used]
    figure, axes = plt.subplots(figsize=(2.6 + 1.25 * max(1, len(columns)), 1.4 + 0.34 * max(1, len(methods))))
    if not methods or not columns:
        axes.text(0.5, 0.5, "no method was evaluated", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_axis_off()
        return save(figure, path)
    with np.errstate(invalid="ignore"):
        shares = counts[:, :, 0] / counts[:, :, 1]
    top = max(0.01, np.nanmax(shares))
    axes.imshow(np.ma.masked_invalid(shares), aspect="auto", cmap="cividis", vmin=0, vmax=top)
    for row, column in np.ndindex(shares.shape):
        correct, of = counts[row, column].astype(int)
        text = f"{100 * shares[row, column]:.0f} %  ({correct}/{of})" if of else "-"
        dark = not of or shares[row, column] > 0.6 * top
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="black" if dark else "white")
    axes.set_yticks(range(len(methods)), [method["label"] for method in methods], fontsize=7.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlabel("steps of the gold program")
    axes.set_title("\n".join(textwrap.wrap(f"Execution accuracy. {title}", 100)), fontsize=8.5, loc="right")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)
