"""From the end of the model."""

from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking, Score


@criterion()
def last(model, units, batches, context):
    """The last unit goes first."""
    return Ranking([Score(unit, value=float(-place)) for place, unit in enumerate(reversed(units))])
