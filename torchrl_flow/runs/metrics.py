"""Metrics of a run in one tidy CSV file and, through TorchRL's loggers, in TensorBoard or W&B."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchrl.record.loggers import Logger, TensorboardLogger, WandbLogger

from torchrl_flow.runs.names import WandbMode
from torchrl_flow.util.files import csv_rows, read_text, write_text

__all__ = ["RunLogger", "read_metrics"]

_HEADER = ("step", "metric", "value")
_has_wandb = importlib.util.find_spec("wandb") is not None
_has_tensorboard = importlib.util.find_spec("tensorboard") is not None


class RunLogger:
    """Logger of the metrics of a run to ``metrics.csv`` and, optionally, to TensorBoard and W&B.

    ``metrics.csv`` is tidy, with one row per value (``step,metric,value``). It is complete after each call, and
    resuming removes later rows, so that the file of a resumed run equals that of an uninterrupted one.
    :class:`torchrl.record.loggers.CSVLogger` writes a file per scalar and only appends. For TensorBoard and W&B,
    TorchRL's loggers are used unchanged.

    Args:
        directory: directory of the run.
        resume_step: last finished step; rows of later steps are removed. None for a new run, whose directory must hold
            no metrics.
        tensorboard: write event files to ``directory/tensorboard``.
        wandb: ``"online"`` or ``"offline"`` (files in ``directory/wandb``), None for none. A resumed run continues
            under its old id.
        project: project of W&B.
        group: group of W&B.
        config: hyper-parameters of the run for W&B.

    Raises:
        ValueError: if ``wandb`` is unknown or the directory of a new run holds metrics.
        RuntimeError: if a package is missing. The error names the extra.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with RunLogger(directory) as logger:
        ...         logger.log(10, {"train/loss": 0.5})
        ...     read_metrics(logger.path)
        {'train/loss': ([10], [0.5])}
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        resume_step: int | None = None,
        tensorboard: bool = False,
        wandb: WandbMode | None = None,
        project: str = "torchrl_flow",
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if wandb not in (None, "online", "offline"):
            raise ValueError(f"wandb must be 'online', 'offline' or None, got {wandb!r}.")
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / "metrics.csv"
        if resume_step is None and self.path.exists():
            raise ValueError(f"{self.path} exists already: resume its run, or choose another directory.")
        _cut_back(self.path, -1 if resume_step is None else resume_step)
        self._file = self.path.open("ab", buffering=0)
        self.loggers: dict[str, Logger] = {}
        if tensorboard:
            self.loggers["tensorboard"] = self._open_tensorboard(resume_step)
        if wandb is not None:
            self.loggers["wandb"] = self._open_wandb(wandb, project, group)
            if config:
                self.loggers["wandb"].log_hparams(dict(config))

    def _open_tensorboard(self, resume_step: int | None) -> Logger:
        if not _has_tensorboard:
            raise RuntimeError(
                "tensorboard=True needs tensorboard, which the extra `plot` brings: pip install 'torchrl-flow[plot]'."
            )
        logger = TensorboardLogger(exp_name="tensorboard", log_dir=str(self.directory))
        if resume_step is not None:
            # A writer that starts with `purge_step` makes TensorBoard hide later values. TorchRL's logger has no
            # argument for it, but a closed writer opens its next file by its attributes.
            writer = logger.experiment
            writer.close()
            writer.purge_step = resume_step + 1
        return logger

    def _open_wandb(self, mode: WandbMode, project: str, group: str | None) -> Logger:
        if not _has_wandb:
            raise RuntimeError(f"wandb={mode!r} needs wandb: pip install 'torchrl-flow[wandb]'.")
        id_file = self.directory / "wandb_id.txt"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex[:12])
        return WandbLogger(
            exp_name=self.directory.resolve().name,
            log_dir=str(self.directory),
            offline=mode == "offline",
            project=project,
            group=group,
            id=id_file.read_text(encoding="utf-8").strip(),
            # Versions are in the config; the list of installed packages and their paths is private.
            log_env_packages=False,
        )

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write scalars measured at ``step``; tensors of one element are accepted too."""
        values = as_scalars(metrics)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows((step, name, repr(value)) for name, value in values.items())
        self._append(buffer.getvalue().encode("utf-8"))
        for logger in self.loggers.values():
            logger.log_metrics(values, step=step)

    def _append(self, rows: bytes) -> None:
        """Append rows to the file, all or none of them."""
        before, rest = os.fstat(self._file.fileno()).st_size, memoryview(rows)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(before)
            error.filename = str(self.path)
            raise

    def log_final(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of the final evaluation to TensorBoard and W&B, not to ``metrics.csv``."""
        values = as_scalars(metrics)
        for logger in self.loggers.values():
            logger.log_metrics(values, step=step)

    def log_video(self, step: int, name: str, path: str | Path, frames: np.ndarray) -> None:
        """Log a video, to W&B as its file and to TensorBoard as an animated image.

        Args:
            step: step of the run.
            name: name of the video.
            path: file of the video.
            frames: frames of the video, uint8 ``[T, h, w, 3]``.
        """
        if "wandb" in self.loggers:
            import wandb

            video = wandb.Video(str(path))
            self.loggers["wandb"].experiment.log({name: video, f"{name}_step": step})  # pyright: ignore[reportAttributeAccessIssue]
        if "tensorboard" in self.loggers:
            self._log_animation(step, name, frames)

    def _log_animation(self, step: int, name: str, frames: np.ndarray) -> None:
        """Write an animated GIF; torch's own ``add_video`` would require moviepy."""
        import imageio.v3
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        gif = imageio.v3.imwrite("<bytes>", frames, extension=".gif", loop=0, duration=50)
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        writer: Any = self.loggers["tensorboard"].experiment  # pyright: ignore[reportAttributeAccessIssue]
        writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        """Close every file and service."""
        self._file.close()
        tensorboard = self.loggers.pop("tensorboard", None)
        if tensorboard is not None:
            tensorboard.experiment.close()  # pyright: ignore[reportAttributeAccessIssue]
        wandb_logger = self.loggers.pop("wandb", None)
        if wandb_logger is not None:
            wandb_logger.experiment.finish()  # pyright: ignore[reportAttributeAccessIssue]

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return numbers and tensors of one element as floats, without autograd graph."""
    plain = {name: value.detach() if isinstance(value, Tensor) else value for name, value in metrics.items()}
    return {name: float(value) for name, value in plain.items()}


def _rows(path: Path) -> list[tuple[int, str, float]]:
    """Return the complete rows of a metrics file; a kill may have left an incomplete last one."""
    if not path.exists():
        return []
    *lines, rest = read_text(path).split("\n")
    del rest
    rows = []
    for number, row in enumerate(csv_rows(lines, path), start=1):
        if number == 1:
            if tuple(row) != _HEADER:
                raise ValueError(f"{path} is not a metrics file: its first line is {row}, not {list(_HEADER)}.")
            continue
        if len(row) != len(_HEADER):
            raise ValueError(f"{path}, line {number}: {len(row)} cells where there are {len(_HEADER)}.")
        try:
            rows.append((int(row[0]), row[1], float(row[2])))
        except ValueError:
            raise ValueError(f"{path}, line {number}: {row} must be a step, a metric and a number.") from None
    return rows


def _cut_back(path: Path, step: int) -> None:
    """Rewrite the file with its header and the rows up to ``step``."""
    rows = [row for row in _rows(path) if row[0] <= step]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows((step, name, repr(value)) for step, name, value in rows)
    write_text(path, text.getvalue())


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read ``metrics.csv`` as ``{metric: (steps, values)}``, in the order of first appearance.

    Raises:
        ValueError: if the file is not a metrics file.
    """
    metrics: dict[str, tuple[list[int], list[float]]] = {}
    for step, name, value in _rows(Path(path)):
        steps, values = metrics.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
    return metrics
