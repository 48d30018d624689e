"""Training: ``loss`` on target tokens, the ``trainer`` of every phase (its names are also here), and ``lora``."""

from fincompress.training.loss import TargetCollator
from fincompress.training.origin import check_adapter, check_origin
from fincompress.training.report import LOGS, Report
from fincompress.training.rows import TrainingRows
from fincompress.training.trainer import (
    Progress,
    TargetTrainer,
    check_settings,
    last_checkpoint,
    release_model,
    run_facts,
    shuffled_stream,
    training_arguments,
)
