"""The Mish activation as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from torchrl_flow.functional.activation import mish

__all__ = ["Mish"]


class Mish(nn.Module):
    """:func:`~torchrl_flow.functional.mish` as a layer, in place of :class:`torch.nn.Mish`."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a tensor of any shape."""
        return mish(x)
