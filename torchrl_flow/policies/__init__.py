"""Policies from checkpoints: rebuilding, environments, steering, export, and warm starts of later stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.policies.acting import (
        POLICY_KINDS,
        PolicyKind,
        RunLabels,
        load_acting_policy,
        load_flow_checkpoint,
        policy_kind,
        run_labels,
    )
    from torchrl_flow.policies.aw_flow import (
        aw_flow_modules,
        collecting_policy,
        make_aw_flow_actor,
        make_aw_flow_loss,
        make_aw_flow_stepper,
    )
    from torchrl_flow.policies.environment import checkpoint_env
    from torchrl_flow.policies.export import export_policy
    from torchrl_flow.policies.exported_policy import ExportedPolicy, RecedingHorizon
    from torchrl_flow.policies.initial_weights import warm_start
    from torchrl_flow.policies.latent_losses import LatentLosses, make_latent_losses
    from torchrl_flow.policies.rebuild import (
        LATENT_POLICY,
        critic_config,
        flow_config,
        load_critic,
        load_policy,
        open_checkpoint,
        require_actor_config,
    )
    from torchrl_flow.policies.steering import (
        alias_demonstrations,
        aliased_demonstrations,
        frozen_flow,
        latent_value_gap,
        load_latent_policy,
        load_steered,
        policy_demonstrations,
        start_latent_policy,
        steering_flow,
    )
    from torchrl_flow.policies.steering_start import latent_replay, load_steering_start
    from torchrl_flow.policies.training_env import (
        evaluation_env_options,
        make_training_env,
        make_training_envs,
        policy_evaluation_env,
        training_env_options,
    )

__all__ = [
    "LATENT_POLICY",
    "POLICY_KINDS",
    "ExportedPolicy",
    "LatentLosses",
    "PolicyKind",
    "RecedingHorizon",
    "RunLabels",
    "alias_demonstrations",
    "aliased_demonstrations",
    "aw_flow_modules",
    "checkpoint_env",
    "collecting_policy",
    "critic_config",
    "evaluation_env_options",
    "export_policy",
    "flow_config",
    "frozen_flow",
    "latent_replay",
    "latent_value_gap",
    "load_acting_policy",
    "load_critic",
    "load_flow_checkpoint",
    "load_latent_policy",
    "load_policy",
    "load_steered",
    "load_steering_start",
    "make_aw_flow_actor",
    "make_aw_flow_loss",
    "make_aw_flow_stepper",
    "make_latent_losses",
    "make_training_env",
    "make_training_envs",
    "open_checkpoint",
    "policy_demonstrations",
    "policy_evaluation_env",
    "policy_kind",
    "require_actor_config",
    "run_labels",
    "start_latent_policy",
    "steering_flow",
    "training_env_options",
    "warm_start",
]

__getattr__, __dir__ = lazy_exports(__name__)
