"""The options of processes that collect."""

from __future__ import annotations

import dataclasses

from torchrl_flow.options.run_arguments import RunArgs
from torchrl_flow.options.types import Count

__all__ = ["CollectorArgs"]


@dataclasses.dataclass(kw_only=True)
class CollectorArgs(RunArgs):
    """Processes that collect."""

    on_policy = False
    """Whether the algorithm needs chunks drawn by the current policy; a recipe sets it."""

    collectors: Count = 1
    """processes that collect on the CPU, with --num-envs environments each; 1 collects in this process. With more,
    --resume starts new episodes, so a resumed run is not bit-identical to an uninterrupted one"""
    collector_sync: bool = True
    """an iteration waits for the rollouts of all processes, which wait during the updates; --no-collector-sync: it
    takes the rollout of the first process that is ready, and all collect during the updates, with older weights"""

    def check(self) -> None:
        """Refuse asynchronous collection where the algorithm does not permit it, or where it has no effect."""
        super().check()
        if self.collector_sync:
            return
        if self.on_policy:
            raise SystemExit(
                "--no-collector-sync is for off-policy recipes: this recipe's PPO needs chunks drawn by the current "
                "policy, and processes that do not wait collect with older weights. Leave it out."
            )
        if self.collectors == 1 and getattr(self, "ray_workers", None) is None:
            raise SystemExit("--no-collector-sync has no effect in one process: give --collectors 2 or more with it.")
