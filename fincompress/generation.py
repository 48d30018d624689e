"""Batched greedy decoding."""

from __future__ import annotations

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
