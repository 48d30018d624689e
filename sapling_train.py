"""Phase 3: SAPLING, fine-tuning that removes one layer after another (Hu et al., ACL 2025, arXiv 2412.11242).

What a dropped layer costs is learned back from the unpruned model. Reads the splits of results/<DATA_RUN>/ and the
finished run START_FROM. Writes results/<RUN>/<units left>/ for every depth of HEAL_AT, a standard checkpoint without a
trace of the pruning, and trajectory.csv, layer_scores.csv, layer_importance.png, loss_curve.csv, train_metrics.json.
A killed run, started again with the same command, resumes with the same drops.

    python sapling_train.py                                                  phase 1's model, to half of its bytes
    python sapling_train.py --RUN=last --CRITERION=last --SCHEDULE=one_shot    a baseline, healed alike
    python sapling_train.py --RUN=paper --RECOVERY=paper --DROP_UNIT=sublayer --CYCLE_EPOCHS=0.2    without a teacher
"""

from fincompress.settings import check_choice, configure

# -----------------------------------------------------------------------------
# Where
BASE_MODEL: str = "smollm2-135m"  # smollm2-135m (embedded), a folder (of a pruned model too), a hub id, shape:<name>
START_FROM: str | None = "qlora_4bit"  # a finished run to start from; None: the untuned BASE_MODEL
RESULTS_DIR: str = "results"  # every run gets a folder in here
DATA_RUN: str = "data"  # the run of preprocess_data.py to train on, tokenised for the same BASE_MODEL
RUN: str = "sapling"  # name of this run
# What is dropped
DROP_UNIT: str = "block"  # "block" (attention and MLP) or "sublayer" (one of them, the paper)
CRITERION: str = "calibration"  # or "kl", "taylor", "block_influence", ...: a file of fincompress/depth/criteria/
TIES: str = "nll"  # of units that leave as many programs exact the lowest NLL goes; "norm": the paper's largest norm
SCHEDULE: str = "successive"  # "successive": train, drop, repeat; "one_shot": drop everything first, then train
PROTECT: bool = False  # never drop from the first and the last block
PACKABLE_ONLY: bool = True  # sub-layers go in pairs of neighbours, so that no slot of a checkpoint is filled with zeros
DROPS_EARLY: int = 5  # drops per cycle in the first half of the way to the target (a block or a pair is one)
DROPS_LATE: int = 5  # and in the second half
CALIBRATION_EXAMPLES: int = 64  # questions of the calibration split that a scan may use; better 128 and more
FIRST_SCAN_EXAMPLES: int = 16  # of these in the scan before training that picks what is trained (TRAIN_RATIO below 1)
SCAN_BATCH_SIZE: int = 8  # questions at once in a scan; bounds its memory
# When to stop, whichever comes first
TARGET_SIZE: float = 0.5  # share of the bytes of the checkpoint at the start, embeddings and head included
ACCURACY_FLOOR: float | None = None  # share of the calibration accuracy before any drop; judged before healing
TARGET_MEMORY_GB: float | None = None  # weights and a KV cache of 1,024 tokens at batch 1, as a checkpoint in 16 bits
TARGET_LATENCY_MS: float | None = None  # measured milliseconds per token, decoding at batch 1 on this device
# How what a drop costs is learned back
RECOVERY: str = "teacher"  # "teacher": by the constants below; "paper": as in Algorithm 1 (it prints what it sets)
TEACHER: str | None = None  # the finished run to learn from; None: START_FROM
KL: float = 1.0  # weight of KL(teacher || model) on the target tokens
TEMPERATURE: float = 2.0  # of both distributions in that KL
CROSS_ENTROPY: float = 0.3  # weight of the cross-entropy on the gold program
HIDDEN_STATES: float = 1.0  # weight of 1 - cosine to the teacher's hidden states, scaled to the rest's size; 0: none
AUGMENT: str | None = None  # "figures": new ones after a pass, with START_FROM at once; nothing is cached then
CACHE_GB: float = 8.0  # of disk, while the run lasts, for what the teacher says; where more is needed it is asked again
HEAL_AT: list[float] = [20, 15, 11]  # units left, or shares of the bytes, at which the model is healed and saved
HEALING_EPOCHS: float = 0.5  # passes that heal a depth
KEEP_HEALED: bool = True  # the next layers are dropped from what was healed; False: from the model before
KEEP_MOMENTS: bool = True  # one optimizer between healed depths; False: a new one after every drop
PATCH_EXAMPLES: int = 64  # examples that fit the layer before to what a dropped unit did; 0: none
# What is trained
UPDATE: str = "full"  # "full": the weights themselves; "qlora": adapters on an NF4 base, for a 7B model on a 10 GB GPU
TRAIN_RATIO: float = 1.0  # share r of the units, the most important, trained between drops (the paper: 0.25)
HEALING_TRAIN_RATIO: float = 1.0  # the same in healing
TRAIN_ENDS: bool = False  # also train embeddings, final norm and head (the paper does; only with UPDATE = "full")
LORA_RANK: int = 32  # only with UPDATE = "qlora"
LORA_ALPHA: int = 64  # adapters are scaled by LORA_ALPHA / LORA_RANK
PATCH_RANK: int = 128  # of adapters on o_proj and down_proj, which take up patches; at least LORA_RANK
FIRST_EPOCHS: float = 0.0  # passes over the training set before the first drop (with "one_shot": right after it)
CYCLE_EPOCHS: float = 0.0  # passes between two drops (the paper: 1); a few steps cost more than they give
# Optimizer
LEARNING_RATE: float = 3e-4  # peak, warmed up to again in every cycle; adapters take twice as much and more
LR_SCHEDULE: str = "constant_with_warmup"  # within a cycle: this, "cosine" or "linear"; in healing always "cosine"
WARMUP: float = 0.1  # share of a cycle's steps over which the learning rate rises
WEIGHT_DECAY: float = 0.0  # on what is trained
MAX_GRAD_NORM: float = 1.0  # gradients are clipped to this norm; 0: not clipped
OPTIMIZER: str | None = None  # None: 8-bit AdamW on a GPU, fused AdamW in float32 on a CPU
# Batches
BATCH_SIZE: int = 4  # sequences at once; lower it first when memory is short
GRADIENT_ACCUMULATION: int = 1  # batches per optimizer step
GRADIENT_CHECKPOINTING: bool | None = None  # recompute activations; None: on a GPU only
# Records
SAVE_EVERY: int | None = None  # cycles between checkpoints that are not healed; None: none
SAVE_STEPS: int = 100  # optimizer steps between what a killed run resumes from, within the training of a cycle
LOGGING_STEPS: int = 10  # optimizer steps per point of the loss curve
REPORT_TO: str | None = None  # "tensorboard" (into the run's logs/) or "wandb": curves while it trains; no result
SEED: int = 0  # of the order of examples, the choice of calibration questions, new adapters' weights and "random"
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

from fincompress import distributed, sapling, training
from fincompress.depth import criteria
from fincompress.errors import UserError, run_script


def main() -> None:
    """Algorithm 1 of the paper: rank every unit once; then train, score, drop, until small enough. And heal."""
    distributed.join()
    sapling.apply_recovery(SETTINGS)
    check_settings(SETTINGS)
    run = sapling.open_run(SETTINGS, "sapling_train.py")
    if run is None:
        return
    if run.state.trainable is None:
        ranking = run.rank_by_importance()
        if SCHEDULE == "one_shot":
            run.drop(run.score())
        run.choose_trainable(ranking)
        run.save_state()
    while not run.state.stopped:
        run.train(CYCLE_EPOCHS if run.state.trajectory and SCHEDULE == "successive" else FIRST_EPOCHS)
        sapling.save_on_the_way(run)
        sapling.heal(run)
        ranking = run.score()
        run.state.stopped = sapling.stop_reason(run, ranking.whole)
        if not run.state.stopped:
            run.drop(ranking)
        run.save_state(weights=SETTINGS["PATCH_EXAMPLES"] > 0 and not run.state.stopped)
    sapling.return_above_floor(run)
    sapling.heal(run, last=True)
    sapling.finish(run)


def check_settings(s: dict) -> None:
    """Raise UserError for a constant that makes no sense, alone or beside another."""
    check_choice("DROP_UNIT", DROP_UNIT, ("sublayer", "block"))
    check_choice("CRITERION", CRITERION, criteria.names())
    check_choice("TIES", TIES, ("nll", "norm"))
    check_choice("SCHEDULE", SCHEDULE, ("successive", "one_shot"))
    check_choice("UPDATE", UPDATE, ("full", "qlora"))
    check_recovery(s)
    training.check_settings(s)
    if ACCURACY_FLOOR and s["HEAL_AT"]:
        raise UserError(
            "a depth below ACCURACY_FLOOR would be healed in vain: set HEAL_AT = [], the last one is healed"
        )
    if SCHEDULE == "one_shot" and (ACCURACY_FLOOR or TARGET_MEMORY_GB or TARGET_LATENCY_MS):
        raise UserError("SCHEDULE = 'one_shot' drops to TARGET_SIZE at once: the other targets need 'successive'")
    if SCHEDULE == "one_shot" and DROP_UNIT == "sublayer" and PACKABLE_ONLY:
        raise UserError(
            "neighbours change with every drop: 'one_shot' needs DROP_UNIT = 'block' or PACKABLE_ONLY = False"
        )
    if SCHEDULE == "one_shot" and FIRST_EPOCHS and s["HEAL_AT"]:
        raise UserError(
            "SCHEDULE = 'one_shot' would train FIRST_EPOCHS between the depths of HEAL_AT: set FIRST_EPOCHS = 0, which "
            "leaves the training to HEALING_EPOCHS, or HEAL_AT = []"
        )
    if UPDATE == "qlora" and TARGET_LATENCY_MS:
        raise UserError("TARGET_LATENCY_MS cannot be measured on 4-bit weights: set another target, or UPDATE = 'full'")
    needs = criteria.get(CRITERION).needs
    if "blocks" in needs and DROP_UNIT == "sublayer":
        raise UserError(f"CRITERION = {CRITERION!r} is about whole blocks: set DROP_UNIT = 'block'")
    if "gradients" in needs and UPDATE == "qlora":
        raise UserError(
            f"CRITERION = {CRITERION!r} needs gradients of weights, which 4-bit ones have not: UPDATE = 'full'"
        )


def check_recovery(s: dict) -> None:
    """Raise UserError for constants of the recovery that make no sense."""
    if not s["KL"] and not s["CROSS_ENTROPY"]:
        raise UserError("KL and CROSS_ENTROPY are both 0: nothing would be learned")
    if sapling.needs_teacher(s) and not (TEACHER or START_FROM):
        raise UserError(
            "there is no teacher: set START_FROM to a finished run, or RECOVERY = 'paper' and a CRITERION without one"
        )
    if TEACHER and not sapling.needs_teacher(s):
        raise UserError("nothing is learned from TEACHER: KL and HIDDEN_STATES are 0, as RECOVERY = 'paper' has them")
    if RECOVERY == "paper" and SCHEDULE == "successive" and not CYCLE_EPOCHS:
        raise UserError("RECOVERY = 'paper' trains between drops: set CYCLE_EPOCHS above 0 (the paper: 1)")
    if UPDATE == "qlora" and TEACHER not in (None, START_FROM):
        raise UserError("with UPDATE = 'qlora' teacher and model share one base: TEACHER must be START_FROM, or None")


if __name__ == "__main__":
    run_script(main, resumes=True)
