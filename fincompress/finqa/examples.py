"""Load, validate and split FinQA in its official JSON schema (Chen et al., EMNLP 2021)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from fincompress.errors import UserError
from fincompress.finqa import program, synthetic

SPLITS = ("train", "dev", "test")
# The authors' repository, and how many examples each file of the release holds: what a download is checked against.
SOURCE = "https://raw.githubusercontent.com/czyssrs/FinQA/main/dataset"
RELEASE = {"train": 6251, "dev": 883, "test": 1147}
DEFAULT_DIR = "data"  # made when something is downloaded into it; any other folder must exist, to catch a typing error
SYNTHETIC = "synthetic"  # DATA_DIR=synthetic asks for the generated set outright


@dataclass(frozen=True)
class Example:
    """One question about one report page.

    ``table`` is a list of rows of cell strings, the first row being the header. ``gold_inds`` maps evidence keys to
    their text: ``table_i`` is row i of the table, ``text_i`` sentence i of ``pre_text + post_text`` (both 0-based);
    it is empty where the release does not give it. ``exe_ans`` is what the official executor makes of ``program``.
    """

    id: str
    page: str
    pre_text: list[str]
    post_text: list[str]
    table: list[list[str]]
    question: str
    program: str
    exe_ans: float | str
    gold_inds: dict[str, str]


@dataclass(frozen=True)
class Dataset:
    """What was found: examples by split, the source that every metric is stamped with, and what was left out.

    ``skipped`` is one ``{"split", "id", "reason"}`` per broken example; ``missing`` names splits that could not be had.
    """

    source: str
    splits: dict[str, list[Example]]
    skipped: list[dict[str, str]]
    missing: list[str]
    fingerprint: str


def load_dataset(data_dir: str, seed: int = 0) -> Dataset:
    """FinQA from ``data_dir``, else downloaded into it, else the synthetic set.

    The synthetic set stands in only where ``data_dir`` holds no FinQA at all: a missing test split beside real
    training data stays missing. Raises UserError for a file that is not FinQA, an empty split, a repeated id or a page
    that sits in two splits.
    """
    records, missing = {}, []
    if data_dir != SYNTHETIC:
        for split in SPLITS:
            found = find_records(data_dir, split)
            if found is None:
                missing.append(split)
            else:
                records[split] = found
        if "train" in missing and (records or data_dir != DEFAULT_DIR):
            raise UserError(f"there is no train.json in {data_dir}/")
    source = "FinQA"
    if not records:
        if data_dir != SYNTHETIC:
            print(f"NO REAL DATA: nothing in {data_dir}/ and no network, so the SYNTHETIC set is used instead")
        source, missing = "synthetic", []
        records = {split: synthetic.generate(split, seed=seed) for split in SPLITS}
    splits, skipped = {}, []
    for split, raw in records.items():
        splits[split], broken = validate_split(split, raw)
        skipped += broken
    check_pages_disjoint(splits)
    return Dataset(source, splits, skipped, missing, fingerprint_records(records))


def load_split(data_dir: str, split: str, seed: int = 0) -> tuple[str, list[Example]]:
    """``(source, examples)`` of one split alone, for scoring; raises UserError where it cannot be had.

    What is broken is left out and said.
    """
    if data_dir == SYNTHETIC:
        return "synthetic", validate_split(split, synthetic.generate(split, seed=seed))[0]
    records = find_records(data_dir, split)
    if records is None:
        raise UserError(f"there is no {split}.json in {data_dir}/")
    examples, skipped = validate_split(split, records)
    if skipped:
        first = skipped[0]
        print(f"{len(skipped)} broken examples of {split} are left out, such as {first['id']}: {first['reason']}")
    return "FinQA", examples


def find_records(data_dir: str, split: str) -> list[dict] | None:
    """The raw records of a split; None where there are none. Into ``data``, and only there, they are downloaded."""
    if data_dir != DEFAULT_DIR and not Path(data_dir).is_dir():
        raise UserError(f"DATA_DIR={data_dir} is no folder; it should hold FinQA's train.json, dev.json and test.json")
    path = Path(data_dir) / f"{split}.json"
    if path.exists() or (data_dir == DEFAULT_DIR and download(split, path)):  # never mixed with a person's own files
        return read_json_list(path)
    return None


def read_json_list(path: Path) -> list[dict]:
    """The raw records of one FinQA file; raises UserError where the file is not FinQA."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); expected FinQA's official {path.name}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} is not FinQA: expected a list of objects with id, pre_text, post_text, table and qa")
    if not records:
        raise UserError(f"{path} is empty: a split needs at least one example")
    return records


def validate_split(split: str, records: list[dict]) -> tuple[list[Example], list[dict[str, str]]]:
    """The usable examples and one ``{"split", "id", "reason"}`` for each broken one.

    Raises UserError where no example is usable, which means that the file is not FinQA.
    """
    examples, skipped, seen = [], [], set()
    for position, record in enumerate(records):
        try:
            example = parse_example(record)
            if example.id in seen:
                raise ValueError("its id stands twice in this split")
        except ValueError as error:
            name = record.get("id") if isinstance(record, dict) else None
            skipped.append({"split": split, "id": str(name or f"#{position}"), "reason": str(error)})
            continue
        seen.add(example.id)
        examples.append(example)
    if not examples:
        raise UserError(
            f"{split}.json is not FinQA: none of {len(records)} examples is usable ({skipped[0]['reason']})"
        )
    return examples, skipped


def parse_example(record: dict) -> Example:
    """One record of the official schema; raises ValueError with the reason it is broken.

    ``gold_inds`` may be empty or absent (the release has both); rows may be ragged. A gold program that does not
    execute is broken; one that gives something other than ``exe_ans`` is scored as released.
    """
    if not isinstance(record, dict):
        raise ValueError("not an object")
    qa = record.get("qa")
    if not isinstance(qa, dict):
        raise ValueError("no qa object")
    for where, name, kind in (
        (record, "id", str), (record, "pre_text", list), (record, "post_text", list), (record, "table", list),
        (qa, "question", str), (qa, "program", str),
    ):  # fmt: skip
        if not isinstance(where.get(name), kind):
            raise ValueError(f"{name} is missing or not a {'string' if kind is str else 'list'}")
    if not isinstance(record.get("filename") or "", str):
        raise ValueError("filename is not a string")
    if not all(isinstance(text, str) for text in record["pre_text"] + record["post_text"]):
        raise ValueError("pre_text and post_text must be lists of strings")
    if not all(isinstance(row, list) and row and all(isinstance(cell, str) for cell in row) for row in record["table"]):
        raise ValueError("table must be a list of rows of strings")
    if not qa["question"].strip():
        raise ValueError("question is empty")
    exe_ans = qa.get("exe_ans")
    if isinstance(exe_ans, bool) or not isinstance(exe_ans, int | float | str):
        raise ValueError("exe_ans is missing or neither a number nor yes/no")
    if isinstance(exe_ans, str) and exe_ans not in ("yes", "no"):
        raise ValueError(f"exe_ans {exe_ans!r} is neither a number nor yes/no")
    if not isinstance(exe_ans, str) and not abs(exe_ans) <= sys.float_info.max:
        raise ValueError("exe_ans is not a finite number")
    if program.execute(program.tokenize(qa["program"]), record["table"]).invalid:
        raise ValueError(f"its program does not execute: {qa['program'][:80]}")
    gold_inds = qa.get("gold_inds") or {}
    if not isinstance(gold_inds, dict):
        raise ValueError("gold_inds is not an object")
    return Example(
        id=record["id"],
        # The page is the id without its question number; filename says the same in the release.
        page=record.get("filename") or record["id"].rpartition("-")[0] or record["id"],
        pre_text=record["pre_text"],
        post_text=record["post_text"],
        table=record["table"],
        question=qa["question"],
        program=qa["program"],
        exe_ans=exe_ans if isinstance(exe_ans, str) else float(exe_ans),
        gold_inds=gold_inds,
    )


def check_pages_disjoint(splits: dict[str, list[Example]]) -> None:
    """Raise UserError where a page, by name or by content, sits in two splits: its questions would leak."""
    owner: dict[str, str] = {}
    for split, examples in splits.items():
        for example in examples:
            content = json.dumps([example.pre_text, example.post_text, example.table])
            for key in (example.page, hashlib.sha256(content.encode()).hexdigest()):
                if owner.setdefault(key, split) != split:
                    raise UserError(
                        f"page {example.page} is in {owner[key]} and in {split} (question {example.id}): "
                        "accuracy would be measured on what was trained on; remove it from one"
                    )


def carve_calibration(examples: list[Example], size: int, seed: int) -> tuple[list[Example], list[Example]]:
    """``(train, calibration)``: whole pages, drawn by seed, until calibration holds at least ``size`` examples.

    Whole pages, so the calibration set may be a few examples larger. The draw depends on the page names and the seed
    alone, not on the order of the file. Raises UserError where less than half of train would be left.
    """
    pages = sorted({example.page for example in examples})
    random.Random(f"calibration {seed}").shuffle(pages)
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.page] = counts.get(example.page, 0) + 1
    chosen: set[str] = set()
    held = 0
    for page in pages:
        if held >= size:
            break
        chosen.add(page)
        held += counts[page]
    if held > len(examples) / 2:
        raise UserError(f"a calibration split of {size} needs more than half of the {len(examples)} training examples")
    train = [example for example in examples if example.page not in chosen]
    return train, [example for example in examples if example.page in chosen]


def fingerprint_records(records: dict[str, list[dict]]) -> str:
    """16 hex digits over every record of every split: two runs with the same one saw the same data."""
    digest = hashlib.sha256()
    for split in sorted(records):
        digest.update(split.encode())
        for record in records[split]:
            digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def download(split: str, path: Path, source: str = SOURCE) -> bool:
    """Fetch one file of the release to ``path``; False where there is no network.

    Goes on where an earlier attempt stopped (``<name>.partial`` beside it), and renames only a file that has the
    announced size and the release's number of examples. Raises UserError where the server answers with something else.
    """
    import requests
    from tqdm import tqdm

    partial = path.with_name(path.name + ".partial")
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # GitHub would gzip, and count sizes and ranges in gzipped bytes
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with requests.get(f"{source}/{split}.json", stream=True, timeout=10, headers=headers) as reply:
            if reply.status_code == 416:  # the partial file is already whole, or is not of this release: start anew
                partial.unlink()
                return download(split, path, source)
            if reply.status_code not in (200, 206):
                raise UserError(
                    f"{split}.json: the FinQA repository answered {reply.status_code}; put the file in {path.parent}/"
                )
            if reply.status_code == 200:
                have = 0
            total = have + int(reply.headers.get("Content-Length", 0)) if "Content-Encoding" not in reply.headers else 0
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                open(partial, "ab" if have else "wb") as file,
                tqdm(
                    total=total or None, initial=have, unit="B", unit_scale=True, desc=f"downloading {path.name}"
                ) as bar,
            ):
                for chunk in reply.iter_content(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
                file.flush()
                os.fsync(file.fileno())
    except requests.RequestException:
        if partial.exists():
            raise UserError(
                f"the download of {path.name} broke off; run it again to go on, or put the file there"
            ) from None
        return False
    size = partial.stat().st_size
    if total and size != total:
        raise UserError(f"{path.name}: {size} of {total} bytes arrived; run it again to go on")
    try:
        found = len(read_json_list(partial))
        if found != RELEASE[split]:
            raise UserError(f"{path.name}: {found} examples arrived, the release has {RELEASE[split]}")
    except UserError:
        partial.unlink()
        raise
    os.replace(partial, path)
    return True
