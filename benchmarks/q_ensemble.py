"""Time of an ensemble of critics: QEnsemble's loop and batched form, vmap, and separate modules.

    python benchmarks/q_ensemble.py
    python benchmarks/q_ensemble.py --device cuda --results benchmarks/results.csv

prints, for a forward pass and for forward and backward, the median time of each form in milliseconds and, for each
pair, the median ratio of neighbouring measurements with its quartiles; below 1, QEnsemble's form is faster. Numbers of
parameters and lower bounds (the matrix products only) are those of both forms. `vmap` is torch.func's vmap over the
stacked parameters, as in TorchRL's losses; `modules` is a list of nn.Sequential.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from pairs import Pair, Side, compare
from torch import Tensor, nn

from torchrl_flow.modules import EnsembleCompute, ObservationEncoder, QEnsemble
from torchrl_flow.util.timing import Form, num_parameters


@dataclass
class Args:
    """What to measure."""

    batch_size: int = 256
    num_qs: int = 10
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    state_dim: int = 23
    obs_horizon: int = 2
    act_horizon: int = 8
    action_dim: int = 7
    rounds: int = 30
    """Number of measurements of each form, taken alternately, after three warm-ups."""
    repeats: int = 3
    """Passes in a measurement."""
    threads: int = 1
    """Number of CPU threads."""
    device: str = "cpu"
    results: Path | None = None
    """A CSV file to append the pairs to."""


def parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.get_parameter("weight"), layer.get_parameter("bias")


def vmap_form(critic: QEnsemble) -> Callable[[Tensor], Tensor]:
    params = [parameters(layer) for layer in [*critic.linears, *critic.norms, critic.head]]
    depth = len(critic.norms)

    def member(params: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        for (weight, bias), (scale, shift) in zip(params[:depth], params[depth:-1]):
            x = F.linear(x, weight, bias)
            x = F.mish(F.layer_norm(x, x.shape[-1:], scale, shift))
        return F.linear(x, *params[-1])

    return lambda x: torch.vmap(member, (0, None))(params, x)


def modules_form(critic: QEnsemble) -> nn.ModuleList:
    def plain(stacked: nn.Module, member: int) -> nn.Module:
        weight, bias = (parameter[member] for parameter in parameters(stacked))
        layer = nn.LayerNorm(weight.shape) if weight.ndim == 1 else nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        return layer

    networks = nn.ModuleList()
    for member in range(critic.num_qs):
        layers: list[nn.Module] = []
        for linear, norm in zip(critic.linears, critic.norms):
            layers += [plain(linear, member), plain(norm, member), nn.Mish()]
        networks.append(nn.Sequential(*layers, plain(critic.head, member)))
    return networks.to(critic.head.weight.device)


def forms(args: Args) -> tuple[dict[str, Callable[[], Tensor]], list[nn.Module]]:
    """Return the four forms on the same parameters and inputs."""
    torch.manual_seed(0)
    encoder = ObservationEncoder(state_shape=(args.obs_horizon, args.state_dim))
    critic = QEnsemble(
        encoder,
        action_dim=args.action_dim,
        act_horizon=args.act_horizon,
        num_qs=args.num_qs,
        hidden_sizes=args.hidden_sizes,
    ).to(args.device)
    features = torch.randn(args.batch_size, encoder.out_features, device=args.device)
    action = torch.randn(args.batch_size, args.act_horizon, args.action_dim, device=args.device)
    x = torch.cat([features, action.flatten(1)], -1)
    vmapped, modules = vmap_form(critic), modules_form(critic)

    def ours(compute: EnsembleCompute) -> Callable[[], Tensor]:
        def run() -> Tensor:
            critic.compute = compute
            return critic.q_values(features, action)

        return run

    made: dict[str, Callable[[], Tensor]] = {"loop": ours("loop"), "batched": ours("batched")}
    made["vmap"] = lambda: vmapped(x)
    made["modules"] = lambda: torch.stack([network(x) for network in modules])
    return made, [critic, modules]


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    made, owners = forms(args)
    expected = made["modules"]()
    for name, run in made.items():
        torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4, msg=f"{name} differs from the modules")
    numbers = {name: num_parameters(owners[name == "modules"].parameters()) for name in made}

    def call(run: Form, backward: bool) -> Form:
        def one() -> None:
            with torch.set_grad_enabled(backward):
                value = run()
            if backward:
                value.square().mean().backward()
                for owner in owners:
                    owner.zero_grad(set_to_none=True)

        return one

    for backward in (False, True):
        mode = "forward and backward" if backward else "forward"
        sides = {name: Side(call(run, backward), numbers[name]) for name, run in made.items()}
        names = (("loop", "vmap"), ("batched", "vmap"), ("loop", "modules"), ("batched", "loop"))
        pairs = [Pair(ours, reference, f"q_ensemble {ours} / {reference}", mode) for ours, reference in names]
        sizes: dict[str, Any] = {"rounds": args.rounds, "repeats": args.repeats}
        compare(sides, pairs, **sizes, device=args.device, results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
