"""A replay buffer of demonstrations and online data, with an exact share of each in every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, PrioritizedSampler, RandomSampler, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_flow.data.checks.safe_replay import CheckedReplayBuffer
from torchrl_flow.data.demos.chunks import ChunkStorage
from torchrl_flow.data.demos.replay import DemoReplayBuffer
from torchrl_flow.data.mixed.online_rows import StepRows, TransitionRows
from torchrl_flow.data.mixed.ratio_sampler import RatioSampler, RatioSchedule
from torchrl_flow.data.mixed.step_ring import StepRing
from torchrl_flow.data.mixed.storage import MixedStorage, OnlineWriter
from torchrl_flow.util.signature import InitSignature

__all__ = ["MixedReplayBuffer"]


def _identity(batch: Any) -> Any:
    return batch


class MixedReplayBuffer(CheckedReplayBuffer):
    """Replay buffer of read-only demonstrations and a ring of online data, with an exact share of each per batch.

    Every batch of B rows ends with exactly ``round(online_ratio * B)`` online rows (a half is rounded upwards); the
    rows before are demonstrations. All rows have the entries of demonstrations
    (:class:`~torchrl_flow.data.ChunkStorage`); ``is_demo`` distinguishes the two kinds. Otherwise this is a
    :class:`~torchrl.data.TensorDictReplayBuffer`: ``extend`` and ``add`` write online data, ``write_count`` counts it,
    ``len`` and indexing cover both parts, demonstrations first.

    Two kinds of online data are supported; ``ndim`` of the ring selects one:

    - ``ndim=1``, the default: **transitions** of an env with :class:`~torchrl_flow.envs.SMDPChunk`, of any batch shape,
      as a collector returns them. ``action_chunk`` is the policy's prediction, in which the executed actions replace
      the predicted ones; ``action_mask`` is True only for the k executed steps, since the other predicted actions were
      not executed. Each row is complete by itself, so no chunk crosses an episode.
    - ``ndim=2``: **steps** ``[*E, T]`` of an env with the observation history but without SMDPChunk (the policy in a
      :class:`~torchrl.modules.MultiStepActorWrapper`), stored time first and folded into chunks when they are drawn, as
      demonstrations are. This gives ``act_horizon`` times as many chunks, and all H steps of a chunk can be imitated,
      at the cost of one gather per batch. Chunks never cross episodes or environments. Draws are uniform
      (``RandomSampler``) over the chunks with at least ``act_horizon`` known steps.

    The cost of sampling does not depend on the size of either part. ``state_dict()`` and ``dumps()`` hold the online
    rows written so far, the writer, the samplers, the number of batches drawn and the generator, if one was given
    (otherwise restore torch's global one): the following batches are then bit-identical. Demonstrations are not saved;
    loading checks that they are the same.

    .. note:: With TorchRL's :class:`~torchrl.trainers.ReplayBufferTrainer`, leave ``flatten_tensordicts`` at False:
        if it is True, as in ``SACTrainer``, the hook marks every row as truncated before writing it.

    Args:
        demos: the demonstrations, as a buffer or its storage.

    Keyword Args:
        online: ring of the online rows: its number of rows, kept in memory, or a ``LazyTensorStorage`` or
            ``LazyMemmapStorage`` (``ndim=2`` for steps). Defaults to 100 000 rows.
        online_ratio: share of online rows, in [0, 1]; or a function of the number of batches drawn before, such as
            :class:`~torchrl_flow.data.LinearRatio`. Defaults to 0.5.
        if_empty: behaviour of ``sample`` while there are no online rows: ``"demos"`` draws only demonstrations, for
            offline training before the first collection; ``"error"`` raises an error. Defaults to ``"demos"``.
        demo_sampler: sampler of the demonstrations. Defaults to ``RandomSampler``.
        online_sampler: sampler of the online part. Defaults to ``RandomSampler``. Set the priorities of a
            :class:`~torchrl_flow.data.PrioritizedSampler` with ``update_priority``, or, for a batch with the entry
            ``priority_key``, with ``update_tensordict_priority``.
        online_keys: entries that online data has under another name: ``{key of the rows: key of the online data}``.
        exclude_keys: entries of the demonstrations that are left out of all rows.
        device: device of the batches. Defaults to the device of ``demos``.
        **options: ``batch_size``, ``transform``, ``prefetch``, ``pin_memory``, ``generator``, as in
            :class:`~torchrl.data.TensorDictReplayBuffer`.

    Raises:
        ValueError: if an argument is out of range; in ``extend``, if online data lacks an entry or has another shape.

    Examples:
        >>> import tempfile, torch
        >>> from torchrl_flow.data import DemoStore
        >>> episode = {"observation": torch.rand(9, 3), "action": torch.rand(8, 2)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = DemoStore.from_episodes([episode], folder + "/demos")
        ...     demos = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2)
        ...     buffer = MixedReplayBuffer(demos, online=1000, online_ratio=0.25, batch_size=8)
        ...     _ = buffer.extend(demos[:5])  # as a collector would
        ...     buffer.sample()["is_demo"].sum().item(), buffer.write_count, len(buffer)
        (6, 5, 13)
    """

    __signature__ = InitSignature()

    def __init__(
        self,
        demos: DemoReplayBuffer | ChunkStorage,
        *,
        online: int | TensorStorage = 100_000,
        online_ratio: float | RatioSchedule = 0.5,
        if_empty: Literal["demos", "error"] = "demos",
        demo_sampler: Sampler | None = None,
        online_sampler: Sampler | None = None,
        online_keys: Mapping[NestedKey, NestedKey] | None = None,
        exclude_keys: Sequence[NestedKey] = (),
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        storage = demos if isinstance(demos, ChunkStorage) else demos.storage
        if not isinstance(storage, ChunkStorage):
            raise ValueError(f"demos must be a DemoReplayBuffer or a ChunkStorage, got a {type(demos).__name__}.")
        fixed = sorted({"storage", "sampler", "writer", "collate_fn", "dim_extend"} & set(options))
        if fixed:
            raise ValueError(
                f"{fixed} are set by MixedReplayBuffer: give online, demo_sampler and online_sampler instead."
            )
        ring = _ring(online)
        steps = ring.ndim == 2
        if steps and not isinstance(online_sampler, (RandomSampler, type(None))):
            raise ValueError(f"chunks folded from steps are drawn by RandomSampler, got {online_sampler!r}.")
        self._make_rows = (StepRows if steps else TransitionRows)(storage, online_keys or {}, exclude_keys)
        part = StepRing(ring, storage, self._make_rows.leaves) if steps else ring
        super().__init__(
            storage=MixedStorage(storage, part, exclude_keys=exclude_keys, device=device),
            sampler=RatioSampler(
                demo_sampler or RandomSampler(),
                online_sampler or RandomSampler(),
                online_ratio=online_ratio,
                if_empty=if_empty,
            ),
            writer=OnlineWriter(),
            collate_fn=_identity,
            **options,
        )

    def extend(self, tensordicts: TensorDictBase, *, update_priority: bool | None = None) -> Tensor:
        """Write the transitions of a collector to the online part.

        Args:
            tensordicts: transitions of any batch shape, or steps ``[*E, T]``; time is the last dimension.
            update_priority: see :class:`~torchrl.data.TensorDictReplayBuffer`.

        Returns:
            The rows written, ``[N]``; of steps ``[T, E]``.

        Raises:
            ValueError: if an entry is missing or of another shape than in the demonstrations, or there are more
                rows than the ring has room for.
        """
        rows = self._make_rows(tensordicts)
        device = self._mixed.online.device
        if isinstance(device, torch.device):
            rows = rows.to(device)
        if rows.shape.numel() == 0:
            return torch.zeros(0, dtype=torch.int64)
        if rows.shape.numel() > self._mixed.online.max_size:
            raise ValueError(
                f"{rows.shape.numel()} rows in one call exceed the online part of {self._mixed.online.max_size}: "
                "raise online."
            )
        return super().extend(rows, update_priority=update_priority)

    def add(self, data: TensorDictBase) -> Any:
        """Write one transition, or one step of every environment; return its row or rows."""
        index = self.extend(data.unsqueeze(-1))
        return index if data.ndim else int(index.reshape(-1)[0])

    def update_tensordict_priority(self, data: TensorDictBase) -> None:
        """Pass the priorities of a sampled batch to the prioritised samplers of its parts.

        Args:
            data: rows with their ``index`` and the entry ``priority_key``, such as the ``td_error`` of a loss.
        """
        # TorchRL's method does nothing unless the sampler of the whole buffer is a PrioritizedSampler.
        if any(isinstance(own, PrioritizedSampler) for own in (self._ratio.demo_sampler, self._ratio.online_sampler)):
            self.update_priority(data["index"].reshape(-1), data[self.priority_key].reshape(-1))

    @property
    def _mixed(self) -> MixedStorage:
        return cast(MixedStorage, self.storage)

    @property
    def _ratio(self) -> RatioSampler:
        return cast(RatioSampler, self.sampler)

    @property
    def num_demo_rows(self) -> int:
        """Number of rows from demonstrations."""
        return self._mixed.num_demos

    @property
    def num_online_rows(self) -> int:
        """Current number of online rows."""
        return len(self._mixed.online)

    @property
    def online_ratio(self) -> float:
        """Share of online rows in the next batch; assigning a number or a function replaces the schedule."""
        return self._ratio.online_ratio

    @online_ratio.setter
    def online_ratio(self, value: float | RatioSchedule) -> None:
        self._ratio.set_schedule(value)


def _ring(online: int | TensorStorage) -> TensorStorage:
    if isinstance(online, int):
        if online < 1:
            raise ValueError(f"online must be at least 1 row, got {online}.")
        return LazyTensorStorage(online)
    if not isinstance(online, TensorStorage) or online.ndim not in (1, 2):
        raise ValueError(
            "online must be a number of rows, or a LazyTensorStorage or LazyMemmapStorage with ndim 1 (transitions) "
            f"or 2 (steps), got {online!r}."
        )
    return online
