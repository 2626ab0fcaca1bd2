"""Residual and time of each method of noise aliasing on a policy's demonstrations.

    python benchmarks/noise_aliasing.py --policy runs/shortcut_flow_bc-planar-state-0

prints, for inversion, retrieval and reversal at several settings, the milliseconds per row and the residual of the
aliases: the root mean square distance, in normalised units, between the latent's action and the demonstrated action
(mean, median and 90 % quantile). With --output the table is also written as Markdown and drawn as an SVG.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from torchrl_flow.figures import markdown_table
from torchrl_flow.figures.plots import curves_svg, standalone_svg
from torchrl_flow.modules import AliasConfig, LatentPolicyConfig, NoiseAliaser, make_latent_policy
from torchrl_flow.policies import load_policy, policy_demonstrations
from torchrl_flow.util import Progress, write_text

SETTINGS = [
    *(AliasConfig(mode="retrieval", candidates=n) for n in (8, 32, 128, 512)),
    *(AliasConfig(mode="inversion", starts=s, steps=n) for s, n in ((1, 10), (4, 20), (4, 50))),
    *(AliasConfig(mode="reversal", reverse_steps=n) for n in (8, 64)),
]


@dataclass
class Args:
    """What to measure."""

    policy: str
    """Run directory or checkpoint with a flow."""
    steer_mode: Literal["full", "act_horizon", "tied"] = "full"
    """The steps that a latent steers."""
    latent_bound: float | None = None
    """Bound of the latents."""
    rows: int = 256
    """Demonstrated chunks."""
    num_steps: int | None = None
    """Sampling steps K of the flow; by default those of the policy."""
    threads: int = 1
    """CPU threads."""
    output: Path | None = None
    """Directory of the table and the plot."""


def describe(config: AliasConfig) -> str:
    names = {"retrieval": ("candidates",), "inversion": ("starts", "steps"), "reversal": ("reverse_steps",)}
    return ", ".join(f"{name} {getattr(config, name)}" for name in names[config.mode])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    modes = dict.fromkeys(row["mode"] for row in rows)
    points = {mode: [row for row in rows if row["mode"] == mode] for mode in modes}
    svg = curves_svg(
        {mode: ([p["ms_per_row"] for p in own], [p["residual"] for p in own]) for mode, own in points.items()},
        title="Inverting the flow",
        x_label="ms per row",
        y_label="residual (normalised units)",
        log_x=True,
        markers=True,
    )
    write_text(path, standalone_svg(svg))


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    flow, checkpoint = load_policy(args.policy)
    policy = make_latent_policy(LatentPolicyConfig(args.steer_mode, args.latent_bound), flow)
    data = policy_demonstrations(checkpoint, gamma=0.99)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: args.rows]
    batch = data[chosen]
    rows: list[dict[str, Any]] = []
    progress = Progress(len(SETTINGS), description="noise aliasing", unit="setting")
    for config in SETTINGS:
        aliaser = NoiseAliaser(flow, policy, config=config, num_steps=args.num_steps)
        aliaser(batch[:8].clone(), generator=torch.Generator().manual_seed(0))
        start = time.process_time()
        residual = aliaser(batch.clone(), generator=torch.Generator().manual_seed(0))["alias_residual"].flatten()
        spent = 1e3 * (time.process_time() - start) / len(batch)
        row = {
            "mode": config.mode,
            "setting": describe(config),
            "ms_per_row": spent,
            "residual": residual.mean().item(),
            "median": residual.median().item(),
            "q90": residual.quantile(0.9).item(),
        }
        rows.append(row)
        progress.update()
    progress.close()
    cells = [[f"{value:.3g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    table = markdown_table(list(rows[0]), cells)
    print(table)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        write_text(args.output / "noise_aliasing.md", table + "\n")
        plot(rows, args.output / "noise_aliasing.svg")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
