"""A patch in closed form: what a unit adds to the stream is folded into the projection before it, then it is dropped.

As in ReplaceMe (arXiv 2505.02819) that projection is one that stays, so that a patched model is an ordinary one.
"""

from collections.abc import Iterable

import torch

from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Unit
from fincompress.depth.scan import trace

PROJECTIONS = {"attention": "o_proj", "mlp": "down_proj"}
RIDGE = 0.01  # of the mean of the Gram matrix's diagonal


@torch.no_grad()
def absorb(model: torch.nn.Module, unit: Unit, batches: Iterable[dict[str, torch.Tensor]]) -> torch.nn.Parameter | None:
    """Change the last projection before ``unit`` to add, as nearly as it can, what the unit adds too; returns it.

    That is a ridge regression from the projection's inputs to what the unit adds to the stream, over all tokens of
    ``batches``. Tokens are weighted by the inverse of their stream's norm, which is what the next norm sees of them: a
    few are a hundred times as long as others. None where no projection before it reads anything: the unit is the first
    that is left, or follows an empty slot.
    """
    left = sub.sublayers(model)
    place = left.index(unit[0])
    if place == 0:
        return None
    before = left[place - 1]
    projection, seen = getattr(sub.module(model, before), PROJECTIONS[before.kind]), []
    device = projection.weight.device
    gram = torch.zeros(projection.in_features, projection.in_features, dtype=torch.float64, device=device)
    cross = torch.zeros(projection.in_features, projection.out_features, dtype=torch.float64, device=device)
    hook = projection.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        for batch in batches:
            entering, leaving = trace(model, batch).around(unit[0], unit[-1])
            real = batch["attention_mask"].bool()
            weight = 1 / entering[real].float().norm(dim=-1, keepdim=True)
            inputs = seen.pop()[real].float() * weight
            with torch.autocast(device.type, enabled=False):  # it would multiply in 16 bits
                gram += inputs.T @ inputs
                cross += inputs.T @ ((leaving - entering)[real].float() * weight)
    finally:
        hook.remove()
    if not gram.any():
        return None
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    # Held in float32 from now on: one-shot drops patch before the weights that are trained are.
    projection.weight.data = projection.weight.data.float() + torch.linalg.solve(gram, cross).T.float()
    return projection.weight
