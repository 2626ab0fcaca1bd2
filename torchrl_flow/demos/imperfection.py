"""Demonstrations with flaws (noise, halts, early ends), some of which fail.

Offline learning with weighted data needs data of different quality. A share of the seeds gets such flaws, and the
resulting episodes are recorded whether they succeed or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from torchrl_flow.demos.motion import ActionTransform, Controller, Motion, play

__all__ = ["FlawedController", "Flaws", "Imperfection"]


@dataclass(frozen=True)
class Flaws:
    """Flaws of one demonstration.

    Args:
        noise: standard deviation of the error added to the actions of the arm, in units of the largest action. Errors
            of successive steps have the correlation ``FlawedController.memory``.
        stop_at: step at which the arm halts. Defaults to None: never.
        stop_steps: number of steps for which it halts.
        end_at: step before which the motion ends early. Defaults to None: never.
    """

    noise: float = 0.0
    stop_at: int | None = None
    stop_steps: int = 0
    end_at: int | None = None


@dataclass(frozen=True)
class Imperfection:
    """Flaws for a share of the motions; the draws depend only on the seed of the motion.

    Without ``inner``, the planner's own actions get the flaws. Actions must be relative (a delta or velocity control
    mode): a halt is zero actions with an unchanged gripper command.

    Args:
        inner: transform that makes the flawless motion, such as :class:`~torchrl_flow.demos.retiming.Retiming`.
        share: probability that a motion is flawed.
        max_noise: upper bound of the noise. The noise of a flawed motion is this value times a uniform number in [0.1,
            1]; see :class:`Flaws`.
        stop_probability: probability that a flawed motion halts, for 5 to 20 steps.
        end_probability: probability that a flawed motion ends early, after 20 to 90 % of its expected number of steps.

    Raises:
        ValueError: if an argument is out of range.
    """

    inner: ActionTransform | None = None
    share: float = 0.5
    max_noise: float = 0.5
    stop_probability: float = 0.5
    end_probability: float = 0.4

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("share", "stop_probability", "end_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if self.max_noise < 0:
            raise ValueError(f"max_noise must be at least 0, got {self.max_noise}.")

    def __call__(self, motion: Motion) -> np.ndarray | Controller:
        """Return the flawless motion, or a controller that adds flaws to it."""
        flawless = motion.actions if self.inner is None else self.inner(motion)
        rng = np.random.default_rng([motion.seed, 1])
        if rng.random() >= self.share:
            return flawless
        steps = _expected_steps(flawless, len(motion.actions))
        return FlawedController(flawless, self.draw(rng, steps), rng)

    def draw(self, rng: np.random.Generator, steps: int) -> Flaws:
        """Draw the flaws of a motion of about ``steps`` steps."""
        noise = self.max_noise * rng.uniform(0.1, 1)
        stops, ends = rng.random(2) < (self.stop_probability, self.end_probability)
        stop_at, stop_steps = int(rng.uniform(0.1, 0.9) * steps), int(rng.integers(5, 21))
        end_at = max(1, int(rng.uniform(0.2, 0.9) * steps))
        return Flaws(noise, stop_at if stops else None, stop_steps, end_at if ends else None)


class FlawedController:
    """Controller that adds flaws to the actions of another controller or of an array.

    The noise is not marked as a disturbance, since it imitates an imprecise demonstrator. Marks of the other controller
    are kept.

    Attributes:
        may_fail: True: the recorder keeps the episode even if it fails.
        perturbed: for each action given, whether the other controller marked it.
    """

    may_fail = True
    memory = 0.8
    """Correlation of the noise from step to step."""

    def __init__(self, motion: np.ndarray | Controller, flaws: Flaws, rng: np.random.Generator) -> None:
        self.flaws, self._rng = flaws, rng
        self._controller: Controller = play(motion) if isinstance(motion, np.ndarray) else motion
        self._error: np.ndarray | None = None
        self._last: np.ndarray | None = None
        self.perturbed: list[bool] = []

    def __call__(self, env: gymnasium.Env) -> np.ndarray | None:
        """Return the next action, or None when the motion is over."""
        flaws, step = self.flaws, len(self.perturbed)
        if flaws.end_at is not None and step >= flaws.end_at:
            return None
        if flaws.stop_at is not None and self._last is not None and 0 <= step - flaws.stop_at < flaws.stop_steps:
            self.perturbed.append(False)
            return np.append(np.zeros(len(self._last) - 1), self._last[-1]).astype(np.float32)
        action = self._controller(env)
        if action is None:
            return None
        self._last = np.asarray(action, dtype=np.float32)
        marks = getattr(self._controller, "perturbed", None)
        self.perturbed.append(bool(marks[-1]) if marks else False)
        arm = np.clip(self._last[:-1] + self._draw_error(len(self._last) - 1), -1, 1)
        return np.append(arm, self._last[-1]).astype(np.float32)

    def _draw_error(self, size: int) -> np.ndarray:
        fresh = self._rng.normal(size=size) * self.flaws.noise
        self._error = fresh if self._error is None else self.memory * self._error + np.sqrt(1 - self.memory**2) * fresh
        return self._error


def _expected_steps(motion: Any, default: int) -> int:
    """Return the length of a motion, or ``default`` if it has none."""
    return len(motion) if hasattr(motion, "__len__") else default
