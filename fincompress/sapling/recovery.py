"""How a shrinking model is trained: with its teacher, with moments that outlive a drop, to its best step."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from fincompress import runs
from fincompress.sapling import losses
from fincompress.sapling.teacher import Teacher, TeachingCache
from fincompress.training import TargetTrainer
from fincompress.training.loss import IGNORE, score_targets, target_outputs

Moments = dict[str, dict[str, torch.Tensor | int]]  # name of a parameter -> what the optimizer keeps of it
PREFIX = "moments:"  # before the name of a parameter in a file that holds weights too


class Recovery:
    """The loss of one batch: ``kl`` * KL + ``cross_entropy`` * CE, and hidden states scaled by ``hidden_states``.

    ``teacher`` is None where both weights of what it says are 0. A ``cache`` asks it once an example, and not about
    hidden states.
    """

    def __init__(
        self, kl: float, cross_entropy: float, hidden_states: float, temperature: float,
        teacher: Teacher | None = None, cache: TeachingCache | None = None,
    ):  # fmt: skip
        self.kl, self.cross_entropy, self.hidden_states = kl, cross_entropy, hidden_states
        self.temperature = temperature
        self.teacher, self.cache = teacher, cache

    def loss(self, model, batch: dict[str, torch.Tensor], targets: torch.Tensor | int | None = None) -> torch.Tensor:
        """Mean loss per target token; ``targets`` is their number where the optimizer's step sees several batches."""
        logits, labels, states = target_outputs(model, batch, hidden_states=self.hidden_states > 0)
        counted = labels.ne(IGNORE)
        logits, tokens = logits[counted], labels[counted]
        count = len(tokens) if targets is None else targets
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.cross_entropy:
            loss = loss + self.cross_entropy * F.cross_entropy(logits.float(), tokens, reduction="sum") / count
        if self.teacher is None and self.cache is None:
            return loss
        if self.cache is not None:
            teaching, theirs = self.cache(batch), None
        else:
            taught, theirs = self.teacher(batch, hidden_states=self.hidden_states > 0)
            teaching = losses.Teaching.from_logits(taught, self.temperature)
        if self.kl:
            loss = loss + self.kl * losses.kl(logits, teaching, self.temperature).sum() / count
        if theirs is None:
            return loss
        distance = losses.hidden_distance(states, theirs, losses.matched_blocks(model), batch["attention_mask"])
        return losses.with_hidden_states(loss, distance, self.hidden_states)


class RecoveryTrainer(TargetTrainer):
    """``TargetTrainer`` with the loss of a ``Recovery``, whose optimizer goes on with the ``moments`` it is given."""

    recovery: Recovery
    moments: Moments | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.recovery.loss(model, inputs, num_items_in_batch)

    def create_optimizer(self, *arguments, **options):
        optimizer = super().create_optimizer(*arguments, **options)
        for name, parameter in self.model.named_parameters():
            if self.moments and name in self.moments:
                optimizer.state[parameter] = self.moments[name]
        return optimizer

    def moments_by_name(self) -> Moments:
        """What the optimizer keeps of each trained parameter that is still in the model."""
        state = self.optimizer.state
        return {name: dict(state[p]) for name, p in self.model.named_parameters() if p in state and state[p]}


def moments_to_tensors(moments: Moments) -> dict[str, torch.Tensor]:
    """Moments as tensors for a safetensors file, each with memory of its own, under names that begin with PREFIX."""
    tensors, seen = {}, set()
    for name, kept in moments.items():
        for key, value in kept.items():
            number = not isinstance(value, torch.Tensor)  # bitsandbytes counts steps in an int
            tensor = torch.tensor(value) if number else value.detach().cpu().contiguous()
            if tensor.data_ptr() in seen:  # and shares one quantization map between all parameters
                tensor = tensor.clone()
            seen.add(tensor.data_ptr())
            tensors[f"{PREFIX}{name}:{key}:{'number' if number else 'tensor'}"] = tensor
    return tensors


def moments_from_tensors(tensors: dict[str, torch.Tensor], device: torch.device) -> Moments:
    """The inverse of ``moments_to_tensors``; names without PREFIX are passed over."""
    moments: Moments = {}
    for full, tensor in tensors.items():
        if full.startswith(PREFIX):
            name, key, kind = full.removeprefix(PREFIX).rsplit(":", 2)
            moments.setdefault(name, {})[key] = tensor.item() if kind == "number" else tensor.to(device)
    return moments


class KeepBest(TrainerCallback):
    """Scores the calibration split along the way, keeps the weights of the best score and stops where it stays worse.

    ``every`` optimizer steps, and after the last. The best weights lie beside the Trainer's checkpoints, so that a
    killed run finds them. What was found stands in ``log_history``, as ``calibration_nll`` and ``calibration_exact``.
    """

    def __init__(self, model, calibration, collator, batch_size: int, dtype: torch.dtype, every: int, patience: int):
        self.model, self.calibration, self.collator = model, calibration, collator
        self.batch_size, self.dtype, self.every, self.patience = batch_size, dtype, every, patience

    @staticmethod
    def scores(log_history: list[dict]) -> list[dict]:
        return [row for row in log_history if "calibration_nll" in row]

    def path(self, args) -> Path:
        return Path(args.output_dir) / "best.safetensors"

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def on_step_end(self, args, state, control, **kwargs):
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not last:
            return
        nll, exact = score_targets(self.model, self.calibration, self.collator, self.batch_size, self.dtype)
        before = [row["calibration_nll"] for row in self.scores(state.log_history)]
        found = round(nll.mean().item(), 5)
        state.log_history.append(
            {
                "step": state.global_step,
                "calibration_nll": found,
                "calibration_exact": round(exact.float().mean().item(), 5),
            }
        )
        if found < min(before, default=float("inf")):
            if not last:  # the last weights are those in memory
                with runs.atomic_path(self.path(args)) as partial:
                    save_file({name: p.detach().cpu().contiguous() for name, p in self.trained().items()}, partial)
            return
        since = len(before) - before.index(min(before))
        if since >= self.patience:
            control.should_training_stop = True

    def restore_best(self, args, log_history: list[dict]) -> dict:
        """Give the model its best weights, and return their scores."""
        scores = self.scores(log_history)
        best = min(scores, key=lambda row: row["calibration_nll"])
        if best is not scores[-1]:
            weights = load_file(self.path(args))
            for name, parameter in self.trained().items():
                parameter.data.copy_(weights[name])
        return best
