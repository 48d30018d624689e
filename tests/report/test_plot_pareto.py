"""Figures from odd values, and plot_pareto.py as a person runs it on a results folder that was made by hand."""

import json
import re
import time
import xml.etree.ElementTree as ElementTree

import made_up_runs as made
import matplotlib.figure
import matplotlib.image
import pandas as pd
import pytest
from conftest import run_script

from fincompress import charts, comparison, report, tables

MARKERS = f"# Title\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"


def point(**changes):
    return {
        "kind": "qlora", "label": "QLoRA", "series": None, "number": None, "accuracy": 0.3, "low": 0.27, "high": 0.33,
        "share": 0.5, "decode": 20.0, "share_frontier": True, "decode_frontier": True,
    } | changes  # fmt: skip


def drawn(path):
    """Whether a PNG holds a drawing: its size, and that it is not of one colour."""
    image = matplotlib.image.imread(path)
    return min(image.shape[:2]) > 100 and max(image.shape[:2]) < 4000 and image[..., :3].std() > 0.01


@pytest.fixture
def markers(monkeypatch):
    """How many markers each panel of a figure has that is saved, and the labels in it."""
    found, save = [], matplotlib.figure.Figure.savefig

    def count(figure, *arguments, **options):
        for axes in figure.axes:
            lines = [line for line in axes.lines if line.get_marker() not in ("None", "")]
            found.append((len(lines), " ".join(text.get_text() for text in axes.texts).replace("\n", " ")))
        return save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", count)
    return found


ODD = {
    "nothing": [],
    "one method": [point()],
    "one method at 0": [point(accuracy=0.0, low=0.0, high=0.0)],
    "all right": [point(accuracy=1.0, low=1.0, high=1.0)],
    "no speed": [point(decode=None), point(decode=None, share=1.0, kind="base", label="base")],
    "not evaluated": [point(accuracy=None, low=None, high=None)],
    "no size": [point(share=None, share_frontier=False)],
    "the same point twice": [point(), point(kind="gptq", label="GPTQ")],
    "none on the frontier": [point(share_frontier=False, decode_frontier=False)],
    "a path": [point(kind="sapling", series="SAPLING", number=n, share=n / 60, decode=90 - n) for n in range(30, 60)],
    "a name too long": [point(label="pruning by " + "a very long criterion " * 12)],
    "dollars": [point(label="costs $5 and $6, 50 % of _it_ ^2 {x}")],
}  # fmt: skip


@pytest.mark.parametrize("points", ODD.values(), ids=ODD)
def test_pareto_draws_and_names_every_measured_point_however_odd(tmp_path, points, markers):
    charts.pareto(tmp_path / "pareto.png", points, "title with $5 in it")
    assert drawn(tmp_path / "pareto.png")
    assert len(markers) == 4  # two panels in a PNG, and the same in an SVG
    for (shown, text), measure in zip(markers, ("share", "decode") * 2, strict=True):
        there = [one for one in points if one["accuracy"] is not None and one[measure] is not None]
        assert shown == len(there)
        assert ("not measured" in text) == (not there)
        assert all((one["series"] or one["label"]).split()[0] in text for one in there)
    text = (tmp_path / "pareto.svg").read_text()
    ElementTree.fromstring(text)
    assert str(tmp_path) not in text
    assert {path.name for path in tmp_path.iterdir()} == {"pareto.png", "pareto.svg"}


def test_the_same_points_give_the_same_figure(tmp_path):
    for name in "ab":
        charts.pareto(tmp_path / f"{name}.png", ODD["a path"] + ODD["one method"], "title")
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_labels_hide_neither_each_other_nor_a_marker(tmp_path, monkeypatch):
    """Every method of the made-up record, with SAPLING at eleven depths."""
    made.everything(tmp_path, questions=400)
    (section,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    boxes = []

    def keep(figure, path=None, **_):
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            texts = [text.get_window_extent(renderer) for text in axes.texts]
            lines = [line for line in axes.lines if line.get_marker() not in ("None", "")]
            dots = [axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in lines]
            boxes.append((texts, dots, axes.get_window_extent(renderer)))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", keep)
    with pytest.raises(FileNotFoundError):  # nothing was saved, so there is nothing to rename
        charts.pareto(tmp_path / "pareto.png", report.points(section.rows), section.title)
    for texts, dots, frame in boxes:
        assert len(texts) > 9 and len(dots) >= 19
        for place, text in enumerate(texts):
            assert not any(text.overlaps(other) for other in texts[:place])
            assert not any(text.x0 < x < text.x1 and text.y0 < y < text.y1 for x, y in dots)
            assert text.x0 >= frame.x0 - 1 and text.x1 <= frame.x1 + 1


def test_accuracy_by_steps_is_drawn_however_odd_the_methods(tmp_path):
    hard = {"1": {"correct": 0, "of": 9}, "2": {"correct": 3, "of": 3}, "7": {"correct": 1, "of": 4}}
    for methods in ([], [{"label": "a", "steps": {}}], [{"label": "a", "steps": hard}, {"label": "$b", "steps": {}}]):
        charts.accuracy_by_steps(tmp_path / "steps.png", methods, "title")
        assert drawn(tmp_path / "steps.png")


def test_loss_curves_are_drawn_however_odd_the_runs(tmp_path):
    one = {"label": "a", "kind": "sapling", "steps": [10], "losses": [0.5]}
    nan = float("nan")
    broken = [one | {"steps": [1, 2, 3], "losses": losses} for losses in ([0.5, 0.0, 0.0], [nan] * 3, [nan, 0.5, 0.1])]
    for curves in ([], [one], [one, one | {"steps": [10, 20], "losses": [0.5, 0.4]}], broken, broken[1:2]):
        charts.loss_curves(tmp_path / "loss.png", curves, "title")
        assert drawn(tmp_path / "loss.png")


# --- the script -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A results folder with one run of each method on all of FinQA's dev split, plotted, and what was printed."""
    root = tmp_path_factory.mktemp("plotted")
    made.everything(root / "results")
    (root / "README.md").write_text(MARKERS)
    began = time.perf_counter()
    done = plot(root)
    return root, done, time.perf_counter() - began


def plot(root, *more):
    return run_script("plot_pareto.py", f"--RESULTS_DIR={root / 'results'}", f"--README={root / 'README.md'}", *more)


def test_script_leaves_what_it_promises(finished):
    root, done, seconds = finished
    assert done.returncode == 0 and done.stderr == ""
    assert seconds < 20
    results = root / "results"
    for name in ("pareto.png", "loss_curves.png", "accuracy_by_steps.png"):
        assert drawn(results / name)
    frame = pd.read_csv(results / "results.csv")
    assert set(frame["kind"]) == set(comparison.KINDS) - {"longer", "pruning_gptq", "other"}
    assert "hypothesis does not hold" in (results / "verdict.md").read_text()
    assert "QLoRA + GPTQ 4-bit" in done.stdout and "\nwrote results.csv, verdict.md" in done.stdout
    assert not list(results.glob(".*"))


def test_the_readme_gets_the_table_between_its_markers(finished):
    root, _, _ = finished
    text = (root / "README.md").read_text()
    assert text.startswith(f"# Title\n\n{tables.BEGIN}\n**smollm2-135m, FinQA, dev (883 questions)")
    assert text.endswith(f"{tables.END}\n\nafter\n") and "\nold\n" not in text
    assert "](results/pareto.png)" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) > 10


def test_the_report_needs_nothing_from_elsewhere(finished):
    root, _, _ = finished
    text = (root / "results" / "report.html").read_text()
    assert text.count('src="data:image/png;base64,') == 3 == text.count("<img ")
    assert "<script" not in text and "http" not in text and str(root) not in text
    assert re.search(r"<td>SOURCE_RUN</td><td>qlora_4bit</td>", text)
    assert "hypothesis does not hold" in text


def test_a_second_time_gives_the_same_files(finished):
    root, _, _ = finished
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert plot(root).returncode == 0
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("data", [{"source": "synthetic", "fingerprint": "s0"}, made.DATA], ids=["synthetic", "sliver"])
def test_a_synthetic_or_partial_run_leaves_the_readme_unless_told_to_write_it(tmp_path, data):
    made.everything(tmp_path / "results", data=data, questions=60)
    (tmp_path / "README.md").write_text(MARKERS)
    done = plot(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "README.md").read_text() == MARKERS
    assert "stays as it is: no run here on a whole split of FinQA" in done.stdout
    assert plot(tmp_path, "--README_DATA=None").returncode == 0
    assert "(60 questions)" in (tmp_path / "README.md").read_text()


def test_one_method_without_sapling_or_speed_is_drawn_and_not_decided(tmp_path):
    made.settings(tmp_path / "results" / "base", "evaluate.py")
    made.evaluation(tmp_path / "results", "base", [False] * 30)
    done = run_script("plot_pareto.py", f"--RESULTS_DIR={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    assert "Not decided. Missing: an evaluated run of 4-bit GPTQ" in done.stdout
    assert "README" not in done.stdout  # it changes only when told to
    assert drawn(tmp_path / "results" / "pareto.png")


def test_each_section_has_figures_of_its_own(tmp_path):
    for split, share in (("dev", 0.3), ("test", 0.2)):
        made.settings(tmp_path / "results" / "q", "train_qlora_4bit.py", precision="nf4")
        made.evaluation(tmp_path / "results", "q", made.answers(share, 50), split=split, precision="nf4")
    done = run_script("plot_pareto.py", f"--RESULTS_DIR={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    figures = sorted(path.name for path in (tmp_path / "results").glob("pareto*.png"))
    assert len(figures) == 2 and figures[1] == "pareto.png" and figures[0].startswith("pareto-finqa-test-smollm2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--SPLITS=[]"], "SPLITS is a list of"),
        (["--SHOWN_SIZES=[2]"], "SHOWN_SIZES are shares"),
        (["--EQUAL_WITHIN=0"], "EQUAL_WITHIN is a share"),
        (["--SPLITS=['train']"], "SPLITS is a list of"),
        (["--RESULTS_DIR={root}/empty", "--SPLITS=['test']"], "no run in .*empty/ is evaluated on test: run evaluate"),
        (["--README=none.md"], "README = 'none.md' is no file"),
        (["--README={root}"], "is no file"),
        (["--README={root}/bare.md"], r"bare\.md needs the lines"),
        (["--RESULTS_DIR={root}/none"], "none/ does not exist: run evaluate.py first"),
    ],
)
def test_bad_input_is_one_line_and_nothing_half_written(tmp_path, arguments, said):
    made.everything(tmp_path / "results")
    (tmp_path / "bare.md").write_text("no markers")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.format(root=tmp_path) for argument in arguments]
    done = run_script("plot_pareto.py", f"--RESULTS_DIR={tmp_path / 'results'}", *arguments)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{said}.*\n", done.stderr)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "bare.md").read_text() == "no markers"


def test_a_broken_record_is_named(tmp_path):
    made.settings(tmp_path / "base", "evaluate.py")
    (tmp_path / "base" / "eval_dev.json").write_text("{")
    done = run_script("plot_pareto.py", f"--RESULTS_DIR={tmp_path}")
    assert done.returncode == 2 and "base/eval_dev.json is not readable as JSON" in done.stderr


def test_settings_are_shown_as_text_and_not_as_html(tmp_path):
    made.settings(tmp_path / "base", "evaluate.py", {"X": "<b>&"})
    record = json.loads((tmp_path / "base" / "settings.json").read_text())
    (tmp_path / "base" / "settings.json").write_text(json.dumps(record | {"command": "<script>"}))
    made.evaluation(tmp_path, "base", [True] * 30)
    found = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    text = report.html(found, [{}], [[]])
    assert "&lt;b&gt;&amp;" in text and "<script>" not in text and "<b>" not in text
