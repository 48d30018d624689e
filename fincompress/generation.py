"""Batched decoding, and the one place that times prefill and decoding."""

import json
import statistics
import time
from pathlib import Path

import datasets
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from fincompress import distributed

STAGE = 16  # tokens after which sequences that have ended leave a batch; the median program has 18


@torch.inference_mode()
def generate(
    model, tokenizer, dataset: datasets.Dataset, batch_size: int, max_new_tokens: int,
    kept: "KeptOutputs | None" = None,
) -> list[dict]:  # fmt: skip
    """Greedy continuations of every prompt, in the order of the dataset.

    One ``{"output": str, "ended": bool, "new_tokens": int}`` an example; ``ended`` says that the model wrote EOS by
    itself. Batches hold prompts of like length, longest first, so that what does not fit in memory fails at once.
    Several processes take batches in turn, the same ones as one process, and all get all continuations. Batches that
    ``kept`` has are not decoded again.
    """
    before = kept.rows if kept else {}
    results: list[dict | None] = [before.get(i) for i in range(len(dataset))]
    lengths = list(dataset["prompt_tokens"])
    longest_first = sorted(range(len(dataset)), key=lambda i: -lengths[i])
    eos = tokenizer.eos_token_id
    # llama.cpp, which times itself, takes one prompt after another.
    stage = max_new_tokens if hasattr(model, "time_prefill") else STAGE
    options = {
        "do_sample": False,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": eos,
        # As an index, for a slice of the prompt's hidden states is not contiguous: where the head is frozen, as under
        # an adapter, the product would copy the whole of it once per row, gigabytes for a large batch.
        "logits_to_keep": torch.tensor([-1], device=model.device),
    }
    # Not as the checkpoint says: a repetition penalty, which a greedy search obeys, would be one on copying figures.
    model.generation_config = GenerationConfig()
    with tqdm(total=len(dataset), desc="decoding", unit="question", disable=not distributed.is_main()) as bar:
        for number, start in enumerate(range(0, len(dataset), batch_size)):
            indices = longest_first[start : start + batch_size]
            if number % distributed.size() == distributed.rank() and not all(results[i] for i in indices):
                prompts = [dataset[i]["input_ids"][: lengths[i]] for i in indices]
                batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
                rows = continued(model, batch, max_new_tokens, stage, options)
                decoded = {i: _cut(row, eos, tokenizer) for i, row in zip(indices, rows, strict=True)}
                for i, row in decoded.items():
                    results[i] = row
                if kept:
                    kept.add(decoded)
            bar.update(len(indices))
    gathered = distributed.gather(results)
    return [next((row for row in rows if row is not None), None) for rows in zip(*gathered, strict=True)]


class KeptOutputs:
    """Outputs of ``generate`` as they come, in a file a process, so that what was killed goes on behind them.

    ``rows`` are those that files in ``folder`` have, by their place in the dataset. Only those of this ``key`` count,
    which says that the same model was asked the same in the same batches.
    """

    def __init__(self, folder: Path, name: str, key: str):
        self.folder, self.name, self.key = folder, name, key
        self.rows: dict[int, dict] = {}
        for path in self.files():
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    record = json.loads(line)
                except ValueError:  # torn by the kill, or empty
                    continue
                if record["key"] == key:
                    self.rows[record["place"]] = record["row"]

    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}_*.jsonl"))

    def add(self, rows: dict[int, dict]) -> None:
        lines = (json.dumps({"key": self.key, "place": place, "row": row}) for place, row in rows.items())
        with open(self.folder / f"{self.name}_{distributed.rank()}.jsonl", "a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")  # begins a line of its own behind a torn one

    def remove(self) -> None:
        for path in self.files():
            path.unlink()


def continued(model, batch: dict, max_new_tokens: int, stage: int, options: dict) -> list[list[int]]:
    """Tokens after each prompt until EOS and maybe some that mean nothing behind it.

    Every ``stage`` tokens what has ended leaves the batch and the KV cache: most programs are short, and one that runs
    on to ``max_new_tokens`` would keep all others.
    """
    if stage >= max_new_tokens:
        tokens = model.generate(**batch, max_new_tokens=max_new_tokens, **options)
        return tokens[:, batch["input_ids"].shape[1] :].tolist()
    ids, mask, cache = batch["input_ids"], batch["attention_mask"], None
    rows: list[list[int]] = [[] for _ in ids]
    left, made = list(range(len(rows))), 0
    while left and made < max_new_tokens:
        output = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=min(stage, max_new_tokens - made),
            return_dict_in_generate=True, **options,
        )  # fmt: skip
        new = output.sequences[:, ids.shape[1] :]
        for row, tokens in zip(left, new.tolist(), strict=True):
            rows[row] += tokens
        going_on = (new != options["eos_token_id"]).all(dim=1).nonzero()[:, 0].cpu()  # an index for any device
        cache, ids, made = output.past_key_values, output.sequences[going_on], made + new.shape[1]
        cache.batch_select_indices(going_on)
        mask = torch.nn.functional.pad(mask[going_on], (0, new.shape[1]), value=1)
        left = [left[place] for place in going_on.tolist()]
    return rows


def _cut(row: list[int], eos: int, tokenizer) -> dict:
    ended = eos in row
    row = row[: row.index(eos)] if ended else row
    return {"output": tokenizer.decode(row, skip_special_tokens=True), "ended": ended, "new_tokens": len(row) + ended}


def now(device: torch.device) -> float:
    """The clock in seconds, after everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def time_prefill(model, prompt_tokens: int) -> tuple:
    """``(KV cache, next token, seconds)`` of one random prompt, from its ids to the next token as a number here."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (1, prompt_tokens), generator=generator).to(model.device)
    if hasattr(model, "time_prefill"):  # a model of another library times itself
        return model.time_prefill(ids[0].tolist())
    last = torch.tensor([-1], device=model.device)  # as an index: see generate
    began = now(model.device)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=last)
    token = output.logits[0, -1].argmax().item()
    return output.past_key_values, token, now(model.device) - began


@torch.inference_mode()
def time_decoding(model, cache, token: int, new_tokens: int, batch: int = 1) -> list[float]:
    """Seconds of each of ``new_tokens`` greedy steps of ``batch`` sequences after a prompt; EOS does not stop them.

    ``cache`` and ``token`` are of ``time_prefill``; the cache grows. One step more comes first, unmeasured: it wakes
    threads and caches.
    """
    if hasattr(model, "time_decoding"):
        return model.time_decoding(cache, token, new_tokens, batch)
    if batch > 1:
        cache.batch_repeat_interleave(batch)
    tokens = torch.full((batch, 1), token, device=model.device)
    seconds = []
    for _ in range(new_tokens + 1):
        began = now(model.device)
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
        tokens = logits[:, -1].argmax(-1, keepdim=True)
        seconds.append(now(model.device) - began)
    return seconds[1:]


def decode_latency_ms(model, new_tokens: int = 32) -> float:
    """Milliseconds a token, decoding greedily at batch 1 after a prompt of 64 tokens: the median of ``new_tokens``."""
    cache, token, _ = time_prefill(model, 64)
    return 1e3 * statistics.median(time_decoding(model, cache, token, new_tokens))
