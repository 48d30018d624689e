"""LoRA (Hu et al. 2022) on a base of any precision: train adapters, then merge them into 16-bit weights."""

import hashlib
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import set_seed

from fincompress import distributed, lineage, memory, models, quantization, runs, training
from fincompress.errors import UserError
from fincompress.report import charts
from fincompress.training.loss import TargetCollator, calibration_means, score_targets
from fincompress.training.trainer import Progress, TargetTrainer

LORA_SCALE = 2  # alpha / rank: an adapter's output is scaled by it, which keeps one learning rate good for every rank
STEPS = {"nf4": "QLoRA fine-tuned", "int8": "8-bit LoRA fine-tuned"}  # what a table calls them


class ProgressAndCalibration(Progress):
    """Also scores the calibration split after each epoch, before a checkpoint of that step is written."""

    def __init__(self, *scored):
        super().__init__()
        self.scored = scored  # what ``calibration_scores`` takes beside the model

    def on_step_end(self, args, state, control, model=None, **kwargs):
        super().on_step_end(args, state, control)
        if state.epoch.is_integer() or state.global_step >= state.max_steps:
            scores = calibration_means(*score_targets(model, *self.scored))
            row = {"step": state.global_step, "epoch": round(state.epoch, 4)}
            state.log_history.append(row | {"seconds": round(self.clock.seconds(), 1)} | scores)
            nll, exact = scores.values()
            self.bar.write(f"epoch {state.epoch:.0f}: calibration nll {nll:.4f}, exact {exact:.4f}")


def train(settings: dict, base_precision: str, script: str) -> None:
    """Train LoRA adapters on a base held in ``base_precision`` and write the run's folder.

    ``settings`` are the constants of the script, which explains each. Leaves ``adapter/``, ``merged/`` with MERGE,
    ``train_metrics.json``, ``loss_curve.csv`` and ``loss_curve.png``; checkpoints are kept until then, so that a killed
    run can be resumed. Several processes train together; rank 0 merges alone.
    """
    s = settings
    distributed.join()
    training.check_settings(s)
    train_set, data_record = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "train", s["BASE_MODEL"])
    calibration, _ = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "calibration")
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    identity = training.run_facts(s, base_precision, data_record, device, dtype)
    if s["START_FROM"]:
        identity["source"] = check_start(s, base_precision, data_record)
    identity |= lineage.facts(STEPS[base_precision], s["RESULTS_DIR"], s["START_FROM"])
    distributed.from_main(lambda: models.base_model_path(s["BASE_MODEL"], s["RESULTS_DIR"]))  # made once
    directory = runs.run_directory(s["RESULTS_DIR"], s["RUN"])
    unmerged = s["MERGE"] and not (directory / "merged").exists()
    if unmerged or not (directory / "adapter").exists():
        runs.check_room(directory, room_gb(models.base_config(s["BASE_MODEL"], s["RESULTS_DIR"]), s))
    started = distributed.from_main(
        lambda: runs.start_run(s["RESULTS_DIR"], s["RUN"], script, settings, identity, done="train_metrics.json")
    )
    models.quiet_libraries()
    if started is None:
        if distributed.continue_alone():
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # where a kill came before that
            if unmerged:  # an adapter is published without it
                merge(directory, s, dtype)
        return
    print(f"{device.type}, {reason}")
    metrics = train_adapter(directory, s, base_precision, train_set, calibration, device, dtype)
    if not distributed.continue_alone():
        return
    training.release_model()  # or it would stay beside the merged one
    metrics["data"] = data_record["data"]
    runs.write_json(directory / "train_metrics.json", metrics)  # the run is finished: a merge that fails is done again
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    if s["MERGE"]:
        merge(directory, s, dtype)
    print(
        f"trained {metrics['steps']} steps in {metrics['training_seconds'] / 60:.1f} min, "
        f"{metrics['tokens_per_second']:.0f} tokens/s, loss {metrics['train_loss']:.3f}; wrote {directory}/adapter, "
        f"{'merged, ' if s['MERGE'] else ''}train_metrics.json, loss_curve.csv and .png"
    )


def room_gb(config, s: dict) -> float:
    """GB of disk that a run takes: merged weights, of where there are any, and two checkpoints."""
    merged = memory.weights_gb(config, "bf16") if s["MERGE"] else 0
    adapter = memory.adapter_parameters(config, s["LORA_RANK"])
    return merged + 2 * adapter * 12 / 1e9  # a weight and two moments in float32


def check_start(s: dict, base_precision: str, data_record: dict) -> str:
    """Fingerprint of the run START_FROM, whose adapter is trained on; raises UserError where it cannot be."""
    source = training.check_origin("START_FROM", s, data_record)
    run = runs.run_directory(s["RESULTS_DIR"], s["RUN"])
    if (run / "adapter").exists() and (run / "train_metrics.json").exists():  # finished, as one is published
        return source
    start = runs.run_directory(s["RESULTS_DIR"], s["START_FROM"])
    if not (start / "adapter").exists() or runs.read_json(start / "settings.json")["base_precision"] != base_precision:
        raise UserError(f"START_FROM = {s['START_FROM']!r} has no adapter on a base in {base_precision}")
    training.check_adapter(s["START_FROM"], start, s)
    return source


def train_adapter(
    directory: Path, s: dict, base_precision: str, train_set, calibration, device: torch.device, dtype: torch.dtype
) -> dict:
    """Train, write ``adapter/`` and the loss curve, and return the metrics of the training.

    Of several processes rank 0 writes, and returns all of them.
    """
    set_seed(s["SEED"])
    path = models.base_model_path(s["BASE_MODEL"], s["RESULTS_DIR"])
    tokenizer = models.load_tokenizer(path)
    checkpointing = s["GRADIENT_CHECKPOINTING"] if s["GRADIENT_CHECKPOINTING"] is not None else device.type == "cuda"
    reentrant = base_precision == "int8"  # its product keeps its input where the other kind cannot discard it
    model = models.load_base(path, base_precision, device, dtype)
    with quantization.quiet():  # peft imports gptqmodel, which greets
        if s["START_FROM"]:
            start = runs.run_directory(s["RESULTS_DIR"], s["START_FROM"]) / "adapter"
            model = PeftModel.from_pretrained(model, start, is_trainable=True)
            # As a new adapter has it: from a bare name peft would look for the base on the hub at every checkpoint.
            model.peft_config["default"].base_model_name_or_path = path
        else:
            adapters = LoraConfig(
                r=s["LORA_RANK"],
                lora_alpha=LORA_SCALE * s["LORA_RANK"],
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, adapters)
    models.compute_in_model_dtype(model)
    print(f"{len(train_set)} examples, {sum(train_set['length'])} tokens an epoch")
    model.print_trainable_parameters()
    checkpoints = directory / "checkpoints"
    arguments = training.training_arguments(
        s, checkpoints, device, dtype, num_train_epochs=s["EPOCHS"], max_steps=s["MAX_STEPS"] or -1,
        gradient_checkpointing=checkpointing, save_steps=s["SAVE_STEPS"], save_total_limit=1,
        reentrant=reentrant, run_name=s["RUN"],
    )  # fmt: skip
    collator = TargetCollator(tokenizer.pad_token_id)
    progress = ProgressAndCalibration(calibration, collator, 2 * s["BATCH_SIZE"], dtype)
    report = training.Report(s["REPORT_TO"], directory, arguments)
    rows = training.TrainingRows(train_set, tokenizer, s["AUGMENT"], s["SEED"], start_from=s["START_FROM"])
    trainer = TargetTrainer(
        model=model, args=arguments, data_collator=collator, processing_class=tokenizer,
        train_dataset=rows, callbacks=[progress, report], dtype=dtype,
    )  # fmt: skip
    checkpoint = distributed.from_main(lambda: training.last_checkpoint(checkpoints))
    if checkpoint:
        print(f"resuming from {checkpoint.name}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = progress.clock.seconds()
    measured = {
        "training_seconds": round(seconds, 1),
        "tokens_per_second": round(trainer.state.num_input_tokens_seen / seconds, 1),
        "peak_memory_gb": memory.peak_memory_gb(),
    }
    return (finish(directory, trainer, tokenizer, s, dtype) if distributed.is_main() else {}) | measured


def finish(directory: Path, trainer, tokenizer, s: dict, dtype: torch.dtype) -> dict:
    """Write a run's adapter and loss curve, and return its metrics."""
    state = trainer.state
    calibration = [row for row in state.log_history if "calibration_nll" in row]
    columns = ("step", "epoch", "loss", "learning_rate", "grad_norm", "seconds")
    curve = [{name: row[name] for name in columns} for row in state.log_history if "loss" in row]
    # The Trainer's own mean covers only the steps since the last restart.
    total, before = 0.0, 0
    for row in curve:
        row["training_seconds"] = row.pop("seconds")
        total, before = total + (row["step"] - before) * row["loss"], row["step"]
    runs.write_csv(directory / "loss_curve.csv", curve)
    charts.loss_curve(directory / "loss_curve.png", curve, calibration)
    metrics = {
        "steps": state.global_step,
        "epochs": round(state.epoch, 4),
        "train_loss": round(total / before, 5),
        "calibration": calibration,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "tokens_seen": int(state.num_input_tokens_seen),
    }
    trained = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    weights = {name: p.detach().to(models.checkpoint_dtype(dtype)) for name, p in trained}
    trainer.model.peft_config["default"].base_model_name_or_path = s["BASE_MODEL"]  # and not where it lies here
    with runs.atomic_path(directory / "adapter") as partial:
        trainer.model.save_pretrained(partial, state_dict=weights, save_embedding_layers=False)
        models.save_tokenizer(tokenizer, partial)
        models.write_model_card(
            partial, s["BASE_MODEL"], f"LoRA adapter for FinQA programs, run `{s['RUN']}`.",
            train_loss=metrics["train_loss"], rank=s["LORA_RANK"],
        )  # fmt: skip
    return metrics


def merge(directory: Path, s: dict, dtype: torch.dtype) -> None:
    """Write ``merged/``: a run's adapter added to its dequantized base, as a run of its own that can be named."""
    record = runs.read_json(directory / "settings.json")
    dtype = getattr(torch, record.get("dtype", str(dtype).removeprefix("torch.")))  # that of the training
    # The adapter's hash tells one training from another of the same settings.
    adapter = hashlib.sha256((directory / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
    with runs.atomic_path(directory / "merged") as partial:
        merge_adapter(directory, s["RESULTS_DIR"], partial, dtype)
        # What a run has, so that merged weights can be evaluated, quantized and started from by name.
        runs.write_json(partial / "settings.json", record | {"base_precision": "auto"})
        runs.write_json(partial / "train_metrics.json", {"adapter": adapter})
    print("merged the adapter into the dequantized base")


def merge_adapter(directory: Path, results_dir: str, target: Path, dtype: torch.dtype) -> None:
    """Write a run's adapter, merged into 16-bit weights on the CPU, as a standard checkpoint in the folder ``target``.

    The weights are those of the quantized base, dequantized one after another in the training's ``dtype``: what the
    adapter was trained against, rounding errors included. In four of four runs on FinQA they answered more than the
    original weights with the same adapter.
    """
    record = runs.read_json(directory / "settings.json")
    model, tokenizer = models.load_adapter(directory, results_dir, torch.device("cpu"), dtype, packed=True)
    models.write_checkpoint(target, model, tokenizer, models.checkpoint_dtype(dtype))
    text = f"LoRA adapter of run `{directory.name}`, merged into its base, dequantized from {record['base_precision']}."
    models.write_model_card(target, record["base_model"], text)
