"""The unpruned model that a shrinking one learns from: a model of its own, or the same one with its blocks back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from fincompress import models, runs
from fincompress.depth import criteria
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError
from fincompress.sapling.gates import Gate
from fincompress.sapling.losses import Teaching
from fincompress.targets import IGNORE, target_outputs

ADAPTER = "teacher"  # name of phase 1's adapter beside the one that is trained


def needs_teacher(s: dict) -> bool:
    """Whether these constants learn from the unpruned model, or drop by it."""
    return s["KL"] > 0 or s["HIDDEN_STATES"] > 0 or "teacher" in criteria.get(s["CRITERION"]).needs


class Teacher:
    """Answers with the target tokens' logits of a whole model, without gradients. This one is a model of its own."""

    def __init__(self, model):
        self.model = model.eval().requires_grad_(False)

    @contextlib.contextmanager
    def whole(self):
        """The model as it teaches."""
        yield self.model

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

    What was said is kept in a file. ``identity`` says what it was computed from (teacher, data, temperature); a file
    of another is refused.
    """

    def __init__(self, path: Path, identity: str, teacher: Teacher, temperature: float):
        self.path, self.identity, self.teacher, self.temperature = path, identity, teacher, temperature
        self.known: dict[int, Teaching] = {}  # number of the example -> its target tokens
        if path.exists():
            self._read()

    def _read(self) -> None:
        """Raises UserError where the file is damaged or belongs to other data."""
        try:
            with safe_open(self.path, "pt") as file:
                found = (file.metadata() or {}).get("identity")
            tensors = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path} cannot be read ({error}): remove it") from None
        if found != self.identity:
            raise UserError(f"{self.path} was computed from another teacher or other data: remove it")
        sizes = tensors["sizes"].tolist()
        parts = zip(tensors["ids"].split(sizes), tensors["log_probs"].split(sizes), strict=True)
        self.known = {row: Teaching(*part) for row, part in zip(tensors["rows"].tolist(), parts, strict=True)}

    def write(self) -> None:
        """Keep what is known so far."""
        rows = sorted(self.known)
        tensors = {
            "rows": torch.tensor(rows),
            "sizes": torch.tensor([len(self.known[row].ids) for row in rows]),
            "ids": torch.cat([self.known[row].ids for row in rows]),
            "log_probs": torch.cat([self.known[row].log_probs for row in rows]),
        }
        with runs.atomic_path(self.path) as partial:
            save_file(tensors, partial, metadata={"identity": self.identity})

    def __call__(self, batch: dict[str, torch.Tensor]) -> Teaching:
        """What the teacher says of the target tokens of a batch whose ``rows`` are the numbers of its examples."""
        rows = batch["rows"].tolist()
        if not self.known.keys() >= set(rows):
            teaching = Teaching.from_logits(self.teacher(batch)[0], self.temperature)
            sizes = batch["labels"][:, 1:].ne(IGNORE).sum(1).tolist()
            parts = zip(teaching.ids.cpu().int().split(sizes), teaching.log_probs.cpu().split(sizes), strict=True)
            for row, part in zip(rows, parts, strict=True):
                self.known.setdefault(row, Teaching(*part))
        known = [self.known[row] for row in rows]
        device = batch["rows"].device
        ids, log_probs = (torch.cat([getattr(one, name) for one in known]) for name in ("ids", "log_probs"))
        return Teaching(ids.long().to(device), log_probs.to(device))


class WriteCache(TrainerCallback):
    """Writes a cache with each checkpoint of the Trainer, or a killed run would ask again in other batches."""

    def __init__(self, cache: TeachingCache):
        self.cache = cache

    def on_save(self, args, state, control, **kwargs):
        self.cache.write()

    def on_train_end(self, args, state, control, **kwargs):
        self.cache.write()
