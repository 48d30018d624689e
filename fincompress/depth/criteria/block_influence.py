"""Block influence (ShortGPT, Men et al. 2024)."""

import torch.nn.functional as F

from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.depth.scan import trace


@criterion()
def block_influence(model, units, batches, context):
    """1 - cosine of the stream before and after the unit, mean over tokens."""
    totals, tokens = dict.fromkeys(units, 0.0), 0
    for batch in batches:
        seen, mask = trace(model, batch), batch["attention_mask"].bool()
        tokens += int(mask.sum())
        for unit in units:
            before, after = seen.around(unit[0], unit[-1])
            totals[unit] += float((1 - F.cosine_similarity(before.float(), after.float(), dim=-1))[mask].sum())
    return Ranking.lowest_first({unit: total / tokens for unit, total in totals.items()})
