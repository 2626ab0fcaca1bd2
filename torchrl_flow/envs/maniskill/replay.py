"""The mid-episode state of a ManiSkill environment, from which another process can continue.

PhysX keeps contact and friction caches between steps, which cannot be read. Poses and velocities are therefore not
sufficient to reproduce the next steps. With clean resets, an episode is a function of its start and its actions. Both
are recorded and replayed: the next steps are then equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["EpisodeLog"]


@dataclass
class _Reset:
    """A reset whose episode is still running in at least one sub-environment."""

    step: int
    rows: list[int]
    arguments: dict[str, Any]


class EpisodeLog:
    """Resets and actions of a batch since the start of its oldest running episode.

    Args:
        num_envs: number of sub-environments.
    """

    def __init__(self, num_envs: int) -> None:
        self._num_envs = num_envs
        self._resets: list[_Reset] = []
        self._actions: list[Tensor] = []
        self._first = 0  # step number of the first entry of ``_actions``

    def reset(self, rows: Sequence[int] | None, arguments: Mapping[str, Any]) -> None:
        """Record a reset of rows (``None``: of all) with its arguments."""
        rows = list(range(self._num_envs)) if rows is None else list(rows)
        self._resets.append(_Reset(self._first + len(self._actions), rows, dict(arguments)))
        covered: set[int] = set()
        needed = []
        for entry in reversed(self._resets):
            if not covered.issuperset(entry.rows):
                needed.append(entry)
            covered.update(entry.rows)
        self._resets = needed[::-1]
        oldest = self._resets[0].step
        self._actions = self._actions[oldest - self._first :]
        self._first = oldest

    def step(self, action: Tensor) -> None:
        """Record an action ``[num_envs, A]``."""
        self._actions.append(action.detach().cpu().clone())

    def state_dict(self) -> dict[str, Any]:
        """Return resets and actions; the step numbers of resets are relative to the first action."""
        resets = [{"step": r.step - self._first, "rows": r.rows, "arguments": r.arguments} for r in self._resets]
        return {"resets": resets, "actions": torch.stack(self._actions) if self._actions else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the resets and actions of :meth:`state_dict`."""
        self._first = 0
        self._resets = [_Reset(int(r["step"]), list(r["rows"]), dict(r["arguments"])) for r in state["resets"]]
        actions = state["actions"]
        self._actions = [] if actions is None else list(actions.unbind(0))

    def play(self, reset: Any, step: Any) -> None:
        """Repeat the recorded resets and actions.

        Args:
            reset: function called with the rows and the arguments of each reset.
            step: function called with each action.
        """
        waiting = list(self._resets)
        for number in range(len(self._actions) + 1):
            while waiting and waiting[0].step - self._first == number:
                entry = waiting.pop(0)
                reset(entry.rows if len(entry.rows) < self._num_envs else None, entry.arguments)
            if number < len(self._actions):
                step(self._actions[number])
