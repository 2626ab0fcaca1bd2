"""Conversion of logged transitions to episodes, from which action chunks are sampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from torchrl_flow.data.demos.episode import Episode
from torchrl_flow.data.logged.npz import read_npz

__all__ = ["read_npz_episodes"]


def read_npz_episodes(path: str | Path) -> Iterator[Episode]:
    """Read the episodes of an ``.npz`` file of transitions, such as those of D4RL, one after the other.

    An episode ends at a row of ``terminals`` or ``timeouts``, and where the next observation differs from the
    observation of the following row. Terminal rows (such as the fall of a robot) are terminated; other ends are
    truncated. Without ``next_observations``, a truncated episode ends with the observation of its last row, whose
    action is left out because its result is unknown; the observation of a terminal row is repeated, since TD targets do
    not use it.

    Give the result to :meth:`DemoStore.from_episodes <torchrl_flow.data.DemoStore.from_episodes>`.

    Args:
        path: file in the format of :func:`~torchrl_flow.data.read_npz`, with rows in temporal order.

    Yields:
        Episodes with ``observation``, ``action``, ``reward`` and ``terminated``; success is not known.

    Raises:
        DataError: as :func:`~torchrl_flow.data.read_npz`.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> arrays = {"observations": np.arange(5.0)[:, None], "actions": np.zeros((5, 1)), "rewards": np.ones(5)}
        >>> ends = {"terminals": np.array([0, 1, 0, 0, 0]), "timeouts": np.array([0, 0, 0, 0, 1])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", **arrays, **ends)
        ...     episodes = list(read_npz_episodes(f"{folder}/a.npz"))
        >>> [(episode.frames["observation"].squeeze(-1).tolist(), episode.terminated.tolist()) for episode in episodes]
        [([0.0, 1.0, 1.0], [False, True]), ([2.0, 3.0, 4.0], [False, False])]
    """
    rows, _ = read_npz(path)
    observation, following = rows["observation"], rows["next", "observation"]
    terminated = rows["next", "terminated"].squeeze(-1)
    goes_on = torch.zeros(len(rows), dtype=torch.bool)
    goes_on[:-1] = (following[:-1] == observation[1:]).all(-1)
    ends = rows["next", "done"].squeeze(-1) | ~goes_on
    # Without next observations, "following" of a terminal row is the first observation of another episode.
    unknown = (terminated & goes_on).unsqueeze(-1)
    following = torch.where(unknown, observation, following)
    first = 0
    for number, last in enumerate(ends.nonzero().squeeze(-1).tolist()):
        part = slice(first, last + 1)
        frames: dict[str | tuple[str, ...], Tensor] = {
            "observation": torch.cat([observation[part], following[last : last + 1]])
        }
        never = torch.zeros(last + 1 - first, dtype=torch.bool)
        yield Episode(
            frames,
            action=rows["action"][part],
            reward=rows["next", "reward"][part],
            success=never,
            perturbed=never,
            terminated=terminated[part],
            name=f"{Path(path).name}, episode {number}",
        )
        first = last + 1
