"""Per-dimension normalisation whose statistics are buffers of the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

NormalizerMode = Literal["minmax", "meanstd", "quantile", "identity"]
"""Statistics from which a normaliser is built."""

__all__ = ["Normalizer", "NormalizerMode"]


class Normalizer(nn.Module):
    """Normalisation of the last dimension by stored statistics, ``(x - loc) / scale``, and its inverse.

    The statistics are buffers: they are saved, moved and restored with the parent module. A dimension that is constant
    in the data gets scale 1, so that there is no division by 0 and the value stays finite if it changes later.

    Args:
        size: D, the length of the last dimension.

    Keyword Args:
        loc: subtracted value, ``[D]``. Defaults to 0.
        scale: divisor, ``[D]``, above 0. Defaults to 1.
        bound: if given, normalised values are clamped to ``[-bound, bound]``, so that an observation far outside the
            data stays in the network's training range.

    Raises:
        ValueError: if a shape does not fit or a scale is not positive and finite.

    Examples:
        >>> import torch
        >>> statistics = {"min": torch.tensor([0.0, 5.0]), "max": torch.tensor([4.0, 5.0])}
        >>> normalizer = Normalizer.from_statistics(statistics, mode="minmax")
        >>> normalizer(torch.tensor([[4.0, 5.0]]))
        tensor([[1., 0.]])
        >>> normalizer.inverse(torch.tensor([[-1.0, 0.0]]))
        tensor([[0., 5.]])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        size: int,
        *,
        loc: Tensor | None = None,
        scale: Tensor | None = None,
        bound: float | None = None,
    ) -> None:
        super().__init__()
        loc = torch.zeros(size) if loc is None else torch.as_tensor(loc, dtype=torch.float32)
        scale = torch.ones(size) if scale is None else torch.as_tensor(scale, dtype=torch.float32)
        for name, value in (("loc", loc), ("scale", scale)):
            if value.shape != (size,):
                raise ValueError(f"{name} must have shape [{size}], got {list(value.shape)}.")
            if not value.isfinite().all():
                raise ValueError(f"{name} holds values that are not finite: {value.tolist()}.")
        if not (scale > 0).all():
            raise ValueError(f"scale must be above 0 in every dimension, got {scale.tolist()}.")
        if bound is not None and bound <= 0:
            raise ValueError(f"bound must be above 0 or None, got {bound}.")
        self.bound = bound
        self.register_buffer("loc", loc.clone())
        self.register_buffer("scale", scale.clone())

    @classmethod
    def from_statistics(
        cls,
        statistics: Mapping[str, Tensor],
        *,
        mode: NormalizerMode = "meanstd",
        min_scale: float = 1e-4,
        bound: float | None = None,
    ) -> Normalizer:
        """Build a normaliser from the statistics of a data set.

        Args:
            statistics: the statistics of the mode, each ``[D]``: ``min`` and ``max`` (``"minmax"``: mapped to [-1, 1]),
                ``q01`` and ``q99`` (``"quantile"``: mapped to [-1, 1], robust against a few outliers), ``mean`` and
                ``std`` (``"meanstd"``).
            mode: statistics to use; ``"identity"`` does not change values.
            min_scale: a dimension whose scale is smaller counts as constant and gets scale 1.
            bound: see the class.

        Raises:
            ValueError: if the mode is unknown or a required statistic is missing.
        """
        needs = {"minmax": ("min", "max"), "quantile": ("q01", "q99"), "meanstd": ("mean", "std")}
        if mode == "identity":
            return cls(next(iter(statistics.values())).shape[-1], bound=bound)
        if mode not in needs:
            raise ValueError(f"mode must be 'minmax', 'meanstd', 'quantile' or 'identity', got {mode!r}.")
        missing = [name for name in needs[mode] if name not in statistics]
        if missing:
            raise ValueError(
                f"mode {mode!r} needs the statistics {missing}; given are {sorted(statistics)}. Take them from "
                "the data set's `statistics()`."
            )
        first, second = (torch.as_tensor(statistics[name], dtype=torch.float32) for name in needs[mode])
        if mode == "meanstd":
            loc, scale = first, second
        else:
            loc, scale = (first + second) / 2, (second - first) / 2
        scale = torch.where(scale < min_scale, torch.ones_like(scale), scale)
        return cls(loc.shape[-1], loc=loc, scale=scale, bound=bound)

    def forward(self, value: Tensor, name: str = "the input of a normaliser") -> Tensor:
        """Normalise ``[*, D]``.

        Args:
            value: integers, or floating-point numbers whose precision is at most that of the network.
            name: name of the value in errors.

        Raises:
            ValueError: if the value's precision is higher than the network's.
        """
        return self.with_statistics(value, self.loc, self.scale, name)

    def with_statistics(self, value: Tensor, loc: Tensor, scale: Tensor, name: str) -> Tensor:
        """Normalise like :meth:`forward`, with other statistics."""
        _check_precision(value, loc, name)
        value = (value - loc) / scale
        return value if self.bound is None else value.clamp(-self.bound, self.bound)

    def inverse(self, value: Tensor) -> Tensor:
        """Invert :meth:`forward` (except the bound) on ``[*, D]``."""
        return value * self.scale + self.loc

    def reset_parameters(self) -> None:
        """Do nothing, so that a reset of weights keeps the statistics of the data."""

    def extra_repr(self) -> str:
        """Return the size and the bound as text."""
        return f"size={self.loc.shape[0]}, bound={self.bound}"


def _check_precision(value: Tensor, loc: Tensor, name: str) -> None:
    """Raise an error for values of a higher precision than the network's ``loc``."""
    if value.dtype == torch.float64 != loc.dtype:
        raise ValueError(
            f"{name} is {value.dtype} and the network is {loc.dtype}: convert the data once, in the environment by "
            "TorchRL's transform DoubleToFloat(), in a batch by .to(torch.float32); or the network, by "
            ".to(torch.float64)."
        )
