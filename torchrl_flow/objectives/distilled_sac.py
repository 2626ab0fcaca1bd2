"""Soft actor-critic over a flow's noise, whose critics are distilled from a critic of actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.checks import check_one_of
from torchrl_flow.objectives.held_networks import HeldNetworks
from torchrl_flow.objectives.latent_sac import LatentSACLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchrl_flow.modules import LatentGaussianPolicy, QEnsemble
    from torchrl_flow.objectives.latent_scorer import ActionScorer

DistillationMode = Literal["forward", "aliased", "both"]
"""Which pairs of noise and action train the critic of noise: forward, aliased, or both."""

__all__ = ["DistillationMode", "DistilledSACLoss"]

TARGET_KEY = "distillation_target"


class DistilledSACLoss(HeldNetworks, LatentSACLoss):
    """SAC over noise whose critics ``Q(s, w)`` are distilled from a critic of actions: DSRL with noise aliasing.

    ``Q(s, w) <- Q(s, a)``, head by head, on pairs of a latent and the action that it stands for: ``"forward"``,
    ``w`` from the prior, bounded as the policy's latents are, and ``a`` by the flow; ``"aliased"``, the batch's latent
    and executed action, of an online transition or of a demonstration whose latent was found by a
    :class:`~torchrl_flow.modules.NoiseAliaser`; or ``"both"``. The action critic learns by
    :class:`~torchrl_flow.objectives.ChunkCriticLoss`, from all data, whatever policy made it; nothing here trains it.

    A row's loss is the mean over its pairs, of which ``"both"`` makes two. :meth:`distillation_pairs` makes the pairs
    of several steps in one pass of the flow; what it returns is a batch for :meth:`qvalue_loss`, whose rows are pairs.

    Args:
        latent_policy: see :class:`~torchrl_flow.objectives.LatentSACLoss`.
        qvalue_network: see :class:`~torchrl_flow.objectives.LatentSACLoss`.
        teacher: the :class:`~torchrl_flow.objectives.ActionScorer` of the flow and the critic of its executed chunks.
            It is shared, and neither copied nor trained (:class:`~torchrl_flow.objectives.HeldNetworks`).

    Keyword Args:
        mode: ``"forward"``, ``"aliased"`` or ``"both"``.
        **kwargs: see :class:`~torchrl_flow.objectives.LatentSACLoss`.

    Output: as :class:`~torchrl_flow.objectives.LatentSACLoss`; ``td_error`` is the error of the distillation.

    Raises:
        ValueError: if the teacher has neither one head nor one for each critic, or a name is unknown.
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
        **kwargs: Any,
    ) -> None:
        check_one_of("mode", mode, ("forward", "aliased", "both"))
        heads = teacher.critic_network.num_qs
        if heads != len(qvalue_network):
            raise ValueError(f"the action critic has {heads} heads for {len(qvalue_network)} critics of noise.")
        # Before the parent asks for the keys; networks can be registered after it alone.
        self.mode, self._teacher_keys = mode, teacher.in_keys
        self._executed_key = teacher.critic_network.action_key
        super().__init__(latent_policy, qvalue_network, **kwargs)
        former_names = {"flow": "teacher.actor_network", "action_critic": "teacher.critic_network"}
        self.hold(former_names, teacher=teacher)

    def _set_in_keys(self) -> None:
        observations = [*self.actor_network.in_keys, *self.qvalue_network.in_keys, *self._teacher_keys]
        own = [] if self.mode == "forward" else [self.tensor_keys.action, self._executed_key]
        wanted = [*(key for key in observations if key != self.tensor_keys.action), *own]
        self._in_keys: list[NestedKey] = list(dict.fromkeys(wanted))

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of distillation alone, ``sum_i (Q_i(s, w) - Q_i(s, a))^2``, and its metrics.

        Args:
            tensordict: batch, or the result of :meth:`distillation_pairs`.
        """
        given = tensordict.get(TARGET_KEY, None) is not None
        pairs: Any = tensordict if given else self.distillation_pairs(tensordict)[0]
        rows, error, metrics = self._regression(self._values(pairs), pairs[TARGET_KEY].movedim(-1, 0))
        if not given and self.mode == "both":
            rows, error = rows.unflatten(0, (2, -1)).mean(0), error.unflatten(0, (2, -1)).amax(0)
        loss = self._reduce_loss(rows, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        tensordict.set(self.tensor_keys.priority, error)
        return loss, metrics

    @torch.no_grad()
    def distillation_pairs(self, tensordict: TensorDictBase, num: int = 1) -> TensorDict:
        """Make the pairs of ``num`` steps of distillation from a batch, by one pass of flow and teacher.

        Args:
            tensordict: batch ``[*B]``.
            num: number of steps of distillation.

        Returns:
            batches ``[num, R]`` of observations, latents and the teacher's values, with the rows' importance weights
            where the batch has any; R is the number of rows, twice that with ``mode="both"``.
        """
        policy, teacher = self.actor_network, self.teacher
        reference = next(teacher.critic_network.parameters())
        rows: Any = self._observations(tensordict)
        weights = self._maybe_get_priority_weight(tensordict)
        if weights is not None:
            rows.set(self.tensor_keys.priority_weight, weights.reshape(rows.shape))
        latents, targets = [], []
        if self.mode != "aliased":
            shape = (rows.shape[0], num, *policy.latent_shape)
            latent = policy.prior_latent(torch.randn(shape, device=reference.device, dtype=reference.dtype))
            latents.append(latent.transpose(0, 1))
            targets.append(teacher(tensordict, latent).permute(2, 1, 0))
        if self.mode != "forward":
            latent = tensordict[self.tensor_keys.action].reshape(-1, *policy.latent_shape)
            action = tensordict[self._executed_key]
            action = action.reshape(-1, 1, *action.shape[-2:])
            latents.append(latent.expand(num, *latent.shape))
            targets.append(teacher.action_values(tensordict, action).permute(2, 1, 0).expand(num, -1, -1))
        rows = torch.cat([rows] * len(latents)) if len(latents) > 1 else rows
        pairs: Any = rows.expand(num, *rows.shape).clone(False)
        pairs.set(self.tensor_keys.action, torch.cat(latents, 1))
        return pairs.set(TARGET_KEY, torch.cat(targets, 1))
