"""The slate recommender: simulator, reference policies, and the transforms of its latent form."""

from torchrl_flow.envs.slate._catalogue import ItemCatalogue
from torchrl_flow.envs.slate._names import SLATE_ENVS, make_catalogue
from torchrl_flow.envs.slate.env import SlateEnv
from torchrl_flow.envs.slate.policies import (
    SLATE_POLICIES,
    SlatePolicy,
    SlatePolicyName,
    diverse_slate,
    make_slate_policy,
)
from torchrl_flow.envs.slate.transforms import BeliefState, LatentSlate, latent_slate_env

__all__ = [
    "SLATE_ENVS",
    "SLATE_POLICIES",
    "BeliefState",
    "ItemCatalogue",
    "LatentSlate",
    "SlateEnv",
    "SlatePolicy",
    "SlatePolicyName",
    "diverse_slate",
    "latent_slate_env",
    "make_catalogue",
    "make_slate_policy",
]
