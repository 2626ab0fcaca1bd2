"""Collection of logged data of the slate recommender with a reference policy, and relabelling for new models."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_flow.data.errors import DataError
from torchrl_flow.data.logged.npz_file import npz_metadata, open_npz, read_member
from torchrl_flow.data.logged.npz_stream import NpzStream
from torchrl_flow.options.names import ExistingFile, WritableFile
from torchrl_flow.options.refusals import refusals_in_one_line
from torchrl_flow.options.types import Count, Seed, check_options
from torchrl_flow.recsys.env import SlateEnv
from torchrl_flow.recsys.models import SlateLogs, SlateModels, play_slates
from torchrl_flow.recsys.option_types import SlateEnvName
from torchrl_flow.util.progress import Progress

LatentClicks = Literal["predicted", "observed"]

__all__ = [
    "CollectSlatesArgs",
    "LatentClicks",
    "RelabelSlatesArgs",
    "collect_slates",
    "relabel_slates",
    "write_latent_transitions",
]

SLATE_FORMAT = "torchrl_flow.slates"
"""Value of ``format`` in the metadata of the files."""
_FIRST_SEED = 100_000_000
"""First seed of the data, far from the seeds of training and evaluation."""


@dataclasses.dataclass
class CollectSlatesArgs:
    """Log transitions of a slate env to an .npz file; calling it again continues a stopped run."""

    env: SlateEnvName = "diffuse_topdown"
    """environment; see torchrl_flow.recsys.SLATE_ENVS"""
    policy: Literal["expert", "medium", "random", "logged"] = "medium"
    """expert: boredom-aware oracle; medium: half oracle, half random; random; logged: the paper's logging policy"""
    steps: Count = 1_000_000
    """environment steps, rounded up to whole episodes"""
    models: str | None = None
    """belief encoder and ranker; by default runs/slate_models/ENV.torchrl"""
    output: WritableFile | None = None
    """file to write; by default data/ENV-POLICY-STEPS.npz"""
    latent_clicks: LatentClicks = "predicted"
    """clicks that the slate latents encode: predicted from the belief, or observed (these reveal the reward)"""
    seed: Seed = 0
    """seed of users and policy"""
    num_envs: Count = 256
    """episodes at a time"""
    threads: Count = 1
    """CPU threads"""

    @property
    def path(self) -> Path:
        """Path of the data."""
        return Path(self.output) if self.output else Path("data") / f"{self.env}-{self.policy}-{self.steps}.npz"

    @property
    def models_path(self) -> Path:
        """Path of the models."""
        return Path(self.models) if self.models else Path("runs/slate_models") / f"{self.env}.torchrl"

    def __call__(self) -> str:
        """Collect, and return the outcome and the path."""
        check_options(self)
        torch.set_num_threads(self.threads)
        if not self.models_path.exists():
            raise SystemExit(
                f"There are no models in {self.models_path}. Train them first: "
                f"`python -m torchrl_flow slate-models --env {self.env}`."
            )
        with refusals_in_one_line():
            path = collect_slates(self, SlateModels.load(self.models_path))
            with open_npz(path) as file:
                rewards, length = read_member(path, file, "rewards"), npz_metadata(path, file)["length"]
        return f"{len(rewards)} steps, mean return {rewards.mean() * length:.1f}\n{path.resolve()}"


def _columns(models: SlateModels) -> dict[str, tuple[str, tuple[int, ...]]]:
    belief, latent = models.encoder.belief_dim, models.ranker.config.latent_dim
    size = models.ranker.config.slate_size
    return {
        "observations": ("float32", (belief,)),
        "actions": ("float32", (latent,)),
        "rewards": ("float32", ()),
        "next_observations": ("float32", (belief,)),
        "terminals": ("bool", ()),
        "timeouts": ("bool", ()),
        "slates": ("int32", (size,)),
        "clicks": ("bool", (size,)),
        "episode_ids": ("int64", ()),
        "initial_slates": ("int32", (size,)),
        "initial_clicks": ("bool", (size,)),
    }


@torch.no_grad()
def _rows(models: SlateModels, logs: SlateLogs, first_episode: int, latent_clicks: LatentClicks) -> dict[str, Tensor]:
    """Convert whole episodes to transitions, with observations and actions computed by the models."""
    slates, clicks = logs.slates, logs.clicks
    beliefs = models.encoder(slates, clicks)
    shown, clicked = slates[:, 1:], clicks[:, 1:]
    latents = models.latents(beliefs[:, :-1], shown, clicked.float() if latent_clicks == "observed" else None)
    episodes, length = shown.shape[:2]
    timeouts = torch.zeros(episodes, length, dtype=torch.bool)
    timeouts[:, -1] = True
    ids = torch.arange(first_episode, first_episode + episodes).unsqueeze(1).expand(-1, length)
    rows = {
        "observations": beliefs[:, :-1],
        "actions": latents,
        "rewards": clicked.sum(-1),
        "next_observations": beliefs[:, 1:],
        "terminals": torch.zeros_like(timeouts),
        "timeouts": timeouts,
        "slates": shown,
        "clicks": clicked,
        "episode_ids": ids,
    }
    flat = {name: value.flatten(0, 1) for name, value in rows.items()}
    return {**flat, "initial_slates": slates[:, 0], "initial_clicks": clicks[:, 0]}


def _metadata(models: SlateModels, **more: Any) -> dict[str, Any]:
    box = {"action_low": models.ranker.action_low.tolist(), "action_high": models.ranker.action_high.tolist()}
    return {"format": SLATE_FORMAT, "env": models.env_name, "hashes": models.hashes, **box, **more}


def collect_slates(args: CollectSlatesArgs, models: SlateModels, *, progress: bool = True) -> Path:
    """Log transitions with a reference policy, in bounded memory.

    Args:
        args: environment, policy, number of steps and output file.
        models: belief encoder and ranker, which compute observations and actions.
        progress: show progress.

    Returns:
        the path of the ``.npz`` file, which holds the transitions, ``slates``, ``clicks``, ``episode_ids``,
        ``initial_slates`` and ``initial_clicks``, and ``metadata`` with the models' hashes.

    Raises:
        ValueError: if the models belong to another environment or the number of steps is not positive.
        DataError: if the file exists already.
    """
    if models.env_name != args.env:
        raise ValueError(f"the models are of {models.env_name}, not of {args.env}.")
    if args.steps < 1 or args.num_envs < 1:
        raise ValueError(f"steps and num_envs must be at least 1, got {args.steps} and {args.num_envs}.")
    length = SlateEnv(args.env, 1, catalogue=models.catalogue).max_episode_steps
    episodes = math.ceil(args.steps / length)
    args.path.parent.mkdir(parents=True, exist_ok=True)
    description = {**dataclasses.asdict(args), "output": None, "models": None, "threads": None, "hashes": models.hashes}
    stream = NpzStream(args.path, _columns(models), description)
    total = episodes * length
    with Progress(
        total, initial=stream.position * length, description=args.path.stem, unit="step", enabled=progress
    ) as bar:
        while stream.position < episodes:
            first = stream.position
            number = min(args.num_envs, episodes - first)
            logs = _play(args, models, first, number)
            rows = _rows(models, logs, first, args.latent_clicks)
            stream.append(rows)
            stream.commit(first + number)
            bar.update(number * length, mean_return=rows["rewards"].sum().item() / number)
    details = {"policy": args.policy, "seed": args.seed, "latent_clicks": args.latent_clicks, "length": length}
    return stream.finish(_metadata(models, **details))


def _play(args: CollectSlatesArgs, models: SlateModels, first: int, number: int) -> SlateLogs:
    env = SlateEnv(args.env, number, catalogue=models.catalogue, privileged=True)
    # Seeded by the first episode, so that a resumed collection equals an uninterrupted one.
    seed = _FIRST_SEED * (args.seed + 1) + first
    return play_slates(env, args.policy, seed=seed, generator=torch.Generator().manual_seed(seed))


def write_latent_transitions(
    path: str | Path, models: SlateModels, transitions: TensorDictBase, *, policy: str, seed: int
) -> Path:
    """Write transitions of the latent env to a data set for the offline recipes.

    Args:
        path: ``.npz`` file to write.
        models: the models of the environment.
        transitions: transitions ``[N]`` of whole episodes: ``observation``, ``action`` in [-1, 1], and under ``next``
            ``observation``, ``reward``, ``terminated`` and ``truncated``.
        policy: name of the policy that acted.
        seed: seed of the policy.

    Raises:
        DataError: if the file exists already.
    """
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    columns = {name: column for name, column in _columns(models).items() if name in names}
    following: Any = transitions["next"]
    box = models.ranker.box
    rows = {
        "observations": transitions["observation"],
        "actions": box.centre + box.scale * transitions["action"],
        "rewards": following["reward"].squeeze(-1),
        "next_observations": following["observation"],
        "terminals": following["terminated"].squeeze(-1),
        "timeouts": following["truncated"].squeeze(-1),
    }
    stream = NpzStream(
        path, columns, {"policy": policy, "seed": seed, "hashes": models.hashes, "rows": len(transitions)}
    )
    if stream.position == 0:
        stream.append(rows)
        stream.commit(1)
    length = SlateEnv(models.env_name, 1, catalogue=models.catalogue).max_episode_steps
    return stream.finish(_metadata(models, policy=policy, seed=seed, length=length))


@dataclasses.dataclass
class RelabelSlatesArgs:
    """Recompute the observations and latents of logged slates for other models."""

    data: ExistingFile
    """.npz file written by collect-slates"""
    models: ExistingFile
    """belief encoder and ranker"""
    output: WritableFile
    """file to write"""
    latent_clicks: LatentClicks = "predicted"
    """clicks that the slate latents encode"""
    threads: Count = 1
    """CPU threads"""

    def __call__(self) -> str:
        """Relabel and return the path."""
        check_options(self)
        torch.set_num_threads(self.threads)
        with refusals_in_one_line():
            models = SlateModels.load(self.models)
            path = relabel_slates(self.data, models, self.output, latent_clicks=self.latent_clicks)
        return str(path.resolve())


def relabel_slates(
    data: str | Path,
    models: SlateModels,
    output: str | Path,
    *,
    latent_clicks: LatentClicks = "predicted",
    block: int = 256,
    progress: bool = True,
) -> Path:
    """Recompute observations and latents of a file from its raw slates and clicks.

    Args:
        data: file written by :func:`collect_slates`.
        models: models that compute the new observations and latents.
        output: file to write.
        latent_clicks: clicks that the latents encode.
        block: number of episodes that are processed at a time.
        progress: show progress.

    Raises:
        DataError: if the file holds no slates, its episodes are incomplete, or its items differ from those of the
            models.
    """
    path = Path(data)
    with open_npz(path) as file:
        wanted = ("slates", "clicks", "initial_slates", "initial_clicks", "metadata")
        missing = [name for name in wanted if name not in file.files]
        if missing:
            raise DataError(f"{data} cannot be relabelled: it lacks {missing}.")
        arrays = [read_member(path, file, name) for name in wanted[:4]]
        metadata = npz_metadata(path, file)
    missing = [name for name in ("hashes", "length", "policy", "seed") if name not in metadata]
    if missing:
        raise DataError(f"{data} cannot be relabelled: its metadata lack {missing}.")
    for name, array in zip(wanted, arrays):
        if array.dtype.kind not in "fiub" or array.ndim != 2:
            raise DataError(f"{name!r} in {data} must be rows of numbers, got {list(array.shape)} of {array.dtype}.")
    slates, clicks, first_slates, first_clicks = map(torch.from_numpy, arrays)
    if metadata["hashes"]["catalogue"] != models.hashes["catalogue"]:
        raise DataError(f"{data} has item ids that the models do not have: give the models that it was logged with.")
    episodes, length = len(first_slates), metadata["length"]
    if len(slates) != episodes * length:
        raise DataError(f"{data} has {len(slates)} steps, not {episodes} episodes of {length}.")
    description = {"data": str(data), "hashes": models.hashes, "latent_clicks": latent_clicks}
    stream = NpzStream(output, _columns(models), description)
    with Progress(episodes, initial=stream.position, description="relabel", unit="episode", enabled=progress) as bar:
        while stream.position < episodes:
            first, last = stream.position, min(stream.position + block, episodes)
            part = slice(first * length, last * length)
            parts = [
                torch.cat([start[first:last].unsqueeze(1), rest[part].unflatten(0, (last - first, length))], 1)
                for start, rest in ((first_slates, slates), (first_clicks, clicks))
            ]
            stream.append(_rows(models, SlateLogs(parts[0].long(), parts[1]), first, latent_clicks))
            stream.commit(last)
            bar.update(last - first)
    kept = {name: metadata[name] for name in ("policy", "seed", "length")}
    return stream.finish(_metadata(models, latent_clicks=latent_clicks, **kept))
