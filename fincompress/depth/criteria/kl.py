"""KL(teacher || model) on the calibration split without the unit."""

from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.depth.scan import scan


@criterion("teacher", "patches")
def kl(model, units, batches, context):
    """First goes the unit without which the model stays nearest to its teacher."""
    scores, whole = scan(
        model, units, batches, context.drops, context.earlier, teacher=context.teacher, patches=context.patches
    )
    return Ranking(scores, whole, by="nll")
