"""Advantage-weighted maximum likelihood of a latent policy on candidates from the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from torchrl_flow.functional.ensemble import upper_confidence_bound
from torchrl_flow.functional.latent import candidate_weights, expand_latent
from torchrl_flow.objectives.held_networks import HeldNetworks
from torchrl_flow.objectives.latent_sac import LatentSACLoss

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor, LatentGaussianPolicy, QEnsemble

__all__ = ["LatentAWMLELoss"]


class LatentAWMLELoss(HeldNetworks, LossModule):
    """Fit a latent policy to those latents of the prior that a critic values: stage 1 of noise steering, offline.

    For each observation M candidates ``w_i`` come from the prior (bounded as the policy's latents are), are carried to
    actions in one batched pass and scored pessimistically over the critic's members, ``s = mean + kappa std`` with
    ``kappa < 0``. With ``omega = softmax(beta s)`` (the soft baseline of the paper cancels here) the loss is
    ``-sum_i omega_i log pi(w_i | s) + kl_coef KL(pi || prior)``. Neither flow nor critic gets a gradient.

    Args:
        latent_policy: the :class:`~torchrl_flow.modules.LatentGaussianPolicy`. Its weights are shared, not copied.
        critic: values executed chunks (a :class:`~torchrl_flow.modules.QEnsemble` of the flow's chunks), or latents (a
            :class:`LatentSACLoss`, whose critics it then asks), with which no flow is needed. Held, neither copied nor
            trained: see :class:`~torchrl_flow.objectives.HeldNetworks`.
        flow: the frozen :class:`~torchrl_flow.modules.FlowActor`, likewise; ``None`` with critics of latents.

    Keyword Args:
        num_candidates: M.
        beta: inverse temperature of the weights. Values in [0, 1] need one far above 1.
        kappa: weight of the members' standard deviation in the score, at most 0: pessimistic. The paper writes
            ``mean - kappa std`` with kappa 1.0, which is -1.0 here. Above 0, where the latents of which the critic
            knows least would be taken for the best, it is refused.
        standardize_scores: divide a row's scores by their spread (over the candidates), which makes ``beta``
            independent of the reward's scale.
        kl_coef: weight of the divergence from the prior.
        num_steps: K of the candidates' actions; ``None`` for the flow's own.
        baseline_temperature: tau of former versions; refused, since it changed nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Output: ``loss_latent_policy``, and detached: ``kl_to_prior``; ``effective_candidates``, the mean effective number
    of candidates that the weights leave; ``score_mean`` and ``score_gain``, by how much the weighted score exceeds
    the mean; ``latent_scale``, the mean standard deviation.

    Raises:
        ValueError: if an argument is outside what is allowed, or the networks do not fit together.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, LatentPolicyConfig, QEnsemble
        >>> from torchrl_flow.modules import make_flow_actor, make_latent_policy
        >>> flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> loss = LatentAWMLELoss(make_latent_policy(LatentPolicyConfig(), flow), QEnsemble.for_actor(flow), flow)
        >>> loss.in_keys, loss.out_keys[:2]
        (['observation'], ['loss_latent_policy', 'kl_to_prior'])
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` accepts.

        Attributes:
            priority_weight: importance weight of a row, ``[*B]`` or ``[*B, 1]``; optional.
        """

        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    critic: QEnsemble | LatentSACLoss
    flow: FlowActor | None
    latent_policy: LatentGaussianPolicy
    latent_policy_params: TensorDictParams
    target_latent_policy_params: TensorDictParams

    def __init__(
        self,
        latent_policy: LatentGaussianPolicy,
        critic: QEnsemble | LatentSACLoss,
        flow: FlowActor | None = None,
        *,
        num_candidates: int = 16,
        beta: float = 1.0,
        kappa: float = -1.0,
        standardize_scores: bool = False,
        kl_coef: float = 1e-3,
        num_steps: int | None = None,
        baseline_temperature: None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if num_candidates < 1 or kl_coef < 0:
            raise ValueError(f"num_candidates >= 1 and kl_coef >= 0 are needed, got {num_candidates} and {kl_coef}.")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
        candidate_weights(torch.zeros(1, 1), beta=beta, baseline_temperature=baseline_temperature)
        if kappa > 0:
            raise ValueError(
                f"kappa must be at most 0, got {kappa}: the score is mean + kappa std over the critic's members, and a "
                "positive one prefers what the critic knows least about. For the paper's mean - kappa std with kappa "
                f"{kappa} give {-kappa}."
            )
        self.num_candidates, self.beta = num_candidates, beta
        self.kappa, self.standardize_scores, self.kl_coef = kappa, standardize_scores, kl_coef
        self.num_steps, self.reduction = num_steps, reduction
        self.convert_to_functional(latent_policy, "latent_policy")  # pyright: ignore[reportArgumentType]
        self.hold(critic=critic, flow=flow)
        others = self._check(latent_policy, critic, flow)
        self._in_keys: list[NestedKey] = list(dict.fromkeys([*latent_policy.in_keys, *others]))
        self._out_keys: list[NestedKey] = ["loss_latent_policy", "kl_to_prior", "effective_candidates", "score_mean"]
        self._out_keys += ["score_gain", "latent_scale"]

    @staticmethod
    def _check(
        policy: LatentGaussianPolicy, critic: QEnsemble | LatentSACLoss, flow: FlowActor | None
    ) -> list[NestedKey]:
        """Refuse networks that do not fit together; return the observations that they read."""
        values_latents = isinstance(critic, LatentSACLoss)
        if values_latents != (flow is None):
            raise ValueError("give a flow with a critic of actions, and none with critics of latents.")
        if isinstance(critic, LatentSACLoss):
            return [key for key in critic.qvalue_network.in_keys if key != policy.latent_key]
        takes, given = (critic.act_horizon, critic.action_dim), (flow.act_horizon, flow.action_dim) if flow else None
        if takes != given or flow is None:
            raise ValueError(f"the critic values {list(takes)}, but the flow's executed chunks are {given}.")
        return [*critic.encoder.in_keys, *flow.in_keys]

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss needs."""
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    @property
    def out_keys(self) -> list[NestedKey]:
        """Keys that the loss writes."""
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[NestedKey]) -> None:
        self._out_keys = values

    def _forward_value_estimator_keys(self, **kwargs: object) -> None:
        """Nothing to tell: there is no value estimator."""

    @torch.no_grad()
    def candidate_scores(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Draw candidates and score them.

        Args:
            tensordict: observations ``[*B]``.

        Returns:
            latents ``[B, M, S, A]`` and scores ``[B, M]`` of the flattened batch.
        """
        policy, flow, critic = self.latent_policy, self.flow, self.critic
        rows = policy.encoder.batch_shape(tensordict).numel()
        parameter = next(self.latent_policy_params.parameters())
        options: dict[str, Any] = {"device": parameter.device, "dtype": parameter.dtype}
        shape = torch.Size([rows, self.num_candidates])
        latent = policy.prior_latent(torch.randn(*shape, *policy.latent_shape, **options))
        if isinstance(critic, LatentSACLoss) or flow is None:
            values = critic.latent_values(tensordict, latent)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
            return latent, upper_confidence_bound(values, kappa=self.kappa)
        fill = torch.randn(*shape, *flow.noise_shape, **options)
        noise = expand_latent(latent, fill, policy.steer_mode)
        chunk = flow.sample(flow.features(tensordict), noise, num_steps=self.num_steps)
        candidates = chunk[..., flow.executed_slice, :]
        values = critic.q_values(critic.encoder(*critic.encoder.preprocess(tensordict)), candidates)
        return latent, upper_confidence_bound(values.squeeze(-1), kappa=self.kappa)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a batch of any shape."""
        latent, scores = self.candidate_scores(tensordict)
        spread = scores.std(-1, keepdim=True, unbiased=False)
        scaled = scores / spread.clamp(min=1e-6) if self.standardize_scores else scores
        omega = candidate_weights(scaled, beta=self.beta)
        with self.latent_policy_params.to_module(self.latent_policy, preserve_module_state=False):
            dist = self.latent_policy.normal(tensordict)
            batch = dist.batch_shape
            candidates = latent.movedim(1, 0).reshape(self.num_candidates, *batch, *latent.shape[2:])
            log_prob = dist.log_prob(candidates).reshape(self.num_candidates, -1).mT
            kl = dist.kl_to_prior()
        rows = -(omega * log_prob).sum(-1).reshape(batch) + self.kl_coef * kl
        weights = tensordict.get(self.tensor_keys.priority_weight, None)
        loss = self._reduce_loss(rows, tensordict, weights=None if weights is None else weights.reshape(batch))
        metrics = {
            "kl_to_prior": kl.detach().mean(),
            "effective_candidates": 1 / omega.square().sum(-1).mean(),
            "score_mean": scores.mean(),
            "score_gain": ((omega * scores).sum(-1) - scores.mean(-1)).mean(),
            "latent_scale": dist.scale.detach().mean(),
        }
        out = TensorDict({"loss_latent_policy": loss, **metrics})
        self._clear_weakrefs(tensordict, out, "latent_policy_params")
        return out
