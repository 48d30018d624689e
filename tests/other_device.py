"""Run as a script: the steps of each phase on tensors without data that lie on another device than the CPU.

What mixes devices, as it would on a GPU, ends it with torch's error. The device is a made-up one, which torch keeps
until the process ends. An argument names a part of the batch that is left on the CPU.
"""

import os
import sys
import traceback

import torch
from depth_models import CONFIGS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import AutoModelForCausalLM

from fincompress import simulation
from fincompress.depth import repack, scan
from fincompress.depth import sublayers as sub
from fincompress.sapling import losses
from fincompress.sapling.student import widen
from fincompress.sapling.teacher import ADAPTER, SharedTeacher, Teacher
from fincompress.training.loss import target_logits, target_loss

_setup_privateuseone_for_python_backend("other")


def on_device(model):
    """The model's parameters and buffers, without data, on the other device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="other"), parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="other")
    return model


def make_model(family, adapters=None):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    return on_device(simulation.with_adapters(model.requires_grad_(False), 4, adapters, 8) if adapters else model)


class Columns:
    """Hidden states by number of block: torch cannot make an index of a list on a made-up device."""

    def __init__(self, hidden):
        self.hidden = hidden

    def __getitem__(self, place):
        return torch.stack([self.hidden[:, number] for number in place[1]], dim=1)


def learn(model, teacher, batch):
    """A step of recovery, forth and back."""

    def teach(batch):
        taught = Teacher.teach(teacher, batch)
        return losses.Teaching(taught.ids, taught.log_probs, Columns(taught.hidden))

    teacher.teach = teach
    losses.RecoveryLoss(teacher.teach)(model, batch).backward()


def check(family):
    """Every step with the models of a family."""
    with FakeTensorMode():
        batch = {name: part.to("other") for name, part in simulation.batch_of(2, 20, 5).items()}
        batch |= {name: batch[name].to("cpu") for name in sys.argv[1:]}
        model = make_model(family)
        target_loss(*target_logits(model, batch)).backward()
        learn(model, Teacher(make_model(family)), batch)
        with torch.no_grad():
            seen = scan.trace(model, batch, [sublayer for sublayer in sub.sublayers(model) if sublayer.kind == "mlp"])
            (unit, *_), nll = (
                sub.units(model, "block"),
                scan.scores_without(model, sub.units(model, "block")[0], seen)[0],
            )
        assert nll.device.type == "other"
        sub.remove(model, *unit)
        repacked = repack.repacked_model(model)
        assert {parameter.device.type for some in (model, repacked) for parameter in some.parameters()} == {"other"}
        adapted = make_model(family, ("default", ADAPTER))
        widen(adapted, 8)
        learn(adapted, SharedTeacher(adapted, sub.remove(adapted, *sub.units(adapted, "block")[1]), True), batch)


try:
    for name in CONFIGS:
        check(name)
    status = 0
except Exception:  # of any kind: the test reads what it says
    traceback.print_exc()
    status = 1
# Torch's thread for the gradients of a made-up device now and then ends a process that ends by itself with an abort.
sys.stderr.flush()
os._exit(status)
