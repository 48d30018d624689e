"""The model as it shrinks: what is left of it, what of it is trained, and the copy of it that is scored."""

import contextlib
import copy
import math
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from fincompress import memory, models, quantization, runs, training
from fincompress.depth import repack
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Unit
from fincompress.sapling.teacher import ADAPTER, needs_teacher, original_blocks
from fincompress.training.loss import autocast


class Student:
    """A model on its way down. ``load`` it before anything else is asked than its sizes at the start."""

    def __init__(self, settings: dict, source: str, precision: str, device: torch.device, dtype: torch.dtype):
        self.settings, self.source, self.precision, self.device, self.dtype = settings, source, precision, device, dtype
        self.config = models.read_config(source)
        self.sizes = memory.parameter_sizes(self.config)
        self.adapter = find_adapter(settings)
        self.blocks = original_blocks(settings["RESULTS_DIR"], settings["START_FROM"], self.config)
        blocks = len(self.blocks)
        self.full = blocks if settings["DROP_UNIT"] == "block" else 2 * blocks  # units at the start
        self.full_size = self.sizes["ends"] + blocks * self.block_size  # parameters at the start

    def load(self) -> None:
        """The model that the run starts from.

        For adapters on an NF4 base that is phase 1's adapter on its own: merged and quantized again, most of what it
        learned would be lost in the rounding. Elsewhere they are new. Both are widened where patches go.
        """
        s = self.settings
        self.removed: sub.Parts = {}  # what a teacher needs back that shares this model
        self.model = None
        training.release_model()  # never two models at once
        if self.adapter:
            self.model = models.load_adapter(self.adapter, s["RESULTS_DIR"], self.device, self.dtype)[0].eval()
        else:
            self.model = models.load_base(self.source, self.precision, self.device, self.dtype).eval()
        if s["UPDATE"] == "full":
            return
        if not self.adapter:
            new = LoraConfig(
                r=s["LORA_RANK"], lora_alpha=s["LORA_ALPHA"], target_modules="all-linear", task_type="CAUSAL_LM"
            )
            with quantization.quiet():  # peft imports gptqmodel, which greets
                self.model = get_peft_model(self.model, new)
        widen(self.model, s["PATCH_RANK"])
        if self.adapter and needs_teacher(s):
            self.model.load_adapter(str(self.adapter / "adapter"), adapter_name=ADAPTER)
        for config in self.model.peft_config.values():  # from a bare name peft would look for the base on the hub
            config.base_model_name_or_path = self.source
        models.compute_in_model_dtype(self.model)

    @property
    def recomputes(self) -> bool:
        """Whether training recomputes activations."""
        asked = self.settings["GRADIENT_CHECKPOINTING"]
        return self.device.type == "cuda" if asked is None else asked

    # ------------------------------------------------------------ what is left

    @property
    def left(self) -> int:
        """Sub-layers that are left, or blocks where blocks are dropped."""
        return len(self.every_unit())

    @property
    def block_size(self) -> int:
        """Parameters of one block."""
        return self.sizes["attention"] + self.sizes["mlp"]

    @property
    def share(self) -> float:
        """Share of the bytes of the checkpoint at the start, embeddings, head and zero-filled slots included."""
        return repack.checkpoint_parameters(self.model, self.sizes) / self.full_size

    def shares(self) -> dict[str, float]:
        """What is left, for a record; a zero-filled slot counts in bytes, not in parameters."""
        parameters = self.sizes["ends"] + sum(self.sizes[sublayer.kind] for sublayer in sub.sublayers(self.model))
        share = round(parameters / self.full_size, 5)
        return {"share_of_bytes": round(self.share, 5), "share_of_parameters": share}

    def blocks_above(self, share: float) -> int:
        """Whole blocks that must go to come down to a share of the bytes."""
        return math.ceil((self.share - share) / (self.block_size / self.full_size))

    def every_unit(self) -> list[Unit]:
        """What is left, one by one: sub-layers or blocks."""
        return sub.units(self.model, self.settings["DROP_UNIT"])

    def units(self) -> list[Unit]:
        """What a criterion scores: pairs of neighbours with PACKABLE_ONLY, the ends left out with PROTECT."""
        units = sub.units(self.model, self.settings["DROP_UNIT"], self.settings["PACKABLE_ONLY"])
        if not self.settings["PROTECT"]:
            return units
        ends = (0, len(sub.decoder(self.model).layers) - 1)
        return [unit for unit in units if not any(sublayer.block in ends for sublayer in unit)]

    def allowed(self) -> list[Unit]:
        """Units that may go next: at least one attention and one MLP stay."""
        left = sub.sublayers(self.model)
        return [u for u in self.units() if {sublayer.kind for sublayer in left if sublayer not in u} == set(sub.KINDS)]

    def remove(self, name: str) -> None:
        """Take a unit out; a teacher that shares the model keeps its parts."""
        parts = sub.remove(self.model, *sub.parse_unit(name))
        if self.settings["UPDATE"] == "qlora" and needs_teacher(self.settings):
            self.removed |= parts

    # --------------------------------------------------------- what is trained

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def make_trainable(self, names: list[str], healing: bool = False) -> None:
        """Let gradients reach the units ``names`` alone; what is trained is held in float32."""
        s = self.settings
        chosen = [sublayer for name in names for sublayer in sub.parse_unit(name)]
        self.model.requires_grad_(False)
        if s["UPDATE"] == "qlora":
            modules = [sub.module(self.model, sublayer) for sublayer in chosen]
            for name, parameter in [p for module in modules for p in module.named_parameters()]:
                parameter.requires_grad_("lora_" in name and f".{ADAPTER}." not in name)
        else:
            decoder = sub.decoder(self.model)
            ends = [*decoder.embed_tokens.parameters(), *decoder.norm.parameters()]
            ends += self.model.get_output_embeddings().parameters()
            parameters = [p for sublayer in chosen for p in sub.parameters(self.model, sublayer)]
            for parameter in parameters + ends * s["TRAIN_ENDS"]:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
            if not healing:
                memory.release_files(self.model)
        if healing or s["CYCLE_EPOCHS"] or s["FIRST_EPOCHS"]:
            trained = sum(p.numel() for p in self.trained_parameters().values())
            print(f"{trained / 1e6:.1f} M parameters are trained, of {self.full_size / 1e6:.1f} M at the start")

    @contextlib.contextmanager
    def scoring_model(self):
        """The model as it is computed with: where weights are trained, a copy of them in that type."""
        if self.settings["UPDATE"] == "full":
            # Frozen weights are shared. Not .to(): that would round the rotary frequencies too.
            shared = {
                id(p): torch.nn.Parameter(p.detach().to(self.dtype), requires_grad=False)
                for p in self.model.parameters()
            }
            yield copy.deepcopy(self.model, shared)
        else:
            with autocast(self.device, self.dtype, cache=False):
                yield self.model.eval()


def find_adapter(s: dict) -> Path | None:
    """The folder of the run whose own adapter is trained on; None where new ones, or whole weights, are trained."""
    if s["UPDATE"] != "qlora" or not s["START_FROM"]:
        return None
    start = runs.run_directory(s["RESULTS_DIR"], s["START_FROM"])
    start = start.parent if start.name == "merged" else start
    if not (start / "adapter").exists() or runs.read_json(start / "settings.json")["base_precision"] != "nf4":
        return None
    training.check_adapter(s["START_FROM"], start, s)
    return start


@torch.no_grad()
def widen(model: PeftModel, rank: int) -> None:
    """Give the active adapter a ``rank`` of at least this on the projections that patches go into, as far as their size
    allows. The model computes what it did.

    New rows of A are drawn as a new adapter's are, new columns of B are zero; the scale stays.
    """
    name = model.active_adapter
    for sublayer in sub.sublayers(model):
        layer = sub.projection(model, sublayer)
        if not isinstance(layer, LoraLayer):
            continue
        inner, outer = layer.lora_A[name], layer.lora_B[name]
        full = max(layer.r[name], min(rank, inner.in_features, outer.out_features))
        if full == layer.r[name]:
            continue
        rows = torch.empty(full - layer.r[name], inner.in_features, device=inner.weight.device)
        torch.nn.init.kaiming_uniform_(rows, a=math.sqrt(5))
        inner.weight.data = torch.cat([inner.weight, rows.to(inner.weight.dtype)])
        outer.weight.data = torch.nn.functional.pad(outer.weight, (0, len(rows)))
        inner.out_features = outer.in_features = layer.r[name] = full
        layer.lora_alpha[name] = full * layer.scaling[name]
