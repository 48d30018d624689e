"""The unpruned model that a shrinking one learns from: a model of its own, or the same one with its blocks back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fincompress import models, runs
from fincompress.depth import criteria
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError
from fincompress.sapling.gates import Gate
from fincompress.sapling.losses import Teaching
from fincompress.training.loss import IGNORE, target_outputs

ADAPTER = "teacher"  # name of phase 1's adapter beside the one that is trained


def needs_teacher(s: dict) -> bool:
    """Whether these constants learn from the unpruned model, or drop by it."""
    return s["KL"] > 0 or s["HIDDEN_STATES"] > 0 or "teacher" in criteria.get(s["CRITERION"]).needs


class Teacher:
    """Answers with the target tokens' logits of a whole model, without gradients. This one is a model of its own."""

    def __init__(self, model):
        self.model = model.eval().requires_grad_(False)

    def whole(self):
        """A context that gives the model as it teaches."""
        return contextlib.nullcontext(self.model)

    @torch.no_grad()
    def __call__(self, batch: dict, hidden_states: bool = False) -> tuple[torch.Tensor, tuple | None]:
        """``(logits, hidden_states)`` of a batch: (target tokens, vocabulary), and the stream around every block."""
        with self.whole() as model:
            logits, labels, states = target_outputs(model, batch, hidden_states)
        return logits[labels.ne(IGNORE)], states


class SharedTeacher(Teacher):
    """Teaches with the student's own NF4 base: every block is back, under phase 1's adapter (or under none).

    ``removed`` are the parts that were taken out of the student so far, kept up to date by the run. No weight is held
    twice but the adapter's.
    """

    def __init__(self, model, removed: sub.Parts, gate: Gate, adapter: str | None):
        self.model, self.removed, self.gate, self.adapter = model, removed, gate, adapter

    @contextlib.contextmanager
    def whole(self):
        model = self.model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        training = model.training
        model.eval()
        try:
            with sub.restored(model, self.removed), self.gate.open(), self._under_adapter():
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
    if models.read_config(path).num_hidden_layers != student.config.num_hidden_layers:
        raise UserError(f"the teacher {run!r} has another number of blocks than the model to shrink: name another")
    return Teacher(models.load_base(path, "auto", student.device, student.dtype))


class TeachingCache:
    """The teacher's distributions over the target tokens of a fixed training set: each example is asked about once.

    What was said is kept in a file. ``identity`` says what it was computed from (teacher, data, temperature).
    Raises UserError where the file is damaged or of another identity.
    """

    def __init__(self, path: Path, identity: str, teacher: Teacher, temperature: float):
        self.path, self.identity, self.teacher, self.temperature = path, identity, teacher, temperature
        self.known: dict[int, Teaching] = {}  # number of the example -> its target tokens
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                found = (file.metadata() or {}).get("identity")
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it") from None
        if found != identity:
            raise UserError(f"{path} was computed from another teacher or other data: remove it")
        rows = [name.removeprefix("ids:") for name in tensors if name.startswith("ids:")]
        self.known = {int(row): Teaching(tensors[f"ids:{row}"], tensors[f"log_probs:{row}"]) for row in rows}

    def write(self) -> None:
        """Keep what is known so far."""
        tensors = {f"{name}:{row}": tensor for row, one in self.known.items() for name, tensor in vars(one).items()}
        with runs.atomic_path(self.path) as partial:
            save_file(tensors, partial, metadata={"identity": self.identity})

    def __call__(self, batch: dict[str, torch.Tensor]) -> Teaching:
        """What the teacher says of the target tokens of a batch whose ``rows`` are the numbers of its examples."""
        rows = batch["rows"].tolist()
        if not self.known.keys() >= set(rows):
            teaching = Teaching.from_logits(self.teacher(batch)[0], self.temperature)
            sizes = batch["labels"][:, 1:].ne(IGNORE).sum(1).tolist()
            for row, ids, log_probs in zip(
                rows, teaching.ids.cpu().int().split(sizes), teaching.log_probs.cpu().split(sizes), strict=True
            ):
                self.known.setdefault(row, Teaching(ids.clone(), log_probs.clone()))
        known, device = [self.known[row] for row in rows], batch["rows"].device
        ids, log_probs = (torch.cat([getattr(one, name) for one in known]) for name in ("ids", "log_probs"))
        return Teaching(ids.long().to(device), log_probs.to(device))
