"""A training loop that draws from every global generator; ``python -m`` runs it in a process of its own."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

import numpy as np
import torch

from torchrl_flow.runs import Run, load_checkpoint, save_checkpoint
from torchrl_flow.util import seed_everything


@dataclass
class Config:
    """Arguments of :func:`train_run`."""

    total: int = 20
    lr: float = 1e-2
    resume: bool = False


def make_parts(lr: float = 1e-2):
    """Return the network and what a checkpoint of the training holds."""
    seed_everything(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return net, {
        "modules": {"policy": net},
        "optimizers": {"main": optimizer},
        "state": {"scheduler": scheduler},
    }


def update(net, parts) -> float:
    """Take one step and return its loss."""
    x = torch.randn(8, 4) + float(np.random.rand()) + random.random()
    loss = (net(x) - x[:, :2]).square().mean()
    parts["optimizers"]["main"].zero_grad()
    loss.backward()
    parts["optimizers"]["main"].step()
    parts["state"]["scheduler"].step()
    return loss.item()


def train(path, start_from, total: int) -> None:
    """Train up to step ``total``, from the start or from a checkpoint, and write one."""
    net, parts = make_parts()
    step = load_checkpoint(start_from).restore(**parts, rng=True) if start_from else 0
    for _ in range(step, total):
        update(net, parts)
    save_checkpoint(path, **parts, counters={"step": total})


def train_run(directory, config: Config, *, after_step=lambda run: None, **options) -> None:
    """Train in the directory of a run."""
    net, parts = make_parts(config.lr)
    with Run(directory, config, resume=config.resume, progress=False, **options) as run:
        run.track(**parts)
        for step in run.steps(config.total, save_every=5):
            run.log({"train/loss": update(net, parts)})
            if step % 4 == 0:
                run.log({"eval/success_once": float(torch.rand(()))})
            after_step(run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]))
