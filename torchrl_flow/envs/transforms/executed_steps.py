"""The number of executed steps as a root entry of a transition, like the action."""

from __future__ import annotations

from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.envs import Transform

from torchrl_flow.util.steps_under_next import read_steps_under_next

__all__ = ["CopyStepsToRoot", "free_root_steps", "mark_next", "write_root_steps"]

read_steps_under_next()

_IS_NEXT = "_torchrl_flow_is_next"
"""Attribute that marks a tensor held under ``"next"`` of a transition, which must not be modified."""


def write_root_steps(tensordict: TensorDictBase, key: NestedKey) -> TensorDictBase:
    """Set the root entry ``key`` of an executed transition to the entry under ``"next"``, if present.

    A collector keeps a separate root TensorDict with the same tensors, and takes only ``"next"`` from the result.
    Therefore the value is also written in place into the root tensor. It is not written if ``step_mdp`` has put the
    preceding transition's ``"next"`` tensor there, or if the tensor is a view of a larger one.

    Args:
        tensordict: result of a step, ``[*B]``; changed in place.
        key: key of the entry.
    """
    steps = tensordict.get(unravel_key(("next", key)), None)  # pyright: ignore[reportArgumentType]
    if steps is None:
        return tensordict
    root = tensordict.get(key, None)
    if root is not steps and _is_free(root, steps):
        root.copy_(steps)
        tensordict.set(key, root)
    else:
        tensordict.set(key, steps)
    mark_next(steps)
    return tensordict


def mark_next(steps: Tensor) -> Tensor:
    """Mark a tensor as held under ``"next"``, so that :func:`write_root_steps` does not write into it."""
    setattr(steps, _IS_NEXT, True)
    return steps


def free_root_steps(tensordict: TensorDictBase, key: NestedKey) -> TensorDictBase:
    """Give the root of the next transition a separate tensor, into which :func:`write_root_steps` may write."""
    root = tensordict.get(key, None)
    return tensordict if root is None else tensordict.set(key, root.clone())


def _is_free(root: Tensor | None, like: Tensor) -> bool:
    """Return whether a root tensor may be modified: not under ``"next"``, not a view, not memory-mapped."""
    return (
        type(root) is Tensor
        and not getattr(root, _IS_NEXT, False)
        and not root._is_view()
        and (root.shape, root.dtype, root.device) == (like.shape, like.dtype, like.device)
    )


class CopyStepsToRoot(Transform):
    """Copy of the number of executed steps from ``"next"`` to the root, for code that reads it there.

    :class:`~torchrl_flow.envs.SMDPChunk` does the same for rollouts and collectors. This transform covers three other
    cases:

    - as ``postproc`` of a collector, for chunk environments in workers;
    - as ``transform`` of a replay buffer, for data that was collected or recorded without the root entry;
    - in a :class:`~torchrl.envs.TransformedEnv` around a ``SerialEnv`` or ``ParallelEnv`` of chunk environments.

    Keyword Args:
        steps_key (NestedKey): key of the entry, see :class:`~torchrl_flow.envs.SMDPChunk`. Defaults to
            ``"steps_to_next_obs"``.

    Raises:
        ValueError: as ``postproc`` or in a replay buffer, if the data has no such entry under ``"next"``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> data = TensorDict({"next": {"steps_to_next_obs": torch.tensor([[3], [1]])}}, batch_size=[2])
        >>> CopyStepsToRoot()(data)["steps_to_next_obs"].squeeze(-1)
        tensor([3, 1])
    """

    def __init__(self, *, steps_key: NestedKey = "steps_to_next_obs") -> None:
        super().__init__()
        self.steps_key = unravel_key(steps_key)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return a shallow copy of transitions ``[*B]`` with the root entry."""
        following = tensordict.get("next", None)
        steps = None if following is None else following.get(self.steps_key, None)
        if steps is None:
            found = [] if following is None else sorted(map(str, following.keys(True, True)))
            raise ValueError(
                f"the data has no {self.steps_key!r} under 'next', where a chunk environment writes the number of "
                f"executed steps; it has {found}. Collect with make_chunk_env or SMDPChunk, or name the entry in "
                "steps_key."
            )
        return tensordict.copy().set(self.steps_key, steps)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict

    def _post_step_mdp_hooks(
        self, tensordict: TensorDictBase, tensordict_: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        write_root_steps(tensordict, self.steps_key)
        return tensordict, free_root_steps(tensordict_, self.steps_key)
