"""The critic of action chunks in a loss: its temporal differences, targets and averaged copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torch.nn import Parameter
from torchrl.objectives import ValueEstimators
from torchrl.objectives.utils import dispatch_value_estimator, distance_loss
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_flow.functional.ensemble import EnsembleReduction, reduce_ensemble, take_best
from torchrl_flow.objectives.shortcut_objective import AveragedNetwork, ShortCutObjective

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torchrl_flow.modules import FlowActor, QEnsemble

EncoderGrad = Literal["actor", "critic", "both"]
"""Which loss trains an encoder that actor and critic share."""

__all__ = ["ChunkCriticObjective", "EncoderGrad"]


class ChunkCriticObjective(ShortCutObjective):
    """Base of losses that also train a critic of the flow actor's executed chunks by temporal differences.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.FlowActor`. Its weights are shared, not copied.
        critic_network: the :class:`~torchrl_flow.modules.QEnsemble`, likewise.

    Keyword Args:
        gamma: discount of one environment step.
        num_min_qs: members in the random subset of the reduction ``"min"``, drawn anew for each use.
        target_reduction: of the target critic's members; see :func:`~torchrl_flow.functional.reduce_ensemble`.
        kappa: of the reduction ``"ucb"``, mean + kappa std: below 0 pessimistic, above 0 optimistic.
        num_action_samples: N, candidates for the following action.
        target_num_steps: K of the candidates; ``None`` for the actor's own where N is 1, and 1 where it is more.
        encoder_grad: which losses train a shared encoder.
        loss_function: distance, as in TorchRL.
        **kwargs: see :class:`ShortCutObjective`.
    """

    @dataclass
    class _AcceptedKeys(ShortCutObjective._AcceptedKeys):
        """Keys that ``set_keys`` accepts, beside those of :class:`ShortCutObjective`.

        Attributes:
            action: the chunk that was sent, ``[*B, H_a, A]``.
            reward: discounted return of the executed steps ``[*B, 1]``, under ``"next"``.
            done: ``[*B, 1]`` bool, under ``"next"``.
            terminated: ``[*B, 1]`` bool, under ``"next"``.
            steps_to_next_obs: executed steps ``[*B, 1]``, from the root.
            priority: where each row's largest absolute TD error ``[*B]`` is written.
        """

        action: NestedKey = "action"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        steps_to_next_obs: NestedKey = ("next", "steps_to_next_obs")
        priority: NestedKey = "td_error"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    target_reduction: EnsembleReduction
    default_value_estimator = ValueEstimators.TD0
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda)

    critic_network: QEnsemble
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: FlowActor,
        critic_network: QEnsemble,
        *,
        gamma: float,
        num_min_qs: int,
        target_reduction: EnsembleReduction,
        kappa: float,
        num_action_samples: int,
        target_num_steps: int | None,
        encoder_grad: EncoderGrad,
        loss_function: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(actor_network, **kwargs)
        self.gamma, self.num_min_qs, self.target_reduction, self.kappa = gamma, num_min_qs, target_reduction, kappa
        self.num_action_samples, self.encoder_grad = num_action_samples, encoder_grad
        if target_num_steps is None:
            target_num_steps = actor_network.num_steps if num_action_samples == 1 else 1
        self.target_num_steps, self.loss_function = target_num_steps, loss_function
        self._check(actor_network, critic_network)
        self.shared_encoder = not {*actor_network.encoder.parameters()}.isdisjoint(critic_network.encoder.parameters())
        self.convert_to_functional(
            critic_network,  # pyright: ignore[reportArgumentType]
            "critic_network",
            create_target_params=True,
        )
        # Made here and not at first use, so that every state dict of the loss has the same entries.
        self.make_value_estimator()

    def _check(self, actor: FlowActor, critic: QEnsemble) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma}.")
        if not 1 <= self.num_min_qs <= critic.num_qs:
            raise ValueError(f"num_min_qs must lie between 1 and num_qs={critic.num_qs}, got {self.num_min_qs}.")
        for name in ("num_action_samples", "target_num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name, allowed in (
            ("target_reduction", ("min", "mean", "ucb")),
            ("encoder_grad", ("actor", "critic", "both")),
            ("loss_function", ("l1", "l2", "smooth_l1")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        ours, theirs = (actor.act_horizon, actor.action_dim), (critic.act_horizon, critic.action_dim)
        if ours != theirs:
            raise ValueError(
                f"the actor executes chunks [act_horizon, action_dim] = {list(ours)} but the critic values "
                f"{list(theirs)}; build the critic with QEnsemble.for_actor(actor)."
            )

    # Keys

    def _make_in_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        observations = [*self.actor_network.in_keys, *self.critic_network.encoder.in_keys]
        following = [*observations, keys.reward, keys.done, keys.terminated]
        wanted = [*observations, keys.action_chunk, keys.action, *(("next", key) for key in following)]
        return list(dict.fromkeys(unravel_key(key) for key in [*wanted, keys.steps_to_next_obs]))

    def _estimator_keys(self) -> dict[str, NestedKey]:
        names = ("reward", "done", "terminated", "steps_to_next_obs")
        return {name: getattr(self.tensor_keys, name) for name in names}

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        self._in_keys = None
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())

    def make_value_estimator(
        self,
        value_type: ValueEstimators | ValueEstimatorBase | type[ValueEstimatorBase] | None = None,
        **hyperparams: Any,
    ) -> ChunkCriticObjective:
        """Choose the value estimator of the targets: TD(0) unless told otherwise, TD(1) or TD(lambda).

        The latter read ``[*B, T]`` batches with time in the last dimension. ``gamma`` is the loss's own by default.
        An estimator or a class of estimators may be given instead, as in TorchRL; it gets the loss's keys.
        """
        value_type = self.default_value_estimator if value_type is None else value_type
        given = isinstance(value_type, type) and issubclass(value_type, ValueEstimatorBase)
        if given or isinstance(value_type, ValueEstimatorBase):
            super().make_value_estimator(value_type, **hyperparams)  # pyright: ignore[reportArgumentType]
            self.value_estimator.set_keys(**self._estimator_keys())
            return self
        dispatch_value_estimator(
            self,
            value_type,
            supported=self.SUPPORTED_VALUE_ESTIMATORS,
            tensor_keys=self._estimator_keys(),
            **{"value_network": None, "device": self._default_device, **hyperparams},
        )
        return self

    # The networks

    def actor_parameters(self) -> Iterator[Parameter]:
        """Yield the actor's parameters; with ``encoder_grad="actor"`` a shared encoder is among them."""
        return self._own(self.actor_network_params, self.critic_network_params, self.encoder_grad == "actor")

    def critic_parameters(self) -> Iterator[Parameter]:
        """Yield the critic's parameters; unless ``encoder_grad="actor"`` a shared encoder is among them."""
        return self._own(self.critic_network_params, self.actor_network_params, self.encoder_grad != "actor")

    def _own(self, params: TensorDictParams, others: TensorDictParams, with_shared: bool) -> Iterator[Parameter]:
        shared = set() if with_shared else set(others.parameters())
        return (parameter for parameter in params.parameters() if parameter not in shared)

    def ema_critic(self) -> QEnsemble:
        """Return a copy of the critic that holds the target weights, in evaluation mode."""
        return self._averaged("critic_network")  # pyright: ignore[reportReturnType]

    @property
    def ema_value(self) -> AveragedNetwork:
        """The target critic's weights as an object with a state dict, for checkpoints."""
        return AveragedNetwork(self, "critic_network")

    def load_ema_critic(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the target critic from the state dict of an :meth:`ema_critic`."""
        self._load_averaged("critic_network", state_dict)

    # The term

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the critic's loss alone, and its metrics."""
        return self._critic_term(tensordict, self._data_values(tensordict))

    def _data_values(self, tensordict: TensorDictBase) -> Tensor:
        """Return the critic's values ``[num_qs, B]`` of the chunks that were sent."""
        critic = self.critic_network
        action = tensordict[self.tensor_keys.action]
        with self.critic_network_params.to_module(critic, preserve_module_state=False):
            features = critic.encoder(*critic.encoder.preprocess(tensordict, augment=self.augment))
            if self.shared_encoder and self.encoder_grad == "actor":
                features = features.detach()
            return critic.q_values(features, action.reshape(-1, *action.shape[-2:])).squeeze(-1)

    def _reduce_members(self, q: Tensor, reduction: EnsembleReduction) -> Tensor:
        draws = torch.rand(q.shape[0], device=q.device)
        return reduce_ensemble(q, reduction, draws=draws, num_min_qs=self.num_min_qs, kappa=self.kappa)

    def _critic_term(self, tensordict: TensorDictBase, q: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        target = self.target_value(tensordict)
        batch, target = target.shape[:-1], target.reshape(-1)
        rows = distance_loss(q, target.expand_as(q), loss_function=self.loss_function).mean(0).reshape(batch)
        loss = self._reduce_loss(rows, tensordict, weights=self._priority(tensordict, batch))
        q = q.detach()
        td_error = (target - q).abs()
        tensordict.set(self.tensor_keys.priority, td_error.amax(0).reshape(batch))
        return loss, {
            "q_mean": q.mean(),
            "q_std": q.std(0, unbiased=False).mean(),
            "q_target_mean": target.mean(),
            "td_error": td_error.mean(),
        }

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the targets ``y`` ``[*B, 1]`` of a batch.

        Raises:
            KeyError: if a key of the transition is missing; nothing is assumed in its place.
        """
        for key in self._estimator_keys().values():
            tensordict[key if key == self.tensor_keys.steps_to_next_obs else unravel_key(("next", key))]
        following: Any = tensordict["next"]
        return self.value_estimator.value_estimate(tensordict, next_value=self.next_value(following))

    def _discounted(self, tensordict: TensorDictBase, next_value: Tensor) -> Tensor:
        """Return ``R + gamma^k (1 - terminated) next_value`` ``[B]``, by the value estimator, of values ``[B]``."""
        batch = self.actor_network.encoder.batch_shape(tensordict)
        target = self.value_estimator.value_estimate(tensordict, next_value=next_value.reshape(*batch, 1))
        return target.reshape(-1)

    def _next_noise(self, tensordict: TensorDictBase, features: Tensor, num: int) -> Tensor:
        """Return the noise ``[B, num, H, A]`` of ``num`` chunks for each state, whose features ``[B, C]`` are given."""
        # Drawn here: inside a loss TorchRL sets the exploration type that would make the actor's own noise 0.
        shape = (features.shape[0], num, *self.actor_network.noise_shape)
        return torch.randn(shape, device=features.device, dtype=features.dtype)

    @torch.no_grad()
    def next_value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the target critic's value ``[*B, 1]`` of the averaged actor's chunk (the best of N) for a state.

        Args:
            tensordict: the observations that follow, ``[*B]``.
        """
        batch = self.actor_network.encoder.batch_shape(tensordict)
        executed = self.sample_targets(tensordict, self.num_action_samples)
        q = self._values(self.target_critic_network_params, tensordict, executed)
        best = take_best(q.mean(0), q, dim=1)
        return self._reduce_members(best, self.target_reduction).reshape(*batch, 1)

    @torch.no_grad()
    def sample_targets(self, tensordict: TensorDictBase, num: int) -> Tensor:
        """Return ``num`` executed chunks ``[B, num, H_a, A]`` of the averaged actor for each state of a batch."""
        actor = self.actor_network
        with self.target_actor_network_params.to_module(actor, preserve_module_state=False):
            features = actor.features(tensordict, augment=self.augment)
            noise = self._next_noise(tensordict, features, num)
            chunks = actor.sample(features, noise, num_steps=self.target_num_steps)
        return chunks[..., actor.executed_slice, :]

    def _values(self, params: TensorDictParams, tensordict: TensorDictBase, action: Tensor) -> Tensor:
        """Return the values ``[num_qs, B, S]`` of S chunks a row, by the critic with the given parameters."""
        critic = self.critic_network
        with params.to_module(critic, preserve_module_state=False):
            features = critic.encoder(*critic.encoder.preprocess(tensordict, augment=self.augment))
            return critic.q_values(features, action).squeeze(-1)
