"""Which parts of the recovery matter: the same units dropped at once, then healed with one part more each time.

Drops what a finished run of sapling_train.py dropped, in the order of its TRAJECTORY, without training between drops,
and heals at every depth of HEAL_AT by each of VARIANTS. Judged on the calibration split. Each variant is a run,
results/ablation_<name>, that resumes; a line is printed for each depth.

    python benchmarks/recovery_ablation.py --TRAJECTORY=results/sapling/trajectory.csv
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RESULTS_DIR: str = "results"  # where the runs lie
BASE_MODEL: str = "smollm2-135m"  # of START_FROM
DATA_RUN: str = "data"  # what START_FROM was trained on
START_FROM: str = "qlora_4bit"  # phase 1, the teacher
TRAJECTORY: str = "results/sapling/trajectory.csv"  # what a finished run dropped
HEAL_AT: list[float] = [15, 11]  # blocks left
TARGET_SIZE: float = 0.5  # share of the bytes of the last depth
HEALING_EPOCHS: float = 0.25  # passes over the training set at each depth
LEARNING_RATE: float = 3e-4  # peak
CALIBRATION_EXAMPLES: int = 128  # questions that judge
FIRST_SCAN_EXAMPLES: int = 8  # questions of the scan that picks the quarter that is trained
NAMES: list[str] | None = None  # of VARIANTS; None: all
SEED: int = 0  # of the order of examples
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import pandas as pd
import torch

from fincompress import runs, sapling
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Ranking, Score
from fincompress.errors import UserError, run_script
from fincompress.settings import ROOT

NOT_TAUGHT = {"KL": 0.0, "HIDDEN_STATES": 0.0, "CROSS_ENTROPY": 1.0, "PATCH_EXAMPLES": 0}
QUARTER = {"PATCH_EXAMPLES": 0, "TRAIN_RATIO": 0.25, "HEALING_TRAIN_RATIO": 0.25, "TRAIN_ENDS": True}
NARROW = {"UPDATE": "qlora", "PATCH_RANK": 32}
VARIANTS = {
    "unhealed": NOT_TAUGHT | {"HEALING_EPOCHS": 0.0},
    "patched": {"HEALING_EPOCHS": 0.0},
    "healing": NOT_TAUGHT | QUARTER,
    "hidden_states": QUARTER,
    "all_weights": {},
    "all_weights_not_taught": NOT_TAUGHT,
    "no_cross_entropy": {"CROSS_ENTROPY": 0.0},
    "faster": {"LEARNING_RATE": 2 * LEARNING_RATE},
    "fastest": {"LEARNING_RATE": 4 * LEARNING_RATE},
    "not_patched": {"PATCH_EXAMPLES": 0},
    "no_hidden_states": {"HIDDEN_STATES": 0.0},
    "slower": {"LEARNING_RATE": LEARNING_RATE / 2},
    "batches_of_8": {"BATCH_SIZE": 8},
    "keep_healed": {"KEEP_HEALED": True},
    "twice_as_long": {"HEALING_EPOCHS": 2 * HEALING_EPOCHS},
    "adapters": {"UPDATE": "qlora"},
    "adapters_faster": {"UPDATE": "qlora", "LEARNING_RATE": 2 * LEARNING_RATE},
    "adapters_fastest": {"UPDATE": "qlora", "LEARNING_RATE": 4 * LEARNING_RATE},
    "adapters_not_patched": {"UPDATE": "qlora", "PATCH_EXAMPLES": 0},
    "adapters_narrow": NARROW,
    "adapters_narrow_patched": NARROW | {"HEALING_EPOCHS": 0.0},
    "adapters_patched": {"UPDATE": "qlora", "HEALING_EPOCHS": 0.0},
    "adapters_unhealed": {"UPDATE": "qlora", "PATCH_EXAMPLES": 0, "HEALING_EPOCHS": 0.0},
}


def main() -> None:
    """One run per variant."""
    unknown = set(NAMES or []) - set(VARIANTS)
    if unknown:
        raise UserError(f"NAMES holds {sorted(unknown)}; there are {', '.join(VARIANTS)}")
    try:
        dropped = pd.read_csv(TRAJECTORY)["dropped"].tolist()
    except (OSError, ValueError, KeyError):  # no file, no table, another one
        raise UserError(f"TRAJECTORY = {TRAJECTORY!r}: name the trajectory.csv of a run that dropped layers") from None
    recipe = runpy.run_path(str(ROOT / "sapling_train.py"))["SETTINGS"]
    for name in NAMES or VARIANTS:
        settings = recipe | {key: value for key, value in SETTINGS.items() if key in recipe}
        settings |= {"RUN": f"ablation_{name}", "SCHEDULE": "one_shot", "DROPPED": dropped}
        settings |= {"KEEP_MOMENTS": False, "KEEP_HEALED": False}
        if any("+" in name for name in dropped):  # pairs of neighbours from two blocks
            settings |= {"DROP_UNIT": "sublayer", "HEAL_AT": [2 * left for left in HEAL_AT]}
        settings |= VARIANTS[name]
        heal(settings, dropped)
        metrics = runs.read_json(Path(RESULTS_DIR) / settings["RUN"] / "train_metrics.json")
        for row in metrics["healed"]:
            scores = f"exact {row['calibration_exact']:.3f}, NLL {row['calibration_nll']:.3f}"
            cost = f"{row['examples_seen']} examples, {row['training_seconds'] / 60:.1f} min"
            print(f"{name}, {row['units_left']} left: {scores}, {cost}", flush=True)


def heal(settings: dict, dropped: list[str]) -> None:
    """Drop ``dropped`` in order and heal each depth of HEAL_AT on the way."""
    run = sapling.open_run(settings, "recovery_ablation.py")
    if run is None:
        return
    if run.state.trainable is None:
        run.choose_trainable(run.rank_by_importance())
        run.save_state()
    unscored = Score((), torch.zeros(1), torch.zeros(1))  # the model between drops is nothing to judge
    ranking = Ranking([Score(sub.parse_unit(name)) for name in dropped], unscored)
    while run.student.share > settings["TARGET_SIZE"] and len(run.state.trajectory) < len(dropped):
        if not run.depths_reached() and ranking.next(run.student.allowed())[0] is None:
            raise UserError(f"TRAJECTORY drops what {settings['START_FROM']} has not, or sub-layers alone")
        run.drop(ranking)
        run.save_state()
        sapling.heal(run)
    run.state.stopped = "every unit of the trajectory that TARGET_SIZE wants is dropped"
    sapling.heal(run, last=True)
    sapling.finish(run)


if __name__ == "__main__":
    run_script(main, resumes=True)
