"""Memory and time of SAPLING's steps, simulated on tensors without data for predict.py."""

import torch

from fincompress import simulation
from fincompress.sapling import patch
from fincompress.sapling.losses import RecoveryLoss
from fincompress.sapling.student import PATCH_RANK
from fincompress.sapling.teacher import ADAPTER, SharedTeacher, Teacher


def recovering(config, batch: int, tokens: int, targets: int, rank: int | None = None, **options) -> simulation.Costs:
    """Costs of a step of recovery training: with ``rank`` of adapters on an NF4 base, which the teacher shares, else of
    the weights themselves beside a teacher of its own. ``options`` go to ``simulation.training``."""

    def learn(model):
        if rank:
            return RecoveryLoss(SharedTeacher(model, {}, True).teach)
        dtype = options.get("dtype", torch.bfloat16)
        whole = simulation.empty_model(config, "auto", options["device"], dtype)
        return RecoveryLoss(Teacher(simulation.allocate(whole), list(range(config.num_hidden_layers))).teach)

    return simulation.training(
        config, batch, tokens, targets, "nf4" if rank else "auto", rank, ("default", ADAPTER), learn=learn,
        patch_rank=PATCH_RANK, **options,
    )  # fmt: skip


def scanning(config, batch: int, tokens: int, targets: int, rank: int, **options) -> simulation.Costs:
    """Costs of a scan with adapters on an NF4 base, one of them the teacher's; ``options`` go to the simulation."""
    sums = patch.sums_bytes(config) * min(config.num_hidden_layers, patch.units_at_once(config))
    return simulation.scanning(
        config, batch, tokens, targets, "nf4", rank, ("default", ADAPTER), PATCH_RANK, sums, **options
    )
