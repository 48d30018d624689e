"""Where a run's logs are shown while it trains: TensorBoard or Weights & Biases, through transformers' callbacks."""

from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from fincompress import distributed
from fincompress.errors import UserError
from fincompress.settings import check_choice

REPORTERS = ("tensorboard", "wandb")  # values of REPORT_TO, and the packages that they need
LOGS = "logs"  # TensorBoard's folder in a run's


def check_report_to(name: str | None) -> None:
    """Raise UserError for a REPORT_TO that is unknown or whose package is not installed."""
    if name is None:
        return
    check_choice("REPORT_TO", name, REPORTERS)
    try:
        get_reporting_integration_callbacks(name)[0]()
    except (ImportError, RuntimeError):
        raise UserError(f"REPORT_TO = {name!r} needs the package {name}: pip install {name}") from None


class Report(TrainerCallback):
    """Hands a run's logs and calibration scores to transformers' callback for REPORT_TO; with None to nothing.

    A SAPLING run trains in stages, each with a Trainer that counts from 0: ``before`` are the steps of earlier ones.
    """

    def __init__(self, report_to: str | None, directory: Path, arguments: TrainingArguments):
        self.arguments, self.before = arguments, 0
        wanted = report_to if distributed.is_main() else None
        self.callbacks = [kind() for kind in get_reporting_integration_callbacks(wanted or "none")]
        if wanted == "tensorboard" and self.callbacks[0].logging_dir is None:
            self.callbacks[0].logging_dir = str(directory / LOGS)  # the Trainer's folder is removed in the end

    def log(self, step: int, values: dict) -> None:
        """Show ``values`` at a step of the whole run; names that begin with ``eval_`` stand in a group of their own."""
        shown = {name: value for name, value in values.items() if value is not None}
        for callback in self.callbacks:
            callback.on_log(self.arguments, TrainerState(global_step=step), TrainerControl(), logs=shown)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.log(self.before + state.global_step, logs)

    def on_step_end(self, args, state, control, **kwargs):
        # Callbacks that score the calibration split write into the history alone; this one comes after them.
        last = state.log_history[-1] if state.log_history else {}
        if "calibration_nll" in last and last["step"] == state.global_step:
            scores = {f"eval_{name}": value for name, value in last.items() if name.startswith("calibration_")}
            self.log(self.before + state.global_step, scores)
