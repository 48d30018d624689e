"""Small random decoders of the families that can be pruned, deep enough to drop from, and batches for them."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from fincompress.training.loss import TargetCollator

SMALL = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=3),
    "qwen3": lambda: Qwen3Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=3),
}


def make_model(family="llama"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    for name, parameter in model.named_parameters():  # norms that differ, or a swapped one would go unseen
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model.eval()


def make_batches(count=3, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    collator, batches = TargetCollator(0), []
    for _ in range(count):
        rows = []
        for _ in range(size):
            prompt, target = torch.randint(3, 20, (2,), generator=generator).tolist()
            ids = torch.randint(3, 128, (prompt + target,), generator=generator).tolist()
            rows.append({"input_ids": ids, "prompt_tokens": prompt})
        batches.append(collator(rows))
    return batches
