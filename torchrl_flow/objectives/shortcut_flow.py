"""Behaviour cloning of action chunks by a ShortCut flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey

from torchrl_flow.objectives.shortcut_objective import ShortCutObjective

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor

__all__ = ["ShortCutFlowLoss"]


class ShortCutFlowLoss(ShortCutObjective):
    """Flow matching on a part of each batch, ShortCut self-consistency on the rest.

    A row of the flow-matching part draws ``t ~ U(0, 1)`` and regresses the instantaneous velocity (``d = 0``) on
    ``x_1 - x_0``. A row of the consistency part draws a dyadic ``d`` and a ``t`` on its grid, and regresses
    ``v(x_t, t, d)`` on the mean of two half steps of the averaged (target) network. Steps past an episode's end,
    where ``action_mask`` is False, count in neither.

    The target parameters are the exponential moving average that both the teacher and evaluation use: attach
    TorchRL's :class:`~torchrl.objectives.SoftUpdate` and call its ``step()`` after each optimiser step.
    :meth:`ema_actor` gives the averaged policy.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.FlowActor` to train. Its weights are shared, not copied.

    Keyword Args:
        consistency_fraction: share of the rows that train self-consistency.
        target_clip: bound on each component of the consistency target; ``None`` for none.
        augment: let the encoder augment observations.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Output: ``loss_flow``, and the detached means ``flow_error`` and ``consistency_error`` of the two parts (NaN for
    a part with no rows).

    Raises:
        ValueError: if an argument is outside what is allowed.

    References:
        Frans et al., "One Step Diffusion via Shortcut Models", https://arxiv.org/abs/2410.12557

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> config = FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=8, act_horizon=4)
        >>> loss = ShortCutFlowLoss(make_flow_actor(config))
        >>> observation, chunk = torch.zeros(6, 2, 5), torch.zeros(6, 8, 3)
        >>> data = TensorDict(observation=observation, action_chunk=chunk, batch_size=[6])
        >>> loss(data)["loss_flow"].backward()
    """

    def __init__(
        self,
        actor_network: FlowActor,
        *,
        consistency_fraction: float = 0.25,
        target_clip: float | None = 4.0,
        augment: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            consistency_fraction=consistency_fraction,
            target_clip=target_clip,
            augment=augment,
            reduction=reduction,
        )
        self._out_keys = ["loss_flow", "flow_error", "consistency_error"]

    def _make_in_keys(self) -> list[NestedKey]:
        return [*self.actor_network.in_keys, self.tensor_keys.action_chunk]

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        self._in_keys = None

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a batch of any shape.

        Raises:
            ValueError: if the chunk's shape is not the actor's ``[*B, H, A]``.
        """
        errors, rows = self.row_errors(tensordict)
        weights = self._priority(tensordict, errors.shape)
        loss = self._reduce_loss(errors, tensordict, weights=weights)
        out = TensorDict({"loss_flow": loss, **self._error_metrics(errors, rows)})
        self._clear_weakrefs(tensordict, "actor_network_params", "target_actor_network_params")
        return out
