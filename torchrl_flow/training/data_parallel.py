"""Data-parallel losses of several learners: PyTorch's ``DistributedDataParallel`` around a loss and its methods."""

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
    """Return the option that stops forward passes from sending buffers; its name depends on torch's version."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


class _Call(nn.Module):
    """Module that calls a loss or one of its methods in its forward pass, where DDP prepares the reduction."""

    def __init__(self, loss_module: LossModule) -> None:
        super().__init__()
        self.loss_module = loss_module

    def forward(self, batch: TensorDictBase, method: str | None = None) -> dict[str, Any]:
        result: Any = self.loss_module(batch) if method is None else getattr(self.loss_module, method)(batch)
        # DDP finds unused parameters from the tensors of an output, and finds no tensors in a TensorDict.
        if isinstance(result, tuple):
            value, metrics = result
            return {"value": value, "metrics": dict(metrics.items())}
        return {"value": result} if isinstance(result, torch.Tensor) else dict(result.items())


class DataParallelLoss:
    """Data-parallel calls of a loss: its gradients are averaged over the processes of a process group.

    Each process has a loss with the same weights, and calls it with its share of a batch; gradients are reduced during
    the backward pass. Optimisers and target updates then have the same effect in each process, and weights stay bitwise
    equal. ``DistributedDataParallel(loss)`` supports only :meth:`forward`, and only if every parameter is in the graph
    of every call: it finds no tensors in the TensorDict that a loss returns. This class also supports single methods
    (``"qvalue_loss"``), and losses that omit parameters, for example during a warm-up.

    If a loss is a mean over rows, the mean of gradients is the gradient for the whole batch. Statistics of a batch,
    such as the mean of advantage weights and normalised advantages, are those of each process's share.

    Buffers are not sent: target networks and schedules change equally in all processes. Counts such as
    ``skipped_policy_batches`` are separate for each process.

    Args:
        loss_module: the loss, made in the same way in every process; the weights of process 0 are sent to the others.
        process_group: process group of ``torch.distributed``; ``None`` for the default one. Its backend must be gloo
            for a loss on the CPU and nccl on a GPU.

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
        """Return the result of the loss, or of its method of that name.

        Args:
            batch: this process's share of the batch.
            method: name of a method, such as ``"qvalue_loss"``; ``None`` for the forward pass of the loss.
        """
        out = self._parallel(batch, method)
        if method is None:
            return out
        return (out["value"], out["metrics"]) if "metrics" in out else out["value"]
