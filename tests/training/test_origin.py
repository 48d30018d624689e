"""What a training may start from: a run whose calibration split is known to be this one."""

import json
import shutil
from pathlib import Path

import pytest

from fincompress import runs
from fincompress.errors import UserError
from fincompress.training.origin import check_origin

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "finqa-smollm2-135m"


@pytest.fixture
def published(tmp_path):
    """Published runs that phase 1 was made of, and the constants and data of a run that starts from the first."""
    for run in ("seed_0_mixed", "mixed_data", "finqa_data"):
        shutil.copytree(PUBLISHED / run, tmp_path / run)
    settings = {"RESULTS_DIR": str(tmp_path), "BASE_MODEL": "smollm2-135m", "DATA_RUN": "finqa_data"}
    return tmp_path, settings | {"START_FROM": "seed_0_mixed"}, runs.read_json(tmp_path / "finqa_data/settings.json")


def test_the_published_phase_1_can_be_made_again_from_the_published_run_before_it(published):
    folder, settings, record = published
    recorded = runs.read_json(PUBLISHED / "seed_0_qlora" / "settings.json")["source"]
    assert check_origin("START_FROM", settings, record) == recorded


@pytest.mark.parametrize("changed", ["settings", "extra"])
def test_a_start_whose_own_data_run_was_made_again_otherwise_is_refused(published, changed):
    folder, settings, record = published
    path = folder / "mixed_data" / "settings.json"
    path.write_text(json.dumps(runs.read_json(path) | {changed: {"SEED": 1}}))
    with pytest.raises(UserError, match="may have seen some of these questions"):
        check_origin("START_FROM", settings, record)
