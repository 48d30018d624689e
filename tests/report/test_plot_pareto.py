"""plot_pareto.py as a person runs it on a results folder that was made by hand."""

import made_up_runs as made
import pandas as pd
import pytest
from scripts import run_in_process

import plot_pareto
from fincompress.errors import UserError
from fincompress.report import tables

MARKERS = f"# Title\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"


@pytest.fixture
def plot(monkeypatch, capsys):
    """Runs the script in this process with constants set; returns what it printed."""

    def run(results, **constants):
        for name, value in {"RESULTS_DIR": str(results), **constants}.items():
            monkeypatch.setattr(plot_pareto, name, str(value) if name == "README" else value)
        plot_pareto.main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A results folder with one run of each method on all of FinQA's dev split, plotted, and what was printed."""
    root = tmp_path_factory.mktemp("plotted")
    made.everything(root / "results")
    (root / "README.md").write_text(MARKERS)
    done = run_in_process("plot_pareto.py", f"--RESULTS_DIR={root / 'results'}", f"--README={root / 'README.md'}")
    return root, done


def test_the_script_leaves_what_it_promises(finished):
    root, done = finished
    assert done.returncode == 0 and done.stderr == ""
    results = root / "results"
    for name in ("pareto.png", "accuracy_by_steps.png"):
        assert made.drawn(results / name)
    frame = pd.read_csv(results / "results.csv")
    assert set(frame["method"]) == {
        "base",
        "qlora",
        "merged",
        "lora_8bit",
        "gptq",
        "sapling",
        "sapling_gptq",
        "pruning",
    }
    assert "QLoRA + GPTQ 4-bit" in done.stdout and "\nwrote results.csv, verdict.md" in done.stdout
    assert not list(results.glob(".*"))


def test_the_verdict_is_one_sentence_and_one_table(finished):
    text = (finished[0] / "results" / "verdict.md").read_text()
    assert "**SAPLING beats GPTQ 4-bit in 0 of 1 comparisons (1 lost; " in text
    assert "), and other pruning in " in text
    assert text.count("| SAPLING | the other | equal |") == 1
    assert "](pareto.png)" in text and "### All runs" in text and str(finished[0]) not in text


def test_the_readme_gets_one_chart_eight_rows_the_verdict_and_three_sentences_between_its_markers(finished):
    text = (finished[0] / "README.md").read_text()
    assert text.startswith(f"# Title\n\n{tables.BEGIN}\n![Accuracy against size, time and memory](results/pareto.png)")
    assert text.endswith(f"{tables.END}\n\nafter\n") and "\nold\n" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 8
    verdict, *bullets = [line.partition("** ")[0] for line in text.splitlines() if line.startswith("- **")]
    assert verdict.startswith("- **SAPLING beats GPTQ 4-bit in 0 of 1 comparisons")
    assert bullets == ["- **Nearest in size", "- **At equal accuracy", "- **Time per question"]  # of SAPLING alone


def test_a_second_time_gives_the_same_files(finished, plot):
    root, _ = finished
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    plot(root / "results", README=root / "README.md")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("data", [{"source": "synthetic", "fingerprint": "s0"}, made.DATA], ids=["synthetic", "sliver"])
def test_a_synthetic_or_partial_run_leaves_the_readme_as_it_is(tmp_path, data, plot):
    made.settings(tmp_path / "results" / "q", "train_qlora_4bit.py", data=data, precision="nf4")
    made.evaluation(tmp_path / "results", "q", made.answers(0.3, 60), data=data, precision="nf4")
    readme = tmp_path / "README.md"
    readme.write_text(MARKERS)
    printed = plot(tmp_path / "results", README=readme)
    assert readme.read_text() == MARKERS
    assert "stays as it is: no run here on a whole split of FinQA" in printed


def test_the_verdict_lists_the_runs_that_are_averaged(tmp_path, plot):
    for seed in range(2):
        made.settings(tmp_path / f"q{seed}", "train_qlora_4bit.py", {"SEED": seed}, precision="nf4")
        made.evaluation(tmp_path, f"q{seed}", made.answers(0.3, 50, seed=seed), precision="nf4")
    plot(tmp_path)
    assert "### Means over seeds\n\n- q0, 2 seeds: q0, q1\n" in (tmp_path / "verdict.md").read_text()


def test_one_method_without_sapling_or_speed_is_drawn_and_not_decided(tmp_path, plot):
    made.settings(tmp_path / "base", "evaluate.py")
    made.evaluation(tmp_path, "base", [False] * 30)
    printed = plot(tmp_path)
    assert "Not decided: it takes evaluated runs of SAPLING and of 4-bit" in printed
    assert "README" not in printed  # it changes only when told to
    assert made.drawn(tmp_path / "pareto.png")


def test_each_section_has_figures_of_its_own(tmp_path, plot):
    for split, share in (("dev", 0.3), ("test", 0.2)):
        made.settings(tmp_path / "q", "train_qlora_4bit.py", precision="nf4")
        made.evaluation(tmp_path, "q", made.answers(share, 50), split=split, precision="nf4")
    plot(tmp_path)
    figures = sorted(path.name for path in tmp_path.glob("pareto*.png"))
    assert figures == ["pareto-2.png", "pareto.png"]
    assert (tmp_path / "verdict.md").read_text().count("\n## ") == 2


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"SPLITS": []}, "SPLITS is one of 'dev', 'test', not ''"),
        ({"SPLITS": ["train"]}, "SPLITS is one of 'dev', 'test', not 'train'"),
        ({"RESULTS_DIR": "{root}/empty", "SPLITS": ["test"]}, "no run in .*empty/ is evaluated on test: run evaluate"),
        ({"RESULTS_DIR": "{root}/none"}, "none/ does not exist: run evaluate.py first"),
        ({"README": "none.md"}, "README = 'none.md' cannot be read"),
        ({"README": "{root}"}, "cannot be read"),
        ({"README": "{root}/bare.md"}, r"bare\.md needs the lines"),
    ],
)
def test_bad_input_is_refused_and_nothing_half_written(tmp_path, constants, said, plot):
    made.settings(tmp_path / "results" / "base", "evaluate.py")
    made.evaluation(tmp_path / "results", "base", [True] * 883)
    (tmp_path / "bare.md").write_text("no markers")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    constants = {k: v.format(root=tmp_path) if isinstance(v, str) else v for k, v in constants.items()}
    with pytest.raises(UserError, match=said):
        plot(**{"results": tmp_path / "results", **constants})
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "bare.md").read_text() == "no markers"


def test_a_broken_record_is_one_line_and_status_2(tmp_path):
    made.settings(tmp_path / "base", "evaluate.py")
    (tmp_path / "base" / "eval_dev.json").write_text("{")
    done = run_in_process("plot_pareto.py", f"--RESULTS_DIR={tmp_path}")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "base/eval_dev.json is not readable as JSON" in done.stderr
