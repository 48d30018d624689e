"""Rows as preprocess_data.py writes them, of random tokens, and a tiny model with adapters to train on them."""

import torch
from peft import LoraConfig, get_peft_model

from fincompress import models, runs
from fincompress.training.loss import target_logits, target_loss

CPU = torch.device("cpu")
EOS, PAD = 2, 0


def make_rows(count, seed=0, longest=40):
    """Prompts and targets of random tokens and various lengths, each target ending in EOS."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        prompt, target = torch.randint(3, longest, (2,), generator=generator).tolist()
        ids = torch.randint(10, 2000, (prompt + target,), generator=generator).tolist() + [EOS]
        rows.append(
            {"input_ids": ids, "prompt_tokens": prompt, "target_tokens": target + 1, "length": prompt + target + 1}
        )
    return rows


def add_lora(model):
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    models.compute_in_model_dtype(model)
    return model


def bf16_loss(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, labels = target_logits(model, batch)
    return target_loss(logits, labels)


def write_adapter(directory, base, precision, weights):
    """A run's folder with an adapter that was trained on ``precision``; returns it on the base in ``weights``."""
    model = add_lora(models.load_base(base, weights, CPU, torch.bfloat16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros at the start
                parameter.normal_(0, 0.1)
    model.save_pretrained(directory / "adapter")
    models.load_tokenizer(base).save_pretrained(directory / "adapter")
    runs.write_json(directory / "settings.json", {"base_model": base, "base_precision": precision})
    return model
