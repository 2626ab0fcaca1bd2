"""Configuration of a critic of action chunks, and the function that builds the critic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.config import MAX_DEPTH, Config, dense_weights
from torchrl_flow.modules.critics.q_ensemble import EnsembleActivation, EnsembleInit, QEnsemble
from torchrl_flow.modules.observation.frozen_features import flow_on_features

__all__ = ["CriticConfig", "make_critic"]


@dataclasses.dataclass(frozen=True)
class CriticConfig(Config):
    """Configuration of a :class:`QEnsemble`, as plain values, without the actor and the weights.

    Raises:
        ValueError: if a size is below 1 or above its limit (:class:`~torchrl_flow.modules.config.Config`).
    """

    limits: ClassVar[Mapping[str, int]] = {"num_qs": MAX_DEPTH}

    num_qs: int = 10
    """Number of members."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers."""
    activation: EnsembleActivation = "mish"
    """Activation after each hidden layer's LayerNorm: mish, tanh (as in DSRL) or relu."""
    share_encoder: bool = False
    """Whether the critic shares the actor's encoder; otherwise it has a copy."""
    init: EnsembleInit = "orthogonal"
    """Initial weights; see :class:`QEnsemble`."""
    on_features: bool = False
    """Whether the critic reads the features of the frozen actor's encoder; otherwise it has its own encoder."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.num_qs < 1 or min(self.hidden_sizes, default=1) < 1:
            raise ValueError(f"num_qs and hidden_sizes must be at least 1, got {self.num_qs}, {self.hidden_sizes}.")
        if self.share_encoder and self.on_features:
            raise ValueError("share_encoder and on_features exclude one another: features are read without an encoder.")

    def _weights(self) -> int:
        return self.num_qs * dense_weights([1, *self.hidden_sizes, 1])


def make_critic(config: CriticConfig, actor: FlowActor) -> QEnsemble:
    """Build the critic of an actor's executed chunks, with the actor's normalisers and initial values near 0.

    Args:
        config: the configuration.
        actor: flow actor; the critic is made on its device.

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
    return critic.start_near_zero().to(device)
