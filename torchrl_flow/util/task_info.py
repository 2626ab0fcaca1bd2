"""The identity of the task of an environment, a checkpoint or demonstrations."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torchrl_flow.util.plain_config import PlainConfig

__all__ = ["TaskInfo"]

_TEXTS = ("task", "control_mode", "obs_mode", "reward_mode", "robot_uids", "sim_backend", "name")
_NUMBERS = ("max_episode_steps", "state_dim", "action_dim")
_SIMILAR = 0.8
"""Similarity, from 0 to 1, above which an unknown name counts as a misspelt field."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TaskInfo(PlainConfig, Mapping[str, Any]):
    """Identity of a task.

    Checkpoints, runs and demo stores contain one. It is compared with the environment's before a policy or
    demonstrations are used (``differing_fields`` of ``torchrl_flow.util.differences`` lists the fields that differ).

    Every field may be None: the value is unknown, or the task has no such value (``pixels_size`` of a task without
    images). ``recorded`` distinguishes the two cases. Comparisons skip fields that are not recorded.

    An object is also a read-only mapping, with the entries of :meth:`to_dict`: ``info["task"]``, ``info.get("name")``,
    ``{**info}``. It equals a mapping with the same entries. Functions with a task argument also accept a mapping, and
    convert it by :meth:`of`.

    Raises:
        ValueError: if a field has a value that is not allowed.

    Examples:
        >>> info = TaskInfo(task="planar", obs_mode="state", state_dim=12, details={"gravity": 0.0})
        >>> info.obs_mode, info["state_dim"], "control_mode" in info
        ('state', 12, False)
        >>> info.to_dict()
        {'task': 'planar', 'obs_mode': 'state', 'state_dim': 12, 'gravity': 0.0}
        >>> TaskInfo.from_dict(info.to_dict()) == info
        True
        >>> TaskInfo.from_dict({"task": "planar", "contol_mode": "velocity"})
        Traceback (most recent call last):
        ValueError: unknown field 'contol_mode' in a TaskInfo. Did you mean control_mode? ...
    """

    task: str | None = None
    """Name of the task: ``"planar"``, the id of a ManiSkill task, a function ``"my_package:make_env"``, a slate
    environment, or a user-defined name. A non-empty text."""
    control_mode: str | None = None
    """Control mode: ``"pd_ee_delta_pose"`` and the other controllers of ManiSkill, ``"delta_position"`` of the planar
    task, or a user-defined name. A non-empty text."""
    obs_mode: str | None = None
    """Observation mode: ``"state"``, ``"rgb"``, ``"rgb+state"``, or another mode of the environment. A
    non-empty text."""
    max_episode_steps: int | None = None
    """Time limit of an episode, in environment steps, at least 1."""
    reward_mode: str | None = None
    """Reward mode: ``"sparse"``, ``"dense"``, ``"normalized_dense"``, or another mode of the environment. A
    non-empty text."""
    state_dim: int | None = None
    """D, length of the vector ``observation``, at least 1."""
    pixels_size: tuple[int, int] | None = None
    """Height and width of the images ``pixels``, in pixels, each at least 1; None without images."""
    action_dim: int | None = None
    """A, length of the vector ``action``, at least 1."""
    robot_uids: str | None = None
    """Robots of a ManiSkill task. A non-empty text."""
    sim_backend: str | None = None
    """Simulation of a ManiSkill task: ``"physx_cpu"`` or ``"physx_cuda"``. A non-empty text."""
    name: str | None = None
    """Task name of a user-defined environment, whose ``task`` is the function that makes it. A non-empty text."""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further JSON-able entries that distinguish tasks of one kind, such as the geometry of the planar task."""
    recorded: frozenset[str] = frozenset()
    """Names of the recorded fields, whose values may be None. A field that is not None is always recorded."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in _TEXTS:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(
                    f"{name} of a task must be a text that is not empty, or None if it is unknown, got {value!r}."
                )
        for name in _NUMBERS:
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        if self.pixels_size is not None:
            object.__setattr__(self, "pixels_size", _pixels_size(self.pixels_size))
        fields = _fields()
        wrong = [name for name in self.details if not isinstance(name, str) or name in fields]
        if wrong:
            raise ValueError(
                f"names of details must be texts, and no fields of a TaskInfo, got {wrong}: give a field as an "
                "argument of its own."
            )
        object.__setattr__(self, "details", copy.deepcopy(dict(self.details)))
        unknown = sorted(map(str, set(self.recorded) - set(fields)))
        if unknown:
            raise ValueError(f"recorded must name fields of a TaskInfo, {list(fields)}, got {unknown}.")
        given = {name for name in fields if getattr(self, name) is not None}
        object.__setattr__(self, "recorded", frozenset(self.recorded) | given)

    def to_dict(self) -> dict[str, Any]:
        """Return the recorded fields and the details as one flat mapping of JSON-able values."""
        fields = {name: getattr(self, name) for name in _fields() if name in self.recorded}
        if self.pixels_size is not None:
            fields["pixels_size"] = list(self.pixels_size)
        return {**fields, **copy.deepcopy(dict(self.details))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, complete: bool = False) -> TaskInfo:
        """Rebuild an identity from :meth:`to_dict` or another mapping; names that are not fields become details.

        Args:
            values: fields and details.
            complete: raise an error if a field is missing. Defaults to False.

        Raises:
            ValueError: if a name is probably a misspelt field, a required field is missing, or a field has a value that
                is not allowed.
        """
        missing = [name for name in _fields() if name not in values]
        if complete and missing:
            raise ValueError(f"a {cls.__name__} lacks the fields {missing}.")
        for name in values:
            similar = difflib.get_close_matches(str(name), missing, n=1, cutoff=_SIMILAR)
            if name not in _fields() and similar:
                raise ValueError(
                    f"unknown field {name!r} in a {cls.__name__}. Did you mean {similar[0]}? Known are "
                    f"{list(_fields())}. If it is a detail of your own, rename it, or pass "
                    f"{cls.__name__}(..., details={{{name!r}: ...}})."
                )
        return cls.of_file(values)

    @classmethod
    def of_file(cls, values: Mapping[str, Any]) -> TaskInfo:
        """Read the identity in a file; names that are not fields become details, without a check for misspelt fields.

        Args:
            values: result of :meth:`to_dict`, also of an older version. Missing fields are not recorded.

        Raises:
            ValueError: if a field has a value that is not allowed.
        """
        fields: dict[str, Any] = {name: values[name] for name in _fields() if name in values}
        details = {name: value for name, value in values.items() if name not in fields}
        return cls(**fields, details=details, recorded=frozenset(fields))

    @classmethod
    def of(cls, task: Mapping[str, Any] | None) -> TaskInfo:
        """Convert the task argument of a function; a :class:`TaskInfo` is returned unchanged.

        Args:
            task: identity of a task, a mapping of its fields and details, or None, which gives an identity without
                recorded fields.

        Raises:
            ValueError: as :meth:`from_dict`, or if ``task`` is not a mapping.
        """
        if isinstance(task, cls):
            return task
        if task is not None and not isinstance(task, Mapping):
            raise ValueError(f"a task must be a TaskInfo or a mapping of its fields, got a {type(task).__name__}.")
        return cls.from_dict(task or {})

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == dict(other) if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other} if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self} if isinstance(other, Mapping) else NotImplemented

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.items())})"


def _fields() -> tuple[str, ...]:
    """Return the names of the fields that are entries of the flat mapping."""
    return tuple(field.name for field in dataclasses.fields(TaskInfo) if field.name not in ("details", "recorded"))


def _size(name: str, value: Any) -> int | None:
    """Return a size as an ``int``."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} of a task must be a whole number of at least 1, or None if unknown, got {value!r}.")
    return number


def _pixels_size(value: Any) -> tuple[int, int]:
    """Return height and width as two ``int``."""
    entries = list(value) if isinstance(value, (list, tuple)) else []
    if len(entries) != 2:
        raise ValueError(f"pixels_size of a task must be (height, width), or None without images, got {value!r}.")
    height, width = (_size("pixels_size", entry) for entry in entries)
    if height is None or width is None:
        raise ValueError(f"pixels_size of a task must be (height, width), or None without images, got {value!r}.")
    return height, width
