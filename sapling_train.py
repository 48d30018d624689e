"""Phase 3: SAPLING removes the least important layers of a fine-tuned model, then trains what is left.

The method is that of Hu et al., ACL 2025 (arXiv 2412.11242). Here the smaller model also learns from the one it was
made of, its teacher. Reads results/<DATA_RUN>/ and the finished run START_FROM. Writes results/<RUN>/<layers left>/ for
each of DEPTHS, an ordinary checkpoint of fewer layers, and beside them trajectory.csv, layer_scores.csv,
loss_curve.csv, two charts and train_metrics.json. A run that was stopped resumes with the same command.

    python sapling_train.py                                      two thirds and half of the layers of phase 1's model
    python sapling_train.py --RUN=all_layers --DEPTHS=[1.0]      no layer is removed: recovery training alone
    python sapling_train.py --RUN=taylor --CRITERION=taylor --DROPS_PER_CYCLE=None     another criterion, in one shot
    recipes/trimllm_paper.sh                                     as the paper trains, without a teacher
"""

from fincompress.settings import check_choice, configure

# -----------------------------------------------------------------------------
# Where
BASE_MODEL: str = "smollm2-135m"  # smollm2-135m (embedded), a folder, a hub id, shape:<name>
START_FROM: str | None = "qlora_4bit"  # the finished run to remove layers from; None: the untuned BASE_MODEL
RESULTS_DIR: str = "results"  # every run gets a folder in here
DATA_RUN: str = "data"  # the run of preprocess_data.py to train on, tokenised for the same BASE_MODEL
RUN: str = "sapling"  # name of this run
# Which layers are removed
DEPTHS: list[float] = [0.67, 0.5]  # layers left in each checkpoint: a number, or a share of all, at most 1.0
DROP_UNIT: str = (
    "block"  # "block": attention and MLP of one layer; "sublayer": a neighbouring pair, maybe of two layers
)
CRITERION: str = "calibration"  # or "taylor", "kl", "block_influence", ...: a file of fincompress/depth/criteria/
DROPS_PER_CYCLE: int | None = None  # layers removed by one scoring; None: as many as the next depth asks for
CALIBRATION_EXAMPLES: int = 32  # questions of the calibration split that layers are scored on; more choose better
ACCURACY_FLOOR: float | None = (
    None  # stop at a depth with less than this share of the calibration accuracy of the start
)
TARGET_MEMORY_GB: float | None = None  # go down to what fits: weights in 16 bits and a KV cache of 1,024 tokens
# How the model learns back what that cost
TEACHER: str | None = "start"  # the run to learn from; "start": START_FROM; None: only the gold programs, as the paper
PATCH_EXAMPLES: int = 64  # examples that fit the layer before a removed one to what that did; 0: no fit
CYCLE_EPOCHS: float = 0.0  # passes over the training set between two scorings (the paper: 1)
RECOVERY_EPOCHS: float = 0.75  # passes at each depth
TRAIN_SHARE: float = 1.0  # share of the layers that is trained, the most important (the paper: 0.25)
AUGMENT: str | None = None  # "figures": each example with new numbers after its first pass
# What is trained
UPDATE: str = "full"  # "full": the weights themselves; "qlora": adapters on an NF4 base, for a 7B model on a 10 GB GPU
LORA_RANK: int = 32  # of the adapters, with UPDATE = "qlora"
# Optimizer and batches
LEARNING_RATE: float = 3e-4  # the highest; adapters take twice as much
BATCH_SIZE: int = 4  # sequences at once; lower it first when memory is short
GRADIENT_ACCUMULATION: int = 1  # batches per optimizer step
GRADIENT_CHECKPOINTING: bool | None = None  # recompute activations to save memory; None: on a GPU only
# Records
SAVE_STEPS: int = 100  # optimizer steps between what a stopped run resumes from
LOGGING_STEPS: int = 10  # optimizer steps per point of the loss curve
REPORT_TO: str | None = None  # "tensorboard" (into the run's logs/) or "wandb"
SEED: int = 0  # of the order of examples, the choice of calibration questions, new adapters
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

from fincompress import distributed, sapling, training
from fincompress.depth import criteria
from fincompress.errors import UserError, run_script


def main() -> None:
    distributed.join()
    check_settings()
    run = sapling.open_run(SETTINGS)
    if run is None:  # finished already
        return
    for depth in run.depths:
        while run.layers_left > depth:
            run.train(CYCLE_EPOCHS)  # not before the first drop: what it starts from is trained
            run.drop(run.score(depth), depth)
        run.recover(RECOVERY_EPOCHS)
        if not run.save():
            break
    run.finish()


def check_settings() -> None:
    """Raise UserError for a constant that makes no sense."""
    training.check_settings(SETTINGS)
    check_choice("DROP_UNIT", DROP_UNIT, ("block", "sublayer"))
    check_choice("CRITERION", CRITERION, criteria.names())
    check_choice("UPDATE", UPDATE, ("full", "qlora"))
    needs = criteria.get(CRITERION).needs
    if "blocks" in needs and DROP_UNIT != "block":
        raise UserError(f"CRITERION = {CRITERION!r} is about whole layers: set DROP_UNIT = 'block'")
    if "gradients" in needs and UPDATE == "qlora":
        raise UserError(f"CRITERION = {CRITERION!r} needs gradients, which 4-bit weights have not: set UPDATE = 'full'")
    if "teacher" in needs and TEACHER is None:
        raise UserError(f"CRITERION = {CRITERION!r} compares with a teacher: set TEACHER")
    if TEACHER == "start" and START_FROM is None:
        raise UserError("TEACHER = 'start', but START_FROM is None: name a finished run, or set TEACHER = None")
    if UPDATE == "qlora" and TEACHER not in (None, "start", START_FROM):
        raise UserError("with UPDATE = 'qlora' model and teacher share one base: TEACHER must be 'start' or None")


if __name__ == "__main__":
    run_script(main, resumes=True)
