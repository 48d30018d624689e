"""LoRA (Hu et al. 2022) on a base of any precision: train adapters, then merge them into 16-bit weights."""

from __future__ import annotations

import gc
import hashlib
import shutil
from pathlib import Path

import datasets
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerState, set_seed

from fincompress import memory, models, quantization, runs, training
from fincompress.errors import UserError
from fincompress.report import charts
from fincompress.settings import check_choice, check_positive
from fincompress.training.loss import TargetCollator, score_targets
from fincompress.training.trainer import Progress, TargetTrainer

MERGE_INTO = ("dequantized", "original")  # the base as the adapter was trained against it, or as it was before
BETTER = "better"  # of the two, by the calibration split


class ProgressAndCalibration(Progress):
    """Also scores the calibration split after each epoch."""

    def __init__(self, calibration: datasets.Dataset, collator: TargetCollator, batch_size: int, dtype: torch.dtype):
        super().__init__()
        self.scored = (calibration, collator, batch_size, dtype)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control)
        # A checkpoint of an epoch's last step is written before the epoch is scored.
        unscored = all("calibration_nll" not in row or row["step"] < state.global_step for row in state.log_history)
        ended = state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()
        if state.global_step and ended and unscored:
            self.on_epoch_end(args, state, control, model=model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        scores = calibration_scores(model, *self.scored)
        seconds = round(self.clock.seconds(), 1)
        state.log_history.append(
            {"step": state.global_step, "epoch": round(state.epoch, 4), "seconds": seconds, **scores}
        )
        nll, exact = scores.values()
        self.bar.write(f"epoch {state.epoch:.0f}: calibration nll {nll:.4f}, exact {exact:.4f}")


def calibration_scores(model, calibration, collator: TargetCollator, batch_size: int, dtype: torch.dtype) -> dict:
    """Mean NLL in nats per target token and share of exact matches, of the calibration split."""
    nll, exact = score_targets(model, calibration, collator, batch_size, dtype)
    return {
        "calibration_nll": round(nll.mean().item(), 5),
        "calibration_exact": round(exact.float().mean().item(), 5),
    }


def train(settings: dict, base_precision: str, script: str) -> None:
    """Train LoRA adapters on a base held in ``base_precision`` and write the run's folder.

    ``settings`` are the constants of the script, which explains each. Leaves ``adapter/``, ``merged/``,
    ``train_metrics.json``, ``loss_curve.csv`` and ``loss_curve.png``; checkpoints are kept until then, so that a killed
    run can be resumed.
    """
    s = settings
    check_choice("MERGE_INTO", s["MERGE_INTO"], (BETTER, *MERGE_INTO))
    check_positive(EPOCHS=s["EPOCHS"], MAX_STEPS=s["MAX_STEPS"])
    training.check_settings(s)
    if not 0 <= s["LORA_DROPOUT"] < 1:
        raise UserError(f"LORA_DROPOUT is a share, from 0 to below 1, not {s['LORA_DROPOUT']}")
    train_set, data_record = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "train", s["BASE_MODEL"])
    calibration, _ = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "calibration")
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    facts = training.run_facts(s["BASE_MODEL"], base_precision, data_record, dtype)
    directory = runs.run_directory(s["RESULTS_DIR"], s["RUN"])
    started = runs.start_run(s["RESULTS_DIR"], s["RUN"], script, settings, facts, done="train_metrics.json")
    models.quiet_libraries()
    if started is None:
        if not (directory / "merged").exists():  # an adapter is published without it
            merge(directory, s, calibration, device, dtype)
        return
    runs.remove_partials(directory)
    print(f"{device.type}, {reason}")
    metrics = train_adapter(directory, s, base_precision, train_set, calibration, device, dtype)
    # accelerate's wrapper of forward is a reference cycle: without this the trained model stays beside the merged one.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    metrics["data"] = data_record["data"]
    metrics["merged"] = merge(directory, s, calibration, device, dtype)
    runs.write_json(directory / "train_metrics.json", metrics)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    print(
        f"trained {metrics['steps']} steps in {metrics['training_seconds'] / 60:.1f} min, "
        f"{metrics['tokens_per_second']:.0f} tokens/s, loss {metrics['train_loss']:.3f}; wrote {directory}/adapter, "
        "merged, train_metrics.json, loss_curve.csv and .png"
    )


def train_adapter(
    directory: Path, s: dict, base_precision: str, train_set, calibration, device: torch.device, dtype: torch.dtype
) -> dict:
    """Train, write ``adapter/`` and the loss curve, and return the metrics of the training."""
    set_seed(s["SEED"])
    path = models.base_model_path(s["BASE_MODEL"], s["RESULTS_DIR"])
    tokenizer = models.load_tokenizer(path)
    checkpointing = s["GRADIENT_CHECKPOINTING"] if s["GRADIENT_CHECKPOINTING"] is not None else device.type == "cuda"
    predicted_gb = memory.predict_lora_training_gb(
        models.base_config(s["BASE_MODEL"], s["RESULTS_DIR"]), base_precision, s["LORA_RANK"], s["BATCH_SIZE"],
        max(train_set["length"]), 1 + max(train_set["target_tokens"]), checkpointing, device.type, dtype.itemsize,
    )  # fmt: skip
    training.print_prediction(predicted_gb, device)
    with training.explain_out_of_memory(predicted_gb):
        model = models.load_base(path, base_precision, device, dtype)
    adapters = LoraConfig(
        r=s["LORA_RANK"], lora_alpha=s["LORA_ALPHA"], lora_dropout=s["LORA_DROPOUT"],
        target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip
    with quantization.quiet():  # peft imports gptqmodel, which greets
        model = get_peft_model(model, adapters)
    models.compute_in_model_dtype(model)
    trainable = memory.count_parameters(p for p in model.parameters() if p.requires_grad)
    print(
        f"{len(train_set)} examples, {sum(train_set['length'])} tokens an epoch; LoRA rank {s['LORA_RANK']}: "
        f"{trainable / 1e6:.1f} M of {memory.count_parameters(model.parameters()) / 1e6:.1f} M parameters are trained"
    )
    checkpoints = directory / "checkpoints"
    arguments = training.training_arguments(
        s, checkpoints, device, dtype, num_train_epochs=s["EPOCHS"], max_steps=s["MAX_STEPS"] or -1,
        gradient_checkpointing=checkpointing, save_steps=s["SAVE_STEPS"], save_total_limit=1,
        # bitsandbytes' int8 product keeps its input outside of what the other kind of checkpointing can discard.
        reentrant=base_precision == "int8",
    )  # fmt: skip
    collator = TargetCollator(tokenizer.pad_token_id)
    progress = ProgressAndCalibration(calibration, collator, 2 * s["BATCH_SIZE"], dtype)
    trainer = TargetTrainer(
        model=model, args=arguments, train_dataset=train_set.select_columns(training.TRAINING_COLUMNS),
        data_collator=collator, processing_class=tokenizer, callbacks=[progress],
    )  # fmt: skip
    checkpoint = training.last_checkpoint(checkpoints)
    if checkpoint:
        print(f"resuming from {checkpoint.name}")
    try:
        with training.explain_out_of_memory(predicted_gb), training.explain_resuming(checkpoint):
            if not (checkpoint and load_trained(trainer, checkpoint, progress)):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UserError:
        if training.last_checkpoint(checkpoints) is None:  # nothing to resume: lower constants must not be refused
            shutil.rmtree(checkpoints, ignore_errors=True)
        raise
    return finish(directory, trainer, tokenizer, s, dtype, predicted_gb, trainable, progress.clock.seconds())


def load_trained(trainer: TargetTrainer, checkpoint: Path, progress: Progress) -> bool:
    """Bring a trainer to where its last step left it; False where that is not what the checkpoint holds.

    The Trainer itself would take one step more where the last checkpoint stands in the middle of an epoch.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))
    trainer.state = state
    with trainer.plain_attention():  # in which the last epoch is scored
        progress.on_train_begin(trainer.args, state, trainer.control, model=trainer.model)
    progress.on_train_end(trainer.args, state, trainer.control)
    return True


def finish(
    directory: Path, trainer, tokenizer, s: dict, dtype: torch.dtype, predicted_gb: float, trainable: int,
    seconds: float,
) -> dict:  # fmt: skip
    """Write a run's adapter and loss curve, and return its metrics."""
    history = trainer.state.log_history
    columns = ("step", "epoch", "loss", "learning_rate", "grad_norm")
    curve = [
        {name: row[name] for name in columns} | {"training_seconds": row["seconds"]} for row in history if "loss" in row
    ]
    calibration = [row for row in history if "calibration_nll" in row]
    runs.write_csv(directory / "loss_curve.csv", curve)
    charts.loss_curve(directory / "loss_curve.png", curve, calibration)
    tokens = int(trainer.state.num_input_tokens_seen)
    # The Trainer's own mean covers only the steps since the last restart.
    steps = [row["step"] - before["step"] for before, row in zip([{"step": 0}, *curve], curve, strict=False)]
    train_loss = sum(n * row["loss"] for n, row in zip(steps, curve, strict=True)) / sum(steps)
    metrics = {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch, 4),
        "train_loss": round(train_loss, 5),
        "calibration": calibration,
        "trainable_parameters": trainable,
        "tokens_seen": tokens,
        "training_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_memory_gb": memory.peak_memory_gb(),
        "predicted_memory_gb": round(predicted_gb, 3),
    }
    trained = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    weights = {name: p.detach().to(models.checkpoint_dtype(dtype)) for name, p in trained}
    trainer.model.peft_config["default"].base_model_name_or_path = s["BASE_MODEL"]  # and not where it lies here
    with runs.atomic_path(directory / "adapter") as partial:
        trainer.model.save_pretrained(partial, state_dict=weights)
        tokenizer.save_pretrained(partial)
        models.write_model_card(
            partial, s["BASE_MODEL"], f"LoRA adapter for FinQA programs, run `{s['RUN']}`.",
            train_loss=metrics["train_loss"], rank=s["LORA_RANK"],
        )  # fmt: skip
    return metrics


def merge(directory: Path, s: dict, calibration: datasets.Dataset, device: torch.device, dtype: torch.dtype) -> dict:
    """Merge a run's adapter into 16-bit weights: ``merged/``, a standard checkpoint and a run that can be named.

    ``MERGE_INTO`` says which weights: ``"dequantized"``, the quantized base as the adapter was trained against it, or
    ``"original"``, the base before it was quantized, whose rounding error the adapter may have learnt to undo.
    ``"better"`` makes both and keeps the one of lower NLL on the calibration split, where 16 bits fit the device.
    """
    record = runs.read_json(directory / "settings.json")
    ways, reason = [s["MERGE_INTO"]], "asked for"
    if s["MERGE_INTO"] == BETTER:
        ways, reason = list(MERGE_INTO), "lower NLL on the calibration split"
        config = models.base_config(s["BASE_MODEL"], s["RESULTS_DIR"])
        if device.type == "cuda" and memory.inference_gb(config, 2048) > torch.cuda.mem_get_info()[0] / 1e9:
            ways, reason = ["dequantized"], "not compared: the merged model does not fit this GPU"
    collator = TargetCollator(models.load_tokenizer(str(directory / "adapter")).pad_token_id)
    folders = {way: directory / f".merged-{way}.partial" for way in ways}
    scores: dict[str, dict[str, float]] = {}
    try:
        for way, folder in folders.items():
            merge_adapter(directory, s["RESULTS_DIR"], way == "original", folder, models.checkpoint_dtype(dtype))
            if len(ways) > 1:
                model = models.load_base(str(folder), "auto", device, dtype).eval()
                scores[way] = calibration_scores(model, calibration, collator, 2 * s["BATCH_SIZE"], dtype)
                del model  # or it would stay beside the next
        kept = min(ways, key=lambda way: scores[way]["calibration_nll"]) if scores else ways[0]
        adapter = hashlib.sha256((directory / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
        # The adapter's hash tells one training from another of the same settings.
        merged = {"merged_into": kept, "why": reason, "scores": scores, "adapter": adapter}
        # What a run has, so that merged weights can be evaluated, quantized and started from by name.
        runs.write_json(folders[kept] / "settings.json", record | {"base_precision": "auto"})
        runs.write_json(folders[kept] / "train_metrics.json", merged)
        shutil.rmtree(directory / "merged", ignore_errors=True)
        folders[kept].rename(directory / "merged")
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
    shown = "; ".join(
        f"{way}: NLL {score['calibration_nll']:.4f}, exact {score['calibration_exact']:.1%}"
        for way, score in scores.items()
    )
    print(f"merged into the {kept} weights ({reason}{': ' + shown if shown else ''})")
    return merged


def merge_adapter(directory: Path, results_dir: str, original: bool, target: Path, dtype: torch.dtype) -> None:
    """Write a run's adapter, merged into 16-bit weights on the CPU, as a standard checkpoint in the folder ``target``.

    Into the base before it was quantized where ``original``, whose weights stay in their file until one after another
    is merged; else into the quantized weights, each dequantized in turn.
    """
    record = runs.read_json(directory / "settings.json")
    into = "its base" if original else f"its base, quantized to {record['base_precision']} and dequantized"
    options = {"dtype": "auto", "precision": "auto"} if original else {"dtype": dtype, "packed": True}
    model, tokenizer = models.load_adapter(directory, results_dir, torch.device("cpu"), **options)
    models.write_checkpoint(target, model, tokenizer, dtype)
    text = f"LoRA adapter of run `{directory.name}`, merged into {into}."
    models.write_model_card(target, record["base_model"], text)
