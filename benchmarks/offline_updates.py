"""Time of an update of TD3+BC, IQL and CQL in the recipes, compared with CORL's plain PyTorch.

    python benchmarks/offline_updates.py
    python benchmarks/offline_updates.py --compiled --algorithms td3_bc --results benchmarks/results.csv

`ours` is a recipe's work for one batch: the loss, `gradient_step` with its checks, one fused Adam, and the target
update. `plain` is CORL's update: a module and an Adam for each network, losses in its order, the `.item()` of its log,
and a loop over the parameters of the targets. Both have networks of the same sizes and the same equations, and their
first losses are compared. For TD3+BC, every second update also trains the policy. The output has median CPU time, the
median ratio of neighbouring measurements with its quartiles (below 1, `ours` is faster), numbers of parameters, and a
lower bound: the time of the matrix products only, at the rate measured in this process.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from pairs import Pair, Side, compare
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.objectives import LossModule

from torchrl_flow.modules import StatePolicyConfig, make_observation_value, make_state_policy, make_state_values
from torchrl_flow.objectives import ConservativeQLoss, DirectIQLLoss, DirectSoftUpdate, DirectTD3BCLoss
from torchrl_flow.training import gradient_step
from torchrl_flow.util.timing import num_parameters

Algorithm = Literal["td3_bc", "iql", "cql"]
Update = Callable[[], Any]
GAMMA, TAU, LR = 0.8, 0.005, 3e-4


@dataclass
class Args:
    """What to measure."""

    algorithms: tuple[Algorithm, ...] = ("td3_bc", "iql", "cql")
    batch_size: int = 256
    state_dim: int = 20
    action_dim: int = 32
    hidden_sizes: tuple[int, ...] = (256, 256)
    rounds: int = 30
    """Number of measurements of each form, taken alternately, after three warm-ups."""
    repeats: int = 4
    """Updates per measurement; an even number, since TD3+BC trains its policy at every second update."""
    compiled: bool = False
    """Also measure `ours` with compiled losses, compared with the uncompiled plain form."""
    threads: int = 1
    """Number of CPU threads."""
    device: str = "cpu"
    results: Path | None = None
    """A CSV file to append the pairs to."""


def config(args: Args, algorithm: Algorithm) -> StatePolicyConfig:
    kinds: dict[str, Any] = {"td3_bc": "deterministic", "iql": "normal", "cql": "gaussian"}
    return StatePolicyConfig(args.state_dim, args.action_dim, kinds[algorithm], args.hidden_sizes, layer_norm=False)


def make_batch(args: Args) -> TensorDict:
    rows, device = args.batch_size, args.device
    flag = torch.zeros(rows, 1, dtype=torch.bool, device=device)
    observation = torch.randn(2, rows, args.state_dim, device=device)
    following = {"observation": observation[1], "reward": torch.rand(rows, 1, device=device)}
    following |= {"done": flag, "terminated": flag.clone()}
    action = torch.rand(rows, args.action_dim, device=device) * 1.8 - 0.9
    return TensorDict({"observation": observation[0], "action": action, "next": following}, [rows], device=device)


def networks(args: Args, algorithm: Algorithm) -> tuple[nn.Module, list[nn.Module], nn.Module]:
    """Return policy, two critics and a value network, the same at each call."""
    torch.manual_seed(0)
    sizes = config(args, algorithm)
    policy, values, value = make_state_policy(sizes), make_state_values(sizes), make_observation_value(sizes)
    return policy.to(args.device), [one.to(args.device) for one in values], value.to(args.device)


class Ours:
    """The update of the recipes."""

    def __init__(self, args: Args, algorithm: Algorithm, batch: TensorDict, *, compiled: bool = False) -> None:
        policy, values, value = networks(args, algorithm)
        self.algorithm, self.batch, self.steps = algorithm, batch, 0
        options: dict[str, Any] = {"loss_function": "l2"}
        nets: list[Any] = [policy, values]
        self.loss: LossModule
        if algorithm == "td3_bc":
            self.loss = DirectTD3BCLoss(*nets, bounds=(-1.0, 1.0), **options)  # pyright: ignore
        elif algorithm == "iql":
            self.loss = DirectIQLLoss(*nets, value, expectile=0.7, temperature=3.0, **options)  # pyright: ignore
        else:
            spec = Bounded(-1.0, 1.0, torch.Size([args.action_dim]), args.device)
            self.loss = ConservativeQLoss(*nets, action_spec=spec, min_q_weight=5.0, **options)
        self.loss.make_value_estimator(gamma=GAMMA)
        self.target = DirectSoftUpdate(self.loss, tau=TAU)
        loss: Any = self.loss
        groups = [loss.qvalue_network_params, loss.actor_network_params] if algorithm == "td3_bc" else [loss]
        self.optimizers = [torch.optim.Adam(group.parameters(), LR, fused=True) for group in groups]
        self.call: Any = torch.compile(loss) if compiled else loss
        self.critics: Any = torch.compile(loss.qvalue_loss) if compiled and algorithm == "td3_bc" else None
        self.critics = self.critics or getattr(loss, "qvalue_loss", None)
        self.actor: Any = torch.compile(loss.actor_loss) if compiled else loss.actor_loss

    def first_loss(self) -> Tensor:
        """Return the critics' initial loss, which must be equal in both forms."""
        loss: Any = self.loss
        torch.manual_seed(1)
        name = "q_loss" if self.algorithm == "cql" else "qvalue_loss"
        return getattr(loss, name)(self.batch.clone(False))[0].detach()

    def update(self) -> None:
        """Do one update; for TD3+BC, one of its two kinds."""
        self.steps += 1
        batch = self.batch.clone(False)
        if self.algorithm != "td3_bc":
            losses = self.call(batch)
            names = ["loss_actor", "loss_qvalue"]
            names += ["loss_value"] if self.algorithm == "iql" else ["loss_cql", "loss_alpha"]
            due = {name: losses[name] for name in names}
            gradient_step(due, {"adam": self.optimizers[0]}, step=self.steps, batch=batch)
            self.target.step()
            return
        critic, actor = ({name: one} for name, one in zip(("value", "actor"), self.optimizers))
        gradient_step({"loss_qvalue": self.critics(batch)[0]}, critic, step=self.steps, batch=batch)
        if self.steps % 2 == 0:
            gradient_step({"loss_actor": self.actor(batch)[0]}, actor, step=self.steps, batch=batch)
            self.target.step()


def soft_update(target: nn.Module, source: nn.Module) -> None:
    for target_param, param in zip(target.parameters(), source.parameters()):
        target_param.data.copy_((1 - TAU) * target_param.data + TAU * param.data)


class PlainMLP(nn.Module):
    """Multi-layer perceptron with a state, or a state and an action, as input."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(*network.layers)

    def forward(self, *parts: Tensor) -> Tensor:
        """Return the output for the concatenated inputs."""
        inputs = torch.cat(parts, -1) if len(parts) > 1 else next(iter(parts))
        return self.layers(inputs)


class PlainPolicy(nn.Module):
    """Policy that returns an action, or location and scale of a (tanh-)normal distribution."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.log_scale = copy.deepcopy(getattr(network, "log_scale", None))
        net = getattr(network, "net", network)
        self.bounded = isinstance(net, nn.Sequential)
        self.net = PlainMLP(net[0] if self.bounded else net)

    def forward(self, state: Tensor) -> Any:
        """Return the action, or location and scale."""
        out = self.net(state)
        if self.log_scale is not None:
            return out.tanh(), self.log_scale.clamp(-5.0, 2.0).exp()
        if self.bounded:
            return out.tanh()
        loc, log_scale = out.chunk(2, -1)
        return loc, log_scale.clamp(-5.0, 2.0).exp()


class _Plain:
    """The updates of CORL's single-file implementations."""

    def __init__(self, args: Args, algorithm: Algorithm, batch: TensorDict) -> None:
        policy, values, value = networks(args, algorithm)
        self.algorithm, self.steps, self.log = algorithm, 0, {}
        following: Any = batch["next"]
        self.s, self.a, self.next_s = batch["observation"], batch["action"], following["observation"]
        self.r, self.not_done = following["reward"], 1.0 - following["terminated"].float()
        # Without normalisers, since CORL's files normalise the data set once.
        self.policy: Any = PlainPolicy(policy.module if algorithm == "td3_bc" else policy[0].module)  # pyright: ignore
        self.q1, self.q2, self.v = (PlainMLP(one.module) for one in (*values, value))
        self.q1_target, self.q2_target, self.policy_target = map(copy.deepcopy, (self.q1, self.q2, self.policy))
        self.log_alpha = nn.Parameter(torch.zeros((), device=args.device))

        def adam(*modules: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for module in modules for p in module.parameters()], LR)

        # In CORL, IQL's critics are one module with one optimiser.
        self.of_critics = [adam(self.q1, self.q2)] if algorithm == "iql" else [adam(self.q1), adam(self.q2)]
        self.of_policy, self.of_value = adam(self.policy), adam(self.v)
        self.of_alpha = torch.optim.Adam([self.log_alpha], LR)

    def parameters(self) -> list[Tensor]:
        """Return the parameters that the update trains."""
        modules = [self.policy, self.q1, self.q2, *([self.v] if self.algorithm == "iql" else [])]
        alpha = [self.log_alpha] if self.algorithm == "cql" else []
        return [*(p for module in modules for p in module.parameters()), *alpha]

    def step(self, loss: Tensor, *optimizers: torch.optim.Optimizer, retain: bool = False) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward(retain_graph=retain)
        for optimizer in optimizers:
            optimizer.step()

    def td_loss(self, next_q: Tensor) -> Tensor:
        y = self.r + self.not_done * GAMMA * next_q
        return F.mse_loss(self.q1(self.s, self.a), y) + F.mse_loss(self.q2(self.s, self.a), y)

    def smallest(self, q1: nn.Module, q2: nn.Module, s: Tensor, a: Tensor) -> Tensor:
        return torch.min(q1(s, a), q2(s, a))

    def draw(self, s: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.policy(s)
        normal = torch.distributions.Normal(loc, scale)
        x = normal.rsample()
        log_prob = normal.log_prob(x) - 2 * (math.log(2) - x - F.softplus(-2 * x))
        return x.tanh(), log_prob.sum(-1, keepdim=True)

    def td3_bc_critic_loss(self) -> Tensor:
        with torch.no_grad():
            noise = (torch.randn_like(self.a) * 0.2).clamp(-0.5, 0.5)
            next_a = (self.policy_target(self.next_s) + noise).clamp(-1, 1)
            next_q = self.smallest(self.q1_target, self.q2_target, self.next_s, next_a)
        return self.td_loss(next_q)

    def td3_bc(self) -> None:
        critic_loss = self.td3_bc_critic_loss()
        self.log["critic_loss"] = critic_loss.item()
        self.step(critic_loss, *self.of_critics)
        if self.steps % 2 == 0:
            pi = self.policy(self.s)
            q = self.q1(self.s, pi)
            actor_loss = -2.5 / q.abs().mean().detach() * q.mean() + F.mse_loss(pi, self.a)
            self.log["actor_loss"] = actor_loss.item()
            self.step(actor_loss, self.of_policy)
            soft_update(self.q1_target, self.q1)
            soft_update(self.q2_target, self.q2)
            soft_update(self.policy_target, self.policy)

    def iql_critic_loss(self) -> Tensor:
        with torch.no_grad():
            next_v = self.v(self.next_s)
        return self.td_loss(next_v)

    def iql(self) -> None:
        with torch.no_grad():
            next_v = self.v(self.next_s)
            target = self.smallest(self.q1_target, self.q2_target, self.s, self.a)
        adv = target - self.v(self.s)
        value_loss = (torch.abs(0.7 - (adv < 0).float()) * adv**2).mean()
        self.log["value_loss"] = value_loss.item()
        self.step(value_loss, self.of_value)
        critic_loss = self.td_loss(next_v)
        self.log["q_loss"] = critic_loss.item()
        self.step(critic_loss, *self.of_critics)
        soft_update(self.q1_target, self.q1)
        soft_update(self.q2_target, self.q2)
        loc, scale = self.policy(self.s)
        log_prob = torch.distributions.Normal(loc, scale).log_prob(self.a)
        weight = (3.0 * adv.detach()).exp().clamp(max=100.0)
        actor_loss = -(weight * log_prob.sum(-1, keepdim=True)).mean()
        self.log["actor_loss"] = actor_loss.item()
        self.step(actor_loss, self.of_policy)

    def cql_critic_loss(self) -> Tensor:
        with torch.no_grad():
            next_a, _ = self.draw(self.next_s)
            next_q = self.smallest(self.q1_target, self.q2_target, self.next_s, next_a)
        return self.td_loss(next_q)

    def cql(self) -> None:
        new_a, log_pi = self.draw(self.s)
        alpha_loss = -(self.log_alpha * (log_pi - self.a.shape[-1]).detach()).mean()
        alpha = self.log_alpha.exp().detach()
        policy_loss = (alpha * log_pi - self.smallest(self.q1, self.q2, self.s, new_a)).mean()
        critic_loss = self.cql_critic_loss()
        states = self.s[:, None].expand(-1, 10, -1)
        uniform = self.a.new_empty((*states.shape[:2], self.a.shape[-1])).uniform_(-1, 1)
        here, log_here = (part.detach() for part in self.draw(states))
        there, log_there = (part.detach() for part in self.draw(self.next_s[:, None].expand(-1, 10, -1)))
        for q in (self.q1, self.q2):
            parts = [
                q(states, uniform) + self.a.shape[-1] * math.log(2.0),
                q(states, there) - log_there,
                q(states, here) - log_here,
            ]
            spread = torch.logsumexp(torch.cat(parts, 1), 1)
            critic_loss = critic_loss + 5.0 * (spread - q(self.s, self.a)).mean()
        self.log |= {"policy_loss": policy_loss.item(), "qf_loss": critic_loss.item(), "alpha": alpha.item()}
        self.step(alpha_loss, self.of_alpha)
        self.of_policy.zero_grad()
        policy_loss.backward()
        self.of_policy.step()
        self.step(critic_loss, *self.of_critics, retain=True)
        soft_update(self.q1_target, self.q1)
        soft_update(self.q2_target, self.q2)

    def first_loss(self) -> Tensor:
        """Return the critics' initial loss."""
        torch.manual_seed(1)
        return getattr(self, f"{self.algorithm}_critic_loss")().detach()

    def update(self) -> None:
        """Do one update."""
        self.steps += 1
        getattr(self, self.algorithm)()


def twice(update: Update) -> Update:
    """Return a function that does two updates."""
    return lambda: (update(), update())


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    batch = make_batch(args)
    for algorithm in args.algorithms:
        ours, plain = Ours(args, algorithm, batch), _Plain(args, algorithm, batch)
        torch.testing.assert_close(ours.first_loss(), plain.first_loss(), rtol=1e-4, atol=1e-5)
        # Two updates in a call: TD3+BC trains its policy in every second one.
        number = num_parameters(ours.loss.parameters())
        sides = {"eager": Side(twice(ours.update), number, 2)}
        sides["plain"] = Side(twice(plain.update), num_parameters(plain.parameters()), 2)
        if args.compiled:
            compiled = Ours(args, algorithm, batch, compiled=True).update
            sides["compiled"] = Side(twice(compiled), number, 2, products=sides["eager"].call)
        title = f"{algorithm} recipe / CORL's update"
        pairs = [Pair(name, "plain", title, f"{name}, {args.batch_size} rows") for name in sides if name != "plain"]
        sizes: dict[str, Any] = {"rounds": args.rounds, "repeats": max(1, args.repeats // 2)}
        compare(sides, pairs, **sizes, device=args.device, results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
