"""Clone logged latents conditioned on their return, and act with a high target return: a return-conditioned flow.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/return_flow_slates.py --data data/diffuse_topdown-medium-300000.npz

Needs no critic. The condition is the discounted return of the following steps, as an additional column of the
observation. It is omitted in a share of the rows, so that the policy can add `--guidance` times the difference of the
velocities with and without condition (classifier-free guidance), as in Decision Diffuser:
https://arxiv.org/abs/2211.15657
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_flow.evaluation import OfflineTask
from torchrl_flow.functional import integrate
from torchrl_flow.modules import FlowActor, FlowActorConfig, make_flow_actor
from torchrl_flow.objectives import ShortCutFlowLoss
from torchrl_flow.offline import conclude_offline, offline_task
from torchrl_flow.options import (
    Count,
    Fraction,
    NonNegative,
    OfflineArgs,
    Positive,
    Range,
    SamplingSteps,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.runs import Run
from torchrl_flow.training import gradient_step

UNASKED = -5.0
"""Condition of a row without a return, below all returns in the data; returns are scaled to a standard deviation of
1."""


@dataclasses.dataclass(kw_only=True)
class Args(OfflineArgs):
    """Options of the recipe."""

    gamma: Fraction = 0.8
    """discount of the return used as condition"""
    ask: Annotated[float, Range(-4, 5)] = 1.5
    """return that the policy is conditioned on, in standard deviations above the mean of the data"""
    guidance: NonNegative = 2.0
    """weight of the guidance by the condition; 0: unconditional flow, 1: conditional flow"""
    dropout: Fraction = 0.2
    """share of training rows without condition"""
    width: Count = 256
    """width of the velocity network"""
    num_steps: SamplingSteps = 4
    """sampling steps K: a power of two up to 16"""
    lr: Positive = 1e-3
    """learning rate"""


def returns_to_go(reward: Tensor, done: Tensor, gamma: float) -> Tensor:
    """Return the discounted rewards ``[N, 1]`` from each row to the end of its episode; rows are in order of time."""
    following, found = torch.zeros_like(reward[0]), []
    for value, end in zip(reward.flip(0).unbind(0), done.flip(0).unbind(0)):
        following = value + gamma * following * ~end
        found.append(following)
    return torch.stack(found).flip(0)


class GuidedFlow(TensorDictModuleBase):
    """Policy with the unconditional velocity plus ``guidance`` times the difference to the conditional velocity."""

    def __init__(self, actor: FlowActor, ask: float, guidance: float) -> None:
        self.in_keys, self.out_keys = ["observation"], ["action"]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        self.actor, self.ask, self.guidance = actor, ask, guidance

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draw noise, and write ``action``."""
        state, actor = tensordict["observation"], self.actor
        plain, asked = (self._features(state, value) for value in (UNASKED, self.ask))

        def field(x: Tensor, t: Tensor, d: Tensor) -> Tensor:
            free = actor.velocity(plain, x, t, d)
            return free + self.guidance * (actor.velocity(asked, x, t, d) - free)

        noise = torch.randn(len(plain), *actor.noise_shape, device=state.device)
        chunk = integrate(field, noise, num_steps=actor.num_steps)
        action = actor.clamp(actor.action_normalizer.inverse(chunk))
        return tensordict.set("action", action.reshape(*state.shape[:-1], -1))

    def _features(self, state: Tensor, value: float) -> Tensor:
        condition = state.new_full((*state.shape[:-1], 1), value)
        inputs = torch.cat([state, condition], -1).unsqueeze(-2)
        return self.actor.features(TensorDict({"observation": inputs}, inputs.shape[:-2]))


def train(args: Args, run: Run, task: OfflineTask, loss: ShortCutFlowLoss, returns: Tensor) -> None:
    """Run the training loop."""
    ema = SoftUpdate(loss, eps=0.995)
    optimizer = torch.optim.AdamW(loss.parameters(), args.lr, weight_decay=1e-4, fused=True)
    run.track(modules={"policy": loss.actor_network, "ema_policy": loss.ema_actor}, optimizers={"adamw": optimizer})
    rows, compute = task.data.transitions, args.compiled(loss)
    for step in run.steps(args.iterations, save_every=args.save_every):
        index = torch.randint(len(rows), (args.batch_size,), device=returns.device)
        dropped = torch.rand(args.batch_size, 1, device=returns.device) < args.dropout
        condition = torch.where(dropped, UNASKED, returns[index])
        observation = torch.cat([rows["observation"][index], condition], -1).unsqueeze(-2)
        data = {"observation": observation, "action_chunk": rows["action"][index].unsqueeze(-2)}
        batch = TensorDict(data, [args.batch_size])
        losses = compute(batch)
        due = {"loss_flow": losses["loss_flow"]}
        norms = gradient_step(due, {"adamw": optimizer}, step=step, batch=batch, max_grad_norm=1.0)
        ema.step()
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in (dict(losses.items()) | norms).items()})
        if task.has_env and run.due(args.eval_every):
            policy = GuidedFlow(loss.ema_actor(), args.ask, args.guidance)
            run.log(task.evaluate(policy, episodes=args.eval_episodes, random=True).metrics())
            run.request_save()


def main(args: Args) -> None:
    """Load the data, compute returns, then build, train and evaluate the policy."""
    args.prepare()
    task = offline_task(args.data, args.models, env=args.env, gamma=args.gamma, device=args.device)
    rows, statistics = task.data.transitions, task.statistics()
    returns = returns_to_go(rows["next", "reward"], rows["next", "done"], args.gamma)
    returns = (returns - returns.mean()) / returns.std().clamp(min=1e-6)
    bound = args.state_bound or task.state_bound
    # The bound on normalised inputs applies to the condition too; UNASKED and every --ask stay within it.
    neutral = {"mean": torch.zeros(1), "std": torch.full((1,), abs(UNASKED) / bound)}
    state = {name: torch.cat([statistics["observation"][name], value]) for name, value in neutral.items()}
    given, ones = {"observation": state, "action": statistics["action"]}, torch.ones(task.action_dim)
    sizes: Any = {"action_dim": task.action_dim, "state_dim": task.state_dim + 1, "width": args.width}
    sizes |= {"obs_horizon": 1, "pred_horizon": 1, "act_horizon": 1, "num_steps": args.num_steps}
    config = FlowActorConfig(**sizes, state_bound=bound)
    actor = make_flow_actor(config, statistics=given, action_low=-ones, action_high=ones)
    loss = ShortCutFlowLoss(actor.to(args.device))
    name = f"return_flow-{task.path.stem}-{args.seed}"
    options = {"actor_config": config, "module_configs": task.module_configs, "config": {"recipe": "return_flow"}}
    with args.open_run(name, task=task.info, keep_best=task.keep_best(args.eval_every), **options) as run:
        train(args, run, task, loss, returns)
        policy = GuidedFlow(loss.ema_actor(), args.ask, args.guidance)
        print(conclude_offline(run, task, policy, recipe="return_flow", random=True))


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
