"""What a stopped run resumes from: ``state.json``, and the file of changed weights that it names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fincompress import distributed, runs
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Unit
from fincompress.errors import UserError

STATE = "state.json"


@dataclass
class State:
    """How far a run has come, and its record so far. Weights are written first: a kill leaves the older pair whole."""

    weights: str | None = None  # the file of the changed weights that belong to this state
    trainable: list[str] = field(default_factory=list)  # names of the units that are trained
    trained: bool = True  # whether the training after the last drops is done
    patched: list[str] = field(default_factory=list)  # names of the weights that took up what a dropped unit did
    reference: dict | None = None  # calibration scores before any drop
    trajectory: list[dict] = field(default_factory=list)  # one row a drop
    depths: list[dict] = field(default_factory=list)  # one row a depth that was recovered
    layer_scores: list[dict] = field(default_factory=list)  # one row a unit and scan
    loss_curve: list[dict] = field(default_factory=list)
    scans: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    training_seconds: float = 0.0
    scanning_seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self.loss_curve[-1]["step"] if self.loss_curve else 0

    def earlier(self) -> dict[Unit, float]:
        """NLL lost without each unit, as the last scan before a drop found it."""
        rows = [row for row in self.layer_scores if row["purpose"] == "drop" and "nll" in row]
        last = [row for row in rows if row["scan"] == self.scans]
        return {sub.parse_unit(row["unit"]): row["nll"] - row["nll_whole"] for row in last}

    @classmethod
    def read(cls, directory: Path) -> State:
        """The state that a kill left, or a new one; raises UserError where it is lost or of another version."""
        path = directory / STATE
        if not path.exists():
            if any(directory.glob("[0-9]*")):
                raise UserError(f"{directory}/ holds depths but no {STATE}: remove that folder, or choose another RUN")
            return cls()
        values = runs.read_json(path)
        if set(values) != {f.name for f in fields(cls)}:
            raise UserError(f"{path} is no state of this version: remove {directory}/ to start again")
        return cls(**values)

    def write(self, directory: Path, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Write changed weights and the state that names them. Rank 0 does, and all processes know the name."""
        # A name of its own for each time: a kill before the state is written must leave the older file as it was.
        self.weights = f"state-{self.examples_seen}-{len(self.trajectory)}-{len(self.depths)}.safetensors"
        if not distributed.is_main():
            return
        with runs.atomic_path(directory / self.weights) as partial:
            save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, partial)
        runs.write_json(directory / STATE, asdict(self))
        for path in directory.glob("state-*.safetensors"):
            if path.name != self.weights:
                path.unlink()

    def read_weights(self, directory: Path) -> dict[str, torch.Tensor]:
        """The weights that were changed, by the names of the parameters."""
        path = directory / self.weights
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove {directory}/ to start again") from None
