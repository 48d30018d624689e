"""Accuracy on the calibration split without the unit (TrimLLM, Hu et al., ACL 2025)."""

from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.depth.scan import scan


@criterion()
def calibration(model, units, batches, context):
    """First goes the unit without which most programs stay exact; ties fall to the NLL, then to the norm."""
    scores, whole = scan(model, units, batches, context.eliminate, context.drops, context.earlier)
    return Ranking(scores, whole, by="accuracy")
