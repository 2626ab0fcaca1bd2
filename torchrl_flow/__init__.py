"""Flow policies on action chunks, as TorchRL components."""

from __future__ import annotations

from torchrl_flow._version import __version__
from torchrl_flow.data import ChunkStorage, DemoReplayBuffer, DemoStore, MixedReplayBuffer, load_demonstrations
from torchrl_flow.envs import (
    ManiSkillEnv,
    ManiSkillWrapper,
    PlanarPickPlaceEnv,
    SMDPChunk,
    collect_demonstrations,
    history_transforms,
)
from torchrl_flow.modules import (
    BestOfN,
    CriticConfig,
    FlowActor,
    FlowActorConfig,
    Normalizer,
    ObservationEncoder,
    PixelEncoder,
    QEnsemble,
    ShortCutVelocityDiT,
    ShortCutVelocityMLP,
    ShortCutVelocityUNet1D,
    make_critic,
    make_flow_actor,
)
from torchrl_flow.objectives import AWFlowLoss, ShortCutFlowLoss
from torchrl_flow.training import (
    Run,
    conclude,
    evaluate,
    load_checkpoint,
    load_critic,
    load_policy,
    make_chunk_env,
    make_demonstrations,
    make_task_env,
    save_checkpoint,
)

__all__ = [
    "AWFlowLoss",
    "BestOfN",
    "ChunkStorage",
    "CriticConfig",
    "DemoReplayBuffer",
    "DemoStore",
    "FlowActor",
    "FlowActorConfig",
    "ManiSkillEnv",
    "ManiSkillWrapper",
    "MixedReplayBuffer",
    "Normalizer",
    "ObservationEncoder",
    "PixelEncoder",
    "PlanarPickPlaceEnv",
    "QEnsemble",
    "Run",
    "SMDPChunk",
    "ShortCutFlowLoss",
    "ShortCutVelocityDiT",
    "ShortCutVelocityMLP",
    "ShortCutVelocityUNet1D",
    "__version__",
    "collect_demonstrations",
    "conclude",
    "evaluate",
    "history_transforms",
    "load_checkpoint",
    "load_critic",
    "load_demonstrations",
    "load_policy",
    "make_chunk_env",
    "make_critic",
    "make_demonstrations",
    "make_flow_actor",
    "make_task_env",
    "save_checkpoint",
]
