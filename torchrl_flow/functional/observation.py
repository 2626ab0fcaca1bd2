"""The fixed order in which nested robot observations are flattened to a vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

STATE_GROUPS = ("agent", "extra")
"""The groups of a nested observation in the state vector, in order."""


def _leaves(group: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _leaves(cast("Mapping[str, Any]", value), (*prefix, name))
        else:
            yield (*prefix, name), value


def state_paths(observation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """List the entries of a nested observation's state vector, in order.

    Args:
        observation: nested mapping with the groups ``agent`` and ``extra`` (either may be absent): a
            ManiSkill observation, or the ``traj_i/obs`` group of a ManiSkill ``.h5`` file.

    Returns:
        One path for each entry, such as ``("agent", "qpos")``.
    """
    return [path for group in STATE_GROUPS for path, _ in _leaves(observation.get(group, {}), (group,))]


def flatten_state(observation: Mapping[str, Any]) -> torch.Tensor:
    """Compute the state vector of a nested observation: everything under ``agent``, then under ``extra``.

    Within a group the entries keep the order of the mapping, depth first; they are not sorted by name. ManiSkill's
    observations and its ``.h5`` files (which track the order of creation) have the same order, so that a live
    observation and a stored one give the same columns. Camera images and parameters (``sensor_data``, ``sensor_param``)
    are not part of the state.

    Args:
        observation: nested mapping whose entries are tensors, arrays or HDF5 datasets of shape ``[N]`` or
            ``[N, d]``, with N environments (or frames) in common.

    Returns:
        A float32 tensor ``[N, D]``; D counts one for each entry of shape ``[N]``. It shares no memory with
        the input.

    Raises:
        ValueError: if there is no entry, or an entry is neither ``[N]`` nor ``[N, d]``.

    Examples:
        >>> agent, extra = {"qpos": torch.zeros(2, 3)}, {"is_grasped": torch.tensor([True, False])}
        >>> flatten_state({"extra": extra, "agent": agent})
        tensor([[0., 0., 0., 1.],
                [0., 0., 0., 0.]])
    """
    columns: list[Tensor] = []
    for group in STATE_GROUPS:
        for path, value in _leaves(observation.get(group, {}), (group,)):
            entry = torch.as_tensor(value[...])
            if entry.ndim not in (1, 2):
                raise ValueError(
                    f"observation entry {'/'.join(path)} has shape {tuple(entry.shape)}: a state entry "
                    "must be [N] or [N, d]; leave images out of `agent` and `extra`."
                )
            columns.append(entry.reshape(entry.shape[0], -1).to(torch.float32))
    if not columns:
        raise ValueError(
            f"observation has the groups {sorted(observation)} and no entry under `agent` or `extra`: "
            "nothing to make a state vector of."
        )
    return torch.cat(columns, dim=-1)
