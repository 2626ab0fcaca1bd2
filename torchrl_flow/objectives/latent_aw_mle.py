"""Advantage-weighted maximum likelihood of a latent policy on candidates from the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.checks import check_at_least
from torchrl_flow.functional.ensemble import upper_confidence_bound
from torchrl_flow.functional.latent import candidate_weights
from torchrl_flow.objectives.flow_loss import FlowLossModule
from torchrl_flow.objectives.held_networks import HeldNetworks
from torchrl_flow.objectives.network_calls import running

if TYPE_CHECKING:
    from torchrl_flow.modules import LatentGaussianPolicy

LatentScorerFn = Callable[[TensorDictBase, Tensor], Tensor]
"""``(observations [*B], latents [B, M, S, A]) -> values [num_qs, B, M]``."""

__all__ = ["LatentAWMLELoss", "LatentScorerFn"]


class LatentAWMLELoss(HeldNetworks, FlowLossModule):
    """Likelihood of prior latents under a latent policy, weighted by a critic's values: offline stage of steering.

    For each observation M candidates ``w_i`` are drawn from the prior (bounded like the policy's latents). One batched
    pass of the scorer values them, and the members' values give a pessimistic score, ``s = mean + kappa std`` with
    ``kappa < 0``. With ``omega = softmax(beta s)`` (the soft baseline of the paper cancels here) the loss is
    ``-sum_i omega_i log pi(w_i | s) + kl_coef KL(pi || prior)``. The scorer gets no gradient.

    Args:
        latent_policy: the :class:`~torchrl_flow.modules.LatentGaussianPolicy`. It is shared, not copied.
        scorer: function that values latents, ``scorer(tensordict, latent [B, M, S, A]) -> [num_qs, B, M]``: an
            :class:`~torchrl_flow.objectives.ActionScorer` by flow and critic of actions, a
            :class:`~torchrl_flow.objectives.LatentScorer` by critics of latents, or any function. A module is shared,
            neither copied nor trained: see :class:`~torchrl_flow.objectives.HeldNetworks`; if it has ``in_keys``, they
            are keys of the loss too.

    Keyword Args:
        num_candidates: M, number of candidates.
        beta: inverse temperature of the weights. If values lie in [0, 1], it must be far above 1.
        kappa: weight of the members' standard deviation in the score ``mean + kappa std``, at most 0 (pessimistic). The
            paper writes ``mean - kappa std`` with kappa 1.0, which is -1.0 here. A value above 0 would prefer latents
            on which the members disagree, and raises an error.
        standardize_scores: divide a row's scores by their spread over the candidates, which makes ``beta`` independent
            of the reward's scale.
        kl_coef: weight of the divergence from the prior.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Output: ``loss_latent_policy``, and detached: ``kl_to_prior``; ``effective_candidates``, the mean effective sample
    size of the weights; ``score_mean``; ``score_gain``, the weighted mean score minus the mean score; ``latent_scale``,
    the mean standard deviation.

    Raises:
        ValueError: if an argument is outside its allowed range.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, LatentPolicyConfig, QEnsemble
        >>> from torchrl_flow.modules import make_flow_actor, make_latent_policy
        >>> from torchrl_flow.objectives import ActionScorer
        >>> flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> policy = make_latent_policy(LatentPolicyConfig(), flow)
        >>> scorer = ActionScorer(flow, QEnsemble.for_actor(flow), steer_mode=policy.steer_mode)
        >>> loss = LatentAWMLELoss(policy, scorer)
        >>> loss.in_keys, loss.out_keys[:2]
        (['observation'], ['loss_latent_policy', 'kl_to_prior'])
    """

    @dataclass
    class _AcceptedKeys(FlowLossModule._AcceptedKeys):
        """Keys that ``set_keys`` accepts: those of :class:`~torchrl_flow.objectives.FlowLossModule`."""

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    scorer: LatentScorerFn
    latent_policy: LatentGaussianPolicy
    latent_policy_params: TensorDictParams
    target_latent_policy_params: TensorDictParams

    def __init__(
        self,
        latent_policy: LatentGaussianPolicy,
        scorer: LatentScorerFn,
        *,
        num_candidates: int = 16,
        beta: float = 1.0,
        kappa: float = -1.0,
        standardize_scores: bool = False,
        kl_coef: float = 1e-3,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_at_least("num_candidates", num_candidates, 1)
        check_at_least("kl_coef", kl_coef, 0)
        candidate_weights(torch.zeros(1, 1), beta=beta)  # Raises a ValueError that names the argument.
        if kappa > 0:
            raise ValueError(
                f"kappa must be at most 0, got {kappa}: the score is mean + kappa std over the critic's members, and a "
                "positive one prefers what the critic knows least about. For the paper's mean - kappa std with kappa "
                f"{kappa} give {-kappa}."
            )
        if not callable(scorer):
            raise ValueError(f"scorer must be a function of observations and latents, got {type(scorer).__name__}.")
        self.num_candidates, self.beta = num_candidates, beta
        self.kappa, self.standardize_scores, self.kl_coef = kappa, standardize_scores, kl_coef
        self.convert_to_functional(latent_policy, "latent_policy")  # pyright: ignore[reportArgumentType]
        critic = "critic_network" if hasattr(scorer, "critic_network") else "loss_module"
        self.hold({"flow": "scorer.actor_network", "critic": f"scorer.{critic}"}, scorer=scorer)
        self._out_keys: list[NestedKey] = ["loss_latent_policy", "kl_to_prior", "effective_candidates", "score_mean"]
        self._out_keys += ["score_gain", "latent_scale"]

    def _make_in_keys(self) -> list[NestedKey]:
        return list(dict.fromkeys([*self.latent_policy.in_keys, *getattr(self.scorer, "in_keys", [])]))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute ``-sum_i omega_i log pi(w_i | s) + kl_coef KL(pi || prior)`` of a batch of any shape."""
        latent, scores = self.candidate_scores(tensordict)
        spread = scores.std(-1, keepdim=True, unbiased=False)
        scaled = scores / spread.clamp(min=1e-6) if self.standardize_scores else scores
        omega = candidate_weights(scaled, beta=self.beta)
        with running(self.latent_policy_params, self.latent_policy):
            dist = self.latent_policy.normal(tensordict)
            batch = dist.batch_shape
            candidates = latent.movedim(1, 0).reshape(self.num_candidates, *batch, *latent.shape[2:])
            log_prob = dist.log_prob(candidates).reshape(self.num_candidates, -1).mT
            kl = dist.kl_to_prior()
        rows = -(omega * log_prob).sum(-1).reshape(batch) + self.kl_coef * kl
        loss = self._reduce_loss(rows, tensordict, weights=self._row_weights(tensordict, batch))
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

    @torch.no_grad()
    def candidate_scores(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Draw candidates and score them.

        Args:
            tensordict: observations ``[*B]``.

        Returns:
            latents ``[B, M, S, A]`` and scores ``[B, M]`` of the flattened batch.
        """
        policy = self.latent_policy
        shape = (policy.encoder.batch_shape(tensordict).numel(), self.num_candidates, *policy.latent_shape)
        parameter = next(self.latent_policy_params.parameters())
        latent = policy.prior_latent(torch.randn(shape, device=parameter.device, dtype=parameter.dtype))
        return latent, upper_confidence_bound(self.scorer(tensordict, latent), kappa=self.kappa)
