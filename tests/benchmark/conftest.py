"""Fixtures of the benchmark's tests."""

import pytest
from finished_runs import make_finished_runs


@pytest.fixture
def finished(tmp_path, tiny_base):
    return make_finished_runs(tmp_path, tiny_base)
