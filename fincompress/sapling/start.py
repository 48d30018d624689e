"""How a SAPLING run begins: what RECOVERY stands for, what it may start and learn from, and its folder."""

import functools

import torch
from transformers import set_seed

from fincompress import distributed, lineage, memory, models, runs, simulation, training
from fincompress.errors import UserError
from fincompress.sapling import patch
from fincompress.sapling.checkpoints import remove_what_a_kill_left
from fincompress.sapling.recovery import Recovery
from fincompress.sapling.run import Run
from fincompress.sapling.state import STATE
from fincompress.sapling.stop import check_targets
from fincompress.sapling.student import Student, find_adapter
from fincompress.sapling.teacher import ADAPTER, SharedTeacher, Teacher, needs_teacher
from fincompress.settings import check_choice

PAPER = {  # what RECOVERY = "paper" sets: Algorithm 1 as it is published
    "KL": 0.0, "CROSS_ENTROPY": 1.0, "HIDDEN_STATES": 0.0, "HEAL_AT": [], "KEEP_MOMENTS": False,
    "PATCH_EXAMPLES": 0, "PROTECT": False, "TRAIN_RATIO": 0.25, "HEALING_TRAIN_RATIO": 0.25, "TRAIN_ENDS": True,
    "LR_SCHEDULE": "cosine", "TIES": "norm",
}  # fmt: skip


def open_run(settings: dict, script: str) -> Run | None:
    """The run that these constants describe, new or as a kill left it; None where it is finished already."""
    s = settings
    train_set, record = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "train", s["BASE_MODEL"])
    calibration, _ = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "calibration")
    if s["CALIBRATION_EXAMPLES"] > len(calibration):
        raise UserError(
            f"CALIBRATION_EXAMPLES = {s['CALIBRATION_EXAMPLES']}, but the calibration split of {s['DATA_RUN']!r} has "
            f"{len(calibration)}: lower it, or preprocess with a larger one"
        )
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    facts = training.run_facts(s, "nf4" if s["UPDATE"] == "qlora" else "auto", record, device, dtype)
    if s["START_FROM"] and find_adapter(s) is None:
        source = str(models.dense_checkpoint(s["START_FROM"], s["RESULTS_DIR"]))
    else:  # the base model, with phase 1's own adapter where it starts from that
        source = distributed.from_main(lambda: models.base_model_path(s["BASE_MODEL"], s["RESULTS_DIR"]))  # made once
    if s["START_FROM"]:
        facts["source"] = training.check_origin("START_FROM", s, record)
    if s["TEACHER"] and needs_teacher(s):
        if s["UPDATE"] == "full":
            models.dense_checkpoint(s["TEACHER"], s["RESULTS_DIR"])
        facts["teacher"] = training.check_origin("TEACHER", s, record)
    facts |= lineage.facts("SAPLING", s["RESULTS_DIR"], s["START_FROM"])
    directory = distributed.from_main(
        lambda: runs.start_run(s["RESULTS_DIR"], s["RUN"], script, settings, facts, done="train_metrics.json")
    )
    if directory is None:
        remove_what_a_kill_left(runs.run_directory(s["RESULTS_DIR"], s["RUN"]))
        return None
    print(f"{device.type}, {reason}")
    # Questions of one page stand together, so that the first few would be those of a few pages.
    drawn = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(s["SEED"]))
    calibration = calibration.select(sorted(drawn[: s["CALIBRATION_EXAMPLES"]].tolist()))
    models.quiet_libraries()
    set_seed(s["SEED"])
    tokenizer = models.load_tokenizer(source)
    student = Student(s, source, facts["base_precision"], device, dtype)
    check_targets(student)
    if not (directory / STATE).exists():
        runs.check_room(directory, room_gb(student))
    predicted_gb = predict(student, train_set)
    run = Run(student, directory, tokenizer, train_set, calibration, facts, predicted_gb)
    distributed.barrier()  # all have read the state before rank 0 writes a newer one
    return run


def room_gb(student: Student) -> float:
    """GB of disk that a run takes beside what its teacher says.

    Those are the depths that it heals, the last counted whole, but not those of SAVE_EVERY; and in float32 weights and
    moments, in two states and two checkpoints while one takes the place of the other.
    """
    s, weights = student.settings, memory.weights_gb(student.config, "bf16")
    ends = student.sizes["ends"] / student.full_size
    shares = [depth if depth <= 1 else ends + (1 - ends) * depth / student.full for depth in s["HEAL_AT"]]
    trained = 2 * weights * max(s["TRAIN_RATIO"], s["HEALING_TRAIN_RATIO"])
    if s["UPDATE"] == "qlora":
        trained = 4 * memory.adapter_parameters(student.config, s["LORA_RANK"], s["PATCH_RANK"]) / 1e9
    return weights * (sum(shares) + 1) + trained * 4 * 3


def predict(student: Student, train_set) -> float:
    """Predicted peak memory in GB before any drop: of training, or of the scan where it takes more."""
    s = student.settings
    teacher, tokens, targets = student.config, max(train_set["length"]), max(train_set["target_tokens"])
    place = {"device": student.device.type, "dtype": student.dtype}
    if needs_teacher(s) and s["UPDATE"] == "full":  # a model of its own, maybe a deeper one
        teacher = models.read_config(str(models.dense_checkpoint(s["TEACHER"] or s["START_FROM"], s["RESULTS_DIR"])))
    trained = simulate(
        student.config, s["BATCH_SIZE"] // distributed.size(), tokens, targets,
        s["LORA_RANK"] if s["UPDATE"] == "qlora" else None, needs_teacher(s),
        (s["KL"], s["CROSS_ENTROPY"], s["HIDDEN_STATES"], s["TEMPERATURE"]),
        teacher, patch_rank=s["PATCH_RANK"], ratio=max(s["TRAIN_RATIO"], s["HEALING_TRAIN_RATIO"]),
        train_ends=s["TRAIN_ENDS"], recompute=student.recomputes, **place,
    ).gb  # fmt: skip
    if s["UPDATE"] == "full":  # whose moments and gradients take more than a scan's copy
        return trained
    shape = (s["SCAN_BATCH_SIZE"], tokens, targets, s["LORA_RANK"], s["PATCH_RANK"])
    return max(trained, simulate_scan(student.config, *shape, bool(s["PATCH_EXAMPLES"]), **place).gb)


def simulate(
    config, batch: int, tokens: int, targets: int, rank: int | None = None, taught: bool = True,
    weights: tuple[float, ...] = (1.0, 0.3, 1.0, 2.0), teacher=None, **options,
) -> simulation.Costs:  # fmt: skip
    """Costs of a step of recovery: of adapters on an NF4 base, shared with the teacher, or of the weights themselves.

    ``weights`` are those of ``Recovery``, ``teacher`` the config of one of its own (None: as deep as the model);
    ``options`` go to ``simulation.training``.
    """

    def learn(model):
        teaching = None
        if taught and rank:
            teaching = SharedTeacher(model, {}, ADAPTER)
        elif taught:
            dtype = options.get("dtype", torch.bfloat16)
            whole = simulation.empty_model(teacher or config, "auto", options["device"], dtype)
            teaching = Teacher(simulation.allocate(whole), list(range(config.num_hidden_layers)))
        if teaching:
            teaching = functools.partial(teaching.teach, temperature=weights[3], hidden_states=weights[2] > 0)
        return Recovery(*weights, teaching).loss

    return simulation.training(
        config, batch, tokens, targets, "nf4" if rank else "auto", rank,
        ("default", ADAPTER) if taught else ("default",), learn=learn, **options,
    )  # fmt: skip


def simulate_scan(
    config, batch: int, tokens: int, targets: int, rank: int, patch_rank: int, patched: bool = True, **options
) -> simulation.Costs:
    """Costs of a scan with adapters on an NF4 base, one of them the teacher's; ``options`` go to the simulation."""
    sums = patched * patch.sums_bytes(config) * min(config.num_hidden_layers, patch.units_at_once(config))
    return simulation.scanning(
        config, batch, tokens, targets, "nf4", rank, ("default", ADAPTER), patch_rank, sums, **options
    )


def apply_recovery(s: dict) -> None:
    """Set what RECOVERY = "paper" stands for, and say so; without patches adapters have no rank for them either."""
    check_choice("RECOVERY", s["RECOVERY"], ("teacher", "paper"))
    if s["RECOVERY"] == "paper":
        print("RECOVERY = 'paper' sets " + ", ".join(f"{name} = {value!r}" for name, value in PAPER.items()))
        s.update(PAPER)
    if s["UPDATE"] == "qlora" and not s["PATCH_EXAMPLES"]:
        s["PATCH_RANK"] = s["LORA_RANK"]
