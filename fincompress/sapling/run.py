"""One SAPLING run: the model as it shrinks, what was dropped and why, and the state from which a killed run resumes."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, set_seed

from fincompress import generation, memory, models, provenance, quantization, runs, training
from fincompress.depth import importance, repack
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError
from fincompress.report import charts
from fincompress.sapling.gates import CloseGate, Gate
from fincompress.sapling.losses import TOP_K
from fincompress.sapling.recovery import (
    Moments,
    Recovery,
    RecoveryTrainer,
    moments_from_tensors,
    moments_to_tensors,
)
from fincompress.sapling.teacher import ADAPTER, SharedTeacher, Teacher, TeachingCache, WriteCache, needs_teacher
from fincompress.training.loss import TargetCollator, score_targets

STATE = "state.json"
FRESH = {
    "weights": None,  # the file of the trained weights that belong to this state
    "trainable": None,  # names of the units that are trained
    "trainable_healing": None,  # and of those that are trained in healing
    "trained": False,  # whether the training before the next drop is done
    "cycle_start": 0,  # examples seen before the training since the last drop
    "fading": [],  # units that were dropped and are not faded out yet
    "ranking": None,  # names of the units in the order in which one shot drops them
    "healed": [],  # one row a depth that was healed
    "stopped": None,  # why no more is dropped
    "trajectory": [],  # one row a drop
    "layer_scores": [],  # one row a unit and scan
    "loss_curve": [],
    "scans": 0,
    "last_above_floor": None,  # units left, drops and file of weights when the accuracy floor was last met
    "reference": None,  # calibration scores before any drop
    "examples_seen": 0,  # these three without healing, of which each row above says its own
    "tokens_seen": 0,
    "training_seconds": 0.0,
    "scanning_seconds": 0.0,
}


class Run:
    """A model on its way down, and its record. The script calls these methods in the order of the algorithm."""

    def __init__(self, settings: dict, directory: Path, source: str, train_set, calibration, facts: dict):
        s = self.settings = settings
        self.directory, self.source, self.facts = directory, source, facts
        self.train_set, self.calibration = train_set, calibration
        models.quiet_libraries()
        set_seed(s["SEED"])
        self.device = models.pick_device()
        self.dtype, _ = models.pick_dtype(self.device)
        self.tokenizer = models.load_tokenizer(source)
        config = models.read_config(source)
        self.sizes = memory.parameter_sizes(config)  # refuses an architecture whose layers cannot be dropped
        self.adapter = self.find_adapter()
        self.predicted_gb = self.predict(config)
        training.print_prediction(self.predicted_gb, self.device)
        self.load_model()
        self.full = self.left  # units at the start
        if len({memory.count_parameters(block.parameters()) for block in sub.decoder(self.model).layers}) > 1:
            raise UserError("the blocks of this model differ in size (experts?): it cannot be repacked")
        self.full_size = repack.checkpoint_parameters(self.model, self.sizes)
        smallest = (self.sizes["ends"] + self.sizes["attention"] + self.sizes["mlp"]) / self.full_size
        if s["TARGET_SIZE"] < smallest:
            raise UserError(
                f"TARGET_SIZE = {s['TARGET_SIZE']} cannot be met: embeddings, head and one block are {smallest:.1%} of "
                "this model's bytes"
            )
        if s["TARGET_MEMORY_GB"] is not None:
            one = repack.packed_config(config, [repack.Block(*(sub.SubLayer(0, kind) for kind in sub.KINDS))])
            least = memory.inference_gb(one, context=1024)
            if s["TARGET_MEMORY_GB"] < least:
                raise UserError(
                    f"TARGET_MEMORY_GB = {s['TARGET_MEMORY_GB']} cannot be met: embeddings, head and one block take "
                    f"{least:.2g} GB"
                )
        self.collator = TargetCollator(self.tokenizer.pad_token_id)
        self.check_heal_at()
        self.gate = Gate()
        self.removed: sub.Parts = {}  # what a teacher needs back that shares this model
        self.fading: sub.Parts = {}  # what was dropped and is not faded out yet
        self.moments: Moments = {}
        self.own_teacher = self.load_teacher()
        self.cache: TeachingCache | None = None
        self.state = self.read_state()
        if self.state["trainable"] is not None:
            self.resume()

    def load_model(self) -> None:
        """The model that the run started from.

        For adapters on an NF4 base that is phase 1's adapter on its own: merged and quantized again, most of what it
        learnt would be lost in the rounding.
        """
        s = self.settings
        with self.explain_out_of_memory():
            if self.adapter is not None:
                self.model = models.load_adapter(self.adapter, s["RESULTS_DIR"], self.device, self.dtype)[0].eval()
                if needs_teacher(s):
                    self.model.load_adapter(str(self.adapter / "adapter"), adapter_name=ADAPTER)
                models.compute_in_model_dtype(self.model)
            else:
                self.model = models.load_base(self.source, self.facts["base_precision"], self.device, self.dtype).eval()

    def load_teacher(self) -> Teacher | None:
        """The teacher that is a model of its own; None where none is needed, or it shares the student's NF4 base."""
        s = self.settings
        if not needs_teacher(s) or s["UPDATE"] == "qlora":
            return None
        run = s["TEACHER"] or s["START_FROM"]
        path = str(models.dense_checkpoint(run, s["RESULTS_DIR"]))
        if models.read_config(path).num_hidden_layers != len(sub.decoder(self.model).layers):
            raise UserError(f"the teacher {run!r} has another number of blocks than the model to shrink: name another")
        with self.explain_out_of_memory():
            return Teacher(models.load_base(path, "auto", self.device, self.dtype))

    @property
    def teacher(self) -> Teacher | None:
        """The unpruned model to learn from; in ``qlora`` mode it is the student with its blocks back."""
        if self.own_teacher is None and needs_teacher(self.settings):
            return SharedTeacher(self.model, self.removed, self.gate, ADAPTER if self.adapter is not None else None)
        return self.own_teacher

    def check_heal_at(self) -> None:
        """Raise UserError for a depth of HEAL_AT that this run does not pass through."""
        s, pair = self.settings, self.sizes["attention"] + self.sizes["mlp"]
        every = len(sub.sublayers(self.model))
        target = s["TARGET_SIZE"] * self.full_size
        last = 2 * math.floor((target - self.sizes["ends"]) / pair)  # sub-layers at TARGET_SIZE
        for depth in s["HEAL_AT"]:
            if depth >= every or depth == 1:
                raise UserError(f"HEAL_AT holds {depth}, but the run starts with {every} sub-layers: name fewer")
            units = depth if depth > 1 else 2 * math.floor((depth * self.full_size - self.sizes["ends"]) / pair)
            if units < last:
                raise UserError(
                    f"HEAL_AT holds {depth}, but the run stops at {last} sub-layers (TARGET_SIZE = {s['TARGET_SIZE']})"
                )

    def find_adapter(self) -> Path | None:
        """The folder of the run to go on from with its own adapter, where there is such a one."""
        s = self.settings
        if s["UPDATE"] != "qlora" or not s["START_FROM"]:
            return None
        start = runs.run_directory(s["RESULTS_DIR"], s["START_FROM"])
        start = start.parent if start.name == "merged" else start
        if not (start / "adapter").exists() or runs.read_json(start / "settings.json")["base_precision"] != "nf4":
            return None
        with models.explain_loading(str(start / "adapter")):
            begun = LoraConfig.from_pretrained(start / "adapter")
        for name, found in (("LORA_RANK", begun.r), ("LORA_ALPHA", begun.lora_alpha)):
            if found != s[name]:
                raise UserError(f"{s['START_FROM']!r} was trained with {name} = {found}: set it so, not to {s[name]}")
        return start

    def predict(self, config) -> float:
        """Predicted peak memory of training in GB, before any drop."""
        s, on_gpu = self.settings, self.device.type == "cuda"
        checkpointing = on_gpu if s["GRADIENT_CHECKPOINTING"] is None else s["GRADIENT_CHECKPOINTING"]
        longest, target = max(self.train_set["length"]), 1 + max(self.train_set["target_tokens"])
        shape = (s["BATCH_SIZE"], longest, target, checkpointing)
        kind = (self.device.type, self.dtype.itemsize)
        teacher = memory.predict_teacher_gb(
            config, s["BATCH_SIZE"], longest, target, self.dtype.itemsize,
            adapter_rank=s["LORA_RANK"] if s["UPDATE"] == "qlora" else None, hidden_states=s["HIDDEN_STATES"] > 0,
        ) if needs_teacher(s) else 0.0  # fmt: skip
        ratio = max(s["TRAIN_RATIO"], s["HEALING_TRAIN_RATIO"])
        if s["UPDATE"] == "qlora":
            return teacher + memory.predict_lora_training_gb(
                config, "nf4", s["LORA_RANK"], *shape, *kind, ratio, frozen_adapters=self.adapter is not None
            )
        return teacher + memory.predict_training_gb(config, *shape, ratio, s["TRAIN_ENDS"], *kind)

    # ------------------------------------------------------------------ state

    def read_state(self) -> dict:
        """The state that a kill left, or a fresh one."""
        path = self.directory / STATE
        if path.exists():
            state = runs.read_json(path)
            if set(state) != set(FRESH):
                raise UserError(f"{path} is no state of this version: remove {self.directory}/ to start again")
            return state
        begun = [p.name for p in self.directory.iterdir() if p.is_dir() and p.name.isdigit()]
        if any(int(name) < self.full for name in begun):
            raise UserError(
                f"{self.directory}/ holds depths {', '.join(sorted(begun))} but no {STATE}: nothing to go on from; "
                "remove that folder, or choose another RUN"
            )
        return copy.deepcopy(FRESH)

    def resume(self) -> None:
        """Bring the model to where the state says the run was: the same drops, the same weights and moments."""
        path = self.directory / self.state["weights"]
        fading = set(self.state["fading"])
        for row in self.state["trajectory"]:
            if row["dropped"] not in fading:
                self.take_out(row["dropped"])
        self.make_trainable()
        weights, self.moments = self.read_state_file()
        trained = dict(self.trained_parameters())
        if not set(trained) <= set(weights):
            raise UserError(f"{path} does not fit {STATE} beside it: remove {self.directory}/ to start again")
        for name, parameter in trained.items():
            parameter.data.copy_(weights[name])
        self.fading = {}
        for name in self.state["fading"]:
            self.fading |= self.take_out(name)
        print(f"going on with {self.left} of {self.full} units left, {self.share:.1%} of the bytes")

    def read_state_file(self) -> tuple[dict[str, torch.Tensor], Moments]:
        """The weights that were trained and the optimizer's moments, as the state has them."""
        path = self.directory / self.state["weights"]
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove {self.directory}/ to start again") from None
        return tensors, moments_from_tensors(tensors, self.device)

    def take_out(self, name: str) -> sub.Parts:
        """Remove a unit from the model; returns its parts, which a teacher that shares the model keeps too."""
        parts = sub.remove(self.model, *sub.parse_unit(name))
        if self.own_teacher is None and needs_teacher(self.settings):
            self.removed |= parts
        return parts

    def save_state(self, trained: bool = False, weights: bool = True) -> None:
        """Write weights, then the state that names them: a kill between the two leaves the older pair whole.

        Without ``weights`` those of the last time stand: a drop and a healed branch change none that stays.
        """
        self.state["trained"] = trained
        if weights:
            self.state["weights"] = f"state-{self.state['scans']:04d}-{self.state['examples_seen']}.safetensors"
            with sub.restored(self.model, self.fading):
                trained_now = dict(self.trained_parameters())
            tensors = {name: p.detach().cpu().contiguous() for name, p in trained_now.items()}
            tensors |= moments_to_tensors({name: kept for name, kept in self.moments.items() if name in trained_now})
            with runs.atomic_path(self.directory / self.state["weights"]) as partial:
                save_file(tensors, partial)
        runs.write_json(self.directory / STATE, self.state)
        kept_files = {self.state["weights"], (self.state["last_above_floor"] or {}).get("weights")}
        for path in self.directory.glob("state-*.safetensors"):
            if path.name not in kept_files:
                path.unlink()

    def trained_parameters(self):
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    @property
    def stopped(self) -> str | None:
        return self.state["stopped"]

    @property
    def drops(self) -> list[dict]:
        return self.state["trajectory"]

    @property
    def left(self) -> int:
        """Sub-layers that are left, or blocks where blocks are dropped."""
        return len(sub.units(self.model, self.settings["DROP_UNIT"]))

    def units(self) -> list[importance.Unit]:
        """What may be dropped next."""
        units = sub.units(self.model, self.settings["DROP_UNIT"], self.settings["PACKABLE_ONLY"])
        if not self.settings["PROTECT"]:
            return units
        ends = (0, len(sub.decoder(self.model).layers) - 1)
        return [unit for unit in units if not any(one.block in ends for one in unit)]

    @property
    def share(self) -> float:
        """Share of the bytes of the checkpoint at the start, embeddings, head and zero-filled slots included."""
        return repack.checkpoint_parameters(self.model, self.sizes) / self.full_size

    # --------------------------------------------------------------- training

    def rank_by_importance(self) -> list[importance.Unit]:
        """Step 1: every layer of the model at the start, the most important one first."""
        units = sub.units(self.model, self.settings["DROP_UNIT"])
        if min(self.settings["TRAIN_RATIO"], self.settings["HEALING_TRAIN_RATIO"]) == 1:  # all are, in whichever order
            return units
        clock = runs.Stopwatch()
        questions = min(self.settings["FIRST_SCAN_EXAMPLES"], len(self.calibration))
        with self.explain_out_of_memory(), self.scoring_model() as model:
            scores, whole = importance.scan(model, units, self.batches(questions))
        self.record_scores(scores, whole, "trainable")
        self.state["scanning_seconds"] += clock.seconds()
        # Before any training hardly a program is exact, so what it costs is read from the NLL.
        return [score.unit for score in sorted(scores, key=lambda score: -score.nll.mean())]

    def choose_trainable(self, ranking: list[importance.Unit]) -> None:
        """The most important share of the layers is trained, now and later: as many as r says of those at the start.

        After a one-shot drop they are chosen among those that are left, by what they were worth before it.
        """
        left = sub.units(self.model, self.settings["DROP_UNIT"])
        for name, share in (("trainable", "TRAIN_RATIO"), ("trainable_healing", "HEALING_TRAIN_RATIO")):
            chosen = [unit for unit in ranking if unit in left][: math.ceil(self.settings[share] * self.full)]
            self.state[name] = [sub.unit_name(unit) for unit in left if unit in chosen]

    def make_trainable(self, healing: bool = False) -> None:
        """Let gradients reach the chosen units alone; what is trained is held in float32, what is frozen is not."""
        s = self.settings
        names = self.state["trainable_healing" if healing else "trainable"]
        chosen = [one for name in names for one in sub.parse_unit(name)]
        if s["UPDATE"] == "qlora" and self.adapter is None and not hasattr(self.model, "peft_config"):
            self.add_adapters()
        self.model.requires_grad_(False)
        if s["UPDATE"] == "qlora":
            for name, parameter in [p for one in chosen for p in sub.module(self.model, one).named_parameters()]:
                parameter.requires_grad_("lora_" in name and f".{ADAPTER}." not in name)
        else:
            found = sub.decoder(self.model)
            ends = [*found.embed_tokens.parameters(), *found.norm.parameters()]
            ends += self.model.get_output_embeddings().parameters()
            for parameter in [p for one in chosen for p in sub.parameters(self.model, one)] + ends * s["TRAIN_ENDS"]:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
            if not healing:
                memory.release_files(self.model)
        trained = memory.count_parameters(p for _, p in self.trained_parameters())
        print(
            f"{len(names)} of {self.full} units are trained: {trained / 1e6:.1f} M of "
            f"{self.full_size / 1e6:.1f} M parameters, {8 * trained / 1e9:.2f} GB of optimizer state in float32 "
            f"(all of them: {8 * self.full_size / 1e9:.2f} GB)"
        )

    def add_adapters(self) -> None:
        """Put new adapters on every unit that is ever trained."""
        s = self.settings
        every = {*self.state["trainable"], *self.state["trainable_healing"]}
        names = {module: name for name, module in self.model.named_modules()}
        targets = [
            names[module]
            for one in (one for name in sorted(every) for one in sub.parse_unit(name))
            for module in sub.module(self.model, one).modules()
            if isinstance(module, torch.nn.Linear)
        ]
        adapters = LoraConfig(
            r=s["LORA_RANK"], lora_alpha=s["LORA_ALPHA"], target_modules=targets, task_type="CAUSAL_LM"
        )
        if targets:  # none where a killed run resumes after all that was trained had been dropped
            with quantization.quiet():  # peft imports gptqmodel, which greets
                self.model = get_peft_model(self.model, adapters)
            models.compute_in_model_dtype(self.model)

    def train(self, epochs: float) -> None:
        """Train on the next ``epochs`` passes of examples: while what was just dropped fades, then without it."""
        s, state = self.settings, self.state
        if state["trained"]:
            return
        count = round(epochs * len(self.train_set))
        left = count - (state["examples_seen"] - state["cycle_start"])
        if self.fading:
            fade = min(round(s["FADE"] * count), left)
            with sub.restored(self.model, self.fading):
                gone = [one for name in state["fading"] for one in sub.parse_unit(name)]
                with self.gate.on(self.model, *gone):
                    self.train_cycle(fade, "fading", CloseGate(self.gate))
            self.fading, state["fading"] = {}, []
            self.save_state()
            self.remove_trainer_folders()
            left -= fade
        if left and self.trained_parameters():
            self.train_cycle(left, f"{self.left} of {self.full} units, {self.share:.0%} of bytes")
            self.save_state(trained=True)
            self.remove_trainer_folders()

    def remove_trainer_folders(self) -> None:
        """Remove what a stage of training resumes from, once the state is past it."""
        for path in self.directory.glob("trainer-*"):
            shutil.rmtree(path, ignore_errors=True)

    def train_cycle(self, count: int, name: str, *callbacks) -> None:
        """Train the model itself, with the moments of the last cycle where they are kept."""
        if not count or not self.trained_parameters():
            return
        trainer, seconds = self.train_stage(
            count, name, f"trainer-{self.state['examples_seen']}", self.settings["LR_SCHEDULE"], callbacks, self.moments
        )
        if self.settings["KEEP_MOMENTS"]:
            self.moments = trainer.moments_by_name()
        self.state["examples_seen"] += count
        self.state["tokens_seen"] += int(trainer.state.num_input_tokens_seen)
        self.state["training_seconds"] += seconds

    def train_stage(
        self, count: int, name: str, folder: str, schedule: str, callbacks=(), moments: Moments | None = None
    ) -> tuple[RecoveryTrainer, float]:
        """Train on the next ``count`` examples of the stream; returns the trainer and the seconds that it took.

        A run that was killed in here resumes from the last checkpoint in ``folder``, after SAVE_STEPS.
        """
        s, seen = self.settings, self.state["examples_seen"]
        cache = self.open_cache()
        gc.collect()  # accelerate's wrapper of forward is a reference cycle: copies that were scored stay without it
        checkpoints = self.directory / folder
        rows = self.train_set.select(training.shuffled_stream(len(self.train_set), seen, count, s["SEED"]))
        columns = training.TRAINING_COLUMNS + (["row"] if cache is not None else [])
        checkpointing = s["GRADIENT_CHECKPOINTING"]
        arguments = training.training_arguments(
            s | {"LR_SCHEDULE": schedule}, checkpoints, self.device, self.dtype, num_train_epochs=1,
            save_steps=s["SAVE_STEPS"], save_total_limit=1,
            gradient_checkpointing=self.device.type == "cuda" if checkpointing is None else checkpointing,
        )  # fmt: skip
        progress = training.Progress(name)
        trainer = RecoveryTrainer(
            model=self.model,
            args=arguments,
            train_dataset=rows.select_columns(columns),
            data_collator=self.collator,
            processing_class=self.tokenizer,
            callbacks=[progress, *callbacks, *([WriteCache(cache)] if cache is not None else [])],
        )
        trainer.passes = training.stream_passes(len(self.train_set), seen, count)
        trainer.moments = moments
        trainer.recovery = Recovery(
            s["KL"], s["CROSS_ENTROPY"], s["HIDDEN_STATES"], s["TEMPERATURE"], self.teacher, cache
        )
        trainer.remove_callback(PrinterCallback)
        checkpoint = training.last_checkpoint(checkpoints)
        if checkpoint:
            print(f"going on from {checkpoint.name} of this stage")
        with self.explain_out_of_memory(), training.explain_resuming(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.model.eval()
        step = self.state["loss_curve"][-1]["step"] if self.state["loss_curve"] else 0
        self.state["loss_curve"] += [
            {"step": step + row["step"], "stage": name.partition(",")[0], "units_left": self.left}
            | {key: row[key] for key in ("loss", "learning_rate")}
            for row in trainer.state.log_history
            if "loss" in row
        ]
        return trainer, progress.clock.seconds()

    def reached(self) -> list[float]:
        """Depths of HEAL_AT that the model has come to and that were not healed yet."""
        left, share = len(sub.sublayers(self.model)), self.share
        done = [depth for row in self.state["healed"] for depth in row["heal_at"]]
        return [d for d in self.settings["HEAL_AT"] if d not in done and (left <= d if d > 1 else share <= d)]

    def open_cache(self) -> TeachingCache | None:
        """What the teacher says of the training set; None where its hidden states are needed too."""
        s = self.settings
        if s["KL"] == 0 or s["HIDDEN_STATES"] > 0:
            return None
        if self.cache is None:
            if "row" not in self.train_set.column_names:
                self.train_set = self.train_set.add_column("row", list(range(len(self.train_set))))
            identity = provenance.fingerprint(self.facts, s["TEACHER"], s["TEMPERATURE"], TOP_K)
            path = self.directory / "teaching.safetensors"
            self.cache = TeachingCache(path, identity, self.teacher, s["TEMPERATURE"])
        return self.cache

    def explain_out_of_memory(self):
        s = self.settings
        return training.explain_out_of_memory(
            self.predicted_gb, f"BATCH_SIZE and SCAN_BATCH_SIZE under another RUN than {s['RUN']!r}"
        )

    # ---------------------------------------------------------------- scoring

    def batches(self, questions: int):
        """So many calibration questions, collated for a scan.

        In an order of each scan's own, or the same few would decide every time which units are given up first.
        """
        seed = self.settings["SEED"] + self.state["scans"]
        order = torch.randperm(len(self.calibration), generator=torch.Generator().manual_seed(seed))
        order, size = order[:questions].tolist(), self.settings["SCAN_BATCH_SIZE"]
        for indices in importance.nested_batches(order, self.calibration["length"], size):
            batch = self.collator([self.calibration[i] for i in indices])
            yield {name: tensor.to(self.device) for name, tensor in batch.items()}

    @contextlib.contextmanager
    def scoring_model(self):
        """The model as a checkpoint would be: where weights are trained, a copy of them in 16 bits."""
        if self.settings["UPDATE"] == "full":
            # Frozen weights are shared. Not .to(): that would round the rotary frequencies too.
            shared = {
                id(p): torch.nn.Parameter(p.detach().to(self.dtype), requires_grad=False)
                for p in self.model.parameters()
            }
            yield copy.deepcopy(self.model, shared)
        else:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                yield self.model.eval()

    def score(self) -> tuple[list[importance.Score] | list[tuple], importance.Score]:
        """``(ranking, whole)``: every unit by the run's criterion, and the calibration scores of the model as it is.

        The ranking is empty at the target size, where nothing more will be dropped. One shot keeps its first one.
        """
        s, clock = self.settings, runs.Stopwatch()
        one_shot = s["SCHEDULE"] == "one_shot"
        ranked = one_shot and self.state["ranking"] is not None  # once, before anything is dropped
        units = [] if ranked or self.share <= s["TARGET_SIZE"] else self.units()
        with self.explain_out_of_memory(), self.scoring_model() as model:
            if units and s["CRITERION"] in importance.SCANS:
                ranking, whole = importance.scan(
                    model, units, self.batches(len(self.calibration)), earlier=self.last_scores(),
                    eliminate=s["EARLY_ELIMINATION"] and not one_shot,
                    drops=1 if one_shot else self.drops_per_cycle,
                    teacher=(lambda batch: self.teacher(batch)[0]) if s["CRITERION"] == "kl" else None,
                )  # fmt: skip
            else:
                ranking, whole = self.rank(model, units), importance.Score(())
                whole.add(*score_targets(model, self.calibration, self.collator, s["SCAN_BATCH_SIZE"], self.dtype), 0.0)
        self.state["scanning_seconds"] += clock.seconds()
        self.record_scores(ranking, whole)
        if one_shot:
            if not ranked:
                scanned = s["CRITERION"] in importance.SCANS
                order = self.in_order(ranking) if scanned else [unit for unit, _ in ranking]
                self.state["ranking"] = [sub.unit_name(unit) for unit in order]
            ranking = [(sub.parse_unit(name), float(place)) for place, name in enumerate(self.state["ranking"])]
        found = {"accuracy": float(whole.exact.mean()), "nll": float(whole.nll.mean())}
        if not self.drops:
            self.state["reference"] = found
        for row in self.drops:  # what training made of the last drops
            row.setdefault("exact_match_after_training", found["accuracy"])
            row.setdefault("nll_after_training", found["nll"])
        print(
            f"{self.left} of {self.full} units, {self.share:.1%} of the bytes: calibration exact match "
            f"{found['accuracy']:.1%}, NLL {found['nll']:.3f}"
        )
        return ranking, whole

    def in_order(self, scores: list[importance.Score]) -> list[importance.Unit]:
        """Units in the order in which the scan's scores would have them dropped."""
        left, order = list(scores), []
        while left:
            chosen, _ = importance.choose(left, self.settings["CRITERION"] == "calibration")
            left.remove(chosen)
            order.append(chosen.unit)
        return order

    def rank(self, model, units: list[importance.Unit]) -> list[tuple[importance.Unit, float]]:
        """Units by a criterion that needs no scan; for ``angular`` in one shot the best run of neighbours in front."""
        s, questions = self.settings, len(self.calibration)
        if not units:
            return []
        ranking = importance.rank(model, units, self.batches(questions), s["CRITERION"], s["SEED"])
        if s["CRITERION"] == "angular" and s["SCHEDULE"] == "one_shot":
            window = importance.angular_window(model, units, self.batches(questions), self.drops_needed())
            ranking.sort(key=lambda pair: pair[0] not in window)
        return ranking

    def last_scores(self) -> dict[importance.Unit, float] | None:
        """NLL lost without each unit as the last scan found it."""
        last = [row for row in self.state["layer_scores"] if row["scan"] == self.state["scans"]]
        last = [row for row in last if row["purpose"] == "drop"]
        return {sub.parse_unit(row["unit"]): row["nll"] - row["nll_whole"] for row in last} or None

    def record_scores(self, ranking, whole: importance.Score, purpose: str = "drop") -> None:
        """Rows of layer_scores.csv for one scan."""
        self.state["scans"] += 1
        common = {"scan": self.state["scans"], "purpose": purpose, "units_left": self.left}
        for entry in ranking:
            if isinstance(entry, importance.Score):
                seen = entry.questions
                row = {
                    "unit": sub.unit_name(entry.unit), "questions": seen, "exact_match": float(entry.exact.mean()),
                    "nll": float(entry.nll.mean()), "nll_whole": float(whole.nll[:seen].mean()), "norm": entry.norm,
                }  # fmt: skip
            else:
                row = {"unit": sub.unit_name(entry[0]), "score": entry[1]}
            self.state["layer_scores"].append(common | row)

    # --------------------------------------------------------------- dropping

    def stop_if_reached(self, whole: importance.Score) -> None:
        """Note in the state why no more is dropped, once there is a reason."""
        self.state["stopped"] = self.stopped or self.stop_reason(whole)

    def stop_reason(self, whole: importance.Score) -> str | None:
        """Which target is met first: size, accuracy floor, memory or latency; None while there is more to drop."""
        s = self.settings
        accuracy, reference = float(whole.exact.mean()), self.state["reference"]["accuracy"]
        if s["ACCURACY_FLOOR"] is not None:
            if reference == 0:
                shutil.rmtree(self.directory)  # nothing to go on with, and it would refuse corrected constants
                raise UserError("ACCURACY_FLOOR is a share of the accuracy before any drop, which is 0: train longer")
            if accuracy < s["ACCURACY_FLOOR"] * reference:
                return (
                    f"accuracy {accuracy:.1%} of {self.left} units fell below {s['ACCURACY_FLOOR']:.0%} of "
                    f"{reference:.1%}; the last depth above that had {self.state['last_above_floor']['units']}"
                )
            self.state["last_above_floor"] = {
                "units": self.left, "drops": len(self.drops), "weights": self.state["weights"]
            }  # fmt: skip
        if self.share <= s["TARGET_SIZE"]:
            return f"{self.share:.1%} of the bytes, at most {s['TARGET_SIZE']:.0%} wanted"
        if s["TARGET_MEMORY_GB"] is not None:
            needed = memory.inference_gb(self.packed().config, context=1024)
            if needed <= s["TARGET_MEMORY_GB"]:
                return f"{needed:.2f} GB of memory, at most {s['TARGET_MEMORY_GB']} wanted"
        if s["TARGET_LATENCY_MS"] is not None:
            with self.scoring_model() as model:
                found = generation.decode_latency_ms(repack.packed_model(model))
            if found <= s["TARGET_LATENCY_MS"]:
                return f"{found:.1f} ms a token, at most {s['TARGET_LATENCY_MS']} wanted"
        if not self.allowed():
            return "nothing is left that may be dropped"
        return None

    def return_above_floor(self) -> None:
        """After a stop by the accuracy floor: undo the drops since it was last met, and what was trained since."""
        above = self.state["last_above_floor"]
        if above is None or above["drops"] == len(self.drops):
            return
        for path in self.directory.glob("[0-9]*"):  # depths that the floor rejects must not be taken for its outcome
            if int(path.name) < above["units"]:
                shutil.rmtree(path)
        del self.drops[above["drops"] :]
        healed = [row for row in self.state["healed"] if row["units_left"] >= above["units"]]
        self.state |= {"weights": above["weights"], "trained": False, "fading": [], "healed": healed}
        runs.write_json(self.directory / STATE, self.state)
        self.model, self.removed, self.fading, self.cache = None, {}, {}, None  # never two models at once
        gc.collect()
        self.load_model()
        self.resume()

    def allowed(self) -> list[importance.Unit]:
        """Units that may go next: at least one attention and one MLP stay."""
        left = sub.sublayers(self.model)
        return [u for u in self.units() if {one.kind for one in left if one not in u} == set(sub.KINDS)]

    @property
    def drops_per_cycle(self) -> float:
        """Units that go before the next training; all of them in one shot."""
        if self.settings["SCHEDULE"] == "one_shot":
            return math.inf
        return self.settings["DROPS_EARLY" if self.early else "DROPS_LATE"]

    @property
    def early(self) -> bool:
        """Whether the run is in the first half of its way to the target size."""
        return self.share > (1 + self.settings["TARGET_SIZE"]) / 2

    def drops_needed(self) -> int:
        """Whole blocks that must go to reach the target size."""
        block = (self.sizes["attention"] + self.sizes["mlp"]) / self.full_size
        return math.ceil((self.share - self.settings["TARGET_SIZE"]) / block)

    def drop(self, count: float, ranking: list, whole: importance.Score) -> None:
        """Drop ``count`` units by the ranking, fewer where the target size or a depth of HEAL_AT is met before."""
        s, dropped = self.settings, 0
        self.state["cycle_start"] = self.state["examples_seen"]
        while dropped < count and self.share > s["TARGET_SIZE"] and not self.reached():
            allowed = self.allowed()
            row = {"scan": self.state["scans"]}
            if s["CRITERION"] in importance.SCANS and s["SCHEDULE"] == "successive":
                candidates = [c for c in ranking if c.unit in allowed and c.questions == whole.questions]
                if not candidates:  # the rest was given up on a few questions: it needs another scan
                    print(f"  {dropped} of {count} dropped: no other unit saw all questions; next cycle goes on")
                    break
                score, reason = importance.choose(candidates, s["CRITERION"] == "calibration")
                unit = score.unit
                row |= {
                    "decided_by": reason, "questions": score.questions, "norm": score.norm,
                    "exact_match_alone": float(score.exact.mean()), "nll_alone": float(score.nll.mean()),
                }  # fmt: skip
            else:
                unit = next((unit for unit, _ in ranking if unit in allowed), None)
                if unit is None:
                    break
                row |= {"decided_by": s["CRITERION"]}
            name = sub.unit_name(unit)
            parts = self.take_out(name)
            if s["FADE"]:
                self.fading |= parts
                self.state["fading"].append(name)
            kind = "block" if name.startswith("block") else "+".join(one.kind for one in unit)
            self.drops.append(
                {
                    "dropped": name,
                    "kind": kind,
                    "units_left": self.left,
                    "trained_units_left": self.trained_units_left,
                    "share_of_bytes": round(self.share, 5),
                    "share_of_parameters": round(self.parameters_left / self.full_size, 5),
                    "exact_match_before": float(whole.exact.mean()),
                    "nll_before": float(whole.nll.mean()),
                    **row,
                    "training_seconds": round(self.state["training_seconds"], 1),
                    "scanning_seconds": round(self.state["scanning_seconds"], 1),
                    **{f"peak_{kind}_gb": value for kind, value in memory.peak_memory_gb().items()},
                }
            )
            print(f"  dropped {name} ({row['decided_by']})")
            dropped += 1

    @property
    def trained_units_left(self) -> int | None:
        left = set(sub.sublayers(self.model))
        chosen = self.state["trainable"]
        return None if chosen is None else sum(bool(left & set(sub.parse_unit(name))) for name in chosen)

    @property
    def parameters_left(self) -> int:
        """Parameters of what is left, without zero-filled slots."""
        return self.sizes["ends"] + sum(self.sizes[one.kind] for one in sub.sublayers(self.model))

    # ------------------------------------------------------------ checkpoints

    def packed(self) -> torch.nn.Module:
        return repack.packed_model(self.model)

    @torch.no_grad()
    def save_checkpoint(self, healed: dict | None = None) -> None:
        """Write the model as it is as ``<units left>/``, a standard checkpoint in 16 bits that is checked first.

        ``healed`` is the record of a depth that was trained to the end; others are saved every SAVE_EVERY cycles.
        """
        s = self.settings
        cycles = len({row["scan"] for row in self.drops})
        untouched = not self.drops and not self.state["examples_seen"]  # what it started from, once more
        # The last depth above an accuracy floor is known only when the next one falls below it.
        wanted = s["ACCURACY_FLOOR"] is not None or (s["SAVE_EVERY"] and cycles % s["SAVE_EVERY"] == 0)
        if healed is None and (untouched or not wanted or self.reached()):
            return
        packed = self.packed()
        batch = next(self.batches(2))
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            repack.check_equal(self.model, packed, batch)
        half = torch.float16 if self.dtype == torch.float16 else torch.bfloat16
        target = self.directory / str(self.left)
        facts = {
            "units_left": self.left,
            "share_of_bytes": round(self.share, 5),
            "share_of_parameters": round(self.parameters_left / self.full_size, 5),
            **self.training_so_far([healed] if healed else []),  # not what other depths were healed by
            "final": bool(self.stopped) or self.share <= s["TARGET_SIZE"],
            "healed": healed is not None and s["HEALING_EPOCHS"] > 0,
            **{key: value for key, value in (healed or {}).items() if key.startswith("calibration_")},
            "dropped": [row["dropped"] for row in self.drops],
        }
        with runs.atomic_path(target) as partial:
            models.write_checkpoint(partial, packed, self.tokenizer, half)
            models.write_model_card(
                partial, s["BASE_MODEL"],
                f"Fine-tuned for FinQA programs, shrunk to {packed.config.num_hidden_layers} blocks. Run `{s['RUN']}`.",
                **{name: facts[name] for name in ("share_of_bytes", "share_of_parameters")},
            )  # fmt: skip
            record = runs.read_json(self.directory / "settings.json")
            runs.write_json(partial / "settings.json", record | {"base_precision": "auto"})
            runs.write_json(partial / "train_metrics.json", facts)

    def training_so_far(self, healed: list[dict]) -> dict[str, float]:
        """Examples, tokens and seconds of the run's own training and scans, and of the healing of these depths."""
        names = ("examples_seen", "tokens_seen", "training_seconds")
        found = {name: round(self.state[name] + sum(row[name] for row in healed), 1) for name in names}
        return found | {"scanning_seconds": round(self.state["scanning_seconds"], 1)}

    def finish(self) -> None:
        """The tables and figures of the run; the state is no longer needed."""
        state = self.state
        last = next(row for row in reversed(state["healed"]) if row["units_left"] == self.left)
        runs.write_csv(self.directory / "trajectory.csv", self.drops)
        runs.write_csv(self.directory / "layer_scores.csv", state["layer_scores"])
        runs.write_csv(self.directory / "loss_curve.csv", state["loss_curve"])
        charts.loss_curve(self.directory / "loss_curve.png", state["loss_curve"], [])
        charts.layer_importance(self.directory / "layer_importance.png", state["layer_scores"], self.drops)
        metrics = {
            "stopped": state["stopped"],
            "data": self.facts["data"],
            "units_left": self.left,
            "share_of_bytes": round(self.share, 5),
            "share_of_parameters": round(self.parameters_left / self.full_size, 5),
            "last_above_floor": (state["last_above_floor"] or {}).get("units"),
            "reference": state["reference"],
            "calibration_exact": last["calibration_exact"],
            "calibration_nll": last["calibration_nll"],
            "trainable": state["trainable"],
            "healed": state["healed"],
            **self.training_so_far(state["healed"]),
            "peak_memory_gb": memory.peak_memory_gb(),
            "predicted_memory_gb": round(self.predicted_gb, 3),
        }
        runs.write_json(self.directory / "train_metrics.json", metrics)
        for path in (*self.directory.glob("state*"), *self.directory.glob("teaching*")):
            path.unlink()
        for path in (*self.directory.glob("trainer-*"), *self.directory.glob("healing-*")):
            shutil.rmtree(path)  # a kill came before it was removed
        print(
            f"stopped: {state['stopped']}; trained {metrics['training_seconds'] / 60:.1f} min, scanned "
            f"{state['scanning_seconds'] / 60:.1f} min; calibration exact match {metrics['calibration_exact']:.1%}, "
            f"NLL {metrics['calibration_nll']:.3f}; wrote {self.directory}/{self.left}/ and other depths, "
            "trajectory.csv, layer_scores.csv, layer_importance.png, loss_curve.csv and .png"
        )
