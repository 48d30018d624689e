"""First-order Taylor expansion of the loss (Shortened LLaMA, Kim et al. 2024)."""

import torch

from fincompress.depth import sublayers as sub
from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.training.loss import target_logits, target_loss


@criterion("gradients")
def taylor(model, units, batches, context):
    """Sum of |weight * gradient| over the unit's weights, the gradient that of the NLL of all target tokens."""
    weights = {unit: [p for sublayer in unit for p in sub.parameters(model, sublayer)] for unit in units}
    model.requires_grad_(False)
    for parameter in (p for parameters in weights.values() for p in parameters):
        parameter.requires_grad_(True)
    with torch.enable_grad():
        for batch in batches:
            target_loss(*target_logits(model, batch), tokens=1).backward()
    return Ranking.lowest_first(
        {
            unit: sum(float((p.detach().float() * p.grad.float()).abs().sum()) for p in parameters)
            for unit, parameters in weights.items()
        }
    )
