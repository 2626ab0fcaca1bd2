"""Connections to Ray, on this machine or on a cluster, without changes to the program's signal handlers."""

from __future__ import annotations

import importlib.util
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["RayError", "connect_ray", "disconnect_ray", "has_ray", "ray_session", "require_cpus"]


class RayError(RuntimeError):
    """Error if Ray is not installed, cannot be reached, or has too few CPUs; the message states the cause."""


def has_ray() -> bool:
    """Return whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


def connect_ray(address: str | None, num_cpus: int | None) -> bool:
    """Connect this process to Ray, unless it is already connected.

    Args:
        address: address of a cluster to which this machine belongs, such as ``"auto"`` or ``"head:6379"``. ``None``
            starts a local Ray instance, which ends with this process.
        num_cpus: number of CPUs of a local Ray instance; ``None`` for all CPUs. It has no effect on a cluster.

    Returns:
        Whether this call has connected; the caller must then call :func:`disconnect_ray`.

    Raises:
        RayError: if Ray is not installed, or the address does not answer.
    """
    if not has_ray():
        raise RayError("This needs the package ray: pip install 'torchrl-flow[sweep]'.")
    import ray

    if ray.is_initialized():
        return False
    where: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": num_cpus}
    with _signal_handlers_kept():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING, **where)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise RayError(f"Ray cannot be reached at {address or 'this machine'}: {reason}") from error
    return True


def disconnect_ray() -> None:
    """End this process's connection, and stop a Ray instance that it has started."""
    import ray

    with _signal_handlers_kept():
        ray.shutdown()


def require_cpus(needed: int) -> None:
    """Check that Ray has enough CPUs in total, including those in use; Ray would wait for missing ones forever.

    Raises:
        RayError: if Ray has fewer CPUs.
    """
    import ray

    found = int(ray.cluster_resources().get("CPU", 0))
    if found < needed:
        raise RayError(
            f"Ray has {found} CPUs, and {needed} processes need one each: ask for fewer processes, or add machines to "
            "the cluster."
        )


@contextmanager
def ray_session(address: str | None, num_cpus: int) -> Iterator[None]:
    """Run a block with a connection to Ray that has at least ``num_cpus`` CPUs.

    Args:
        address: see :func:`connect_ray`.
        num_cpus: required number of CPUs.

    Raises:
        RayError: see :func:`connect_ray` and :func:`require_cpus`.
    """
    connected = connect_ray(address, num_cpus)
    try:
        require_cpus(num_cpus)
        yield
    finally:
        if connected:
            disconnect_ray()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
