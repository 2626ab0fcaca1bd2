"""Networks that a loss evaluates but does not train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from torch import Tensor
    from torchrl.objectives import LossModule

    _Base = LossModule
else:
    # Not a LossModule: TorchRL wraps the forward of every loss class, and the mixin's would precede that of the loss.
    _Base = object

__all__ = ["HeldNetworks"]


class HeldNetworks(_Base):
    """Mixin of losses that hold networks which they do not train, such as a frozen flow.

    A held network is a registered submodule: it is moved, cast, copied and saved with the loss. :meth:`parameters` and
    :meth:`named_parameters` omit it, so that no optimiser of the loss updates it, and :meth:`train` does not change its
    mode. It is shared, not copied: updates made elsewhere take effect at once.

    List it before the loss among the bases, and call :meth:`hold` after the loss's own networks are registered.
    """

    _held: tuple[str, ...] = ()
    _former_names: dict[str, str]
    """Keys of the held networks in state dicts of earlier versions."""

    def hold(self, former_names: dict[str, str] | None = None, **networks: Any) -> None:
        """Register networks under their names; ``None`` and functions become attributes.

        Args:
            former_names: prefixes of keys in state dicts of earlier versions, with the prefixes that replace them.
            **networks: networks to hold, by name.
        """
        for name, network in networks.items():
            setattr(self, name, network)
        self._held = (*self._held, *(name for name, network in networks.items() if isinstance(network, nn.Module)))
        self._former_names = former_names or {}

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, **options: Any
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield the parameters that the loss trains, without those of held networks."""
        start = f"{prefix}." if prefix else ""
        held = tuple(f"{start}{name}." for name in self._held)
        for name, parameter in super().named_parameters(prefix=prefix, recurse=recurse, **options):
            if not name.startswith(held):
                yield name, parameter

    def train(self, mode: bool = True) -> HeldNetworks:
        """Set the mode of the loss; held networks keep their mode."""
        modes = [(module, module.training) for name in self._held for module in getattr(self, name).modules()]
        super().train(mode)
        for module, training in modes:
            module.training = training
        return self

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *rest: Any) -> None:
        for former, now in self._former_names.items():
            for key in [key for key in state_dict if key.startswith(f"{prefix}{former}.")]:
                state_dict[f"{prefix}{now}{key[len(prefix) + len(former) :]}"] = state_dict.pop(key)
        # Older state dicts have no held networks, which then keep their weights.
        for name in self._held:
            start = f"{prefix}{name}."
            if not any(key.startswith(start) for key in state_dict):
                own = getattr(self, name).state_dict()
                state_dict.update({f"{start}{key}": value for key, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)
