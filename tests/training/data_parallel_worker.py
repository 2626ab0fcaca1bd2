"""One of the processes of ``test_data_parallel.py``: each loss with its half of a batch, with DDP and without.

python -m tests.training.data_parallel_worker RANK DIRECTORY
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tests.objectives
from tests.contract.kit import MoveContract
from torchrl_flow.training import DataParallelLoss

METHODS = {"AWFlowLoss": ("qvalue_loss", "actor_loss")}
"""Losses that a stepper computes one by one."""


def cases():
    """Each loss, in each form in which the tests of its contract make it, by name."""
    found = {}
    for module in pkgutil.iter_modules(tests.objectives.__path__, "tests.objectives."):
        for name, value in vars(importlib.import_module(module.name)).items():
            contract = inspect.isclass(value) and issubclass(value, MoveContract) and value.__module__ == module.name
            if contract and name.startswith("Test"):
                loss = type(value().make_loss()).__name__
                for method in (None, *METHODS.get(loss, ())):
                    found[":".join(filter(None, (loss, module.name.rpartition("_")[2], name, method)))] = (
                        value,
                        method,
                    )
    return found


def make(case):
    """The loss of a case, off its start, where layers that are zero let no gradient through."""
    loss = case().make_loss()
    torch.manual_seed(1)
    for parameter in loss.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    return loss


def gradients(loss, call, half, seed, method=None):
    """The gradients of the sum of the losses that a call gives; what it draws follows from the seed."""
    torch.manual_seed(seed)
    out = call(half.clone()) if method is None else call(half.clone(), method)
    values = [value for key, value in out.items() if key.startswith("loss_")] if method is None else [out[0]]
    torch.stack([value.sum() for value in values]).sum().backward()
    return {name: value.grad for name, value in loss.named_parameters() if value.grad is not None}


def without(loss, batch, method="forward"):
    """Call a loss as one process does."""
    return getattr(loss, method)(batch)


def compare(case, method, rank):
    """Gradients with DataParallelLoss, with DDP as it is, and of both halves without DDP."""
    torch.manual_seed(0)
    batch = case().make_batch()
    rows = len(batch) // 2
    halves = batch[:rows], batch[rows:]
    alone = []
    for number, half in enumerate(halves):
        loss = make(case)
        alone.append(gradients(loss, functools.partial(without, loss), half, number, method))
    ours, bare = make(case), make(case)
    found = {"alone": alone, "ours": gradients(ours, DataParallelLoss(ours), halves[rank], rank, method)}
    if method is None:
        found["ddp"] = gradients(bare, DistributedDataParallel(bare), halves[rank], rank)
    return found


def main(rank, folder):
    """Write what was found of every case."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    found = {name: compare(case, method, rank) for name, (case, method) in cases().items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
