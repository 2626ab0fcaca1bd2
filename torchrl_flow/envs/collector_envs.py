"""A factory of the environments of collector processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torchrl.envs import EnvBase

__all__ = ["CollectorEnvs"]


@dataclass(frozen=True)
class CollectorEnvs:
    """A factory from which collector processes make their environments; pass it in place of an environment.

    Args:
        make: function that makes the environment of one process. It is sent to the process and must be picklable, for
            example a :func:`functools.partial` of a function.
        processes: number of processes.
        num_envs: number of sub-environments of each environment; ``None`` for one environment without a batch
            dimension.
        on_ray: use Ray processes, which may run on other machines, instead of child processes.
        ray_address: address of a Ray cluster. Defaults to a local Ray instance.
        wait_for_all: a rollout is that of all processes, which wait while the learner learns. False: it is that of the
            first process that is ready, for off-policy learners.

    Raises:
        ValueError: if a number is below 1.

    Examples:
        >>> import functools
        >>> from torchrl_flow.envs import PlanarPickPlaceEnv
        >>> CollectorEnvs(functools.partial(PlanarPickPlaceEnv, 4), processes=2, num_envs=4).batch_size
        torch.Size([4])
    """

    make: Callable[[], EnvBase]
    processes: int
    num_envs: int | None
    on_ray: bool = False
    ray_address: str | None = None
    wait_for_all: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("processes", "num_envs"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")

    @property
    def batch_size(self) -> torch.Size:
        """Batch size of the environment of one process."""
        return torch.Size(() if self.num_envs is None else (self.num_envs,))
