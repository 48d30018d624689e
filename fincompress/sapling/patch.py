"""A patch in closed form: what a unit adds to the stream is folded into the projection before it, then it is dropped.

As in ReplaceMe (arXiv 2505.02819) that projection is one that stays, so that a patched model is an ordinary one. A base
in 4 bits, which the teacher shares, cannot take it up: there the adapter does, as far as its rank allows.
"""

from collections.abc import Iterable

import torch
from peft.tuners.lora import LoraLayer

from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Unit
from fincompress.depth.scan import trace

PROJECTIONS = {"attention": "o_proj", "mlp": "down_proj"}
RIDGE = 0.01  # of the mean of the Gram matrix's diagonal


@torch.no_grad()
def absorb(
    model: torch.nn.Module, unit: Unit, batches: Iterable[dict[str, torch.Tensor]], adapters: bool = False
) -> list[torch.nn.Parameter]:
    """Change the last projection before ``unit`` to add, as nearly as it can, what the unit adds too.

    That is a ridge regression from the projection's inputs to what the unit adds to the stream, over all tokens of
    ``batches``. Tokens are weighted by the inverse of their stream's norm, which is what the next norm sees of them: a
    few are a hundred times as long as others. Returns the parameters that changed: the projection's weight, or with
    ``adapters`` both matrices of its active adapter. None do where no projection before it reads anything (the unit is
    the first that is left, or follows an empty slot), or where that one has no adapter.
    """
    left = sub.sublayers(model)
    place = left.index(unit[0])
    if place == 0:
        return []
    before = left[place - 1]
    projection, seen = getattr(sub.module(model, before), PROJECTIONS[before.kind]), []
    if adapters and not isinstance(projection, LoraLayer):
        return []
    # In main memory: for a 7B model they are gigabytes.
    gram = torch.zeros(projection.in_features, projection.in_features, dtype=torch.float64)
    cross = torch.zeros(projection.in_features, projection.out_features, dtype=torch.float64)
    hook = projection.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        for batch in batches:
            entering, leaving = trace(model, batch).around(unit[0], unit[-1])
            real = batch["attention_mask"].bool()
            weight = 1 / entering[real].float().norm(dim=-1, keepdim=True)
            inputs = seen.pop()[real].float() * weight
            with torch.autocast(inputs.device.type, enabled=False):  # it would multiply in 16 bits
                gram += (inputs.T @ inputs).cpu()
                cross += (inputs.T @ ((leaving - entering)[real].float() * weight)).cpu()
    finally:
        hook.remove()
    if not gram.any():
        return []
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    added = torch.linalg.solve(gram, cross).T
    if adapters:
        return add_to_adapter(projection, added, gram)
    # Held in float32 from now on: one-shot drops patch before the weights that are trained are.
    projection.weight.data = projection.weight.data.float() + added.to(projection.weight.device, torch.float32)
    return [projection.weight]


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
        parameter.data = value.to(parameter.device, parameter.dtype)
    return [inner, outer]
