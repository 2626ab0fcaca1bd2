"""PPO over a denoising chain, with schedules for fine-tuning a cloned flow."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from torchrl_flow.functional.chain import NoiseSchedule, chunk_transport_cost, max_sigma_schedule
from torchrl_flow.functional.checks import check_at_least, check_one_of, check_positive, check_shape
from torchrl_flow.objectives.flow_loss import REDUCTIONS
from torchrl_flow.objectives.held_networks import HeldNetworks
from torchrl_flow.objectives.network_calls import running

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from torch.distributions import Distribution

    from torchrl_flow.modules import FlowActor, NoisyFlowActor, StateValue

__all__ = ["ReinFlowPPOLoss"]


class ReinFlowPPOLoss(HeldNetworks, ClipPPOLoss):
    """TorchRL's :class:`~torchrl.objectives.ClipPPOLoss` on the chain of a noisy flow, with a training schedule.

    Additions to PPO, each off by default:

    - **Warm-up of the critic.** Before ``warmup_steps`` environment steps the only loss is ``loss_critic``: no gradient
      reaches the flow or its noise.
    - **Schedule of the noise.** The upper bound of the chain's noise falls from its value when the loss is built.
    - **Stop by divergence.** :meth:`should_stop` returns whether ``divergence``, the mean of ``r - 1 - log r`` over the
      ratios r, exceeds ``target_kl``. It estimates ``KL(old || new)`` and is never negative, unlike ``kl_approx``.
    - **Anchor.** ``anchor_coeff`` times the transport cost between the chunks of the flow and those of its initial
      weights (when the loss is built), from the same noise: an upper bound on the squared 2-Wasserstein distance.

    Call :meth:`set_env_steps` between iterations, so that chains are scored under the noise bound under which they were
    drawn. Minibatches must hold ``advantage`` and ``value_target``, which :class:`~torchrl.objectives.value.GAE` writes
    into whole rollouts.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.NoisyFlowActor`. It is shared, not copied.
        critic_network: the :class:`~torchrl_flow.modules.StateValue`. It is shared, not copied.

    Keyword Args:
        warmup_steps: environment steps in which only the value network is trained.
        noise_schedule: schedule of the upper bound of the noise, see
            :func:`~torchrl_flow.functional.max_sigma_schedule`; ``None`` for a constant bound.
        noise_decay_steps: environment steps over which the bound falls.
        target_kl: divergence at which the updates of an iteration stop; ``None`` for no limit.
        anchor_coeff: weight of the distance to the initial flow; 0 for none.
        **kwargs: see :class:`~torchrl.objectives.ClipPPOLoss`.

    Output: ``loss_critic`` and ``explained_variance``; after the warm-up also the outputs of ClipPPOLoss,
    ``divergence``, and with an anchor ``loss_anchor``.

    Raises:
        ValueError: if an argument is outside its allowed range.

    References:
        Zhang et al., "ReinFlow", https://arxiv.org/abs/2505.22094

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, NoiseNetConfig, NoisyFlowActor, StateValueConfig
        >>> from torchrl_flow.modules import make_flow_actor, make_noise_net, make_state_value
        >>> flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> noisy = NoisyFlowActor(flow, make_noise_net(NoiseNetConfig(), flow))
        >>> loss = ReinFlowPPOLoss(noisy, make_state_value(StateValueConfig(), flow), warmup_steps=5000)
        >>> loss.out_keys
        ['loss_critic', 'explained_variance']
        >>> loss.set_env_steps(5000)
        >>> loss.warming_up
        False
    """

    @dataclass
    class _AcceptedKeys(ClipPPOLoss._AcceptedKeys):
        """Keys that ``set_keys`` accepts, in addition to those of ClipPPOLoss.

        Attributes:
            noise: initial noise of both flows of the anchor, ``[*B, H, A]``; drawn if absent.
        """

        action: NestedKey | list[NestedKey] = ("flow", "x_next")
        sample_log_prob: NestedKey | list[NestedKey] | None = ("flow", "log_prob")
        noise: NestedKey = "noise"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    actor_network: NoisyFlowActor
    critic_network: StateValue
    anchor_flow: FlowActor | None
    env_steps: Tensor

    def __init__(
        self,
        actor_network: NoisyFlowActor,
        critic_network: StateValue,
        *,
        warmup_steps: int = 0,
        noise_schedule: NoiseSchedule | None = None,
        noise_decay_steps: int = 500_000,
        target_kl: float | None = None,
        anchor_coeff: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_at_least("warmup_steps", warmup_steps, 0)
        check_at_least("anchor_coeff", anchor_coeff, 0)
        if target_kl is not None:
            check_positive("target_kl", target_kl, none="no stop")
        check_one_of("reduction", kwargs.get("reduction") or "mean", REDUCTIONS)
        noise_net = actor_network.noise_net
        self.warmup_steps, self.noise_schedule, self.noise_decay_steps = warmup_steps, noise_schedule, noise_decay_steps
        self.sigma_min, self.sigma_max = noise_net.sigma_min, float(noise_net.sigma_max)
        self.target_kl, self.anchor_coeff = target_kl, anchor_coeff
        self._warming_up = warmup_steps > 0
        self._divergence: Tensor | None = None
        self.noise_bound()
        super().__init__(actor_network, critic_network, **kwargs)  # pyright: ignore[reportArgumentType]
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        anchor = copy.deepcopy(actor_network.flow_actor).eval().requires_grad_(False) if anchor_coeff else None
        self.hold(anchor_flow=anchor)

    # The schedule

    @property
    def warming_up(self) -> bool:
        """Whether only the value network is trained."""
        return self._warming_up

    def noise_bound(self, env_steps: int = 0) -> float:
        """Return the upper bound of the noise after ``env_steps`` environment steps.

        Raises:
            ValueError: if the schedule is unknown or a number is outside its allowed range.
        """
        kind: Any = self.noise_schedule or "constant"
        return max_sigma_schedule(
            env_steps,
            kind=kind,
            sigma_max=self.sigma_max,
            sigma_min=self.sigma_min,
            decay_steps=self.noise_decay_steps,
        )

    def set_env_steps(self, env_steps: int) -> None:
        """Set the number of environment steps, which ends the warm-up and lowers the bound of the noise.

        Raises:
            ValueError: if ``env_steps`` is negative.
        """
        bound = self.noise_bound(env_steps)
        self.env_steps.fill_(env_steps)
        self._warming_up = env_steps < self.warmup_steps
        if self.noise_schedule is not None:
            # Set for the acting policy and for the scoring parameters: after a cast they are two tensors.
            self.actor_network.noise_net.set_sigma_max(bound)
            self.actor_network_params["noise_net", "sigma_max"].data.fill_(bound)

    def should_stop(self, divergence: Tensor | float) -> bool:
        """Return whether a divergence, such as an epoch's mean, exceeds ``target_kl``."""
        return self.target_kl is not None and float(divergence) > self.target_kl

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._warming_up = int(self.env_steps) < self.warmup_steps

    # Keys

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        wanted: list[Any] = [*self.actor_network.in_keys, *self.critic_network.in_keys, self.actor_network.x_key]
        wanted += [keys.action, keys.sample_log_prob, keys.advantage, keys.value_target]
        self._in_keys = list(dict.fromkeys(wanted))

    @property
    def out_keys(self) -> list[NestedKey]:
        """Keys that the loss currently writes; fewer during the warm-up."""
        if self._out_keys is not None:
            return self._out_keys
        critic = ["loss_critic"] if self._has_critic else []
        critic += ["value_clip_fraction"] if self.clip_value else []
        critic += ["explained_variance"] if self._has_critic and self.log_explained_variance else []
        if self._warming_up:
            return critic  # pyright: ignore[reportReturnType]
        names = [
            "loss_objective",
            "clip_fraction",
            *(["entropy", "loss_entropy"] if self.entropy_bonus else []),
            *critic,
        ]
        names += ["ESS", "kl_approx", "max_ratio", "mean_ratio", "divergence"]
        return [*names, *(["loss_anchor"] if self.anchor_coeff else [])]

    @out_keys.setter
    def out_keys(self, values: list[NestedKey] | None) -> None:
        self._out_keys = values

    # The terms

    def _get_entropy(self, dist: Distribution, adv_shape: torch.Size) -> Tensor:
        # A chain's entropy has a closed form; TorchRL's generic method draws samples under compilation.
        return dist.entropy().unsqueeze(-1)

    def _log_weight(self, tensordict: TensorDictBase, adv_shape: torch.Size) -> tuple[Any, ...]:
        for key in (self.tensor_keys.action, self.tensor_keys.sample_log_prob):
            tensordict[key]  # pyright: ignore[reportArgumentType]  # KeyError here; TorchRL would ignore the absence.
        found = super()._log_weight(tensordict, adv_shape)
        log_ratio = found[0].detach()
        # r - 1 - log r is of the order of (log r)^2; a difference of means would lose it to rounding.
        self._divergence = (torch.expm1(log_ratio) - log_ratio).mean()
        return found

    def critic_terms(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute only the critic's loss, and its metrics."""
        rows, clip_fraction, explained_variance = self.loss_critic(tensordict)
        loss = self._reduce_loss(rows, tensordict).squeeze(-1)  # pyright: ignore[reportArgumentType]
        metrics = {"value_clip_fraction": clip_fraction, "explained_variance": explained_variance}
        return TensorDict({"loss_critic": loss, **{k: v for k, v in metrics.items() if v is not None}})

    def anchor_loss(self, tensordict: TensorDictBase) -> Tensor:
        """Compute the weighted anchor loss of a batch of any shape.

        Raises:
            ValueError: if the loss has no anchor, or the noise's shape is not ``[*B, H, A]``.
        """
        start, actor = self.anchor_flow, self.actor_network
        if start is None:
            raise ValueError("this loss has no anchor: build it with anchor_coeff above 0.")
        batch = actor.flow_actor.encoder.batch_shape(tensordict)
        with running(self.actor_network_params, actor):
            features = actor.features(tensordict)
            noise = self._anchor_noise(tensordict, batch, features)
            chunk = actor.flow_actor.sample_normalised(features, noise, num_steps=actor.num_steps)
        with torch.no_grad():
            # A frozen encoder still has its initial weights.
            features = start.features(tensordict) if actor.train_encoder else features
            reference = start.sample_normalised(features, noise, num_steps=actor.num_steps)
        rows = chunk_transport_cost(chunk, reference).reshape(batch)
        return self.anchor_coeff * self._reduce_loss(rows, tensordict)

    def _anchor_noise(self, tensordict: TensorDictBase, batch: torch.Size, features: Tensor) -> Tensor:
        shape = torch.Size([*batch, *self.actor_network.flow_actor.noise_shape])
        noise = tensordict.get(self.tensor_keys.noise, None)
        if noise is None:
            noise = torch.randn(shape, device=features.device, dtype=features.dtype)
        check_shape(repr(self.tensor_keys.noise), noise, shape, "[*B, pred_horizon, action_dim]")
        return noise.to(features.dtype).reshape(-1, *shape[len(batch) :])

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the losses of a batch; during the warm-up only the critic's loss.

        Raises:
            KeyError: if an entry is missing. Unlike TorchRL's PPO, the loss does not compute a missing advantage: rows
                of a minibatch are not consecutive steps.
        """
        advantage = self.tensor_keys.advantage
        if not self._warming_up and tensordict.get(advantage, None) is None:
            raise KeyError(f"{advantage!r} is missing: apply GAE to whole rollouts, before minibatches are drawn.")
        if self._warming_up:
            out: TensorDictBase = self.critic_terms(tensordict)
        else:
            out = super().forward(tensordict)
            out.set("divergence", self._divergence)
            self._divergence = None
            if self.anchor_coeff:
                out.set("loss_anchor", self.anchor_loss(tensordict))
        self._clear_weakrefs(tensordict, out, "actor_network_params", "critic_network_params")
        return out
