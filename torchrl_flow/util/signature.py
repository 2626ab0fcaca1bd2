"""A descriptor that exposes the constructor's signature of classes whose metaclass hides it."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["InitSignature"]


class InitSignature:
    """Descriptor that provides the signature of a class's ``__init__`` to ``inspect.signature``, ``help`` and editors.

    The metaclasses of TorchRL's environments and replay buffers would otherwise show ``(*args, **kwargs)``.

    Examples:
        >>> class Env:
        ...     __signature__ = InitSignature()
        ...     def __init__(self, size=1): ...
        >>> str(Env.__signature__)
        '(size=1)'
    """

    def __get__(self, instance: Any, owner: type) -> inspect.Signature | None:
        """Return the signature for the class, and None for an instance, which has its own ``__call__``."""
        if instance is not None:
            return None
        signature = inspect.signature(owner.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])
