"""Name, skip and remove the attention and MLP sub-layers of a Llama-like decoder.

Such a decoder is a residual stream to which every block adds twice: ``x += attention(norm(x))``, ``x += mlp(norm(x))``.
A sub-layer is one of those additions with its norm. Without it the stream passes unchanged: what is skipped is the
addition, never the stream (SAPLING's released code loses the stream when an attention is dropped).
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from fincompress.errors import UserError

KINDS = ("attention", "mlp")
LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")  # model types whose blocks add twice to the stream, unscaled
# Where a sub-layer lies in a decoder block of these: its norm and its body.
PARTS = {"attention": ("input_layernorm", "self_attn"), "mlp": ("post_attention_layernorm", "mlp")}
PROJECTIONS = {"attention": "o_proj", "mlp": "down_proj"}  # the last of each body: what it gives is added to the stream
Parts = dict[tuple[int, str], nn.Module]  # (block, name of the part) -> the module that stood there


class SubLayer(NamedTuple):
    """One addition to the residual stream, named by the block it stood in when the model was loaded."""

    block: int
    kind: str  # "attention" or "mlp"; alphabetical order is the order within a block

    def __str__(self) -> str:
        return f"{self.kind}.{self.block}"


class Nothing(nn.Module):
    """Stands where an attention or an MLP stood and adds nothing to the residual stream."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, hidden_states: torch.Tensor, **kwargs):
        zero = hidden_states.new_zeros(())  # broadcast: x + 0 is x, to the bit
        return (zero, None) if self.kind == "attention" else zero


def decoder(model: nn.Module) -> nn.Module:
    """The decoder inside a causal language model, with or without LoRA: it has ``embed_tokens``, ``layers``, ``norm``.

    Raises UserError where its blocks may not be built the Llama way: other wiring would be skipped or patched wrongly,
    in silence.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config.model_type not in LIKE_LLAMA:
        raise UserError(f"a {base.config.model_type} is not built like a Llama: {', '.join(LIKE_LLAMA)} are")
    return base.get_decoder()


def module(model: nn.Module, sublayer: SubLayer) -> nn.Module:
    """The attention or MLP module of a sub-layer, or ``Nothing`` where it was removed."""
    return getattr(decoder(model).layers[sublayer.block], PARTS[sublayer.kind][1])


def projection(model: nn.Module, sublayer: SubLayer) -> nn.Linear:
    """What a sub-layer that was not removed ends with."""
    return getattr(module(model, sublayer), PROJECTIONS[sublayer.kind])


def sublayers(model: nn.Module) -> list[SubLayer]:
    """Those that are left, in the order in which they add to the stream."""
    every = [SubLayer(block, kind) for block in range(len(decoder(model).layers)) for kind in KINDS]
    return [sublayer for sublayer in every if not isinstance(module(model, sublayer), Nothing)]


def units(model: nn.Module, drop_unit: str, packable: bool = False) -> list[tuple[SubLayer, ...]]:
    """What may be dropped at once: each sub-layer, or all that is left of each block (``drop_unit``).

    With ``packable`` sub-layers go in pairs of neighbours, an attention and an MLP: of one block, or the MLP of one and
    the attention of the next. What is left is then always a sequence of whole blocks.
    """
    left = sublayers(model)
    if drop_unit == "block":
        return [tuple(block) for _, block in itertools.groupby(left, key=lambda sublayer: sublayer.block)]
    if packable:
        return [pair for pair in itertools.pairwise(left) if pair[0].kind != pair[1].kind]
    return [(sublayer,) for sublayer in left]


def unit_name(unit: tuple[SubLayer, ...]) -> str:
    """``attention.3``, ``mlp.3``, ``block.3`` for both, ``mlp.3+attention.4`` for a pair across blocks."""
    if len(unit) == 2 and unit[0].block == unit[1].block:
        return f"block.{unit[0].block}"
    return "+".join(map(str, unit))


def parse_unit(name: str) -> tuple[SubLayer, ...]:
    """The inverse of ``unit_name``."""
    parts = [(kind, int(block)) for kind, _, block in (part.partition(".") for part in name.split("+"))]
    return tuple(SubLayer(block, k) for kind, block in parts for k in (KINDS if kind == "block" else [kind]))


def parameters(model: nn.Module, sublayer: SubLayer) -> Iterator[nn.Parameter]:
    """The parameters of a sub-layer, its norm included."""
    for part in PARTS[sublayer.kind]:
        yield from getattr(decoder(model).layers[sublayer.block], part).parameters()


def skipped(model: nn.Module, *gone: SubLayer):
    """Run the model without some sub-layers; afterwards it is as it was."""
    return restored(model, _empty(gone))


def remove(model: nn.Module, *gone: SubLayer) -> Parts:
    """Take sub-layers out for good and return what stood there; their memory is free once that is forgotten.

    The attentions that are left are numbered again, so that a KV cache has a slot for each and none for the others.
    """
    layers = decoder(model).layers
    parts = _put(layers, _empty(gone))
    attentions = [block.self_attn for block in layers if not isinstance(block.self_attn, Nothing)]
    for index, attention in enumerate(attentions):
        attention.layer_idx = index
    return parts


@contextlib.contextmanager
def restored(model: nn.Module, parts: Parts):
    """Run the model with these modules in their places, such as removed ones; afterwards it is as it was.

    Attentions keep their numbers: a pass with a KV cache needs them numbered again.
    """
    layers = decoder(model).layers
    before = _put(layers, parts)
    try:
        yield
    finally:
        _put(layers, before)


def _put(layers: nn.ModuleList, parts: Parts) -> Parts:
    """Put modules into their places; returns what stood there."""
    before = {(block, part): getattr(layers[block], part) for block, part in parts}
    for (block, part), module in parts.items():
        setattr(layers[block], part, module)
    return before


def _empty(gone: tuple[SubLayer, ...]) -> Parts:
    """What stands in the place of removed sub-layers."""
    return {
        (sublayer.block, part): nothing
        for sublayer in gone
        for part, nothing in zip(PARTS[sublayer.kind], (nn.Identity(), Nothing(sublayer.kind)), strict=True)
    }
