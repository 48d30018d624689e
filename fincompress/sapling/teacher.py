"""The unpruned model that a shrinking one learns from: a model of its own, or the same one with its blocks back."""

import contextlib

import torch

from fincompress import models, runs
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError
from fincompress.sapling.losses import Teaching, at_positions
from fincompress.training.loss import at_targets, target_outputs

ADAPTER = "teacher"  # name of phase 1's adapter beside the one that is trained


def teacher_run(s: dict) -> str | None:
    """The finished run to learn from; None without a teacher."""
    return s["START_FROM"] if s["TEACHER"] == "start" else s["TEACHER"]


class Teacher:
    """Answers with the target tokens' logits of a whole model, without gradients. This one is a model of its own.

    ``blocks`` are the numbers here of the blocks that the student starts with; None: it starts with all of them.
    """

    blocks: list[int] | None = None

    def __init__(self, model, blocks: list[int] | None = None):
        self.model, self.blocks = model.eval().requires_grad_(False), blocks

    def whole(self):
        """A context that gives the model as it teaches."""
        return contextlib.nullcontext(self.model)

    @torch.no_grad()
    def __call__(self, batch: dict, hidden_states: bool = False) -> tuple[torch.Tensor, tuple | None]:
        """``(logits, hidden_states)`` of a batch: (target tokens, vocabulary), and the stream around every block."""
        with self.whole() as model:
            logits, labels, states = target_outputs(model, batch, hidden_states)
        return at_targets(logits, labels), states

    def teach(self, batch: dict) -> Teaching:
        """What a student needs of a batch."""
        logits, states = self(batch, hidden_states=True)
        teaching = Teaching.from_logits(logits)
        blocks = self.blocks or range(len(states) - 1)
        last = blocks[-1] + 1
        if last < len(states) - 1:  # a model's last state is behind its final norm, as the student's is
            states = (*states[:last], sub.decoder(self.model).norm(states[last]))
        teaching.hidden = at_positions(states, blocks, batch["attention_mask"])
        return teaching


class SharedTeacher(Teacher):
    """Teaches with the student's own NF4 base: every block is back, under phase 1's adapter (or under none).

    ``removed`` are the parts that were taken out of the student so far, kept up to date by the run. No weight is held
    twice but the adapter's.
    """

    def __init__(self, model, removed: sub.Parts, has_adapter: bool):
        self.model, self.removed, self.has_adapter = model, removed, has_adapter

    @contextlib.contextmanager
    def whole(self):
        model = self.model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        training = model.training
        model.eval()
        try:
            with sub.restored(model, self.removed), self._under_adapter():
                yield model
        finally:
            model.train(training)
            model.requires_grad_(False)  # peft lets gradients reach whichever adapter it switches to
            for parameter in trained:
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def _under_adapter(self):
        if not self.has_adapter:
            with self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else contextlib.nullcontext():
                yield
            return
        student = self.model.active_adapter
        self.model.base_model.set_adapter(ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            self.model.base_model.set_adapter(student)


def load_teacher(student) -> Teacher | None:
    """The teacher that is a model of its own; None where there is none, or it shares the student's NF4 base."""
    s, run = student.settings, teacher_run(student.settings)
    if run is None or s["UPDATE"] == "qlora":
        return None
    path = str(models.dense_checkpoint(run, s["RESULTS_DIR"]))
    blocks, _ = original_blocks(s["RESULTS_DIR"], run, models.read_config(path))
    if not set(student.blocks) <= set(blocks):
        raise UserError(f"the teacher {run!r} lacks layers that the model to shrink has: name another")
    model = models.load_base(path, "auto", student.device, student.dtype)
    return Teacher(model, [blocks.index(number) for number in student.blocks])


def original_blocks(results_dir: str, run: str | None, config) -> tuple[list[int], int]:
    """Which layers of the unpruned model a run's model, of this config, has, and how many that one had.

    A repacked layer has the number of the one where it ends.
    """
    path = runs.run_directory(results_dir, run) / "train_metrics.json" if run else None
    metrics = runs.read_json(path) if path and path.exists() else {}
    blocks = metrics.get("blocks") or list(range(config.num_hidden_layers))
    return blocks, metrics.get("original_layers") or config.num_hidden_layers
