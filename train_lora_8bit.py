"""Fine-tune with LoRA adapters on an 8-bit base (LLM.int8, Dettmers et al. 2022).

The same data, recipe and records as train_qlora_4bit.py; only the base's precision differs. An int8 base of 7B takes
6.7 GB where NF4 takes 3.5, which leaves a 10 GB GPU room for a batch of one.

    python train_lora_8bit.py                                          SmolLM2-135M, the synthetic set
    recipes/finqa_smollm2.sh and recipes/llama2_7b_10gb.sh             other data, other models
"""

from fincompress.settings import configure

# -----------------------------------------------------------------------------
# Where
BASE_MODEL: str = "smollm2-135m"  # smollm2-135m (embedded), a folder, a hub id, or shape:<name> (random weights)
RESULTS_DIR: str = "results"  # every run gets a folder in here
DATA_RUN: str = "data"  # the run of preprocess_data.py to train on, tokenised for the same BASE_MODEL
RUN: str = "lora_8bit"  # name of this run
START_FROM: str | None = None  # an earlier run of this script: its adapter is trained further
# What is trained
LORA_RANK: int = 32  # rank of the adapters on all linear layers; more learns more and costs little at this size
AUGMENT: str | None = None  # "figures": new ones in page, question and program after a pass, with START_FROM at once
EPOCHS: float = 0.3  # passes over the training set; here it is shown, not trained to its best: on FinQA as QLoRA is
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
    lora.train(SETTINGS, base_precision="int8", script="train_lora_8bit.py")


if __name__ == "__main__":
    run_script(main, resumes=True)
