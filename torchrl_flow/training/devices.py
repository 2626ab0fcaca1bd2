"""Devices named on a command line."""

from __future__ import annotations

import torch

__all__ = ["require_device"]


def require_device(name: str) -> torch.device:
    """Return the device of this name, or say why it cannot be used.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ...

    Raises:
        ValueError: if the name is unknown, or this machine or this build of torch has no such device.

    Examples:
        >>> require_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown: give 'cpu', 'cuda' or 'cuda:N'.") from error
    if device.type == "cuda":
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not number:
            raise ValueError(f"device {name!r} needs CUDA, which torch {torch.__version__} does not find: give 'cpu'.")
        if (device.index or 0) >= number:
            raise ValueError(f"device {name!r} is not there: CUDA devices are 0 to {number - 1}.")
    elif device.type != "cpu":
        raise ValueError(f"device {name!r} is not supported: give 'cpu', 'cuda' or 'cuda:N'.")
    return device
