"""A replay buffer over demonstrations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor
from torchrl.data import ImmutableDatasetWriter, RandomSampler

from torchrl_flow.data.checks.safe_replay import CheckedReplayBuffer
from torchrl_flow.data.demos.chunks import ChunkStorage
from torchrl_flow.data.demos.maniskill import read_maniskill
from torchrl_flow.data.demos.maniskill_reader import ReadOptions
from torchrl_flow.data.demos.store import DemoStore, warn_if_fewer
from torchrl_flow.util.signature import InitSignature
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["DemoReplayBuffer", "load_demonstrations", "open_demonstrations"]

BUFFER_OPTIONS = ("sampler", "batch_size", "transform", "prefetch", "pin_memory", "generator")


def _identity(batch: Any) -> Any:
    return batch


class DemoReplayBuffer(CheckedReplayBuffer):
    """A read-only replay buffer of action chunks from a demo store.

    Samplers draw step indices, so ``len(buffer)`` is the number of steps, ``RandomSampler`` gives each step equal
    probability and ``SamplerWithoutReplacement`` draws each step once per epoch. Indices come from torch's global
    generator (or ``generator``): seed or restore it to repeat batches exactly. ``state_dict()`` holds the sampler's
    state and the identity of the data, not the data.

    Args:
        store: the demonstrations, or the directory of their store.

    Keyword Args:
        sampler, batch_size, transform, prefetch, pin_memory, generator: as in
            :class:`~torchrl.data.TensorDictReplayBuffer`. The sampler defaults to ``RandomSampler``.
        **chunk_options: horizons, discount and padding, as in :class:`~torchrl_flow.data.ChunkStorage`.

    Examples:
        >>> import tempfile, torch
        >>> data = {"observation": torch.rand(9, 3), "action": torch.rand(8, 2)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = DemoStore.from_episodes([data], folder + "/demos")
        ...     buffer = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2, batch_size=16)
        ...     batch = buffer.sample()
        >>> batch["observation"].shape, batch["action_chunk"].shape, batch["next", "reward"].shape
        (torch.Size([16, 1, 3]), torch.Size([16, 4, 2]), torch.Size([16, 1]))
    """

    __signature__ = InitSignature()

    def __init__(
        self,
        store: DemoStore | str | Path,
        *,
        pred_horizon: int,
        act_horizon: int,
        obs_horizon: int = 1,
        gamma: float = 0.99,
        **options: Any,
    ) -> None:
        store = store if isinstance(store, DemoStore) else DemoStore.open(store)
        buffer_options = {name: options.pop(name) for name in BUFFER_OPTIONS if name in options}
        if buffer_options.get("sampler") is None:
            buffer_options["sampler"] = RandomSampler()
        storage = ChunkStorage(
            store,
            pred_horizon=pred_horizon,
            act_horizon=act_horizon,
            obs_horizon=obs_horizon,
            gamma=gamma,
            **options,
        )
        super().__init__(storage=storage, writer=ImmutableDatasetWriter(), collate_fn=_identity, **buffer_options)
        self.store = store

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Return the store's statistics, for normalisers; see :meth:`DemoStore.statistics`."""
        return self.store.statistics()

    @property
    def task_info(self) -> TaskInfo:
        """Task, control mode and observation mode of the demonstrations."""
        return self.store.task_info

    @property
    def write_count(self) -> int:
        """Number of steps; it is constant."""
        return len(self.store)


def load_demonstrations(path: str | Path, *, root: str | Path | None = None, **options: Any) -> DemoReplayBuffer:
    """Make a replay buffer from a ManiSkill ``.h5`` file or the directory of a demo store.

    ``torchrl.data.datasets.load_dataset("maniskill:<path>", ...)`` calls this function.

    Args:
        path: trajectory ``.h5`` (with its ``.json``), or directory of a store.
        root: directory of the store of an ``.h5`` file; see :func:`~torchrl_flow.data.read_maniskill`.
        **options: reading options (:class:`~torchrl_flow.data.ReadOptions`; for a store only ``max_episodes``, which
            selects its first episodes), and options of :class:`DemoReplayBuffer`.

    Raises:
        DataError: if the file or store is refused.
        ValueError: if another reading option is given for a store.
    """
    names = [field.name for field in dataclasses.fields(ReadOptions)]
    reading = {name: options.pop(name) for name in names if name in options}
    return DemoReplayBuffer(open_demonstrations(path, root=root, **reading), **options)


def open_demonstrations(path: str | Path, *, root: str | Path | None = None, **reading: Any) -> DemoStore:
    """Read a ManiSkill ``.h5`` file or open a demo store; see :func:`load_demonstrations`."""
    if not Path(path).is_dir():
        return read_maniskill(path, root, **reading)
    wanted = reading.pop("max_episodes", None)
    given = [*reading, *(["root"] if root is not None else [])]
    if given:
        raise ValueError(f"{path} is a demo store, to which {given} do not apply: give them with the .h5 file.")
    store = DemoStore.open(path)
    if wanted is None:
        return store
    warn_if_fewer(path, store.num_episodes, wanted)
    return store.first(wanted)
