"""Target updates of a loss: a faster SoftUpdate, and one for a single network at its own rate and interval."""

from __future__ import annotations

import torch
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_flow.objectives.network_calls import paired_leaves

__all__ = ["DirectSoftUpdate", "NetworkSoftUpdate"]


class DirectSoftUpdate(SoftUpdate):
    """TorchRL's :class:`~torchrl.objectives.SoftUpdate` in a fifth of its time: one kernel, no TensorDict overhead.

    Args:
        loss_module: the loss.

    Keyword Args:
        tau: rate, ``target <- (1 - tau) target + tau source``.
        eps: ``1 - tau``; give one of the two.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> from torchrl_flow.objectives import ShortCutFlowLoss
        >>> loss = ShortCutFlowLoss(make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5)))
        >>> DirectSoftUpdate(loss, tau=0.005).step()
    """

    @torch.no_grad()
    def step(self) -> None:
        """Update the targets."""
        if torch.compiler.is_compiling():
            super().step()
            return
        pairs = [
            pair
            for name in tuple(self._sources.keys())
            for pair in paired_leaves(self._sources.get(name), self._targets.get(f"target_{name}"))
        ]
        targets = [target.data for _, target in pairs]
        torch._foreach_lerp_(targets, [source.data for source, _ in pairs], 1 - self.eps)


class NetworkSoftUpdate(DirectSoftUpdate):
    """TorchRL's :class:`~torchrl.objectives.SoftUpdate` for the target parameters of a single network.

    ``SoftUpdate(loss, tau=0.005)`` moves all targets of a loss at one rate. Make one updater per network instead if,
    for example, an actor's average has a lower rate than a target critic or is stepped less often.

    Like every updater of TorchRL, its constructor sets the target to the source: make it before a checkpoint is loaded.

    Args:
        loss_module: the loss.
        network: name of the network in the loss, such as ``"critic_network"``.

    Keyword Args:
        tau: rate, ``target <- (1 - tau) target + tau source``.
        eps: ``1 - tau``; give either ``tau`` or ``eps``.

    Raises:
        ValueError: if the loss has no target parameters of that name. The error lists the existing names.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, QEnsemble, make_flow_actor
        >>> from torchrl_flow.objectives import AWFlowLoss
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> loss = AWFlowLoss(actor, QEnsemble.for_actor(actor))
        >>> ema = NetworkSoftUpdate(loss, "actor_network", tau=0.001)
        >>> target = NetworkSoftUpdate(loss, "critic_network", tau=0.005)
        >>> ema.step(), target.step()
        (None, None)
    """

    def __init__(
        self, loss_module: LossModule, network: str, *, tau: float | None = None, eps: float | None = None
    ) -> None:
        suffix, prefix = "_params", "target_"
        targets = [name for name, _ in loss_module.named_children() if name.startswith(prefix)]
        known = sorted(name.removeprefix(prefix).removesuffix(suffix) for name in targets if name.endswith(suffix))
        if network not in known:
            raise ValueError(f"network must be one with target parameters, {known}, got {network!r}.")
        self.network = network
        updated = dict(loss_module._has_update_associated)
        super().__init__(loss_module, eps=eps, tau=tau)  # pyright: ignore[reportArgumentType]
        # The parent marks all networks as updated; the others are not, and TorchRL's warning should name them.
        loss_module._has_update_associated.update({**updated, network: True})

    def init_(self) -> None:
        """Set the target of this network only to its source."""
        self._source_names = [f"{self.network}_params"]
        self._target_names = [f"target_{self.network}_params"]
        super().init_()
