"""Search for latents from which a flow reproduces given actions (noise aliasing)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.aliasing import alias_residual, best_alias, invert_noise, reverse_flow
from torchrl_flow.functional.latent import SteerMode, expand_latent, unbound_latent
from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.config import Config
from torchrl_flow.modules.observation.frozen_features import frozen_features
from torchrl_flow.modules.steering.latent_policy import LatentGaussianPolicy

AliasMode = Literal["inversion", "retrieval", "reversal"]
"""Method that finds a latent for a recorded chunk: inversion, retrieval, or reversal of the flow."""

__all__ = ["AliasConfig", "AliasMode", "NoiseAliaser"]


@dataclasses.dataclass(frozen=True)
class AliasConfig(Config):
    """Configuration of the search for aliases, as plain values.

    Raises:
        ValueError: if a value is outside its allowed range.
    """

    mode: AliasMode = "inversion"
    """Gradient descent on the latent, the best of many draws, or backward integration of the flow."""
    starts: int = 4
    """Starting points per row (inversion)."""
    steps: int = 30
    """Gradient steps (inversion)."""
    lr: float = 0.1
    """Learning rate of the gradient steps, which falls to a tenth of this (inversion)."""
    prior_coef: float = 1e-3
    """Weight of the squared latent in the loss (inversion)."""
    candidates: int = 128
    """Draws per row (retrieval)."""
    reverse_steps: int = 64
    """Backward steps, with the instantaneous velocity (reversal)."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.mode not in ("inversion", "retrieval", "reversal"):
            raise ValueError(f"mode must be 'inversion', 'retrieval' or 'reversal', got {self.mode!r}.")
        for name in ("starts", "steps", "candidates", "reverse_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.lr <= 0 or self.prior_coef < 0:
            raise ValueError(f"lr > 0 and prior_coef >= 0 are needed, got {self.lr} and {self.prior_coef}.")


class NoiseAliaser(TensorDictModuleBase):
    """Module that writes, for each row, a latent from which the flow reproduces the action, and the residual.

    Reads the flow's observations and the executed ``action`` ``[*B, H_a, A]``. ``"reversal"`` integrates the whole
    ``action_chunk`` ``[*B, H, A]`` backwards; if that is absent, its tail is sampled from the flow. Writes ``latent``
    ``[*B, S, A]``, within the policy's bound and in its steer mode, and ``alias_residual`` ``[*B, 1]``: the root mean
    square distance, in normalised units, between the flow's action for this latent and the given action.

    Args:
        flow: the frozen flow.
        policy: latent policy, which gives steer mode, bound and key of the latents; its weights are not used.

    Keyword Args:
        config: method of the search and its hyper-parameters.
        num_steps: sampling steps K; ``None`` for the flow's own.
        residual_key: key of the residual.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, LatentPolicyConfig, make_flow_actor, make_latent_policy
        >>> flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, num_steps=1))
        >>> data = flow(TensorDict(observation=torch.zeros(6, 2, 5), batch_size=[6]))
        >>> alias = NoiseAliaser(flow, make_latent_policy(LatentPolicyConfig(), flow))
        >>> alias(data)["alias_residual"].shape
        torch.Size([6, 1])
    """

    def __init__(
        self,
        flow: FlowActor,
        policy: LatentGaussianPolicy,
        *,
        config: AliasConfig | None = None,
        num_steps: int | None = None,
        residual_key: NestedKey = "alias_residual",
    ) -> None:
        config = AliasConfig() if config is None else config
        self.in_keys = [*flow.in_keys, flow.action_key]  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [policy.latent_key, residual_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        self.flow, self.config, self.num_steps = flow, config, num_steps
        self.latent_shape, self.bound = policy.latent_shape, policy.latent_bound
        self.steer_mode: SteerMode = policy.steer_mode
        self.latent_key, self.residual_key = policy.latent_key, residual_key
        self.prior_latent = policy.prior_latent

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine an alias, besides the flow's weights and the data, as JSON-able values."""
        own = {"steer_mode": self.steer_mode, "bound": self.bound, "num_steps": self.num_steps}
        return {**self.config.to_dict(), **own, "latent_shape": list(self.latent_shape)}

    def _randn(self, *shape: int, generator: torch.Generator | None) -> Tensor:
        drawn = torch.randn(*shape, generator=generator)
        return drawn.to(next(self.flow.parameters()).device)

    def _decode(self, features: Tensor, latent: Tensor, fill: Tensor) -> Tensor:
        """Return the normalised heads ``[*, H_a, A]`` of latents ``[*, S, A]``, unclamped: a clamp has no gradient."""
        noise = expand_latent(latent, fill, self.steer_mode)
        flow = self.flow
        chunk = flow.sample_normalised(features, noise, num_steps=self.num_steps)
        return chunk[..., flow.executed_slice, :]

    def forward(self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None) -> TensorDictBase:
        """Write the latent and its residual.

        Args:
            tensordict: batch of any shape ``[*B]``.
            generator: generator of the draws, on the CPU. Defaults to the global one.
        """
        flow = self.flow
        batch = flow.encoder.batch_shape(tensordict)
        with torch.no_grad():
            features = frozen_features(flow, tensordict)
            target = tensordict[flow.action_key].reshape(-1, flow.act_horizon, flow.action_dim)
            target = flow.action_normalizer(target)
            fill = self._randn(features.shape[0], *flow.noise_shape, generator=generator)
            latent = getattr(self, f"_{self.config.mode}")(tensordict, features, target, fill, generator)
            residual = alias_residual(self._decode(features, latent, fill), target)
        tensordict.set(self.latent_key, latent.reshape(*batch, *self.latent_shape))
        return tensordict.set(self.residual_key, residual.reshape(*batch, 1))

    def _candidates(self, rows: int, num: int, generator: torch.Generator | None) -> Tensor:
        return self._randn(rows, num, *self.latent_shape, generator=generator)

    def _inversion(
        self, data: TensorDictBase, features: Tensor, target: Tensor, fill: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        config = self.config
        start = self._candidates(len(target), config.starts, generator)
        fill = fill.unsqueeze(1).expand(-1, config.starts, -1, -1)
        noise, _ = invert_noise(
            lambda u: self._decode(features, self.prior_latent(u), fill),
            target,
            start,
            num_steps=config.steps,
            lr=config.lr,
            final_lr=config.lr / 10,
            prior_coef=config.prior_coef,
        )
        return self.prior_latent(noise)

    def _retrieval(
        self, data: TensorDictBase, features: Tensor, target: Tensor, fill: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        num = self.config.candidates
        latent = self.prior_latent(self._candidates(len(target), num, generator))
        decoded = self._decode(features, latent, fill.unsqueeze(1).expand(-1, num, -1, -1))
        return best_alias(latent, decoded, target)[0]

    def _reversal(
        self, data: TensorDictBase, features: Tensor, target: Tensor, fill: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        flow = self.flow
        chunk = data.get(flow.chunk_key, None)
        if chunk is None:
            chunk = flow.sample_normalised(features, fill, num_steps=self.num_steps)
        else:
            chunk = flow.action_normalizer(chunk.reshape(-1, *flow.noise_shape))
        x_1 = chunk.clone()
        x_1[:, flow.executed_slice] = target
        noise = reverse_flow(lambda x, t, d: flow.velocity(features, x, t, d), x_1, num_steps=self.config.reverse_steps)
        if self.steer_mode == "tied":
            noise = noise[:, flow.executed_slice].mean(1, keepdim=True)
        latent = noise[:, : self.latent_shape[0]]
        if self.bound is not None:
            # The nearest latent within the policy's bound.
            limit = self.bound * (1 - 1e-4)
            latent = self.prior_latent(unbound_latent(latent.clamp(-limit, limit), self.bound))
        return latent
