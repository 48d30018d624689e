"""plot_pareto.py as a person runs it, and the README's numbers found again in the published record."""

import re
import subprocess
import sys

import made_up_runs as made
import pandas as pd
import pytest
from scripts import REPOSITORY, run_in_process

from fincompress.report import table

PUBLISHED = REPOSITORY / "results" / "published" / "finqa-smollm2-135m"


@pytest.fixture
def root(tmp_path):
    fine_tuned = [{"run": "qlora_4bit", "step": "QLoRA fine-tuned", "tokens": 100, "seconds": 1.0}]
    made.model(tmp_path / "results", "qlora_4bit/merged", "QLoRA fine-tuned", [], 0.42, 1.0, 0)
    made.model(tmp_path / "results", "gptq_4bit", "GPTQ 4-bit", fine_tuned, 0.41, 0.43, 0)
    made.throughput(tmp_path / "results", "gptq_4bit", 57.0)
    return tmp_path


def plot(root, **constants):
    arguments = [f"--{name}={value}" for name, value in constants.items()]
    return run_in_process("plot_pareto.py", f"--RESULTS_DIR={root / 'results'}", *arguments)


def test_it_writes_table_charts_and_csv_and_prints_table_and_advice(root):
    done = plot(root)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (root / "results").iterdir() if path.is_file()}
    assert written == {"results.csv", "results.md", "pareto.png", "speed.png", "memory.png"}
    assert made.drawn(root / "results" / "pareto.png")
    assert {"qlora_4bit/merged", "gptq_4bit"} == set(pd.read_csv(root / "results" / "results.csv")["run"])
    for text in (done.stdout, (root / "results" / "results.md").read_text()):
        assert "| Method |" in text and "most accurate: " in text and "fastest within 2 points: " in text


def test_the_untuned_model_alone_is_a_table_without_a_chart(tmp_path):
    made.model(tmp_path / "results", "base", "untuned", [], 0.02, 1.0, 0)
    done = plot(tmp_path)
    assert done.returncode == 0 and "| Method |" in done.stdout, done.stderr
    assert not list((tmp_path / "results").glob("*.png"))
    (tmp_path / "README.md").write_text(f"{table.BEGIN}\n{table.END}\n")
    refused = plot(tmp_path, README=tmp_path / "README.md")
    assert refused.returncode == 2 and "evaluate a trained one first" in refused.stderr


def test_a_comparison_is_printed_with_its_interval(root):
    done = plot(root, COMPARE="['gptq_4bit', 'qlora_4bit/merged']")
    assert done.returncode == 0, done.stderr
    assert re.search(r"gptq_4bit [\d.]+ %, qlora_4bit/merged [\d.]+ %: -\d\.\d points; 95 %, questions: ", done.stdout)


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"RUNS": "['nothing']"}, "no data set and split has all the runs that RUNS and COMPARE name"),
        ({"COMPARE": "['gptq_4bit', 'nothing']"}, "no data set and split has all the runs that RUNS and COMPARE name"),
        ({"COMPARE": "['gptq_4bit']"}, "COMPARE takes two"),
        ({"README": "none.md"}, "README = 'none.md' cannot be read"),
        ({"SPLITS": "['calibration']"}, "SPLITS is one of 'dev', 'test'"),
    ],
)
def test_what_a_person_gets_wrong_is_one_line(root, constants, says):
    done = plot(root, **constants)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_it_starts_without_the_libraries_of_training():
    code = "import runpy, sys; runpy.run_path('plot_pareto.py', run_name='read'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "peft", "bitsandbytes", "gptqmodel"} & set(done.stdout.split())


def test_the_readmes_table_is_what_the_published_record_gives(tmp_path):
    command = re.search(r"README=README.md --RUNS=\"(.*?)\"", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.S)
    recipes = re.findall(r"'([^']+)'", command[1])
    rows = table.averaged(table.read(str(PUBLISHED), ["dev"]), recipes)
    readme = (REPOSITORY / "README.md").read_text()
    assert table.markdown(rows, table.short_names(rows)) in readme


def compared(text):
    """``(first, second, numbers of the row)`` of each comparison in docs/results.md that names its two recipes."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if all(cell.endswith("`) ") for cell in cells[:2])]


def test_the_differences_of_the_results_page_are_found_again():
    from fincompress.report.compare import compare

    rows, found = table.read(str(PUBLISHED), ["dev"]), 0
    for cells in compared((REPOSITORY / "docs" / "results.md").read_text()):
        first, second = (re.search(r"`([^`]+)`", cell)[1] for cell in cells[:2])
        result = compare(str(PUBLISHED), rows, first, second)
        stated = [float(number) for cell in cells[2:] for number in re.findall(r"[-+]?\d+\.\d", cell)]
        computed = [result["difference"], *result["questions"], *(result["seeds"] or ())]
        assert stated == pytest.approx([100 * value for value in computed], abs=0.051), cells
        found += 1
    assert found >= 10
