"""Improve a flow policy online with chunks collected by Ray workers, on one machine or a cluster: AWSC, stage 3.

    python examples/awsc_distributed.py --policy runs/aw_shortcut_flow-planar-state-0 --workers 2
    python examples/awsc_distributed.py --policy runs/aw_shortcut_flow-planar-state-0 --workers 64 --ray-address auto

Loss, buffer, updates, options and training loop are those of `awsc_online.py`. The chunks come from Ray workers: a
training step uses the rollout of the first worker that is ready, and this worker continues at once with the newest
weights. A killed worker is replaced and counted in `train/replaced_workers`; the buffer is kept. With --learners
several processes share each gradient step, by PyTorch's DistributedDataParallel. docs/tutorials/distributed.md
describes the guarantees, and why TorchRL's `RayCollector` is not used.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from awsc_online import conclude, make_chunk_rollouts, make_learner, start_stage, train

from torchrl_flow.evaluation import EvaluationResult
from torchrl_flow.options import Count, Installed, OnlineAdvantageWeightArgs, parse_options, refusals_in_one_line
from torchrl_flow.training import RayLearners
from torchrl_flow.util.ray_cluster import ray_session


@dataclasses.dataclass(kw_only=True)
class Args(OnlineAdvantageWeightArgs):
    """Options of the recipe."""

    workers: Annotated[Count, Installed("ray", "sweep")] = 2
    """Ray workers that collect, with --num-envs environments and one CPU each. A run continued with --resume starts new
    episodes"""
    ray_address: str | None = None
    """address of the Ray cluster (auto, HEAD:6379); by default only this machine"""
    learners: Count = 1
    """processes that compute gradients on this machine's CPU, including this one, each with its share of a batch"""

    def check(self) -> None:
        """Refuse options that several learners do not support."""
        super().check()
        if self.learners == 1:
            return
        if self.batch_size % self.learners:
            raise SystemExit(f"--batch-size {self.batch_size} must be a multiple of --learners {self.learners}.")
        if self.compile:
            raise SystemExit(
                f"--compile needs --learners 1, got {self.learners}: several learners call the loss eagerly."
            )
        if self.device != "cpu" or self.skip_updates or (self.ray_address or "").startswith("ray://"):
            raise SystemExit(
                f"--learners {self.learners} needs --device cpu, --skip-updates 0 and no ray:// in --ray-address, got "
                f"{self.device}, {self.skip_updates} and {self.ray_address}."
            )


def main(args: Args) -> EvaluationResult:
    """Load policy, critic and demonstrations, start the workers, train, evaluate, and write the report."""
    args.prepare()
    stage = start_stage(args, ray_workers=args.workers, ray_address=args.ray_address)
    options = stage.run_options(args.seed)
    with (
        ray_session(args.ray_address, args.workers + args.learners - 1),
        args.open_run(**options, keep_best="eval/success_once") as run,
    ):
        loss_module, stepper = make_learner(args, stage)
        updates = RayLearners(stepper, args.learners, seed=args.seed) if args.learners > 1 else stepper
        rollouts = make_chunk_rollouts(args, stage, loss_module, wait_for_all=False)
        train(args, run, stage.buffer, loss_module, updates, rollouts, stage.eval_env)
        if isinstance(updates, RayLearners):
            updates.close()
        return conclude(args, run, stage, loss_module)


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
