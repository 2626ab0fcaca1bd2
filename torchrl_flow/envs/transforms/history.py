"""Observation histories: the last observations of an episode, stacked along a separate dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch.nn.parameter import UninitializedBuffer
from torchrl.envs import CatFrames, Transform, UnsqueezeTransform

__all__ = ["history_transforms"]

_IMAGE_DIMS = 3
_VECTOR_DIMS = 1


def history_transforms(
    obs_horizon: int,
    in_keys: Sequence[NestedKey] = ("observation",),
    *,
    feature_dims: Mapping[NestedKey, int] | None = None,
) -> list[Transform]:
    """Return the transforms that replace an observation by the last ``obs_horizon`` observations, oldest first.

    An entry ``[*B, D]`` becomes ``[*B, T, D]``, and ``pixels`` ``[*B, 3, h, w]`` become ``[*B, T, 3, h, w]``. At a
    (partial) reset the history is filled with copies of the first observation. The dimension also exists for
    ``obs_horizon=1``. Place the transforms before :class:`SMDPChunk`, so that the history consists of environment
    steps.

    Args:
        obs_horizon (int): number of observations, T.
        in_keys (sequence of NestedKey): the entries. Defaults to ``("observation",)``.

    Keyword Args:
        feature_dims (mapping, optional): number of feature dimensions of an entry. Defaults to 3 for entries
            whose name begins with ``"pixels"`` and 1 for others.

    Returns:
        list of Transform: to be appended to an env in this order.

    Raises:
        ValueError: if ``obs_horizon`` is below 1, ``in_keys`` is empty or lacks a key of ``feature_dims``.

    Examples:
        >>> from torchrl.envs import Compose, PendulumEnv, TransformedEnv
        >>> transforms = history_transforms(3, in_keys=("th",), feature_dims={"th": 0})
        >>> env = TransformedEnv(PendulumEnv(), Compose(*transforms))
        >>> env.reset()["th"].shape
        torch.Size([3])
    """
    if obs_horizon < 1:
        raise ValueError(f"obs_horizon must be at least 1, got {obs_horizon}.")
    keys = [unravel_key(key) for key in in_keys]
    if not keys:
        raise ValueError("in_keys must name at least one observation, got none.")
    given = {unravel_key(key): dims for key, dims in (feature_dims or {}).items()}
    if unknown := set(given) - set(keys):
        raise ValueError(f"feature_dims names {sorted(map(str, unknown))}, which in_keys={keys} lacks.")

    by_dims: dict[int, list[NestedKey]] = {}
    for key in keys:
        by_dims.setdefault(given.get(key, _default_feature_dims(key)), []).append(key)
    transforms: list[Transform] = []
    for dims, group in by_dims.items():
        transforms.append(UnsqueezeTransform(dim=-dims - 1, in_keys=group))
        if obs_horizon > 1:
            transforms.append(_History(N=obs_horizon, dim=-dims - 1, in_keys=group, padding="same"))
    return transforms


class _History(CatFrames):
    """``CatFrames`` whose partial reset is correct for any number of batch dimensions, not only for one."""

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        mask = tensordict.get(self.reset_key, None)
        buffers = {key: getattr(self, f"_cat_buffers_{key}") for key in self.in_keys}
        if mask is None or mask.all() or any(isinstance(b, UninitializedBuffer) for b in buffers.values()):
            return super()._reset(tensordict, tensordict_reset)
        mask = mask.reshape(*tensordict_reset.shape, -1).any(-1)
        for key, out_key in zip(self.in_keys, self.out_keys, strict=True):
            buffer, first = buffers[key], tensordict_reset.get(key)
            rows = mask.reshape(mask.shape + (1,) * (buffer.ndim - mask.ndim))
            buffer.copy_(torch.where(rows, first, buffer))
            tensordict_reset.set(out_key, buffer.clone())
        return tensordict_reset


def _default_feature_dims(key: NestedKey) -> int:
    name = key if isinstance(key, str) else key[-1]
    return _IMAGE_DIMS if str(name).startswith("pixels") else _VECTOR_DIMS
