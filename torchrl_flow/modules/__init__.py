"""Networks and TensorDict modules: velocity networks, encoders, normalisers, the flow actor."""

from __future__ import annotations

from torchrl_flow.modules.best_of_n import BestOfN
from torchrl_flow.modules.config import FlowActorConfig, Statistics, VelocityNetwork, make_flow_actor
from torchrl_flow.modules.critic_config import CriticConfig, make_critic
from torchrl_flow.modules.embedding import FlowTimeEmbedding, SinusoidalEmbedding
from torchrl_flow.modules.encoders import ObservationEncoder, PixelEncoder, SpatialSoftmax, random_shift
from torchrl_flow.modules.flow_actor import FlowActor
from torchrl_flow.modules.latent_critic import make_latent_critics
from torchrl_flow.modules.latent_distribution import LatentNormal, PriorMixture
from torchrl_flow.modules.latent_policy import LatentGaussianPolicy, LatentPolicyConfig, make_latent_policy
from torchrl_flow.modules.noise_aliaser import AliasConfig, AliasMode, NoiseAliaser
from torchrl_flow.modules.normalizer import Normalizer, NormalizerMode
from torchrl_flow.modules.q_ensemble import EnsembleCompute, EnsembleInit, QEnsemble
from torchrl_flow.modules.state_value import StateValue
from torchrl_flow.modules.steered_flow_actor import SteeredFlowActor
from torchrl_flow.modules.velocity_dit import ShortCutVelocityDiT
from torchrl_flow.modules.velocity_mlp import ShortCutVelocityMLP
from torchrl_flow.modules.velocity_unet import ShortCutVelocityUNet1D

__all__ = [
    "AliasConfig",
    "AliasMode",
    "BestOfN",
    "CriticConfig",
    "EnsembleCompute",
    "EnsembleInit",
    "FlowActor",
    "FlowActorConfig",
    "FlowTimeEmbedding",
    "LatentGaussianPolicy",
    "LatentNormal",
    "LatentPolicyConfig",
    "NoiseAliaser",
    "Normalizer",
    "NormalizerMode",
    "ObservationEncoder",
    "PixelEncoder",
    "PriorMixture",
    "QEnsemble",
    "ShortCutVelocityDiT",
    "ShortCutVelocityMLP",
    "ShortCutVelocityUNet1D",
    "SinusoidalEmbedding",
    "SpatialSoftmax",
    "StateValue",
    "Statistics",
    "SteeredFlowActor",
    "VelocityNetwork",
    "make_critic",
    "make_flow_actor",
    "make_latent_critics",
    "make_latent_policy",
    "random_shift",
]
