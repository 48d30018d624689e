"""Fixtures: a tiny random Llama for fast tests, and real FinQA where it lies at hand."""

import functools
import gc
import json
import os
from pathlib import Path
from unittest import mock

import pytest
from scripts import FINQA, REPOSITORY, release_runs

pytest_plugins = ["sapling_runs"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub library is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # processes that test at once share the cores
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_configure(config):
    if "not real" in (config.option.markexpr or ""):
        # gptqmodel compiles how it unpacks weights, half a minute on a new machine: the real models see that it does.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_collect():
    """What is imported is never garbage: without it a collection takes milliseconds, not half a second."""
    gc.collect()
    gc.freeze()


SHARED = ("from sapling_runs import", "models.EMBEDDED")  # files that have one of these look at the same runs


@functools.cache
def kind(path: Path) -> int:
    """Which of SHARED a test file has, or whether it has slow tests: the longest work first."""
    text = path.read_text()
    return next((n for n, mark in enumerate((*SHARED, "mark.real")) if mark in text), len(SHARED) + 1)


def pytest_collection_modifyitems(items):
    """The longest first: no process waits long for another at the end."""
    items.sort(key=lambda item: kind(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process for each file, and one for all files that look at the same runs."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            number = kind(REPOSITORY / file)
            return SHARED[number] if number < len(SHARED) else file

    config.option.loadscopereorder = False  # which would go by the number of tests
    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def runs_are_released():
    """What a test held is free for the next, and for processes of its own."""
    yield
    release_runs()


@pytest.fixture(scope="session", autouse=True)
def synthetic_set_made_once():
    """The synthetic set as scripts within this process read it, its first examples: seconds each time otherwise."""
    from fincompress.finqa import examples, synthetic

    find, cache = examples.find_records, {}

    def find_once(data_dir, split, seed):
        if data_dir != examples.SYNTHETIC:
            return find(data_dir, split, seed)
        made = split, min(400, synthetic.DEFAULT_COUNTS[split]), seed
        if made not in cache:
            cache[made] = json.dumps(synthetic.generate(*made))
        return json.loads(cache[made])

    with mock.patch.object(examples, "find_records", find_once):
        yield


@pytest.fixture(scope="module", autouse=True)
def only_tests_of_charts_draw_them(request):
    """A quarter of a second each."""
    from fincompress.report import charts

    def start_of_a_png(figure, path):
        path.write_bytes(b"\x89PNG")
        charts.plt.close(figure)

    save = charts.save if request.path.parent.name == "report" else start_of_a_png
    with mock.patch.object(charts, "save", save):
        yield


@pytest.fixture(scope="session")
def results_dir(tmp_path_factory):
    """A results directory that all tests share, so that base models are made once."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def tiny_base(results_dir):
    """The folder of ``shape:tiny``: two blocks, 64 wide, random weights."""
    from fincompress import models

    models.quiet_libraries()
    return models.base_model_path("shape:tiny", str(results_dir))


@pytest.fixture(scope="session")
def finqa_dir():
    """The folder of real FinQA; tests that need it are skipped without."""
    if not (FINQA / "dev.json").is_file():
        pytest.skip("real FinQA is not here: set FINQA_DIR")
    return FINQA
