"""One SAPLING run: train, score, drop, with the record of what was dropped and why."""

import math
import shutil
from pathlib import Path

import torch

from fincompress import distributed, memory, runs, training
from fincompress.depth import criteria
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Ranking, Score, Unit
from fincompress.depth.scan import Patch, nested_batches, scan
from fincompress.errors import UserError
from fincompress.sapling.patch import absorb, fit_patches
from fincompress.sapling.recovery import train_stage
from fincompress.sapling.state import STATE, Moments, State
from fincompress.sapling.student import Student
from fincompress.sapling.teacher import ADAPTER, SharedTeacher, Teacher, load_teacher, needs_teacher
from fincompress.training.loss import TargetCollator, autocast, score_targets


class Run:
    """A model on its way down. The script calls these methods in the order of Algorithm 1."""

    def __init__(
        self, student: Student, directory: Path, tokenizer, train_set, calibration, facts: dict, predicted_gb: float
    ):
        self.settings, self.student = student.settings, student
        self.directory, self.facts, self.predicted_gb = directory, facts, predicted_gb
        self.tokenizer, self.collator = tokenizer, TargetCollator(tokenizer.pad_token_id)
        self.train_set, self.calibration = train_set, calibration
        self.moments: Moments = {}
        self.state = State.read(directory)
        s = self.settings
        arguments = training.training_arguments(s, directory, student.device, student.dtype, run_name=s["RUN"])
        self.report = training.Report(s["REPORT_TO"], directory, arguments)
        student.load()
        self.own_teacher = load_teacher(student)
        if self.state.trainable is not None:
            self.resume()
            print(f"resuming with {student.left} of {student.full} units left, {student.share:.1%} of the bytes")

    @property
    def teacher(self) -> Teacher | None:
        """The unpruned model to learn from; in ``qlora`` mode it is the student with its blocks back."""
        student = self.student
        if self.own_teacher is None and needs_teacher(self.settings):
            return SharedTeacher(student.model, student.removed, ADAPTER if student.adapter else None)
        return self.own_teacher

    def save_state(self, trained: bool = False, weights: bool = True) -> None:
        """What a killed run resumes from. Without ``weights`` those of the last time stand. Rank 0 writes, all wait."""
        self.state.trained = trained
        if weights:
            self.state.write_weights(self.directory, self.changed_parameters(), self.moments)
        self.state.write(self.directory)
        distributed.barrier()

    def changed_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, now or in healing, or was patched, and is still in the model."""
        patched = set(self.state.patched)

        def own_adapter(name: str) -> bool:
            return "lora_" in name and f".{ADAPTER}." not in name

        named = self.student.model.named_parameters()
        return {name: p for name, p in named if p.requires_grad or name in patched or own_adapter(name)}

    def resume(self) -> None:
        """Bring the model to where the state says the run was: the same drops, the same weights and moments."""
        state, student = self.state, self.student
        for row in state.trajectory:
            student.remove(row["dropped"])
        self.make_trainable()
        weights, self.moments = state.read_weights(self.directory, student.device)
        changed = self.changed_parameters()
        if not set(changed) <= set(weights):
            path = self.directory / state.weights
            raise UserError(f"{path} does not fit {STATE} beside it: remove {self.directory}/ to start again")
        for name, parameter in changed.items():
            parameter.data = weights[name].to(student.device)  # in float32, also what was patched and is not trained

    def return_to_state(self) -> None:
        """Undo what was done since the state was written."""
        self.student.load()
        self.resume()

    # --------------------------------------------------------------- training

    def rank_by_importance(self) -> list[Unit]:
        """Step 1: every layer of the model at the start, the most important one first."""
        s, units = self.settings, self.student.every_unit()
        if min(s["TRAIN_RATIO"], s["HEALING_TRAIN_RATIO"]) == 1:  # all are trained, in whichever order
            return units
        clock = runs.Stopwatch()
        with self.student.scoring_model() as model:
            scores, whole = scan(model, units, self.questions(s["FIRST_SCAN_EXAMPLES"]))
        self.state.scanning_seconds += clock.seconds()
        self.record_scores(Ranking(scores, whole), "trainable")
        # Before any training hardly a program is exact, so what it costs is read from the NLL.
        return [score.unit for score in sorted(scores, key=lambda score: -score.nll.mean())]

    def choose_trainable(self, ranking: list[Unit]) -> None:
        """The most important share of the layers is trained, now and later: as many as r says of those at the start.

        After a one-shot drop they are chosen among those that are left, by what they were worth before it.
        """
        left = self.student.every_unit()

        def most_important(share: float) -> list[str]:
            chosen = [unit for unit in ranking if unit in left][: math.ceil(share * self.student.full)]
            return [sub.unit_name(unit) for unit in left if unit in chosen]

        self.state.trainable = most_important(self.settings["TRAIN_RATIO"])
        self.state.trainable_healing = most_important(self.settings["HEALING_TRAIN_RATIO"])
        self.make_trainable()

    def make_trainable(self, healing: bool = False) -> None:
        """Let gradients reach what is trained between drops, or in healing."""
        self.student.make_trainable(self.state.trainable_healing if healing else self.state.trainable, healing)

    def train(self, epochs: float) -> None:
        """Train on the next ``epochs`` passes of examples, with the moments of the last cycle where they are kept."""
        s, state, student = self.settings, self.state, self.student
        count = round(epochs * len(self.train_set))
        if state.trained or not count or not student.trained_parameters():
            return
        name = f"{student.left} of {student.full} units, {student.share:.0%} of bytes"
        folder = f"trainer-{state.examples_seen}"
        trainer, seconds = train_stage(self, count, name, folder, s["LR_SCHEDULE"], moments=self.moments)
        if s["KEEP_MOMENTS"]:
            self.moments = trainer.moments_by_name()
        state.examples_seen += count
        state.tokens_seen += int(trainer.state.num_input_tokens_seen)
        state.training_seconds += seconds
        self.save_state(trained=True)
        if distributed.is_main():
            shutil.rmtree(self.directory / folder, ignore_errors=True)

    # ---------------------------------------------------------------- scoring

    def score(self) -> Ranking:
        """Every unit by the run's criterion, and the calibration scores of the model as it is.

        Nothing is ranked at the target size, where nothing more will be dropped. One shot keeps its first ranking.
        """
        s, state, student, clock = self.settings, self.state, self.student, runs.Stopwatch()
        ranked = state.ranking is not None or student.share <= s["TARGET_SIZE"]
        units = [] if ranked else student.units()
        ranking = Ranking([])
        with student.scoring_model() as model:
            if units:
                rank = criteria.get(s["CRITERION"])
                patches = self.patches(model, units) if "patches" in rank.needs else {}
                ranking = rank(model, units, self.questions(len(self.calibration)), self.context(patches))
                ranking = distributed.from_main(lambda: ranking)  # other devices may round otherwise
            if ranking.whole is None:
                ranking.whole = Score(())
                ranking.whole.add(*self.calibration_scores(model))
        state.scanning_seconds += clock.seconds()
        self.record_scores(ranking)
        if s["SCHEDULE"] == "one_shot":
            if state.ranking is None:
                state.ranking = [sub.unit_name(unit) for unit in ranking.order()]
            ranking = Ranking([Score(sub.parse_unit(name)) for name in state.ranking], ranking.whole)
        accuracy, nll = float(ranking.whole.exact.mean()), float(ranking.whole.nll.mean())
        if not state.trajectory:
            state.reference = {"accuracy": accuracy, "nll": nll}
        for row in state.trajectory:  # what training made of the last drops
            row.setdefault("exact_match_after_training", accuracy)
            row.setdefault("nll_after_training", nll)
        measure = "KL" if s["CRITERION"] == "kl" and units else "NLL"  # what the scan compares
        self.report.log(state.steps, {"eval_exact_match": accuracy, f"eval_{measure.lower()}": nll})
        print(
            f"{student.left} of {student.full} units, {student.share:.1%} of the bytes: calibration exact match "
            f"{accuracy:.1%}, {measure} {nll:.3f}"
        )
        return ranking

    def questions(self, count: int) -> list[dict[str, torch.Tensor]]:
        """So many calibration questions, collated, in an order of each scan's own.

        In one order the same few would decide every time which units are eliminated first.
        """
        generator = torch.Generator().manual_seed(self.settings["SEED"] + self.state.scans)
        order = torch.randperm(len(self.calibration), generator=generator)[:count].tolist()
        return self.batches(self.calibration, order)

    def batches(self, dataset, order: list[int]) -> list[dict[str, torch.Tensor]]:
        """These examples in batches of SCAN_BATCH_SIZE, for passes without gradients."""
        parts = nested_batches(order, dataset["length"], self.settings["SCAN_BATCH_SIZE"])
        batches = [self.collator([dataset[i] for i in part]) for part in parts]
        return [{name: tensor.to(self.student.device) for name, tensor in batch.items()} for batch in batches]

    def calibration_scores(self, model) -> tuple[torch.Tensor, torch.Tensor]:
        """``(nll, exact)`` of a model on each calibration question."""
        size = self.settings["SCAN_BATCH_SIZE"]
        return score_targets(model, self.calibration, self.collator, size, self.student.dtype)

    def context(self, patches: dict[Unit, Patch]) -> criteria.Context:
        """What the criterion may want to know."""
        s = self.settings
        rows = [row for row in self.state.layer_scores if row["scan"] == self.state.scans and row["purpose"] == "drop"]
        return criteria.Context(
            seed=s["SEED"],
            drops=self.drops_per_cycle,
            blocks=self.student.blocks_above(s["TARGET_SIZE"]),
            earlier={sub.parse_unit(row["unit"]): row["nll"] - row["nll_whole"] for row in rows if "nll" in row},
            teacher=lambda batch: self.teacher(batch)[0],
            norms=s["TIES"] == "norm",
            patches=patches,
        )

    def record_scores(self, ranking: Ranking, purpose: str = "drop") -> None:
        """Rows of layer_scores.csv for one scan."""
        self.state.scans += 1
        for score in ranking.scores:
            row = {"scan": self.state.scans, "purpose": purpose, "units_left": self.student.left}
            row["unit"], seen = sub.unit_name(score.unit), score.questions
            if seen:
                row |= {
                    "questions": seen, "exact_match": float(score.exact.mean()), "nll": float(score.nll.mean()),
                    "nll_whole": float(ranking.whole.nll[:seen].mean()), "norm": score.norm,
                }  # fmt: skip
            else:
                row["score"] = score.value
            self.state.layer_scores.append(row)

    # --------------------------------------------------------------- dropping

    @property
    def drops_per_cycle(self) -> float:
        """Units that go before the next training: in one shot all that the target size wants."""
        s = self.settings
        if s["SCHEDULE"] == "one_shot":
            return math.inf
        early = self.student.share > (1 + s["TARGET_SIZE"]) / 2  # the first half of the way
        return s["DROPS_EARLY"] if early else s["DROPS_LATE"]

    def is_healed(self) -> bool:
        """Whether a copy of the model as it is was healed, maybe before this run was killed."""
        return any(row["units_left"] == self.student.left for row in self.state.healed)

    def depths_reached(self) -> list[float]:
        """Depths of HEAL_AT that the model has come to and that were not healed yet."""
        left, share = self.student.left, self.student.share
        done = [depth for row in self.state.healed for depth in row["heal_at"]]
        return [d for d in self.settings["HEAL_AT"] if d not in done and (left <= d if d > 1 else share <= d)]

    def drop(self, ranking: Ranking) -> None:
        """Drop a cycle's units by the ranking; fewer where the target size or a depth of HEAL_AT is met before."""
        s, student, count, dropped = self.settings, self.student, self.drops_per_cycle, 0
        while dropped < count and student.share > s["TARGET_SIZE"] and not self.depths_reached():
            score, reason = ranking.next(student.allowed())
            if score is None:
                print(f"  {dropped} of {count} dropped: no other unit may go by this ranking")
                break
            name = sub.unit_name(score.unit)
            clock = runs.Stopwatch()
            self.patch(score.unit)
            self.state.scanning_seconds += clock.seconds()
            student.remove(name)
            decided_by = s["CRITERION"] if reason == "order" else reason
            self.record_drop(name, score, decided_by, ranking.whole)
            print(f"  dropped {name} ({decided_by})")
            dropped += 1

    def patch(self, unit: Unit) -> None:
        """Fold what a unit adds into the projection before it, fitted on PATCH_EXAMPLES of the training set."""
        s, state, student = self.settings, self.state, self.student
        if not s["PATCH_EXAMPLES"]:
            return
        with autocast(student.device, student.dtype):
            changed = absorb(student.model, unit, self.patch_batches(), adapters=s["UPDATE"] == "qlora")
        places = {id(parameter) for parameter in changed}
        names = {name for name, parameter in student.model.named_parameters() if id(parameter) in places}
        state.patched = sorted({*state.patched, *names})
        if s["UPDATE"] == "qlora":  # an adapter has other directions now
            self.moments = {name: kept for name, kept in self.moments.items() if name not in names}

    def patches(self, model, units: list[Unit]) -> dict[Unit, Patch]:
        """How each unit would be patched, so that it is scored as it would be dropped; adapters' rank cuts it then."""
        if not self.settings["PATCH_EXAMPLES"]:
            return {}
        return fit_patches(model, units, self.patch_batches())

    def patch_batches(self) -> list[dict[str, torch.Tensor]]:
        """The examples of the training set that patches are fitted on."""
        count = min(self.settings["PATCH_EXAMPLES"], len(self.train_set))
        order, _ = training.shuffled_stream(len(self.train_set), 0, count, self.settings["SEED"])
        return self.batches(self.train_set, order)

    def record_drop(self, name: str, score: Score, decided_by: str, whole: Score) -> None:
        """A row of trajectory.csv; what follows training is added by ``score``."""
        state, student = self.state, self.student
        left, trained = set(sub.sublayers(student.model)), state.trainable  # None before one shot's choice
        if trained is not None:
            trained = sum(bool(left & set(sub.parse_unit(unit_name))) for unit_name in trained)
        row = {
            "dropped": name,
            "kind": "block" if name.startswith("block") else "+".join(sublayer.kind for sublayer in score.unit),
            "units_left": student.left,
            "trained_units_left": trained,
            **student.shares(),
            "exact_match_before": float(whole.exact.mean()),
            "nll_before": float(whole.nll.mean()),
            "scan": state.scans,
            "decided_by": decided_by,
        }
        if score.questions:
            row |= {
                "questions": score.questions, "norm": score.norm,
                "exact_match_alone": float(score.exact.mean()), "nll_alone": float(score.nll.mean()),
            }  # fmt: skip
        row |= {name: round(getattr(state, name), 1) for name in ("training_seconds", "scanning_seconds")}
        row |= {f"peak_{device}_gb": value for device, value in memory.peak_memory_gb().items()}
        state.trajectory.append(row)
        self.report.log(state.steps, {f"eval_{name}": value for name, value in row.items()})
