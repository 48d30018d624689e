"""Fading: a dropped sub-layer stays for a while, and what it adds to the stream falls from 1 times to 0 times."""

import contextlib
from collections.abc import Iterator

from transformers import TrainerCallback

from fincompress.depth import sublayers as sub
from fincompress.depth.sublayers import SubLayer


class Gate:
    """Multiplies what some sub-layers add to the stream by ``value``; 1 is the model as it was, 0 without them."""

    def __init__(self, value: float = 1.0):
        self.value = value

    def _scale(self, module, arguments, output):
        if isinstance(output, tuple):  # an attention also returns its weights
            return (output[0] * self.value, *output[1:])
        return output * self.value

    @contextlib.contextmanager
    def on(self, model, *sublayers: SubLayer) -> Iterator[None]:
        """Put the gate behind these sub-layers of a model; afterwards it is as it was."""
        hooks = [sub.module(model, one).register_forward_hook(self._scale) for one in sublayers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Let everything through for a while, as the teacher needs it that shares the model."""
        value, self.value = self.value, 1.0
        try:
            yield
        finally:
            self.value = value


class CloseGate(TrainerCallback):
    """Lets a gate fall linearly over a stage of training: 1 in the first step, 0 when the stage is over."""

    def __init__(self, gate: Gate):
        self.gate = gate

    def on_step_begin(self, args, state, control, **kwargs):
        self.gate.value = 1 - state.global_step / state.max_steps
