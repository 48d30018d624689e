"""The loss on target tokens: batches and their padding, the logits that belong to targets, and how well they fit."""

import datasets
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import pad_sequence

from fincompress import distributed
from fincompress.errors import UserError

IGNORE = -100  # label of a position that carries no loss


def autocast(device: torch.device | str, dtype: torch.dtype, cache: bool | None = None):
    """Compute products in ``dtype``, whatever type the weights are kept in.

    Trainable weights that were cast stay in memory to the end of it, unless ``cache`` is False; None: as around it.
    """
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32, cache_enabled=cache)


class TargetCollator:
    """Rows of ``input_ids`` (prompt + target + EOS) and ``prompt_tokens`` to a batch padded on the left.

    With K one more than the batch's longest target, ``labels`` is (batch, K) and belongs to the last K positions, in
    the unshifted convention of Hugging Face: prompt and padding are -100, the EOS that ends a target is not. Where rows
    say their number in the training set (``row``), the batch has ``rows``.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        targets = [sequence[row["prompt_tokens"] :] for sequence, row in zip(ids, rows, strict=True)]
        attention_mask = _pad([torch.ones_like(sequence) for sequence in ids], 0)
        batch = {
            "input_ids": _pad(ids, self.pad_token_id),
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
            "labels": F.pad(_pad(targets, IGNORE), (1, 0), value=IGNORE),
        }
        if "row" in rows[0]:
            batch["rows"] = torch.tensor([row["row"] for row in rows])
        return batch


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")


def target_loss(logits: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor | int | None = None) -> torch.Tensor:
    """Mean cross-entropy in nats per target token, from aligned logits and labels.

    ``tokens`` is the number to divide by where an optimizer step sees several batches.
    """
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (labels.ne(IGNORE).sum() if tokens is None else tokens)


def target_logits(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """``(logits, labels)``, aligned: (batch, K - 1, vocabulary) and (batch, K - 1)."""
    return target_outputs(model, batch)[:2]


def target_outputs(
    model, batch: dict[str, torch.Tensor], hidden_states: bool = False
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """``target_logits``, and the residual stream before and after every block.

    The head runs on the last K positions alone. The positions are given as an index, not as a number: a slice of the
    hidden states is not contiguous, and the matrix product would then copy the whole head once per row of the batch.
    Hidden states, (batch, tokens, hidden) each, are None unless asked for.
    """
    labels = batch["labels"]
    length, keep = batch["input_ids"].shape[1], labels.shape[1]
    positions = torch.arange(length - keep, length, device=labels.device)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    options = {"output_hidden_states": True} if hidden_states else {}
    output = model(**inputs, logits_to_keep=positions, use_cache=False, **options)
    return output.logits[:, :-1], labels[:, 1:], output.hidden_states if hidden_states else None


def at_targets(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Those of ``values``, (batch, K, ...), that belong to target tokens: (target tokens, ...), row after row."""
    if isinstance(labels, FakeTensor):  # simulated: which labels count is data, so all do
        return values.flatten(0, 1)
    return values[labels.ne(IGNORE)]


def question_scores(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced ``(nll, exact)`` of each row of (batch, K) labels, from the logits of the target tokens alone:
    (target tokens, vocabulary), row after row.

    ``nll`` is the mean negative log-likelihood in nats per target token, EOS included. ``exact`` says whether every
    target token is the model's first choice, that is, whether greedy decoding would write the target to the letter.
    With a ``teacher``'s logits of the same tokens, KL(teacher || model) stands for the negative log-likelihood.
    """
    counted = labels.ne(IGNORE)
    numbers = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    rows, tokens = at_targets(numbers, labels), at_targets(labels, labels)
    if teacher is None:
        losses = F.cross_entropy(logits.float(), tokens, reduction="none")
    else:
        ours, theirs = F.log_softmax(logits.float(), dim=-1), F.log_softmax(teacher.float(), dim=-1)
        losses = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    sums = losses.new_zeros(len(labels))
    wrong = sums.index_add(0, rows, logits.argmax(-1).ne(tokens).to(sums))
    return sums.index_add(0, rows, losses) / counted.sum(1), wrong == 0


@torch.no_grad()
def score_targets(
    model, dataset: datasets.Dataset, collator: TargetCollator, batch_size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """``question_scores`` of every example, each of shape (examples,), in the order of the dataset.

    Several processes share the batches, and all get all scores.

    Raises UserError where a score is not finite.
    """
    training = model.training
    model.eval()
    nll, exact = torch.zeros(len(dataset)), torch.zeros(len(dataset), dtype=torch.bool)
    by_length = sorted(range(len(dataset)), key=dataset["length"].__getitem__)
    for start in range(distributed.rank() * batch_size, len(by_length), distributed.size() * batch_size):
        indices = by_length[start : start + batch_size]
        batch = {k: v.to(model.device) for k, v in collator([dataset[i] for i in indices]).items()}
        with autocast(model.device, dtype):
            logits, labels = target_logits(model, batch)
        scores = question_scores(at_targets(logits, labels), labels)
        nll[indices], exact[indices] = scores[0].cpu(), scores[1].cpu()
    model.train(training)
    nll, exact = distributed.total(nll), distributed.total(exact.int()).bool()
    if not torch.isfinite(nll).all():
        raise UserError("the model computes no numbers on calibration: lower LEARNING_RATE, under another RUN")
    return nll, exact


def calibration_means(nll: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """Mean NLL in nats per target token and share of exact matches, from those of every calibration question."""
    return {
        "calibration_nll": round(nll.mean().item(), 5),
        "calibration_exact": round(exact.float().mean().item(), 5),
    }
