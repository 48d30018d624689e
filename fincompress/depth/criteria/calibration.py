"""Accuracy on the calibration split without the unit, patched (TrimLLM, Hu et al., ACL 2025)."""

from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.depth.scan import scan


@criterion("patches")
def calibration(model, units, batches, context):
    """First goes the unit without which most programs stay exact; ties fall to the NLL."""
    scores, whole = scan(model, units, batches, context.drops, context.earlier, patches=context.patches)
    return Ranking(scores, whole, by="accuracy")
