"""Losses of several learners in data parallel: PyTorch's ``DistributedDataParallel`` around a loss and its methods."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrl.objectives import LossModule

__all__ = ["DataParallelLoss"]


def _no_buffers() -> dict[str, Any]:
    """Return the option that keeps forward passes from sending buffers; its name differs between versions of torch."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


class _Call(nn.Module):
    """Calls a loss, or one of its methods, in a forward pass, which is what DDP prepares its reduction in."""

    def __init__(self, loss_module: LossModule) -> None:
        super().__init__()
        self.loss_module = loss_module

    def forward(self, batch: TensorDictBase, method: str | None = None) -> dict[str, Any]:
        result: Any = self.loss_module(batch) if method is None else getattr(self.loss_module, method)(batch)
        # DDP looks for unused parameters from the tensors of an output, and sees none in a TensorDict.
        if isinstance(result, tuple):
            value, metrics = result
            return {"value": value, "metrics": dict(metrics.items())}
        return {"value": result} if isinstance(result, torch.Tensor) else dict(result.items())


class DataParallelLoss:
    """Calls a loss so that the gradients of its backward pass are the mean over the processes of a process group.

    Each process has a loss of the same weights, and calls it with its share of a batch; gradients are reduced while the
    backward pass runs. Optimisers and target updates then do the same in each process, and weights stay equal to the
    bit. ``DistributedDataParallel(loss)`` itself does so for :meth:`forward` alone, and only where each parameter is in
    the graph each time: it sees no tensors in the TensorDict that a loss returns. This also takes the losses that are
    computed alone (``"qvalue_loss"``), and losses that leave out parameters, such as those of a warm-up.

    The mean of gradients is the gradient of the mean over the whole batch where a loss is a mean of rows. Statistics of
    a batch, such as the mean of advantage weights and normalised advantages, are those of each process's share.

    Buffers are not sent: target networks and schedules change in the same way everywhere. Counts such as
    ``skipped_policy_batches`` are each process's own.

    Args:
        loss_module: the loss, made in the same way in every process; the weights of process 0 are sent to the others.
        process_group: of ``torch.distributed``; the default one where ``None``. Its backend is gloo for a loss on the
            CPU and nccl for one on a GPU.

    Raises:
        RuntimeError: if there is no process group.

    Examples:
        >>> parallel = DataParallelLoss(loss)  # doctest: +SKIP
        >>> stepper = NamedLossStepper(loss, groups, compute=parallel)  # doctest: +SKIP
    """

    def __init__(self, loss_module: LossModule, *, process_group: Any = None) -> None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise RuntimeError("There is no process group: call torch.distributed.init_process_group first.")
        self.loss_module = loss_module
        self._parallel = DistributedDataParallel(
            _Call(loss_module), process_group=process_group, find_unused_parameters=True, **_no_buffers()
        )

    def __call__(self, batch: TensorDictBase, method: str | None = None) -> Any:
        """Return what the loss gives, or what its method of that name gives.

        Args:
            batch: this process's share.
            method: such as ``"qvalue_loss"``; the forward pass of the loss where ``None``.
        """
        out = self._parallel(batch, method)
        if method is None:
            return out
        return (out["value"], out["metrics"]) if "metrics" in out else out["value"]
