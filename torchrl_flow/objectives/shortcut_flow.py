"""Behaviour cloning of action chunks by a ShortCut flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey

from torchrl_flow.objectives.flow_loss import AveragedActor, FlowLossModule, check_flow_actor
from torchrl_flow.objectives.shortcut_term import ShortCutTerm

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor

__all__ = ["ShortCutFlowLoss"]


class ShortCutFlowLoss(AveragedActor, FlowLossModule):
    """Flow matching on part of each batch, ShortCut self-consistency on the rest.

    A row of the flow-matching part draws ``t ~ U(0, 1)`` and regresses the instantaneous velocity (``d = 0``) on
    ``x_1 - x_0``. A row of the consistency part draws a dyadic ``d`` and a ``t`` on its grid, and regresses
    ``v(x_t, t, d)`` on the mean of two half steps of the averaged (target) network. Steps past an episode's end, where
    ``action_mask`` is False, count in neither part. See :class:`~torchrl_flow.objectives.ShortCutTerm`.

    The target parameters are the exponential moving average that both the teacher and evaluation use: attach
    TorchRL's :class:`~torchrl.objectives.SoftUpdate` and call its ``step()`` after each optimiser step.
    ``loss.ema_actor()`` gives the averaged policy.

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
        ValueError: if an argument is outside its allowed range.

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

    @dataclass
    class _AcceptedKeys(FlowLossModule._AcceptedKeys):
        """Keys that ``set_keys`` accepts.

        Attributes:
            action_chunk: the chunk to clone ``[*B, H, A]``, in the environment's units.
            action_mask: ``[*B, H]`` bool, True where a step of the chunk is real; optional.
            priority_weight: importance weight of a row, ``[*B]`` or ``[*B, 1]``; optional.
        """

        action_chunk: NestedKey = "action_chunk"
        action_mask: NestedKey = "action_mask"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    actor_network: FlowActor
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: FlowActor,
        *,
        consistency_fraction: float = 0.25,
        target_clip: float | None = 4.0,
        augment: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_flow_actor(actor_network)
        self.shortcut = ShortCutTerm(consistency_fraction, target_clip, augment)
        self.convert_to_functional(
            actor_network,  # pyright: ignore[reportArgumentType]
            "actor_network",
            create_target_params=True,
        )
        self._out_keys = ["loss_flow", "flow_error", "consistency_error"]

    def _make_in_keys(self) -> list[NestedKey]:
        return [*self.actor_network.in_keys, self.tensor_keys.action_chunk]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a batch of any shape.

        Raises:
            ValueError: if the chunk's shape is not the actor's ``[*B, H, A]``.
        """
        errors, metrics = self.shortcut(
            self.actor_network,
            self.actor_network_params,
            self.target_actor_network_params,
            tensordict,
            self._entry(tensordict, self.tensor_keys.action_chunk),
            tensordict.get(self.tensor_keys.action_mask, None),
        )
        loss = self._reduce_loss(errors, tensordict, weights=self._row_weights(tensordict, errors.shape))
        self._clear_weakrefs(tensordict, "actor_network_params", "target_actor_network_params")
        return TensorDict({"loss_flow": loss, **metrics})
