"""One SAPLING run: the model as it shrinks, what was dropped and why, and the state from which a killed run goes on."""

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
from transformers import AutoModelForCausalLM, PrinterCallback, set_seed

from fincompress import charts, generation, gptq, memory, models, runs, training
from fincompress.depth import importance, repack
from fincompress.depth import sublayers as sub
from fincompress.errors import UserError
from fincompress.targets import TargetCollator, score_targets

STATE = "state.json"
FRESH = {
    "weights": None,  # the file of the trained weights that belong to this state
    "trainable": None,  # names of the units that are trained
    "trained": False,  # whether the training before the next drop, or the healing, is done
    "stopped": None,  # why no more is dropped
    "trajectory": [],  # one row a drop
    "layer_scores": [],  # one row a unit and scan
    "loss_curve": [],
    "scans": 0,
    "last_above_floor": None,  # units left, drops and file of weights when the accuracy floor was last met
    "reference": None,  # calibration scores before any drop
    "examples_seen": 0,
    "tokens_seen": 0,
    "training_seconds": 0.0,
    "scanning_seconds": 0.0,
}


def open_run(settings: dict, script: str) -> Run | None:
    """The run that these constants describe, new or as a kill left it; None where it is finished already."""
    s = settings
    train_set, record = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "train")
    calibration, _ = runs.load_processed(s["RESULTS_DIR"], s["DATA_RUN"], "calibration")
    runs.check_tokenised_for(s["BASE_MODEL"], s["DATA_RUN"], record)
    if s["CALIBRATION_EXAMPLES"] > len(calibration):
        raise UserError(
            f"CALIBRATION_EXAMPLES = {s['CALIBRATION_EXAMPLES']}, but the calibration split of {s['DATA_RUN']!r} has "
            f"{len(calibration)}: lower it, or preprocess with a larger one"
        )
    device = models.pick_device()
    dtype, reason = models.pick_dtype(device)
    facts = training.run_facts(s["BASE_MODEL"], "nf4" if s["UPDATE"] == "qlora" else "auto", record, dtype)
    if s["START_FROM"]:
        start = runs.finished_run(s["RESULTS_DIR"], s["START_FROM"])
        source = str(models.dense_checkpoint(s["START_FROM"], s["RESULTS_DIR"]))
        started = runs.read_json(start / "settings.json")
        if started["base_model"] != s["BASE_MODEL"]:
            raise UserError(f"START_FROM = {s['START_FROM']!r} is a run of another base model than {s['BASE_MODEL']}")
        if started["data"] != record["data"]:
            raise UserError(
                f"START_FROM = {s['START_FROM']!r} was trained on other data than {s['DATA_RUN']!r} holds: it may have "
                "seen this calibration split"
            )
        reports = [
            runs.read_json(runs.run_directory(s["RESULTS_DIR"], run) / "data_report.json")["calibration_ids"]
            for run in {started["settings"]["DATA_RUN"], s["DATA_RUN"]}
        ]
        same_run = started["settings"]["DATA_RUN"] == s["DATA_RUN"]
        redone = same_run and started.get("prepared", facts["prepared"]) != facts["prepared"]  # under the same name
        if redone or any(ids != reports[0] for ids in reports):
            raise UserError(
                f"START_FROM = {s['START_FROM']!r} was trained with another calibration split than {s['DATA_RUN']!r} "
                "holds: it may have seen some of these questions"
            )
        # A start that was trained anew is another one: a killed run must not mix its own weights with the new ones.
        facts["source"] = runs.fingerprint(started["settings"], runs.read_json(start / "train_metrics.json"))
    else:
        source = models.base_model_path(s["BASE_MODEL"], s["RESULTS_DIR"])
    directory = runs.start_run(s["RESULTS_DIR"], s["RUN"], script, settings, facts, done="train_metrics.json")
    if directory is None:
        return None
    runs.remove_partials(directory)
    print(f"{device.type}, {reason}")
    # Questions of one page stand together, so that the first few would be those of a few pages.
    drawn = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(s["SEED"]))
    calibration = calibration.select(sorted(drawn[: s["CALIBRATION_EXAMPLES"]].tolist()))
    try:
        return Run(settings, directory, source, train_set, calibration, facts)
    except UserError:
        if [path.name for path in directory.iterdir()] == ["settings.json"]:  # refused before anything was done
            shutil.rmtree(directory)
        raise


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
        self.sizes = parameter_sizes(config)  # refuses an architecture whose layers cannot be dropped
        self.adapter = self.find_adapter()
        self.predicted_gb = self.predict(config)
        training.print_prediction(self.predicted_gb, self.device)
        self.load_model()
        self.full = self.left  # units at the start
        if len({sum(p.numel() for p in block.parameters()) for block in sub.decoder(self.model).layers}) > 1:
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
                models.compute_in_model_dtype(self.model)
            else:
                self.model = models.load_base(self.source, self.facts["base_precision"], self.device, self.dtype).eval()

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
        if s["UPDATE"] == "qlora":
            return memory.predict_lora_training_gb(
                config, "nf4", s["LORA_RANK"], *shape, *kind, s["TRAIN_RATIO"], frozen_adapters=self.adapter is not None
            )
        return memory.predict_training_gb(config, *shape, s["TRAIN_RATIO"], s["TRAIN_ENDS"], *kind)

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
        """Bring the model to where the state says the run was: the same drops, the same weights."""
        path = self.directory / self.state["weights"]
        for row in self.state["trajectory"]:
            sub.remove(self.model, *sub.parse_unit(row["dropped"]))
        self.make_trainable()
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove {self.directory}/ to start again") from None
        trained = dict(self.trained_parameters())
        if set(trained) != set(weights):
            raise UserError(f"{path} does not fit {STATE} beside it: remove {self.directory}/ to start again")
        for name, parameter in trained.items():
            parameter.data.copy_(weights[name])
        print(f"going on with {self.left} of {self.full} units left, {self.share:.1%} of the bytes")

    def save_state(self, trained: bool = False) -> None:
        """Write weights, then the state that names them: a kill between the two leaves the older pair whole."""
        self.state["trained"] = trained
        self.state["weights"] = f"state-{self.state['scans']:04d}-{self.state['examples_seen']}.safetensors"
        with runs.atomic_path(self.directory / self.state["weights"]) as partial:
            save_file({name: p.detach().cpu().contiguous() for name, p in self.trained_parameters()}, partial)
        runs.write_json(self.directory / STATE, self.state)
        kept = {self.state["weights"], (self.state["last_above_floor"] or {}).get("weights")}
        for path in self.directory.glob("state-*.safetensors"):
            if path.name not in kept:
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
        return sub.units(self.model, self.settings["DROP_UNIT"], self.settings["PACKABLE_ONLY"])

    @property
    def share(self) -> float:
        """Share of the bytes of the checkpoint at the start, embeddings, head and zero-filled slots included."""
        return repack.checkpoint_parameters(self.model, self.sizes) / self.full_size

    # --------------------------------------------------------------- training

    def rank_by_importance(self) -> list[importance.Unit]:
        """Step 1: every layer of the model at the start, the most important one first."""
        units = sub.units(self.model, self.settings["DROP_UNIT"])
        if self.settings["TRAIN_RATIO"] == 1:  # all are trained, in whichever order
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
        chosen = [unit for unit in ranking if unit in left][: math.ceil(self.settings["TRAIN_RATIO"] * self.full)]
        self.state["trainable"] = [sub.unit_name(unit) for unit in left if unit in chosen]

    def make_trainable(self) -> None:
        """Let gradients reach the chosen units alone; what is trained is held in float32, what is frozen is not."""
        s = self.settings
        chosen = [one for name in self.state["trainable"] for one in sub.parse_unit(name)]
        self.model.requires_grad_(False)
        if s["UPDATE"] == "qlora" and self.adapter is not None:
            for name, parameter in [p for one in chosen for p in sub.module(self.model, one).named_parameters()]:
                parameter.requires_grad_("lora_" in name)
        elif s["UPDATE"] == "qlora":
            names = {module: name for name, module in self.model.named_modules()}
            targets = [
                names[module]
                for one in chosen
                for module in sub.module(self.model, one).modules()
                if isinstance(module, torch.nn.Linear)
            ]
            adapters = LoraConfig(
                r=s["LORA_RANK"], lora_alpha=s["LORA_ALPHA"], target_modules=targets, task_type="CAUSAL_LM"
            )
            if targets:  # none where a killed run goes on after all that was trained had been dropped
                with gptq.quiet():  # peft imports gptqmodel, which greets
                    self.model = get_peft_model(self.model, adapters)
                models.compute_in_model_dtype(self.model)
        else:
            found = sub.decoder(self.model)
            ends = [*found.embed_tokens.parameters(), *found.norm.parameters()]
            ends += self.model.get_output_embeddings().parameters()
            for parameter in [p for one in chosen for p in sub.parameters(self.model, one)] + ends * s["TRAIN_ENDS"]:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
            memory.release_files(self.model)
        trained = sum(p.numel() for _, p in self.trained_parameters())
        print(
            f"{len(self.state['trainable'])} of {self.full} units are trained: {trained / 1e6:.1f} M of "
            f"{self.full_size / 1e6:.1f} M parameters, {8 * trained / 1e9:.2f} GB of optimizer state in float32 "
            f"(all of them: {8 * self.full_size / 1e9:.2f} GB)"
        )

    def train(self, epochs: float, stage: str | None = None) -> None:
        """Train on the next ``epochs`` passes' worth of examples; learning rate and optimizer start anew.

        A run that was killed in here goes on from the last checkpoint inside, after SAVE_STEPS.
        """
        s = self.settings
        count = round(epochs * len(self.train_set))
        if self.state["trained"] or not count or not self.trained_parameters():
            return
        gc.collect()  # accelerate's wrapper of forward is a reference cycle: copies that were scored stay without it
        seen = self.state["examples_seen"]
        checkpoints = self.directory / f"trainer-{seen}"  # of this stage: each sees examples
        rows = self.train_set.select(training.shuffled_stream(len(self.train_set), seen, count, s["SEED"]))
        checkpointing = s["GRADIENT_CHECKPOINTING"]
        arguments = training.training_arguments(
            s, checkpoints, self.device, self.dtype, num_train_epochs=1, save_steps=s["SAVE_STEPS"], save_total_limit=1,
            gradient_checkpointing=self.device.type == "cuda" if checkpointing is None else checkpointing,
        )  # fmt: skip
        progress = training.Progress(stage or f"{self.left} of {self.full} units, {self.share:.0%} of bytes")
        trainer = training.TargetTrainer(
            model=self.model,
            args=arguments,
            train_dataset=rows.select_columns(training.TRAINING_COLUMNS),
            data_collator=self.collator,
            processing_class=self.tokenizer,
            callbacks=[progress],
        )
        trainer.passes = training.stream_passes(len(self.train_set), seen, count)
        trainer.remove_callback(PrinterCallback)
        checkpoint = training.last_checkpoint(checkpoints)
        if checkpoint:
            print(f"going on from {checkpoint.name} of this stage")
        with self.explain_out_of_memory(), training.explain_resuming(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.model.eval()
        step = self.state["loss_curve"][-1]["step"] if self.state["loss_curve"] else 0
        self.state["loss_curve"] += [
            {"step": step + row["step"], "units_left": self.left} | {k: row[k] for k in ("loss", "learning_rate")}
            for row in trainer.state.log_history
            if "loss" in row
        ]
        self.state["examples_seen"] += count
        self.state["tokens_seen"] += int(trainer.state.num_input_tokens_seen)
        self.state["training_seconds"] += progress.clock.seconds()
        self.save_state(trained=True)
        shutil.rmtree(checkpoints, ignore_errors=True)

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

        The ranking is empty where nothing more will be dropped: at the target size, and after the one shot.
        """
        s, clock = self.settings, runs.Stopwatch()
        done = self.share <= s["TARGET_SIZE"] or (s["SCHEDULE"] == "one_shot" and self.drops)
        units = [] if done else self.units()
        with self.explain_out_of_memory(), self.scoring_model() as model:
            if units and s["CRITERION"] == "calibration":
                ranking, whole = importance.scan(
                    model, units, self.batches(len(self.calibration)), earlier=self.last_scores(),
                    eliminate=s["EARLY_ELIMINATION"] and s["SCHEDULE"] == "successive",
                    drops=s["DROPS_EARLY"] if self.early else s["DROPS_LATE"],
                )  # fmt: skip
            else:
                ranking, whole = self.rank(model, units), importance.Score(())
                whole.add(*score_targets(model, self.calibration, self.collator, s["SCAN_BATCH_SIZE"], self.dtype), 0.0)
        self.state["scanning_seconds"] += clock.seconds()
        self.record_scores(ranking, whole)
        found = {"accuracy": float(whole.exact.mean()), "nll": float(whole.nll.mean())}
        if not self.drops:
            self.state["reference"] = found
        for row in self.drops:  # what training made of the last drops
            for name, value in found.items():
                row.setdefault(f"{name}_after_training", value)
        print(
            f"{self.left} of {self.full} units, {self.share:.1%} of the bytes: calibration exact match "
            f"{found['accuracy']:.1%}, NLL {found['nll']:.3f}"
        )
        return ranking, whole

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
                    "unit": sub.unit_name(entry.unit), "questions": seen, "accuracy": float(entry.exact.mean()),
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
        if s["SCHEDULE"] == "one_shot":
            return f"everything was dropped in one shot, {self.share:.1%} of the bytes are left"
        if self.share <= s["TARGET_SIZE"]:
            return f"{self.share:.1%} of the bytes, at most {s['TARGET_SIZE']:.0%} wanted"
        if s["TARGET_MEMORY_GB"] is not None:
            needed = memory.inference_gb(self.packed().config, context=1024)
            if needed <= s["TARGET_MEMORY_GB"]:
                return f"{needed:.2f} GB of memory, at most {s['TARGET_MEMORY_GB']} wanted"
        if s["TARGET_LATENCY_MS"] is not None:
            with self.scoring_model() as model:
                found = generation.decode_latency_ms(repack.packed_model(model), self.tokenizer)
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
        self.state |= {"weights": above["weights"], "trained": False}
        runs.write_json(self.directory / STATE, self.state)
        self.model = None  # never two at once
        gc.collect()
        self.load_model()
        self.resume()

    def allowed(self) -> list[importance.Unit]:
        """Units that may go next: at least one attention and one MLP stay."""
        left = sub.sublayers(self.model)
        return [u for u in self.units() if {one.kind for one in left if one not in u} == set(sub.KINDS)]

    @property
    def early(self) -> bool:
        """Whether the run is in the first half of its way to the target size."""
        return self.share > (1 + self.settings["TARGET_SIZE"]) / 2

    def drops_needed(self) -> int:
        """Whole blocks that must go to reach the target size."""
        block = (self.sizes["attention"] + self.sizes["mlp"]) / self.full_size
        return math.ceil((self.share - self.settings["TARGET_SIZE"]) / block)

    def drop(self, count: float, ranking: list, whole: importance.Score) -> None:
        """Drop ``count`` units by the ranking, fewer where the target size is met before."""
        s, dropped = self.settings, 0
        while dropped < count and self.share > s["TARGET_SIZE"]:
            allowed = self.allowed()
            row = {"scan": self.state["scans"]}
            if s["CRITERION"] == "calibration":
                candidates = [c for c in ranking if c.unit in allowed and c.questions == whole.questions]
                if not candidates:  # the rest was given up on a few questions: it needs another scan
                    if s["SCHEDULE"] == "successive":
                        print(f"  {dropped} of {count} dropped: no other unit saw all questions; next cycle goes on")
                    break
                score, reason = importance.choose(candidates)
                unit = score.unit
                row |= {
                    "decided_by": reason, "questions": score.questions, "norm": score.norm,
                    "accuracy_alone": float(score.exact.mean()), "nll_alone": float(score.nll.mean()),
                }  # fmt: skip
            else:
                unit = next((unit for unit, _ in ranking if unit in allowed), None)
                if unit is None:
                    break
                row |= {"decided_by": s["CRITERION"]}
            sub.remove(self.model, *unit)
            name = sub.unit_name(unit)
            kind = "block" if name.startswith("block") else "+".join(one.kind for one in unit)
            self.drops.append(
                {
                    "dropped": name,
                    "kind": kind,
                    "units_left": self.left,
                    "trained_units_left": self.trained_units_left,
                    "share_of_bytes": round(self.share, 5),
                    "share_of_parameters": round(self.parameters_left / self.full_size, 5),
                    "accuracy_before": float(whole.exact.mean()),
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
    def save_checkpoint(self, final: bool = False) -> None:
        """Write the model as it is as ``<units left>/``, a standard checkpoint in 16 bits that is checked first."""
        s = self.settings
        cycles = len({row["scan"] for row in self.drops})
        untouched = not self.drops and not self.state["examples_seen"]  # what it started from, once more
        # The last depth above an accuracy floor is known only when the next one falls below it.
        skipped = cycles % s["SAVE_EVERY"] and s["ACCURACY_FLOOR"] is None
        if not final and (untouched or skipped):
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
            "training_seconds": round(self.state["training_seconds"], 1),
            "scanning_seconds": round(self.state["scanning_seconds"], 1),
            "tokens_seen": self.state["tokens_seen"],
            "final": final,
            "healed": final and s["HEALING_EPOCHS"] > 0,
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

    def finish(self) -> None:
        """The last checkpoint, its calibration scores, the tables and figures; the state is no longer needed."""
        s, state = self.settings, self.state
        with self.scoring_model() as model:
            nll, exact = score_targets(model, self.calibration, self.collator, s["SCAN_BATCH_SIZE"], self.dtype)
        self.save_checkpoint(final=True)
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
            "calibration_exact": round(exact.float().mean().item(), 5),
            "calibration_nll": round(nll.mean().item(), 5),
            "trainable": state["trainable"],
            "examples_seen": state["examples_seen"],
            "tokens_seen": state["tokens_seen"],
            "training_seconds": round(state["training_seconds"], 1),
            "scanning_seconds": round(state["scanning_seconds"], 1),
            "peak_memory_gb": memory.peak_memory_gb(),
            "predicted_memory_gb": round(self.predicted_gb, 3),
        }
        runs.write_json(self.directory / "train_metrics.json", metrics)
        for path in self.directory.glob("state*"):
            path.unlink()
        for path in self.directory.glob("trainer-*"):  # a kill came before it was removed
            shutil.rmtree(path)
        print(
            f"stopped: {state['stopped']}; trained {state['training_seconds'] / 60:.1f} min, scanned "
            f"{state['scanning_seconds'] / 60:.1f} min; calibration exact match {metrics['calibration_exact']:.1%}, "
            f"NLL {metrics['calibration_nll']:.3f}; wrote {self.directory}/{self.left}/ and other depths, "
            "trajectory.csv, layer_scores.csv, layer_importance.png, loss_curve.csv and .png"
        )


def parameter_sizes(config) -> dict[str, int]:
    """Parameters of one attention, one MLP (each with its norm) and of the ends (embeddings, last norm, head)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = {kind: sum(p.numel() for p in sub.parameters(model, sub.SubLayer(0, kind))) for kind in sub.KINDS}
    blocks = config.num_hidden_layers
    ends = sum(p.numel() for p in model.parameters()) - blocks * sum(found.values())
    return found | {"ends": ends}
