"""Time of a PPO update over the denoising chain: TorchRL's ClipPPOLoss on NoisyFlowActor and plain PyTorch.

    python benchmarks/reinflow_update.py
    python benchmarks/reinflow_update.py --compile --results benchmarks/results.csv

The reference is the published update: one network call for each of the K steps, torch's Normal, and separate terms of
the loss. Both use the same networks (those of the published state tasks: velocity MLP of 512 x 3 with a residual block,
critic of 256 x 3) and the same batch, and their losses are compared first. `library, mlp` and `library, concat_mlp` are
the same update with the networks of `make_flow_actor`, in the sizes that the recipes use. For loss and backward pass,
and for the full update with AdamW, the output has the median milliseconds of each form and the median ratio of
neighbouring measurements with its quartiles (below 1, the library is faster), numbers of parameters of both sides, and
the lower bound: the time of the matrix products only, at the rate measured in this process. With one CPU thread, CPU
time is measured, which depends less on other programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from pairs import Pair, Side, compare
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal
from torchrl.objectives import ClipPPOLoss

from torchrl_flow.modules import (
    FlowActor,
    FlowActorConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    ObservationEncoder,
    ShortCutVelocityConcatMLP,
    StateValue,
    make_flow_actor,
    make_noise_net,
)
from torchrl_flow.util.timing import num_parameters

CLIP, ENTROPY, VALUE = 0.2, 0.01, 0.5


@dataclass
class Args:
    """What to measure."""

    batch_size: int = 256
    pred_horizon: int = 16
    action_dim: int = 7
    state_dim: int = 23
    num_steps: int = 4
    rounds: int = 30
    """Number of measurements of each form, taken alternately, after three warm-ups."""
    repeats: int = 2
    """Updates in a measurement."""
    compile: bool = False
    """Also compile both forms."""
    threads: int = 1
    """Number of CPU threads."""
    device: str = "cpu"
    results: Path | None = None
    """A CSV file to append the pairs to."""


class PublishedVelocity(ShortCutVelocityConcatMLP):
    """The published velocity network (``concat_mlp`` in the library), with a separate forward for the reference."""

    published = False

    def forward(self, sample: Tensor, timestep: Tensor, step_size: Tensor, global_cond: Tensor) -> Tensor:
        """Return the velocity ``[B, H, A]``."""
        if not self.published:
            return super().forward(sample, timestep, step_size, global_cond)
        time = self.time(torch.cat([self.sinusoid(timestep), self.sinusoid(step_size)], -1))
        hidden = self.linear_in(torch.cat([sample.flatten(1), time + self.cond(global_cond)], -1))
        return self.linear_out(self.blocks(hidden)).unflatten(-1, (self.pred_horizon, self.action_dim))


def reference_loss(noisy: NoisyFlowActor, value: StateValue, batch: TensorDict) -> Tensor:
    """Return the published update's loss, computed step by step."""
    steps, dt = noisy.num_steps, 1.0 / noisy.num_steps
    x, x_next = batch["flow", "x"], batch["flow", "x_next"]
    state = batch["observation"].flatten(1)
    rows = state.shape[0]
    before, after = x.flatten(-2), x_next.flatten(-2)
    velocities, sigmas = torch.zeros_like(before), torch.zeros_like(before)
    times = torch.linspace(0, 1 - dt, steps, device=state.device).repeat(rows, 1)
    for i in range(steps):
        step_size = torch.full((rows,), dt, device=state.device)
        velocity = noisy.flow_actor.velocity_network(x[:, i], times[:, i], step_size, state)
        velocities[:, i] = velocity.flatten(-2)
        sigmas[:, i] = noisy.noise_net(state, times[0, i : i + 1]).flatten(1)
    chain = Normal((before + velocities * dt).clamp(-1, 1), sigmas)
    size = steps * before.shape[-1]
    log_prob = chain.log_prob(after).sum(-1).sum(-1) / size
    entropy = chain.entropy().sum(-1).sum(-1) / size
    advantage = batch["advantage"].squeeze(-1)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_ratio = log_prob - batch["flow", "log_prob"]
    ratio = log_ratio.exp()
    with torch.no_grad():  # the metrics that the published update logs for every minibatch
        _ = ((ratio - 1) - log_ratio).mean(), ((ratio - 1).abs() > CLIP).float().mean()
    policy = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
    error = (value.head(state).view(-1) - batch["value_target"].view(-1)).square().mean()
    return policy - ENTROPY * entropy.mean() + VALUE * error


def make_flow(args: Args, network: str) -> FlowActor:
    """Make the flow of the published sizes, or that of a named network of the library."""
    sizes: dict[str, Any] = {"obs_horizon": 1, "act_horizon": min(8, args.pred_horizon), "num_steps": args.num_steps}
    if network != "published":
        sizes |= {"action_dim": args.action_dim, "state_dim": args.state_dim, "pred_horizon": args.pred_horizon}
        return make_flow_actor(FlowActorConfig(network=network, **sizes)).to(args.device)  # pyright: ignore
    encoder = ObservationEncoder(state_shape=(1, args.state_dim))
    velocity = PublishedVelocity(args.action_dim, args.pred_horizon, encoder.out_features, embedding=16)
    return FlowActor(velocity, encoder, **sizes).to(args.device)


def make(args: Args, network: str = "published") -> tuple[NoisyFlowActor, StateValue, ClipPPOLoss, TensorDict]:
    """Make networks, the library's loss, and a batch sampled by an older policy."""
    torch.manual_seed(0)
    flow = make_flow(args, network)
    encoder = flow.encoder
    noisy = NoisyFlowActor(flow, make_noise_net(NoiseNetConfig(), flow), mean_bound=1.0)
    value = StateValue(encoder).to(args.device)
    loss_module = ClipPPOLoss(
        noisy,  # pyright: ignore[reportArgumentType]
        value,  # pyright: ignore[reportArgumentType]
        clip_epsilon=CLIP,
        entropy_coeff=ENTROPY,
        critic_coeff=VALUE,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    rows = [args.batch_size]
    batch = TensorDict(observation=torch.randn(*rows, 1, args.state_dim), batch_size=rows).to(args.device)
    with torch.no_grad():
        noisy(batch)
        for parameter in noisy.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    batch["advantage"], batch["value_target"] = (torch.randn(*rows, 1, device=args.device) for _ in range(2))
    return noisy, value, loss_module, batch


def library_loss(loss_module: ClipPPOLoss) -> Callable[[TensorDict], Tensor]:
    """Return the sum of the loss's terms."""

    def library(batch: TensorDict) -> Tensor:
        out = loss_module(batch)
        return out["loss_objective"] + out["loss_entropy"] + out["loss_critic"]

    return library


def make_losses(
    args: Args, noisy: NoisyFlowActor, value: StateValue, loss_module: ClipPPOLoss, batch: TensorDict
) -> dict[str, Callable[[TensorDict], Tensor]]:
    """Return the forms of the loss, whose values must be equal."""
    library = library_loss(loss_module)
    network: PublishedVelocity = noisy.flow_actor.velocity_network  # pyright: ignore[reportAssignmentType]

    def reference(batch: TensorDict) -> Tensor:
        network.published = True
        loss = reference_loss(noisy, value, batch)
        network.published = False
        return loss

    losses: dict[str, Callable[[TensorDict], Tensor]] = {"library": library, "reference": reference}
    torch.testing.assert_close(library(batch), reference(batch), rtol=1e-4, atol=1e-5)
    if args.compile:
        # If compiled, TorchRL also samples for the entropy; torch's own generator is then faster.
        options: dict[str, Any] = {"fallback_random": True}
        losses |= {f"{name} compiled": torch.compile(loss, options=options) for name, loss in losses.items()}
        torch.testing.assert_close(losses["library compiled"](batch), reference(batch), rtol=1e-4, atol=1e-5)
    return losses


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    noisy, value, loss_module, batch = make(args)
    losses = make_losses(args, noisy, value, loss_module, batch)
    own = [*noisy.parameters(), *value.head.parameters()]
    parameters = {name: own for name in losses}
    batches = dict.fromkeys(losses, batch)
    pairs = [("library", "reference")]
    if args.compile:
        pairs += [("library compiled", "reference"), ("library compiled", "reference compiled")]
    for network in ("mlp", "concat_mlp"):
        name = f"library, {network}"
        noisy, value, loss_module, batches[name] = make(args, network)
        losses[name] = library_loss(loss_module)
        parameters[name] = [*noisy.parameters(), *value.head.parameters()]
        pairs.append((name, "reference"))
    # One optimiser per form: the reference with the published options, the library with a fused kernel.
    optimizers = {
        name: torch.optim.AdamW(parameters[name], 1e-7, fused=name.startswith("library") or None) for name in losses
    }

    def call(name: str, whole: bool) -> Callable[[], None]:
        def run() -> None:
            losses[name](batches[name]).backward()
            if whole:
                optimizers[name].step()
            for parameter in parameters[name]:
                parameter.grad = None

        return run

    numbers = {name: num_parameters(values) for name, values in parameters.items()}
    size = f"B {args.batch_size} H {args.pred_horizon} A {args.action_dim} D {args.state_dim} K {args.num_steps}"
    for work, whole in (("loss and backward", False), ("update", True)):
        sides = {name: Side(call(name, whole), numbers[name]) for name in losses}
        for name, side in sides.items():
            side.products = sides[name.removesuffix(" compiled")].call
        titles = [Pair(*pair, "reinflow_update {} / {}".format(*pair), f"{work}, {size}") for pair in pairs]
        measured: dict[str, Any] = {"rounds": args.rounds, "repeats": args.repeats}
        compare(sides, titles, **measured, device=args.device, results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
