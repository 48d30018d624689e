"""What is left of a pruned decoder, packed into a standard model of fewer blocks.

The sub-layers that are left form a sequence, ``A0 M0 A1 M2 A3 M3``. An attention followed by an MLP is an ordinary
block, whichever blocks they came from, so the result is a plain Llama (or Mistral, Qwen) that any tool loads. An
attention followed by an attention, or an MLP by an MLP, leaves a slot that is filled with zeros and costs its size.
"""

import copy
from typing import NamedTuple

import torch
from torch import nn

from fincompress.depth import sublayers as sub
from fincompress.depth.sublayers import PARTS, SubLayer
from fincompress.training.loss import target_logits


class Block(NamedTuple):
    """The sub-layers of one packed block; None is a slot that adds nothing and is filled with zeros."""

    attention: SubLayer | None
    mlp: SubLayer | None


def pair(left: list[SubLayer]) -> list[Block]:
    """The fewest blocks that hold these sub-layers in this order."""
    blocks: list[Block] = []
    for sublayer in left:
        if sublayer.kind == "attention":
            blocks.append(Block(sublayer, None))
        elif blocks and blocks[-1].mlp is None:
            blocks[-1] = Block(blocks[-1].attention, sublayer)
        else:
            blocks.append(Block(None, sublayer))
    return blocks


def checkpoint_parameters(model: nn.Module, sizes: dict[str, int]) -> int:
    """Parameters of the packed model, zero-filled slots included; ``sizes`` are of ``memory.parameter_sizes``."""
    blocks = len(pair(sub.sublayers(model)))
    return sizes["embeddings"] + blocks * (sizes["attention"] + sizes["mlp"])


@torch.no_grad()
def check_equal(model: nn.Module, packed: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Raise RuntimeError where the packed model's logits are not those of the model it was packed from."""
    ours, theirs = target_logits(model, batch)[0], target_logits(packed, batch)[0]
    tolerance = 1e-4 if ours.dtype == torch.float32 else 1e-2  # kernels of a GPU need not sum in the same order
    apart = ((ours.float() - theirs.float()).norm() / ours.float().norm()).item()
    if not apart < tolerance:
        raise RuntimeError(f"repacking changed the logits by {apart:.2g} of their norm")


def repacked_config(config, blocks: list[Block]):
    """A copy of ``config`` for these blocks: the depth, and every list that has one entry a block."""
    values, depth = config.to_dict(), config.num_hidden_layers
    kept = [(block.attention or block.mlp).block for block in blocks]  # a list's entries are about the attention
    for name, value in values.items():
        per_block = isinstance(value, (list, tuple)) and len(value) == depth
        if per_block and not name.endswith(("_token_id", "architectures")):
            values[name] = [value[block] for block in kept]
    packed = type(config).from_dict(values | {"num_hidden_layers": len(blocks)})
    packed._attn_implementation = config._attn_implementation
    return packed


def shortened_config(config, blocks: int):
    """A copy of ``config`` for a model of its first ``blocks`` blocks."""
    return repacked_config(config, [Block(SubLayer(i, "attention"), SubLayer(i, "mlp")) for i in range(blocks)])


def repacked_model(model: nn.Module) -> nn.Module:
    """A model of fewer blocks that shares its sub-layers with ``model`` (dense, NF4, or with LoRA inside).

    Nothing is copied: what trains in one trains in the other. Slots without a partner get zeros of their own.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    source = sub.decoder(model)
    blocks = pair(sub.sublayers(model))
    config = repacked_config(base.config, blocks)
    with torch.device("meta"):
        packed = type(base)._from_config(config)
    target = packed.get_decoder()
    target.embed_tokens, target.norm, target.rotary_emb = source.embed_tokens, source.norm, source.rotary_emb
    packed.set_output_embeddings(base.get_output_embeddings())
    device, dtype = source.embed_tokens.weight.device, base.dtype
    for number, block in enumerate(blocks):
        for kind, sublayer in zip(PARTS, block, strict=True):
            for part in PARTS[kind]:
                if sublayer is not None:
                    setattr(target.layers[number], part, getattr(source.layers[sublayer.block], part))
                else:
                    _zero(getattr(target.layers[number], part), device, dtype)
        target.layers[number].self_attn.layer_idx = number
    packed.generation_config = copy.deepcopy(base.generation_config)
    return packed.eval()


def _zero(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give a module on the meta device weights of its own: zeros, so that it adds nothing."""
    module.to_empty(device=device).to(dtype).requires_grad_(False)
    for parameter in module.parameters():
        parameter.data.zero_()
