"""SAPLING's Algorithm 1 (Hu et al., ACL 2025): score the layers, drop the least important, train, and so on.

``sapling_train.py`` calls the methods of ``Run`` in that order. Each leaves its result in ``State``, on the disk, so
that a run that was stopped goes on where it was: what is done already is passed over.
"""

import math
import shutil
from pathlib import Path

import torch
from transformers import set_seed

from fincompress import distributed, lineage, memory, models, runs, training
from fincompress.depth import criteria, repack
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Ranking, Score, Unit
from fincompress.depth.scan import Patch, nested_batches, scan
from fincompress.errors import UserError
from fincompress.report import charts
from fincompress.sapling import losses, recovery
from fincompress.sapling.patch import absorb, fit_patches
from fincompress.sapling.state import STATE, State
from fincompress.sapling.student import Student, find_adapter
from fincompress.sapling.teacher import SharedTeacher, Teacher, load_teacher, teacher_run
from fincompress.training.loss import TargetCollator, autocast, calibration_means, score_targets

CONTEXT = 1024  # tokens in the KV cache of TARGET_MEMORY_GB
FIRST_SCAN = 16  # questions of the scan that chooses what is trained: it ranks by the NLL, which needs few
DONE = "train_metrics.json"  # marks a finished run


def open_run(s: dict) -> "Run | None":
    """The run that the constants ``s`` describe, new or as it was stopped; None where it is finished already."""
    train_set, record = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "train", s["BASE_MODEL"])
    calibration, _ = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "calibration")
    count = min(s["CALIBRATION_EXAMPLES"], len(calibration))
    if count < s["CALIBRATION_EXAMPLES"]:
        print(f"the calibration split of {s['DATA_RUN']!r} has {count} questions, which are all used")
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    facts = training.run_facts(s, "nf4" if s["UPDATE"] == "qlora" else "auto", record, device, dtype)
    if s["START_FROM"] and find_adapter(s) is None:
        source = str(models.dense_checkpoint(s["START_FROM"], s["RESULTS_DIR"]))
    else:  # the base model, with phase 1's own adapter where it starts from that
        source = distributed.from_main(lambda: models.base_model_path(s["BASE_MODEL"], s["RESULTS_DIR"]))
    if s["START_FROM"]:
        facts["source"] = training.check_origin("START_FROM", s, record)
    if teacher := teacher_run(s):
        facts["teacher"] = training.check_origin("TEACHER", s | {"TEACHER": teacher}, record)
    facts |= lineage.facts("SAPLING", s["RESULTS_DIR"], s["START_FROM"])
    student = Student(s, source, facts["base_precision"], device, dtype)
    depths = depths_of(s, student)
    directory = distributed.from_main(
        lambda: runs.start_run(s["RESULTS_DIR"], s["RUN"], "sapling_train.py", s, facts, done=DONE)
    )
    if directory is None:
        return None
    print(f"{device.type}, {reason}")
    if not (directory / STATE).exists():
        runs.check_room(directory, student.room_gb(depths))
    models.quiet_libraries()
    set_seed(s["SEED"])
    # Questions of one page stand together, so that the first few would be those of a few pages.
    drawn = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(s["SEED"]))[:count]
    run = Run(student, directory, depths, train_set, calibration.select(sorted(drawn.tolist())), facts)
    distributed.barrier()  # all have read the state before rank 0 writes a newer one
    return run


def depths_of(s: dict, student: Student) -> list[int]:
    """Layers left in each checkpoint, the most first. Raises UserError for a depth that the model does not have."""
    depths = {round(depth * student.full) if depth <= 1 else int(depth) for depth in s["DEPTHS"]}
    if s["TARGET_MEMORY_GB"] is not None:

        def fits(layers: int) -> bool:
            config = repack.shortened_config(student.config, layers)
            return memory.inference_gb(config, CONTEXT) <= s["TARGET_MEMORY_GB"]

        fitting = [layers for layers in range(1, student.full + 1) if fits(layers)]
        if not fitting:
            raise UserError(
                f"TARGET_MEMORY_GB = {s['TARGET_MEMORY_GB']} is too little for one layer and the embeddings"
            )
        depths = {depth for depth in depths if depth > fitting[-1]} | {fitting[-1]}
    if not depths or min(depths) < 1 or max(depths) > student.full or any(d > 1 and d % 1 for d in s["DEPTHS"]):
        raise UserError(f"DEPTHS = {s['DEPTHS']}: the model has {student.full} layers; name whole numbers up to that, "
                        "or shares above 0 and at most 1.0")  # fmt: skip
    return sorted(depths, reverse=True)


class Run:
    """A model on its way down to the last of ``depths``, and the record of what was dropped and why."""

    def __init__(self, student: Student, directory: Path, depths: list[int], train_set, calibration, facts: dict):
        self.settings = s = student.settings
        self.student, self.directory, self.facts = student, directory, facts
        self.train_set, self.calibration = train_set, calibration
        self.tokenizer = models.load_tokenizer(student.source)
        self.collator = TargetCollator(self.tokenizer.pad_token_id)
        arguments = training.training_arguments(s, directory, student.device, student.dtype, run_name=s["RUN"])
        self.report = training.Report(s["REPORT_TO"], directory, arguments)
        self.state = State.read(directory)
        student.load()
        self.own_teacher = load_teacher(student)
        if self.state.weights:
            self.resume()
        else:
            self.begin()
        done = [row["layers"] for row in self.state.depths if (directory / str(row["layers"])).exists()]
        self.depths = [depth for depth in depths if depth not in done]

    def begin(self) -> None:
        """Step 1 of the algorithm: choose the layers that are trained, and see what the start can do."""
        student, share, clock = self.student, self.settings["TRAIN_SHARE"], runs.Stopwatch()
        layers = student.every_unit()
        with student.scoring_model() as model:
            whole = self.calibration_scores(model)
            if share < 1:
                scores, seen = scan(model, layers, self.questions(FIRST_SCAN))
                self.record_scores(Ranking(scores, seen), "trainable")
                scores = sorted(scores, key=lambda score: -score.nll.mean())
                layers = [score.unit for score in scores[: math.ceil(share * len(layers))]]
        self.state.trainable = [sub.unit_name(unit) for unit in layers]
        self.state.reference = calibration_means(*whole)
        self.state.scanning_seconds += clock.seconds()
        student.make_trainable(self.state.trainable)
        print(f"{student.full} layers, calibration exact match {self.state.reference['calibration_exact']:.1%}")

    def resume(self) -> None:
        """Bring the model to where the state says the run was: the same drops, the same weights."""
        state, student = self.state, self.student
        for row in state.trajectory:
            student.remove(row["dropped"])
        student.make_trainable(state.trainable)
        weights, changed = state.read_weights(self.directory), self.changed_parameters()
        if not set(changed) <= set(weights):
            raise UserError(
                f"{self.directory / STATE} does not fit its weights: remove {self.directory}/ to start again"
            )
        for name, parameter in changed.items():
            parameter.data = weights[name].to(student.device)  # in float32, also what was patched and is not trained
        print(f"resuming with {self.layers_left} of {student.full} layers")

    def changed_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained or was patched, and is still in the model; of adapters all of the student's."""
        patched, named = set(self.state.patched), self.student.model.named_parameters()
        return {n: p for n, p in named if p.requires_grad or n in patched or self.student.is_own_adapter(n)}

    def save_state(self) -> None:
        """What a stopped run resumes from. Rank 0 writes, all wait."""
        self.state.write(self.directory, self.changed_parameters())
        distributed.barrier()

    @property
    def layers_left(self) -> int:
        return self.student.left

    @property
    def teacher(self) -> Teacher | None:
        """The unpruned model to learn from; with adapters it is the student with its layers back."""
        student = self.student
        if self.own_teacher is None and teacher_run(self.settings):
            return SharedTeacher(student.model, student.removed, student.adapter is not None)
        return self.own_teacher

    # ---------------------------------------------------------------- scoring

    def score(self, depth: int) -> Ranking:
        """Every unit that may go, ranked by CRITERION on the calibration questions, for the drops down to ``depth``."""
        s, state, student, clock = self.settings, self.state, self.student, runs.Stopwatch()
        criterion = criteria.get(s["CRITERION"])
        units = student.units()
        with student.scoring_model() as model:
            patches = self.patches(model, units) if "patches" in criterion.needs else {}
            context = criteria.Context(
                seed=s["SEED"], drops=self.drops(depth), earlier=state.earlier(),
                teacher=lambda batch: self.teacher(batch)[0], patches=patches,
            )  # fmt: skip
            ranking = criterion(model, units, self.questions(len(self.calibration)), context)
        ranking = distributed.from_main(lambda: ranking)  # other devices may round otherwise
        state.scanning_seconds += clock.seconds()
        self.record_scores(ranking)
        return ranking

    def drops(self, depth: int) -> int:
        """Layers that go by one ranking."""
        missing = self.layers_left - depth
        return min(self.settings["DROPS_PER_CYCLE"] or missing, missing)

    def questions(self, count: int) -> list[dict[str, torch.Tensor]]:
        """So many calibration questions, collated, in an order of each scan's own.

        In one order the same few would decide every time which units are eliminated first.
        """
        generator = torch.Generator().manual_seed(self.settings["SEED"] + self.state.scans)
        order = torch.randperm(len(self.calibration), generator=generator)[:count].tolist()
        return self.batches(self.calibration, order)

    def batches(self, dataset, order: list[int]) -> list[dict[str, torch.Tensor]]:
        """These examples in batches for passes without gradients, which have room for twice BATCH_SIZE."""
        parts = nested_batches(order, dataset["length"], 2 * self.settings["BATCH_SIZE"])
        batches = [self.collator([dataset[i] for i in part]) for part in parts]
        return [{name: tensor.to(self.student.device) for name, tensor in batch.items()} for batch in batches]

    def calibration_scores(self, model) -> tuple[torch.Tensor, torch.Tensor]:
        """``(nll, exact)`` of a model on each calibration question."""
        size = 2 * self.settings["BATCH_SIZE"]
        return score_targets(model, self.calibration, self.collator, size, self.student.dtype)

    def record_scores(self, ranking: Ranking, purpose: str = "drop") -> None:
        """Rows of layer_scores.csv for one scan."""
        self.state.scans += 1
        for score in ranking.scores:
            row = {"scan": self.state.scans, "purpose": purpose, "layers": self.layers_left}
            row["unit"], seen = sub.unit_name(score.unit), score.questions
            if seen:
                row |= {"questions": seen, "exact_match": float(score.exact.mean()), "nll": float(score.nll.mean()),
                        "nll_whole": float(ranking.whole.nll[:seen].mean())}  # fmt: skip
            else:
                row["score"] = score.value
            self.state.layer_scores.append(row)

    # --------------------------------------------------------------- dropping

    def drop(self, ranking: Ranking, depth: int) -> None:
        """Remove a cycle's units by the ranking, each after a patch."""
        student, dropped = self.student, []
        for _ in range(self.drops(depth)):
            score, reason = ranking.next(student.allowed())
            if score is None:  # the units that saw every question are gone: the next ranking goes on
                break
            clock, name = runs.Stopwatch(), sub.unit_name(score.unit)
            self.patch(score.unit)
            student.remove(name)
            self.state.scanning_seconds += clock.seconds()
            self.record_drop(name, score, self.settings["CRITERION"] if reason == "order" else reason)
            dropped.append(name)
        print(f"dropped {', '.join(dropped)}: {self.layers_left} of {student.full} layers left")
        self.state.trained = False
        self.save_state()

    def patch(self, unit: Unit) -> None:
        """Fold what a unit adds into the projection before it, fitted on PATCH_EXAMPLES of the training set."""
        s, student = self.settings, self.student
        if not s["PATCH_EXAMPLES"]:
            return
        with autocast(student.device, student.dtype):
            changed = absorb(student.model, unit, self.patch_batches(), adapters=s["UPDATE"] == "qlora")
        places = {id(parameter) for parameter in changed}
        names = {name for name, parameter in student.model.named_parameters() if id(parameter) in places}
        self.state.patched = sorted({*self.state.patched, *names})

    def patches(self, model, units: list[Unit]) -> dict[Unit, Patch]:
        """How each unit would be patched, so that it is scored as it would be dropped."""
        return fit_patches(model, units, self.patch_batches()) if self.settings["PATCH_EXAMPLES"] else {}

    def patch_batches(self) -> list[dict[str, torch.Tensor]]:
        """The examples of the training set that patches are fitted on."""
        count = min(self.settings["PATCH_EXAMPLES"], len(self.train_set))
        order, _ = training.shuffled_stream(len(self.train_set), 0, count, self.settings["SEED"])
        return self.batches(self.train_set, order)

    def record_drop(self, name: str, score: Score, decided_by: str) -> None:
        """A row of trajectory.csv."""
        state, student = self.state, self.student
        row = {"dropped": name, "layers": student.left, "share_of_bytes": student.share, "scan": state.scans,
               "decided_by": decided_by}  # fmt: skip
        if score.questions:
            row |= {"questions": score.questions, "exact_match_alone": float(score.exact.mean()),
                    "nll_alone": float(score.nll.mean())}  # fmt: skip
        row |= {name: round(getattr(state, name), 1) for name in ("training_seconds", "scanning_seconds")}
        row |= {f"peak_{device}_gb": value for device, value in memory.peak_memory_gb().items()}
        state.trajectory.append(row)
        self.report.log(state.steps, {f"eval_{name}": value for name, value in row.items()})

    # --------------------------------------------------------------- training

    def train(self, epochs: float) -> None:
        """Train between drops, on the next ``epochs`` passes of the stream of examples."""
        if not self.state.trained and epochs:
            self.train_on(epochs, f"{self.layers_left} of {self.student.full} layers")
            self.state.trained = True
            self.save_state()

    def recover(self, epochs: float) -> None:
        """Train a depth that will be saved, and score it on the calibration split."""
        state, student = self.state, self.student
        if any(row["layers"] == student.left for row in state.depths):
            return
        self.train_on(epochs, f"recovery training of {student.left} of {student.full} layers")
        with student.scoring_model() as model:
            row = {"layers": student.left, **calibration_means(*self.calibration_scores(model))}
        state.depths.append(row | self.costs())
        state.trained = True
        self.report.log(state.steps, {f"eval_{name}": value for name, value in row.items()})
        self.save_state()
        print(
            f"{student.left} of {student.full} layers, {student.share:.0%} of the bytes: calibration exact match "
            f"{row['calibration_exact']:.1%} ({state.reference['calibration_exact']:.1%} before any drop)"
        )

    def train_on(self, epochs: float, name: str) -> None:
        """Train on the next ``epochs`` passes of the stream; a stage that was stopped resumes from its checkpoint."""
        s, state, student = self.settings, self.state, self.student
        count = round(epochs * len(self.train_set))
        if not count or not student.trained_parameters():
            return
        indices, passes = training.shuffled_stream(len(self.train_set), state.examples_seen, count, s["SEED"])
        rows = training.TrainingRows(
            self.train_set.select(indices), self.tokenizer, s["AUGMENT"], s["SEED"], passes,
            state.examples_seen // len(self.train_set), s["START_FROM"],
        )  # fmt: skip
        folder = self.directory / f"trainer-{state.examples_seen}"
        self.report.before = state.steps
        loss = losses.RecoveryLoss(self.teacher and self.teacher.teach)
        trainer, seconds = recovery.train(
            student.model, rows, loss, folder, s, name=name, tokenizer=self.tokenizer,
            device=student.device, dtype=student.dtype, recompute=student.recomputes, callbacks=[self.report],
        )  # fmt: skip
        state.loss_curve += [
            {"step": state.steps + row["step"], "stage": name, "layers": student.left}
            | {key: row[key] for key in ("loss", "learning_rate")}
            for row in trainer.state.log_history
            if "loss" in row
        ]
        state.examples_seen += count
        state.tokens_seen += int(trainer.state.num_input_tokens_seen)
        state.training_seconds += seconds

    def costs(self) -> dict[str, float]:
        """Examples, tokens and seconds so far."""
        state = self.state
        return {"examples_seen": state.examples_seen, "tokens_seen": state.tokens_seen,
                "training_seconds": round(state.training_seconds, 1),
                "scanning_seconds": round(state.scanning_seconds, 1)}  # fmt: skip

    # ----------------------------------------------------------------- saving

    @torch.no_grad()
    def save(self) -> bool:
        """Write the recovered depth as ``<layers left>/``; below ACCURACY_FLOOR False, and nothing is written."""
        s, student, row = self.settings, self.student, self.state.depths[-1]
        start, floor = self.state.reference["calibration_exact"], s["ACCURACY_FLOOR"]
        if floor is not None and row["calibration_exact"] < floor * start:
            print(
                f"stopped: {row['calibration_exact']:.1%} is below {floor:.0%} of {start:.1%}; this depth is not saved"
            )
            return False
        folder = self.directory / str(student.left)
        if distributed.is_main() and not folder.exists():
            repacked = repack.repacked_model(student.model)
            with autocast(student.device, student.dtype):
                repack.check_equal(student.model, repacked, self.questions(2)[0])
            facts = {**row, "share_of_bytes": student.share, "dropped": [d["dropped"] for d in self.state.trajectory],
                     "blocks": [student.blocks[number] for number in losses.matched_blocks(student.model)],
                     "original_layers": student.original}  # fmt: skip
            with runs.atomic_path(folder) as partial:
                models.write_checkpoint(partial, repacked, self.tokenizer, models.checkpoint_dtype(student.dtype))
                models.write_model_card(
                    partial, s["BASE_MODEL"], f"Fine-tuned for FinQA programs, {self.step()}. Run `{s['RUN']}`.",
                    share_of_bytes=student.share,
                )  # fmt: skip
                record = runs.read_json(self.directory / "settings.json")
                runs.write_json(partial / "settings.json", record | {"base_precision": "auto", "step": self.step()})
                runs.write_json(partial / DONE, facts)
        distributed.barrier()
        return True

    def step(self) -> str:
        """What a table calls what this run has done to the model so far."""
        s, student = self.settings, self.student
        if not self.state.trajectory:
            words = ["recovery training"]
        else:
            units = "layers" if s["DROP_UNIT"] == "block" else "layers' worth of sub-layers"
            words = [f"SAPLING, {student.left} of {student.original} {units}"]
            words += [s["CRITERION"].replace("_", " ")] * (s["CRITERION"] != "calibration")
        return ", ".join(words + ["no teacher"] * (s["TEACHER"] is None) + ["adapters"] * (s["UPDATE"] == "qlora"))

    def finish(self) -> None:
        """Write the tables and charts of the whole run, and what marks it as finished."""
        if not distributed.is_main():
            return
        state, directory = self.state, self.directory
        for name in ("trajectory", "layer_scores", "loss_curve"):
            runs.write_csv(directory / f"{name}.csv", getattr(state, name))
        charts.loss_curve(directory / "loss_curve.png", state.loss_curve, [])
        charts.layer_importance(directory / "layer_importance.png", state.layer_scores)
        saved = [row["layers"] for row in state.depths if (directory / str(row["layers"])).exists()]
        metrics = {
            "data": self.facts["data"], "layers": saved[-1] if saved else None, "reference": state.reference,
            "depths": state.depths, "trainable": state.trainable, **self.costs(),
            "peak_memory_gb": memory.peak_memory_gb(),
        }  # fmt: skip
        runs.write_json(directory / DONE, metrics)
        for path in [*directory.glob("state*"), *directory.glob("trainer-*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        print(
            f"trained {state.training_seconds / 60:.1f} min, scored layers {state.scanning_seconds / 60:.1f} min; "
            "wrote "
            + ", ".join(f"{directory}/{layers}/" for layers in saved) + f" and tables and charts in {directory}/"
        )  # fmt: skip
