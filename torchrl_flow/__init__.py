"""Flow policies on action chunks, as TorchRL components.

A name is imported when it is first asked for (PEP 562), so that importing the package takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow import _moved
from torchrl_flow._lazy import lazy_exports
from torchrl_flow._version import __version__

if TYPE_CHECKING:
    from torchrl_flow import data as data
    from torchrl_flow import demos as demos
    from torchrl_flow import envs as envs
    from torchrl_flow import evaluation as evaluation
    from torchrl_flow import figures as figures
    from torchrl_flow import functional as functional
    from torchrl_flow import modules as modules
    from torchrl_flow import objectives as objectives
    from torchrl_flow import offline as offline
    from torchrl_flow import options as options
    from torchrl_flow import policies as policies
    from torchrl_flow import recsys as recsys
    from torchrl_flow import reports as reports
    from torchrl_flow import runs as runs
    from torchrl_flow import sweeps as sweeps
    from torchrl_flow import training as training
    from torchrl_flow import util as util
    from torchrl_flow.data import (
        ChunkStorage,
        DemoReplayBuffer,
        DemoStore,
        MixedReplayBuffer,
        MixedStorage,
        RatioSampler,
        load_demonstrations,
    )
    from torchrl_flow.demos import make_demonstrations
    from torchrl_flow.envs import (
        ManiSkillEnv,
        ManiSkillWrapper,
        PlanarPickPlaceEnv,
        SMDPChunk,
        collect_demonstrations,
        history_transforms,
        make_chunk_env,
        make_task_env,
    )
    from torchrl_flow.evaluation import evaluate
    from torchrl_flow.modules import (
        BestOfN,
        CriticConfig,
        FlowActor,
        FlowActorConfig,
        LatentGaussianPolicy,
        LatentPolicyConfig,
        NoiseAliaser,
        NoiseNetConfig,
        NoisyFlowActor,
        Normalizer,
        ObservationEncoder,
        PixelEncoder,
        QEnsemble,
        ShortCutVelocityConcatMLP,
        ShortCutVelocityDiT,
        ShortCutVelocityMLP,
        ShortCutVelocityUNet1D,
        SteeredFlowActor,
        make_critic,
        make_flow_actor,
        make_latent_policy,
        make_noise_net,
    )
    from torchrl_flow.objectives import (
        AWFlowLoss,
        ChunkCriticLoss,
        DistilledSACLoss,
        FlowAnchorLoss,
        LatentAWMLELoss,
        LatentSACLoss,
        ReinFlowPPOLoss,
        ShortCutFlowLoss,
    )
    from torchrl_flow.policies import load_acting_policy, load_critic, load_policy, load_steered
    from torchrl_flow.reports import conclude
    from torchrl_flow.runs import Run, load_checkpoint, save_checkpoint

__all__ = [
    "AWFlowLoss",
    "BestOfN",
    "ChunkCriticLoss",
    "ChunkStorage",
    "CriticConfig",
    "DemoReplayBuffer",
    "DemoStore",
    "DistilledSACLoss",
    "FlowActor",
    "FlowActorConfig",
    "FlowAnchorLoss",
    "LatentAWMLELoss",
    "LatentGaussianPolicy",
    "LatentPolicyConfig",
    "LatentSACLoss",
    "ManiSkillEnv",
    "ManiSkillWrapper",
    "MixedReplayBuffer",
    "MixedStorage",
    "NoiseAliaser",
    "NoiseNetConfig",
    "NoisyFlowActor",
    "Normalizer",
    "ObservationEncoder",
    "PixelEncoder",
    "PlanarPickPlaceEnv",
    "QEnsemble",
    "RatioSampler",
    "ReinFlowPPOLoss",
    "Run",
    "SMDPChunk",
    "ShortCutFlowLoss",
    "ShortCutVelocityConcatMLP",
    "ShortCutVelocityDiT",
    "ShortCutVelocityMLP",
    "ShortCutVelocityUNet1D",
    "SteeredFlowActor",
    "__version__",
    "collect_demonstrations",
    "conclude",
    "evaluate",
    "history_transforms",
    "load_acting_policy",
    "load_checkpoint",
    "load_critic",
    "load_demonstrations",
    "load_policy",
    "load_steered",
    "make_chunk_env",
    "make_critic",
    "make_demonstrations",
    "make_flow_actor",
    "make_latent_policy",
    "make_noise_net",
    "make_task_env",
    "save_checkpoint",
]

__getattr__, __dir__ = lazy_exports(__name__)

_moved.install()
