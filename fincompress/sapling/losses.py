"""What recovery minimises: KL to the teacher on target tokens, a share of cross-entropy, and matched hidden states.

The weights were chosen on the calibration split (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fincompress import distributed
from fincompress.depth import repack
from fincompress.depth import sublayers as sub
from fincompress.training.loss import at_targets, target_outputs

CROSS_ENTROPY = 0.3  # weight beside KL's 1; without a teacher it is all there is
TEMPERATURE = 2.0  # of both distributions in KL
TOP_K = 128  # tokens of the teacher's distribution that are matched one by one; the others are matched as a sum
POSITIONS = 64  # tokens of an example at which hidden states are matched
LEAST_PROBABILITY = 1e-7  # of all other tokens together: keeps the logarithm of what float32 rounds to 0
LEAST_DISTANCE = 1e-3  # hidden states closer than this are not pulled harder: the ratio of the losses has no limit


@dataclass
class Teaching:
    """What the teacher says of a batch: its distribution over each target token, at a temperature, and hidden states.

    ``ids`` and ``log_probs`` are its likeliest tokens, (target tokens, k). What ``exp(log_probs)`` lacks to 1 is the
    probability of all other tokens together. ``hidden`` is the stream after every block, or None: see ``at_positions``.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    hidden: torch.Tensor | None = None

    @classmethod
    def from_logits(cls, logits: torch.Tensor) -> Teaching:
        """From logits of shape (target tokens, vocabulary)."""
        log_probs = F.log_softmax(logits.float() / TEMPERATURE, dim=-1)
        top = log_probs.topk(min(TOP_K, logits.shape[-1]))
        return cls(top.indices, top.values)


class RecoveryLoss:
    """The loss of one batch: KL to the teacher + CROSS_ENTROPY * cross-entropy + distance of hidden states.

    ``teach`` is the teacher's, ``Teacher.teach``. Without a teacher it is the cross-entropy of the gold
    program alone, as in phase 1 and in the paper.
    """

    def __init__(self, teach: Callable[[dict], Teaching] | None):
        self.teach = teach

    def __call__(
        self, model, batch: dict[str, torch.Tensor], targets: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Mean loss per target token; ``targets`` is their number where the optimizer's step sees several batches."""
        logits, labels, states = target_outputs(model, batch, hidden_states=self.teach is not None)
        logits, tokens = at_targets(logits, labels), at_targets(labels, labels)
        count = len(tokens) if targets is None else targets
        weight = 1.0 if self.teach is None else CROSS_ENTROPY
        loss = weight * F.cross_entropy(logits.float(), tokens, reduction="sum") / count
        if self.teach is None:
            return loss
        teaching = self.teach(batch)
        loss = loss + kl(logits, teaching).sum() / count
        blocks = matched_blocks(getattr(model, "module", model))  # where several processes train one
        ours = at_positions(states, blocks, batch["attention_mask"])
        return with_hidden_states(loss, hidden_distance(ours, teaching.hidden[:, blocks]))


def kl(logits: torch.Tensor, teaching: Teaching) -> torch.Tensor:
    """KL(teacher || student) of each target token, (target tokens,) in nats, times the temperature's square.

    ``logits`` are the student's, (target tokens, vocabulary). The square keeps gradients comparable between
    temperatures (Hinton et al. 2015).
    """
    ours = F.log_softmax(logits.float() / TEMPERATURE, dim=-1).gather(-1, teaching.ids)
    theirs = teaching.log_probs
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    if teaching.ids.shape[-1] < logits.shape[-1]:
        theirs_rest, ours_rest = _log_rest(theirs), _log_rest(ours)
        divergence = divergence + theirs_rest.exp() * (theirs_rest - ours_rest)
    return divergence * TEMPERATURE**2


def _log_rest(log_probs: torch.Tensor) -> torch.Tensor:
    return (1 - log_probs.exp().sum(-1)).clamp(min=LEAST_PROBABILITY).log()


def matched_blocks(model) -> list[int]:
    """Original numbers of the blocks after which the student's stream is compared with the teacher's.

    They are where a block of the repacked model ends: after its MLP, or after an attention without one.
    """
    return [(block.mlp or block.attention).block for block in repack.pair(sub.sublayers(model))]


def at_positions(states: tuple[torch.Tensor, ...], blocks: Iterable[int], mask: torch.Tensor) -> torch.Tensor:
    """The stream after ``blocks`` at evenly spaced tokens of each example: (batch, blocks, POSITIONS, hidden).

    ``states`` are ``hidden_states`` of transformers: the embeddings, then each block's output, of shape (batch, tokens,
    hidden). ``mask`` is (batch, tokens), padded on the left; an example's tokens are the same in every batch.
    """
    length = mask.sum(1, keepdim=True)
    steps = torch.linspace(0, 1, POSITIONS, device=mask.device)
    positions = mask.shape[1] - length + (steps * (length - 1)).round().long()
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return torch.stack([states[block + 1][rows, positions] for block in blocks], dim=1)


def hidden_distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cosine between two streams, of the shape that ``at_positions`` gives."""
    return 1 - F.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean()


def with_hidden_states(loss: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """``loss`` plus the distance, scaled to be as large as the loss (Minitron, arXiv 2407.14679).

    Of several processes, which share a batch, each has its part of the loss and of the distance: the scale is that of
    the whole batch. The batches of one step (GRADIENT_ACCUMULATION) have a scale each.
    """
    count = distributed.size()
    whole, apart = distributed.total(torch.stack([loss.detach(), distance.detach() / count]))
    return loss + (whole / apart.clamp(min=LEAST_DISTANCE)) * distance / count
