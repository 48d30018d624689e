"""Blocks compiled by torch while a CPU trains them: what stands between the matrix products is fused."""

import contextlib
import functools
from collections.abc import Iterable

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

STEPS = 400  # of training from which on it pays: compiling saves up to a third of a step


@functools.cache
def compiler_works() -> bool:
    """Whether torch finds a C++ compiler here, and what that needs beside it."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=True)(torch.ones(8))
    except Exception as error:  # of dynamo, of inductor, or of whatever stands for a compiler
        print(f"blocks are not compiled, so slower by half: {str(error).strip().partition(chr(10))[0]}")
        return False
    return True


@contextlib.contextmanager
def compiled_blocks(models: Iterable[torch.nn.Module], steps: float):
    """The decoder blocks of ``models`` are compiled in here where that pays for so many ``steps`` and can be done.

    Copies that are made of a model meanwhile are not. Compiled blocks compute the same, and round less on the way.
    """
    if steps < STEPS or not compiler_works():
        yield
        return
    blocks = [part for model in models for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    print("compiling the blocks: the first step takes up to a minute or two")
    for block in blocks:
        block.compile(dynamic=True)
    try:
        with torch._dynamo.config.patch(suppress_errors=True):  # what a version of torch cannot compile runs as it is
            yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # Module.compile has no way back
        torch.compiler.reset()  # or the versions of one stage count against the limit of the next
