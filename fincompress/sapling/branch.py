"""A branch off a run: a model is changed for a while and is then what it was, to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch


@contextlib.contextmanager
def branch(model: torch.nn.Module, make_trainable: Callable[[], None]) -> Iterator[None]:
    """Train the model in here; afterwards its parameters have their values, types and ``requires_grad`` of before.

    ``make_trainable`` chooses what is trained: only that is held twice.
    """
    before = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    make_trainable()
    kept = []
    for parameter, data, required in before:
        in_place = parameter.requires_grad and parameter.data_ptr() == data.data_ptr()
        kept.append((parameter, data.clone() if in_place else data, required))
    try:
        yield
    finally:
        for parameter, data, required in kept:
            parameter.data = data
            parameter.requires_grad_(required)
            parameter.grad = None
