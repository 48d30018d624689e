"""Angular distance (Gromov et al. 2024)."""

import math

import torch
import torch.nn.functional as F

from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.depth.scan import trace


@criterion("blocks")
def angular(model, units, batches, context):
    """arccos(cosine) / pi of the stream before and after the block, at the last token, mean over questions.

    Of several that go together, neighbours go: those over which the stream turns least stand in front.
    """
    totals, questions = dict.fromkeys(units, 0.0), 0
    width = min(context.drops, len(units))
    windows = torch.zeros(len(units) - width + 1)
    for batch in batches:
        seen = trace(model, batch)
        questions += len(batch["labels"])
        for unit in units:
            totals[unit] += float(_turn(*seen.around(unit[0], unit[-1])))
        for start in range(len(windows)):
            windows[start] += _turn(*seen.around(units[start][0], units[start + width - 1][-1])).cpu()
    ranking = Ranking.lowest_first({unit: total / questions for unit, total in totals.items()})
    start = int(windows.argmin())
    ranking.scores.sort(key=lambda score: score.unit not in units[start : start + width])
    return ranking


def _turn(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Sum over a batch: 0 where the last tokens' streams point alike, 1 a question where they are opposed."""
    cosine = F.cosine_similarity(before[:, -1].float(), after[:, -1].float(), dim=-1)
    return (torch.arccos(cosine.clamp(-1, 1)) / math.pi).sum()
