"""First-order Taylor expansion of the loss (Shortened LLaMA, Kim et al. 2024)."""

import torch
import torch.nn.functional as F

from fincompress.depth import sublayers as sub
from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.training.loss import IGNORE, target_logits


@criterion("gradients")
def taylor(model, units, batches, context):
    """Sum of |weight * gradient| over the unit's weights, the gradient that of the NLL of all target tokens."""
    weights = {unit: [p for one in unit for p in sub.parameters(model, one)] for unit in units}
    model.requires_grad_(False)
    for parameter in (p for some in weights.values() for p in some):
        parameter.requires_grad_(True)
    with torch.enable_grad():
        for batch in batches:
            logits, labels = target_logits(model, batch)
            F.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
            ).backward()
    return Ranking.lowest_first(
        {unit: sum(float((p.detach() * p.grad).abs().sum()) for p in some) for unit, some in weights.items()}
    )
