"""The TD error of a critic of executed chunks, as a term of losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor

from torchrl_flow.functional.checks import check_at_least, check_one_of
from torchrl_flow.functional.ensemble import REDUCTIONS, EnsembleReduction, reduce_ensemble, take_best
from torchrl_flow.objectives.flow_loss import check_flow_actor
from torchrl_flow.objectives.network_calls import running

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor, QEnsemble

__all__ = ["ChunkTDTerm", "check_critic_fits"]


def check_critic_fits(actor: FlowActor, critic: QEnsemble, num_min_qs: int = 1) -> None:
    """Validate that the critic reads the chunks that the actor executes, and has enough members."""
    check_flow_actor(actor)
    if not hasattr(critic, "num_qs"):
        name = type(critic).__name__
        raise ValueError(f"critic_network must be a QEnsemble, got a {name}: build it with QEnsemble.for_actor(actor).")
    ours, theirs = (actor.act_horizon, actor.action_dim), (critic.act_horizon, critic.action_dim)
    if ours != theirs:
        raise ValueError(
            f"the actor executes chunks [act_horizon, action_dim] = {list(ours)} but the critic values "
            f"{list(theirs)}; build the critic with QEnsemble.for_actor(actor)."
        )
    if num_min_qs > critic.num_qs:
        raise ValueError(f"num_min_qs must be at most num_qs={critic.num_qs}, got {num_min_qs}.")


@dataclass(frozen=True)
class ChunkTDTerm:
    """Squared temporal difference of each row, ``mean_i (Q_i(s, a) - y)^2``, and the bootstrap value of ``y``.

    ``y = R + gamma^k (1 - terminated) reduce_i Q_target,i(s', a')`` with ``a'`` the best of N chunks of the averaged
    actor. The loss's value estimator applies the discount; this term does the rest.

    The term owns no network: the loss passes actor, critic and the parameters to run them with.

    Args:
        num_min_qs: size of the random subset of members for the reduction ``"min"``; a new subset is drawn for each
            use.
        target_reduction: reduction of the target critic's members; see
            :func:`~torchrl_flow.functional.reduce_ensemble`.
        kappa: weight of the standard deviation of the reduction ``"ucb"``, mean + kappa std: a negative weight is
            pessimistic, a positive one optimistic.
        num_action_samples: N, candidates for ``a'``; the candidate with the highest mean target value is used.
        target_num_steps: sampling steps K of the candidates.
        augment: let the encoders augment observations.

    Raises:
        ValueError: if an argument is outside its allowed range.
    """

    num_min_qs: int = 2
    target_reduction: EnsembleReduction = "min"
    kappa: float = -1.0
    num_action_samples: int = 1
    target_num_steps: int = 1
    augment: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("num_min_qs", "num_action_samples", "target_num_steps"):
            check_at_least(name, getattr(self, name), 1)
        check_one_of("target_reduction", self.target_reduction, REDUCTIONS)

    def __call__(self, q: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return each row's error, each row's largest TD error, and metrics.

        Args:
            q: the members' values ``[num_qs, B]``.
            target: target y, ``[B]``, without a gradient.

        Returns:
            errors ``[B]``; TD errors ``[B]``, detached; ``q_mean``, ``q_std`` (between members), ``q_target_mean`` and
            ``td_error``, its mean absolute value, detached.
        """
        rows = (q - target).square().mean(0)
        q = q.detach()
        td_error = (target - q).abs()
        return (
            rows,
            td_error.amax(0),
            {
                "q_mean": q.mean(),
                "q_std": q.std(0, unbiased=False).mean(),
                "q_target_mean": target.mean(),
                "td_error": td_error.mean(),
            },
        )

    def values(
        self,
        critic: QEnsemble,
        params: TensorDictParams,
        tensordict: TensorDictBase,
        action: Tensor,
        *,
        detach_features: bool = False,
        members: Tensor | None = None,
    ) -> Tensor:
        """Return the members' values of executed chunks.

        Args:
            critic: the critic.
            params: parameters of the critic, or its target parameters.
            tensordict: batch ``[*B]`` with the observations.
            action: ``[B, H_a, A]`` of the flattened batch, or S for each row, ``[B, S, H_a, A]``.
            detach_features: stop the gradient before the encoder.
            members: indices of the members to compute. Defaults to all.

        Returns:
            ``[num_qs, B]`` or ``[num_qs, B, S]``.
        """
        with running(params, critic):
            features = critic.encoder(*critic.encoder.preprocess(tensordict, augment=self.augment))
            return critic.q_values(features.detach() if detach_features else features, action, members).squeeze(-1)

    @torch.no_grad()
    def chunks(
        self,
        actor: FlowActor,
        params: TensorDictParams,
        tensordict: TensorDictBase,
        num: int,
        steer: Callable[[TensorDictBase, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Draw executed chunks of a flow actor.

        Args:
            actor: the flow actor.
            params: parameters of the actor, or its averaged parameters.
            tensordict: batch ``[*B]`` with the observations.
            num: chunks for each observation.
            steer: function of noise from the prior, ``[B, num, H, A]``, that returns the flow's initial noise. Defaults
                to None: the flow starts from the noise itself.

        Returns:
            ``[B, num, H_a, A]``.
        """
        with running(params, actor):
            features = actor.features(tensordict, augment=self.augment)
            # Drawn here: inside a loss, TorchRL sets an exploration type under which the actor's own noise would be 0.
            shape = (features.shape[0], num, *actor.noise_shape)
            noise = torch.randn(shape, device=features.device, dtype=features.dtype)
            noise = noise if steer is None else steer(tensordict, noise)
            chunks = actor.sample(features, noise, num_steps=self.target_num_steps)
        return chunks[..., actor.executed_slice, :]

    def reduce(self, q: Tensor, reduction: EnsembleReduction) -> Tensor:
        """Reduce the members' values ``[num_qs, B]`` to ``[B]``."""
        draws = torch.rand(q.shape[0], device=q.device)
        return reduce_ensemble(q, reduction, draws=draws, num_min_qs=self.num_min_qs, kappa=self.kappa)

    def next_value(
        self, critic: QEnsemble, params: TensorDictParams, tensordict: TensorDictBase, chunks: Tensor
    ) -> Tensor:
        """Return the target critic's value ``[B]`` of the best of N candidates ``[B, N, H_a, A]``.

        With a single candidate, the minimum over a random subset of members needs only the members of that subset.
        """
        if self.target_reduction == "min" and chunks.shape[1] == 1:
            draws = torch.rand(critic.num_qs, device=chunks.device)
            members = draws.topk(self.num_min_qs).indices
            return self.values(critic, params, tensordict, chunks, members=members).amin(0).squeeze(-1)
        return self.bootstrap(self.values(critic, params, tensordict, chunks))

    def bootstrap(self, q: Tensor) -> Tensor:
        """Return the value ``[B]`` of the best of N candidates from the members' values ``[num_qs, B, N]``."""
        return self.reduce(take_best(q.mean(0), q, dim=1), self.target_reduction)
