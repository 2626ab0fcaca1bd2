"""Time of an update of DSRL with noise aliasing, compared with a plain PyTorch form of the same operations.

    python benchmarks/dsrl_update.py
    python benchmarks/dsrl_update.py --schedule published --results benchmarks/results.csv

prints, for K = 1 and K = 8 sampling steps, the median time of a gradient step of each in milliseconds, the median ratio
of neighbouring measurements with its quartiles (below 1, this library is faster), numbers of parameters, and a lower
bound: the time of the matrix products only, at the rate measured in this process. With the schedule `recipe`, a
measured step consists of one gradient step of the critic of actions, `distill_steps` of the critics of noise, one of
policy and temperature (each with its optimiser), and the target update. With the schedule `published`, which public
forks of the official code use, the critics of noise are trained outside of this loop: after `gradient_steps` steps of
critic and policy follow `distill_steps` steps of distillation on other batches; the time is divided by
`gradient_steps`. The plain form is written after these forks, not their code: temperature, critic of actions, for each
step of distillation new noise, the flow, the teacher and the critics of noise, then the policy. Both have two critics
of three layers of 128 units with tanh and LayerNorm. The velocity network, which takes most of the time, is the same
object in both. The library makes the pairs of all distillation steps at once, so that features of the observation are
computed once. Replay is not timed: batches are in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from pairs import Pair, Side, compare
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_flow.modules import (
    CriticConfig,
    FlowActor,
    FlowActorConfig,
    LatentPolicyConfig,
    make_critic,
    make_flow_actor,
    make_latent_critics,
    make_latent_policy,
)
from torchrl_flow.objectives import ActionScorer, ChunkCriticLoss, DistilledSACLoss, NetworkSoftUpdate
from torchrl_flow.training import LossGroup, NamedLossStepper
from torchrl_flow.util.timing import num_parameters


@dataclass
class Args:
    """What to measure."""

    batch_size: int = 256
    state_dim: int = 23
    action_dim: int = 7
    chunk: int = 4
    """Steps of a chunk; all steps are executed and steered."""
    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    distill_steps: int = 10
    flow_width: int = 256
    flow_depth: int = 3
    num_steps: tuple[int, ...] = (1, 8)
    """Sampling steps K."""
    schedule: Literal["recipe", "published"] = "recipe"
    """Distillation in each gradient step, or after all gradient steps of a measurement."""
    gradient_steps: int = 20
    """Gradient steps in a measurement."""
    rounds: int = 5
    """Number of measurements of each form, taken alternately, after one warm-up."""
    threads: int = 1
    """Number of CPU threads."""
    device: str = "cpu"
    results: Path | None = None
    """A CSV file to append the pairs to."""


def make_flow(args: Args, num_steps: int) -> FlowActor:
    torch.manual_seed(0)
    config = FlowActorConfig(
        action_dim=args.action_dim,
        state_dim=args.state_dim,
        obs_horizon=1,
        pred_horizon=args.chunk,
        act_horizon=args.chunk,
        width=args.flow_width,
        depth=args.flow_depth,
        num_steps=num_steps,
    )
    return make_flow_actor(config).to(args.device).eval().requires_grad_(False)


def make_batch(args: Args) -> TensorDict:
    rows, chunk = args.batch_size, (args.batch_size, args.chunk, args.action_dim)
    following = {
        "observation": torch.randn(rows, 1, args.state_dim),
        "reward": torch.randn(rows, 1),
        "terminated": torch.zeros(rows, 1, dtype=torch.bool),
        "done": torch.zeros(rows, 1, dtype=torch.bool),
        "steps_to_next_obs": torch.full((rows, 1), args.chunk),
    }
    data = {"observation": torch.randn(rows, 1, args.state_dim), "action": torch.randn(chunk)}
    data |= {"latent": torch.randn(chunk), "next": TensorDict(following, batch_size=[rows])}
    return TensorDict(data, batch_size=[rows]).to(args.device)


def ours(args: Args, flow: FlowActor, batch: TensorDict) -> tuple[Callable[[], None], Callable[[], None], list[Tensor]]:
    """Make the update and the distillation of examples/dsrl_sac_online.py --na, and return the trained parameters."""
    policy = make_latent_policy(LatentPolicyConfig(latent_bound=1.0, hidden_sizes=args.hidden_sizes), flow)
    config = CriticConfig(num_qs=2, hidden_sizes=args.hidden_sizes, activation="tanh")
    critic = make_critic(config, flow)
    critic_loss = ChunkCriticLoss(flow, critic, policy, augment=False)
    critics = make_latent_critics(config, flow, policy)
    teacher = ActionScorer(flow, critic, steer_mode=policy.steer_mode)
    loss = DistilledSACLoss(policy, critics, teacher, deactivate_vmap=args.device == "cpu")
    target = NetworkSoftUpdate(critic_loss, "critic_network", tau=0.005)
    adam = partial(torch.optim.Adam, fused=True)
    td_group = LossGroup("loss_qvalue", adam(critic_loss.critic_parameters(), 3e-4), target_updater=target)
    distil_group = LossGroup("loss_qvalue", adam(loss.qvalue_network_params.parameters(), 3e-4), method="qvalue_loss")
    parameters = [*loss.actor_network_params.parameters(), *[p for n, p in loss.named_parameters() if n == "log_alpha"]]
    policy_group = LossGroup(("loss_actor", "loss_alpha"), adam(parameters, 3e-4), method="policy_loss")
    td, distil = NamedLossStepper(critic_loss, [td_group]), NamedLossStepper(loss, [distil_group])
    improve = NamedLossStepper(loss, [policy_group])

    def step() -> None:
        rows = batch.clone(False)
        td.update(rows)
        if args.schedule == "recipe":
            distillation()
        improve.update(rows)

    def distillation() -> None:
        for pairs in loss.distillation_pairs(batch.clone(False), args.distill_steps).unbind(0):
            distil.update(pairs)

    trained = [*td_group.parameters, *distil_group.parameters, *policy_group.parameters]
    return step, distillation, trained


def mlp(sizes: tuple[int, ...], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.LayerNorm(b), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out))


class Reference:
    """The update in the order of public forks of the official code, in plain PyTorch."""

    def __init__(self, args: Args, flow: FlowActor, batch: TensorDict) -> None:
        torch.manual_seed(0)
        self.args, self.flow, self.size = args, flow, args.chunk * args.action_dim
        state, hidden = args.state_dim, args.hidden_sizes
        self.actor = mlp((state, *hidden), 2 * self.size).to(args.device)
        critics = [[mlp((state + self.size, *hidden), 1).to(args.device) for _ in range(2)] for _ in range(3)]
        self.critics, self.targets, self.noise_critics = critics
        for target, critic in zip(self.targets, self.critics):
            target.load_state_dict(critic.state_dict())
        self.log_alpha = torch.zeros(1, device=args.device, requires_grad=True)
        adam = torch.optim.Adam
        self.actor_adam, self.alpha_adam = adam(self.actor.parameters(), 3e-4), adam([self.log_alpha], 3e-4)
        self.critic_adam = adam([p for critic in self.critics for p in critic.parameters()], 3e-4)
        self.noise_adam = adam([p for critic in self.noise_critics for p in critic.parameters()], 3e-4)
        self.obs, self.next_obs = batch["observation"].flatten(1), batch["next", "observation"].flatten(1)
        self.action, self.reward = batch["action"].flatten(1), batch["next", "reward"]
        self.alive = (~batch["next", "terminated"]).float()

    def parameters(self) -> list[Tensor]:
        """Return the trained parameters."""
        networks = [self.actor, *self.critics, *self.noise_critics]
        return [*(p for network in networks for p in network.parameters()), self.log_alpha]

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Draw squashed noise and score it."""
        mean, log_std = self.actor(obs).chunk(2, -1)
        std = log_std.clamp(-20, 2).exp()
        u = mean + std * torch.randn_like(mean)
        log_prob = (-0.5 * ((u - mean) / std).square() - std.log() - 0.9189385).sum(-1, keepdim=True)
        w = torch.tanh(u)
        return w, log_prob - (1 - w.square() + 1e-6).log().sum(-1, keepdim=True)

    @torch.no_grad()
    def decode(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Map noise to an action by K Euler steps."""
        x = noise.reshape(-1, self.args.chunk, self.args.action_dim)
        num = self.flow.num_steps
        d = x.new_full(x.shape[:1], 1 / num)
        for i in range(num):
            x = x + self.flow.velocity_network(x, x.new_full(x.shape[:1], i / num), d, obs) / num
        return x.flatten(1)

    @staticmethod
    def values(critics: list[nn.Sequential], obs: Tensor, action: Tensor) -> Tensor:
        """Return the values of all critics, concatenated."""
        x = torch.cat([obs, action], -1)
        return torch.cat([critic(x) for critic in critics], -1)

    @staticmethod
    def minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Take one optimiser step."""
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def distillation(self) -> None:
        """Do the steps of distillation."""
        obs = self.obs
        for _ in range(self.args.distill_steps):
            noise = torch.randn(obs.shape[0], self.size, device=obs.device).clamp(-1, 1)
            with torch.no_grad():
                taught = self.values(self.critics, obs, self.decode(obs, noise))
            self.minimise(F.mse_loss(self.values(self.noise_critics, obs, noise), taught), self.noise_adam)

    def step(self) -> None:
        """Do one gradient step."""
        obs = self.obs
        w, log_prob = self.sample(obs)
        alpha = self.log_alpha.detach().exp()
        self.minimise(-(self.log_alpha * (log_prob - 0.5 * self.size).detach()).mean(), self.alpha_adam)
        with torch.no_grad():
            next_w, _ = self.sample(self.next_obs)
            next_q = self.values(self.targets, self.next_obs, self.decode(self.next_obs, next_w)).amin(-1, keepdim=True)
            target = self.reward + self.alive * 0.99**self.args.chunk * next_q
        values = self.values(self.critics, obs, self.action)
        self.minimise(F.mse_loss(values, target.expand_as(values)), self.critic_adam)
        if self.args.schedule == "recipe":
            self.distillation()
        lowest = self.values(self.noise_critics, obs, w).amin(-1, keepdim=True)
        self.minimise((alpha * log_prob - lowest).mean(), self.actor_adam)
        with torch.no_grad():
            for target_critic, critic in zip(self.targets, self.critics):
                for slow, fast in zip(target_critic.parameters(), critic.parameters()):
                    slow.mul_(0.995).add_(fast, alpha=0.005)


def measured(args: Args, step: Callable[[], None], distillation: Callable[[], None]) -> Callable[[], None]:
    """Return the work of one measurement."""

    def work() -> None:
        for _ in range(args.gradient_steps):
            step()
        if args.schedule == "published":
            distillation()

    return work


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batch = make_batch(args)
    steps = f"1 + {args.distill_steps} + 1 steps"
    if args.schedule == "published":
        steps = f"{args.gradient_steps} steps of critic and policy, then {args.distill_steps} of distillation"
    for num_steps in args.num_steps:
        flow = make_flow(args, num_steps)
        plain = Reference(args, flow, batch)
        step, distillation, parameters = ours(args, flow, batch)
        sides = {
            "ours": Side(measured(args, step, distillation), num_parameters(parameters), args.gradient_steps),
            "reference": Side(
                measured(args, plain.step, plain.distillation), num_parameters(plain.parameters()), args.gradient_steps
            ),
        }
        mode = f"K = {num_steps}, {steps}, batch {args.batch_size}"
        pair = Pair("ours", "reference", "dsrl_na update / plain PyTorch", mode)
        compare(sides, [pair], rounds=args.rounds, warmup=1, device=args.device, results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
