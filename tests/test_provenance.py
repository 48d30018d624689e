"""What made a result: commit, processor and its arithmetic, and fingerprints that see every change."""

import pytest

from fincompress import provenance


def test_a_record_says_which_code_and_arithmetic_made_it(monkeypatch):
    record = provenance.provenance()
    assert len(record["code"].rstrip("+")) == 40
    assert record["hardware"]["cpu"].endswith(")")  # its bf16 instructions, or that there are none
    monkeypatch.setattr(provenance.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert provenance.code_version() is None


def test_a_fingerprint_ignores_the_order_of_keys_and_sees_every_change():
    assert provenance.fingerprint({"a": 1, "b": 2}) == provenance.fingerprint({"b": 2, "a": 1})
    assert len({provenance.fingerprint(x) for x in ({"a": 1}, {"a": 2}, {"a": "1"}, ["a", 1])}) == 4


@pytest.mark.parametrize(
    ("family", "model", "flags", "name"),
    [
        (26, 2, "fpu avx512_bf16", "AMD EPYC (family 26, model 2, avx512_bf16)"),
        (25, 17, "fpu avx512f", "AMD EPYC (family 25, model 17, no bf16)"),
    ],
)
def test_two_generations_that_a_cloud_calls_alike_are_two_processors(monkeypatch, family, model, flags, name):
    lines = f"cpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\n"
    monkeypatch.setattr(provenance.Path, "read_text", lambda path: f"processor\t: 0\n{lines}\nprocessor\t: 1\n{lines}")
    assert provenance.cpu_name() == name
