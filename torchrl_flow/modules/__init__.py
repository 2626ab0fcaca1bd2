"""Networks and TensorDict modules: velocity networks, encoders, normalisers, the flow actor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.modules.actors.action_box import ActionBox
    from torchrl_flow.modules.actors.best_of_n import BestOfN
    from torchrl_flow.modules.actors.config import FlowActorConfig, Statistics, VelocityNetwork, make_flow_actor
    from torchrl_flow.modules.actors.exploration import draws_noise
    from torchrl_flow.modules.actors.flow import FlowActor
    from torchrl_flow.modules.actors.scaled_noise import ScaledNoise
    from torchrl_flow.modules.actors.single_step import SingleStepActor
    from torchrl_flow.modules.actors.state_policy import (
        StatePolicyConfig,
        make_observation_value,
        make_state_policy,
        make_state_values,
    )
    from torchrl_flow.modules.config import Config
    from torchrl_flow.modules.critics.config import CriticConfig, make_critic
    from torchrl_flow.modules.critics.latent import make_latent_critics
    from torchrl_flow.modules.critics.q_ensemble import EnsembleActivation, EnsembleCompute, EnsembleInit, QEnsemble
    from torchrl_flow.modules.critics.state_value import StateValue, StateValueConfig, make_state_value
    from torchrl_flow.modules.noisy.actor import NoisyFlowActor
    from torchrl_flow.modules.noisy.chain_normal import ChainNormal
    from torchrl_flow.modules.noisy.explore_noise import ExploreNoiseNet, NoiseNetConfig, make_noise_net
    from torchrl_flow.modules.observation.encoders import ObservationEncoder, PixelEncoder, SpatialSoftmax, random_shift
    from torchrl_flow.modules.observation.frozen_features import (
        FEATURES_KEY,
        feature_encoder,
        flow_on_features,
        frozen_features,
        write_features,
    )
    from torchrl_flow.modules.observation.normalizer import Normalizer, NormalizerMode
    from torchrl_flow.modules.steering.actor import SteeredFlowActor
    from torchrl_flow.modules.steering.latent_distribution import LatentNormal, PriorMixture
    from torchrl_flow.modules.steering.latent_policy import LatentGaussianPolicy, LatentPolicyConfig, make_latent_policy
    from torchrl_flow.modules.steering.noise_aliaser import AliasConfig, AliasMode, NoiseAliaser
    from torchrl_flow.modules.velocity.concat_mlp import ShortCutVelocityConcatMLP
    from torchrl_flow.modules.velocity.dit import ShortCutVelocityDiT
    from torchrl_flow.modules.velocity.embedding import FlowTimeEmbedding, SinusoidalEmbedding
    from torchrl_flow.modules.velocity.mlp import ShortCutVelocityMLP
    from torchrl_flow.modules.velocity.unet import ShortCutVelocityUNet1D

__all__ = [
    "FEATURES_KEY",
    "ActionBox",
    "AliasConfig",
    "AliasMode",
    "BestOfN",
    "ChainNormal",
    "Config",
    "CriticConfig",
    "EnsembleActivation",
    "EnsembleCompute",
    "EnsembleInit",
    "ExploreNoiseNet",
    "FlowActor",
    "FlowActorConfig",
    "FlowTimeEmbedding",
    "LatentGaussianPolicy",
    "LatentNormal",
    "LatentPolicyConfig",
    "NoiseAliaser",
    "NoiseNetConfig",
    "NoisyFlowActor",
    "Normalizer",
    "NormalizerMode",
    "ObservationEncoder",
    "PixelEncoder",
    "PriorMixture",
    "QEnsemble",
    "ScaledNoise",
    "ShortCutVelocityConcatMLP",
    "ShortCutVelocityDiT",
    "ShortCutVelocityMLP",
    "ShortCutVelocityUNet1D",
    "SingleStepActor",
    "SinusoidalEmbedding",
    "SpatialSoftmax",
    "StatePolicyConfig",
    "StateValue",
    "StateValueConfig",
    "Statistics",
    "SteeredFlowActor",
    "VelocityNetwork",
    "draws_noise",
    "feature_encoder",
    "flow_on_features",
    "frozen_features",
    "make_critic",
    "make_flow_actor",
    "make_latent_critics",
    "make_latent_policy",
    "make_noise_net",
    "make_observation_value",
    "make_state_policy",
    "make_state_value",
    "make_state_values",
    "random_shift",
    "write_features",
]

__getattr__, __dir__ = lazy_exports(__name__)
