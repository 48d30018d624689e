"""FinQA files: what is accepted, what is refused and with which words, splits, and the download from a real server."""

import gzip
import json
import random
import re
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest
import requests
from scripts import FINQA, needs_finqa

from fincompress.errors import UserError
from fincompress.finqa import examples, scoring, synthetic

MISSING = object()


def record(page="A/2010/page_1.pdf", number=1, **changes):
    """A good record; a change to ``qa`` is named by its key, one to the record likewise. MISSING takes a key out."""
    made = {
        "id": f"{page}-{number}",
        "filename": page,
        "pre_text": [f"before {page}"],
        "post_text": ["after"],
        "table": [["", "2010", "2009"], ["revenue", "30", "20"]],
        "qa": {
            "question": "by how much did revenue grow?", "program": "subtract(30, 20), divide(#0, 20)", "exe_ans": 0.5,
            "gold_inds": {"table_1": "revenue 30 20"},
        },
    }  # fmt: skip
    for name, value in changes.items():
        where = made["qa"] if name in made["qa"] else made
        if value is MISSING:
            del where[name]
        else:
            where[name] = value
    return made


def write(folder, **splits):
    """Write each split as the release does; a string is written as it stands."""
    for split, content in splits.items():
        (folder / f"{split}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


def pages(prefix, count, questions=1):
    return [record(f"{prefix}/2010/page_{i}.pdf", q) for i in range(count) for q in range(1, questions + 1)]


@pytest.fixture
def no_network(monkeypatch):
    """Downloads go to a loopback port where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        source = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(examples, "SOURCE", source)


@pytest.fixture
def small_synthetic(monkeypatch):
    for split in examples.SPLITS:
        monkeypatch.setitem(synthetic.DEFAULT_COUNTS, split, 20)


# --- one record -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qa": MISSING}, "no qa object"),
        ({"qa": []}, "no qa object"),
        ({"id": MISSING}, "an id, question, program or filename is no text"),
        ({"id": 5}, "an id, question, program or filename is no text"),
        ({"filename": 5}, "an id, question, program or filename is no text"),
        ({"filename": ["a"]}, "an id, question, program or filename is no text"),
        ({"pre_text": MISSING}, "pre_text is no list of texts"),
        ({"pre_text": "text"}, "pre_text is no list of texts"),
        ({"post_text": None}, "post_text is no list of texts"),
        ({"post_text": ["a", 1]}, "post_text is no list of texts"),
        ({"table": MISSING}, "table is no list of rows of texts"),
        ({"table": [["", "2010"], ["revenue", 30]]}, "table is no list of rows of texts"),
        ({"table": [["", "2010"], "revenue"]}, "table is no list of rows of texts"),
        ({"table": [["", "2010"], []]}, "table is no list of rows of texts"),
        ({"question": MISSING}, "an id, question, program or filename is no text"),
        ({"question": "  "}, "an id, question, program or filename is no text"),
        ({"program": MISSING}, "an id, question, program or filename is no text"),
        ({"program": ["subtract(30, 20)"]}, "an id, question, program or filename is no text"),
        ({"program": "divide(30, 20"}, "its program does not execute: divide(30, 20"),
        ({"program": "divide(30, 0)"}, "its program does not execute: divide(30, 0)"),
        ({"program": "table_sum(costs, none)"}, "its program does not execute: table_sum(costs, none)"),
        ({"exe_ans": MISSING}, "exe_ans None is neither a finite number"),
        ({"exe_ans": None}, "exe_ans None is neither a finite number"),
        ({"exe_ans": True}, "exe_ans True is neither"),
        ({"exe_ans": "0.5"}, "exe_ans '0.5' is neither"),
        ({"exe_ans": "Yes"}, "exe_ans 'Yes' is neither"),
        ({"exe_ans": float("nan")}, "is neither a finite number nor yes or no"),
        ({"exe_ans": -float("inf")}, "is neither a finite number nor yes or no"),
        ({"exe_ans": 10**400}, "is neither a finite number nor yes or no"),
        ({"gold_inds": ["table_1"]}, "gold_inds is no object"),
    ],
)
def test_broken_record_is_skipped_with_its_reason(changes, reason):
    good, bad = record(), record("A/2010/page_2.pdf", **changes)
    usable, skipped = examples.validate_split("dev", [good, bad])
    assert [example.id for example in usable] == [good["id"]]
    name = bad["id"] if isinstance(bad.get("id"), str) else str(bad.get("id", "#1"))
    assert [(s["split"], s["id"]) for s in skipped] == [("dev", name)]
    assert reason in skipped[0]["reason"]


@pytest.mark.parametrize(
    ("changes", "attribute", "value"),
    [
        ({"gold_inds": {}}, "gold_inds", {}),
        ({"gold_inds": MISSING}, "gold_inds", {}),
        ({"gold_inds": None}, "gold_inds", {}),
        ({"table": [["a"], ["b", "1", "2"], ["c", ""]]}, "table", [["a"], ["b", "1", "2"], ["c", ""]]),
        ({"program": "greater(30, 20)", "exe_ans": "yes"}, "exe_ans", "yes"),
        ({"program": "greater(20, 30)", "exe_ans": "no"}, "exe_ans", "no"),
        ({"exe_ans": 7}, "exe_ans", 7.0),  # not what the program gives: scored as released
        ({"pre_text": [], "post_text": []}, "pre_text", []),
        ({"filename": MISSING}, "page", "A/2010/page_1.pdf"),
        ({"filename": MISSING, "id": "q7"}, "page", "q7"),
    ],
)
def test_record_as_the_release_has_them_is_kept_as_it_is(changes, attribute, value):
    usable, skipped = examples.validate_split("dev", [record(**changes)])
    assert skipped == []
    assert getattr(usable[0], attribute) == value


def test_questions_without_answers_are_read_outside_of_train_and_not_scored():
    blind = record()
    blind["qa"] = {"question": blind["qa"]["question"]}
    (example,), skipped = examples.validate_split("test", [blind])
    assert (example.program, example.exe_ans, skipped) == ("", None, [])
    verdict = scoring.score_program(["add(", "1", "2", ")", "EOF"], vars(example))
    assert (verdict["value"], verdict["execution_correct"], verdict["program_correct"]) == (3.0, None, None)
    with pytest.raises(UserError, match="none of 1 examples is usable"):
        examples.validate_split("train", [blind])


def test_records_without_filename_and_page_count_as_one_page():
    train, dev = (
        examples.validate_split("x", [record(f"{name}/page", filename=MISSING, id=name)])[0] for name in ("q1", "q2")
    )
    examples.check_pages_disjoint({"train": train, "dev": dev})


def test_repeated_id_is_used_once():
    first, again = record(), record(question="another question?")
    usable, skipped = examples.validate_split("train", [first, again])
    assert [example.question for example in usable] == [first["qa"]["question"]]
    assert skipped == [{"split": "train", "id": first["id"], "reason": "its id stands twice in this split"}]


@needs_finqa
@pytest.mark.parametrize("split", ["dev", "train"])
def test_every_record_of_the_release_is_usable(split):
    records = json.loads((FINQA / f"{split}.json").read_text())
    usable, skipped = examples.validate_split(split, records)
    assert skipped == []
    assert len(usable) == len(records) == len({example.id for example in usable})


# --- files and splits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<html>not found</html>", r"dev\.json is not JSON"),
        ("", r"dev\.json is not JSON"),
        ("[" * 100_000, r"dev\.json is not JSON"),
        ("{}", r"dev\.json is empty, or no list of objects"),
        ('{"data": []}', r"dev\.json is empty, or no list of objects"),
        ('["a", "b"]', r"dev\.json is empty, or no list of objects"),
        ("[]", r"dev\.json is empty, or no list of objects"),
        ('[{"text": "a"}, {"text": "b"}]', r"dev\.json is not FinQA: none of 2 examples is usable \(no qa object\)"),
    ],
)
def test_file_that_is_not_finqa_is_refused(tmp_path, content, said):
    folder = write(tmp_path, train=pages("A", 2), test=pages("T", 2), dev=content)
    for load in (lambda: examples.load_dataset(folder), lambda: examples.load_dataset(folder, splits=("dev",))):
        with pytest.raises(UserError, match=said) as raised:
            load()
        assert "\n" not in str(raised.value)


def test_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "train.json").write_bytes(b'[{"id": "\xff"}]')
    with pytest.raises(UserError, match="is not JSON"):
        examples.load_dataset(str(tmp_path))


@pytest.mark.parametrize("folder", ["dta", "data/train.json"])
def test_wrong_data_dir_is_refused(tmp_path, monkeypatch, no_network, folder):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", train=pages("A", 2))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"DATA_DIR={folder} is no folder"):
        examples.load_dataset(folder)


def test_without_a_network_nothing_stands_in_for_the_release(tmp_path, monkeypatch, no_network):
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "data/"):
        with pytest.raises(UserError, match=r"train\.json was not downloaded .*: try again, or put the three"):
            examples.load_dataset(folder)
    assert list(tmp_path.iterdir()) == []


def test_the_synthetic_set_is_fixed_by_its_seed(small_synthetic):
    dataset, again, other_seed = (examples.load_dataset("synthetic", seed=seed) for seed in (0, 0, 1))
    assert (dataset.source, dataset.skipped) == ("synthetic", [])
    assert {split: len(dataset.splits[split]) for split in dataset.splits} == dict.fromkeys(examples.SPLITS, 20)
    assert dataset.fingerprint == again.fingerprint != other_seed.fingerprint


def test_missing_split_is_reported_and_not_made_up(tmp_path, no_network):
    folder = write(tmp_path, train=pages("A", 2), dev=pages("D", 1))
    dataset = examples.load_dataset(folder)
    assert (dataset.source, sorted(dataset.splits)) == ("FinQA", ["dev", "train"])
    with pytest.raises(UserError, match=r"there is no test\.json in "):
        examples.load_dataset(folder, splits=("test",))


def test_data_without_a_training_file_is_refused(tmp_path, no_network):
    folder = write(tmp_path, dev=pages("D", 1), test=pages("T", 1))
    with pytest.raises(UserError, match=r"there is no train\.json in "):
        examples.load_dataset(folder)


def test_page_in_two_splits_by_name_is_refused(tmp_path):
    leak = record("A/2010/page_0.pdf", 2, pre_text=["other words"])
    folder = write(tmp_path, train=pages("A", 2), dev=[*pages("D", 1), leak], test=pages("T", 1))
    with pytest.raises(UserError, match=r"page A/2010/page_0\.pdf is in train and in dev \(question .*page_0\.pdf-2\)"):
        examples.load_dataset(folder)


def test_page_in_two_splits_by_content_is_refused(tmp_path):
    copied = record("T/2011/page_9.pdf", pre_text=["before A/2010/page_1.pdf"])
    folder = write(tmp_path, train=pages("A", 2), dev=pages("D", 1), test=[copied])
    with pytest.raises(UserError, match=r"page T/2011/page_9\.pdf is in train and in test"):
        examples.load_dataset(folder)


@pytest.mark.parametrize("change", ["a value", "an example less", "another split"])
def test_fingerprint_changes_with_the_data(change):
    def fingerprint(change=None):
        records = {"train": pages("A", 3), "dev": pages("D", 1)}
        if change == "a value":
            records["train"][2]["qa"]["exe_ans"] = 0.6
        elif change == "an example less":
            del records["train"][2]
        elif change == "another split":
            records["dev"].append(records["train"].pop())
        return examples.fingerprint_records(records)

    assert re.fullmatch("[0-9a-f]{16}", fingerprint())
    assert fingerprint() == fingerprint() != fingerprint(change)


def test_a_test_split_that_comes_later_makes_no_other_data():
    records = {"train": pages("A", 3), "dev": pages("D", 1)}
    before = examples.fingerprint_records(records)
    assert examples.fingerprint_records(records | {"test": pages("T", 1)}) == before
    alone = [examples.fingerprint_records({"test": pages("T", count)}) for count in (1, 2)]
    assert len({before, *alone}) == 3


# --- calibration ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train():
    return examples.validate_split("train", pages("A", 40, questions=3))[0]


@pytest.mark.parametrize("size", [1, 2, 3, 20, 60])
def test_calibration_is_large_enough_and_shares_no_page_with_train(train, size):
    rest, calibration = examples.carve_calibration(train, size, seed=0)
    assert size <= len(calibration) < size + 3
    assert not {example.page for example in rest} & {example.page for example in calibration}
    assert sorted(e.id for e in rest + calibration) == sorted(e.id for e in train)


def test_a_page_under_two_names_is_drawn_as_one(train):
    twice = [replace(example, id=f"again {example.id}", page=f"again {example.page}") for example in train]
    for seed in range(3):
        rest, calibration = examples.carve_calibration(train + twice, 20, seed)
        examples.check_pages_disjoint({"train": rest, "calibration": calibration})
        assert len(calibration) >= 20 and len(rest) + len(calibration) == 2 * len(train)


def test_calibration_depends_on_the_seed_and_not_on_the_order_of_the_file(train):
    def ids(examples_, seed):
        return {example.id for example in examples.carve_calibration(examples_, 20, seed)[1]}

    shuffled = random.Random(0).sample(train, len(train))
    assert ids(train, 0) == ids(shuffled, 0)
    assert ids(train, 0) != ids(train, 1)


@pytest.mark.parametrize("size", [61, 120, 1000])
def test_calibration_of_more_than_half_of_train_is_refused(train, size):
    with pytest.raises(UserError, match=rf"CALIBRATION_EXAMPLES = {size} takes \d+, for pages stay whole, of 120 "):
        examples.carve_calibration(train, size, seed=0)


# --- download -------------------------------------------------------------------------------------------------------

RELEASED = [record(f"D/2010/page_{i}.pdf", pre_text=["x" * 3000]) for i in range(100)]
BODY = json.dumps(RELEASED).encode()


class Handler(BaseHTTPRequestHandler):
    """Serves the files of the release gzipped, as GitHub does, and nothing else."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if self.path not in server.bodies:
            self.send_error(404)
            return
        body = gzip.compress(server.bodies[self.path], mtime=0)
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks_after])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(examples, "RELEASE", {"train": 2, "dev": len(RELEASED), "test": 1})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.bodies = {
        "/train.json": json.dumps(pages("A", 2)).encode(), "/dev.json": BODY,
        "/test.json": json.dumps(pages("T", 1)).encode(),
    }  # fmt: skip
    server.breaks_after, server.asked = None, []
    monkeypatch.setattr(examples, "SOURCE", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.chdir(tmp_path)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_release_is_downloaded_once_as_it_is_served(tmp_path, server):
    Path("own").mkdir()
    with pytest.raises(UserError, match=r"there is no dev\.json in own/"):  # nothing is mixed with a person's own files
        examples.load_dataset("own", splits=("dev",))
    for _ in range(2):
        dataset = examples.load_dataset(examples.DEFAULT_DIR, splits=("dev",))
        assert (dataset.source, len(dataset.splits["dev"])) == ("FinQA", len(RELEASED))
    assert server.asked == ["/train.json", "/dev.json", "/test.json"]
    assert Path("data/dev.json").read_bytes() == BODY and len(list(tmp_path.glob("data/*"))) == 3


def test_nothing_is_downloaded_beside_a_person_s_own_questions(server):
    Path(examples.DEFAULT_DIR).mkdir()
    Path(examples.DEFAULT_DIR, "train.json").write_bytes(BODY)
    assert set(examples.load_dataset(examples.DEFAULT_DIR).splits) == {"train"}
    assert server.asked == []


@pytest.mark.parametrize(
    ("body", "breaks_after", "said"),
    [
        (BODY, 100, r"dev\.json was not downloaded .*: try again, or put the three files into data/"),
        (json.dumps(RELEASED[:-1]).encode(), None, r"dev\.json: 99 examples arrived, the release has 100"),
        (b"<html>sign in to this network</html>", None, "is not JSON"),
        (b"[]", None, "is empty, or no list of objects"),
        (None, None, r"dev\.json was not downloaded \(404 .*\): try again, or put the three files into data/"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(tmp_path, server, body, breaks_after, said):
    if body is None:
        del server.bodies["/dev.json"]
    else:
        server.bodies["/dev.json"] = body
    server.breaks_after = breaks_after
    with pytest.raises(UserError, match=said.replace("dev", "(train|dev)")) as raised:
        examples.load_dataset(examples.DEFAULT_DIR)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_stalls_is_said(tmp_path):
    with (
        mock.patch("requests.get", side_effect=requests.ConnectionError("Read timed out.")),
        pytest.raises(UserError, match="was not downloaded"),
    ):
        examples.download(tmp_path / "data")


def test_a_proxy_that_is_none_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "socks9://nowhere:1")
    with pytest.raises(UserError, match="was not downloaded"):
        examples.download(tmp_path / "data")
