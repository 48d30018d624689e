"""A patch in closed form: what a unit adds to the stream is folded into the projection before it, then it is dropped.

As in ReplaceMe (arXiv 2505.02819) that projection is one that stays, so that a patched model is an ordinary one. A base
in 4 bits, which the teacher shares, cannot take it up: there the adapter does, as far as its rank allows.
"""

from collections.abc import Iterable

import torch
from peft.tuners.lora import LoraLayer

from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Unit
from fincompress.depth.scan import Patch, trace
from fincompress.depth.sublayers import SubLayer

SUMS_GB = 2.0  # of sums that are held at once, on the device; units beyond it cost another pass over the examples
RIDGE = 0.01  # of the mean of the Gram matrix's diagonal


@torch.no_grad()
def absorb(
    model: torch.nn.Module, unit: Unit, batches: Iterable[dict[str, torch.Tensor]], adapters: bool = False
) -> list[torch.nn.Parameter]:
    """Change the last projection before ``unit`` to add, as nearly as it can, what the unit adds too.

    Returns the parameters that changed: the projection's weight, or with ``adapters`` both matrices of its active
    adapter. None do where no projection before it reads anything (the unit is the first that is left, or follows an
    empty slot), or where that one has no adapter.
    """
    sums = _sums(model, [unit], batches)
    if not sums:
        return []
    before, gram, cross = sums[unit]
    gram, cross = gram.cpu().double(), cross.cpu().double()
    projection = sub.projection(model, before)
    if adapters:
        return add_to_adapter(projection, _solved(gram, cross), gram) if isinstance(projection, LoraLayer) else []
    added = _solved(gram, cross).to(projection.weight.device, torch.float32)
    # Held in float32 from now on: one-shot drops patch before the weights that are trained are.
    projection.weight.data = projection.weight.data.float() + added
    return [projection.weight]


@torch.no_grad()
def fit_patches(model: torch.nn.Module, units: list[Unit], batches: list[dict[str, torch.Tensor]]) -> dict[Unit, Patch]:
    """What ``absorb`` would add to a weight for each of ``units``; nothing is changed. Some have no patch."""
    patches, at_once = {}, units_at_once(model.config)
    for begin in range(0, len(units), at_once):
        patches |= {  # no name outlives it: the next pass's sums would lie beside the last unit's
            unit: Patch(before, _solved(gram.cpu().double(), cross.cpu().double()).to(model.dtype))
            for unit, (before, gram, cross) in _sums(model, units[begin : begin + at_once], batches).items()
        }
    return patches


def units_at_once(config) -> int:
    """Units whose patches are fitted in one pass over the examples."""
    return max(1, int(1e9 * SUMS_GB / sums_bytes(config)))


def sums_bytes(config) -> int:
    """Bytes of the sums of one unit with an MLP before it, whose projection is the widest."""
    return 4 * config.intermediate_size * (config.intermediate_size + config.hidden_size)


def _sums(model, units: list[Unit], batches) -> dict[Unit, tuple[SubLayer, torch.Tensor, torch.Tensor]]:
    """Of each unit with a projection before it that reads something: its sub-layer, and the regression's sums.

    It is a ridge regression from the projection's inputs to what the unit adds to the stream, over all tokens of
    ``batches``. Tokens are weighted by the inverse of their stream's norm, which is what the next norm sees of them: a
    few are a hundred times as long as others. The sums are the Gram matrix of the inputs, (in, in), and that of inputs
    and outputs, (in, hidden), in float32 on the model's device.
    """
    left, sums = sub.sublayers(model), {}
    before = {unit: left[left.index(unit[0]) - 1] for unit in units if unit[0] != left[0]}
    for batch in batches:
        seen, real = trace(model, batch, before.values()), batch["attention_mask"].bool()
        for unit, sublayer in before.items():
            entering, leaving = (stream[real].float() for stream in seen.around(unit[0], unit[-1]))
            weight = 1 / entering.norm(dim=-1, keepdim=True)
            inputs, wanted = seen.inputs[sublayer][real].float() * weight, (leaving - entering) * weight
            if unit not in sums:
                sums[unit] = sublayer, *(inputs.new_zeros(inputs.shape[1], each.shape[1]) for each in (inputs, wanted))
            with torch.autocast(inputs.device.type, enabled=False):  # it would multiply in 16 bits
                for total, each in zip(sums[unit][1:], (inputs, wanted), strict=True):
                    total.addmm_(inputs.T, each)
        del seen  # its streams, before the next batch has its own
    return {unit: (sublayer, gram, cross) for unit, (sublayer, gram, cross) in sums.items() if gram.any()}


def _solved(gram: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """The regression's solution, (hidden, in); the ridge is added to ``gram``."""
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, cross).T


def add_to_adapter(projection: LoraLayer, added: torch.Tensor, gram: torch.Tensor) -> list[torch.nn.Parameter]:
    """Add a matrix, (out, in), to the active adapter of a projection, whose rank stays.

    What is left out is the least that can be, over inputs with this Gram matrix (in, in): the sum W of both is
    projected onto the first eigenvectors of W gram W^T.
    """
    (name,) = projection.active_adapters
    inner, outer = projection.lora_A[name].weight, projection.lora_B[name].weight
    scale = projection.scaling[name]
    whole = added + scale * outer.cpu().double() @ inner.cpu().double()
    directions = torch.linalg.eigh(whole @ gram @ whole.T).eigenvectors[:, -len(inner) :]
    rows = directions.T @ whole / scale
    size = rows.norm(dim=1).clamp_min(1e-12).sqrt()  # shared between both, as gradients of each grow with the other
    for parameter, value in ((inner, rows / size[:, None]), (outer, directions * size)):
        # Eigenvectors come column by column. What a killed run reads back does not, and fused optimizers take a weight
        # and its moments in the order of their memory.
        parameter.data = value.to(parameter.device, parameter.dtype).contiguous()
    return [inner, outer]
