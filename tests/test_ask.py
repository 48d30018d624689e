"""One question to a run: what is shown and printed, which files a page may be, and what is refused in one line."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from scripts import REPOSITORY, run_in_process
from training_rows import write_adapter

from fincompress import generation, runs
from fincompress.errors import UserError
from fincompress.finqa import evidence, examples

DATA = ("preprocess_data.py", "--RUN=ask_data", "--TRAIN_EXAMPLES=8", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=4",
        "--EVIDENCE_TOKENS=40", "--MAX_PROMPT_TOKENS=90")  # fmt: skip
QUESTION = "what was the growth of pumps revenue from 2022 to 2023?"
TABLE = [["in millions", "2023", "2022"], ["pumps", "84.2", "79.5"], ["service", "12.6", "9.8"]]
PAGE = {"pre_text": ["revenue by segment , in millions :"], "post_text": ["there were 412 employees ."], "table": TABLE}
PROGRAM = "subtract(84.2, 79.5), divide(#0, 79.5)"


@pytest.fixture(scope="module")
def asked(results_dir, tiny_base):
    """A results directory with a data run and a finished run on it, and the environment to ask in."""
    environment = {"BASE_MODEL": "shape:tiny", "DATA_DIR": "synthetic", "RESULTS_DIR": str(results_dir)}
    done = run_in_process(*DATA, **environment)
    assert done.returncode == 0, done.stderr
    record = runs.read_json(results_dir / "ask_data" / "settings.json")
    shutil.copytree(tiny_base, results_dir / "asked")
    facts = {"base_model": "shape:tiny", "base_precision": "auto", "data": record["data"]}
    runs.write_json(results_dir / "asked" / "settings.json", facts | {"settings": {"DATA_RUN": "ask_data"}})
    runs.write_json(results_dir / "asked" / "train_metrics.json", {})
    write_adapter(results_dir / "adapted", tiny_base, "auto", "auto")
    for name in ("settings.json", "train_metrics.json"):
        shutil.copy(results_dir / "asked" / name, results_dir / "adapted" / name)
    return results_dir, environment


@pytest.fixture
def ask(asked, monkeypatch):
    """Ask the run a question; the model's output is PROGRAM. Returns the process and the prompts' token ids."""
    shown = []

    def generate(model, tokenizer, dataset, *options):
        shown.append(dataset[0]["input_ids"][: dataset[0]["prompt_tokens"]])
        return [{"output": f"{PROGRAM}\n", "ended": True, "new_tokens": 9}]

    monkeypatch.setattr(generation, "generate", generate)
    return lambda *arguments: (run_in_process("evaluate.py", "--RUN=asked", *arguments, **asked[1]), shown)


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("name", "run"), [("page.json", "asked"), ("table.csv", "asked"), ("page.json", "adapted")])
def test_an_answer_shows_prompt_program_steps_and_value_and_writes_nothing(asked, ask, tmp_path, name, run):
    path = tmp_path / name
    csv = "\n".join(",".join(row) for row in TABLE)
    path.write_text(csv if name.endswith("csv") else json.dumps(PAGE))
    dev = asked[0] / "ask_data" / "dev"
    dev.rename(dev.with_name(".dev"))  # a page is asked about whatever splits there are
    before = written(asked[0])
    done, _ = ask(f"--ASK={QUESTION}", f"--PAGE={path}", f"--RUN={run}")
    after = written(asked[0])
    dev.with_name(".dev").rename(dev)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {"in millions|2023|2022", "pumps|84.2|79.5", f"Question: {QUESTION}", "Program:"} <= set(lines)
    assert lines[-4:] == [
        f"program  {PROGRAM}",
        "  #0  subtract(84.2, 79.5)  =  4.7",
        "  #1  divide(#0, 79.5)  =  0.05912",
        "answer   0.05912",
    ]
    assert after == before


@pytest.mark.parametrize("split", ["dev", "calibration"])
def test_a_question_of_the_data_run_gets_the_prompt_of_training_to_the_token(asked, ask, split):
    import datasets

    first = datasets.load_from_disk(str(asked[0] / "ask_data" / split))[0]
    assert first["lines_dropped"] > 0  # the budgets are those of the data run, not the script's
    done, shown = ask(f"--ASK={first['question']}", f"--SPLIT={split}")
    assert done.returncode == 0, done.stderr
    assert shown == [first["input_ids"][: first["prompt_tokens"]]] and first["prompt"] in done.stdout


def test_a_model_answers_where_nothing_stands_in_for_it(asked):
    for run in ("--RUN=asked", "--RUN=base"):
        done = run_in_process(
            "evaluate.py", run, "--DATA_RUN=ask_data", f"--ASK={QUESTION}", "--MAX_NEW_TOKENS=4", **asked[1]
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("answer   ")
    assert not (asked[0] / "asked" / "eval_dev.json").exists()


@pytest.mark.parametrize(
    ("arguments", "content", "says"),
    [
        (("--PAGE=nothing.json",), None, "PAGE is what a question is about: set ASK too"),
        (("--ASK= ",), None, "--ASK=  has no value; None is one"),  # a variable that is not set runs no evaluation
        (("--PREDICTIONS=",), None, "--PREDICTIONS= has no value; None is one"),
        (("--ASK=" + 200 * "what changed ",), None, "never cut, have"),
        (("--ASK=a?", "--PREDICTIONS=file.json"), None, "ASK is a question to a model"),
        (("--ASK=a?", "--PAGE=nothing.json"), None, "nothing.json cannot be read"),
        (("--ASK=a?", "--PAGE={}/page.json"), "not JSON", "cannot be read"),
        (("--ASK=a?", "--PAGE={}/page.json"), "[]", "holds no page"),
        (("--ASK=a?", "--PAGE={}/page.json"), '{"table": [["a", 84.2]]}', "table is no list of rows of texts"),
        (("--ASK=a?", "--PAGE={}/page.csv"), ",,\n", "holds no page"),
        (("--ASK=a?", "--PAGE={}/page.csv"), 'a,"b\n', "cannot be read"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "millions;2023\npumps;84,2\n", "its header is one cell: separate"),
        (("--ASK=a?", "--PAGE={}/page.csv"), 'in millions,2023\npumps,"84,2"\n', "'84,2' would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), 'in millions,2023\npumps,"1.234,56"\n', "'1.234,56' would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "in millions,2023\npumps,1.234.567\n", "'1.234.567' would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "in millions,2023\npumps,1 234\n", "'1 234' would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "in millions,2023\npumps,1'234\n", "would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "in millions,2023\npumps,\u20ac 1 234\n", "would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "in millions,2023\npumps,1 234 \u20ac\n", "would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "in millions,2023\npumps,CHF 1'234\n", "would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), 'in millions,2023\npumps,"1 234,5"\n', "would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), 'in millions,2023\npumps,"\u20b91,23,456"\n', "would be misread"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "millions|2023\npumps|84\n", "its header is one cell: separate"),
        (("--ASK=a?", "--PAGE={}/page.csv"), "millions,2023\npumps,1,234\n", "the first, the header (pumps,1,234)"),
        (("--ASK=a?", "--RUN=nothing"), None, "'nothing' does not exist"),
    ],
)
def test_a_bad_question_or_page_is_one_line_and_status_2(ask, tmp_path, arguments, content, says):
    if content is not None:
        for name in ("page.json", "page.csv"):
            (tmp_path / name).write_text(content)
    done, shown = ask(*(argument.replace("{}", str(tmp_path)) for argument in arguments))
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert shown == []


def test_a_page_of_other_data_than_the_runs_is_refused(asked, ask, tmp_path):
    record = asked[0] / "ask_data" / "settings.json"
    before = record.read_text()
    finished = asked[0] / "asked" / "settings.json"
    kept = finished.read_text()
    records = examples.find_records("synthetic", "dev", 7)
    (tmp_path / "dev.json").write_text(json.dumps(records))
    try:
        for path in (record, finished):
            path.write_text(path.read_text().replace('"source": "synthetic"', '"source": "FinQA"'))
        done, _ = ask("--ASK=a?", f"--DATA_DIR={tmp_path}")
    finally:
        record.write_text(before)
        finished.write_text(kept)
    assert done.returncode == 2 and "set DATA_DIR to the data of this run, or PAGE" in done.stderr


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "Table.CSV"
    path.write_bytes('\ufeffin millions,2023\r\n\r\n" Net sales ","$1,234"\r\nloss,"(1,050.5)"\r\n,\r\n'.encode())
    page = examples.read_page(path, "What was Net sales?")
    assert page.table == [["in millions", "2023"], ["net sales", "$ 1234"], ["loss", "-1050.5 ( 1050.5 )"]]
    assert (page.pre_text, page.post_text, page.question) == ([], [], "what was net sales?")
    (tmp_path / "page.json").write_text(json.dumps({"table": page.table, "pre_text": ["Net sales \u2013 1,234"]}))
    assert examples.read_page(tmp_path / "page.json", "?").pre_text == ["net sales - 1234"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        examples.read_page(path, "?")


@pytest.mark.parametrize("title", ["Acme,,\n", "Acme\n"])
@pytest.mark.parametrize("years", [["2023", "2022"], ["december 31, 2023", "december 31, 2022"]])
def test_the_title_above_a_table_is_no_header(tmp_path, title, years):
    path = tmp_path / "page.csv"
    header = ",".join(f'"{year}"' for year in years)
    path.write_text(f'{title}in millions,{header}\n"earnings (cents per share) (1,2)",5.2,"1,100 (2)"\n')
    page = examples.read_page(path, "?")
    assert page.pre_text == ["acme"] and page.table[0] == ["in millions", *years] and len(page.table) == 2


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (",Year ended December 31,,Change,\nin millions,2023,2022,amount,%\npumps,5,4,1,25\n",
         ["in millions", "year ended december 31 2023", "2022", "change amount", "%"]),
        (",Year ended\nin millions,2023,2022\npumps,5,4\n", ["in millions", "year ended 2023", "2022"]),
        ("in millions,As of December 31,\n,2023,2022\npumps,5,4\n", ["in millions as of december 31", "2023", "2022"]),
        ("Acme,,\nin millions,31.12.2023,31.12.2022\npumps,5,4\n", ["in millions", "31.12.2023", "31.12.2022"]),
        ("in millions,2023,2022\nassets,,\npumps,5,4\n", ["in millions", "2023", "2022"]),
        ("company,Acme,Beta\nfounded,1998,2003\nsales,5,4\n", ["company", "acme", "beta"]),
        (",Q1,Q2\nsales,5,4\nfounded,1998,2003\n", ["", "q1", "q2"]),
        ("in millions,2023,2022\npumps,5,4,\nvalves,3,2,,\n", ["in millions", "2023", "2022"]),
    ],
)  # fmt: skip
def test_the_header_of_a_table_goes_down_to_its_years(tmp_path, text, header):
    path = tmp_path / "page.csv"
    path.write_text(text)
    table = examples.read_page(path, "?").table
    assert table[0] == header and all(len(row) <= len(header) for row in table[1:])
    assert table[-1][0] in ("pumps", "sales", "founded", "valves")


def test_a_page_that_is_not_written_as_finqa_is_read_so(tmp_path):
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"pre_text": ["Sales were \u00a384.2m. They were $1,079.5bn; Costs 3M, see note 5b."]}))
    page = examples.read_page(path, "Was it 84.2m?")
    assert page.pre_text == [
        "sales were \u00a384.2 million.",
        "they were $1079.5 billion;",
        "costs 3 million, see note 5b.",
    ]
    assert page.question == "was it 84.2 million?"


@pytest.mark.parametrize(("name", "shown"), [("AES/2010/page_9.pdf", "-"), (None, "2014")])
def test_dashes_that_finqa_turned_into_years_are_dashes_in_a_record_of_it_too(tmp_path, name, shown):
    table = [["in millions", "2010"], ["sales", "2014"], ["costs", "5.5"]]
    (tmp_path / "page.json").write_text(json.dumps({"filename": name, "table": table}))
    lines = evidence.page_lines(examples.read_page(tmp_path / "page.json", "?"))
    assert [line.text for line in lines] == ["in millions|2010", f"sales|{shown}", "costs|5.5"]


@pytest.mark.parametrize("text", ["in millions,\nsales,5\n", "only,,\nnames,,\n", "floors,2023\na,2 300 square feet\n"])
def test_what_is_no_title_stays_in_the_table_and_words_beside_figures_are_read(tmp_path, text):
    path = tmp_path / "page.csv"
    path.write_text(text)
    page = examples.read_page(path, "?")
    assert page.pre_text == [] and len(page.table) == 2


def test_the_snippet_of_the_docs_asks_a_server_with_the_prompt_of_training(asked, tmp_path, monkeypatch, capsys):
    text = (REPOSITORY / "docs" / "quantization.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, flags=re.S) if "localhost" in code]
    sent = {}

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            sent.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))), path=self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"text": f"\n{PROGRAM}\n"}]}).encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.handle_request, daemon=True).start()
    (tmp_path / "page.csv").write_text("\n".join(",".join(row) for row in TABLE))
    monkeypatch.chdir(tmp_path)
    for place, there in (
        ("results/sapling/20", str(asked[0] / "asked")),
        ("results/data", str(asked[0] / "ask_data")),
        ("localhost:8000", f"127.0.0.1:{server.server_port}"),
    ):
        assert place in code
        code = code.replace(place, there)
    exec(code, {})
    server.server_close()
    assert capsys.readouterr().out == f"{PROGRAM} 0.05912\n"
    assert (sent["path"], sent["temperature"]) == ("/v1/completions", 0)
    assert sent["prompt"] == f"in millions|2023|2022\npumps|84.2|79.5\nQuestion: {QUESTION}\nProgram:\n"
