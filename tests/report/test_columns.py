"""results/README.md describes every column of every CSV that the project publishes or writes."""

import csv
import re
from fnmatch import fnmatch

import made_up_runs as made
import pytest
from scripts import REPOSITORY

from fincompress import runs
from fincompress.report import rows, tables

PUBLISHED = sorted((REPOSITORY / "results" / "published").rglob("*.csv"))
GUIDE = (REPOSITORY / "results" / "README.md").read_text()
SECTIONS = re.split(r"^### ", GUIDE.partition("## published/")[0], flags=re.M)[1:]
# Names in backticks in the first cell of each line of a file's table.
DESCRIBED = {
    text.partition("\n")[0]: re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| ([^|]*)\|", text, flags=re.M)))
    for text in SECTIONS
}


def undescribed(name, columns):
    """Columns that the section of that file does not name."""
    return [column for column in columns if not any(fnmatch(column, pattern) for pattern in DESCRIBED[name])]


@pytest.mark.parametrize("name", sorted({path.name for path in PUBLISHED}))
def test_every_column_of_a_published_csv_is_described(name):
    for path in PUBLISHED:
        if path.name == name:
            with path.open(newline="") as file:
                assert undescribed(name, next(csv.reader(file))) == [], path


def test_every_column_of_a_freshly_written_csv_is_described_and_none_too_many(tmp_path):
    made.everything(tmp_path, questions=40)
    sizes = {"size_before_gb": 0.4, "size_after_gb": 0.1, "blocks_before_gb": 0.2, "blocks_after_gb": 0.05}
    metrics = {"source_run": "qlora_4bit", "group_size": 64, "quantization_seconds": 9.0, **sizes}
    runs.write_json(tmp_path / "gptq_4bit" / "quantize_metrics.json", metrics)
    written = {
        "results.csv": tables.csv_rows(rows.make_sections(rows.read_rows(str(tmp_path))[0])),
        "quantization_report.csv": tables.quantization_report(str(tmp_path)),
        "accuracy.csv": runs.accuracy_table(str(tmp_path)),
    }
    for name, lines in written.items():
        assert lines and set(lines[0]) == set(DESCRIBED[name]), name


def test_every_file_of_the_published_records_is_in_the_guide():
    guide = GUIDE.partition("## published/")[2]
    published = REPOSITORY / "results" / "published"
    names = [path.name for path in published.iterdir()]
    for record in ("", "-llama-cpp"):
        names += [path.name for path in (published / f"finqa-smollm2-135m{record}").iterdir() if path.is_dir()]
    names = [re.sub("^seed_[12]", "seed_0", name).removesuffix("_gptq") for name in names]  # the guide says it once
    assert [name for name in names if name not in guide and name not in ("base", "finqa_data")] == []
