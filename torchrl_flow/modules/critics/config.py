"""A flat description of a critic of action chunks from which it can be built again, and the builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.critics.q_ensemble import EnsembleActivation, EnsembleInit, QEnsemble
from torchrl_flow.modules.observation.frozen_features import flow_on_features

__all__ = ["CriticConfig", "make_critic"]


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """All that is needed, beside the actor and the weights, to build a :class:`QEnsemble`; plain values.

    Raises:
        ValueError: if a size is below 1.
    """

    num_qs: int = 10
    """Members."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers."""
    activation: EnsembleActivation = "mish"
    """After each hidden layer's LayerNorm: mish, tanh (as in DSRL) or relu."""
    share_encoder: bool = False
    """Whether the critic reads the actor's own encoder; else it has a copy."""
    init: EnsembleInit = "orthogonal"
    """Initial weights; see :class:`QEnsemble`."""
    on_features: bool = False
    """Whether the critic reads the features of the frozen actor's encoder; else it has an encoder."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.num_qs < 1 or min(self.hidden_sizes, default=1) < 1:
            raise ValueError(f"num_qs and hidden_sizes must be at least 1, got {self.num_qs}, {self.hidden_sizes}.")
        if self.share_encoder and self.on_features:
            raise ValueError("share_encoder and on_features exclude one another: features are read without an encoder.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain, JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CriticConfig:
        """Rebuild a configuration from :meth:`to_dict`.

        Raises:
            ValueError: if a field is unknown, naming it and those that are known.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown fields {unknown} in a CriticConfig; known are {sorted(known)}.")
        return cls(**{**values, **{k: tuple(v) for k, v in values.items() if k == "hidden_sizes"}})


def make_critic(config: CriticConfig, actor: FlowActor) -> QEnsemble:
    """Build the critic of an actor's executed chunks, with the actor's normalisers.

    Args:
        config: the description.
        actor: the actor; its device is the critic's.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> critic = make_critic(CriticConfig(num_qs=2), make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5)))
        >>> critic.num_qs, critic.act_horizon
        (2, 8)
    """
    device = next(actor.parameters()).device
    critic = QEnsemble.for_actor(
        flow_on_features(actor) if config.on_features else actor,
        share_encoder=config.share_encoder,
        num_qs=config.num_qs,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        init=config.init,
    )
    return critic.to(device)
