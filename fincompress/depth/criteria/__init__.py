"""Pruning criteria: which unit goes first. A file of this folder is a criterion, named as the file.

It holds one function of that name with the decorator ``@criterion()``, which gets

- ``model``: the scoring copy, in the type that is computed with; gradients can reach its weights (with
  UPDATE = "qlora" its adapters alone),
- ``units``: those that may be dropped, in the order in which they stand in the model,
- ``batches``: the calibration questions, which can be gone through more than once,
- ``context``: what else the run knows (``Context``),

and returns a ``Ranking``, mostly ``Ranking.lowest_first({unit: number})``.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fincompress.depth.ranking import Ranking, Unit
from fincompress.depth.scan import Patch


@dataclass
class Context:
    """What a run tells its criterion."""

    seed: int = 0
    drops: int = 1  # units that go by this ranking
    earlier: dict[Unit, float] | None = None  # NLL lost without each unit, as the last scan found it
    teacher: Callable[[dict], torch.Tensor] | None = None  # logits of a batch's target tokens, of the unpruned model
    patches: dict[Unit, Patch] = field(default_factory=dict)  # with which units would be dropped


def criterion(*needs: str) -> Callable:
    """Mark a criterion's function, which bears the name of its file, with what it needs: "gradients" of the weights, a
    "teacher", whole "blocks", "patches"."""

    def mark(function):
        function.needs = needs
        return function

    return mark


def names() -> list[str]:
    """Of all criteria: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Callable[..., Ranking]:
    """The criterion of that name, with its ``needs``; its file is imported now."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)
