"""A policy over a flow's initial noise: a normal whose mean and scale depend on the observation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
)
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_flow.functional.latent import SteerMode, bound_latent
from torchrl_flow.modules.activation import Mish
from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.config import Config, dense_weights
from torchrl_flow.modules.observation.encoders import ObservationEncoder
from torchrl_flow.modules.observation.frozen_features import feature_encoder
from torchrl_flow.modules.steering.latent_distribution import LatentNormal, PriorMixture

__all__ = ["LatentGaussianPolicy", "LatentPolicyConfig", "make_latent_policy"]


class _LatentParameters(TensorDictModuleBase):
    """MLP (Linear, LayerNorm, Mish) from observations to mean and scale of the latent; its last layer starts at 0."""

    prior_fraction: Tensor

    def __init__(
        self,
        encoder: ObservationEncoder,
        latent_shape: torch.Size,
        hidden_sizes: Sequence[int],
        log_std_range: tuple[float, float],
        keys: tuple[NestedKey, NestedKey, NestedKey],
    ) -> None:
        self.in_keys = list(encoder.in_keys)  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = list(keys)  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        self.encoder, self.latent_shape, self.log_std_range = encoder, latent_shape, log_std_range
        layers: list[nn.Module] = []
        width = encoder.out_features
        for size in hidden_sizes:
            layers += [nn.Linear(width, size), nn.LayerNorm(size), Mish()]
            width = size
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, 2 * latent_shape.numel())
        self.register_buffer("prior_fraction", torch.zeros(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset to the prior: mean 0, scale 1."""
        for layer in self.trunk:
            if not isinstance(layer, Mish):
                layer.reset_parameters()  # pyright: ignore[reportCallIssue]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write mean and scale ``[*B, S, A]`` and the prior's share ``[*B, 1]``."""
        batch = self.encoder.batch_shape(tensordict)
        features = self.encoder(*self.encoder.preprocess(tensordict))
        loc, log_std = self.head(self.trunk(features)).reshape(*batch, 2, *self.latent_shape).unbind(len(batch))
        scale = log_std.clamp(*self.log_std_range).exp()
        values = (loc, scale, self.prior_fraction.expand(*batch, 1))
        for key, value in zip(self.out_keys, values):
            tensordict.set(key, value)
        return tensordict


class LatentGaussianPolicy(ProbabilisticTensorDictSequential):
    """A normal policy over a flow's noise with exact log-densities, for TorchRL's losses.

    Reads the encoder's observations ``[*B, T, ...]``. Writes ``latent`` ``[*B, S, A]`` and ``latent_log_prob``
    ``[*B]``. S depends on ``steer_mode``: H if the whole noise is steered (``"full"``), H_a if only the executed steps
    are (``"act_horizon"``; the rest is drawn from the prior), and 1 if one vector is repeated over the chunk
    (``"tied"``; some flows perform worse with it, since noise that is equal at all steps is outside their training). A
    new policy equals the prior N(0, I).

    With ``prior_mixing`` the distribution is the :class:`PriorMixture` at the share ``prior_fraction``, a buffer that a
    schedule may set; initially 0.

    Args:
        encoder: observation encoder; it becomes part of the policy.

    Keyword Args:
        pred_horizon: H.
        act_horizon: H_a.
        action_dim: A.
        steer_mode: ``"full"``, ``"act_horizon"`` or ``"tied"``.
        latent_bound: b of ``w = b tanh(u / b)``; ``None`` for no bound.
        hidden_sizes: widths of the hidden layers.
        log_std_range: bounds of the logarithm of the scale.
        prior_mixing: draw latents from a mixture of the policy and the prior.
        latent_key: key of the latent.
        log_prob_key: key of its log-density.

    Raises:
        ValueError: if an argument is outside its allowed range.

    References:
        Wagenmaker et al., "Steering Your Diffusion Policy with Latent Space Reinforcement Learning",
        https://arxiv.org/abs/2506.15799

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import ObservationEncoder
        >>> encoder = ObservationEncoder(state_shape=(2, 5))
        >>> policy = LatentGaussianPolicy(encoder, pred_horizon=8, act_horizon=4, action_dim=3)
        >>> data = policy(TensorDict(observation=torch.zeros(6, 2, 5), batch_size=[6]))
        >>> data["latent"].shape, data["latent_log_prob"].shape
        (torch.Size([6, 8, 3]), torch.Size([6]))
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        *,
        pred_horizon: int,
        act_horizon: int,
        action_dim: int,
        steer_mode: SteerMode = "full",
        latent_bound: float | None = None,
        hidden_sizes: Sequence[int] = (256, 256, 256),
        log_std_range: tuple[float, float] = (-5.0, 1.0),
        prior_mixing: bool = False,
        latent_key: NestedKey = "latent",
        log_prob_key: NestedKey = "latent_log_prob",
    ) -> None:
        steps = {"full": pred_horizon, "act_horizon": act_horizon, "tied": 1}
        if steer_mode not in steps:
            raise ValueError(f"steer_mode must be one of {tuple(steps)}, got {steer_mode!r}.")
        if min(pred_horizon, act_horizon, action_dim, *hidden_sizes) < 1:
            raise ValueError(
                f"pred_horizon, act_horizon, action_dim and hidden_sizes must be at least 1, got {pred_horizon}, "
                f"{act_horizon}, {action_dim} and {tuple(hidden_sizes)}."
            )
        low, high = log_std_range
        if not low < 0 <= high:
            raise ValueError(f"log_std_range must contain 0, the value of the prior, got {log_std_range}.")
        bound_latent(torch.zeros(()), latent_bound)
        shape = torch.Size([steps[steer_mode], action_dim])
        names = ("loc", "scale", "prior_fraction") if prior_mixing else ("loc", "scale")
        keys = ("latent_loc", "latent_scale", "prior_fraction")
        parameters = _LatentParameters(encoder, shape, hidden_sizes, log_std_range, keys)
        sampler = ProbabilisticTensorDictModule(
            in_keys=dict(zip(names, keys)),
            out_keys=[latent_key],
            distribution_class=PriorMixture if prior_mixing else LatentNormal,
            distribution_kwargs={"bound": latent_bound},
            return_log_prob=True,
            log_prob_key=log_prob_key,
            # Without an exploration type TorchRL's default is the mean; all actors of this package draw instead.
            default_interaction_type=InteractionType.RANDOM,  # pyright: ignore[reportArgumentType]
        )
        super().__init__(parameters, sampler)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.latent_shape = shape
        self.steer_mode: SteerMode = steer_mode
        self.latent_bound, self.prior_mixing = latent_bound, prior_mixing
        self.latent_key, self.latent_log_prob_key = latent_key, log_prob_key
        self.config: LatentPolicyConfig | None = None

    @property
    def encoder(self) -> ObservationEncoder:
        """The observation encoder."""
        return self._network.encoder

    @property
    def _network(self) -> _LatentParameters:
        return self.module[0]  # pyright: ignore[reportReturnType, reportIndexIssue]

    @property
    def prior_fraction(self) -> Tensor:
        """Share of draws from the prior, a scalar; it has an effect only with ``prior_mixing``."""
        return self._network.prior_fraction

    def set_prior_fraction(self, fraction: float) -> None:
        """Set the share of draws from the prior.

        Raises:
            ValueError: if ``fraction`` is not in [0, 1], or the policy has no prior mixing.
        """
        if not self.prior_mixing:
            raise ValueError("this policy has no prior mixing: make it with prior_mixing=True.")
        if not 0 <= fraction <= 1:
            raise ValueError(f"prior_fraction must lie in [0, 1], got {fraction}.")
        self.prior_fraction.fill_(fraction)

    def prior_latent(self, noise: Tensor) -> Tensor:
        """Map draws ``[*, S, A]`` from N(0, I) to draws from the latents' prior, which has the same bound."""
        return bound_latent(noise, self.latent_bound)

    def normal(self, tensordict: TensorDictBase) -> LatentNormal:
        """Return the policy's distribution without the prior mixing of ``get_dist``."""
        parameters = self._network(tensordict.select(*self._network.in_keys))
        loc, scale = (parameters[key] for key in self._network.out_keys[:2])
        return LatentNormal(loc, scale, bound=self.latent_bound)

    def kl_to_prior(self, tensordict: TensorDictBase) -> Tensor:
        """Return ``KL(pi(. | s) || prior)``, ``[*B]``, in closed form, without prior mixing."""
        return self.normal(tensordict).kl_to_prior()


@dataclasses.dataclass(frozen=True)
class LatentPolicyConfig(Config):
    """Configuration of a :class:`LatentGaussianPolicy`, as plain values, without the actor and the weights."""

    steer_mode: SteerMode = "full"
    """Steered part of the noise: all steps, the executed steps, or one vector for all steps."""
    latent_bound: float | None = None
    """b of the bound b tanh(u / b); None for none."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers."""
    log_std_range: tuple[float, float] = (-5.0, 1.0)
    """Bounds of the logarithm of the scale."""
    prior_mixing: bool = False
    """Whether latents are drawn from the mixture with the prior."""
    on_features: bool = False
    """Whether the policy reads the features of the frozen flow's encoder; otherwise it trains a copy of the encoder."""

    def _weights(self) -> int:
        return dense_weights([1, *self.hidden_sizes, 1])


def make_latent_policy(config: LatentPolicyConfig, actor: FlowActor) -> LatentGaussianPolicy:
    """Build the policy over an actor's noise, with a copy of the actor's encoder, weights and normalisers included.

    With ``on_features`` it has no trained encoder and reads the features that
    :func:`~torchrl_flow.modules.write_features` and :class:`~torchrl_flow.modules.SteeredFlowActor` write.

    Args:
        config: the configuration.
        actor: flow actor to steer; the policy is made on its device.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> make_latent_policy(LatentPolicyConfig(steer_mode="tied"), actor).latent_shape
        torch.Size([1, 3])
    """
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    own = not options.pop("on_features")
    policy = LatentGaussianPolicy(
        copy.deepcopy(actor.encoder).requires_grad_(True) if own else feature_encoder(actor),
        pred_horizon=actor.pred_horizon,
        act_horizon=actor.act_horizon,
        action_dim=actor.action_dim,
        **options,
    )
    policy.config = config
    return policy.to(next(actor.parameters()).device)
