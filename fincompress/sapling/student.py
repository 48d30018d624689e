"""The model as it shrinks: what is left of it, what of it is trained, and the copy of it that is scored."""

import contextlib
import copy
import math
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from fincompress import memory, models, quantization, runs, training
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Unit
from fincompress.sapling.teacher import ADAPTER, original_blocks, teacher_run
from fincompress.training.loss import autocast

PATCH_RANK = 128  # of adapters on o_proj and down_proj, which take up patches; at least LORA_RANK


class Student:
    """A model on its way down. ``load`` it before anything else is asked than its sizes at the start."""

    def __init__(self, settings: dict, source: str, precision: str, device: torch.device, dtype: torch.dtype):
        self.settings, self.source, self.precision, self.device, self.dtype = settings, source, precision, device, dtype
        self.config = models.read_config(source)
        self.sizes = memory.parameter_sizes(self.config)
        self.adapter = find_adapter(settings)
        self.blocks, self.original = original_blocks(settings["RESULTS_DIR"], settings["START_FROM"], self.config)
        self.full = self.config.num_hidden_layers  # layers at the start
        self.layer_size = self.sizes["attention"] + self.sizes["mlp"]  # parameters
        self.full_size = self.sizes["embeddings"] + self.full * self.layer_size

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
            rank = s["LORA_RANK"]
            new = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
            with quantization.quiet():  # peft imports gptqmodel, which greets
                self.model = get_peft_model(self.model, new)
        if s["PATCH_EXAMPLES"]:
            widen(self.model, PATCH_RANK)
        if self.adapter and teacher_run(s):
            self.model.load_adapter(str(self.adapter / "adapter"), adapter_name=ADAPTER)
        for config in self.model.peft_config.values():  # from a bare name peft would look for the base on the hub
            config.base_model_name_or_path = self.source
        models.compute_in_model_dtype(self.model)

    @property
    def recomputes(self) -> bool:
        """Whether training recomputes activations."""
        asked = self.settings["GRADIENT_CHECKPOINTING"]
        return self.device.type == "cuda" if asked is None else asked

    def room_gb(self, depths: list[int]) -> float:
        """GB of disk that a run takes: a checkpoint of each depth, and in float32 the weights and moments that are
        trained, in two states and two checkpoints of the Trainer while one takes the place of the other."""
        s, weights = self.settings, memory.weights_gb(self.config, "bf16")
        saved = sum(self.sizes["embeddings"] + depth * self.layer_size for depth in depths) / self.full_size
        trained = 2 * weights * s["TRAIN_SHARE"]
        if s["UPDATE"] == "qlora":
            trained = 4 * memory.adapter_parameters(self.config, s["LORA_RANK"], PATCH_RANK) / 1e9
        return weights * saved + trained * 4 * 2

    # ------------------------------------------------------------ what is left

    @property
    def left(self) -> int:
        """Layers that are left: an attention and the MLP after it are one, whichever layers they come from."""
        return len(sub.sublayers(self.model)) // 2

    @property
    def share(self) -> float:
        """Share of the bytes of the checkpoint at the start, embeddings and head included."""
        return round((self.sizes["embeddings"] + self.left * self.layer_size) / self.full_size, 5)

    def every_unit(self) -> list[Unit]:
        """What is trained or not, one by one: sub-layers or whole layers."""
        return sub.units(self.model, self.settings["DROP_UNIT"])

    def units(self) -> list[Unit]:
        """What may be dropped: whole layers, or pairs of neighbours, so that what is left is a sequence of layers."""
        return sub.units(self.model, self.settings["DROP_UNIT"], packable=True)

    def allowed(self) -> list[Unit]:
        """Units that may go next: one layer stays."""
        return self.units() if self.left > 1 else []

    def remove(self, name: str) -> None:
        """Take a unit out; a teacher that shares the model keeps its parts."""
        parts = sub.remove(self.model, *sub.parse_unit(name))
        if self.settings["UPDATE"] == "qlora" and teacher_run(self.settings):
            self.removed |= parts

    # --------------------------------------------------------- what is trained

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def is_own_adapter(self, name: str) -> bool:
        """Whether a parameter of this name belongs to the adapter that is trained, not to the teacher's."""
        return "lora_" in name and f".{ADAPTER}." not in name

    def make_trainable(self, names: list[str]) -> None:
        """Let gradients reach the units ``names`` alone; what is trained is held in float32."""
        chosen = [sublayer for name in names for sublayer in sub.parse_unit(name)]
        self.model.requires_grad_(False)
        if self.settings["UPDATE"] == "qlora":
            modules = [sub.module(self.model, sublayer) for sublayer in chosen]
            for name, parameter in [p for module in modules for p in module.named_parameters()]:
                parameter.requires_grad_(self.is_own_adapter(name))
            return
        parameters = [p for sublayer in chosen for p in sub.parameters(self.model, sublayer)]
        if self.settings["TRAIN_SHARE"] < 1:  # as the paper, whose few layers are trained with both ends
            decoder = sub.decoder(self.model)
            for module in (decoder.embed_tokens, decoder.norm, self.model.get_output_embeddings()):
                parameters += module.parameters()
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
        memory.release_files(self.model)

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
