"""Fine-tune with QLoRA: LoRA adapters on a 4-bit NF4 base (Dettmers et al. 2023). The model that is made smaller later.

Reads the splits of results/<DATA_RUN>/ (preprocess_data.py). Writes results/<RUN>/: adapter/, merged/ (a standard
checkpoint), train_metrics.json, loss_curve.csv and .png. A killed run, started again with the same command, resumes.

    python train_qlora_4bit.py                                         SmolLM2-135M, the synthetic set
    recipes/finqa_smollm2.sh and recipes/llama2_7b_10gb.sh             other data, other models
"""

from fincompress.settings import configure

# -----------------------------------------------------------------------------
# Where
BASE_MODEL: str = "smollm2-135m"  # smollm2-135m (embedded), a folder, a hub id, or shape:<name> (random weights)
RESULTS_DIR: str = "results"  # every run gets a folder in here
DATA_RUN: str = "data"  # the run of preprocess_data.py to train on, tokenised for the same BASE_MODEL
RUN: str = "qlora_4bit"  # name of this run
START_FROM: str | None = None  # an earlier run of this script: its adapter is trained further
# What is trained
LORA_RANK: int = 32  # rank of the adapters on all linear layers; more learns more and costs little at this size
AUGMENT: str | None = None  # "figures": new ones in page, question and program after a pass, with START_FROM at once
EPOCHS: float = 1.0  # passes over the training set; on FinQA 1 over more data, then 3: docs/method.md
MAX_STEPS: int | None = None  # stop after so many optimizer steps instead; None: EPOCHS decide
LEARNING_RATE: float = 1e-3  # peak; 2e-4 suits 7B
# Batches
BATCH_SIZE: int = 4  # sequences at once; lower it first when memory is short
GRADIENT_ACCUMULATION: int = 1  # batches per optimizer step; the step sees BATCH_SIZE times this many sequences
GRADIENT_CHECKPOINTING: bool | None = None  # recompute activations: less memory, a third slower; None: on a GPU only
# Afterwards
MERGE: bool = True  # also write merged/, the adapter added to the dequantized base: what later phases start from
# Records
SAVE_STEPS: int = 100  # optimizer steps between checkpoints, a multiple of LOGGING_STEPS; a kill loses at most so many
LOGGING_STEPS: int = 10  # optimizer steps per point of the loss curve
REPORT_TO: str | None = None  # "tensorboard" (into the run's logs/) or "wandb": curves while it trains; no result
SEED: int = 0  # of the adapters' initial weights and the order of examples
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

from fincompress.errors import run_script
from fincompress.training import lora


def main() -> None:
    lora.train(SETTINGS, base_precision="nf4", script="train_qlora_4bit.py")


if __name__ == "__main__":
    run_script(main, resumes=True)
