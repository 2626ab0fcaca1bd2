"""The memory-mapped format of demonstrations on disk, written by every reader and read by every buffer."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_flow.data.demos.episode import STEP_KEYS, Episode
from torchrl_flow.data.demos.store_files import TABLES, check_files, damaged, read_metadata
from torchrl_flow.data.demos.writer import StoreWriter, store_statistics
from torchrl_flow.data.errors import DataError, DataWarning
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["DemoStore"]

TASK_KEYS = ("task", "control_mode", "obs_mode", "max_episode_steps", "reward_mode")


class DemoStore:
    """Episodes as three memory-mapped TensorDicts.

    - ``frames`` ``[N + E]``: ``observation``, ``pixels`` and other frames, T + 1 rows for an episode of T
      steps;
    - ``steps`` ``[N]``: ``action`` ``[N, A]``, ``reward``, ``success``, ``perturbed``, ``fail`` and ``terminated``
      ``[N, 1]`` (older stores lack the last two: they have no failure, and terminate only at success), ``episode`` and
      ``step`` ``[N]``;
    - ``episodes`` ``[E]``: ``start`` (its first row of ``steps``), ``length``, ``seed``, ``success``.

    The frame of step row i is row ``i + steps["episode"][i]``. Rows are read only when indexed, and nothing is pickled.
    Make a store with :meth:`from_episodes`, or with :func:`~torchrl_flow.data.read_maniskill` from ManiSkill's files;
    open an existing store with :meth:`open`.

    Examples:
        >>> import tempfile, torch
        >>> episode = {"observation": torch.rand(5, 3), "action": torch.rand(4, 2), "seed": 7}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = DemoStore.from_episodes([episode], folder + "/demos", task_info={"task": "toy"})
        >>> len(store), store.num_episodes, store.statistics()["action"]["mean"].shape
        (4, 1, torch.Size([2]))
    """

    def __init__(self, root: Path, metadata: dict[str, Any], tables: Mapping[str, TensorDictBase]) -> None:
        self.root = root
        self.metadata = metadata
        self.frames, self.steps, self.episodes = tables["frames"], tables["steps"], tables["episodes"]

    @classmethod
    def open(cls, root: str | Path, *, verify: bool | None = None) -> DemoStore:
        """Open a store, after checking its files against its metadata.

        Args:
            root: directory of the store.
            verify: True reads all files and compares their checksums, False compares none, and None compares the
                checksums of files that changed since the last check (after a copy, all files once).

        Raises:
            DataError: if the store is missing, has another format or version, or is damaged.
        """
        root = Path(root)
        metadata = read_metadata(root)
        check_files(root, metadata, verify)
        try:
            tables = {name: TensorDict.load_memmap(root / name, allow_pickle=False) for name in TABLES}
            store = cls(root, metadata, tables)
            _check_episodes(store)
            _ = store.task_info  # raises an error if a field is invalid
        except PermissionError:  # not damage; the error names the file
            raise
        except (KeyError, IndexError, RuntimeError, ValueError, TypeError, OSError) as error:
            raise damaged(root, str(error)) from error
        return store

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Mapping[str, Any] | TensorDictBase | Episode],
        root: str | Path,
        *,
        task_info: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        skip_bad: bool = False,
    ) -> DemoStore:
        """Write episodes to a new store, one after the other, and open it.

        Args:
            episodes: episodes in the form of :meth:`Episode.from_mapping`. With a generator, only one episode at a time
                is in memory.
            root: directory of the store; it must not exist.
            task_info: identity of the task, a :class:`~torchrl_flow.envs.TaskInfo` or a mapping of its known fields.
            metadata: further JSON-able entries; ``skipped`` lists episodes that a reader left out.
            overwrite: replace an existing demo store. Other files and directories are never removed.
            skip_bad: leave out episodes that do not fit, with a warning, instead of raising.

        Raises:
            DataError: if ``root`` exists, an episode does not fit (see ``skip_bad``), or none is left.
        """
        root = Path(root)
        if root.exists():
            if not overwrite:
                raise DataError(f"{root} already exists: open it with DemoStore.open, or pass overwrite=True.")
            read_metadata(root)
        content = {**dict.fromkeys(TASK_KEYS), **TaskInfo.of(task_info), **(metadata or {})}
        skipped: list[str] = content.pop("skipped", [])  # the reader behind a generator may add to it
        with StoreWriter(root) as writer:
            for number, data in enumerate(episodes):
                try:
                    name = f"episode {number}"
                    episode = data if isinstance(data, Episode) else Episode.from_mapping(data, name)
                    writer.append(episode)
                except DataError as error:
                    if not skip_bad:
                        raise
                    skipped.append(str(error))
            _warn_skipped(root, skipped)
            writer.finish({**content, "skipped": skipped}, overwrite=overwrite)
        return cls.open(root)

    @classmethod
    def from_maniskill(cls, path: str | Path, root: str | Path | None = None, **options: Any) -> DemoStore:
        """Read a ManiSkill trajectory file; the older name of :func:`~torchrl_flow.data.read_maniskill`."""
        message = (
            "DemoStore.from_maniskill is torchrl_flow.data.read_maniskill now; the old name goes with version 0.3."
        )
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return importlib.import_module("torchrl_flow.data.demos.maniskill").read_maniskill(path, root, **options)

    @property
    def num_episodes(self) -> int:
        """Number of episodes, E."""
        return self.episodes.shape[0]

    @property
    def num_steps(self) -> int:
        """Number of steps of all episodes, N; also ``len(store)``."""
        return self.steps.shape[0]

    @property
    def task_info(self) -> TaskInfo:
        """``task``, ``control_mode``, ``obs_mode``, ``max_episode_steps``, ``reward_mode``; None where unknown."""
        return TaskInfo.of_file({key: self.metadata.get(key) for key in TASK_KEYS})

    @property
    def sizes(self) -> dict[str, Any]:
        """``state_dim``, ``pixels_size`` (``[h, w]``) and ``action_dim`` of the rows; None for missing entries."""
        state, pixels = self.frames.get("observation", None), self.frames.get("pixels", None)
        return {
            "state_dim": None if state is None else state.shape[-1],
            "pixels_size": None if pixels is None else list(pixels.shape[-2:]),
            "action_dim": self.steps["action"].shape[-1],
        }

    def step_flag(self, name: str) -> Tensor:
        """Return ``success``, ``fail``, ``terminated`` or ``perturbed`` of all steps, bool ``[N]``, in memory."""
        value = self.steps.get(name, None)
        if value is None:
            value = self.steps["success"] if name == "terminated" else torch.zeros(len(self), 1, dtype=torch.bool)
        return value.as_subclass(Tensor).reshape(-1).clone()

    @property
    def has_success(self) -> bool:
        """Whether ``success`` was recorded; otherwise it is false at every step."""
        return bool(self.metadata.get("has_success", True))

    def sparse_reward(self) -> Tensor:
        """Return the reward of ManiSkill's sparse mode at each step, success minus failure, float32 ``[N]``."""
        return self.step_flag("success").to(torch.float32) - self.step_flag("fail").to(torch.float32)

    def first(self, num_episodes: int) -> DemoStore:
        """Return a store of the first episodes only, over the same files, with the statistics of these episodes.

        Args:
            num_episodes: number of episodes. A store with at most this number is returned unchanged.

        Raises:
            ValueError: if it is below 1.
        """
        if num_episodes < 1:
            raise ValueError(f"num_episodes must be at least 1, got {num_episodes}.")
        if num_episodes >= self.num_episodes:
            return self
        steps = int(self.episodes["start"][num_episodes])
        rows = {"frames": steps + num_episodes, "steps": steps, "episodes": num_episodes}
        tables = {name: cast(TensorDictBase, getattr(self, name)[:number]) for name, number in rows.items()}
        metadata = {
            **self.metadata,
            "num_episodes": num_episodes,
            "num_steps": steps,
            "statistics": store_statistics(tables["frames"], tables["steps"]),
        }
        return DemoStore(self.root, metadata, tables)

    @property
    def skipped(self) -> list[str]:
        """Reasons why episodes were left out, one entry for each episode."""
        return list(self.metadata.get("skipped", []))

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Return min, max, mean, std, q01, q99 of ``observation`` ``[D]`` and ``action`` ``[A]``, float32.

        They cover the steps: the frame after an episode's last action is left out.
        """
        return {
            key: {name: torch.tensor(value, dtype=torch.float32) for name, value in entry.items()}
            for key, entry in self.metadata["statistics"].items()
        }

    def episode(self, index: int) -> TensorDict:
        """Return one episode, in memory, in the form that :meth:`from_episodes` accepts.

        Args:
            index: number of the episode; a negative number counts from the end.

        Raises:
            IndexError: if there is no such episode.
        """
        if not -self.num_episodes <= index < self.num_episodes:
            raise IndexError(f"episode {index} of a store of {self.num_episodes} episodes.")
        index %= self.num_episodes
        start, length = int(self.episodes["start"][index]), int(self.episodes["length"][index])
        frames, steps = slice(start + index, start + index + length + 1), slice(start, start + length)
        out = TensorDict({}, batch_size=[])
        for key, value in self.frames.items(True, True):
            out.set(key, value.as_subclass(Tensor)[frames].clone())
        for key in STEP_KEYS:
            if (column := self.steps.get(key, None)) is not None:
                out.set(key, column.as_subclass(Tensor)[steps].clone())
        out.set("seed", self.episodes["seed"].as_subclass(Tensor)[index].clone())
        return out

    def __iter__(self) -> Iterator[TensorDict]:
        return (self.episode(index) for index in range(self.num_episodes))

    def __len__(self) -> int:
        return self.num_steps

    def __repr__(self) -> str:
        keys = [key if isinstance(key, str) else "/".join(key) for key in self.frames.keys(True, True)]
        task = self.metadata.get("task")
        return (
            f"DemoStore({str(self.root)!r}, task={task!r}, num_episodes={self.num_episodes}, "
            f"num_steps={self.num_steps}, successful={int(self.episodes['success'].sum())}, frames={keys})"
        )


def _check_episodes(store: DemoStore) -> None:
    length = store.episodes["length"]
    ends = length.cumsum(0)
    consistent = (
        bool((length > 0).all())
        and bool((store.episodes["start"] == ends - length).all())
        and int(ends[-1]) == store.num_steps == store.metadata["num_steps"]
        and store.frames.shape[0] == store.num_steps + store.num_episodes
    )
    if not consistent:
        raise RuntimeError("the lengths of its episodes do not add up")


def _warn_skipped(root: Path, skipped: list[str]) -> None:
    if skipped:
        shown = "; ".join(skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
        warnings.warn(f"{root.name}: {len(skipped)} episode(s) were left out: {shown}", DataWarning, stacklevel=3)


def warn_if_fewer(source: str | Path, found: int, wanted: int) -> None:
    """Warn if there are fewer episodes than requested."""
    if found < wanted:
        warnings.warn(
            f"{source}: {wanted} demonstrations were asked for and there are {found}; all of them are used.",
            DataWarning,
            stacklevel=4,
        )
