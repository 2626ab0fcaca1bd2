"""The slate recommender: simulator, reference policies, and the transforms to latent actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.recsys.belief_encoder import BeliefEncoder, BeliefEncoderConfig
    from torchrl_flow.recsys.catalogue import ItemCatalogue, make_catalogue
    from torchrl_flow.recsys.collect import (
        CollectSlatesArgs,
        RelabelSlatesArgs,
        collect_slates,
        relabel_slates,
        write_latent_transitions,
    )
    from torchrl_flow.recsys.env import SlateEnv
    from torchrl_flow.recsys.functional import binary_auc, gaussian_kl, latent_sample, slate_vae_terms
    from torchrl_flow.recsys.model_training import SlateModelsArgs, round_trip_return, train_slate_models
    from torchrl_flow.recsys.models import SlateLogs, SlateModels, play_slates
    from torchrl_flow.recsys.names import SLATE_ENVS, SlatePolicyName
    from torchrl_flow.recsys.option_types import SlateEnvName
    from torchrl_flow.recsys.policies import (
        SLATE_POLICIES,
        SlatePolicy,
        diverse_slate,
        make_slate_policy,
    )
    from torchrl_flow.recsys.sardine_task import CollectSardineArgs, SardineTask, collect_sardine
    from torchrl_flow.recsys.slate_ranker import LatentActionBox, SlateRanker, SlateRankerConfig
    from torchrl_flow.recsys.task import (
        SlateTask,
        action_box,
        in_data_units,
        load_state_policy,
        play_latent_policy,
        q_diagnostics,
    )
    from torchrl_flow.recsys.transforms import BeliefState, LatentSlate, latent_slate_env

__all__ = [
    "SLATE_ENVS",
    "SLATE_POLICIES",
    "BeliefEncoder",
    "BeliefEncoderConfig",
    "BeliefState",
    "CollectSardineArgs",
    "CollectSlatesArgs",
    "ItemCatalogue",
    "LatentActionBox",
    "LatentSlate",
    "RelabelSlatesArgs",
    "SardineTask",
    "SlateEnv",
    "SlateEnvName",
    "SlateLogs",
    "SlateModels",
    "SlateModelsArgs",
    "SlatePolicy",
    "SlatePolicyName",
    "SlateRanker",
    "SlateRankerConfig",
    "SlateTask",
    "action_box",
    "binary_auc",
    "collect_sardine",
    "collect_slates",
    "diverse_slate",
    "gaussian_kl",
    "in_data_units",
    "latent_sample",
    "latent_slate_env",
    "load_state_policy",
    "make_catalogue",
    "make_slate_policy",
    "play_latent_policy",
    "play_slates",
    "q_diagnostics",
    "relabel_slates",
    "round_trip_return",
    "slate_vae_terms",
    "train_slate_models",
    "write_latent_transitions",
]

__getattr__, __dir__ = lazy_exports(__name__)
