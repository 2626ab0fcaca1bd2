"""Time to sample action chunks and to compute a denoising chain's log-probability, compared with plain PyTorch.

    python benchmarks/flow_sampling.py --results benchmarks/results.csv

`ours` is `FlowActor` on a TensorDict, including normalisers and bounds, with the default network (mlp) or with
`--network concat_mlp`; `plain` is a loop over the K Euler steps of the published network for states (a residual MLP of
512 units) on tensors. The chain's log-probability is computed by `NoisyFlowActor`, and by the published loop with one
network call per step and torch's Normal. The output has medians of CPU time, ratios with quartiles (below 1, `ours` is
faster), numbers of parameters, and a lower bound: the time of the matrix products only, at the rate measured in this
process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from flow_updates import A, D, H, PublishedNetwork, make_actor
from pairs import Pair, Side, compare
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal

from torchrl_flow.modules import NoiseNetConfig, NoisyFlowActor, make_noise_net
from torchrl_flow.util.timing import num_parameters


@dataclass
class Args:
    """What to measure."""

    networks: tuple[str, ...] = ("mlp", "concat_mlp", "published")
    """Velocity networks of `ours`; published is concat_mlp with the published width and depth."""
    batch_sizes: tuple[int, ...] = (256, 1)
    num_steps: tuple[int, ...] = (1, 4, 16)
    rounds: int = 20
    """Number of measurements of each form, taken alternately, after three warm-ups."""
    threads: int = 1
    device: str = "cpu"
    results: Path | None = None
    """A CSV file to append the pairs to."""


def plain_sample(network: PublishedNetwork, state: Tensor, steps: int) -> Tensor:
    x, dt = torch.randn(state.shape[0], H, A, device=state.device), 1.0 / steps
    for i in range(steps):
        t = torch.full((state.shape[0],), i * dt, device=state.device)
        x = x + dt * network(x, t, torch.full_like(t, dt), state)
    return x.clamp(-1, 1)


def plain_log_prob(network: PublishedNetwork, noise: Any, x: Tensor, x_next: Tensor, state: Tensor) -> Tensor:
    steps, rows = x.shape[1], x.shape[0]
    dt = 1.0 / steps
    means, sigmas = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(steps):
        t = torch.full((rows,), i * dt, device=x.device)
        means[:, i] = x[:, i] + dt * network(x[:, i], t, torch.full_like(t, dt), state)
        sigmas[:, i] = noise(state, t[:1])[:, 0]
    return Normal(means.clamp(-1, 1), sigmas).log_prob(x_next).flatten(1).sum(-1)


def sampling(args: Args, rows: int, steps: int) -> dict[str, Side]:
    data = TensorDict(observation=torch.randn(rows, 1, D, device=args.device), batch_size=[rows])
    sides: dict[str, Side] = {}

    def no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(run)

    for name in args.networks:
        actor = make_actor(args, name)  # pyright: ignore[reportArgumentType]
        call = no_grad(lambda actor=actor: actor(data, num_steps=steps))
        sides[name] = Side(call, num_parameters(actor.parameters()))
    network = PublishedNetwork(A, H, D, width=512, depth=1, embedding=16).to(args.device)
    state = data["observation"].flatten(1)
    call = no_grad(lambda: plain_sample(network, state, steps))
    return {**sides, "plain": Side(call, num_parameters(network.parameters()))}


def chain(args: Args, rows: int, steps: int) -> dict[str, Side]:
    data = TensorDict(observation=torch.randn(rows, 1, D, device=args.device), batch_size=[rows])
    sides: dict[str, Side] = {}
    noise: Any = None
    batch: Any = None
    for name in args.networks:
        flow = make_actor(args, name)  # pyright: ignore[reportArgumentType]
        flow.num_steps = steps
        noisy = NoisyFlowActor(flow, make_noise_net(NoiseNetConfig(), flow), mean_bound=1.0)
        with torch.no_grad():
            batch = noisy(data.clone())
        noise = noisy.noise_net

        def ours(noisy: Any = noisy, batch: Any = batch) -> None:
            noisy.get_dist(batch).log_prob(batch["flow", "x_next"]).sum().backward()
            noisy.zero_grad()

        sides[name] = Side(ours, num_parameters(noisy.parameters()))
    network = PublishedNetwork(A, H, D, width=512, depth=1, embedding=16).to(args.device)
    state = data["observation"].flatten(1)

    def plain() -> None:
        plain_log_prob(network, noise, batch["flow", "x"], batch["flow", "x_next"], state).sum().backward()
        network.zero_grad()
        noise.zero_grad()

    return {**sides, "plain": Side(plain, num_parameters([*network.parameters(), *noise.parameters()]))}


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    cases = [
        (f"sampling, B {rows}, K {steps}", sampling, rows, steps)
        for rows in args.batch_sizes
        for steps in args.num_steps
    ]
    cases.append(("log-probability of a chain and its gradient, B 256, K 4", chain, 256, 4))
    for title, make, rows, steps in cases:
        pairs = [Pair(name, "plain", f"{title}, {name} / the published network", "") for name in args.networks]
        sizes: dict[str, Any] = {"rounds": args.rounds, "repeats": 20 if rows == 1 else 1}
        compare(make(args, rows, steps), pairs, **sizes, device=args.device, results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
