"""The private parts of TorchRL and TensorDict that this package uses, each in one function.

No public part does the same, or does it as fast where that matters. Checked with TorchRL 0.14.1 and TensorDict 0.14.3.
``tests/util/test_torchrl_compat.py`` has a test for each part, which fails with the name of the part where another
version has moved it: correct the function here. The losses' own parts of TorchRL are in ``objectives``.
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
"""Versions with which every part was checked."""
OVERRIDDEN = {
    "torchrl.envs.EnvBase": ("_supports_set_state",),
    "torchrl.data.Storage": ("_empty", "_max_size_along_dim0", "_rand_given_ndim", "_rng"),
    "torchrl.data.replay_buffers.samplers.Sampler": ("_empty", "_rng"),
    "torchrl.data.RoundRobinWriter": ("_mark_update_entities",),
}
"""Private parts that classes of this package define anew, by the class of TorchRL that calls them."""
PARTIAL_STEP = "_step"
"""Key of the mask ``[*B, 1]`` of the sub-environments that a step is for; the others are passed over."""


# TensorDict.


def get_entry(tensordict: TensorDictBase, key: NestedKey) -> Any:
    """Return the entry of a key in its normal form, None where it is missing; a fraction of the time of ``get``."""
    if isinstance(key, str):
        return tensordict._get_str(key, None)
    return tensordict._get_tuple(key, None)


def set_entry(tensordict: TensorDictBase, key: NestedKey, value: Any) -> None:
    """Set the entry of a key in its normal form, unchecked; a fraction of the time of ``set``."""
    if isinstance(key, str):
        tensordict._set_str(key, value, inplace=False, validated=True, non_blocking=False)
    else:
        tensordict._set_tuple(key, value, inplace=False, validated=True, non_blocking=False)


def map_pairs(function: Callable[[Any, Any], Any], first: TensorDictBase, second: TensorDictBase) -> Any:
    """Apply a function to each entry of ``first`` and that of ``second``, None where it lacks it; unchecked."""
    return first._fast_apply(function, second, default=None)


def file_name_of(key: str) -> str:
    """Return how TensorDict names the file of a key, without suffix: what a file's name cannot hold is encoded."""
    return _encode_key_for_filesystem(key, robust=True)


# Environments.


def raw_step(env: EnvBase, tensordict: Any) -> Any:
    """Return the ``"next"`` entries of a step, without what ``EnvBase.step`` checks and completes."""
    return env._step(tensordict)


def raw_inverse(transform: Transform, tensordict: Any) -> Any:
    """Carry what a transform gets for the environment to what the environment gets."""
    return transform._inv_call(tensordict)


def raw_transform_step(transform: Transform, tensordict: Any, next_tensordict: Any) -> Any:
    """Carry the ``"next"`` entries of an environment to those that a transform gives."""
    return transform._step(tensordict, next_tensordict)


def complete_done(env: EnvBase, next_tensordict: Any) -> None:
    """Write the done entries that an environment's step left out."""
    env._complete_done(env.full_done_spec, next_tensordict)


def container_of(transform: Transform) -> Any:
    """Return the ``Compose`` or ``TransformedEnv`` that a transform is directly in, or None.

    ``Transform.container`` gives the environment alone.
    """
    reference = transform.__dict__.get("_container")
    return None if reference is None else reference()


def resets_itself(env: EnvBase) -> bool:
    """Tell whether TorchRL has switched an environment to reset itself where an episode ends."""
    return bool(env.__dict__.get("_torchrl_native_autoreset", False))


def can_set_state(env: EnvBase) -> bool:
    """Tell whether an environment's state can be set, so that ``state_dict`` has it."""
    return bool(getattr(env, "_supports_set_state", False))


def wrapped_env(env: EnvBase) -> Any:
    """Return the environment of another library inside of an :class:`EnvWrapper`."""
    return env._env


# Replay buffers.


def revision_of(storage: Any) -> int:
    """Return a number that changes with every write into a storage."""
    return int(storage._mutation_revision)


def room_of(storage: Any, *, single_data: Any = None, batched_data: Any = None) -> int:
    """Return how many rows a storage has room for along its first dimension."""
    return storage._max_size_along_dim0(single_data=single_data, batched_data=batched_data)


def clear(part: Any) -> None:
    """Empty a storage, or have a sampler forget its rows, without the buffer around it."""
    part._empty()


def stored_rows(storage: Any) -> Any:
    """Return the TensorDict in a ``TensorStorage``, unused room included: one column can be read without others."""
    return storage._storage


def generator_of(part: Any) -> torch.Generator | None:
    """Return the generator that a storage or a sampler draws from; None for the global one."""
    return part._rng


def set_generator(part: Any, generator: torch.Generator | None) -> None:
    """Set the generator that a storage or a sampler draws from; ``ReplayBuffer.set_rng`` does so for a whole buffer."""
    part._rng = generator


def set_last_cursor(storage: Any, cursor: Any) -> None:
    """Tell a storage where was written last, as its own ``set`` would."""
    storage._set_last_cursor(cursor)


def write_cursor(writer: Any, to: int | None = None) -> int:
    """Return where a ``RoundRobinWriter`` writes next, after having set it to ``to``, where given."""
    if to is not None:
        writer._cursor = to
    return writer._cursor


def count_writes(writer: Any, number: int) -> None:
    """Add to the rows that a writer has written; ``ReplayBuffer.write_count`` tells them."""
    writer._write_count += number


def finish_write(writer: Any, index: Any, data: Any) -> Any:
    """Do what a ``RoundRobinWriter`` does after it has set rows: generations, shape of the index, samplers told.

    Returns:
        the index in the shape that ``extend`` returns.
    """
    writer._bump_generation(index, data)
    index = writer._replicate_index(index)
    writer._mark_update_entities(index)
    return index
