"""Scripted demonstrators of the planar task with several levels of quality and two paths around the pillar."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from torchrl_flow.envs.counter_rng import counter_normal, counter_uniform, splitmix64
from torchrl_flow.envs.planar.dynamics import (
    CLOSURE,
    DISC,
    GOAL,
    GRIPPER,
    HELD,
    OPEN_GAP,
    PILLAR,
    SHUT_GAP,
    PlanarGeometry,
)

__all__ = ["DEMO_QUALITIES", "DemoStyle", "PlanarDemonstrator"]


@dataclass(frozen=True)
class DemoStyle:
    """Error rates and noise of a demonstrator.

    Attributes:
        noise: standard deviation of the (correlated) disturbance of dx and dy, in action units.
        aim_error: standard deviation of the first grasp's aim, in sides of the plane; halved at each retry.
        release_error: standard deviation of the position at which the disc is released, in sides of the plane.
        slowest: the lowest speed, in action units; each episode draws its speed between this and 1.
        wrong_gap: probability of trying the shut gap first.
        drop: probability of dropping the disc during transport.
        pause: probability of a pause.
        stop: probability that the recording ends early, at a random step.
        give_up: probability of ending the recording after a failure instead of retrying.
    """

    noise: float
    aim_error: float
    release_error: float
    slowest: float
    wrong_gap: float = 0.0
    drop: float = 0.0
    pause: float = 0.0
    stop: float = 0.0
    give_up: float = 0.0


_STYLES: dict[str, DemoStyle] = {
    "expert": DemoStyle(noise=0.08, aim_error=0.02, release_error=0.02, slowest=0.9),
    "medium": DemoStyle(0.2, 0.010, 0.012, 0.6, wrong_gap=0.1, drop=0.1, pause=0.3, stop=0.05, give_up=0.3),
    "poor": DemoStyle(0.4, 0.020, 0.025, 0.4, wrong_gap=0.35, drop=0.3, pause=0.6, stop=0.3, give_up=0.6),
}

#: Share of each style in the demonstrations of a quality.
DEMO_QUALITIES: dict[str, dict[str, float]] = {
    "expert": {"expert": 1.0},
    "medium": {"medium": 1.0},
    "poor": {"poor": 1.0},
    "mixed": {"expert": 0.1, "medium": 0.5, "poor": 0.4},
}
"""Qualities of the planar task's demonstrations, by name."""

_VIA, _REACH, _CLOSE, _ENTRY, _EXIT, _CARRY, _OPEN = range(7)
_VIA_CLEARANCE = 0.035
_GAP_CLEARANCE = 0.09
_CLOSE_ENOUGH = 0.012
_PASSED = 0.03
_BRAKING = 0.4
_BUMPS = 15  # steps spent at the shut gap
_NOISE_MEMORY = 0.7


class PlanarDemonstrator:
    """A batch of scripted demonstrators, one per episode, that act on the observed state.

    Each passes the pillar on a random side, grasps the disc, carries it through the open gap and releases it at the
    goal. All random numbers are functions of the episode's seed and step only.

    Args:
        seeds: int64 ``[B]``, one per episode.
        quality: a key of :data:`DEMO_QUALITIES`.
        geometry: sizes of the task.

    Raises:
        ValueError: for an unknown quality.

    Examples:
        >>> from torchrl_flow.envs import PlanarPickPlaceEnv
        >>> env = PlanarPickPlaceEnv(2)
        >>> demonstrator = PlanarDemonstrator(torch.tensor([0, 1]), quality="expert")
        >>> demonstrator(env.reset(seed=[0, 1])["observation"]).shape
        torch.Size([2, 3])
    """

    def __init__(self, seeds: Tensor, quality: str = "mixed", geometry: PlanarGeometry | None = None) -> None:
        if quality not in DEMO_QUALITIES:
            raise ValueError(f"quality must be one of {sorted(DEMO_QUALITIES)}, got {quality!r}.")
        self.geometry = geometry if geometry is not None else PlanarGeometry()
        # A different stream from that of the env's initial states.
        self._seeds = splitmix64(splitmix64(seeds) ^ 0x5DEECE66D)
        self._steps = 0
        self._draw_style(quality)
        zeros = torch.zeros_like(seeds)
        self._phase = zeros + _VIA
        self._bumps = zeros.clone()
        self._noise = zeros.new_zeros((*seeds.shape, 2), dtype=torch.float32)
        self._via = self._noise.clone()
        #: True where the demonstrator has stopped: the recording ends before this step's action.
        self.stopped = torch.zeros_like(seeds, dtype=torch.bool)

    def _draw_style(self, quality: str) -> None:
        """Draw the constants of an episode: style, side, speed, mistakes and their times."""
        u = counter_uniform(self._seeds, torch.zeros_like(self._seeds), 10)
        shares = DEMO_QUALITIES[quality]
        bounds = u.new_tensor(list(shares.values())).cumsum(0)
        chosen = torch.bucketize(u[:, 0].contiguous(), bounds[:-1], right=True)
        table = u.new_tensor([astuple(_STYLES[name]) for name in shares])
        style = table[chosen].unbind(-1)
        noise, aim, release, slowest, wrong_gap, drop, pause, stop, give_up = style
        self._noise_scale = noise.unsqueeze(-1)
        self.side = torch.where(u[:, 1] < 0.5, -1.0, 1.0)
        self._speed = (slowest + (1.0 - slowest) * u[:, 2]).unsqueeze(-1)
        self._wrong_gap = u[:, 3] < wrong_gap
        self._drop_x = torch.where(u[:, 4] < drop, 0.45 + 0.3 * u[:, 5], 2.0)
        pause_at = torch.where(u[:, 6] < pause, 50 * u[:, 7], 1e6)
        self._pause = (pause_at, pause_at + 8)
        self._stop_at = torch.where(u[:, 8] < stop, 15 + 40 * u[:, 7], 1e6)
        self._gives_up = u[:, 9] < give_up
        errors = counter_normal(self._seeds, torch.ones_like(self._seeds), 4)
        self._aim = errors[:, :2] * aim.unsqueeze(-1)
        self._release = errors[:, 2:] * release.unsqueeze(-1)

    def __call__(self, state: Tensor) -> Tensor:
        """Return actions ``[B, 3]`` for states ``[B, 12]``; call once per step, from the first state on."""
        if self._steps == 0:
            self._via = self._via_point(state)
        self._advance(state)
        point = torch.where((self._phase <= _CLOSE).unsqueeze(-1), state[:, GRIPPER], state[:, DISC])
        wanted = (self._target(state) - point) / self.geometry.max_step
        # Slows down for the two phases that need precision; via points are passed at full speed.
        precise = (self._phase == _REACH) | (self._phase == _CARRY)
        wanted = wanted * torch.where(precise, _BRAKING, 1.0).unsqueeze(-1)
        length = wanted.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        velocity = wanted * (self._speed / length).clamp_max(1.0)
        still = (self._steps >= self._pause[0]) & (self._steps < self._pause[1])
        still = (still | (self._phase == _OPEN) | (self._phase == _CLOSE)).unsqueeze(-1)
        velocity = torch.where(still, 0.0, velocity) + self._disturbance()
        grips = (self._phase >= _CLOSE) & (self._phase < _OPEN)
        grip = torch.where(grips, 1.0, -1.0).unsqueeze(-1)
        self._steps += 1
        return torch.cat([velocity.clamp(-1.0, 1.0), grip], dim=-1)

    def _disturbance(self) -> Tensor:
        """Return first-order autoregressive noise with the style's standard deviation."""
        fresh = counter_normal(self._seeds, torch.full_like(self._seeds, 2 + self._steps), 2)
        self._noise = _NOISE_MEMORY * self._noise + (1 - _NOISE_MEMORY**2) ** 0.5 * self._noise_scale * fresh
        return self._noise

    def _via_point(self, state: Tensor) -> Tensor:
        """Return the point at which to pass the pillar, on the drawn side of the line from gripper to disc."""
        along = torch.nn.functional.normalize(state[:, DISC] - state[:, GRIPPER], dim=-1)
        across = torch.stack([-along[:, 1], along[:, 0]], dim=-1)
        reach = self.geometry.pillar_radius + self.geometry.gripper_radius + _VIA_CLEARANCE
        return state[:, PILLAR] + across * (self.side * reach).unsqueeze(-1)

    def _target(self, state: Tensor) -> Tensor:
        """Return the current phase's target position of the gripper (before the grasp) or the disc (after it)."""
        gap_y = torch.where(self._wrong_gap, state[:, SHUT_GAP.start], state[:, OPEN_GAP.start])
        wall_x = torch.full_like(gap_y, self.geometry.wall_x)
        grasp = state[:, DISC] + self._aim
        entry = torch.stack([wall_x - _GAP_CLEARANCE, gap_y], dim=-1)
        leave = torch.stack([wall_x + _GAP_CLEARANCE, gap_y], dim=-1)
        drop = state[:, GOAL] + self._release
        targets = torch.stack([self._via, grasp, grasp, entry, leave, drop, drop], dim=1)
        return targets[torch.arange(len(targets), device=targets.device), self._phase]

    def _advance(self, state: Tensor) -> None:
        """Advance each demonstrator whose current phase is complete or has failed."""
        phase, geometry = self._phase, self.geometry
        held = state[:, HELD].squeeze(-1) > 0.5
        closure = state[:, CLOSURE].squeeze(-1)
        point = torch.where((phase <= _CLOSE).unsqueeze(-1), state[:, GRIPPER], state[:, DISC])
        distance = (self._target(state) - point).norm(dim=-1)
        precise = distance < _CLOSE_ENOUGH + 0.04 * self._noise_scale.squeeze(-1)
        passed = distance < _PASSED
        beyond = state[:, DISC.start] > geometry.wall_x

        missed = (phase == _CLOSE) & ~held & (closure >= 1.0)
        drops = held & (state[:, DISC.start] > self._drop_x) & (phase >= _ENTRY) & (phase < _OPEN)
        lost = (phase == _OPEN) & (closure <= 0.0)  # an episode that succeeds ends before this
        self._bumps = self._bumps + ((phase == _EXIT) & self._wrong_gap)
        barred = self._bumps >= _BUMPS
        failed = missed | lost | (barred & self._wrong_gap)
        self._wrong_gap = self._wrong_gap & ~barred
        self._drop_x = torch.where(drops, 2.0, self._drop_x)
        again = (missed | lost).unsqueeze(-1)
        self._aim = torch.where(again, self._aim / 2, self._aim)
        self._release = torch.where(again, self._release / 2, self._release)

        after = torch.where(beyond, _CARRY, _ENTRY)
        nexts = phase
        nexts = torch.where((phase == _VIA) & passed, _REACH, nexts)
        nexts = torch.where((phase == _REACH) & precise & (closure <= 0.0), _CLOSE, nexts)
        nexts = torch.where((phase == _CLOSE) & held, after, nexts)
        nexts = torch.where((phase == _ENTRY) & passed, _EXIT, nexts)
        nexts = torch.where((phase == _EXIT) & passed, _CARRY, nexts)
        nexts = torch.where(((phase == _CARRY) & precise) | drops, _OPEN, nexts)
        nexts = torch.where((phase == _EXIT) & barred & ~beyond & failed, _ENTRY, nexts)
        self._phase = torch.where(missed | lost, _REACH, nexts)
        self.stopped = self.stopped | (failed & self._gives_up) | (self._stop_at <= self._steps)
