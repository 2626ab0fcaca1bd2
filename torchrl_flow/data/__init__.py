"""Demonstrations: read, stored memory-mapped, sampled as action chunks, and mixed with online data.

Importing this makes
``torchrl.data.datasets.load_dataset("maniskill:<.h5 or store>", pred_horizon=..., act_horizon=...)`` work.
"""

from torchrl.data.datasets.utils import register_dataset

from torchrl_flow.data.chunks import ChunkKeys, ChunkStorage
from torchrl_flow.data.episode import Episode, cut_after_success, drop_idle_steps
from torchrl_flow.data.errors import DataError, DataWarning
from torchrl_flow.data.maniskill import read_maniskill
from torchrl_flow.data.maniskill_reader import ReadOptions
from torchrl_flow.data.mixed_replay import MixedReplayBuffer
from torchrl_flow.data.mixed_storage import MixedStorage, OnlineWriter
from torchrl_flow.data.noise_cache import AliasFn, NoiseCache, data_digest, module_digest
from torchrl_flow.data.npz import NpzReplayBuffer, read_npz
from torchrl_flow.data.npz_stream import NpzStream
from torchrl_flow.data.ratio_sampler import LinearRatio, RatioSampler, split_batch
from torchrl_flow.data.replay import DemoReplayBuffer, load_demonstrations
from torchrl_flow.data.statistics import column_statistics
from torchrl_flow.data.storage_parts import DemoKeepingWriter
from torchrl_flow.data.store import DemoStore
from torchrl_flow.data.trajectory_file import TrajectoryFile

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
    "RatioSampler",
    "ReadOptions",
    "TrajectoryFile",
    "column_statistics",
    "cut_after_success",
    "data_digest",
    "drop_idle_steps",
    "load_demonstrations",
    "module_digest",
    "read_maniskill",
    "read_npz",
    "split_batch",
]

# `replace`, because a module that is imported anew (a notebook's reload) registers again.
register_dataset("maniskill", "torchrl_flow.data.replay:load_demonstrations", replace=True)
