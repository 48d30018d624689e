"""Batched greedy decoding."""

from __future__ import annotations

import statistics
import time

import datasets
import torch
from tqdm import tqdm

from fincompress.errors import UserError


@torch.inference_mode()
def generate(model, tokenizer, dataset: datasets.Dataset, batch_size: int, max_new_tokens: int) -> list[dict]:
    """Greedy continuations of every prompt, in the order of the dataset.

    One ``{"output": str, "ended": bool, "new_tokens": int}`` an example; ``ended`` says that the model wrote EOS by
    itself. Batches hold prompts of like length, longest first, so that what does not fit in memory fails at once.
    """
    results: list[dict | None] = [None] * len(dataset)
    lengths = list(dataset["prompt_tokens"])
    longest_first = sorted(range(len(dataset)), key=lambda i: -lengths[i])
    eos = tokenizer.eos_token_id
    settings = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": eos,
        # As an index, for a slice of the prompt's hidden states is not contiguous: where the head is frozen, as under
        # an adapter, the product would copy the whole of it once per row, gigabytes for a large batch.
        "logits_to_keep": torch.tensor([-1], device=model.device),
    }
    # What the checkpoint says of sampling does not concern a greedy search, and is warned about.
    model.generation_config.temperature = model.generation_config.top_p = model.generation_config.top_k = None
    with tqdm(total=len(dataset), desc="decoding", unit="question") as bar:
        for start in range(0, len(dataset), batch_size):
            indices = longest_first[start : start + batch_size]
            prompts = [dataset[i]["input_ids"][: lengths[i]] for i in indices]
            batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
            try:
                tokens = model.generate(**batch, **settings)
            except torch.cuda.OutOfMemoryError:
                raise UserError(
                    f"the GPU's memory does not hold {batch_size} questions at once: lower BATCH_SIZE"
                ) from None
            for i, row in zip(indices, tokens[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                ended = eos in row
                row = row[: row.index(eos)] if ended else row
                output = tokenizer.decode(row, skip_special_tokens=True)
                results[i] = {"output": output, "ended": ended, "new_tokens": len(row) + ended}
            bar.update(len(indices))
    return results


@torch.inference_mode()
def decode_latency_ms(model, tokenizer, new_tokens: int = 32) -> float:
    """Milliseconds a token, decoding greedily at batch 1 after a prompt of 64 tokens; never stops early.

    Median of three rounds after one that is not counted.
    """
    ids = torch.full((1, 64), tokenizer.eos_token_id, device=model.device)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new_tokens,
            max_new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]) / new_tokens * 1e3
