"""The unpruned model that a shrinking one learns from: a model of its own, or the same one with its blocks back."""

import contextlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fincompress import models, runs
from fincompress.depth import criteria
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError
from fincompress.sapling.losses import Teaching, at_positions
from fincompress.training.loss import IGNORE, at_targets, target_outputs

ADAPTER = "teacher"  # name of phase 1's adapter beside the one that is trained


def needs_teacher(s: dict) -> bool:
    """Whether these constants learn from the unpruned model, or drop by it."""
    return s["KL"] > 0 or s["HIDDEN_STATES"] > 0 or "teacher" in criteria.get(s["CRITERION"]).needs


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

    def teach(self, batch: dict, temperature: float, hidden_states: bool) -> Teaching:
        """What a student needs of a batch, where nothing is kept."""
        logits, states = self(batch, hidden_states)
        teaching = Teaching.from_logits(logits, temperature)
        if hidden_states:
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

    def __init__(self, model, removed: sub.Parts, adapter: str | None):
        self.model, self.removed, self.adapter = model, removed, adapter

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
        if self.adapter is None:
            with self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else contextlib.nullcontext():
                yield
            return
        student = self.model.active_adapter
        self.model.base_model.set_adapter(self.adapter, inference_mode=True)
        try:
            yield
        finally:
            self.model.base_model.set_adapter(student)


def load_teacher(student) -> Teacher | None:
    """The teacher that is a model of its own; None where none is needed, or it shares the student's NF4 base."""
    s = student.settings
    if not needs_teacher(s) or s["UPDATE"] == "qlora":
        return None
    run = s["TEACHER"] or s["START_FROM"]
    path = str(models.dense_checkpoint(run, s["RESULTS_DIR"]))
    blocks = original_blocks(s["RESULTS_DIR"], run, models.read_config(path))
    if not set(student.blocks) <= set(blocks):
        raise UserError(f"the teacher {run!r} lacks blocks that the model to shrink has: name another")
    model = models.load_base(path, "auto", student.device, student.dtype)
    return Teacher(model, [blocks.index(number) for number in student.blocks])


def original_blocks(results_dir: str, run: str | None, config) -> list[int]:
    """Numbers of the blocks of a run's model, of this config, in the unpruned model that it was made of.

    A repacked block has the number of the block where it ends.
    """
    path = runs.run_directory(results_dir, run) / "train_metrics.json" if run else None
    metrics = runs.read_json(path) if path and path.exists() else {}
    if metrics.get("dropped") and "blocks" not in metrics:  # an older one
        raise UserError(f"{path} does not say which blocks {run!r} has kept: train that run again")
    return metrics.get("blocks") or list(range(config.num_hidden_layers))


class TeachingCache:
    """What the teacher says of a fixed training set: each example is asked about once, and has a file in ``folder``.

    A killed run finds them: it would ask again in other batches. Hidden states, gigabytes of them, are kept in
    ``hidden_dtype``; None: there are none.
    """

    def __init__(self, folder: Path, teacher: Teacher, temperature: float, hidden_dtype: torch.dtype | None = None):
        self.folder, self.teacher, self.temperature, self.hidden_dtype = folder, teacher, temperature, hidden_dtype

    def path(self, row: int) -> Path:
        return self.folder / f"{row}.safetensors"

    def __call__(self, batch: dict[str, torch.Tensor]) -> Teaching:
        """What the teacher says of a batch whose ``rows`` are the numbers of its examples."""
        rows, device = batch["rows"].tolist(), str(batch["rows"].device)
        if not all(self.path(row).exists() for row in rows):
            self.ask(batch, rows)
        try:
            examples = [load_file(self.path(row), device) for row in rows]
        except SafetensorError as error:
            raise UserError(f"{self.folder}/ holds a damaged file ({error}): remove the folder") from None
        ids, log_probs = (torch.cat([example[name] for example in examples]) for name in ("ids", "log_probs"))
        hidden = torch.stack([example["hidden"] for example in examples]) if self.hidden_dtype else None
        return Teaching(ids.long(), log_probs, hidden)

    def ask(self, batch: dict[str, torch.Tensor], rows: list[int]) -> None:
        """Ask the teacher about a batch, and keep its word on the examples that are new."""
        teaching = self.teacher.teach(batch, self.temperature, self.hidden_dtype is not None)
        sizes = batch["labels"][:, 1:].ne(IGNORE).sum(1).tolist()
        ids, log_probs = teaching.ids.int().split(sizes), teaching.log_probs.split(sizes)
        for i, row in enumerate(rows):
            if not self.path(row).exists():
                hidden = {"hidden": teaching.hidden[i].to(self.hidden_dtype)} if self.hidden_dtype else {}
                with runs.atomic_path(self.path(row)) as partial:
                    save_file({"ids": ids[i], "log_probs": log_probs[i], **hidden}, partial)
