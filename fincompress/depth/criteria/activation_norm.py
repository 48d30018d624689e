"""Frobenius norm of what the unit adds to the stream: TrimLLM's tie-breaker on its own."""

import math

from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.depth.scan import trace


@criterion()
def activation_norm(model, units, batches, context):
    """100 * (least norm of all units) / (norm of this one): the largest norm goes first."""
    squares = dict.fromkeys(units, 0.0)
    for batch in batches:
        seen = trace(model, batch)
        for unit in units:
            squares[unit] += seen.squares(unit)
    # A slot filled with zeros adds nothing: it goes first.
    least = min(filter(None, squares.values()), default=0.0)
    return Ranking.lowest_first({u: 100 * math.sqrt(least / total) if total else -1.0 for u, total in squares.items()})
