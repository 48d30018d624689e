"""What compiled blocks change in a step of training on a CPU: phase 1's, and SAPLING's healing, in turns of one call.

    python benchmarks/compiled_blocks.py --DATA_RUN=data           5 to 10 minutes on two cores, alone

The same steps are taken twice, one after the other: as fincompress/training/compiled.py has them, and without. The base
model stands for phase 1's as teacher, and for what is left of it after a third of its blocks has gone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
BASE_MODEL: str = "smollm2-135m"  # what is trained
DATA_RUN: str = "data"  # the run of preprocess_data.py, tokenised for BASE_MODEL
RESULTS_DIR: str = "results"  # where it lies
STEPS: int = 12  # that are timed, each in both ways
BATCH_SIZE: int = 4  # sequences at once, as in the scripts
LORA_RANK: int = 32  # of phase 1's adapters
# -----------------------------------------------------------------------------
configure(globals())

import json
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model

from fincompress import memory, models, provenance, quantization, runs
from fincompress.depth import sublayers as sub
from fincompress.errors import run_script
from fincompress.sapling.recovery import Recovery
from fincompress.sapling.teacher import Teacher
from fincompress.training import compiled
from fincompress.training.loss import TargetCollator, autocast, target_logits, target_loss


def main() -> None:
    models.quiet_libraries()
    cpu = torch.device("cpu")
    dtype, reason = models.pick_dtype(cpu)
    print(f"cpu, {reason}, {torch.get_num_threads()} threads")
    path = models.base_model_path(BASE_MODEL, RESULTS_DIR)
    rows, _ = runs.load_processed(RESULTS_DIR, DATA_RUN, "train", BASE_MODEL)
    collator = TargetCollator(models.load_tokenizer(path).pad_token_id)
    rows = sorted(rows.select(range((STEPS + 1) * BATCH_SIZE)), key=lambda row: row["length"])
    batches = [collator(rows[i : i + BATCH_SIZE]) for i in range(0, len(rows), BATCH_SIZE)]
    result = {}
    for name, make in (("phase 1", lora), ("healing", healing)):
        model, beside, loss_of = make(path, cpu, dtype)
        model.set_attn_implementation("eager")  # as TargetTrainer does
        with compiled.compiled_blocks([model, *beside], compiled.STEPS):
            result[name] = in_turns(model.train(), loss_of, batches, dtype)
        print(f"{name}: {result[name]}", flush=True)
        del model, beside, loss_of
        memory.release_unused()
    print(json.dumps(result | {"code": provenance.code_version(), "hardware": provenance.hardware()}))


def lora(path, device, dtype):
    """``(model, models beside it, loss)`` of phase 1."""
    model = models.load_base(path, "nf4", device, dtype)
    adapters = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    with quantization.quiet():  # peft imports gptqmodel, which greets
        model = get_peft_model(model, adapters)
    models.compute_in_model_dtype(model)
    return model, [], lambda batch: target_loss(*target_logits(model, batch))


def healing(path, device, dtype):
    """``(model, models beside it, loss)`` of SAPLING with a teacher, all weights of two thirds of the blocks."""
    teacher = Teacher(models.load_base(path, "auto", device, dtype))
    model = models.load_base(path, "auto", device, dtype).requires_grad_(False)
    blocks = len(sub.decoder(model).layers)
    for block in range(blocks // 3, 2 * blocks // 3):
        sub.remove(model, *sub.parse_unit(f"block.{block}"))
    for sublayer in sub.sublayers(model):
        for parameter in sub.parameters(model, sublayer):
            parameter.requires_grad_(True).data = parameter.data.float()
    recovery = Recovery(1.0, 0.3, 1.0, 2.0, lambda batch: teacher.teach(batch, 2.0, hidden_states=True))
    return model, [teacher.model], lambda batch: recovery.loss(model, batch)


def in_turns(model, loss_of, batches, dtype) -> dict:
    """Median seconds of a step in each way, the ratio of both, and how long the first compiled step took."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step(batch, stance: str) -> float:
        began = time.perf_counter()
        with torch.compiler.set_stance(stance), autocast("cpu", dtype):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    first = step(batches[0], "default")
    step(batches[0], "force_eager")
    taken = [(step(batch, "default"), step(batch, "force_eager")) for batch in batches[1:]]
    ratios = sorted(plain / fused for fused, plain in taken)
    return {
        "compiled_s": round(statistics.median(fused for fused, _ in taken), 3),
        "plain_s": round(statistics.median(plain for _, plain in taken), 3),
        "times_as_fast": [round(ratios[i], 2) for i in (len(ratios) // 4, len(ratios) // 2, 3 * len(ratios) // 4)],
        "first_step_s": round(first, 1),
    }


if __name__ == "__main__":
    run_script(main)
