"""Advantage-weighted ShortCut flow: a flow actor cloned by weights that a critic of chunks gives."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from torchrl_flow.functional.advantage import AdvantageNorm, Weighting
from torchrl_flow.functional.checks import check_at_least, check_one_of
from torchrl_flow.functional.ensemble import REDUCTIONS, EnsembleReduction
from torchrl_flow.objectives.chunk_td_term import ChunkTDTerm, check_critic_fits
from torchrl_flow.objectives.flow_loss import AveragedActor, AveragedCritic, EncoderGrad, SharedEncoder
from torchrl_flow.objectives.held_networks import HeldNetworks
from torchrl_flow.objectives.q_gradient_term import Anchor, Extraction, QGradientTerm
from torchrl_flow.objectives.shortcut_term import ShortCutTerm
from torchrl_flow.objectives.smdp_loss import SMDPLossModule
from torchrl_flow.objectives.weight_term import AdvantageSource, AdvantageWeightTerm, Baseline, of_mean_one

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor, QEnsemble

__all__ = ["AWFlowLoss", "EncoderGrad"]


class AWFlowLoss(AveragedActor, AveragedCritic, SharedEncoder, HeldNetworks, SMDPLossModule):
    """Weighted ShortCut cloning of a flow actor, and temporal differences of its chunk critic.

    Actor: the mean of ``w * error``, with the error of each row by :class:`~torchrl_flow.objectives.ShortCutTerm` and
    the weights ``w = min(exp(beta A), weight_clip)``, scaled to mean 1
    (:class:`~torchrl_flow.objectives.AdvantageWeightTerm`). With ``beta=0`` it equals the ShortCutFlowLoss to the bit.

    Advantages: ``baseline="policy"`` gives ``A = q - mean_i Q(s, a_i)``, with ``a_i`` from the averaged actor in the
    same state. ``advantage="td"`` gives ``q = R + gamma^k (1 - terminated) V(s')``, where V is that mean of Q: the
    critic then has to rank states, which is easier than ranking chunks of one state. ``baseline="batch"`` gives
    ``A = q - mean(q)``: where rewards are sparse, chunks in states near the goal then outweigh all others. The defaults
    are those of the recipes; :meth:`published` has the publication's.

    With ``extraction="q_gradient"`` the actor's loss has no weights. It is ``clone_coeff`` times the mean error of the
    rows that are cloned, plus ``-Q(s, a_1) / mean |Q| + anchor_coeff |a_1 - a_ref|^2`` over all rows
    (:class:`~torchrl_flow.objectives.QGradientTerm`). ``a_1`` is the chunk of the flow's one-step map, so that the
    policy acts with one step. ``a_ref`` is the chunk of ``reference_actor``, a copy of the actor at the time this loss
    is built; with ``anchor="average"`` it is the chunk of the averaged actor, and the policy may move any distance.

    Critic: the mean of ``(Q(s, a) - y)^2``, ``y = R + gamma^k (1 - terminated) min_subset Q_target(s', a')``, with
    ``a'`` from the averaged actor (:class:`~torchrl_flow.objectives.ChunkTDTerm`). R is the return of the chunk and k
    its number of executed steps. ``truncated`` bootstraps.

    With ``filter_policy_data`` the actor learns from demonstrations and from rows with ``A > advantage_threshold``, and
    the weights have mean 1 over these rows; the critic learns from all rows. With ``extraction="q_gradient"`` the actor
    clones demonstrations only.

    Targets: ``SoftUpdate(loss, tau=0.005)`` moves the averaged actor and the target critic at one rate; two
    :class:`~torchrl_flow.objectives.NetworkSoftUpdate` move each at its own. An encoder that actor and critic share
    is part of both averages.

    :meth:`forward` computes both losses with one pass through the critic; :meth:`actor_loss` and :meth:`qvalue_loss`
    compute one of them. ``loss.shortcut``, ``loss.weights``, ``loss.q_gradient`` and ``loss.td`` hold the terms;
    replace a term to set options that are not keywords of this class.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.FlowActor`. Its weights are shared, not copied.
        critic_network: the :class:`~torchrl_flow.modules.QEnsemble`. Its weights are shared, not copied.

    Keyword Args:
        extraction: ``"weights"`` or ``"q_gradient"``, see above. The second one ignores all options of weights and
            advantages except ``advantage_reduction``, which reduces the members before the gradient is computed.
        anchor: ``"start"`` or ``"average"``, see above.
        anchor_coeff: weight of the distance to the anchor.
        clone_coeff: weight of the cloning with ``extraction="q_gradient"``.
        beta: inverse temperature of the weights.
        weight_clip: bound on ``exp(beta A)``.
        baseline: ``"policy"`` or ``"batch"``, see above.
        advantage: ``"td"`` or ``"critic"``, see above; ``"td"`` needs ``baseline="policy"``.
        num_baseline_samples: chunks ``a_i`` of a state, each by ``target_num_steps`` Euler steps.
        weighting: ``"exp"``, ``"softmax"`` or ``"binary"``; see :func:`~torchrl_flow.functional.advantage_weights`.
        advantage_norm: ``"none"``, ``"std"`` or ``"mad"``; see :func:`~torchrl_flow.functional.batch_advantage`.
        filter_policy_data: train the actor only on demonstrations and on rows above ``advantage_threshold``.
        advantage_threshold: smallest advantage of these rows, after ``advantage_norm``.
        gamma: discount of one environment step.
        num_min_qs: size of the random subset of members for the reduction ``"min"``; each use draws a new subset.
        target_reduction: reduction of the target critic's members (:func:`~torchrl_flow.functional.reduce_ensemble`).
        advantage_reduction: reduction of the critic's members in the advantage.
        kappa: weight of the standard deviation in the reduction ``"ucb"``, mean + kappa std.
        num_action_samples: N, candidates for ``a'``; the candidate with the highest mean target value is used.
        target_num_steps: sampling steps K of the candidates.
        encoder_grad: the losses that train an encoder which actor and critic share: ``"actor"``, ``"critic"`` or
            ``"both"``. An encoder that is not shared is trained by the loss of its network.
        consistency_fraction: share of the rows that train self-consistency.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row). The actor's mean is over the rows that it
            learns from. The mean of the advantage weights counts importance weights of rows (``priority_weight``).

    Output: ``loss_actor``, ``loss_qvalue``, and detached: the ``flow_error`` and ``consistency_error`` of the
    ShortCutTerm; ``effective_sample_size`` of the weights; ``policy_share``, the share of rows that the actor learns
    from; ``skipped_policy_batches``, the number of batches so far without such a row (the actor's loss is then 0);
    ``advantage_std``, the standard deviation of the advantages before ``advantage_norm``; and the metrics of the
    ChunkTDTerm. With ``extraction="q_gradient"`` the metrics of the QGradientTerm replace those of weights and
    advantages. Writes each row's largest TD error into the input, as priority for a replay buffer.

    Raises:
        ValueError: if an argument is outside its allowed range, or actor and critic do not fit together.

    References:
        Peng et al., "Advantage-Weighted Regression", https://arxiv.org/abs/1910.00177
        Ball et al., "Efficient Online Reinforcement Learning with Offline Data", https://arxiv.org/abs/2302.02948

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, QEnsemble, make_flow_actor
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> loss = AWFlowLoss(actor, QEnsemble.for_actor(actor), filter_policy_data=True)
        >>> loss.in_keys[:3], loss.in_keys[-2:]
        (['observation', 'action_chunk', 'action'], [('next', 'steps_to_next_obs'), 'is_demo'])
    """

    @dataclass
    class _AcceptedKeys(SMDPLossModule._AcceptedKeys):
        """Keys that ``set_keys`` accepts, beside those of :class:`~torchrl_flow.objectives.SMDPLossModule`.

        Attributes:
            action_chunk: the chunk to clone ``[*B, H, A]``, in the environment's units.
            action_mask: ``[*B, H]`` bool, True where a step of it is real; optional.
            is_demo: ``[*B, 1]`` bool; needed with ``filter_policy_data`` alone.
        """

        action_chunk: NestedKey = "action_chunk"
        action_mask: NestedKey = "action_mask"
        is_demo: NestedKey = "is_demo"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    advantage_reduction: EnsembleReduction
    reference_actor: FlowActor | None
    """The flow that anchors the gradient of Q with ``anchor="start"``, held and not trained; else ``None``."""
    skipped_policy_batches: Tensor

    def __init__(
        self,
        actor_network: FlowActor,
        critic_network: QEnsemble,
        *,
        extraction: Extraction = "weights",
        anchor: Anchor = "start",
        anchor_coeff: float = 1.0,
        clone_coeff: float = 1.0,
        beta: float = 20.0,
        weight_clip: float = 20.0,
        baseline: Baseline = "policy",
        advantage: AdvantageSource = "td",
        num_baseline_samples: int = 1,
        weighting: Weighting = "exp",
        advantage_norm: AdvantageNorm = "none",
        filter_policy_data: bool = False,
        advantage_threshold: float = 0.0,
        gamma: float = 0.99,
        num_min_qs: int = 2,
        target_reduction: EnsembleReduction = "min",
        advantage_reduction: EnsembleReduction = "mean",
        kappa: float = -1.0,
        num_action_samples: int = 1,
        target_num_steps: int = 1,
        encoder_grad: EncoderGrad = "both",
        consistency_fraction: float = 0.25,
        reduction: str = "mean",
    ) -> None:
        super().__init__(gamma, reduction)
        check_critic_fits(actor_network, critic_network, num_min_qs)
        check_one_of("advantage_reduction", advantage_reduction, REDUCTIONS)
        check_one_of("extraction", extraction, ("weights", "q_gradient"))
        check_one_of("anchor", anchor, ("start", "average"))
        check_one_of("baseline", baseline, ("batch", "policy"))
        check_one_of("advantage", advantage, ("critic", "td"))
        check_one_of("encoder_grad", encoder_grad, ("actor", "critic", "both"))
        check_at_least("clone_coeff", clone_coeff, 0)
        check_at_least("num_baseline_samples", num_baseline_samples, 1)
        if advantage == "td" and baseline != "policy":
            raise ValueError("advantage='td' is relative to the policy's value: give baseline='policy' with it.")
        self.shortcut = ShortCutTerm(consistency_fraction)
        scale: dict[str, Any] = {"norm": advantage_norm, "center": baseline == "batch"}
        self.weights = AdvantageWeightTerm(beta, weight_clip, weighting, **scale, threshold=advantage_threshold)
        self.q_gradient = QGradientTerm(anchor_coeff)
        self.td = ChunkTDTerm(num_min_qs, target_reduction, kappa, num_action_samples, target_num_steps)
        self.baseline, self.advantage, self.num_baseline_samples = baseline, advantage, num_baseline_samples
        self.advantage_reduction, self.filter_policy_data = advantage_reduction, filter_policy_data
        self.encoder_grad: EncoderGrad = encoder_grad
        self.shared_encoder = self.shares_encoder(actor_network, critic_network)
        for name, network in (("actor_network", actor_network), ("critic_network", critic_network)):
            self.convert_to_functional(network, name, create_target_params=True)  # pyright: ignore[reportArgumentType]
        self.make_value_estimator()  # Not at first use: every state dict of the loss has the same entries.
        self.register_buffer("skipped_policy_batches", torch.zeros((), dtype=torch.int64, device=self._default_device))
        anchored, self.anchor = extraction == "q_gradient", anchor
        self.extraction, self.clone_coeff = extraction, clone_coeff
        held = anchored and anchor == "start"
        self.hold(reference_actor=copy.deepcopy(actor_network).eval().requires_grad_(False) if held else None)
        self._out_keys = ["loss_actor", "loss_qvalue", "flow_error", "consistency_error"]
        weights = ["effective_sample_size", "policy_share", "advantage_std"]
        self._out_keys += ["q_policy", "anchor_distance"] if anchored else weights
        self._out_keys += ["skipped_policy_batches", "q_mean", "q_std", "q_target_mean", "td_error"]

    @classmethod
    def published(cls, actor_network: FlowActor, critic_network: QEnsemble, **options: Any) -> AWFlowLoss:
        """Build the loss with the values of its publication, of which ``options`` change single ones.

        They are ``beta=100``, ``weight_clip=200``, ``baseline="batch"``, ``advantage="critic"``, ``gamma=0.9``,
        ``advantage_reduction="min"``, and the actor's own K for ``target_num_steps`` with one candidate.
        """
        num_steps = actor_network.num_steps if options.get("num_action_samples", 1) == 1 else 1
        values: dict[str, Any] = {"beta": 100.0, "weight_clip": 200.0, "baseline": "batch", "advantage": "critic"}
        values |= {"gamma": 0.9, "advantage_reduction": "min", "target_num_steps": num_steps}
        return cls(actor_network, critic_network, **{**values, **options})

    def _make_in_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        observations = [*self.actor_network.in_keys, *self.critic_network.encoder.in_keys]
        wanted = [*observations, keys.action_chunk, keys.action, *self._transition_keys(*observations)]
        wanted += [keys.is_demo] if self.filter_policy_data else []
        return list(dict.fromkeys(unravel_key(key) for key in wanted))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute both losses of a batch of any shape.

        Raises:
            ValueError: if a shape does not fit.
        """
        # In this order the actor's term draws first, and thus what ShortCutFlowLoss would draw.
        cloning, q, chunks = self._flow_errors(tensordict), self._chunk_values(tensordict), None
        td_advantage = self.extraction == "weights" and self.advantage == "td"
        if td_advantage and self.num_baseline_samples == (num := self.td.num_action_samples):
            chunks = self._averaged_chunks(tensordict["next"], num)
        loss_actor, actor_metrics = self.actor_loss(tensordict, cloning, q.detach(), chunks)
        loss_qvalue, critic_metrics = self.qvalue_loss(tensordict, q, chunks)
        metrics = {**actor_metrics, **critic_metrics}
        out = TensorDict({"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, **metrics})
        names = ("actor_network_params", "critic_network_params")
        self._clear_weakrefs(tensordict, out, *names, *(f"target_{name}" for name in names))
        return out

    def actor_loss(
        self,
        tensordict: TensorDictBase,
        cloning: tuple[Tensor, dict[str, Tensor]] | None = None,
        q: Tensor | None = None,
        chunks: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the actor's loss alone, the mean of ``w * error`` over the rows that are kept, and its metrics.

        The optional arguments avoid a second computation: the output of ``self.shortcut``, the critic's values
        ``[num_qs, B]``, the averaged actor's chunks of the next states ``[B, N, H_a, A]``.
        """
        errors, error_metrics = self._flow_errors(tensordict) if cloning is None else cloning
        valid = self._valid_rows(tensordict, errors)
        demos = self._entry(tensordict, self.tensor_keys.is_demo).reshape(-1) if self.filter_policy_data else None
        if self.extraction == "weights":
            value = self.td.reduce(self._relative_values(tensordict, q, chunks), self.advantage_reduction)
            weights, counted, metrics = self.weights(value, valid, demos)
            row_weights = self._row_weights(tensordict, errors.shape)
            if row_weights is not None:
                weights = of_mean_one(weights, row_weights.reshape(-1), valid if counted is None else counted)
            kept = None if demos is None else counted
            loss = self._reduce_rows(tensordict, errors * weights.reshape(errors.shape), kept)
        else:
            kept = demos if demos is None or valid is None else demos & valid
            loss, metrics = self._q_gradient_loss(tensordict, valid)
            loss = loss + self.clone_coeff * self._reduce_rows(tensordict, errors, kept)
        if kept is not None:
            self.skipped_policy_batches.add_((~kept.any()).to(torch.int64))
        return loss, {**error_metrics, **metrics, "skipped_policy_batches": self.skipped_policy_batches.clone()}

    def _q_gradient_loss(self, tensordict: TensorDictBase, valid: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss by the critic's gradient alone, and its metrics."""
        actor, reference = self.actor_network, self.reference_actor
        detach = self.shared_encoder and self.encoder_grad == "critic"
        reference = self.target_actor_network_params if reference is None else reference
        args = (actor, self.actor_network_params, reference, tensordict)
        chunks, distance = self.q_gradient.chunks(*args, detach_features=detach)
        # A critic whose weights are detached still transmits the gradient to the chunk.
        q = self.td.values(self.critic_network, self.critic_network_params.detach(), tensordict, chunks)  # pyright: ignore[reportArgumentType]
        rows, metrics = self.q_gradient(self.td.reduce(q, self.advantage_reduction), distance, valid)
        return self._reduce_rows(tensordict, rows.reshape(actor.encoder.batch_shape(tensordict))), metrics

    def qvalue_loss(
        self, tensordict: TensorDictBase, q: Tensor | None = None, chunks: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the critic's loss alone, ``mean_i (Q_i(s, a) - y)^2``, and its metrics.

        The arguments are those of :meth:`actor_loss`.
        """
        q = self._chunk_values(tensordict) if q is None else q
        if chunks is None:
            return self._td_loss(tensordict, q)
        return self._td_loss(tensordict, q, self.discounted(tensordict, self.next_value(tensordict["next"], chunks)))  # pyright: ignore[reportArgumentType]

    def _flow_errors(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the ShortCut error of each row ``[*B]``, and its metrics."""
        keys, params = self.tensor_keys, (self.actor_network_params, self.target_actor_network_params)
        data = (tensordict, self._entry(tensordict, keys.action_chunk), tensordict.get(keys.action_mask, None))
        detach = self.shared_encoder and self.encoder_grad == "critic"
        return self.shortcut(self.actor_network, *params, *data, detach_features=detach)

    def _chunk_values(self, tensordict: TensorDictBase) -> Tensor:
        """Return the critic's values ``[num_qs, B]`` of the executed chunks."""
        action = tensordict[self.tensor_keys.action]
        data = (tensordict, action.reshape(-1, *action.shape[-2:]))
        detach = self.shared_encoder and self.encoder_grad == "actor"
        return self.td.values(self.critic_network, self.critic_network_params, *data, detach_features=detach)

    def _averaged_chunks(self, tensordict: Any, num: int) -> Tensor:
        """Return executed chunks ``[B, num, H_a, A]`` of the averaged actor."""
        return self.td.chunks(self.actor_network, self.target_actor_network_params, tensordict, num)

    @torch.no_grad()
    def _policy_values(self, tensordict: TensorDictBase, chunks: Tensor | None = None) -> Tensor:
        """Return each member's mean value ``[num_qs, B]`` of the averaged actor's chunks in the rows' states."""
        chunks = self._averaged_chunks(tensordict, self.num_baseline_samples) if chunks is None else chunks
        return self.td.values(self.critic_network, self.critic_network_params, tensordict, chunks).mean(-1)

    @torch.no_grad()
    def _relative_values(self, tensordict: TensorDictBase, q: Tensor | None, chunks: Tensor | None) -> Tensor:
        """Return each member's values ``[num_qs, B]`` of the executed chunks, less its baseline."""
        if self.advantage == "td":
            following: Any = tensordict["next"]
            batch = self.actor_network.encoder.batch_shape(tensordict)
            values = self._policy_values(following, chunks)
            q = self.discounted(tensordict, values.reshape(-1, *batch, 1)).reshape(values.shape)
        elif q is None:
            q = self._chunk_values(tensordict)
        return q if self.baseline == "batch" else q - self._policy_values(tensordict)

    @torch.no_grad()
    def advantages(self, tensordict: TensorDictBase) -> Tensor:
        """Return the advantages ``[B]`` before ``advantage_norm``, for inspection."""
        value = self.td.reduce(self._relative_values(tensordict, None, None), self.advantage_reduction)
        return value - value.mean() if self.baseline == "batch" else value

    @torch.no_grad()
    def next_value(self, tensordict: TensorDictBase, chunks: Tensor | None = None) -> Tensor:
        """Return the target critic's value ``[*B, 1]`` of the averaged actor's chunk (the best of N) for states."""
        chunks = self._averaged_chunks(tensordict, self.td.num_action_samples) if chunks is None else chunks
        value = self.td.next_value(self.critic_network, self.target_critic_network_params, tensordict, chunks)
        return value.reshape(*self.actor_network.encoder.batch_shape(tensordict), 1)
