"""An actor of a frozen flow and a latent policy that chooses its noise."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.latent import expand_latent
from torchrl_flow.modules.actors.exploration import draws_noise
from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.observation.frozen_features import FEATURES_KEY, write_features
from torchrl_flow.modules.steering.latent_distribution import LatentNormal
from torchrl_flow.modules.steering.latent_policy import LatentGaussianPolicy
from torchrl_flow.util.partial_weights import accept_weights_of_part

__all__ = ["SteeredFlowActor"]


class SteeredFlowActor(TensorDictModuleBase):
    """Actor for any collector: a latent policy chooses a flow's noise, and the flow maps it to an action chunk.

    Reads the observations of policy and flow. Writes the policy's ``latent`` ``[*B, S, A]`` and ``latent_log_prob``
    ``[*B]``, ``noise`` ``[*B, H, A]`` (the flow's initial noise), ``action_chunk`` ``[*B, H, A]`` and ``action``
    ``[*B, H_a, A]``. The flow is frozen: it is not among the parameters and gets no gradient, but it is moved with the
    module and is part of its state dict.

    If ``latent_noise`` ``[*B, H, A]`` from N(0, I) is given, latent and tail are computed from it, without further
    draws and without prior mixing: the action of a row then depends only on that row's noise.
    :func:`~torchrl_flow.evaluation.evaluate` draws this noise by each episode's own generator (``noise_key`` and
    ``noise_shape``). Its key differs from ``noise``, which is an output and would otherwise be read at the next step.
    For a policy that reads the flow's features (``LatentPolicyConfig(on_features=True)``), observations are encoded
    once for both, and the features ``[*B, 1, C]`` are written too.

    If :func:`~torchrl_flow.modules.draws_noise` returns False, the latent is the policy's mean and the tail is 0.

    Collectors of this actor accept the weights of all its modules, or those of the latent policy alone, which TorchRL's
    trainers send.

    Args:
        policy: latent policy. It is shared, not copied.
        flow: flow actor, usually the averaged one. It is shared, not copied.

    Keyword Args:
        num_steps: K, Euler steps; ``None`` for those of the flow.
        noise_key: key of given draws from N(0, I).
        flow_noise_key: key of the noise from which the flow starts. Defaults to the noise key of the flow.

    Raises:
        ValueError: if policy and flow do not fit together.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, LatentPolicyConfig, make_flow_actor, make_latent_policy
        >>> flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> actor = SteeredFlowActor(make_latent_policy(LatentPolicyConfig(), flow), flow)
        >>> data = actor(TensorDict(observation=torch.zeros(6, 2, 5), batch_size=[6]))
        >>> data["action"].shape, data["latent"].shape, data["latent_log_prob"].shape
        (torch.Size([6, 8, 3]), torch.Size([6, 16, 3]), torch.Size([6]))
    """

    trained_part = "policy"
    """Name of the module whose weights alone may be sent to a collector."""

    def __init__(
        self,
        policy: LatentGaussianPolicy,
        flow: FlowActor,
        *,
        num_steps: int | None = None,
        noise_key: NestedKey = "latent_noise",
        flow_noise_key: NestedKey | None = None,
    ) -> None:
        flow_noise_key = flow.noise_key if flow_noise_key is None else flow_noise_key
        reads_features = FEATURES_KEY in policy.in_keys
        observations = [key for key in dict.fromkeys([*policy.in_keys, *flow.in_keys]) if key != FEATURES_KEY]
        self.in_keys = observations  # pyright: ignore[reportAttributeAccessIssue]
        latents = [policy.latent_key, policy.latent_log_prob_key, flow_noise_key]
        latents += [FEATURES_KEY] if reads_features else []
        self.out_keys = [*latents, *flow.out_keys]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        steps = {"full": flow.pred_horizon, "act_horizon": flow.act_horizon, "tied": 1}[policy.steer_mode]
        wanted = torch.Size([steps, flow.action_dim])
        if policy.latent_shape != wanted:
            raise ValueError(
                f"the policy's latents are {list(policy.latent_shape)}, but steer_mode={policy.steer_mode!r} of this "
                f"flow needs {list(wanted)}: build the policy with make_latent_policy(config, flow)."
            )
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1 or None, got {num_steps}.")
        self.policy, self.reads_features = policy, reads_features
        # Frozen like buffers: excluded from optimisers, gradients and target networks.
        self.flow = flow.eval().requires_grad_(False)
        self.num_steps = flow.num_steps if num_steps is None else num_steps
        self.noise_key, self.flow_noise_key = noise_key, flow_noise_key
        accept_weights_of_part()

    @property
    def noise_shape(self) -> torch.Size:
        """Shape ``[H, A]`` of one row's given noise."""
        return self.flow.noise_shape

    def train(self, mode: bool = True) -> SteeredFlowActor:
        """Set the mode of the policy; the flow stays in evaluation mode."""
        super().train(mode)
        self.flow.eval()
        return self

    def parameters(self, recurse: bool = True) -> Any:
        """Yield the latent policy's parameters; the flow's are frozen."""
        return self.policy.parameters(recurse)

    def decode(
        self, tensordict: TensorDictBase, latent: Tensor, fill: Tensor, *, num_steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map latents to noise and action chunk, both ``[*B, H, A]``.

        Args:
            tensordict: batch ``[*B]`` with the flow's observations, or with its features if the policy reads features.
            latent: ``[*B, S, A]``.
            fill: draws from the prior ``[*B, H, A]`` for the steps that the latent does not determine.
            num_steps: sampling steps K. Defaults to those of the actor.
        """
        num_steps = self.num_steps if num_steps is None else num_steps
        noise = expand_latent(latent, fill, self.policy.steer_mode)
        with torch.no_grad():
            features = (
                tensordict[FEATURES_KEY].flatten(0, -2) if self.reads_features else self.flow.features(tensordict)
            )
            flat = noise.reshape(-1, *self.noise_shape)
            chunk = self.flow.sample(features, flat, num_steps=num_steps)
        return noise, chunk.reshape(noise.shape)

    def _draw(self, tensordict: TensorDictBase, dist: LatentNormal) -> tuple[Tensor, Tensor]:
        """Return a latent, and draws from the prior for the steps that it does not steer."""
        shape = torch.Size([*dist.batch_shape, *self.noise_shape])
        given = tensordict.get(self.noise_key, None)
        if given is not None:
            if given.shape != shape:
                raise ValueError(f"{self.noise_key!r} must have shape {list(shape)}, got {list(given.shape)}.")
            given = given.to(dist.loc.dtype)
            return dist.transport(given[..., : self.policy.latent_shape[0], :]), given
        if not draws_noise():
            return dist.deterministic_sample, dist.loc.new_zeros(shape)
        latent = dist.sample()
        if self.policy.steer_mode != "act_horizon":
            return latent, dist.loc.new_empty(shape)
        return latent, torch.randn(shape, dtype=dist.loc.dtype, device=dist.loc.device)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase, *, num_steps: int | None = None) -> TensorDictBase:
        """Write latent, log-density, noise and action; see the class.

        Args:
            tensordict: batch of any shape ``[*B]``.
            num_steps: sampling steps K of this call.

        Raises:
            ValueError: if a shape does not fit.
        """
        if self.reads_features:
            write_features(self.flow, tensordict)
        dist: Any = self.policy.get_dist(tensordict)
        latent, fill = self._draw(tensordict, dist)
        tensordict.set(self.policy.latent_key, latent)
        # Computed from the stored latent, as in a loss: PPO's ratio is then exactly 1 before the first update.
        tensordict.set(self.policy.latent_log_prob_key, dist.log_prob(latent))
        noise, chunk = self.decode(tensordict, latent, fill, num_steps=num_steps)
        tensordict.set(self.flow_noise_key, noise.detach())
        tensordict.set(self.flow.chunk_key, chunk)
        return tensordict.set(self.flow.action_key, chunk[..., self.flow.executed_slice, :])
