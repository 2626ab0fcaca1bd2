"""Training of the belief encoder and the ranker of a slate env, and measurement of their quality."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from torchrl_flow.evaluation.seeds import TRAINING_SEED
from torchrl_flow.options.names import WritableFile
from torchrl_flow.options.refusals import refusals_in_one_line
from torchrl_flow.options.types import Count, NonNegative, Positive, Seed, check_options
from torchrl_flow.recsys.belief_encoder import BeliefEncoder, BeliefEncoderConfig
from torchrl_flow.recsys.catalogue import ItemCatalogue, make_catalogue
from torchrl_flow.recsys.env import SlateEnv
from torchrl_flow.recsys.functional import binary_auc, latent_sample, slate_vae_terms
from torchrl_flow.recsys.models import SlateLogs, SlateModels, play_slates
from torchrl_flow.recsys.option_types import SlateEnvName
from torchrl_flow.recsys.policies import SlatePolicyName, make_slate_policy
from torchrl_flow.recsys.slate_ranker import SlateRanker, SlateRankerConfig
from torchrl_flow.runs.checkpoint_reader import load_checkpoint
from torchrl_flow.runs.run import Run
from torchrl_flow.training.finite import gradient_step
from torchrl_flow.util.randomness import seed_everything
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["SlateModelsArgs", "round_trip_return", "train_slate_models"]

LOGGING_POLICIES: tuple[SlatePolicyName, ...] = ("random", "logged", "medium", "expert")
"""Policies whose logs, in equal parts, the models are trained on."""
_LOG_EVERY = 50


@dataclasses.dataclass
class SlateModelsArgs:
    """Train belief encoder and ranker of a slate env; takes about a minute on one core for 1,000 items."""

    env: SlateEnvName = "diffuse_topdown"
    """environment; see torchrl_flow.recsys.SLATE_ENVS"""
    output: WritableFile | None = None
    """file to write; by default runs/slate_models/ENV.torchrl"""
    num_items: Count = 1000
    """items of the catalogue"""
    item_seed: Seed = 1
    """seed of the items"""
    episodes: Count = 1024
    """logged episodes to train on, a quarter each by random, logged, medium and expert policies"""
    belief_updates: Count = 400
    """updates of the belief encoder, of 64 episodes each"""
    belief_lr: Positive = 3e-3
    """learning rate of the belief encoder"""
    ranker_updates: Count = 1500
    """updates of the ranker"""
    ranker_batch: Count = 128
    """slates per update of the ranker"""
    ranker_lr: Positive = 3e-3
    """learning rate of the ranker at the start; falls along a cosine"""
    ranker_hidden: tuple[Count, ...] = ()
    """hidden layers of the ranker; none by default: the mean of linear latents decodes to the most frequent items. The
    paper has 512 256"""
    train_items: bool = False
    """train the items' embeddings again with the ranker; otherwise items with similar clicks keep similar embeddings"""
    encode_clicks: bool = False
    """also encode the clicks of a slate, as the paper's ranker does; latents then depend on more than the slate"""
    distinct_items: bool = True
    """show no item twice in a slate; the paper's ranker repeats items, and a topic that fills a slate soon gets
    boring"""
    box_deviations: Positive = 3.0
    """half width of the box of latent actions, in standard deviations of the logged latents"""
    beta: NonNegative = 0.5
    """weight of the KL divergence; a larger weight makes latents easier to learn for a policy but less informative"""
    click_weight: NonNegative = 0.5
    """weight of the click term, with --encode-clicks"""
    seed: Seed = 0
    """seed of logs, networks and training"""
    save_every: Count = 200
    """updates between checkpoints; if you run a stopped command again, training continues from the last one"""
    threads: Count = 1
    """CPU threads"""

    @property
    def path(self) -> Path:
        """Path of the models."""
        return Path(self.output) if self.output else Path("runs/slate_models") / f"{self.env}.torchrl"

    @property
    def partial(self) -> Path:
        """Directory of the checkpoints until the models are finished."""
        return self.path.with_name(f"{self.path.name}.partial")

    def recipe(self) -> dict[str, Any]:
        """Return the options on which the models depend."""
        left_out = ("output", "save_every", "threads")
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        return {**fields, "ranker_hidden": list(self.ranker_hidden)}  # in the form read from a file

    def __call__(self) -> str:
        """Train and write the file; for an existing file, only report the quality.

        Returns:
            The quality, one number per line, and the path.

        Raises:
            SystemExit: if an option is out of range, or the file or a stopped training has other arguments.
        """
        check_options(self)
        with refusals_in_one_line():
            models = self._finished() or train_slate_models(self, directory=self.partial)
            if not self.path.exists():
                models.save(self.path, config=self.recipe())
            shutil.rmtree(self.partial, ignore_errors=True)
        return "\n".join(
            [*(f"{name:28} {value:.4g}" for name, value in models.quality.items()), str(self.path.resolve())]
        )

    def _finished(self) -> SlateModels | None:
        if not self.path.exists():
            return None
        found = load_checkpoint(self.path).config
        if found != self.recipe():
            raise ValueError(
                f"{self.path} holds models that were trained with other options: delete it, or give another --output."
            )
        return SlateModels.load(self.path)


def train_slate_models(
    args: SlateModelsArgs, *, directory: str | Path | None = None, progress: bool = True
) -> SlateModels:
    """Log episodes, train the belief encoder on them, then the ranker, and measure both on fresh episodes.

    The ranker uses the item embeddings that the belief encoder learned from clicks, so that it confuses only similar
    items. Half of its rows have the belief encoder's predicted clicks instead of the observed ones, because both kinds
    are encoded later.

    Args:
        args: sizes and budgets.
        directory: directory of the checkpoints. A training that was stopped continues from them, and gives the same
            weights. Defaults to None: no checkpoints.
        progress: show progress.

    Raises:
        ValueError: if the environment is unknown, the items cannot fill a slate, or the directory holds a training with
            other arguments.
    """
    sizes: dict[str, Any] = {"num_items": args.num_items, "hidden_sizes": tuple(args.ranker_hidden)}
    config = SlateRankerConfig(**sizes, encode_clicks=args.encode_clicks, distinct_items=args.distinct_items)
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    catalogue = make_catalogue(args.env, num_items=args.num_items, seed=args.item_seed)
    logs = mixed_logs(args, catalogue, args.episodes, seed=args.seed)
    encoder = BeliefEncoder(BeliefEncoderConfig(num_items=args.num_items))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if directory is None else directory)
        with _stage(args, folder / "belief_encoder", progress) as run:
            _train_belief(args, run, encoder, logs)
        encoder.requires_grad_(False)
        ranker = SlateRanker(config)
        ranker.embedding.weight.data.copy_(encoder.embedding.weight)
        ranker.embedding.weight.requires_grad_(args.train_items)
        with _stage(args, folder / "ranker", progress) as run:
            _train_ranker(args, run, encoder, ranker, logs)
    models = SlateModels(args.env, catalogue, encoder, ranker)
    models.quality = measure_quality(args, models)
    return models


def _stage(args: SlateModelsArgs, directory: Path, progress: bool) -> Run:
    return Run(directory, args.recipe(), resume=True, task=TaskInfo(task=args.env), keep_last=1, progress=progress)


def mixed_logs(args: SlateModelsArgs, catalogue: ItemCatalogue, episodes: int, *, seed: int) -> SlateLogs:
    """Log episodes of the four policies, a quarter each, shuffled."""
    share = max(1, episodes // len(LOGGING_POLICIES))
    env = SlateEnv(args.env, share, catalogue=catalogue, privileged=True)
    generator = torch.Generator().manual_seed(seed)
    first = TRAINING_SEED * (seed + 1)
    parts = [
        play_slates(env, name, seed=first + i * share, generator=generator) for i, name in enumerate(LOGGING_POLICIES)
    ]
    order = torch.randperm(share * len(parts), generator=generator)
    slates, clicks = torch.cat([p.slates for p in parts]), torch.cat([p.clicks for p in parts])
    return SlateLogs(slates[order], clicks[order])


def _cosine(optimizer: torch.optim.Optimizer, updates: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates, eta_min=0.02 * optimizer.defaults["lr"])


def _train_belief(args: SlateModelsArgs, run: Run, encoder: BeliefEncoder, logs: SlateLogs) -> None:
    optimizer = torch.optim.Adam(encoder.parameters(), args.belief_lr)
    schedule = _cosine(optimizer, args.belief_updates)
    run.track(modules={"encoder": encoder}, optimizers={"adam": optimizer}, state={"schedule": schedule})
    for step in run.steps(args.belief_updates, save_every=args.save_every):
        rows = torch.randint(len(logs.slates), (64,))
        slates, clicks = logs.slates[rows], logs.clicks[rows]
        beliefs = encoder(slates[:, :-1], clicks[:, :-1])
        logits = encoder.click_logits(beliefs, slates[:, 1:])
        loss = F.binary_cross_entropy_with_logits(logits, clicks[:, 1:].float())
        batch = TensorDict(slates=slates, clicks=clicks, batch_size=rows.shape)
        gradient_step({"loss": loss}, {"adam": optimizer}, step=step, batch=batch, max_grad_norm=1.0)
        schedule.step()
        if run.due(_LOG_EVERY):
            run.log({"loss": loss})


@torch.no_grad()
def _predicted_clicks(encoder: BeliefEncoder, logs: SlateLogs) -> Tensor:
    parts = []
    for slates, clicks in zip(logs.slates.split(128), logs.clicks.split(128)):
        parts.append(encoder.click_probabilities(encoder(slates[:, :-1], clicks[:, :-1]), slates[:, 1:]))
    return torch.cat(parts)


def _train_ranker(
    args: SlateModelsArgs, run: Run, encoder: BeliefEncoder, ranker: SlateRanker, logs: SlateLogs
) -> None:
    predicted = _predicted_clicks(encoder, logs).flatten(0, 1)
    slates, clicks = logs.slates[:, 1:].flatten(0, 1), logs.clicks[:, 1:].flatten(0, 1)
    optimizer = torch.optim.Adam([p for p in ranker.parameters() if p.requires_grad], args.ranker_lr)
    schedule = _cosine(optimizer, args.ranker_updates)
    run.track(modules={"ranker": ranker}, optimizers={"adam": optimizer}, state={"schedule": schedule})
    for step in run.steps(args.ranker_updates, save_every=args.save_every):
        rows = torch.randint(len(slates), (args.ranker_batch,))
        observed = torch.rand(args.ranker_batch, 1) < 0.5
        given = torch.where(observed, clicks[rows].float(), predicted[rows])
        mean, log_variance = ranker.encode(slates[rows], given)
        latent = latent_sample(mean, log_variance, torch.randn_like(mean))
        item_logits, click_logits = ranker.decode(latent)
        items, click, kl = slate_vae_terms(item_logits, slates[rows], click_logits, given, mean, log_variance)
        loss = (items + (args.click_weight if args.encode_clicks else 0.0) * click + args.beta * kl).mean()
        batch = TensorDict(slates=slates[rows], clicks=given, batch_size=rows.shape)
        gradient_step({"loss": loss}, {"adam": optimizer}, step=step, batch=batch)
        schedule.step()
        if run.due(_LOG_EVERY):
            run.log({"loss": loss, "items": items.mean()})
    with torch.no_grad():
        part = slice(0, 20_000)
        mean, log_variance = ranker.encode(slates[part], predicted[part])
        ranker.box.fit_(mean, (0.5 * log_variance).exp(), args.box_deviations)


@torch.no_grad()
def measure_quality(args: SlateModelsArgs, models: SlateModels, *, users: int = 256) -> dict[str, float]:
    """Measure click AUC, slate reconstruction, and the return of oracle slates after encoding and decoding."""
    logs = mixed_logs(args, models.catalogue, users, seed=args.seed + 1)
    predicted = _predicted_clicks(models.encoder, logs)
    slates = logs.slates[:, 1:]
    rebuilt = models.ranker.rank(models.ranker.encode(slates, predicted)[0])
    kept, whole = (round_trip_return(models, "expert", users=users, through=through) for through in (True, False))
    return {
        "click_auc": binary_auc(predicted, logs.clicks[:, 1:]),
        "slot_accuracy": float((rebuilt == slates).float().mean()),
        "topic_accuracy": float(
            (models.catalogue.main_topic[rebuilt] == models.catalogue.main_topic[slates]).float().mean()
        ),
        "oracle_return": whole,
        "oracle_return_through_ranker": kept,
        "oracle_share_kept": kept / whole,
    }


@torch.no_grad()
def round_trip_return(
    models: SlateModels, policy_name: SlatePolicyName, *, users: int, through: bool = True, seed: int = 10_000
) -> float:
    """Return the episode return of a reference policy whose slates are encoded and decoded.

    Args:
        models: belief encoder and ranker.
        policy_name: the reference policy.
        users: number of episodes.
        through: encode and decode the slates. False shows the slates as they are.
        seed: seed of the first user.
    """
    env = SlateEnv(models.env_name, users, catalogue=models.catalogue, privileged=True)
    generator = torch.Generator().manual_seed(seed)
    policy = make_slate_policy(policy_name, models.env_name, models.catalogue, generator=generator)
    data, total = env.reset(seed=seed), torch.zeros(users, 1)
    belief = models.encoder.step(torch.zeros(users, models.encoder.belief_dim), data["slate"], data["clicks"])
    for _ in range(env.max_episode_steps):
        data = policy(data)
        if through:
            latent = models.latents(belief, data["action"])
            latent = latent.clamp(models.ranker.action_low, models.ranker.action_high)
            data["action"] = models.ranker.rank(latent)
        data = env.step(data)["next"]
        belief = models.encoder.step(belief, data["slate"], data["clicks"])
        total += data["reward"]
    return float(total.mean())
