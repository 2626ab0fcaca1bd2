"""Readers, memory-mapped stores and chunk samplers of demonstrations, and replay buffers that add online data.

Importing this package makes
``torchrl.data.datasets.load_dataset("maniskill:<.h5 or store>", pred_horizon=..., act_horizon=...)`` work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl.data.datasets.utils import register_dataset

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.data.demos.chunks import ChunkKeys, ChunkStorage
    from torchrl_flow.data.demos.episode import Episode, cut_after_success, drop_idle_steps, first_steps
    from torchrl_flow.data.demos.maniskill import read_maniskill
    from torchrl_flow.data.demos.maniskill_reader import ReadOptions
    from torchrl_flow.data.demos.replay import DemoReplayBuffer, load_demonstrations
    from torchrl_flow.data.demos.statistics import column_statistics
    from torchrl_flow.data.demos.store import DemoStore
    from torchrl_flow.data.demos.task_match import padding_of, require_demonstrations_of
    from torchrl_flow.data.demos.trajectory_file import TrajectoryFile
    from torchrl_flow.data.errors import DataError, DataWarning
    from torchrl_flow.data.logged.npz import NpzReplayBuffer, read_npz
    from torchrl_flow.data.logged.npz_episodes import read_npz_episodes
    from torchrl_flow.data.logged.npz_stream import NpzStream
    from torchrl_flow.data.mixed.ratio_sampler import LinearRatio, RatioSampler, split_batch
    from torchrl_flow.data.mixed.replay import MixedReplayBuffer
    from torchrl_flow.data.mixed.storage import MixedStorage, OnlineWriter
    from torchrl_flow.data.mixed.storage_parts import DemoKeepingWriter
    from torchrl_flow.data.noise_cache import AliasFn, NoiseCache, data_digest, module_digest
    from torchrl_flow.data.prioritized import PrioritizedSampler

__all__ = [
    "AliasFn",
    "ChunkKeys",
    "ChunkStorage",
    "DataError",
    "DataWarning",
    "DemoKeepingWriter",
    "DemoReplayBuffer",
    "DemoStore",
    "Episode",
    "LinearRatio",
    "MixedReplayBuffer",
    "MixedStorage",
    "NoiseCache",
    "NpzReplayBuffer",
    "NpzStream",
    "OnlineWriter",
    "PrioritizedSampler",
    "RatioSampler",
    "ReadOptions",
    "TrajectoryFile",
    "column_statistics",
    "cut_after_success",
    "data_digest",
    "drop_idle_steps",
    "first_steps",
    "load_demonstrations",
    "module_digest",
    "padding_of",
    "read_maniskill",
    "read_npz",
    "read_npz_episodes",
    "require_demonstrations_of",
    "split_batch",
]

__getattr__, __dir__ = lazy_exports(__name__)

# `replace`, because a module that is imported again (a notebook's reload) registers a second time.
register_dataset("maniskill", "torchrl_flow.data.demos.replay:load_demonstrations", replace=True)
