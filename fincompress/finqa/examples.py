"""Load, validate and split FinQA in its official JSON schema (Chen et al., EMNLP 2021)."""

import csv
import hashlib
import io
import itertools
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fincompress import runs
from fincompress.errors import UserError
from fincompress.finqa import numbers, program, synthetic

SPLITS = ("train", "dev", "test")
# The authors' repository at a fixed commit, and how many examples each file holds: what a download is checked against.
COMMIT = "0603cdd9c68ab0af39efea65361ebfff2abc547c"
SOURCE = f"https://raw.githubusercontent.com/czyssrs/FinQA/{COMMIT}/dataset"
RELEASE = {"train": 6251, "dev": 883, "test": 1147}
DEFAULT_DIR = "data"  # made by a download where it is absent; any other folder must exist, to catch a typing error
SYNTHETIC = "synthetic"  # DATA_DIR=synthetic asks for the generated set outright


@dataclass(frozen=True)
class Example:
    """One question about one report page.

    ``table`` is a list of rows of cell strings, the first row being the header. The keys of ``gold_inds`` are the
    evidence: ``table_i`` is row i of the table, ``text_i`` sentence i of ``pre_text + post_text`` (both 0-based); it is
    empty where the release does not give it. ``exe_ans`` is the released result of ``program``; a question without its
    answer, as of the private test set, has the program ``""`` and None.
    """

    id: str
    page: str
    pre_text: list[str]
    post_text: list[str]
    table: list[list[str]]
    question: str
    program: str
    exe_ans: float | str | None
    gold_inds: dict[str, str]


@dataclass(frozen=True)
class Dataset:
    """What was found: the source that every metric is stamped with, examples by split, and what was left out.

    ``skipped`` is one ``{"split", "id", "reason"}`` per broken example. ``test`` is the test split's own fingerprint.
    """

    source: str
    splits: dict[str, list[Example]]
    skipped: list[dict[str, str]]
    fingerprint: str
    test: str | None = None


def load_dataset(data_dir: str, seed: int = 0, splits: tuple[str, ...] = SPLITS) -> Dataset:
    """``splits`` of FinQA from ``data_dir``; what is broken is left out and said.

    ``data`` is downloaded where it is absent. Raises UserError where the first of ``splits`` cannot be had, for a file
    that is not FinQA, an empty split or a page in two splits.
    """
    records = {split: find_records(data_dir, split, seed) for split in splits}
    records = {split: raw for split, raw in records.items() if raw is not None}
    if splits[0] not in records:
        raise UserError(f"there is no {splits[0]}.json in {data_dir}/")
    usable, skipped = {}, []
    for split, raw in records.items():
        usable[split], broken = validate_split(split, raw)
        skipped += broken
    check_pages_disjoint(usable)
    if skipped:
        print(f"{len(skipped)} broken examples are left out:")
    for example in skipped[:5]:
        print(f"  {example['id']} ({example['split']}): {example['reason']}")
    test = fingerprint_records({"test": records["test"]}) if "test" in records else None
    return Dataset(SYNTHETIC if data_dir == SYNTHETIC else "FinQA", usable, skipped, fingerprint_records(records), test)


def find_records(data_dir: str, split: str, seed: int) -> list[dict] | None:
    """The raw records of a split; None where there are none."""
    if data_dir == SYNTHETIC:
        return synthetic.generate(split, seed=seed)
    path = Path(data_dir) / f"{split}.json"
    if path.parent == Path(DEFAULT_DIR) and not path.parent.exists():
        download(path.parent)
    elif not path.parent.is_dir():
        raise UserError(f"DATA_DIR={data_dir} is no folder; it should hold FinQA's train.json, dev.json and test.json")
    return parse_records(path.read_bytes(), path) if path.exists() else None


def parse_records(content: bytes, path: Path) -> list[dict]:
    """The raw records of one file; raises UserError where it is no list of them."""
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} is empty, or no list of objects as FinQA's and TAT-QA's files are")
    return records


def validate_split(split: str, records: list[dict]) -> tuple[list[Example], list[dict[str, str]]]:
    """The usable examples and one ``{"split", "id", "reason"}`` for each broken one.

    Raises UserError where no example is usable, which means that the file is not FinQA.
    """
    examples, skipped = {}, []
    for position, record in enumerate(records):
        try:
            example = parse_example(record, answered=split == "train")
            if example.id in examples:
                raise ValueError("its id stands twice in this split")
            examples[example.id] = example
        except ValueError as error:
            skipped.append({"split": split, "id": str(record.get("id") or f"#{position}"), "reason": str(error)})
    if not examples:
        reason = skipped[0]["reason"]
        raise UserError(f"{split}.json is not FinQA: none of {len(records)} examples is usable ({reason})")
    return list(examples.values()), skipped


def parse_example(record: dict, answered: bool = True) -> Example:
    """One record of the official schema; raises ValueError with the reason it is broken.

    ``gold_inds`` may be empty or absent (the release has both); rows may be ragged. A gold program that does not
    execute is broken; one that gives something other than ``exe_ans`` is scored as released. A question without program
    and answer is broken where it must be ``answered``.
    """
    json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair, which nothing could write, is a ValueError
    qa = record.get("qa")
    if not isinstance(qa, dict):
        raise ValueError("no qa object")
    blind = not answered and not {"program", "exe_ans"} & qa.keys()
    text = "" if blind else qa.get("program")
    names = [record.get("id"), qa.get("question"), record.get("filename") or "none"]
    table, answer, gold_inds = record.get("table"), qa.get("exe_ans"), qa.get("gold_inds") or {}
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool) and abs(answer) <= sys.float_info.max
    for holds, reason in (
        (
            _is_texts([*names, text]) and all(map(str.strip, names)) and (text.strip() or blind),
            "an id, question, program or filename is no text",
        ),
        *_page_checks(record),
        (
            is_number or blind or answer in ("yes", "no"),
            f"exe_ans {answer!r:.40} is neither a finite number nor yes or no",
        ),
        (isinstance(gold_inds, dict), "gold_inds is no object"),
    ):
        if not holds:
            raise ValueError(reason)
    if not blind and program.execute(program.tokenize(text), table) is None:
        raise ValueError(f"its program does not execute: {qa['program'][:80]}")
    return Example(
        id=record["id"],
        # The page is the id without its question number; filename says the same in the release.
        page=record.get("filename") or record["id"].rpartition("-")[0] or record["id"],
        pre_text=record["pre_text"],
        post_text=record["post_text"],
        table=table,
        question=qa["question"],
        program=text,
        exe_ans=float(answer) if is_number else answer,
        gold_inds=gold_inds,
    )


def _page_checks(page: dict) -> list[tuple[bool, str]]:
    """For each field of a page whether it is as it must be, and what it is otherwise."""
    table = page.get("table")
    return [
        (_is_texts(page.get("pre_text")), "pre_text is no list of texts"),
        (_is_texts(page.get("post_text")), "post_text is no list of texts"),
        (isinstance(table, list) and all(row and _is_texts(row) for row in table), "table is no list of rows of texts"),
    ]


# Decimal commas, hundreds parted by commas, and thousands by points, or, where nothing but a currency stands beside
# them, by spaces or apostrophes.
_MISREAD = re.compile(
    r"^\D*\d+,\d{1,2}\D*$|\d\.\d{3},\d|\d\.\d{3}\.\d{3}|\d,\d\d,\d{3}"
    r"|^\W*(?:[A-Z]{1,3}\W*)?\d{1,3}(?:['\u2019\s]\d{3})+(?:,\d+)?\W*(?:[A-Z]{1,3}\W*)?$"
)
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
_SENTENCE_END = re.compile(r"(?<=[.;]) +(?=[A-Z])")


def read_page(path: Path, question: str) -> Example:
    """A page to ask ``question`` about: JSON with FinQA's ``pre_text``, ``post_text`` and ``table``, or a table as CSV.

    A field that JSON lacks is empty. Texts are as FinQA has them: a model that learned from it knows no other form.
    Raises UserError with the reason where the file is no page.
    """
    try:
        if path.suffix.lower() == ".csv":
            page = read_csv(path)
        else:
            page = json.loads(path.read_bytes())
            json.dumps(page, ensure_ascii=False).encode()  # half a surrogate pair is a ValueError
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"PAGE = {path} cannot be read as a page in JSON or a table in .csv: {error}") from None
    fields = ("pre_text", "post_text", "table")
    if not isinstance(page, dict) or not any(page.get(name) for name in fields):
        raise UserError(f"PAGE = {path} holds no page: expected a table, or one JSON object with {', '.join(fields)}")
    name = page.get("filename")  # FinQA's own: what it turned into years is a dash again
    name = name if isinstance(name, str) else str(path)
    page = {field: page.get(field, []) for field in fields}
    for holds, reason in _page_checks(page):
        if not holds:
            raise UserError(f"PAGE = {path}: {reason}; docs/data.md shows a page")
    for cell in (cell for row in page["table"][1:] for cell in row[1:]):
        if _MISREAD.search(re.sub(r"(?<=\w) *\([^)]*\)$", "", cell)):  # beside the number of a note
            raise UserError(
                f"PAGE = {path}: {cell!r} would be misread: write a decimal point, and thousands with commas or without"
            )

    def released(texts: list[str], write: Callable[[str], str] = numbers.release_text) -> list[str]:
        return [write(numbers.part_units(text)) for text in texts]

    page = {name: released(sentences(page[name])) for name in ("pre_text", "post_text")} | {
        "table": [released(row, numbers.release_cell) for row in page["table"]]
    }
    (question,) = released([question])
    return Example(name, name, **page, question=question, program="", exe_ans=0.0, gold_inds={})


def read_csv(path: Path) -> dict[str, list]:
    """The page of a CSV file: titles above its table are sentences, and the rows of its header are one."""
    text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin their CSV with a byte order mark
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), strict=True)]
    rows = [row for row in rows if any(row)]
    if rows and len(rows[0]) == 1 and all(re.search("[;|\t]", row[0]) for row in rows[:2]):
        raise UserError(f"PAGE = {path}: its header is one cell: separate cells by commas")
    titles = title_rows(rows)
    rows = rows[len(titles) :]
    count = header_rows(rows)
    table = [join_header(rows[:count]), *rows[count:]]
    for row in table[1:]:
        while len(row) > len(table[0]) and not row[-1]:
            row.pop()
        if len(row) > len(table[0]):
            raise UserError(
                f"PAGE = {path}: a row has more cells than the first, the header ({','.join(row)[:60]}): put numbers "
                "with commas in quotes"
            )
    return {"pre_text": [row[0] for row in titles], "table": table if rows else []}


def title_rows(rows: list[list[str]]) -> list[list[str]]:
    """First rows of a table with the first cell alone filled, where a header without amounts follows them."""
    titles = list(itertools.takewhile(lambda row: not any(row[1:]), rows))
    header = rows[len(titles) :][:1]
    return titles if header and not _has_amounts(header[0]) else []


def header_rows(rows: list[list[str]]) -> int:
    """How many first rows of a table are its header: down to the one with the years, where one of them names rows."""
    for count, row in enumerate(rows, start=1):
        if _has_amounts(row) or sum(bool(row[0]) for row in rows[:count]) > 1:
            break
        if any(_YEAR.search(cell) for cell in row[1:]):
            return count
    return 1


def join_header(rows: list[list[str]]) -> list[str]:
    """The rows of a header as one, column by column; what stands over all columns is said once, in the first."""
    if len(rows) > 1:
        whole = [len(row) > 2 and sum(map(bool, row[1:])) == 1 for row in rows]
        rows = [[" ".join(filter(None, row))] if once else row for row, once in zip(rows, whole, strict=True)]
    return [" ".join(dict.fromkeys(filter(None, column))) for column in itertools.zip_longest(*rows, fillvalue="")]


def _has_amounts(row: list[str]) -> bool:
    return any(numbers.is_amount(numbers.release_cell(cell)) for cell in row[1:])


def sentences(paragraphs: list[str]) -> list[str]:
    """Texts as FinQA has them, a sentence each."""
    return [text for paragraph in paragraphs for text in _SENTENCE_END.split(paragraph)]


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def check_pages_disjoint(splits: dict[str, list[Example]]) -> None:
    """Raise UserError where a page, by name or by content, sits in two splits: its questions would leak."""
    owner: dict[str | int, str] = {}
    for split, examples in splits.items():
        for example in examples:
            for key in (example.page, page_content(example)):
                if owner.setdefault(key, split) != split:
                    raise UserError(
                        f"page {example.page} is in {owner[key]} and in {split} (question {example.id}): no split "
                        "may hold a page of another; remove it from one"
                    )


def page_content(example: Example) -> int:
    """A hash of what stands on an example's page."""
    return hash(json.dumps([example.pre_text, example.post_text, example.table]))


def carve_calibration(examples: list[Example], size: int, seed: int) -> tuple[list[Example], list[Example]]:
    """``(train, calibration)``: whole pages, drawn by seed, until calibration holds at least ``size`` examples.

    Whole pages, so the calibration set may be a few examples larger. The draw depends on the page names and the seed
    alone, not on the order of the file; a page that stands under two names is one. Raises UserError where less than
    half of train would be left.
    """
    names: dict[int, str] = {}
    by_name = sorted(examples, key=lambda example: example.page)
    same = {example.page: names.setdefault(page_content(example), example.page) for example in by_name}
    counts = Counter(same[example.page] for example in examples)
    pages = sorted(counts)
    random.Random(f"calibration {seed}").shuffle(pages)
    chosen, held = set(), 0
    while held < min(size, len(examples)):
        chosen.add(page := pages[len(chosen)])
        held += counts[page]
    if held > len(examples) / 2:
        raise UserError(
            f"CALIBRATION_EXAMPLES = {size} takes {held}, for pages stay whole, of {len(examples)} training examples: "
            "more than half; lower it, or put fewer questions on a page"
        )
    train = [example for example in examples if same[example.page] not in chosen]
    return train, [example for example in examples if same[example.page] in chosen]


def fingerprint_records(records: dict[str, list[dict]]) -> str:
    """16 hex digits over every record: two runs with the same one saw the same data.

    Beside others the test split is left out: it may come when all is trained, and no run learns from it.
    """
    digest = hashlib.sha256()
    for split in sorted(set(records) - {"test"}) or ["test"]:
        digest.update(split.encode())
        for record in records[split]:
            digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def download(folder: Path) -> None:
    """Fetch the three files of the release, or none. Raises UserError where that fails."""
    import requests

    with runs.atomic_path(folder) as partial:
        partial.mkdir()
        for split, wanted in RELEASE.items():
            path = folder / f"{split}.json"
            try:
                reply = requests.get(f"{SOURCE}/{split}.json", timeout=10)
                reply.raise_for_status()
            except requests.RequestException as error:
                raise UserError(
                    f"{path.name} was not downloaded ({error}): try again, or put the three files into {folder}/"
                ) from None
            if (count := len(parse_records(reply.content, path))) != wanted:
                raise UserError(f"{path.name}: {count} examples arrived, the release has {wanted}")
            (partial / path.name).write_bytes(reply.content)
