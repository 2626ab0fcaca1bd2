"""A progress bar with rate, ETA and the latest metrics."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["Progress", "in_notebook"]


def in_notebook() -> bool:
    """Return whether this runs in a notebook with widgets: Jupyter or Colab, but not an IPython terminal."""
    # A program that did not start from IPython has not imported it; an import here is not needed.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    if shell is None:
        return False
    return "IPKernelApp" in getattr(shell, "config", {}) or "google.colab" in type(shell).__module__


class Progress:
    """Progress of a loop: a bar on a terminal or in a notebook, occasional plain lines elsewhere.

    A log file or a CI page gets one line every ``interval`` seconds and one at the end, without carriage returns.

    Args:
        total: number of steps.
        initial: steps of the resumed earlier run. They count for the bar but not for the rate.
        description: name of the loop.
        unit: unit of a step.
        enabled: False for no output.
        interval: seconds between two lines if the stream is not a terminal.
        stream: stream to write to. Defaults to standard error.

    Examples:
        >>> with Progress(3, description="train", enabled=False) as progress:
        ...     for _ in range(3):
        ...         progress.update(loss=0.5)
        >>> progress.done
        3
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        description: str = "",
        unit: str = "it",
        enabled: bool = True,
        interval: float = 30.0,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.initial, self.done = total, initial, initial
        self.description, self.unit, self.interval = description, unit, interval
        self.enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._metrics: dict[str, float] = {}
        self._start = self._last_line = time.monotonic()
        self._bar = None
        if enabled and stream is None and in_notebook():
            self._bar = self._notebook_bar()
        elif enabled and self._stream.isatty():
            self._bar = tqdm(**self._options(), file=self._stream, dynamic_ncols=True)

    def _options(self) -> dict[str, Any]:
        return {"total": self.total, "initial": self.initial, "desc": self.description, "unit": self.unit}

    def _notebook_bar(self) -> Any:
        """Return a widget, or a text bar if ipywidgets is not installed."""
        from tqdm import notebook

        try:
            return notebook.tqdm(**self._options())
        except ImportError:
            return tqdm(**self._options(), file=self._stream, ncols=100)

    def update(self, steps: int = 1, **metrics: float) -> None:
        """Count ``steps`` more and show ``metrics`` from now on."""
        self.done += steps
        self._metrics.update(metrics)
        if self._bar is not None:
            if metrics:
                self._bar.set_postfix_str(self._metrics_text(), refresh=False)
            self._bar.update(steps)
        elif self.enabled and time.monotonic() - self._last_line >= self.interval:
            self._write_line()

    def show(self, metrics: Mapping[str, float]) -> None:
        """Show ``metrics`` from now on, without counting a step."""
        self.update(0, **{name.rsplit("/", 1)[-1]: value for name, value in metrics.items()})

    def close(self) -> None:
        """Write the last state and release the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self.enabled:
            self._write_line()
        self.enabled = False

    def _metrics_text(self) -> str:
        return ", ".join(f"{name}={value:.4g}" for name, value in self._metrics.items())

    def _write_line(self) -> None:
        now = time.monotonic()
        self._last_line = now
        elapsed = now - self._start
        rate = (self.done - self.initial) / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.description}: {self.done}/{self.total} {self.unit}", f"{rate:.3g} {self.unit}/s"]
        if self.done < self.total and rate > 0:
            parts.append(f"{tqdm.format_interval((self.total - self.done) / rate)} left")
        else:
            parts.append(f"{tqdm.format_interval(elapsed)} elapsed")
        if self._metrics:
            parts.append(self._metrics_text())
        self._stream.write(", ".join(parts) + "\n")
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
