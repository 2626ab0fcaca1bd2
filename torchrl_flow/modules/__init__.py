"""Networks and TensorDict modules: velocity networks, encoders, normalisers, the flow actor."""

from __future__ import annotations

from torchrl_flow.modules.action_box import ActionBox
from torchrl_flow.modules.belief_encoder import BeliefEncoder, BeliefEncoderConfig
from torchrl_flow.modules.best_of_n import BestOfN
from torchrl_flow.modules.chain_normal import ChainNormal
from torchrl_flow.modules.config import FlowActorConfig, Statistics, VelocityNetwork, make_flow_actor
from torchrl_flow.modules.critic_config import CriticConfig, make_critic
from torchrl_flow.modules.embedding import FlowTimeEmbedding, SinusoidalEmbedding
from torchrl_flow.modules.encoders import ObservationEncoder, PixelEncoder, SpatialSoftmax, random_shift
from torchrl_flow.modules.exploration import draws_noise
from torchrl_flow.modules.explore_noise import ExploreNoiseNet, NoiseNetConfig, make_noise_net
from torchrl_flow.modules.flow_actor import FlowActor
from torchrl_flow.modules.frozen_features import (
    FEATURES_KEY,
    feature_encoder,
    flow_on_features,
    frozen_features,
    write_features,
)
from torchrl_flow.modules.latent_critic import make_latent_critics
from torchrl_flow.modules.latent_distribution import LatentNormal, PriorMixture
from torchrl_flow.modules.latent_policy import LatentGaussianPolicy, LatentPolicyConfig, make_latent_policy
from torchrl_flow.modules.noise_aliaser import AliasConfig, AliasMode, NoiseAliaser
from torchrl_flow.modules.noisy_flow_actor import NoisyFlowActor
from torchrl_flow.modules.normalizer import Normalizer, NormalizerMode
from torchrl_flow.modules.q_ensemble import EnsembleActivation, EnsembleCompute, EnsembleInit, QEnsemble
from torchrl_flow.modules.scaled_noise import ScaledNoise
from torchrl_flow.modules.single_step import SingleStepActor
from torchrl_flow.modules.slate_ranker import LatentActionBox, SlateRanker, SlateRankerConfig
from torchrl_flow.modules.state_policy import (
    StatePolicyConfig,
    make_observation_value,
    make_state_policy,
    make_state_values,
)
from torchrl_flow.modules.state_value import StateValue, StateValueConfig, make_state_value
from torchrl_flow.modules.steered_flow_actor import SteeredFlowActor
from torchrl_flow.modules.velocity_dit import ShortCutVelocityDiT
from torchrl_flow.modules.velocity_mlp import ShortCutVelocityMLP
from torchrl_flow.modules.velocity_unet import ShortCutVelocityUNet1D

__all__ = [
    "FEATURES_KEY",
    "ActionBox",
    "AliasConfig",
    "AliasMode",
    "BeliefEncoder",
    "BeliefEncoderConfig",
    "BestOfN",
    "ChainNormal",
    "CriticConfig",
    "EnsembleActivation",
    "EnsembleCompute",
    "EnsembleInit",
    "ExploreNoiseNet",
    "FlowActor",
    "FlowActorConfig",
    "FlowTimeEmbedding",
    "LatentActionBox",
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
    "ShortCutVelocityDiT",
    "ShortCutVelocityMLP",
    "ShortCutVelocityUNet1D",
    "SingleStepActor",
    "SinusoidalEmbedding",
    "SlateRanker",
    "SlateRankerConfig",
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
