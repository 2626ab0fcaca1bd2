"""TorchRL replay buffer of logged transitions in ``.npz`` files, from the slate recommender or in D4RL's format."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import TensorStorage

from torchrl_flow.data.checks.safe_replay import CheckedReplayBuffer
from torchrl_flow.data.demos.statistics import column_statistics
from torchrl_flow.data.errors import DataError, DataWarning
from torchrl_flow.data.logged.npz_file import npz_metadata, open_npz, read_member
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.numbers import first_implausible
from torchrl_flow.util.signature import InitSignature

__all__ = ["NpzReplayBuffer", "read_npz", "read_npz_metadata"]

REQUIRED = ("observations", "actions", "rewards")
OPTIONAL = ("terminals", "next_observations", "timeouts")
ALIASES = {"terminated": "terminals", "truncated": "timeouts"}
"""Alternative names of arrays, as in Gymnasium."""
VECTORS = ("rewards", "terminals", "timeouts")
"""Arrays with one number per row."""


def read_npz(path: str | Path, *, hashes: Mapping[str, str] | None = None) -> tuple[TensorDict, dict[str, Any]]:
    """Read and check transitions without unpickling.

    Numbers of any type become float32. A :class:`DataWarning` reports missing information: without ``terminals`` no
    state counts as terminal, and without both ``next_observations`` and ``timeouts`` the ends of truncated episodes are
    unknown.

    Args:
        path: file with ``observations [N, D]``, ``actions [N, A]``, ``rewards [N]`` (or ``[N, 1]``) and, optionally,
            ``terminals [N]`` (or ``terminated``), ``next_observations [N, D]`` and ``timeouts [N]`` (or ``truncated``).
            Without ``next_observations`` the observation of the following row is used, and rows followed by another
            episode are left out unless they are terminal.
        hashes: hashes of the models of the environment; the file must have the same ones.

    Returns:
        transitions ``[N]`` in TorchRL's keys, where ``terminated`` is the terminals, ``truncated`` the timeouts and
        ``done`` both; and the file's metadata.

    Raises:
        DataError: if the file is missing, damaged or no ``.npz``, an array is missing, of another shape or type,
            not finite or above 1e9 in size, or a hash differs.
    """
    path = Path(path)
    with open_npz(path) as file:
        metadata = npz_metadata(path, file)
        _check_hashes(path, metadata, hashes)
        arrays = {name: _array(path, file, name) for name in (*REQUIRED, *OPTIONAL) if name in file.files}
        others = sorted(set(file.files) - set(arrays) - set(ALIASES))
        for alias, name in ALIASES.items():
            if alias in file.files and name in arrays:
                raise DataError(f"{path} has both {alias!r} and {name!r}, which are the same: leave one out.")
            if alias in file.files:
                arrays[name] = _array(path, file, alias)
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        found = f"; it holds {others[:6]}" if others else ""
        raise DataError(
            f"{path} lacks {missing}; transitions need {list(REQUIRED)}, and may have {list(OPTIONAL)}{found}."
        )
    _check_shapes(path, arrays)
    _warn_unknown(path, arrays)
    return _transitions(path, arrays), metadata


def read_npz_metadata(path: str | Path) -> dict[str, Any]:
    """Read only the metadata of a file; return an empty mapping if it has none.

    Raises:
        DataError: if the metadata cannot be read.
    """
    with open_npz(path) as file:
        return npz_metadata(Path(path), file)


def _check_hashes(path: Path, metadata: Mapping[str, Any], hashes: Mapping[str, str] | None) -> None:
    if hashes is None:
        return
    found = metadata.get("hashes") or {}
    if not isinstance(found, dict):
        raise DataError(f"`hashes` in the metadata of {path} must be an object, got {found!r}.")
    form = "{name}: {found} in the file, {wanted} here"
    differing = differing_fields(found, hashes, hashes, form=form, absent="none")
    if differing:
        raise DataError(
            f"{path} was made with other models than the environment's, so that its observations and actions "
            f"have another meaning. {'; '.join(differing)}. Convert its slates and clicks with `python -m "
            "torchrl_flow relabel-slates`."
        )


def _array(path: Path, file: Any, name: str) -> Tensor:
    array = read_member(path, file, name)
    flags = ALIASES.get(name, name) in ("terminals", "timeouts")
    if array.dtype.kind not in ("fiub" if flags else "fiu"):
        raise DataError(f"{name!r} in {path} must hold numbers, got type {array.dtype}.")
    if flags:
        if not np.isin(array, (0, 1)).all():
            raise DataError(f"{name!r} in {path} must hold 0 and 1 alone.")
        return torch.from_numpy(array.astype(bool))
    with np.errstate(over="ignore"):  # values beyond float32 become infinite; the error then names their row
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).reshape(array.shape)
    found = first_implausible(tensor)
    if found is not None:
        place, what = found
        value = array[place] if place else array
        where = f" (row {place[0]}{f', column {place[1]}' if len(place) > 1 else ''})" if place else ""
        raise DataError(f"{name!r} in {path} holds values that are {what} in float32: {value}{where}.")
    return tensor


def _check_shapes(path: Path, arrays: dict[str, Tensor]) -> None:
    for name in VECTORS:
        if name in arrays and arrays[name].ndim == 2 and arrays[name].shape[1] == 1:
            arrays[name] = arrays[name].squeeze(1)
    shape = arrays["observations"].shape
    number = shape[0] if shape else 0
    for name, array in arrays.items():
        dims = 1 if name in VECTORS else 2
        if array.ndim != dims or len(array) != number or not array.numel():
            columns = "[N]" if dims == 1 else "[N, D]"
            hint = (
                " A single continuous number is [N, 1]; discrete actions are not supported."
                if array.ndim < dims
                else ""
            )
            raise DataError(
                f"{name!r} in {path} must have shape {columns} with N = {number} > 0 rows, as many as observations, "
                f"got {list(array.shape)}.{hint}"
            )
    following = arrays.get("next_observations")
    if following is not None and following.shape != arrays["observations"].shape:
        raise DataError(
            f"next_observations in {path} have shape {list(following.shape)}, observations "
            f"{list(arrays['observations'].shape)}."
        )


def _warn_unknown(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Warn of information that is unknown because arrays are missing."""
    if "terminals" not in arrays:
        warnings.warn(
            f"{path} has no terminals: no state counts as an end of the task, and values are bootstrapped at "
            "every end of an episode.",
            DataWarning,
            stacklevel=4,
        )
    if "next_observations" not in arrays and "timeouts" not in arrays:
        terminals = arrays.get("terminals")
        ends = 0 if terminals is None else int(terminals.sum())
        warnings.warn(
            f"{path} has neither next_observations nor timeouts: of its {len(arrays['observations'])} rows {ends} are "
            "marked as terminal, and nothing marks other ends of episodes. The row before such an end is taken for a "
            "transition to the first observation of the next episode. Add timeouts (1 at the last row of an episode "
            "that is cut off) or next_observations.",
            DataWarning,
            stacklevel=4,
        )


def _transitions(path: Path, arrays: dict[str, Tensor]) -> TensorDict:
    observation = arrays["observations"]
    never = torch.zeros(len(observation), dtype=torch.bool)
    terminated = arrays.get("terminals", never)
    truncated = arrays.get("timeouts", never) & ~terminated
    following = arrays.get("next_observations")
    rows = slice(None)
    if following is None:
        following = torch.cat([observation[1:], observation[-1:]])
        usable = ~truncated
        usable[-1] &= terminated[-1]
        rows = usable.nonzero().squeeze(-1)
        if not len(rows):
            raise DataError(f"{path} has no next_observations and no row whose next observation is known.")
    following = TensorDict(
        {
            "observation": following[rows],
            "reward": arrays["rewards"][rows].unsqueeze(-1),
            "terminated": terminated[rows].unsqueeze(-1),
            "truncated": truncated[rows].unsqueeze(-1),
            "done": (terminated | truncated)[rows].unsqueeze(-1),
        }
    )
    data = TensorDict({"observation": observation[rows], "action": arrays["actions"][rows], "next": following})
    return data.auto_batch_size_(1)


class NpzReplayBuffer(CheckedReplayBuffer):
    """TorchRL replay buffer of the transitions of an ``.npz`` file; it uses the arrays without a copy.

    Args:
        path: see :func:`read_npz`.

    Keyword Args:
        batch_size: rows of a sample.
        hashes: hashes of the models of the environment; the file must have the same ones.
        action_low: lower bound ``[A]`` of the actions. If both bounds are given, actions are clamped to them and mapped
            to [-1, 1].
        action_high: upper bound ``[A]``.
        device: device of the transitions.
        **kwargs: passed to TorchRL's buffer.

    Raises:
        DataError: see :func:`read_npz`; or if the bounds do not fit the actions.

    Attributes:
        metadata: metadata of the file.
        clamped: share of the action components that were outside the bounds.

    Examples:
        >>> import tempfile
        >>> arrays = {"observations": np.zeros((5, 3)), "actions": np.zeros((5, 2)), "rewards": np.ones(5)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", **arrays, terminals=np.array([0, 0, 1, 0, 1]), timeouts=np.zeros(5))
        ...     data = NpzReplayBuffer(f"{folder}/a.npz", batch_size=4)
        >>> len(data), data.sample()["next", "observation"].shape
        (5, torch.Size([4, 3]))
    """

    __signature__ = InitSignature()

    def __init__(
        self,
        path: str | Path,
        *,
        batch_size: int = 256,
        hashes: Mapping[str, str] | None = None,
        action_low: Tensor | None = None,
        action_high: Tensor | None = None,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> None:
        data, self.metadata = read_npz(path, hashes=hashes)
        self.clamped = 0.0
        if action_low is not None and action_high is not None:
            data["action"] = self._in_box(data["action"], action_low, action_high)
        elif action_low is not None or action_high is not None:
            raise DataError("give both action_low and action_high, or neither.")
        self.transitions = data.to(device)
        super().__init__(storage=TensorStorage(self.transitions), batch_size=batch_size, **kwargs)

    def _in_box(self, action: Tensor, low: Tensor, high: Tensor) -> Tensor:
        if not low.shape == high.shape == action.shape[1:] or not (low < high).all():
            raise DataError(
                f"action_low and action_high must have shape {list(action.shape[1:])}, the first below the second, got "
                f"{list(low.shape)} and {list(high.shape)}."
            )
        scaled = (action - 0.5 * (high + low)) / (0.5 * (high - low))
        self.clamped = float((scaled.abs() > 1 + 1e-6).float().mean())
        return scaled.clamp(-1.0, 1.0)

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Return statistics of observations and actions, for the normalisers of a policy."""
        return {name: column_statistics(self.transitions[name].cpu()) for name in ("observation", "action")}
