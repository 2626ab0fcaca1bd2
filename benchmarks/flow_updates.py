"""Time of updates of flow policies (ShortCut cloning, and advantage weights with a critic), against plain PyTorch.

    python benchmarks/flow_updates.py --results benchmarks/results.csv

`cloning`: the update of `shortcut_flow_bc`, with the default network and with `concat_mlp`, compared with the published
update: the published network for states (a residual MLP of 512 units with points, time and observation as concatenated
input), one pass over flow matching and self-consistency, AdamW and a loop over the averages. `weighted`: an update of
critic and actor by `AWFlowLoss` with ten members, compared with the same equations with a loop over ten modules and a
separate draw of chunks for each use. The actor's network is the same object in both. The output has medians of CPU
time, ratios with quartiles (below 1, the library is faster), numbers of parameters, and a lower bound: the time of the
matrix products only, at the rate measured in this process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from pairs import Pair, Side, compare
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_flow.modules import FlowActorConfig, QEnsemble, ShortCutVelocityConcatMLP, make_flow_actor
from torchrl_flow.objectives import AWFlowLoss, DirectSoftUpdate, ShortCutFlowLoss
from torchrl_flow.training import gradient_step
from torchrl_flow.util.timing import num_parameters

Work = Literal["cloning", "weighted"]
H, A, H_A, D, MAX_STEPS, GAMMA = 16, 7, 8, 23, 16, 0.99


@dataclass
class Args:
    """What to measure."""

    works: tuple[Work, ...] = ("cloning", "weighted")
    batch_size: int = 256
    num_qs: int = 10
    rounds: int = 20
    """Number of measurements of each form, taken alternately, after three warm-ups."""
    threads: int = 1
    device: str = "cpu"
    results: Path | None = None
    """A CSV file to append the pairs to."""


class PublishedNetwork(ShortCutVelocityConcatMLP):
    """The published network of the state tasks, with one concatenation and one matrix product for the input."""

    def forward(self, sample: Tensor, timestep: Tensor, step_size: Tensor, global_cond: Tensor) -> Tensor:
        """Return the velocity ``[B, H, A]``."""
        time = self.time(torch.cat([self.sinusoid(timestep), self.sinusoid(step_size)], -1))
        hidden = self.linear_in(torch.cat([sample.flatten(1), time + self.cond(global_cond)], -1))
        return self.linear_out(self.blocks(hidden)).unflatten(-1, (self.pred_horizon, self.action_dim))


def published_network(args: Args) -> nn.Module:
    return PublishedNetwork(A, H, D, width=512, depth=1, embedding=16).to(args.device)


def make_actor(args: Args, network: str) -> Any:
    sizes = {"width": 512, "depth": 1} if network == "published" else {}
    network = "concat_mlp" if network == "published" else network
    fields: dict[str, Any] = {"action_dim": A, "state_dim": D, "obs_horizon": 1, "pred_horizon": H, "act_horizon": H_A}
    return make_flow_actor(FlowActorConfig(network=network, **fields, **sizes)).to(args.device)  # pyright: ignore


def make_batch(args: Args) -> TensorDict:
    def randn(*shape: int) -> Tensor:
        return torch.randn(args.batch_size, *shape, device=args.device)

    flag = torch.zeros(args.batch_size, 1, dtype=torch.bool, device=args.device)
    following = {"observation": randn(1, D), "reward": randn(1), "done": flag, "terminated": flag}
    following["steps_to_next_obs"] = torch.full_like(flag, H_A, dtype=torch.int64)
    chunk = randn(H, A)
    data = {"observation": randn(1, D), "action_chunk": chunk, "action": chunk[:, :H_A].contiguous()}
    return TensorDict({**data, "next": following}, [args.batch_size], device=args.device)


def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for old, new in zip(average.parameters(), network.parameters()):
        old.data = old.data * decay + (1 - decay) * new.data


def shortcut_errors(network: Callable[..., Tensor], average: Callable[..., Tensor], s: Tensor, x_1: Tensor) -> Tensor:
    """Return the errors of a batch; its last quarter is for self-consistency."""
    rows, device = x_1.shape[0], x_1.device
    part = rows // 4
    x_0 = torch.randn_like(x_1)
    t, d = torch.rand(rows, device=device), torch.zeros(rows, device=device)
    level = torch.randint(0, 4, (part,), device=device)
    d[-part:] = 2.0**-level
    t[-part:] = (torch.rand(part, device=device) * 2.0**level).floor() * d[-part:]
    x_t = (1 - t)[:, None, None] * x_0 + t[:, None, None] * x_1
    target = x_1 - x_0
    with torch.no_grad():
        half = d[-part:] / 2
        asked = torch.where(half <= 1 / MAX_STEPS, torch.zeros_like(half), half)
        v_1 = average(x_t[-part:], t[-part:], asked, s[-part:])
        x_2 = x_t[-part:] + half[:, None, None] * v_1
        v_2 = average(x_2, t[-part:] + half, asked, s[-part:])
        target[-part:] = ((v_1 + v_2) / 2).clamp(-4, 4)
    return (network(x_t, t, d, s) - target).square().mean((-2, -1))


def cloning(args: Args, batch: TensorDict) -> dict[str, Side]:
    """Return the forms of the cloning update."""
    sides: dict[str, Side] = {}
    for name in ("mlp", "concat_mlp", "published"):
        loss = ShortCutFlowLoss(make_actor(args, name))
        ema, optimizer = DirectSoftUpdate(loss, eps=0.999), torch.optim.AdamW(loss.parameters(), 1e-3, fused=True)

        def ours(loss: Any = loss, ema: Any = ema, optimizer: Any = optimizer) -> None:
            losses = {"loss_flow": loss(batch)["loss_flow"]}
            gradient_step(losses, {"adamw": optimizer}, step=1, batch=batch, max_grad_norm=1.0)
            ema.step()

        sides[name] = Side(ours, num_parameters(loss.parameters()))
    network = published_network(args)
    average = copy.deepcopy(network)
    adamw = torch.optim.AdamW(network.parameters(), 1e-3)
    s, x_1 = batch["observation"].flatten(1), batch["action_chunk"]

    def plain() -> None:
        loss = shortcut_errors(network, average, s, x_1).mean()
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        update_average(average, network, 0.999)
        loss.item()

    return {**sides, "plain": Side(plain, num_parameters(network.parameters()))}


def member(width: int = 256) -> nn.Module:
    layers: list[nn.Module] = []
    for size in (D + H_A * A, width, width):
        layers += [nn.Linear(size, width), nn.LayerNorm(width), nn.Mish()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def weighted(args: Args, batch: TensorDict) -> dict[str, Side]:
    """Return the forms of the update of critic and actor."""
    actor = make_actor(args, "mlp")
    loss = AWFlowLoss(actor, QEnsemble.for_actor(actor, num_qs=args.num_qs))
    target = DirectSoftUpdate(loss, tau=0.005)
    groups = {"actor": loss.actor_parameters(), "critic": loss.critic_parameters()}
    optimizers: dict[str, Any] = {name: torch.optim.Adam(group, 3e-4, fused=True) for name, group in groups.items()}

    def ours() -> None:
        out = loss(batch)
        due = {name: out[name] for name in ("loss_actor", "loss_qvalue")}
        gradient_step(due, optimizers, step=1, batch=batch)
        target.step()

    network = copy.deepcopy(actor.velocity_network)
    average = copy.deepcopy(network)
    critics = nn.ModuleList(member() for _ in range(args.num_qs)).to(args.device)
    targets = copy.deepcopy(critics)
    adams = [torch.optim.Adam(module.parameters(), 3e-4) for module in (network, critics)]
    following: Any = batch["next"]
    s, next_s, chunk = batch["observation"].flatten(1), following["observation"].flatten(1), batch["action_chunk"]
    sent, reward = batch["action"].flatten(1), following["reward"].squeeze(-1)
    alive = GAMMA ** following["steps_to_next_obs"].squeeze(-1) * (~following["terminated"]).squeeze(-1)

    def draw(state: Tensor) -> Tensor:
        x_0 = torch.randn(state.shape[0], H, A, device=state.device)
        zero, one = x_0.new_zeros(x_0.shape[0]), x_0.new_ones(x_0.shape[0])
        return (x_0 + average(x_0, zero, one, state))[:, :H_A].flatten(1)

    def values(members: Any, state: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([state, action], -1)
        return torch.stack([network(x).squeeze(-1) for network in members])

    def plain() -> None:
        with torch.no_grad():
            two = torch.randperm(args.num_qs)[:2]
            y = reward + alive * values(targets, next_s, draw(next_s))[two].amin(0)
            td = reward + alive * values(critics, next_s, draw(next_s))
            advantage = (td - values(critics, s, draw(s))).mean(0)
            weight = (20.0 * advantage).exp().clamp(max=20.0)
            weight = weight / weight.mean()
        loss_critic = (values(critics, s, sent) - y).square().mean()
        loss_actor = (weight * shortcut_errors(network, average, s, chunk)).mean()
        for adam in adams:
            adam.zero_grad()
        (loss_critic + loss_actor).backward()
        for adam in adams:
            adam.step()
        update_average(average, network, 0.995)
        update_average(targets, critics, 0.995)
        for term in (loss_critic, loss_actor):
            term.item()

    number = num_parameters([*network.parameters(), *critics.parameters()])
    return {"AWFlowLoss": Side(ours, num_parameters(loss.parameters())), "plain": Side(plain, number)}


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    batch = make_batch(args)
    for work in args.works:
        sides = (cloning if work == "cloning" else weighted)(args, batch)
        reference = "the published update" if work == "cloning" else f"a loop of {args.num_qs}"
        mode, ours = f"{args.batch_size} rows", [name for name in sides if name != "plain"]
        pairs = [Pair(name, "plain", f"{work} update, {name} / {reference}", mode) for name in ours]
        compare(sides, pairs, rounds=args.rounds, device=args.device, results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
