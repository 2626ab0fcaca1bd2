"""Functions that wrap the private parts of TorchRL and TensorDict used by this package.

No public function has the same effect or, where it matters, the same speed. Checked with TorchRL 0.14.1 and TensorDict
0.14.3. ``tests/util/test_torchrl_compat.py`` has a test for each part, which fails with the part's name if another
version has moved it: correct the function here. The private parts used by losses are in ``objectives``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import _encode_key_for_filesystem
from torchrl.envs import EnvBase, Transform
from torchrl.envs.common import _EnvWrapper as EnvWrapper

__all__ = [
    "CHECKED",
    "OVERRIDDEN",
    "PARTIAL_STEP",
    "EnvWrapper",
    "can_set_state",
    "clear",
    "complete_done",
    "container_of",
    "count_writes",
    "file_name_of",
    "finish_write",
    "generator_of",
    "get_entry",
    "map_pairs",
    "raw_inverse",
    "raw_step",
    "raw_transform_step",
    "resets_itself",
    "revision_of",
    "room_of",
    "set_entry",
    "set_generator",
    "set_last_cursor",
    "stored_rows",
    "wrapped_env",
    "write_cursor",
]

CHECKED = {"torchrl": "0.14.1", "tensordict": "0.14.3"}
"""Versions with which all parts were checked."""
OVERRIDDEN = {
    "torchrl.envs.EnvBase": ("_supports_set_state",),
    "torchrl.data.Storage": ("_empty", "_max_size_along_dim0", "_rand_given_ndim", "_rng"),
    "torchrl.data.replay_buffers.samplers.Sampler": ("_empty", "_rng"),
    "torchrl.data.RoundRobinWriter": ("_mark_update_entities",),
}
"""Private methods that classes of this package override, by the TorchRL class that calls them."""
PARTIAL_STEP = "_step"
"""Key of the mask ``[*B, 1]`` of the sub-environments to step; the others are skipped."""


# TensorDict.


def get_entry(tensordict: TensorDictBase, key: NestedKey) -> Any:
    """Return the entry of a normalised key, or None if missing; takes a fraction of the time of ``get``."""
    if isinstance(key, str):
        return tensordict._get_str(key, None)
    return tensordict._get_tuple(key, None)


def set_entry(tensordict: TensorDictBase, key: NestedKey, value: Any) -> None:
    """Set the entry of a normalised key without checks; takes a fraction of the time of ``set``."""
    if isinstance(key, str):
        tensordict._set_str(key, value, inplace=False, validated=True, non_blocking=False)
    else:
        tensordict._set_tuple(key, value, inplace=False, validated=True, non_blocking=False)


def map_pairs(function: Callable[[Any, Any], Any], first: TensorDictBase, second: TensorDictBase) -> Any:
    """Apply a function to each entry of ``first`` and the entry of ``second``, or None if missing, without checks."""
    return first._fast_apply(function, second, default=None)


def file_name_of(key: str) -> str:
    """Return TensorDict's file name of a key without suffix; characters not allowed in file names are encoded."""
    return _encode_key_for_filesystem(key, robust=True)


# Environments.


def raw_step(env: EnvBase, tensordict: Any) -> Any:
    """Return the ``"next"`` entries of a step, without the checks and additions of ``EnvBase.step``."""
    return env._step(tensordict)


def raw_inverse(transform: Transform, tensordict: Any) -> Any:
    """Apply the inverse of a transform to the environment's inputs."""
    return transform._inv_call(tensordict)


def raw_transform_step(transform: Transform, tensordict: Any, next_tensordict: Any) -> Any:
    """Apply a transform to the ``"next"`` entries of an environment."""
    return transform._step(tensordict, next_tensordict)


def complete_done(env: EnvBase, next_tensordict: Any) -> None:
    """Write the done entries that an environment's step has omitted."""
    env._complete_done(env.full_done_spec, next_tensordict)


def container_of(transform: Transform) -> Any:
    """Return the ``Compose`` or ``TransformedEnv`` that directly contains a transform, or None.

    ``Transform.container`` returns only the environment.
    """
    reference = transform.__dict__.get("_container")
    return None if reference is None else reference()


def resets_itself(env: EnvBase) -> bool:
    """Return whether TorchRL has set an environment to reset itself at the end of an episode."""
    return bool(env.__dict__.get("_torchrl_native_autoreset", False))


def can_set_state(env: EnvBase) -> bool:
    """Return whether an environment's state can be set, so that ``state_dict`` includes it."""
    return bool(getattr(env, "_supports_set_state", False))


def wrapped_env(env: EnvBase) -> Any:
    """Return another library's environment inside an :class:`EnvWrapper`."""
    return env._env


# Replay buffers.


def revision_of(storage: Any) -> int:
    """Return a number that changes with every write to a storage."""
    return int(storage._mutation_revision)


def room_of(storage: Any, *, single_data: Any = None, batched_data: Any = None) -> int:
    """Return the capacity of a storage along its first dimension."""
    return storage._max_size_along_dim0(single_data=single_data, batched_data=batched_data)


def clear(part: Any) -> None:
    """Empty a storage or a sampler without its buffer."""
    part._empty()


def stored_rows(storage: Any) -> Any:
    """Return the TensorDict of a ``TensorStorage``, unused rows included: single columns can be read."""
    return storage._storage


def generator_of(part: Any) -> torch.Generator | None:
    """Return the random generator of a storage or a sampler; None for the global one."""
    return part._rng


def set_generator(part: Any, generator: torch.Generator | None) -> None:
    """Set the random generator of a storage or a sampler; ``ReplayBuffer.set_rng`` sets that of a whole buffer."""
    part._rng = generator


def set_last_cursor(storage: Any, cursor: Any) -> None:
    """Set a storage's last written position, like its ``set``."""
    storage._set_last_cursor(cursor)


def write_cursor(writer: Any, to: int | None = None) -> int:
    """Return the next write position of a ``RoundRobinWriter``, after setting it to ``to`` if given."""
    if to is not None:
        writer._cursor = to
    return writer._cursor


def count_writes(writer: Any, number: int) -> None:
    """Add to a writer's number of written rows, which ``ReplayBuffer.write_count`` returns."""
    writer._write_count += number


def finish_write(writer: Any, index: Any, data: Any) -> Any:
    """Finish a write like a ``RoundRobinWriter``: generations, shape of the index, notification of samplers.

    Returns:
        the index in the shape that ``extend`` returns.
    """
    writer._bump_generation(index, data)
    index = writer._replicate_index(index)
    writer._mark_update_entities(index)
    return index
