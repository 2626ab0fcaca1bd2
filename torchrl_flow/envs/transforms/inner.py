"""Steps of the part of an environment below a transform: the base env and the transforms before it.

``Transform.parent`` also provides such an environment, made of clones. A clone shares the state of its original only
until a buffer is replaced, which ``CatFrames`` does for every dtype except the default one. The functions here step the
original transforms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, Transform, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_flow.envs import unwrap
from torchrl_flow.util.torchrl_compat import (
    PARTIAL_STEP,
    complete_done,
    container_of,
    get_entry,
    map_pairs,
    raw_inverse,
    raw_step,
    raw_transform_step,
    set_entry,
)

__all__ = ["carry", "expand_right", "inner_step", "keep_where", "split_below"]


def split_below(transform: Transform) -> tuple[EnvBase, list[Transform]]:
    """Return the base env below a transform and the transforms between them, innermost first.

    Args:
        transform (Transform): a transform in a ``TransformedEnv``, alone or in (nested) ``Compose``.

    Returns:
        tuple: the base env and the list of transforms.

    Raises:
        RuntimeError: if the transform is not part of an environment.
    """
    node, before = transform, []
    while True:
        container = container_of(node)
        if container is None:
            raise RuntimeError(
                f"{type(transform).__name__} works in an environment only: append it to a TransformedEnv."
            )
        if isinstance(container, TransformedEnv):
            return container.base_env, before
        siblings = list(container.transforms)
        before = siblings[: next(i for i, sibling in enumerate(siblings) if sibling is node)] + before
        node = container


def carry(source: TensorDictBase, target: TensorDictBase, keys: Iterable[NestedKey]) -> None:
    """Set the entries of ``source`` in ``target`` without checks: both hold results of the same environment.

    Args:
        source (TensorDictBase): entries that it lacks are not changed in ``target``.
        target (TensorDictBase): modified in place.
        keys (iterable of NestedKey): the keys in their normal form.
    """
    for key in keys:
        value = get_entry(source, key)
        if value is not None:
            set_entry(target, key, value)


def inner_step(
    base_env: EnvBase, transforms: list[Transform], tensordict: Any, alive: Tensor | None = None
) -> TensorDictBase:
    """Return the ``"next"`` entries of one step of ``base_env`` after ``transforms``.

    Args:
        base_env (EnvBase): the environment to step.
        transforms (list of Transform): innermost first.
        tensordict (TensorDictBase): input of the outermost transform; may be modified.
        alive (Tensor, optional): bool ``[*B, 1]``, the sub-environments to step. Defaults to all of them.

    Returns:
        TensorDictBase: rows that are not alive hold meaningless values.
    """
    if alive is not None:
        tensordict.set(PARTIAL_STEP, alive)
    for transform in reversed(transforms):
        tensordict = raw_inverse(transform, tensordict)
    mask = tensordict.pop(PARTIAL_STEP, None) if alive is not None else None
    next_tensordict = raw_step(base_env, tensordict) if mask is None else _partial_step(base_env, tensordict, mask)
    complete_done(base_env, next_tensordict)
    for transform in transforms:
        next_tensordict = raw_transform_step(transform, tensordict, next_tensordict)
    return next_tensordict


def _partial_step(base_env: EnvBase, tensordict: Any, mask: Tensor) -> Any:
    if isinstance(unwrap.base_env(base_env), BatchedEnvBase):
        # A batched env steps whole workers, and fills the other rows from input entries with the names of outputs,
        # whose shapes transforms may have changed.
        tensordict = tensordict.select(*base_env.action_keys, *base_env.state_keys, strict=False)
        workers = mask.reshape(mask.shape[0], -1).any(-1)
        mask = expand_right(workers, mask).contiguous()
        if not workers.all():
            tensordict.set(PARTIAL_STEP, mask)
        return raw_step(base_env, tensordict)
    if base_env.batch_locked:
        tensordict.set(PARTIAL_STEP, mask)
        return raw_step(base_env, tensordict)
    # An env with an empty batch size steps the given rows.
    rows = mask.reshape(tensordict.shape)
    stepped: Any = raw_step(base_env, tensordict[rows])
    result: Any = stepped.new_zeros(tensordict.shape)
    result[rows] = stepped
    return result


def keep_where(mask: Tensor, new: TensorDictBase, old: TensorDictBase) -> TensorDictBase:
    """Return ``new`` in the rows where ``mask`` holds and ``old`` elsewhere, for the entries of ``new``.

    Args:
        mask (Tensor): bool ``[*B, 1]``.
        new (TensorDictBase): batch size ``[*B]``.
        old (TensorDictBase): batch size ``[*B]``; an entry that it lacks is taken from ``new``.

    Returns:
        TensorDictBase: a new tensordict.
    """
    mask = mask.reshape(new.shape)

    def select(new_value: Tensor, old_value: Tensor | None) -> Tensor:
        if old_value is None:
            return new_value
        return new_value.where(expand_right(mask, new_value), old_value)

    return map_pairs(select, new, old)


def expand_right(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` with dimensions added on the right until it has the shape of ``like``."""
    return tensor.reshape(tensor.shape + (1,) * (like.ndim - tensor.ndim)).expand(like.shape)
