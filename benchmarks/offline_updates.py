"""What an update of TD3+BC, IQL and CQL costs: TorchRL's losses as the recipes use them against plain PyTorch.

    python benchmarks/offline_updates.py
    python benchmarks/offline_updates.py --no-compiled --algorithms td3_bc --results benchmarks/results.csv

`plain` is the usual single-file form: two critics as two modules, torch.minimum, one Adam a network, a loop for the
targets. Both forms take the same steps on networks of the same sizes, in turns; printed are the median times of an
update in milliseconds and the median ratio of neighbouring measurements with its quartiles: below 1, ours is faster.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.objectives import IQLLoss, LossModule, SoftUpdate, TD3BCLoss

from torchrl_flow.modules import StatePolicyConfig, make_observation_value, make_state_policy, make_state_values
from torchrl_flow.objectives import ConservativeQLoss
from torchrl_flow.reports import append_benchmark

Algorithm = Literal["td3_bc", "iql", "cql"]
Update = Callable[[TensorDict], Any]
GAMMA, TAU = 0.8, 0.005


@dataclass
class Args:
    """What to measure."""

    algorithms: tuple[Algorithm, ...] = ("td3_bc", "iql", "cql")
    batch_size: int = 256
    state_dim: int = 20
    action_dim: int = 32
    hidden_sizes: tuple[int, ...] = (256, 256)
    rounds: int = 20
    """Number of measurements of each form, taken in turns, after three that do not count."""
    repeats: int = 4
    """Updates in a measurement."""
    eager: bool = True
    """Measure eager updates."""
    compiled: bool = True
    """Measure updates whose losses are compiled."""
    threads: int = 1
    """Number of CPU threads."""
    device: str = "cpu"
    results: Path | None = None
    """A CSV file to append the pairs to."""


def config(args: Args, algorithm: Algorithm) -> StatePolicyConfig:
    kind = "deterministic" if algorithm == "td3_bc" else "gaussian"
    return StatePolicyConfig(args.state_dim, args.action_dim, kind, args.hidden_sizes, layer_norm=False)


def make_batch(args: Args) -> TensorDict:
    rows, device = args.batch_size, args.device
    flag = torch.zeros(rows, 1, dtype=torch.bool, device=device)
    observation = torch.randn(2, rows, args.state_dim, device=device)
    following = {"observation": observation[1], "reward": torch.rand(rows, 1, device=device)}
    following |= {"done": flag, "terminated": flag.clone()}
    action = torch.rand(rows, args.action_dim, device=device) * 1.8 - 0.9
    return TensorDict({"observation": observation[0], "action": action, "next": following}, [rows], device=device)


def ours(args: Args, algorithm: Algorithm, compiled: bool) -> Update:
    """An update as the recipes make it."""
    sizes = config(args, algorithm)
    policy, values = make_state_policy(sizes).to(args.device), [v.to(args.device) for v in make_state_values(sizes)]
    loss: LossModule
    terms: list[Callable[[TensorDict], Tensor]]
    if algorithm == "td3_bc":
        td3: Any = TD3BCLoss(policy, values, bounds=(-1.0, 1.0), loss_function="l2")  # pyright: ignore
        loss, terms = td3, [lambda batch: td3.qvalue_loss(batch)[0], lambda batch: td3.actor_loss(batch)[0]]
    else:
        value = make_observation_value(sizes).to(args.device)
        spec = Bounded(-1.0, 1.0, torch.Size([args.action_dim]), args.device)
        options: Any = {"loss_function": "l2"}
        whole: Any = (
            IQLLoss(policy, values, value, expectile=0.7, temperature=3.0, **options)  # pyright: ignore
            if algorithm == "iql"
            else ConservativeQLoss(policy, values, action_spec=spec, min_q_weight=5.0, **options)  # pyright: ignore
        )
        names = ["loss_actor", "loss_qvalue"]
        names += ["loss_value"] if algorithm == "iql" else ["loss_cql", "loss_alpha"]

        def total(batch: TensorDict) -> Tensor:
            found = whole(batch)
            return torch.stack([found[name] for name in names]).sum()

        loss, terms = whole, [total]
    loss.make_value_estimator(gamma=GAMMA)
    target = SoftUpdate(loss, tau=TAU)
    groups = [loss.qvalue_network_params, loss.actor_network_params] if len(terms) == 2 else [loss]
    optimizers = [torch.optim.Adam(group.parameters(), 3e-4) for group in groups]  # pyright: ignore
    if compiled:
        terms = [torch.compile(term) for term in terms]

    def update(batch: TensorDict) -> None:
        for term, optimizer in zip(terms, optimizers):
            optimizer.zero_grad()
            term(batch.clone(False)).backward()
            optimizer.step()
        target.step()

    return update


class _Plain:
    """The textbook form of the three algorithms."""

    def __init__(self, args: Args, algorithm: Algorithm) -> None:
        sizes = config(args, algorithm)
        self.policy = make_state_policy(sizes).to(args.device)
        self.q1, self.q2 = (value.module.to(args.device) for value in make_state_values(sizes))
        self.v = make_observation_value(sizes).module.to(args.device)
        self.sources = [self.policy, self.q1, self.q2] if algorithm == "td3_bc" else [self.q1, self.q2]
        self.targets = [copy.deepcopy(network) for network in self.sources]
        self.log_alpha = nn.Parameter(torch.zeros((), device=args.device))

    def act(self, observation: Tensor, network: nn.Module) -> Tensor:
        return network.module(observation)  # pyright: ignore

    def draw(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.policy[0].module(observation)  # pyright: ignore
        x = torch.distributions.Normal(loc, scale).rsample()
        log_prob = torch.distributions.Normal(loc, scale).log_prob(x) - 2 * (math.log(2) - x - F.softplus(-2 * x))
        return x.tanh(), log_prob.sum(-1, keepdim=True)

    def td_loss(self, batch: TensorDict, next_q: Tensor) -> Tensor:
        y = batch["next", "reward"] + GAMMA * (~batch["next", "terminated"]) * next_q
        s, a = batch["observation"], batch["action"]
        return F.mse_loss(self.q1(s, a), y) + F.mse_loss(self.q2(s, a), y)

    def td3_bc_value(self, batch: TensorDict) -> Tensor:
        a, next_s = batch["action"], batch["next", "observation"]
        with torch.no_grad():
            noise = (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)
            next_a = (self.act(next_s, self.targets[0]) + noise).clamp(-1, 1)
            next_q = torch.minimum(self.targets[1](next_s, next_a), self.targets[2](next_s, next_a))
        return self.td_loss(batch, next_q)

    def td3_bc_actor(self, batch: TensorDict) -> Tensor:
        s = batch["observation"]
        pi = self.act(s, self.policy)
        q = self.q1(s, pi)
        return -2.5 / q.abs().mean().detach() * q.mean() + F.mse_loss(pi, batch["action"])

    def iql(self, batch: TensorDict) -> Tensor:
        s, a, next_s = batch["observation"], batch["action"], batch["next", "observation"]
        with torch.no_grad():
            target = torch.minimum(self.targets[0](s, a), self.targets[1](s, a))
            next_v = self.v(next_s)
        u = target - self.v(s)
        value = (torch.where(u > 0, 0.7, 0.3) * u.square()).mean()
        loc, scale = self.policy[0].module(s)  # pyright: ignore
        log_prob = torch.distributions.Normal(loc, scale).log_prob(torch.atanh(a)) - torch.log1p(-a.square())
        actor = -((3.0 * u.detach()).exp().clamp(max=100.0) * log_prob.sum(-1, keepdim=True)).mean()
        return value + actor + self.td_loss(batch, next_v)

    def cql(self, batch: TensorDict) -> Tensor:
        s, a, next_s = batch["observation"], batch["action"], batch["next", "observation"]
        with torch.no_grad():
            next_a, _ = self.draw(next_s)
            next_q = torch.minimum(self.targets[0](next_s, next_a), self.targets[1](next_s, next_a))
            many_s, many_next = (x[:, None].expand(-1, 10, -1) for x in (s, next_s))
            uniform = torch.rand(*many_s.shape[:2], a.shape[-1], device=a.device) * 2 - 1
            here, there = self.draw(many_s), self.draw(many_next)
            actions = torch.cat([uniform, here[0], there[0]], 1)
            density = torch.full((*many_s.shape[:2], 1), -a.shape[-1] * math.log(2.0), device=a.device)
            density = torch.cat([density, here[1], there[1]], 1)
        states = s[:, None].expand(-1, 30, -1)
        loss = self.td_loss(batch, next_q)
        for q in (self.q1, self.q2):
            loss = loss + 5.0 * (torch.logsumexp(q(states, actions) - density, 1) - q(s, a)).mean()
        pi, log_pi = self.draw(s)
        frozen = [p for q in (self.q1, self.q2) for p in q.parameters()]
        for parameter in frozen:
            parameter.requires_grad_(False)
        actor = (self.log_alpha.exp().detach() * log_pi - torch.minimum(self.q1(s, pi), self.q2(s, pi))).mean()
        for parameter in frozen:
            parameter.requires_grad_(True)
        return loss + actor - self.log_alpha * (log_pi.detach() - a.shape[-1]).mean()

    @torch.no_grad()
    def move_targets(self) -> None:
        for source, target in zip(self.sources, self.targets):
            for p, q in zip(source.parameters(), target.parameters()):
                q.lerp_(p, TAU)


def plain(args: Args, algorithm: Algorithm, compiled: bool) -> Update:
    form = _Plain(args, algorithm)
    values = [*form.q1.parameters(), *form.q2.parameters()]
    if algorithm == "td3_bc":
        terms, groups = [form.td3_bc_value, form.td3_bc_actor], [values, [*form.policy.parameters()]]
    else:
        others = [*form.v.parameters()] if algorithm == "iql" else [form.log_alpha]
        terms, groups = [getattr(form, algorithm)], [[*values, *form.policy.parameters(), *others]]
    optimizers = [torch.optim.Adam(group, 3e-4) for group in groups]
    if compiled:
        terms = [torch.compile(term) for term in terms]

    def update(batch: TensorDict) -> None:
        for term, optimizer in zip(terms, optimizers):
            optimizer.zero_grad()
            term(batch).backward()
            optimizer.step()
        form.move_targets()

    return update


def measure(args: Args, forms: dict[str, Update], batch: TensorDict) -> dict[str, list[float]]:
    """Milliseconds per update, `[form][round]`, the forms taking turns."""
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(args.rounds + 3):
        for name, update in forms.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(args.repeats):
                update(batch)
            synchronize()
            times[name].append(1e3 * (time.perf_counter() - start) / args.repeats)
    return {name: values[3:] for name, values in times.items()}


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    batch = make_batch(args)
    modes = [name for name, wanted in (("eager", args.eager), ("compiled", args.compiled)) if wanted]
    for algorithm in args.algorithms:
        for mode in modes:
            forms = {
                name: make(args, algorithm, mode == "compiled") for name, make in (("ours", ours), ("plain", plain))
            }
            times = measure(args, forms, batch)
            ratios = [a / b for a, b in zip(times["ours"], times["plain"])]
            low, ratio, high = statistics.quantiles(ratios, n=4)
            medians = {name: statistics.median(values) for name, values in times.items()}
            shown = ", ".join(f"{name} {value:.2f} ms" for name, value in medians.items())
            print(f"{algorithm} {mode}: {shown}, ratio {ratio:.2f} ({low:.2f} to {high:.2f})", flush=True)
            if args.results is not None:
                append_benchmark(
                    args.results,
                    pair=f"offline_updates {algorithm} ours / plain",
                    mode=mode,
                    device=args.device,
                    threads=args.threads,
                    ours_ms=medians["ours"],
                    reference_ms=medians["plain"],
                    ratio=ratio,
                    ratio_low=low,
                    ratio_high=high,
                )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
