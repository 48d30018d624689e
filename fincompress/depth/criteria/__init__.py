"""Pruning criteria: which unit goes first. A file of this folder is a criterion, named as the file.

It holds one function with the decorator ``@criterion()``, which gets

- ``model``: the scoring copy, in the type that is computed with; gradients can reach its weights (with
  UPDATE = "qlora" its adapters alone),
- ``units``: those that may be dropped, in the order in which they stand in the model,
- ``batches``: the calibration questions, which can be gone through more than once,
- ``context``: what else the run knows (``Context``),

and returns a ``Ranking``, mostly ``Ranking.lowest_first({unit: number})``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help names the criteria without importing torch
    import torch

    from fincompress.depth.ranking import Ranking, Unit


@dataclass(frozen=True)
class Criterion:
    """A criterion's function, and what it needs: "gradients" of the weights, a "teacher", whole "blocks"."""

    rank: Callable[..., Ranking]
    needs: tuple[str, ...]


@dataclass
class Context:
    """What a run tells its criterion."""

    seed: int = 0
    drops: float = 1  # units that go before the next training; infinite in one shot
    blocks: int = 1  # whole blocks that must go to reach the target size
    eliminate: bool = False  # whether a scan may eliminate units after a few questions
    earlier: dict[Unit, float] | None = None  # NLL lost without each unit, as the last scan found it
    teacher: Callable[[dict], torch.Tensor] | None = None  # logits of a batch's target tokens, of the unpruned model


_REGISTRY: dict[str, Criterion] = {}


def criterion(*needs: str) -> Callable:
    """Register the decorated function under the name of its file."""

    def register(function):
        _REGISTRY[function.__module__.rpartition(".")[2]] = Criterion(function, needs)
        return function

    return register


def names() -> list[str]:
    """Of all criteria: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Criterion:
    """The criterion of that name; its file is imported now."""
    importlib.import_module(f"{__name__}.{name}")
    return _REGISTRY[name]
