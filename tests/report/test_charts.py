"""Figures: whatever is in them is drawn, odd values too, and nothing overlaps that must be read."""

import made_up_runs as made
import matplotlib.figure
import matplotlib.image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection

from fincompress.finqa import scoring
from fincompress.report import charts
from fincompress.report.rows import Row, make_sections, read_rows

NO_SPEED = {"seconds_per_question": None, "inference_memory_gb": None}


def row(correct=12, of=40, label="QLoRA", **changes):
    score = scoring.accuracy([n < correct for n in range(of)])
    low, high = score["interval"]
    defaults = {"run": label, "kind": "qlora", "description": label, "chart_label": label, "depth": "",
                "sublayers_left": None, "execution_accuracy": score["accuracy"], "execution_accuracy_low": low,
                "execution_accuracy_high": high, "share_of_bytes": 0.5, "seconds_per_question": 2.6,
                "inference_memory_gb": 0.3, "seeds": [],
                "steps": {}}  # fmt: skip
    return Row(**defaults | changes)


def path_of(count, label="SAPLING"):
    """Checkpoints of one run."""
    return [row(correct=n, run=f"s/{n}", label=label, kind="sapling", sublayers_left=n, depth=f"{n} of 60",
                share_of_bytes=n / 60) for n in range(1, count)]  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, laid out."""
    saved, save = [], matplotlib.figure.Figure.savefig

    def keep(figure, *arguments, **options):
        done = save(figure, *arguments, **options)
        saved.append(figure)
        return done

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return saved


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


ODD = {
    "nothing": [],
    "one method": [row()],
    "none and all right": [row(correct=0), row(correct=40, label="other")],
    "no speed": [row(**NO_SPEED), row(**NO_SPEED, share_of_bytes=1.0, kind="base", label="base")],
    "no size": [row(share_of_bytes=None)],
    "the same point twice": [row(), row(kind="quantized", label="GPTQ")],
    "a path": path_of(30),
    "a name too long": [row(label="pruning (" + "a very long criterion " * 6 + ")")],
    "dollars": [row(label="costs $5 and $6, 50 % of _it_ ^2 {x}")],
}  # fmt: skip


@pytest.mark.parametrize("rows", ODD.values(), ids=ODD)
def test_pareto_draws_every_measured_row_and_names_each_method_once(tmp_path, rows, figures):
    charts.pareto(tmp_path / "pareto.png", rows, "title with $5 in it")
    assert made.drawn(tmp_path / "pareto.png")
    costs = ("share_of_bytes", "seconds_per_question", "inference_memory_gb")
    for axes, cost in zip(figures[0].axes, costs, strict=True):
        there = [row for row in rows if getattr(row, cost) is not None]
        assert sum(len(bars.lines[0].get_xdata()) for bars in axes.containers) == len(there)
        assert ("not measured" in [text.get_text() for text in axes.texts]) == (not there)
    named = [text.get_text() for legend in figures[0].legends for text in legend.get_texts()]
    assert sorted(named) == sorted({row.chart_label for row in rows})  # whole names: none is broken


def test_of_a_mean_over_seeds_each_seed_is_a_dot(tmp_path, figures):
    seeds = [row(correct=10, run="a"), row(correct=14, run="b")]
    charts.pareto(tmp_path / "pareto.png", [row(seeds=seeds), row(label="GPTQ", kind="quantized")], "title")
    for axes in figures[0].axes:
        dots = [points.get_offsets() for points in axes.collections if isinstance(points, PathCollection)]
        assert sorted(accuracy for of in dots for _, accuracy in of) == pytest.approx([0.25, 0.35])


def test_the_same_rows_give_the_same_figure(tmp_path):
    for name in "ab":
        charts.pareto(tmp_path / f"{name}.png", ODD["a path"] + ODD["one method"], "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_method_has_one_hue_and_each_of_its_runs_a_style(tmp_path):
    """Three seeds, adapters, a longer phase 1: the record has five of a method."""
    for kind in ("sapling", "sapling_quantized"):
        rows = [row(label=label, kind=kind) for label in "abcdef"] + [row(label="GPTQ", kind="quantized")]
        looks = charts.styles(rows)
        assert len({look["color"] for look in looks.values()}) == 2 and looks["a"]["color"] == looks["f"]["color"]
        assert len({look["marker"] for label, look in looks.items() if label != "GPTQ"}) == 6


@pytest.mark.parametrize("kind", ["merged", "longer", "quantized", "sapling", "sapling_quantized", "pruning"])
def test_two_seeds_of_a_method_have_a_marker_each(kind):
    looks = charts.styles([row(label=label, kind=kind) for label in "ab"])
    assert looks["a"]["marker"] != looks["b"]["marker"]


def test_the_legend_lies_outside_the_panels_and_says_which_way_is_better(tmp_path, figures):
    """Every method of the made-up record, with SAPLING at eleven depths."""
    made.everything(tmp_path, questions=200)
    (section,) = make_sections(read_rows(str(tmp_path), ["dev"])[0])
    charts.pareto(tmp_path / "pareto.png", section.means, section.title)
    (figure,) = figures
    renderer = FigureCanvasAgg(figure).get_renderer()
    legend = figure.legends[0].get_window_extent(renderer)
    assert not any(legend.overlaps(axes.get_tightbbox(renderer)) for axes in figure.axes)
    names = [text.get_window_extent(renderer) for text in figure.legends[0].get_texts()]
    assert len(names) >= 9 and not any(a.overlaps(b) for n, a in enumerate(names) for b in names[:n])
    assert sum("better" in text for text in texts(figure)) == 4
    assert {"56", "20"} <= set(texts(figure))  # sub-layers left


def test_accuracy_by_steps_counts_three_and_more_together(tmp_path, figures):
    steps = {"1": {"correct": 0, "of": 9}, "2": {"correct": 3, "of": 3}, "3": {"correct": 1, "of": 2},
             "7": {"correct": 1, "of": 4}}  # fmt: skip
    charts.accuracy_by_steps(tmp_path / "steps.png", [row(steps=steps), row(label="$b")], "title")
    assert made.drawn(tmp_path / "steps.png")
    labels = texts(figures[0])
    assert {"0 %  (0 of 9)", "100 %  (3 of 3)", "33 %  (2 of 6)", "none", "3+"} <= set(labels)


def test_drops_are_marked_where_a_run_has_fewer_units(tmp_path, figures):
    curve = [{"step": 10 * n, "loss": 1 / n, "units_left": 60 - 10 * (n > 3) - 10 * (n > 6)} for n in range(1, 10)]
    charts.loss_curve(tmp_path / "loss.png", curve, [])
    (axes,) = figures[0].axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [30, 60]


@pytest.mark.parametrize("losses", [[], [0.5], [0.5, 0.0, 0.0], [float("nan")] * 3, [float("nan"), 0.5, 0.1]])
def test_a_loss_curve_is_drawn_however_odd_the_run(tmp_path, losses):
    curve = [{"step": 10 * n, "loss": loss} for n, loss in enumerate(losses, 1)]
    charts.loss_curve(tmp_path / "loss.png", curve, [{"step": 1, "calibration_nll": 0.4}])
    assert made.drawn(tmp_path / "loss.png")


def test_a_sub_layer_of_a_pair_is_as_important_as_the_better_of_its_units(tmp_path, figures):
    rows = [("block.0", 0.9), ("mlp.0+attention.1", 0.3), ("block.1", 0.5)]
    scores = [{"scan": 2, "purpose": "drop", "unit": unit, "nll": nll, "nll_whole": 0.1} for unit, nll in rows]
    charts.layer_importance(tmp_path / "importance.png", scores)
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["attention.0", "mlp.0", "attention.1", "mlp.1"]
    assert list(axes.images[0].get_array().ravel()) == pytest.approx([0.8, 0.2, 0.2, 0.4])
    charts.layer_importance(tmp_path / "none.png", [{"scan": 1, "purpose": "drop", "unit": "block.3", "score": 1.0}])
    assert not (tmp_path / "none.png").exists()
