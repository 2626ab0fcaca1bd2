"""One training run: directory, metrics, checkpoints, stopping and resuming."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torchrl_flow.data.checks.json import read_json, read_object
from torchrl_flow.data.errors import DataError
from torchrl_flow.runs.checkpoint import CheckpointDirectory, as_json
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint, load_checkpoint, require_task
from torchrl_flow.runs.directory_lock import DirectoryLock
from torchrl_flow.runs.fields import AFTER_TRAINING, BOOKKEEPING, LENGTH, calling_script
from torchrl_flow.runs.metrics import RunLogger, as_scalars
from torchrl_flow.runs.names import WandbMode
from torchrl_flow.runs.signals import noted_signals
from torchrl_flow.training.finite import require_finite_modules
from torchrl_flow.training.guard import UpdateGuard, guarding
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.files import write_json
from torchrl_flow.util.progress import Progress
from torchrl_flow.util.task_info import TaskInfo
from torchrl_flow.util.versions import collect_versions, command_line, git_commit, today

__all__ = ["EVALUATION", "Run"]

_log = logging.getLogger(__name__)


EVALUATION = "evaluation.json"
"""File that marks a finished run; it is written last."""


class Run:
    """One training run in its own directory.

    The directory holds ``config.json``, ``versions.json``, ``provenance.json`` (command, recipe, commit and date of
    the start and of every resumption), ``metrics.csv``, ``checkpoints/`` and files that the script adds. The script
    contains the training loop: it iterates over :meth:`steps`, which restores, saves, shows progress and handles
    signals. TorchRL's ``Trainer`` is not used, since it runs the loop itself and would hide it in hooks.

    Args:
        directory: ``runs/<name>``.
        config: dataclass or mapping, the script's arguments.
        resume: continue the run in ``directory`` from its newest checkpoint, or start it if there is
            none. Without ``resume`` a directory with a run raises an error, unless the run ended before its first
            checkpoint and evaluation: then it is overwritten, even with another configuration.
        task: identity of the task (:func:`~torchrl_flow.envs.task_info`) or a mapping, compared on resuming.
        actor_config: dataclass or mapping from which the actor is rebuilt.
        module_configs: descriptions of the other modules, by role: ``{"critic": CriticConfig(...)}``.
        may_differ: fields of ``config`` that may change when the run is resumed. Defaults to the length of the training
            (a schedule over the whole length continues with the new length), bookkeeping, and fields used only after
            training.
        defaults: default values of the fields of ``config``. A run of an older version that lacks an option is resumed
            only if the option now has its default.
        keep_last: number of newest checkpoints to keep.
        keep_best: metric whose best checkpoint is also kept, see :class:`CheckpointDirectory`.
        tensorboard: see :class:`RunLogger`.
        wandb: see :class:`RunLogger`.
        project: project of W&B.
        group: group of W&B, such as the seeds of one configuration.
        progress: show progress.

    Raises:
        ValueError: if the directory holds a run and ``resume`` is not given, its config differs, or another process
            uses it.
        torchrl.checkpoint.CheckpointError: if its checkpoint belongs to another task.

    Examples:
        >>> import tempfile, torch
        >>> net = torch.nn.Linear(1, 1)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with Run(f"{directory}/demo", {"lr": 0.1}, progress=False) as run:
        ...         run.track(modules={"policy": net})
        ...         for step in run.steps(3):
        ...             run.log({"train/loss": 1.0 / step})
        ...         run.checkpoints.latest().name
        'checkpoint-000000000003.torchrl'
    """

    def __init__(
        self,
        directory: str | Path,
        config: Any,
        *,
        resume: bool = False,
        task: Mapping[str, Any] | None = None,
        actor_config: Any = None,
        module_configs: Mapping[str, Any] | None = None,
        may_differ: Collection[str] = (*AFTER_TRAINING, *LENGTH, *BOOKKEEPING),
        defaults: Mapping[str, Any] | None = None,
        keep_last: int = 2,
        keep_best: str | None = None,
        tensorboard: bool = False,
        wandb: WandbMode | None = None,
        project: str = "torchrl_flow",
        group: str | None = None,
        progress: bool = True,
    ) -> None:
        self.directory = Path(directory)
        self.config: dict[str, Any] = as_json("config", config)
        self.recipe = calling_script()
        self.task, self.actor_config = TaskInfo.of(task), as_json("actor_config", actor_config or {})
        self.module_configs = {role: as_json(role, value) for role, value in (module_configs or {}).items()}
        self.keep_best = keep_best
        self.checkpoints = CheckpointDirectory(self.directory / "checkpoints", keep_last=keep_last, keep_best=keep_best)
        self._new = not self.directory.exists()
        # Not the directory of the run itself, which a table of results in it may lock. It is made before the lock, so
        # that of two processes that start together only one writes the files of the run.
        self.checkpoints.directory.mkdir(parents=True, exist_ok=True)
        self._lock = DirectoryLock(self.checkpoints.directory)
        self._acquire()
        try:
            self._open(resume, may_differ, defaults, tensorboard, wandb, project, group)
        except BaseException:
            self._lock.release()
            raise
        self._parts: dict[str, Mapping[str, Any]] = {"modules": {}}
        self.guard = UpdateGuard.of_config(self.config)
        """Handling of an update that is not finite; gradient steps inside of :meth:`steps` use it."""
        self._metrics_now: dict[str, float] = {}
        self._save_requested = False
        self._show_progress = progress
        self._progress: Progress | None = None
        self._start = time.monotonic()
        self._wall_s_of_training: float | None = None
        self._total = 0

    def _open(
        self,
        resume: bool,
        may_differ: Collection[str],
        defaults: Mapping[str, Any] | None,
        tensorboard: bool,
        wandb: WandbMode | None,
        project: str,
        group: str | None,
    ) -> None:
        """Find an earlier run in the directory, and write the files of a new start."""
        self.resumed_from = self._find_checkpoint(resume, may_differ, as_json("defaults", defaults or {}))
        self.step = 0 if self.resumed_from is None else self.resumed_from.step
        self.counters: dict[str, int] = {} if self.resumed_from is None else dict(self.resumed_from.counters)
        self._wall_s_before = 0.0 if self.resumed_from is None else self.resumed_from.metadata.get("wall_s", 0.0)
        going_on = resume or (self.directory / "config.json").exists()
        # All metrics of a run that died before its first checkpoint are removed.
        kept = -1 if self.resumed_from is None else self.step
        self._write_provenance()
        self.logger = RunLogger(
            self.directory,
            resume_step=kept if going_on else None,
            tensorboard=tensorboard,
            wandb=wandb,
            project=project,
            group=group,
            config=self.config,
        )

    def _acquire(self) -> None:
        """Refuse a directory that another process uses, since each would overwrite the other's checkpoints."""
        if not self._lock.acquire():
            raise ValueError(
                f"{self.directory} is in use by a run of another process: wait until it has ended, or choose another "
                "name."
            )

    def _find_checkpoint(
        self, resume: bool, may_differ: Collection[str], defaults: Mapping[str, Any]
    ) -> TrainingCheckpoint | None:
        config_file = self.directory / "config.json"
        if not config_file.exists():
            return None
        self.checkpoints.remove_leftovers()
        newest = self.checkpoints.latest()
        if newest is None and not (self.directory / EVALUATION).exists():
            return None
        if not resume:
            raise ValueError(
                f"{self.directory} holds a run already: resume it (--resume), choose another name, or delete it."
            )
        # An option that an older version did not have counts as not given.
        new = {name: value for name, value in defaults.items() if name in self.config}
        before = {**new, **read_object(config_file)}
        names = [name for name in {**before, **self.config} if name not in may_differ]
        differing = differing_fields(before, self.config, names, form="{name}: {found!r} before, {wanted!r} now")
        if differing:
            raise ValueError(
                f"{self.directory} cannot be resumed with another configuration. {'; '.join(differing)}. Give the "
                "values of before, or start a new run (--name)."
            )
        if newest is None:
            return None
        checkpoint = load_checkpoint(newest)
        require_task(checkpoint, self.task)
        return checkpoint

    def _write_provenance(self) -> None:
        file = self.directory / "provenance.json"
        starts = read_json(file) if file.exists() else []
        if not isinstance(starts, list):
            raise DataError(f"{file} is damaged: it must hold a list, got a {type(starts).__name__}. Remove it.")
        start = {"step": self.step, "command": command_line(), "commit": git_commit(), "date": today()}
        starts.append({**start, "recipe": self.recipe, "task": self.task.task})
        self.write_json("config.json", self.config)
        self.write_json("versions.json", collect_versions())
        self.write_json("provenance.json", starts)

    def write_json(self, name: str, value: Any) -> Path:
        """Write ``value`` atomically to the file ``name`` of the run."""
        path = self.directory / name
        write_json(path, as_json(name, value))
        return path

    @property
    def wall_s(self) -> float:
        """Seconds of training, including those before the resumed checkpoint, without the time after training."""
        if self._wall_s_of_training is not None:
            return self._wall_s_of_training
        return self._wall_s_before + time.monotonic() - self._start

    def track(
        self,
        *,
        modules: Mapping[str, Any] | None = None,
        optimizers: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Register the parts that checkpoints contain (see :func:`save_checkpoint`): all that a step changes."""
        self._parts = {"modules": modules or {}, "optimizers": optimizers or {}, "state": state or {}}

    def steps(self, total: int, *, save_every: int | None = None) -> Iterator[int]:
        """Yield the numbers of the remaining steps, up to ``total``: from 1, or from the step after the checkpoint.

        In a resumed run, tracked objects and random generators are restored first, so build all objects before. A
        checkpoint is written after every ``save_every`` steps, after the last step, and after :meth:`request_save`. On
        SIGINT or SIGTERM the step is finished, a checkpoint is written, and the program exits with 128 + the number of
        the signal; a second signal ends the program immediately.

        Args:
            total: number of the last step.
            save_every: steps between checkpoints. Defaults to None: only after the last step.

        Raises:
            ValueError: if the run has done more steps than ``total``.
            NonFiniteError: instead of a checkpoint of networks that are not finite.
        """
        if total < self.step:
            raise ValueError(
                f"{self.directory} has done {self.step} steps already and cannot be shortened to {total}: ask for at "
                f"least {self.step}."
            )
        self._total = total
        if self.resumed_from is not None:
            self.resumed_from.restore(**self._parts, rng=True)
        if self.step < total:
            # A finished run that is extended is no longer finished.
            (self.directory / EVALUATION).unlink(missing_ok=True)
        name = self.directory.name
        with (
            guarding(self.guard),
            noted_signals() as signals,
            Progress(total, initial=self.step, description=name, enabled=self._show_progress) as self._progress,
        ):
            while self.step < total:
                self._metrics_now = {}
                self.step += 1
                yield self.step
                self._progress.update()
                due = self._save_requested or self.step == total
                if due or signals or (save_every and self.step % save_every == 0):
                    self.save()
                if signals:
                    _log.warning(
                        "Stopped by a signal after step %d; checkpoint written. Go on with --resume.",
                        self.step,
                    )
                    raise SystemExit(128 + signals[0])
        self._progress = None
        finished = self.resumed_from is not None and self.resumed_from.step == total
        self._wall_s_of_training = self._wall_s_before if finished else self.wall_s

    def due(self, every: int) -> bool:
        """Return whether this is the first step, the last step, or a multiple of ``every`` steps.

        Args:
            every: interval in steps, at least 1; 0 for never.
        """
        return bool(every) and (self.step == 1 or self.step % every == 0 or self.step == self._total)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log scalars at the current step and show them beside the progress."""
        values = as_scalars(metrics)
        self.guard.check_values(values)
        values |= self.guard.metrics()
        self._metrics_now |= values
        self.logger.log(self.step, values)
        if self._progress is not None:
            ends = ("_low", "_high")
            self._progress.show({name: value for name, value in values.items() if not name.endswith(ends)})

    def count_env_steps(self, data: Any) -> dict[str, Any]:
        """Count the executed steps of chunks ``[*B]``, of any shape; return the count and the seconds so far."""
        self.counters["env_steps"] = self.counters.get("env_steps", 0) + int(data["next", "steps_to_next_obs"].sum())
        return {"env_steps": self.counters["env_steps"], "wall_s": self.wall_s}

    def log_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Log an evaluation during training, and request a checkpoint after the step, which may be the best one."""
        self.log(metrics)
        self.request_save()

    def request_save(self) -> None:
        """Request a checkpoint after the current step, for example after an evaluation."""
        self._save_requested = True

    def save(self) -> Path:
        """Write the checkpoint of the current step, with the metrics that were logged at it.

        Raises:
            NonFiniteError: if a network is not finite. Nothing is written, and earlier checkpoints are kept.
        """
        self._save_requested = False
        doing = f"the checkpoint of step {self.step} is not written and those before are kept"
        require_finite_modules(self._parts["modules"], doing=doing)
        return self.checkpoints.save(
            self.step,
            config=self.config,
            task=self.task,
            actor_config=self.actor_config,
            counters=self.counters,
            metrics=self._metrics_now,
            metadata={"wall_s": self.wall_s, "module_configs": self.module_configs, "keep_best": self.keep_best},
            **self._parts,
        )

    def close(self) -> None:
        """Close the metrics."""
        self.logger.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close()
        if kind is not None and self._new and self.step == 0:
            # The run was refused before its first step: there is nothing to inspect or resume.
            shutil.rmtree(self.directory, ignore_errors=True)
