"""Advantage-weighted ShortCut flow: a flow actor cloned by weights that a critic of chunks gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.advantage import (
    AdvantageNorm,
    Weighting,
    advantage_weights,
    batch_advantage,
    effective_sample_size,
)
from torchrl_flow.functional.ensemble import EnsembleReduction
from torchrl_flow.objectives.chunk_critic import ChunkCriticObjective, EncoderGrad

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor, QEnsemble

Baseline = Literal["batch", "policy"]

AdvantageSource = Literal["critic", "td"]

__all__ = ["AWFlowLoss", "AdvantageSource", "Baseline"]


class AWFlowLoss(ChunkCriticObjective):
    """Weighted ShortCut cloning of a flow actor, and temporal differences of its chunk critic.

    Actor: the mean of ``w * error`` with each row's ShortCut error (that of
    :class:`~torchrl_flow.objectives.ShortCutFlowLoss`, which it equals bit for bit at ``beta=0``) and weights
    ``w = min(exp(beta A), weight_clip)``, scaled to mean 1. With ``baseline="batch"`` ``A = q - mean(q)`` of the
    critic's values of the data's own chunks: rows compete with one another, so that chunks in states near the goal
    outweigh all others where rewards are sparse. With ``baseline="policy"`` ``A = q - mean_i Q(s, a_i)`` with
    ``a_i`` from the averaged actor in the same state, the advantage proper. With ``advantage="td"`` the first term is
    not Q of the chunk but ``R + gamma^k (1 - terminated) V(s')``, where V is that mean of Q: the temporal-difference
    advantage. It needs a critic that ranks states, which is much easier than ranking chunks of one state.

    Critic: ``y = R + gamma^k (1 - terminated) min_subset Q_target(s', a')`` with ``a'`` from the averaged actor,
    through TorchRL's value estimator. R and k are the chunk's return and executed steps, as
    :class:`~torchrl_flow.envs.SMDPChunk` and the data readers write them. ``truncated`` bootstraps.

    With ``filter_policy_data`` the actor learns from demonstrations and from rows with ``A > advantage_threshold``
    (A against the whole batch), and the weights compare these rows with one another; the critic uses all rows.

    Targets: ``SoftUpdate(loss, tau=0.005)`` moves the averaged actor and the target critic at one rate; two
    :class:`~torchrl_flow.objectives.NetworkSoftUpdate` move each at its own. An encoder that actor and critic share
    is part of both averages.

    :meth:`forward` computes both terms and the critic once; :meth:`actor_loss` and :meth:`qvalue_loss` compute one,
    for several critic steps an actor step. :meth:`actor_parameters` and :meth:`critic_parameters` split what there
    is to optimise.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.FlowActor`. Its weights are shared, not copied.
        critic_network: the :class:`~torchrl_flow.modules.QEnsemble`, likewise.

    Keyword Args:
        beta: inverse temperature of the weights.
        weight_clip: bound on ``exp(beta A)``.
        weighting: ``"exp"``, ``"softmax"`` or ``"binary"``; see :func:`~torchrl_flow.functional.advantage_weights`.
        baseline: ``"batch"`` or ``"policy"``, see above.
        advantage: ``"critic"`` or ``"td"``, see above; the latter needs ``baseline="policy"``.
        num_baseline_samples: chunks ``a_i`` of a state, each by ``target_num_steps`` Euler steps.
        advantage_norm: ``"none"``, ``"std"`` or ``"mad"``; see :func:`~torchrl_flow.functional.batch_advantage`.
        filter_policy_data: keep rows that are neither demonstrations nor better than the batch from the actor.
        advantage_threshold: what "better" is, in units of the advantage after ``advantage_norm``.
        gamma: discount of one environment step.
        num_min_qs: members in the random subset of the reduction ``"min"``, drawn anew for each use.
        target_reduction: of the target critic's members; see :func:`~torchrl_flow.functional.reduce_ensemble`.
        advantage_reduction: of the critic's members in the advantage.
        kappa: of the reduction ``"ucb"``, mean + kappa std: below 0 pessimistic, above 0 optimistic.
        num_action_samples: N, candidates for ``a'``; the one of the highest mean target value is taken.
        target_num_steps: K of the candidates; ``None`` for the actor's own where N is 1, and 1 where it is more.
        encoder_grad: which of the losses train an encoder that actor and critic share: ``"actor"``, ``"critic"`` or
            ``"both"``. Encoders of their own are always trained by their own loss.
        loss_function: distance of the critic's loss, as in TorchRL.
        consistency_fraction: share of the rows that train self-consistency.
        target_clip: bound on each component of the consistency target; ``None`` for none.
        augment: let the encoders augment observations, in both terms and in the target.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row). The mean of the actor's loss is over the
            rows that it keeps.

    Output: ``loss_actor``, ``loss_qvalue``, and detached: ``flow_error`` and ``consistency_error``, unweighted (NaN
    for a part with no rows); ``effective_sample_size`` of the weights; ``policy_share``, the share of rows kept;
    ``skipped_policy_batches``, how many batches so far had none, for which the actor's loss is 0 with a graph;
    ``advantage_std``, the spread of the values before ``advantage_norm``; ``q_mean``, ``q_std`` (between members)
    and ``q_target_mean``; ``td_error``, its mean size. Writes each row's largest TD error into the input, as
    priority for a replay buffer.

    Raises:
        ValueError: if an argument is outside what is allowed, or actor and critic do not fit together.

    References:
        Peng et al., "Advantage-Weighted Regression", https://arxiv.org/abs/1910.00177
        Ball et al., "Efficient Online Reinforcement Learning with Offline Data", https://arxiv.org/abs/2302.02948

    Examples:
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_flow.modules import FlowActorConfig, QEnsemble, make_flow_actor
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> loss = AWFlowLoss(actor, QEnsemble.for_actor(actor), filter_policy_data=True)
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> loss.in_keys[:3], loss.in_keys[-2:]
        (['observation', 'action_chunk', 'action'], [('next', 'steps_to_next_obs'), 'is_demo'])
    """

    @dataclass
    class _AcceptedKeys(ChunkCriticObjective._AcceptedKeys):
        """Keys that ``set_keys`` accepts, beside those of :class:`ChunkCriticObjective`.

        Attributes:
            is_demo: ``[*B, 1]`` bool; needed with ``filter_policy_data`` alone.
        """

        is_demo: NestedKey = "is_demo"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    weighting: Weighting
    advantage_norm: AdvantageNorm
    advantage_reduction: EnsembleReduction
    skipped_policy_batches: Tensor

    def __init__(
        self,
        actor_network: FlowActor,
        critic_network: QEnsemble,
        *,
        beta: float = 100.0,
        weight_clip: float = 200.0,
        baseline: Baseline = "batch",
        advantage: AdvantageSource = "critic",
        num_baseline_samples: int = 4,
        weighting: Weighting = "exp",
        advantage_norm: AdvantageNorm = "none",
        filter_policy_data: bool = False,
        advantage_threshold: float = 0.0,
        gamma: float = 0.9,
        num_min_qs: int = 2,
        target_reduction: EnsembleReduction = "min",
        advantage_reduction: EnsembleReduction = "min",
        kappa: float = -1.0,
        num_action_samples: int = 1,
        target_num_steps: int | None = None,
        encoder_grad: EncoderGrad = "both",
        loss_function: str = "l2",
        consistency_fraction: float = 0.25,
        target_clip: float | None = 4.0,
        augment: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            critic_network,
            gamma=gamma,
            num_min_qs=num_min_qs,
            target_reduction=target_reduction,
            kappa=kappa,
            num_action_samples=num_action_samples,
            target_num_steps=target_num_steps,
            encoder_grad=encoder_grad,
            loss_function=loss_function,
            consistency_fraction=consistency_fraction,
            target_clip=target_clip,
            augment=augment,
            reduction=reduction,
        )
        # The functionals name what they refuse.
        zero = torch.zeros(1)
        batch_advantage(zero, norm=advantage_norm)
        advantage_weights(zero, beta=beta, weight_clip=weight_clip, weighting=weighting)
        if advantage_reduction not in ("min", "mean", "ucb"):
            raise ValueError(f"advantage_reduction must be 'min', 'mean' or 'ucb', got {advantage_reduction!r}.")
        if baseline not in ("batch", "policy"):
            raise ValueError(f"baseline must be 'batch' or 'policy', got {baseline!r}.")
        if advantage not in ("critic", "td"):
            raise ValueError(f"advantage must be 'critic' or 'td', got {advantage!r}.")
        if advantage == "td" and baseline != "policy":
            raise ValueError("advantage='td' is relative to the policy's value: give baseline='policy' with it.")
        if num_baseline_samples < 1:
            raise ValueError(f"num_baseline_samples must be at least 1, got {num_baseline_samples}.")
        self.baseline, self.advantage, self.num_baseline_samples = baseline, advantage, num_baseline_samples
        self.beta, self.weight_clip, self.weighting = beta, weight_clip, weighting
        self.advantage_norm, self.advantage_reduction = advantage_norm, advantage_reduction
        self.filter_policy_data, self.advantage_threshold = filter_policy_data, advantage_threshold
        self.register_buffer("skipped_policy_batches", torch.zeros((), dtype=torch.int64, device=self._default_device))
        self._out_keys = [
            *("loss_actor", "loss_qvalue", "flow_error", "consistency_error", "effective_sample_size"),
            *("policy_share", "skipped_policy_batches", "advantage_std", "q_mean", "q_std", "q_target_mean"),
            "td_error",
        ]

    def _make_in_keys(self) -> list[NestedKey]:
        return [*super()._make_in_keys(), *([self.tensor_keys.is_demo] if self.filter_policy_data else [])]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute both losses of a batch of any shape.

        Raises:
            ValueError: if a shape does not fit.
        """
        # In this order the actor's term draws first, and thus what ShortCutFlowLoss would draw.
        errors, rows = self._actor_errors(tensordict)
        q = self._data_values(tensordict)
        loss_actor, actor_metrics = self._actor_term(tensordict, errors, rows, q.detach())
        loss_qvalue, critic_metrics = self._critic_term(tensordict, q)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        out = TensorDict({**losses, **actor_metrics, **critic_metrics})
        self._clear_weakrefs(
            tensordict,
            out,
            *("actor_network_params", "target_actor_network_params"),
            *("critic_network_params", "target_critic_network_params"),
        )
        return out

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the actor's loss alone, and its metrics."""
        errors, rows = self._actor_errors(tensordict)
        return self._actor_term(tensordict, errors, rows, self._chunk_values(tensordict))

    @torch.no_grad()
    def advantages(self, tensordict: TensorDictBase) -> Tensor:
        """Return what the weights are made of ``[B]``, before ``advantage_norm``: for looking at."""
        value = self._advantage_values(tensordict, self._chunk_values(tensordict))
        return value - value.mean() if self.baseline == "batch" else value

    @torch.no_grad()
    def _chunk_values(self, tensordict: TensorDictBase) -> Tensor | None:
        """Return the critic's values of the rows' chunks, of which ``advantage="td"`` does not ask."""
        return None if self.advantage == "td" else self._data_values(tensordict)

    def _advantage_values(self, tensordict: TensorDictBase, q: Tensor | None) -> Tensor:
        return self._reduce_members(self._relative_values(tensordict, q), self.advantage_reduction)

    def _actor_errors(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        detach = self.shared_encoder and self.encoder_grad == "critic"
        return self.row_errors(tensordict, detach_features=detach)

    @torch.no_grad()
    def _relative_values(self, tensordict: TensorDictBase, q: Tensor | None) -> Tensor:
        """Return each member's values ``[num_qs, B]`` of the rows' chunks, less its baseline."""
        if q is None or self.advantage == "td":
            following: Any = tensordict["next"]
            values = self._policy_values(following)
            q = torch.stack([self._discounted(tensordict, value) for value in values])
        return q if self.baseline == "batch" else q - self._policy_values(tensordict)

    @torch.no_grad()
    def _policy_values(self, tensordict: TensorDictBase) -> Tensor:
        """Return each member's mean value ``[num_qs, B]`` of the averaged actor's chunks in the rows' states."""
        chunks = self.sample_targets(tensordict, self.num_baseline_samples)
        return self._values(self.critic_network_params, tensordict, chunks).mean(-1)

    def _valid_rows(self, tensordict: TensorDictBase, errors: Tensor) -> Tensor | None:
        """Return which rows TorchRL's validity masks leave in the losses; ``None`` where there is no mask."""
        valid = None
        for key in self._loss_mask_keys():
            mask = tensordict.get(key, None)
            if mask is not None:
                mask = self._expand_loss_mask(mask, errors).reshape(-1)
                valid = mask if valid is None else valid & mask
        return valid

    def _actor_term(
        self, tensordict: TensorDictBase, errors: Tensor, rows: Tensor, q: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weight the rows' errors ``[*B]`` by the members' values ``[num_qs, B]`` of the rows, where they are used."""
        own_baseline = self.baseline == "policy"
        value = self._advantage_values(tensordict, q)
        scale: dict[str, Any] = {"norm": self.advantage_norm, "center": not own_baseline}
        kept = valid = self._valid_rows(tensordict, errors)
        advantage = batch_advantage(value, mask=valid, **scale)
        if self.filter_policy_data:
            kept = tensordict[self.tensor_keys.is_demo].reshape(-1) | (advantage > self.advantage_threshold)
            kept = kept if valid is None else kept & valid
            advantage = batch_advantage(value, mask=kept, **scale)
        weights = advantage_weights(
            advantage, beta=self.beta, weight_clip=self.weight_clip, weighting=self.weighting, mask=kept
        )
        row_weights = self._priority(tensordict, errors.shape)
        if self.filter_policy_data and kept is not None:
            self.skipped_policy_batches.add_((~kept.any()).to(torch.int64))
            # Where no row is kept all count, each with weight 0: a zero with a graph instead of 0 / 0.
            counted = torch.where(kept.any(), kept, True).to(errors.dtype).reshape(errors.shape)
            row_weights = counted if row_weights is None else counted * row_weights
        loss = self._reduce_loss(errors * weights.reshape(errors.shape), tensordict, weights=row_weights)
        everyone = torch.ones_like(value, dtype=torch.bool) if valid is None else valid
        share = everyone if kept is None else kept
        deviation = torch.where(everyone, batch_advantage(value, mask=valid), torch.zeros_like(value))
        return loss, {
            **self._error_metrics(errors, rows),
            "effective_sample_size": effective_sample_size(weights),
            "policy_share": share.sum() / everyone.sum(),
            "skipped_policy_batches": self.skipped_policy_batches.clone(),
            "advantage_std": (deviation.square().sum() / everyone.sum()).sqrt(),
        }
