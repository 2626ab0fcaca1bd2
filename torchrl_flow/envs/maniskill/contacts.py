"""Contact impulses of many SAPIEN systems, gathered in one pass per step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

__all__ = ["ContactImpulses"]


class _Query:
    """A query of impulses that ManiSkill evaluates at every step; ``cuda_impulses.torch()`` is ``[n, 3]``."""

    def __init__(self, asked: Sequence[Any], between_pairs: bool) -> None:
        self.asked = list(asked)  # keeps the bodies alive, so that their ids stay valid
        self.between_pairs = between_pairs
        self.total = np.zeros((len(self.asked), 3))
        self.tensor = torch.zeros(len(self.asked), 3)
        self.cuda_impulses = SimpleNamespace(torch=lambda: self.tensor)
        self.members = set() if between_pairs else {id(body) for body in self.asked}


class ContactImpulses:
    """Sums of contact impulses as in ManiSkill's single environment, for all queries and systems at once.

    Args:
        systems: ``PhysxCpuSystem`` of each sub-environment; the list may change.
    """

    def __init__(self, systems: list[Any]) -> None:
        self._systems = systems
        self._queries: weakref.WeakSet[_Query] = weakref.WeakSet()
        self._pairs: dict[tuple[int, int], list[tuple[_Query, int, float]]] = {}
        self._bodies: dict[int, list[tuple[_Query, int]]] = {}
        self._known = False

    def pair_query(self, pairs: Sequence[tuple[Any, Any]]) -> _Query:
        """Make a query of the impulse on the first body of each pair from the second."""
        return self._add(_Query(pairs, True))

    def body_query(self, bodies: Sequence[Any]) -> _Query:
        """Make a query of the sums of the impulses on each body."""
        return self._add(_Query(bodies, False))

    def _add(self, query: _Query) -> _Query:
        self._queries.add(query)
        self._pairs.clear()
        self._bodies.clear()
        for known in self._queries:
            for index, asked in enumerate(known.asked):
                if known.between_pairs:
                    first, second = map(id, asked)
                    self._pairs.setdefault((first, second), []).append((known, index, 1.0))
                    self._pairs.setdefault((second, first), []).append((known, index, -1.0))
                else:
                    self._bodies.setdefault(id(asked), []).append((known, index))
        self._known = False
        return query

    def forget(self) -> None:
        """Mark the impulses as outdated: the simulation made a step."""
        self._known = False

    def fill(self, query: _Query) -> None:
        """Write the impulses of the last step into the query."""
        if not self._known:
            self._gather()
        query.tensor.copy_(torch.from_numpy(query.total))

    def _gather(self) -> None:
        self._known = True
        for query in self._queries:
            query.total[:] = 0
        pairs, bodies = self._pairs, self._bodies
        for system in self._systems:
            for contact in system.get_contacts():
                first, second = map(id, contact.bodies)
                asked = pairs.get((first, second), ())
                of_first, of_second = bodies.get(first, ()), bodies.get(second, ())
                if not (asked or of_first or of_second):
                    continue
                impulse = np.sum([point.impulse for point in contact.points], axis=0)
                for query, index, sign in asked:
                    query.total[index] += impulse * sign
                for query, index in of_first:
                    query.total[index] += impulse
                for query, index in of_second:
                    # For a contact between two queried bodies, ManiSkill counts the impulse on the first body.
                    if first not in query.members:
                        query.total[index] -= impulse
