"""By chance."""

import torch

from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking, Score


@criterion()
def random(model, units, batches, context):
    """An order that SEED decides."""
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(context.seed)).tolist()
    return Ranking([Score(units[i], value=float(place)) for place, i in enumerate(order)])
