"""Diagnose a run of AWSC: accuracy of the critic, distribution of the weights, and content of the buffer.

    python examples/awsc_diagnose.py --run runs/awsc-planar-state-0-3

Runs the policy from fixed seeds, starts several chunks in one state and compares their values with their returns, reads
the run's replay buffer from its checkpoint, and draws six panels: values against returns; the advantages of
demonstrations and of online chunks, with the share that the filter keeps; the weights of a batch; the success of the
ring's episodes by age; success in training; and the shares of a batch that the policy keeps and that have weight. Takes
a minute on the planar task. Prints the numbers and writes them beside the drawing.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import awsc_online
import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_flow.data import MixedReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.evaluation import values_and_returns, values_within_states
from torchrl_flow.functional import advantage_weights, effective_sample_size
from torchrl_flow.modules import CriticConfig
from torchrl_flow.objectives import AWFlowLoss
from torchrl_flow.options import (
    Count,
    NonNegativeInt,
    Range,
    RunSource,
    WritableDirectory,
    check_options,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    checkpoint_env,
    critic_config,
    make_aw_flow_actor,
    make_aw_flow_loss,
    make_aw_flow_stepper,
    warm_start,
)
from torchrl_flow.reports import window_means
from torchrl_flow.runs import TrainingCheckpoint, load_checkpoint, read_metrics
from torchrl_flow.util import seed_everything, write_json


@dataclasses.dataclass
class Args:
    """Options of the diagnosis."""

    run: RunSource
    """run or checkpoint of awsc_online"""
    episodes: Count = 100
    """episodes in which values are compared with returns"""
    states: NonNegativeInt = 24
    """number of states in which several chunks are compared by value and by return; 0 for none"""
    candidates: Annotated[int, Range(2)] = 8
    """number of chunks that are compared in a state"""
    rollouts: Annotated[int, Range(2)] = 8
    """episodes that continue from each chunk, in parallel environments; their mean is its return"""
    rows: Count = 4096
    """rows of each part of the buffer whose advantages are computed"""
    output: WritableDirectory | None = None
    """directory of diagnosis.svg and diagnosis.json; by default the directory of the run"""
    threads: Count = 1
    """CPU threads"""


def load(args: Args) -> tuple[TrainingCheckpoint, awsc_online.Args, AWFlowLoss, MixedReplayBuffer]:
    """Build the loss and the buffer of a run and fill them from its checkpoint."""
    checkpoint = load_checkpoint(args.run)
    names = {field.name for field in dataclasses.fields(awsc_online.Args)}
    if "chunks" not in checkpoint.config:
        raise SystemExit(f"{checkpoint.path} was not written by awsc_online: give a run of awsc_online.")
    own = awsc_online.Args(**{name: value for name, value in checkpoint.config.items() if name in names})
    actor = make_aw_flow_actor(checkpoint, own.wanted_horizons(), extraction=own.extraction, device=own.device)
    critic = critic_config(checkpoint) or CriticConfig(num_qs=own.num_qs, hidden_sizes=own.critic_hidden)
    options = {**own.loss_options(), "filter_policy_data": own.filter_policy_data}
    loss_module = make_aw_flow_loss(actor, critic, preset=own.preset, **options)
    make_aw_flow_stepper(loss_module, **own.stepper_options())  # It holds the averages, which are restored too.
    warm_start(loss_module, checkpoint, critic=True)
    source, env = DemoSource.of_checkpoint(checkpoint, own.demos), checkpoint_env(checkpoint)  # Refuses a changed task.
    buffer = awsc_online.make_buffer(own, checkpoint, source, own.collectors, env=env)
    checkpoint.restore(state={"buffer": buffer})
    return checkpoint, own, loss_module, buffer


def ring_success(buffer: MixedReplayBuffer) -> Tensor:
    """Return, for each online row that ends an episode, whether the episode succeeded."""
    following: Any = buffer[torch.arange(buffer.num_demo_rows, len(buffer))]["next"]
    return following["terminated"][following["done"]].float()


def part(buffer: MixedReplayBuffer, first: int, last: int, rows: int) -> TensorDictBase:
    """Draw rows of one part of the buffer."""
    return buffer[torch.randint(first, last, (min(rows, last - first),))]


def draw(path: Path, figures: dict[str, float], found: dict[str, Tensor], curves: dict[str, Any]) -> None:
    """Draw the six panels."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, 3)
    top = max(found["values"].max().item(), found["returns"].max().item())
    dots = {"s": 5, "alpha": 0.25, "color": "#2563c9", "linewidths": 0, "rasterized": True}
    axes[0, 0].scatter(found["values"], found["returns"], **dots)
    axes[0, 0].plot([0, top], [0, top], color="#8a93a5", linewidth=1)
    axes[0, 0].set(xlabel="Q", ylabel="return", title=f"values, correlation {figures['correlation']:.2f}")
    edges = torch.quantile(torch.cat([found["demos"], found["online"]]), torch.tensor([0.005, 0.995]))
    for name, colour in (("demos", "#2563c9"), ("online", "#d9622b")):
        clipped = found[name].clamp(*edges.tolist())
        axes[0, 1].hist(clipped.numpy(), bins=60, density=True, histtype="step", color=colour, label=name)
    axes[0, 1].set(xlabel="A", title=f"advantages; above 0: {figures['online_kept']:.0%} online")
    axes[0, 1].legend(frameon=False)
    axes[0, 2].hist(found["weights"].numpy(), bins=60, color="#2563c9")
    axes[0, 2].set(xlabel="w", title=f"weights, effective sample {figures['effective_share']:.0%}")
    smooth = window_means(found["ring_success"].tolist(), 50)
    axes[1, 0].plot(torch.linspace(0, 1, len(smooth)), smooth, color="#2563c9")
    axes[1, 0].set(xlabel="oldest to newest", ylim=(0, 1.05), title="success of the ring's episodes")
    for axis, names, title in (
        (axes[1, 1], ("success",), "success in training"),
        (axes[1, 2], ("effective_sample_size", "policy_share"), "batch: effective share, share kept"),
    ):
        for name in names:
            if f"train/{name}" not in curves:
                continue  # In a short run no episode may have ended.
            scale = figures["batch_size"] if name == "effective_sample_size" else 1.0
            window = max(1, len(curves[f"train/{name}"][0]) // 60)
            steps, values = (window_means(column, window) for column in curves[f"train/{name}"])
            axis.plot(steps, [value / scale for value in values], label=name)
        axis.set(xlabel="collected batches", ylim=(0, 1.05), title=title)
    axes[1, 2].legend(frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None, "Creator": None})


def main(args: Args) -> dict[str, float]:
    """Compute and print the diagnosis, and draw it."""
    check_options(args)
    torch.set_num_threads(args.threads)
    seed_everything(0)
    checkpoint, own, loss_module, buffer = load(args)
    options: dict[str, Any] = {"gamma": own.gamma, "ignore_terminations": False}
    env = checkpoint_env(checkpoint, episodes=args.episodes, **options)
    networks = (loss_module.ema_actor(), loss_module.target_critic())
    within: dict[str, float] = {}
    if args.states:
        branched = checkpoint_env(checkpoint, num_envs=args.candidates * args.rollouts, **options)
        counts = {name: getattr(args, name) for name in ("states", "candidates", "rollouts")}
        within = values_within_states(branched, *networks, gamma=loss_module.gamma, **counts)
    found: dict[str, Tensor] = {}
    found["values"], found["returns"] = values_and_returns(env, *networks, args.episodes, gamma=loss_module.gamma)
    demos = part(buffer, 0, buffer.num_demo_rows, args.rows)
    online = part(buffer, buffer.num_demo_rows, len(buffer), args.rows)
    found["demos"], found["online"] = loss_module.advantages(demos), loss_module.advantages(online)
    half = min(len(found["demos"]), len(found["online"]))
    # A batch of the policy holds all demonstrations, and the online chunks above the threshold.
    kept = torch.cat([found["demos"][:half], found["online"][:half][found["online"][:half] > 0]])
    options = {"beta": own.beta, "weight_clip": own.weight_clip, "weighting": own.weighting}
    found["weights"] = advantage_weights(kept, **options)
    found["ring_success"] = ring_success(buffer)
    figures = {
        "chunks": float(len(found["values"])),
        "correlation": torch.corrcoef(torch.stack([found["values"], found["returns"]]))[0, 1].item(),
        "q_mean": found["values"].mean().item(),
        "return_mean": found["returns"].mean().item(),
        "demo_advantage_std": found["demos"].std().item(),
        "online_advantage_std": found["online"].std().item(),
        "demos_above_zero": (found["demos"] > 0).float().mean().item(),
        "online_kept": (found["online"] > 0).float().mean().item(),
        "effective_share": effective_sample_size(found["weights"]).item() / len(kept),
        "largest_weight": found["weights"].max().item(),
        "ring_success": found["ring_success"].mean().item(),
        "online_rows": float(buffer.num_online_rows),
        "demo_rows": float(buffer.num_demo_rows),
        "batch_size": float(own.batch_size),
        **within,
    }
    folder = Path(args.output) if args.output else checkpoint.run_directory
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "diagnosis.json", figures)
    draw(folder / "diagnosis.svg", figures, found, read_metrics(checkpoint.run_directory / "metrics.csv"))
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=2))
    print((folder / "diagnosis.svg").resolve())
    return figures


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
