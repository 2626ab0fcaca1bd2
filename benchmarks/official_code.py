"""Time of an update in the recipes, compared with the official code itself.

    git clone https://github.com/tinkoff-ai/CORL ../CORL
    git clone https://github.com/ReinFlow/ReinFlow ../ReinFlow
    python benchmarks/official_code.py --corl ../CORL --reinflow ../ReinFlow --results benchmarks/results.csv

`ours` is a recipe's work for one batch, with the guard of a run and its discount. `official` is the method that the
official training loop calls for one batch: `TD3_BC.train`, `ImplicitQLearning.train`, `ContinuousCQL.train`, and for
ReinFlow `PPOShortCut.loss` with the backward pass, the gradient norms and the two optimiser steps of its agent. Their
files are imported as they are; packages that they import and a benchmark does not need (environments, loggers) are
replaced by empty stand-ins. The networks of both have the sizes of the official code: two hidden layers of 256 units
for TD3+BC and IQL, three for CQL, and for ReinFlow a velocity of 512 x 3 with one residual block.

What differs from ours, and remains in the official time: CQL's policy has two more scalars. The first losses of the
critics of TD3+BC and IQL, that of IQL's policy, and the velocities of ReinFlow, are compared with the same weights.
`mlp` and `concat_mlp` are ReinFlow's update with the networks that the recipes make.
The output has median CPU time, the median ratio of neighbouring measurements with its quartiles (below 1, `ours` is
faster), numbers of parameters, and the lower bound: the time of the matrix products only.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import offline_updates
import reinflow_update
import torch
import tyro
from offline_updates import GAMMA, LR, TAU, Algorithm, Ours, Update
from pairs import Pair, Side, compare
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_flow.objectives import ReinFlowPPOLoss
from torchrl_flow.training import UpdateGuard, gradient_step, guarding
from torchrl_flow.util.timing import num_parameters

STAND_INS = ("d4rl", "gym", "pyrallis", "wandb", "einops", "einops.layers", "einops.layers.torch")
"""Packages that the official files import and their updates do not use."""


@dataclasses.dataclass
class Args:
    """What to measure."""

    corl: Path | None = None
    """Checkout of CORL; None to leave out TD3+BC, IQL and CQL."""
    reinflow: Path | None = None
    """Checkout of ReinFlow; None to leave it out."""
    shapes: tuple[tuple[int, int, int, int, int], ...] = ((256, 16, 7, 23, 4), (64, 4, 3, 11, 1), (256, 8, 7, 23, 16))
    """ReinFlow's sizes: batch B, chunk H, action A, state D and sampling steps K."""
    rounds: int = 20
    """Number of measurements of each form, taken alternately, after three warm-ups."""
    repeats: int = 4
    """Updates in a measurement of the offline losses; an even number."""
    results: Path | None = None
    """A CSV file to append the pairs to."""


def load(path: Path) -> Any:
    """Import an official file, with stand-ins for packages that are not installed."""
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: give the directory of a checkout of the official code.")
    spec: Any = importlib.util.spec_from_file_location(f"official_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def stand_in() -> None:
    """Replace the packages of :data:`STAND_INS` that are not installed."""
    missing = [name for name in STAND_INS if importlib.util.find_spec(name.partition(".")[0]) is None]
    sys.modules.update({name: mock.MagicMock() for name in missing})


def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy the parameters in their order, which is the same in both forms; the shapes must be equal."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.data.copy_(fast.data)


def offline_args(algorithm: Algorithm) -> offline_updates.Args:
    return offline_updates.Args(hidden_sizes=(256, 256, 256) if algorithm == "cql" else (256, 256))


def official_offline(corl: Path, algorithm: Algorithm, batch: TensorDict) -> tuple[Update, list[Tensor]]:
    """Return CORL's update for one batch, and its trained parameters."""
    args = offline_args(algorithm)
    policy, values, value = offline_updates.networks(args, algorithm)
    sizes = (args.state_dim, args.action_dim)
    file = load(corl / "algorithms" / "offline" / f"{algorithm}.py")

    def adam(*modules: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for module in modules for p in module.parameters()], LR)

    common: dict[str, Any] = {"discount": GAMMA, "device": "cpu"}
    if algorithm == "td3_bc":
        actor, critics = file.Actor(*sizes, 1.0), [file.Critic(*sizes) for _ in range(2)]
        copy_weights(actor, policy)
        for critic, ours in zip(critics, values):
            copy_weights(critic, ours)
        trainer = file.TD3_BC(
            *(1.0, actor, adam(actor), critics[0], adam(critics[0]), critics[1], adam(critics[1])), tau=TAU, **common
        )
        modules = [actor, *critics]
    elif algorithm == "iql":
        actor, twin, v = file.GaussianPolicy(*sizes, 1.0), file.TwinQ(*sizes), file.ValueFunction(sizes[0])
        for theirs, ours in ((actor, policy), (twin.q1, values[0]), (twin.q2, values[1]), (v, value)):
            copy_weights(theirs, ours)
        trainer = file.ImplicitQLearning(
            *(1.0, actor, adam(actor), twin, adam(twin), v, adam(v)), iql_tau=0.7, beta=3.0, tau=TAU, **common
        )
        modules = [actor, twin, v]
    else:
        actor = file.TanhGaussianPolicy(*sizes, 1.0)
        critics = [file.FullyConnectedQFunction(*sizes, n_hidden_layers=3) for _ in range(2)]
        trainer = file.ContinuousCQL(
            *(critics[0], adam(critics[0]), critics[1], adam(critics[1]), actor, adam(actor)),
            target_entropy=-float(sizes[1]),
            soft_target_update_rate=TAU,
            bc_steps=0,
            **common,
        )
        modules = [actor, *critics]
    following: Any = batch["next"]
    done = following["terminated"].float()
    rows = [batch["observation"], batch["action"], following["reward"], following["observation"], done]
    return lambda: trainer.train(rows), [p for module in modules for p in module.parameters()]


def check_offline(algorithm: Algorithm, ours: Ours, official: Update) -> None:
    """Compare the first losses, which are equal for equal weights and random numbers."""
    if algorithm == "cql":
        return
    policies = ours.loss(ours.batch.clone(False))["loss_actor"].detach() if algorithm == "iql" else None
    expected = ours.first_loss()
    torch.manual_seed(1)
    log: Any = official()
    # CORL's IQL takes the mean over its two critics, TorchRL's the sum.
    found = log["critic_loss"] if algorithm == "td3_bc" else 2 * log["q_loss"]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)
    if policies is not None:
        torch.testing.assert_close(torch.tensor(log["actor_loss"]), policies, rtol=1e-4, atol=1e-5)


def reinflow_args(shape: tuple[int, int, int, int, int]) -> reinflow_update.Args:
    batch, horizon, action, state, steps = shape
    return reinflow_update.Args(batch, horizon, action, state, steps)


def our_reinflow(args: reinflow_update.Args, network: str) -> tuple[Update, list[Tensor], Any]:
    """Return the update of examples/reinflow.py for one minibatch, its parameters, and its chain."""
    noisy, value, _, batch = reinflow_update.make(args, network)
    loss = ReinFlowPPOLoss(
        noisy,
        value,
        clip_epsilon=reinflow_update.CLIP,
        entropy_coeff=reinflow_update.ENTROPY,
        critic_coeff=reinflow_update.VALUE,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    flow, head = [*noisy.flow_actor.velocity_network.parameters(), *noisy.noise_net.parameters()], value.head
    groups: dict[str, Iterable[Tensor]] = {"flow": flow, "value": head.parameters()}
    optimizers = {name: torch.optim.Adam(group, 1e-7, eps=1e-5, fused=True) for name, group in groups.items()}

    def update() -> None:
        out = loss(batch)
        losses = {name: one for name, one in out.items() if name.startswith("loss_")}
        gradient_step(losses, optimizers, step=1, batch=batch, max_grad_norm=1.0)

    return update, [*flow, *head.parameters()], (noisy, batch)


def official_reinflow(path: Path, args: reinflow_update.Args, noisy: Any, batch: TensorDict) -> tuple[Update, Any]:
    """Return the official update for one minibatch with the velocity's weights of ours, and its model."""
    sys.path.insert(0, str(path))
    shortcut, ppo = (importlib.import_module(f"model.flow.{name}") for name in ("mlp_shortcut", "ft_ppo.pposhortcut"))
    critic = importlib.import_module("model.common.critic")
    sys.path.remove(str(path))
    sizes = (args.pred_horizon, args.action_dim, args.state_dim)
    policy = shortcut.ShortCutFlowMLP(*sizes, 16, [512] * 3, [64, 16], "ReLU", residual_style=True)
    copy_weights(policy, noisy.flow_actor.velocity_network)
    model = ppo.PPOShortCut(
        device="cpu",
        policy=policy,
        critic=critic.CriticObs(args.state_dim, [256] * 3, residual_style=True),
        actor_policy_path=None,
        act_dim=args.action_dim,
        horizon_steps=args.pred_horizon,
        act_min=-1,
        act_max=1,
        obs_dim=args.state_dim,
        cond_steps=1,
        noise_scheduler_type="learn_decay",
        inference_steps=args.num_steps,
        ft_denoising_steps=args.num_steps,
        randn_clip_value=3,
        min_sampling_denoising_std=0.05,
        min_logprob_denoising_std=0.05,
        logprob_min=-1.0,
        logprob_max=1.0,
        clip_ploss_coef=reinflow_update.CLIP,
        clip_ploss_coef_base=reinflow_update.CLIP,
        clip_ploss_coef_rate=3,
        clip_vloss_coef=None,
        denoised_clip_value=1.0,
        max_logprob_denoising_std=0.3,
        time_dim_explore=0,
        learn_explore_time_embedding=False,
        use_time_independent_noise=False,
        noise_hidden_dims=[64, 64],
        logprob_debug_sample=False,
        logprob_debug_recalculate=False,
        explore_net_activation_type="Tanh",
    )
    flow: Any = batch["flow"]
    chain = torch.cat([flow["x"], flow["x_next"][:, -1:]], 1)
    rows = {"state": batch["observation"]}
    numbers = [batch[key].squeeze(-1) for key in ("value_target", "value_target", "advantage")]
    actor_adam = torch.optim.AdamW(model.actor_ft.parameters(), 1e-7, weight_decay=0)
    critic_adam = torch.optim.AdamW(model.critic.parameters(), 1e-7, weight_decay=1e-5)
    means = {"normalize_denoising_horizon": True, "normalize_act_space_dimension": True}
    options: dict[str, Any] = {"verbose": False, "account_for_initial_stochasticity": False, **means}

    def update() -> None:
        policy_loss, entropy, value, *_ = model.loss(rows, chain, *numbers, flow["log_prob"], **options)
        loss = policy_loss + reinflow_update.ENTROPY * entropy + reinflow_update.VALUE * value
        actor_adam.zero_grad()
        critic_adam.zero_grad()
        loss.backward()
        for module in (model.actor_ft, model.actor_old, model.critic):
            nn.utils.clip_grad_norm_(module.parameters(), float("inf"))
        critic_adam.step()
        actor_adam.step()

    return update, model


def check_velocity(noisy: Any, model: Any, batch: TensorDict) -> None:
    """Compare the velocities of both forms with the same weights, and the official frequencies of the time."""
    frequencies: Tensor = noisy.flow_actor.velocity_network.sinusoid.frequencies
    frequencies.copy_(torch.logspace(0, -4, len(frequencies)))
    x, state = batch["flow", "x"][:, 0], batch["observation"].flatten(1)
    time, size = torch.zeros(x.shape[0]), torch.full(x.shape[:1], 1.0 / noisy.num_steps)
    ours = noisy.flow_actor.velocity_network(x, time, size, state)
    torch.testing.assert_close(model.actor_ft.policy(x, time, size, {"state": state}), ours, rtol=1e-4, atol=1e-5)


def report(args: Args, pair: str, mode: str, forms: dict[str, Update], numbers: dict[str, int], repeats: int) -> None:
    """Compare the forms with the one named ``official``."""

    def several(form: Update) -> Update:
        return lambda: [form() for _ in range(repeats)]

    sides = {name: Side(several(form), numbers[name], repeats) for name, form in forms.items()}
    pairs = [Pair(name, "official", f"{pair} {name} / official code", mode) for name in forms if name != "official"]
    compare(sides, pairs, rounds=args.rounds, results=args.results)


def main(args: Args) -> None:
    if args.corl is None and args.reinflow is None:
        raise SystemExit("Nothing to compare with: give --corl or --reinflow, the directory of a checkout.")
    torch.set_num_threads(1)
    stand_in()
    algorithms: tuple[Algorithm, ...] = ("td3_bc", "iql", "cql")
    for algorithm in algorithms if args.corl is not None else ():
        sizes = offline_args(algorithm)
        batch = offline_updates.make_batch(sizes)
        ours = Ours(sizes, algorithm, batch)
        official, parameters = official_offline(args.corl, algorithm, batch)  # pyright: ignore[reportArgumentType]
        check_offline(algorithm, ours, official)
        numbers = {"recipe": num_parameters(ours.loss.parameters()), "official": num_parameters(parameters)}
        forms = {"recipe": ours.update, "official": official}
        with guarding(UpdateGuard(gamma=GAMMA)):
            report(args, algorithm, f"{sizes.batch_size} rows", forms, numbers, args.repeats)
    for shape in args.shapes if args.reinflow is not None else ():
        sizes = reinflow_args(shape)
        made = {name: our_reinflow(sizes, name) for name in ("published", "mlp", "concat_mlp")}
        official, model = official_reinflow(args.reinflow, sizes, *made["published"][2])  # pyright: ignore[reportArgumentType]
        check_velocity(made["published"][2][0], model, made["published"][2][1])
        numbers = {name: num_parameters(parts[1]) for name, parts in made.items()}
        numbers["official"] = num_parameters([*model.actor_ft.parameters(), *model.critic.parameters()])
        forms = {name: parts[0] for name, parts in made.items()} | {"official": official}
        with guarding(UpdateGuard(gamma=GAMMA)):
            report(args, "reinflow", "B {} H {} A {} D {} K {}".format(*shape), forms, numbers, 1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
