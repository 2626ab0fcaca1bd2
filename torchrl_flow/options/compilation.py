"""The options of compiled losses, and the functions that compute them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchrl_flow.options.run_arguments import RunArgs

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torchrl.objectives import LossModule

__all__ = ["CompileArgs"]


@dataclasses.dataclass(kw_only=True)
class CompileArgs(RunArgs):
    """Compilation of the loss."""

    compile: bool = False
    """compile the loss with torch.compile, which takes minutes: for long runs; td3_bc was not faster on a CPU"""
    cuda_graphs: bool = False
    """with --compile on a GPU, replay the kernels of the loss and its gradient as CUDA graphs"""

    def check(self) -> None:
        """Refuse CUDA graphs without compilation or without a GPU."""
        super().check()
        self._check_graphs()

    def prepare(self) -> None:
        """Prepare as every recipe does; then refuse CUDA graphs if the device ``auto`` is a CPU here."""
        super().prepare()
        self._check_graphs()

    def _check_graphs(self) -> None:
        if self.cuda_graphs and (not self.compile or self.device == "cpu"):
            raise SystemExit("--cuda-graphs needs --compile and a GPU: give --compile --device cuda.")

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that computes the loss, compiled if requested; it draws the same random numbers."""
        if not self.compile:
            return function
        import torch

        options: dict[str, Any] = {"fallback_random": True}
        if not self.cuda_graphs:
            return torch.compile(function, options=options)
        graphed = torch.compile(function, options=options | {"triton.cudagraphs": True})
        return lambda *args: _copy(graphed(*args))

    def compute(self, loss_module: LossModule) -> Callable[..., Any] | None:
        """Return the argument ``compute`` of a :class:`~torchrl_flow.training.NamedLossStepper`.

        Returns:
            Function of a batch and the name of a method (``None`` for ``forward``), each compiled at its first call;
            ``None`` if compilation was not requested.
        """
        if not self.compile:
            return None
        calls: dict[str | None, Callable[..., Any]] = {}

        def call(batch: TensorDictBase, method: str | None = None) -> Any:
            if method not in calls:
                calls[method] = self.compiled(loss_module if method is None else getattr(loss_module, method))
            return calls[method](batch)

        return call


def _copy(out: Any) -> Any:
    """Copy the results of a CUDA graph, whose memory the next replay overwrites."""
    if isinstance(out, tuple):
        return tuple(map(_copy, out))
    return {key: _copy(value) for key, value in out.items()} if isinstance(out, dict) else out.clone()
