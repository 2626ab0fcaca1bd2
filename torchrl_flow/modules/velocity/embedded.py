"""Base class of velocity networks that add embeddings of the observation and of the time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchrl_flow.modules.velocity.embedding import check_velocity_inputs

__all__ = ["EmbeddedVelocity"]


class EmbeddedVelocity(nn.Module):
    """A velocity network of points and the sum of two embeddings, which are computed once for several points.

    A subclass sets the sizes below and defines the three methods that :meth:`forward` calls.
    """

    takes_several_samples = True
    action_dim: int
    pred_horizon: int
    cond_dim: int

    def embed_time(self, timestep: Tensor, step_size: Tensor) -> Tensor:
        """Embed times ``[B]`` and step sizes ``[B]`` as ``[B, E]``."""
        raise NotImplementedError

    def embed_observation(self, global_cond: Tensor) -> Tensor:
        """Embed encoded observations ``[B, C]`` as ``[B, E]``."""
        raise NotImplementedError

    def embedded_velocity(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """Return the velocity of points ``[B, H, A]`` or ``[B, N, H, A]`` for embeddings ``[B, E]``."""
        raise NotImplementedError

    def at_times(self, embedded: Tensor, cond: Tensor) -> Callable[[Tensor, int], Tensor]:
        """Return the velocity at one of K times, from embeddings of times ``[K, E]`` and observations ``[B, E]``.

        A subclass may compute here what does not depend on the points.
        """
        return lambda sample, i: self.embedded_velocity(sample, embedded[i] + cond)

    def forward(self, sample: Tensor, timestep: Tensor, step_size: Tensor, global_cond: Tensor) -> Tensor:
        """Return the velocity, in the shape of ``sample``.

        Args:
            sample: points ``x_t``, ``[B, H, A]``, or N for each observation, ``[B, N, H, A]``.
            timestep: flow time in [0, 1], ``[B]``.
            step_size: step size d in [0, 1], ``[B]``; 0 for the instantaneous velocity.
            global_cond: encoded observation, ``[B, C]``.

        Raises:
            ValueError: if a shape does not fit.
        """
        shape = (self.pred_horizon, self.action_dim, self.cond_dim)
        points = sample[:, 0] if sample.ndim == 4 else sample
        check_velocity_inputs(points, timestep, step_size, global_cond, shape=shape)
        embedding = self.embed_time(timestep, step_size) + self.embed_observation(global_cond)
        return self.embedded_velocity(sample, embedding)

    def steps(self, global_cond: Tensor, times: Tensor, step_size: float) -> Callable[[Tensor, int | None], Tensor]:
        """Return the velocity at K times shared by all rows; each embedding is computed once.

        Args:
            global_cond: encoded observation, ``[B, C]``.
            times: flow times, ``[K]``.
            step_size: step size d at all times.

        Returns:
            function of points and a time index: the velocity of points ``[B, H, A]`` or ``[B, N, H, A]`` at that time;
            for the index ``None``, the velocity of points ``[B, K, H, A]`` at all times.
        """
        embedded = self.embed_time(times, torch.full_like(times, step_size))
        cond = self.embed_observation(global_cond)

        at_time = self.at_times(embedded, cond)

        def velocity(sample: Tensor, i: int | None) -> Tensor:
            if i is not None:
                return at_time(sample, i)
            embedding = (embedded + cond.unsqueeze(1)).flatten(0, 1)
            return self.embedded_velocity(sample.flatten(0, 1), embedding).view_as(sample)

        return velocity
