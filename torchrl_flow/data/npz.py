"""Logged transitions in ``.npz`` files, of the slate recommender or of D4RL's shape, as a TorchRL replay buffer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import TensorStorage

from torchrl_flow.data.archive_check import check_zip
from torchrl_flow.data.errors import DataError
from torchrl_flow.data.safe_replay import CheckedReplayBuffer
from torchrl_flow.data.statistics import column_statistics

__all__ = ["NpzReplayBuffer", "read_npz", "read_npz_metadata"]

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("next_observations", "timeouts")


def read_npz(path: str | Path, *, hashes: Mapping[str, str] | None = None) -> tuple[TensorDict, dict[str, Any]]:
    """Read transitions, checked, with nothing unpickled.

    Args:
        path: file with ``observations [N, D]``, ``actions [N, A]``, ``rewards [N]`` (or ``[N, 1]``), ``terminals [N]``
            and, where there are any, ``next_observations [N, D]`` and ``timeouts [N]``. Without
            ``next_observations`` the following row is taken, and rows whose following one is of another episode are
            left out unless they are terminal.
        hashes: hashes of the models that the environment uses; those of the file must be the same.

    Returns:
        transitions ``[N]`` in TorchRL's keys, where ``terminated`` is the terminals, ``truncated`` the timeouts and
        ``done`` both; and the file's metadata.

    Raises:
        DataError: if an array is missing, of another shape or type, or not finite, or a hash differs.
    """
    path = Path(path)
    with _open(path) as file:
        metadata = json.loads(str(file["metadata"])) if "metadata" in file.files else {}
        _check_hashes(path, metadata, hashes)
        arrays = {name: _array(path, file, name) for name in (*REQUIRED, *OPTIONAL) if name in file.files}
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {missing}; transitions need {list(REQUIRED)}, and may have {list(OPTIONAL)}.")
    _check_shapes(path, arrays)
    return _transitions(path, arrays), metadata


def read_npz_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a file alone; empty where it has none.

    Raises:
        DataError: if it cannot be read.
    """
    with _open(Path(path)) as file:
        return json.loads(str(file["metadata"])) if "metadata" in file.files else {}


def _open(path: Path) -> Any:
    try:
        file = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error
    if not hasattr(file, "files"):
        raise DataError(f"{path} is no .npz file: it holds a single array.")
    check_zip(file.zip, str(path))
    return file


def _check_hashes(path: Path, metadata: Mapping[str, Any], hashes: Mapping[str, str] | None) -> None:
    if hashes is None:
        return
    found = metadata.get("hashes", {})
    differing = [
        f"{n}: {found.get(n, 'none')} in the file, {wanted} here"
        for n, wanted in hashes.items()
        if found.get(n) != wanted
    ]
    if differing:
        raise DataError(
            f"{path} was made with other models than the environment's, so that its observations and actions mean "
            f"other things. {'; '.join(differing)}. Make it anew from its slates and clicks with "
            "`python -m torchrl_flow relabel-slates`."
        )


def _array(path: Path, file: Any, name: str) -> Tensor:
    try:
        array = file[name]
    except ValueError as error:  # an array of objects, which only pickle can read
        raise DataError(f"{name!r} in {path} is no plain array: {error}") from error
    if name in ("terminals", "timeouts"):
        values = array.astype(np.float64)
        if not np.isin(values, (0.0, 1.0)).all():
            raise DataError(f"{name!r} in {path} must hold 0 and 1 alone.")
        return torch.from_numpy(values.astype(bool))
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name!r} in {path} must hold numbers, got type {array.dtype}.")
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not tensor.isfinite().all():
        raise DataError(f"{name!r} in {path} holds values that are not finite.")
    return tensor


def _check_shapes(path: Path, arrays: dict[str, Tensor]) -> None:
    for name in ("rewards", "terminals", "timeouts"):
        if name in arrays and arrays[name].ndim == 2 and arrays[name].shape[1] == 1:
            arrays[name] = arrays[name].squeeze(1)
    number = len(arrays["observations"])
    for name, array in arrays.items():
        dims = 1 if name in ("rewards", "terminals", "timeouts") else 2
        if array.ndim != dims or len(array) != number or not number:
            raise DataError(
                f"{name!r} in {path} must have shape {'[N]' if dims == 1 else '[N, ...]'} with N = {number} > 0 rows, "
                f"got {list(array.shape)}."
            )
    following = arrays.get("next_observations")
    if following is not None and following.shape != arrays["observations"].shape:
        raise DataError(
            f"next_observations in {path} have shape {list(following.shape)}, observations "
            f"{list(arrays['observations'].shape)}."
        )


def _transitions(path: Path, arrays: dict[str, Tensor]) -> TensorDict:
    observation, terminated = arrays["observations"], arrays["terminals"]
    truncated = arrays.get("timeouts", torch.zeros_like(terminated)) & ~terminated
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
    """Transitions of an ``.npz`` file as TorchRL's own replay buffer, over the arrays themselves, without a copy.

    Args:
        path: see :func:`read_npz`.

    Keyword Args:
        batch_size: rows of a sample.
        hashes: hashes of the models that the environment uses, which the file must carry.
        action_low: lower bound ``[A]`` of a box; given both, actions are clamped to the box and mapped to [-1, 1].
        action_high: upper bound ``[A]``.
        device: where the transitions are kept.
        **kwargs: passed to TorchRL's buffer.

    Raises:
        DataError: see :func:`read_npz`; or if the bounds do not fit the actions.

    Attributes:
        metadata: of the file.
        clamped: share of the actions' components that were out of the box.

    Examples:
        >>> import tempfile
        >>> arrays = {"observations": np.zeros((5, 3)), "actions": np.zeros((5, 2)), "rewards": np.ones(5)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", **arrays, terminals=np.array([0, 0, 1, 0, 1]))
        ...     data = NpzReplayBuffer(f"{folder}/a.npz", batch_size=4)
        >>> len(data), data.sample()["next", "observation"].shape
        (5, torch.Size([4, 3]))
    """

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
        """Statistics of observations and actions, for the normalisers of a policy."""
        return {name: column_statistics(self.transitions[name].cpu()) for name in ("observation", "action")}
