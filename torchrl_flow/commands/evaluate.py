"""The command ``evaluate``: evaluation of any run's policy with the seeds and metrics of the run's report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from torchrl_flow.envs.names import PLANAR
from torchrl_flow.evaluation.offline_task import OfflineTask
from torchrl_flow.offline.conclusion import action_distance, offline_lines, offline_row
from torchrl_flow.offline.envs import offline_task
from torchrl_flow.options.names import ExistingFile, RunSource, WritableDirectory, WritableFile
from torchrl_flow.options.refusals import refusals_in_one_line
from torchrl_flow.options.run_arguments import resolve_device
from torchrl_flow.options.types import Count, NonNegative, NonNegativeInt, Seed, check_options
from torchrl_flow.policies.acting import load_acting_policy, policy_kind, run_labels
from torchrl_flow.policies.training_env import policy_evaluation_env
from torchrl_flow.reports.conclusion import conclude
from torchrl_flow.reports.results import record_results
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.runs.names import Which
from torchrl_flow.runs.run import EVALUATION
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.files import write_json

__all__ = ["EvaluateArgs"]

EPISODES = 100
CHUNK_OPTIONS = ("num_steps", "compare_steps", "noise_scales", "num_envs", "max_episode_steps", "sim_backend")
DATA_OPTIONS = ("data", "env", "models")


@dataclasses.dataclass
class EvaluateArgs:
    """Evaluate the policy of a run over fixed seeds and write a report."""

    checkpoint: Annotated[RunSource, tyro.conf.Positional]
    """checkpoint file, or the directory of a run"""
    which: Which = "last"
    """checkpoint of a run to evaluate: last or best"""
    episodes: Count | None = None
    """number of episodes, each from its own seed; by default that of the run's report"""
    first_seed: NonNegativeInt = 10_000
    """seed of the first episode"""
    num_steps: Count | None = None
    """sampling steps K; by default those of the policy"""
    compare_steps: tuple[Count, ...] = ()
    """further numbers of sampling steps to evaluate at"""
    noise_scales: tuple[NonNegative, ...] = ()
    """also evaluate with the flow noise multiplied by these factors"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side; on a CPU the result does not depend on it"""
    sim_backend: str | None = None
    """ManiSkill's simulation: physx_cpu or physx_cuda (default for several environments if there is a GPU)"""
    max_episode_steps: Count | None = None
    """time limit of an episode; by default the time limit of the run"""
    num_videos: NonNegativeInt = 4
    """episodes to film; ManiSkill on a machine that cannot render is drawn from the poses of gripper and objects"""
    data: str | None = None
    """logged transitions that name the environment in which to evaluate an offline baseline; by default the data of
    the run"""
    env: str | None = None
    """environment of an offline baseline, if the data name none: gym/NAME, sardine/NAME or a slate environment"""
    models: ExistingFile | None = None
    """belief encoder and ranker of a slate environment; by default the models of the run"""
    output: WritableDirectory | None = None
    """directory of the report; by default `evaluation` in the directory of the run, or next to a checkpoint without a
    run"""
    results: WritableFile | None = None
    """results.csv to append the result to"""
    recipe: str | None = None
    """recipe that made the checkpoint, for results.csv; by default that of the run"""
    stage: str | None = None
    """stage of the recipe, for results.csv; by default that of the run"""
    seed: Seed | None = None
    """seed of the training, for results.csv; by default that of the run"""
    device: str = "cpu"
    """device of the policy: cpu, cuda (cuda:1, ...), or auto for cuda if there is a GPU"""
    threads: Count = 1
    """CPU threads"""

    def __call__(self) -> None:
        """Evaluate, and print the outcome and the path of the report."""
        with refusals_in_one_line():
            print(self.evaluate())

    def evaluate(self) -> str:
        """Evaluate, and return the lines to print.

        Raises:
            SystemExit: if an option does not apply to the kind of policy, or there is no environment for it.
            CheckpointError: if the checkpoint holds no known kind of policy.
        """
        check_options(self)
        device = resolve_device(self.device)
        torch.set_num_threads(self.threads)
        policy, checkpoint = load_acting_policy(self.checkpoint, which=self.which, device=device)
        kind = policy_kind(checkpoint)
        self._refuse(CHUNK_OPTIONS if kind.on_logged_data else DATA_OPTIONS, kind.name)
        output = Path(self.output) if self.output else checkpoint.run_directory / "evaluation"
        output.mkdir(parents=True, exist_ok=True)
        episodes = self.episodes or checkpoint.config.get("eval_episodes") or EPISODES
        play = self._on_logged_data if kind.on_logged_data else self._in_task
        return play(policy, checkpoint, output, episodes)

    def _refuse(self, names: tuple[str, ...], kind: str) -> None:
        """Refuse options that do not apply to this type of policy."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) != defaults[name]]
        if given:
            raise SystemExit(f"{self.checkpoint} holds a {kind}: {', '.join(given)} does not apply to it.")

    def _labels(self, checkpoint: TrainingCheckpoint) -> dict[str, Any]:
        own = run_labels(checkpoint)
        return {
            "recipe": own.recipe if self.recipe is None else self.recipe,
            "stage": own.stage if self.stage is None else self.stage,
            "seed": own.seed if self.seed is None else self.seed,
        }

    def _in_task(self, policy: Any, checkpoint: TrainingCheckpoint, output: Path, episodes: int) -> str:
        if self.num_steps is not None:
            policy.num_steps = self.num_steps
        options: dict[str, Any] = {"max_episode_steps": self.max_episode_steps}
        options |= {"num_envs": self.num_envs, "sim_backend": self.sim_backend}
        if self.num_videos == 0 and checkpoint.task.task != PLANAR and checkpoint.task.obs_mode == "state":
            options["visuals"] = False
        env = policy_evaluation_env(checkpoint, episodes=episodes, **options)
        print(f"{env.batch_size.numel()} environments at a time", flush=True)
        result, report = conclude(
            output,
            policy,
            env,
            range(self.first_seed, self.first_seed + episodes),
            task=checkpoint.task,
            **self._labels(checkpoint),
            num_steps=self.compare_steps,
            noise_scales=self.noise_scales,
            num_videos=self.num_videos,
            results=self.results,
            config=checkpoint.config,
            env_steps=checkpoint.counters.get("env_steps"),
            wall_s=checkpoint.metadata.get("wall_s", 0.0),
            notes=[f"Policy of {checkpoint.path.name}, step {checkpoint.step}."],
        )
        return f"{result.summary()}\n{report.resolve()}"

    def _on_logged_data(self, policy: Any, checkpoint: TrainingCheckpoint, output: Path, episodes: int) -> str:
        task, labels = self._offline_task(checkpoint), self._labels(checkpoint)
        samples = policy_kind(checkpoint).samples
        if not task.has_env:
            raise SystemExit(f"{checkpoint.path} was trained on data without an environment: name one (--env).")
        result = task.evaluate(policy, episodes=episodes, seed=self.first_seed, random=samples)
        references = task.references(episodes=episodes)
        figures = {"action_distance": action_distance(task, policy, random=samples)}
        if self.results is not None:
            cost = {"episodes": episodes, "wall_s": checkpoint.metadata.get("wall_s", 0.0)}
            row = offline_row(task, labels["recipe"], result, seed=labels["seed"], stage=labels["stage"], **cost)
            record_results(self.results, [row], directory=output)
        recipe = labels["recipe"]
        scores = {recipe: result.mean, f"{recipe}_standard_error": result.standard_error, **references, **figures}
        write_json(output / EVALUATION, scores)
        return "\n".join([*offline_lines(recipe, result, references, figures), str((output / EVALUATION).resolve())])

    def _offline_task(self, checkpoint: TrainingCheckpoint) -> OfflineTask:
        """Open the data that a policy was trained on, with its environment."""
        config = checkpoint.config
        data = self.data or config.get("data")
        if data is None or not Path(data).exists():
            raise SystemExit(
                f"{checkpoint.path} was trained on {data or 'data that it does not name'}, which does not exist: "
                "give the logged transitions (--data), which determine its environment."
            )
        options: dict[str, Any] = {"env": self.env or config.get("env"), "device": resolve_device(self.device)}
        options |= {} if config.get("gamma") is None else {"gamma": config["gamma"]}
        task = offline_task(data, self.models or config.get("models"), **options)
        sizes = {"state_dim": task.state_dim, "action_dim": task.action_dim}
        described = checkpoint.module_configs.get("state_policy") or checkpoint.actor_config
        form = "{name}: the policy's {found}, here {wanted}"
        differing = differing_fields(described, sizes, sizes, form=form)
        if differing:
            raise SystemExit(f"{data} is not the data that {checkpoint.path} was trained on. {'; '.join(differing)}.")
        return task
