"""The unpruned model that a shrinking one learns from: a model of its own, or the same one with its blocks back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fincompress import runs
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError
from fincompress.sapling.gates import Gate
from fincompress.sapling.losses import Teaching
from fincompress.targets import IGNORE, target_outputs

ADAPTER = "teacher"  # name of phase 1's adapter beside the one that is trained


def needs_teacher(s: dict) -> bool:
    """Whether these constants learn from the unpruned model, or drop by it."""
    return s["KL"] > 0 or s["HIDDEN_STATES"] > 0 or s["CRITERION"] == "kl"


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


class TeachingCache:
    """The teacher's distributions over the target tokens of a fixed training set, computed once and kept in a file.

    ``identity`` says what they were computed from (teacher, data, temperature); a file of another is refused.
    """

    def __init__(self, path: Path, identity: str):
        self.path, self.identity = path, identity
        self.tensors: dict[str, torch.Tensor] = {}

    def load(self) -> bool:
        """Read the file; False where there is none. Raises UserError where it is damaged or belongs to other data."""
        if not self.path.exists():
            return False
        try:
            with safe_open(self.path, "pt") as file:
                found = (file.metadata() or {}).get("identity")
            self.tensors = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path} cannot be read ({error}): remove it") from None
        if found != self.identity:
            raise UserError(f"{self.path} was computed from another teacher or other data: remove it")
        return True

    def fill(self, teacher: Teacher, batches, temperature: float) -> None:
        """Ask the teacher about every batch; each has ``rows``, the numbers of its examples."""
        ids: dict[int, torch.Tensor] = {}
        log_probs: dict[int, torch.Tensor] = {}
        for batch in batches:
            teaching = Teaching.from_logits(teacher(batch)[0], temperature)
            sizes = batch["labels"][:, 1:].ne(IGNORE).sum(1).tolist()
            rows = batch["rows"].tolist()
            ids |= zip(rows, teaching.ids.cpu().int().split(sizes), strict=True)
            log_probs |= zip(rows, teaching.log_probs.cpu().split(sizes), strict=True)
        order = sorted(ids)
        counts = torch.tensor([0] + [len(ids[row]) for row in order])
        self.tensors = {
            "ids": torch.cat([ids[row] for row in order]),
            "log_probs": torch.cat([log_probs[row] for row in order]),
            "starts": counts.cumsum(0),
        }
        with runs.atomic_path(self.path) as partial:
            save_file(self.tensors, partial, metadata={"identity": self.identity})

    def __getitem__(self, rows: torch.Tensor) -> Teaching:
        """What the teacher says of the target tokens of these examples, one example after another."""
        starts = self.tensors["starts"]
        where = torch.cat([torch.arange(int(starts[row]), int(starts[row + 1])) for row in rows.tolist()])
        return Teaching(
            self.tensors["ids"][where].long().to(rows.device), self.tensors["log_probs"][where].to(rows.device)
        )
