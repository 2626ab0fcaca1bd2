"""Soft actor-critic over a flow's noise, whose critics are distilled from a critic of actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.checks import check_at_least, check_one_of
from torchrl_flow.objectives.held_networks import HeldNetworks
from torchrl_flow.objectives.latent_sac import LatentSACLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchrl_flow.modules import LatentGaussianPolicy, QEnsemble
    from torchrl_flow.objectives.latent_scorer import ActionScorer

DistillationMode = Literal["forward", "aliased", "both"]
"""Kind of the pairs of noise and action that train the critic of noise: forward, aliased, or both."""

__all__ = ["DistillationMode", "DistilledSACLoss"]

TARGET_KEY = "distillation_target"


class DistilledSACLoss(HeldNetworks, LatentSACLoss):
    """SAC over noise whose critics ``Q(s, w)`` are distilled from a critic of actions: DSRL with noise aliasing.

    ``Q(s, w) <- Q(s, a)``, head by head, on pairs of a latent and its action. ``"forward"``: ``w`` is drawn from the
    prior, bounded like the policy's latents, and the flow computes ``a``. ``"aliased"``: the batch's latent and
    executed action, of an online transition or of a demonstration whose latent was found by a
    :class:`~torchrl_flow.modules.NoiseAliaser`. ``"both"``: both kinds. This loss does not train the action critic;
    :class:`~torchrl_flow.objectives.ChunkCriticLoss` does, from data of any policy.

    A row's loss is the mean over its pairs: ``num_latents`` forward pairs, and the aliased pair.
    :meth:`distillation_pairs` makes the pairs of several steps in one pass of the flow; it returns batches for
    :meth:`qvalue_loss` whose rows are pairs.

    The latent changes ``Q(s, a)`` far less than the state does. A critic distilled by squared errors therefore first
    learns the differences between states, but the policy needs the differences between latents of one state. If a row
    has several pairs, ``within_state_weight`` multiplies the squared deviations of their errors from the row's mean
    error.

    Args:
        latent_policy: see :class:`~torchrl_flow.objectives.LatentSACLoss`.
        qvalue_network: see :class:`~torchrl_flow.objectives.LatentSACLoss`.
        teacher: the :class:`~torchrl_flow.objectives.ActionScorer` of the flow and the critic of its executed chunks.
            It is shared, neither copied nor trained (:class:`~torchrl_flow.objectives.HeldNetworks`).

    Keyword Args:
        mode: ``"forward"``, ``"aliased"`` or ``"both"``.
        num_latents: forward pairs per row.
        within_state_weight: weight of the differences between a row's pairs; 1 is the plain squared error.
        **kwargs: see :class:`~torchrl_flow.objectives.LatentSACLoss`.

    Output: as :class:`~torchrl_flow.objectives.LatentSACLoss`; ``td_error`` is the error of the distillation. If a row
    has several pairs, also ``within_state_correlation``, the correlation of the two critics' values of a row's pairs
    after the row's mean is subtracted.

    Raises:
        ValueError: if the teacher does not have one head for each critic, an argument is outside its allowed range, or
            ``within_state_weight`` is given and a row has one pair.
    """

    teacher: ActionScorer
    mode: DistillationMode

    def __init__(
        self,
        latent_policy: LatentGaussianPolicy,
        qvalue_network: Sequence[QEnsemble],
        teacher: ActionScorer,
        *,
        mode: DistillationMode = "forward",
        num_latents: int = 1,
        within_state_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        check_one_of("mode", mode, ("forward", "aliased", "both"))
        check_at_least("num_latents", num_latents, 1)
        check_at_least("within_state_weight", within_state_weight, 0)
        self.num_latents, self.within_state_weight = num_latents, within_state_weight
        self.pairs_per_row = {"forward": num_latents, "aliased": 1, "both": num_latents + 1}[mode]
        if within_state_weight != 1 and self.pairs_per_row == 1:
            raise ValueError(
                f"within_state_weight={within_state_weight} has no effect on one pair of a row (mode={mode!r}, "
                f"num_latents={num_latents}): give num_latents of at least 2 with mode 'forward' or 'both'."
            )
        heads = teacher.critic_network.num_qs
        if heads != len(qvalue_network):
            raise ValueError(f"the action critic has {heads} heads for {len(qvalue_network)} critics of noise.")
        # Set before the parent's constructor, which reads the keys; networks can only be registered after it.
        self.mode, self._teacher_keys = mode, teacher.in_keys
        self._executed_key = teacher.critic_network.action_key
        super().__init__(latent_policy, qvalue_network, **kwargs)
        self._out_keys += ["within_state_correlation"] if self.pairs_per_row > 1 else []
        former_names = {"flow": "teacher.actor_network", "action_critic": "teacher.critic_network"}
        self.hold(former_names, teacher=teacher)

    def _set_in_keys(self) -> None:
        observations = [*self.actor_network.in_keys, *self.qvalue_network.in_keys, *self._teacher_keys]
        own = [] if self.mode == "forward" else [self.tensor_keys.action, self._executed_key]
        wanted = [*(key for key in observations if key != self.tensor_keys.action), *own]
        self._in_keys: list[NestedKey] = list(dict.fromkeys(wanted))

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute only the distillation loss, ``sum_i (Q_i(s, w) - Q_i(s, a))^2``, and its metrics.

        Args:
            tensordict: batch, or the result of :meth:`distillation_pairs`.
        """
        given = tensordict.get(TARGET_KEY, None) is not None
        pairs: Any = tensordict if given else self.distillation_pairs(tensordict)[0]
        values, target = self._values(pairs), pairs[TARGET_KEY].movedim(-1, 0)
        rows, error, metrics = self._regression(values, target)
        if self.pairs_per_row > 1:
            metrics["within_state_correlation"] = self._ranking(values.detach(), target)
            rows, *_ = self._regression(target + self._weighted(values - target), target)
        if not given:
            rows, error = (part.unflatten(0, (-1, self.pairs_per_row)) for part in (rows, error))
            rows, error = rows.mean(1), error.amax(1)
        loss = self._reduce_loss(rows, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        tensordict.set(self.tensor_keys.priority, error)
        return loss, metrics

    def _ranking(self, *values: Tensor) -> Tensor:
        """Correlate two values ``[N, R]`` of the pairs, averaged over the heads and centred within each row."""
        ours, theirs = (value.mean(0).unflatten(-1, (-1, self.pairs_per_row)) for value in values)
        ours, theirs = (value - value.mean(-1, keepdim=True) for value in (ours, theirs))
        return (ours * theirs).sum() / (ours.norm() * theirs.norm()).clamp(min=1e-12)

    def _weighted(self, error: Tensor) -> Tensor:
        """Scale the deviations of the errors ``[N, R]`` from the mean error of their row's pairs."""
        error = error.unflatten(-1, (-1, self.pairs_per_row))
        mean = error.mean(-1, keepdim=True)
        return (mean + self.within_state_weight**0.5 * (error - mean)).flatten(-2)

    @torch.no_grad()
    def distillation_pairs(self, tensordict: TensorDictBase, num: int = 1) -> TensorDict:
        """Make the pairs of ``num`` distillation steps from a batch, in one pass of flow and teacher.

        Args:
            tensordict: batch ``[*B]``.
            num: number of distillation steps.

        Returns:
            batches ``[num, R]`` of observations, latents and the teacher's values, with the rows' importance weights if
            the batch has any; R is the number of rows times the number of pairs per row, and a row's pairs are
            adjacent.
        """
        policy, teacher = self.actor_network, self.teacher
        reference = next(teacher.critic_network.parameters())
        rows: Any = self._observations(tensordict)
        weights = self._maybe_get_priority_weight(tensordict)
        if weights is not None:
            rows.set(self.tensor_keys.priority_weight, weights.reshape(rows.shape))
        latents, targets = [], []  # [num, B, pairs, ...] each
        if self.mode != "aliased":
            shape = (rows.shape[0], num * self.num_latents, *policy.latent_shape)
            latent = policy.prior_latent(torch.randn(shape, device=reference.device, dtype=reference.dtype))
            latents.append(latent.unflatten(1, (num, -1)).transpose(0, 1))
            targets.append(teacher(tensordict, latent).unflatten(2, (num, -1)).permute(2, 1, 3, 0))
        if self.mode != "forward":
            latent = tensordict[self.tensor_keys.action].reshape(-1, 1, *policy.latent_shape)
            action = tensordict[self._executed_key]
            action = action.reshape(-1, 1, *action.shape[-2:])
            latents.append(latent.expand(num, *latent.shape))
            targets.append(teacher.action_values(tensordict, action).permute(1, 2, 0).expand(num, -1, -1, -1))
        pairs: Any = rows.repeat_interleave(self.pairs_per_row, 0)
        pairs = pairs.expand(num, *pairs.shape).clone(False)
        pairs.set(self.tensor_keys.action, torch.cat(latents, 2).flatten(1, 2))
        return pairs.set(TARGET_KEY, torch.cat(targets, 2).flatten(1, 2))
