"""Memory and work by simulation: this package's own training steps and scans, run on tensors without data.

torch's ``FakeTensorMode`` computes shapes, not values; ``Costs`` adds up what operators allocate and compute. So a 7B
model is measured on any machine, in no memory. What has no such form is replaced by operators that allocate the same:
packed weights (``Packed``) and bitsandbytes' 8-bit optimizer (``EightBitAdamW``). A GPU is simulated as a CPU that has
these, with attention that keeps no matrix of weights.

Not in it: the CUDA context, what an allocator keeps in pieces too small to use, what Python and its libraries take.
"""

import contextlib
import copy
import dataclasses
import weakref
from collections.abc import Callable, Iterator

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM

from fincompress import memory, models, quantization
from fincompress.depth import scan
from fincompress.depth import sublayers as sub
from fincompress.training.loss import autocast, target_logits, target_loss


def _half(count: Callable) -> Callable:
    return lambda *arguments, **options: count(*arguments, **options) // 2


_FLASH = "_scaled_dot_product_flash_attention"
FLOPS = flop_registry | {
    torch.ops.aten._int_mm: flop_registry[torch.ops.aten.mm],
    # The CPU's flash attention stands for a GPU's, which computes the half of the square that a causal mask leaves.
    **{getattr(torch.ops.aten, f"{_FLASH}_for_cpu{end}"): _half(flop_registry[getattr(torch.ops.aten, _FLASH + end)])
       for end in ("", "_backward")},
}  # fmt: skip


class Packed(nn.Linear):
    """A linear layer whose weights take ``bytes_each`` a piece and are unpacked to ``dtype`` for each product."""

    def __init__(self, linear: nn.Linear, bytes_each: float, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.dtype = dtype
        self.weight = nn.Parameter(self.pack(linear.weight, bytes_each), requires_grad=False)

    def pack(self, weight: torch.Tensor, bytes_each: float) -> torch.Tensor:
        return torch.empty(round(weight.numel() * bytes_each), dtype=torch.uint8, device="meta")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product = _Product.apply(inputs.to(self.dtype), self)
        return product if self.bias is None else product + self.bias

    def unpacked(self) -> torch.Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=self.dtype)


class _Product(torch.autograd.Function):
    """bitsandbytes' 4-bit product: unpacks in the forward pass and again in the backward pass."""

    @staticmethod
    def forward(ctx, inputs, module):
        ctx.module = module
        return inputs @ module.unpacked().t()

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.module.unpacked(), None


class Packed8(Packed):
    """bitsandbytes' 8-bit layer, which multiplies in 8 bits and keeps what enters it."""

    def pack(self, weight: torch.Tensor, bytes_each: float) -> torch.Tensor:
        return torch.empty(weight.shape, dtype=torch.int8, device="meta")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return _Product8.apply(inputs.to(self.dtype), self)


class _Product8(_Product):
    @staticmethod
    def forward(ctx, inputs, module):
        ctx.module, ctx.inputs = module, inputs
        rows = inputs.to(torch.float16).to(torch.int8)
        sums = torch._int_mm(rows.flatten(0, -2), module.weight.t())
        return sums.unflatten(0, rows.shape[:-1]).to(inputs.dtype)


class EightBitAdamW(torch.optim.Optimizer):
    """Allocates what bitsandbytes' 8-bit AdamW does: two moments of a byte each, in float32 where a tensor is small."""

    def __init__(self, parameters, embeddings: set[int]):
        super().__init__(parameters, {})
        self.embeddings = embeddings  # ids of parameters whose moments are kept in float32

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None or self.state[parameter]:
                continue
            wide = id(parameter) in self.embeddings or parameter.numel() < 4096
            dtype = torch.float32 if wide else torch.uint8
            self.state[parameter] = {name: torch.empty_like(parameter, dtype=dtype) for name in ("state1", "state2")}


# --------------------------------------------------------------------------------------------------------- a model


def empty_model(config, precision: str, device: str, dtype: torch.dtype) -> nn.Module:
    """A model of this config on the meta device, its blocks' linear layers packed as ``precision`` is on ``device``."""
    with torch.device("meta"):
        # A copy: what is set on the model is set on its config, and the next simulation would have it too.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    bytes_each = memory.stored_bytes(config, precision, device, dtype)
    if bytes_each < dtype.itemsize:
        kind = Packed8 if precision == "int8" else Packed
        for block in sub.decoder(model).layers:
            for name, layer in [(n, m) for n, m in block.named_modules() if isinstance(m, nn.Linear)]:
                block.set_submodule(name, kind(layer, bytes_each, dtype))
    return model.requires_grad_(False)


def with_adapters(
    model: nn.Module, rank: int, names: tuple[str, ...] = ("default",), patch_rank: int = 0
) -> nn.Module:  # fmt: skip
    """LoRA on every linear layer of the blocks; only the first of several adapters is trained.

    That one has at least ``patch_rank`` on the projections that end attentions and MLPs.
    """
    adapter = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    ranks = dict.fromkeys(sub.PROJECTIONS.values(), max(rank, patch_rank))
    with torch.device("meta"), quantization.quiet():  # peft imports gptqmodel, which greets
        model = get_peft_model(model, dataclasses.replace(adapter, rank_pattern=ranks))
        for name in names[1:]:
            model.add_adapter(name, adapter)
            for key, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and f".{name}." not in key)
    models.compute_in_model_dtype(model)
    return model


def allocate(model: nn.Module) -> nn.Module:
    """Give every tensor of a model on the meta device its fake memory, and return it. What is trained is in float32."""
    made: dict[int, nn.Parameter] = {}  # tied weights are allocated once
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                dtype = torch.float32 if parameter.requires_grad else parameter.dtype
                made[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


class Costs(TorchDispatchMode):
    """Adds up what operators cost: memory, ``now`` and at its ``peak``, ``flops``, ``moved``, the bytes that they read
    and write, and ``calls``, how many there are.

    A storage counts as long as it lives. torch's own ``MemTracker`` does the same by module, and refuses a module that
    runs twice in a step, as a teacher makes it that shares the model, and a scan.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.flops = self.moved = self.calls = 0
        self.alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **kwargs or {})
        tree_map_only(torch.Tensor, self.add, output)
        if not func.is_view:
            self.calls += 1
            tree_map_only(torch.Tensor, self.move, (args, kwargs, output))
        if func._overloadpacket in FLOPS:
            self.flops += FLOPS[func._overloadpacket](*args, **kwargs or {}, out_val=output)
        return output

    def move(self, tensor: torch.Tensor) -> None:
        self.moved += tensor.nbytes

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self.alive:
            return
        key, size = id(storage), storage.nbytes()

        def freed(_):
            del self.alive[key]
            self.now -= size

        self.alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)

    @property
    def gb(self) -> float:
        return self.peak / 1e9

    def seconds(self, tflops: float, gb_per_s: float, call_s: float = 0.0) -> float:
        """Time at the rates of a device: arithmetic and memory traffic, one after another, or what it takes to start so
        many operators where that is longer.
        """
        return max(self.flops / (1e12 * tflops) + self.moved / (1e9 * gb_per_s), self.calls * call_s)


@contextlib.contextmanager
def counted() -> Iterator[Costs]:
    """Count what is computed in here, on fake tensors."""
    with FakeTensorMode(), Costs() as costs:
        yield costs


def batch_of(batch: int, tokens: int, targets: int) -> dict[str, torch.Tensor]:
    """A batch as ``TargetCollator`` makes it, of ``tokens`` tokens, the last ``targets`` of them labelled."""
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.zeros_like(ids),
        "labels": torch.zeros(batch, targets + 1, dtype=torch.long),
    }


# --------------------------------------------------------------------------------------------------- what is simulated


def _learn_targets(model) -> Callable:
    """The loss of phase 1."""
    return lambda model, batch: target_loss(*target_logits(model, batch))


def training(
    config,
    batch: int,
    tokens: int,
    targets: int,
    precision: str = "auto",
    rank: int | None = None,
    adapters: tuple[str, ...] = ("default",),
    patch_rank: int = 0,
    ratio: float = 1.0,
    train_ends: bool = False,
    learn: Callable[[nn.Module], Callable] = _learn_targets,
    recompute: bool = False,
    reentrant: bool = False,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> Costs:
    """Costs of a training step of a model of this config on weights in ``precision``.

    ``batch`` sequences of ``tokens`` tokens, the last ``targets`` of them target. With ``rank`` LoRA is trained
    (``with_adapters``), else the weights: the share ``ratio`` of attentions and MLPs, and with ``train_ends`` also
    embeddings, norm and head. ``learn`` gives the loss of a batch for the model that is trained.
    """
    model = empty_model(config, precision, device, dtype)
    sublayers = sub.sublayers(model)
    trained = sublayers[: round(ratio * len(sublayers))]
    if rank:
        model = with_adapters(model, rank, adapters, patch_rank)
        for sublayer in sublayers[len(trained) :]:
            sub.module(model, sublayer).requires_grad_(False)
    else:
        for parameter in [p for sublayer in trained for p in sub.parameters(model, sublayer)]:
            parameter.requires_grad_(True)
        for module in _ends(model) if train_ends else ():
            module.requires_grad_(True)
    if device == "cpu":
        model.set_attn_implementation("eager")  # as TargetTrainer does
    with counted() as costs:
        allocate(model)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if device == "cpu":
            optimizer = torch.optim.AdamW(weights, fused=True)
        else:
            optimizer = EightBitAdamW(weights, {id(model.get_input_embeddings().weight)})
        for parameter in weights:  # the optimizer's state is there before any step but the first, which needs less
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        loss_of, data = learn(model.train()), batch_of(batch, tokens, targets)
        costs.flops = costs.moved = costs.calls = 0
        with autocast("cpu", dtype):
            loss = loss_of(model, data)
        loss.backward()
        optimizer.step()
    return costs


def scanning(
    config,
    batch: int,
    tokens: int,
    targets: int,
    precision: str = "auto",
    rank: int | None = None,
    adapters: tuple[str, ...] = ("default",),
    patch_rank: int = 0,
    sums: int = 0,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> Costs:
    """Costs of a calibration scan: all streams of a batch, and the first unit's suffix; before it the ``sums``, bytes,
    that patches are fitted by.
    """
    model = empty_model(config, precision, device, dtype)
    if rank:
        model = with_adapters(model, rank, adapters, patch_rank).requires_grad_(False)
    with counted() as costs, autocast("cpu", dtype):
        allocate(model)
        mlps = [sublayer for sublayer in sub.sublayers(model) if sublayer.kind == "mlp"]  # where patches of blocks go
        model, data = model.eval(), batch_of(batch, tokens, targets)
        if sums:
            seen = scan.trace(model, data, mlps[:1])
            torch.empty(sums, dtype=torch.uint8)
            del seen
        seen = scan.trace(model, data, mlps)
        scan.scores_without(model, (sub.sublayers(model)[0],), seen)
    return costs


def _ends(model: nn.Module) -> tuple[nn.Module, ...]:
    return sub.decoder(model).embed_tokens, sub.decoder(model).norm, model.get_output_embeddings()
