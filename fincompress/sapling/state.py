"""What a killed run resumes from: ``state.json``, and the file of trained weights and moments that it names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fincompress import distributed, runs
from fincompress.errors import UserError

STATE = "state.json"
PREFIX = "moments:"  # before the name of a parameter in a file that holds weights too
Moments = dict[str, dict[str, torch.Tensor | int]]  # name of a parameter -> what the optimizer keeps of it


@dataclass
class State:
    """How far a run has come, and its record so far. Weights are written first: a kill leaves the older pair whole."""

    weights: str | None = None  # the file of the trained weights that belong to this state
    trainable: list[str] | None = None  # names of the units that are trained
    trainable_healing: list[str] | None = None  # and of those that are trained in healing
    trained: bool = False  # whether the training before the next drop is done
    # Names of the weights that took up what a dropped unit did, or were healed and kept
    patched: list[str] = field(default_factory=list)
    ranking: list[str] | None = None  # names of the units in the order in which one shot drops them
    healed: list[dict] = field(default_factory=list)  # one row a depth that was healed
    stopped: str | None = None  # why no more is dropped
    trajectory: list[dict] = field(default_factory=list)  # one row a drop
    layer_scores: list[dict] = field(default_factory=list)  # one row a unit and scan
    loss_curve: list[dict] = field(default_factory=list)
    scans: int = 0
    last_above_floor: dict | None = None  # units left, drops and file of weights when the accuracy floor was last met
    reference: dict | None = None  # calibration scores before any drop
    examples_seen: int = 0  # these three without healing that was not kept, of which each row above says its own
    tokens_seen: int = 0
    training_seconds: float = 0.0
    scanning_seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps so far, those of healing included."""
        return self.loss_curve[-1]["step"] if self.loss_curve else 0

    @classmethod
    def read(cls, directory: Path) -> State:
        """The state that a kill left, or a new one; raises UserError where it is lost or of another version."""
        path = directory / STATE
        if path.exists():
            values = runs.read_json(path)
            if set(values) != {f.name for f in fields(cls)}:
                raise UserError(f"{path} is no state of this version: remove {directory}/ to start again")
            return cls(**values)
        depths = sorted(path.name for path in directory.glob("[0-9]*"))
        if depths:
            raise UserError(
                f"{directory}/ holds depths {', '.join(depths)} but no {STATE}: nothing to resume from; "
                "remove that folder, or choose another RUN"
            )
        return cls()

    def write(self, directory: Path) -> None:
        """Write it, and remove files of weights that it does not name. Of several processes rank 0 does."""
        if not distributed.is_main():
            return
        runs.write_json(directory / STATE, asdict(self))
        kept = {self.weights, (self.last_above_floor or {}).get("weights")}
        for path in directory.glob("state-*.safetensors"):
            if path.name not in kept:
                path.unlink()

    def write_weights(self, directory: Path, parameters: dict[str, torch.nn.Parameter], moments: Moments) -> None:
        """Write changed weights and the moments of those weights; ``write`` the state afterwards.

        Of several processes rank 0 does, and all know the file.
        """
        # A name of its own for each time: a kill before ``write`` must leave the older file as it was.
        self.weights = f"state-{self.scans:04d}-{self.examples_seen}-{len(self.trajectory)}.safetensors"
        if not distributed.is_main():
            return
        tensors = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
        tensors |= moments_to_tensors({name: kept for name, kept in moments.items() if name in parameters})
        with runs.atomic_path(directory / self.weights) as partial:
            save_file(tensors, partial)

    def read_weights(self, directory: Path, device: torch.device) -> tuple[dict[str, torch.Tensor], Moments]:
        """The weights that were trained and the optimizer's moments, as the state has them."""
        path = directory / self.weights
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove {directory}/ to start again") from None
        return tensors, moments_from_tensors(tensors, device)


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
