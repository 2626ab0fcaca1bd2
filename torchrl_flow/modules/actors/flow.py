"""The policy of every algorithm: a flow from noise to an action chunk, conditioned on the observation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_flow.functional.checks import check_at_least
from torchrl_flow.functional.chunk import ChunkAlignment, executed_slice
from torchrl_flow.functional.flow import euler_step, is_power_of_two
from torchrl_flow.modules.actors.exploration import draws_noise
from torchrl_flow.modules.observation.encoders import ObservationEncoder
from torchrl_flow.modules.observation.normalizer import Normalizer

if TYPE_CHECKING:
    from torchrl_flow.modules.actors.config import FlowActorConfig

__all__ = ["FlowActor"]


class FlowActor(TensorDictModuleBase):
    """Policy that samples action chunks by K Euler steps of a velocity network from given or drawn noise.

    It contains every step from raw observations to raw actions, normalisers included, so that its state dict is the
    whole policy. All algorithms of the library train or steer this class.

    Reads the encoder's observations ``[*B, T, ...]`` and, if present, ``noise`` ``[*B, H, A]``. Missing noise is drawn
    from N(0, I), or is zero if :func:`~torchrl_flow.modules.draws_noise` returns False. Writes ``action_chunk``
    ``[*B, H, A]``, the whole prediction, and ``action`` ``[*B, H_a, A]``, the slice to execute, both in the
    environment's units.

    Args:
        velocity_network: network ``(sample, timestep, step_size, global_cond) -> velocity``, with attributes
            ``pred_horizon``, ``action_dim`` and ``cond_dim``. If it has ``takes_several_samples = True``, it also gets
            several samples ``[B, N, H, A]`` for each observation.
        encoder: observation encoder with ``out_features == cond_dim``.

    Keyword Args:
        act_horizon: H_a, executed steps of a chunk.
        obs_horizon: T, frames of history.
        action_normalizer: normaliser of size A. Defaults to the identity.
        alignment: where the executed slice starts, ``"newest"`` (0) or ``"oldest"`` (``obs_horizon - 1``).
        num_steps: K, sampling steps; a power of two up to ``max_steps`` uses the trained step size, another K uses the
            instantaneous velocity and warns.
        max_steps: M, steps of the finest sampler of the ShortCut training.
        action_low: lower bound of actions, ``[A]``. Defaults to None: no clamp.
        action_high: upper bound of actions, ``[A]``. Defaults to None: no clamp.
        noise_key: key of the optional noise.
        chunk_key: key of the predicted chunk.
        action_key: key of the executed slice.

    Raises:
        ValueError: if sizes do not fit together, or ``action_low`` is not below ``action_high``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> config = FlowActorConfig(action_dim=3, state_dim=5, obs_horizon=2, pred_horizon=8, act_horizon=4)
        >>> actor = make_flow_actor(config)
        >>> data = actor(TensorDict(observation=torch.zeros(6, 2, 5), batch_size=[6]))
        >>> data["action_chunk"].shape, data["action"].shape
        (torch.Size([6, 8, 3]), torch.Size([6, 4, 3]))
    """

    action_low: Tensor | None
    action_high: Tensor | None

    def __init__(
        self,
        velocity_network: nn.Module,
        encoder: ObservationEncoder,
        *,
        act_horizon: int = 8,
        obs_horizon: int = 2,
        action_normalizer: Normalizer | None = None,
        alignment: ChunkAlignment = "newest",
        num_steps: int = 4,
        max_steps: int = 16,
        action_low: Tensor | None = None,
        action_high: Tensor | None = None,
        noise_key: NestedKey = "noise",
        chunk_key: NestedKey = "action_chunk",
        action_key: NestedKey = "action",
    ) -> None:
        self.noise_key, self.chunk_key, self.action_key = noise_key, chunk_key, action_key
        self.in_keys = list(encoder.in_keys)  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [chunk_key, action_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        self.velocity_network, self.encoder = velocity_network, encoder
        self.pred_horizon = int(velocity_network.pred_horizon)  # pyright: ignore[reportArgumentType]
        self.action_dim = int(velocity_network.action_dim)  # pyright: ignore[reportArgumentType]
        self.act_horizon, self.obs_horizon, self.alignment = act_horizon, obs_horizon, alignment
        if encoder.out_features != velocity_network.cond_dim:
            raise ValueError(
                f"the encoder gives {encoder.out_features} features but the velocity network's cond_dim is "
                f"{velocity_network.cond_dim}; build the network with cond_dim=encoder.out_features."
            )
        self.executed_slice = executed_slice(self.pred_horizon, act_horizon, obs_horizon, alignment)
        if max_steps < 2 or not is_power_of_two(max_steps):
            raise ValueError(f"max_steps must be a power of two and at least 2, got {max_steps}.")
        self.max_steps = max_steps
        self.num_steps = self.check_num_steps(num_steps)
        self.action_normalizer = action_normalizer or Normalizer(self.action_dim)
        for name, bound in (("action_low", action_low), ("action_high", action_high)):
            if bound is not None and bound.shape != (self.action_dim,):
                raise ValueError(f"{name} must have shape [{self.action_dim}], got {list(bound.shape)}.")
            self.register_buffer(name, None if bound is None else bound.detach().clone().float())
        if (
            action_low is not None
            and action_high is not None
            and not bool((action_low.cpu() < action_high.cpu()).all())
        ):
            raise ValueError(
                f"action_low must be below action_high, got {action_low.tolist()} and {action_high.tolist()}."
            )
        self.config: FlowActorConfig | None = None

    @property
    def noise_shape(self) -> torch.Size:
        """Shape ``[H, A]`` of one row's noise."""
        return torch.Size([self.pred_horizon, self.action_dim])

    def check_num_steps(self, num_steps: int) -> int:
        """Return K; below 1 it is a ValueError, and without a trained step size a warning."""
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        if not self._is_trained_step(num_steps):
            warnings.warn(
                f"num_steps={num_steps} is not a power of two up to max_steps={self.max_steps}: the network was "
                "not trained on that step size and is asked for instantaneous velocities (d = 0) instead.",
                stacklevel=3,
            )
        return num_steps

    def _is_trained_step(self, num_steps: int) -> bool:
        return is_power_of_two(num_steps) and num_steps <= self.max_steps

    def step_size(self, num_steps: int) -> float:
        """Return the network's step size input d for K steps; 0 for a K without a trained step size."""
        return 1.0 / num_steps if self._is_trained_step(num_steps) else 0.0

    def features(self, tensordict: TensorDictBase, *, augment: bool = False) -> Tensor:
        """Encode the observations of a batch of any shape, flattened, as features ``[B, C]``."""
        return self.encoder(*self.encoder.preprocess(tensordict, augment=augment))

    def velocity(self, features: Tensor, sample: Tensor, timestep: Tensor, step_size: Tensor | None = None) -> Tensor:
        """Return the velocity of normalised actions, in the shape of ``sample``.

        TorchRL's ``FlowMatchingPolicy`` (0.15) has ``velocity(observation, action, time)``. The order of the arguments
        is the same, but their meaning differs in three respects. ``features`` replace observations, because an encoder
        of images must run once per chunk, not once per Euler step. A ShortCut network also reads the step size.
        ``sample`` is in normalised units; TorchRL has no normaliser.

        Args:
            features: encoded observations ``[B, C]``.
            sample: points ``x_t``, ``[B, H, A]``, or N for each observation, ``[B, N, H, A]``, in normalised units.
            timestep: flow time ``[B]``.
            step_size: step size d, ``[B]``. Defaults to 0.
        """
        step_size = torch.zeros_like(timestep) if step_size is None else step_size
        network = self.velocity_network
        if sample.ndim == 3 or getattr(network, "takes_several_samples", False):
            return network(sample, timestep, step_size, features)
        repeated = (part.repeat_interleave(sample.shape[1], 0) for part in (timestep, step_size, features))
        return network(sample.flatten(0, 1), *repeated).view_as(sample)

    def sample_normalised(self, features: Tensor, noise: Tensor, *, num_steps: int | None = None) -> Tensor:
        """Map noise to action chunks of the same shape in normalised units, without clamping.

        Args:
            features: encoded observations ``[B, C]``.
            noise: starting points ``[B, H, A]``, or N for each observation, ``[B, N, H, A]``, in normalised units.
            num_steps: sampling steps K. Defaults to those of the actor.
        """
        num_steps = self.num_steps if num_steps is None else num_steps
        check_at_least("num_steps", num_steps, 1)
        times = torch.arange(num_steps, device=noise.device, dtype=noise.dtype) / num_steps
        velocity = self.velocities(features, times, self.step_size(num_steps))
        x = noise
        for i in range(num_steps):
            x = euler_step(x, velocity(x, i), 1.0 / num_steps)
        return x

    def velocities(self, features: Tensor, times: Tensor, step_size: float) -> Callable[[Tensor, int | None], Tensor]:
        """Return :meth:`velocity` at K times shared by all rows, as a function of points and time index.

        Without an index (``None``) points are ``[B, K, H, A]``, one per time.

        A network with a method ``steps`` computes terms of only the time or only the observation once.

        Args:
            features: encoded observations ``[B, C]``.
            times: flow times ``[K]``.
            step_size: step size d at all times.
        """
        network = self.velocity_network
        steps = getattr(network, "steps", None)
        # Hooks run only if the network itself is called.
        if steps is not None and not network._forward_hooks and not network._forward_pre_hooks:
            return steps(features, times, step_size)
        rows = features.shape[0]

        def velocity(sample: Tensor, i: int | None) -> Tensor:
            if i is not None:
                return self.velocity(features, sample, times[i].expand(rows), features.new_full((rows,), step_size))
            t = times.repeat(rows)
            points, repeated = sample.flatten(0, 1), features.repeat_interleave(len(times), 0)
            return self.velocity(repeated, points, t, torch.full_like(t, step_size)).view_as(sample)

        return velocity

    def sample(self, features: Tensor, noise: Tensor, *, num_steps: int | None = None) -> Tensor:
        """Sample like :meth:`sample_normalised`, but in the environment's units and within its bounds."""
        normalised = self.sample_normalised(features, noise, num_steps=num_steps)
        return self.clamp(self.action_normalizer.inverse(normalised))

    def clamp(self, chunk: Tensor) -> Tensor:
        """Clamp actions ``[*, A]`` to the bounds, if any."""
        if self.action_low is None and self.action_high is None:
            return chunk
        return chunk.clamp(self.action_low, self.action_high)

    def _noise(self, tensordict: TensorDictBase, batch: torch.Size, reference: Tensor) -> Tensor:
        shape = (*batch, *self.noise_shape)
        noise = tensordict.get(self.noise_key, None)
        if noise is not None:
            if tuple(noise.shape) != shape:
                raise ValueError(f"{self.noise_key!r} must have shape {list(shape)}, got {list(noise.shape)}.")
            return noise.to(reference.dtype)
        if not draws_noise():
            return reference.new_zeros(shape)
        return torch.randn(shape, device=reference.device, dtype=reference.dtype)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase, *, num_steps: int | None = None) -> TensorDictBase:
        """Write ``action_chunk`` and ``action``.

        Args:
            tensordict: batch of any shape ``[*B]``, see the class.
            num_steps: sampling steps K of this call. Defaults to those of the actor.

        Raises:
            ValueError: if a shape or the precision of the states does not fit, or ``num_steps`` is below 1.
        """
        if num_steps is not None:
            self.check_num_steps(num_steps)
        batch = self.encoder.batch_shape(tensordict)
        features = self.features(tensordict)
        noise = self._noise(tensordict, batch, features).reshape(-1, *self.noise_shape)
        chunk = self.sample(features, noise, num_steps=num_steps).reshape(*batch, *self.noise_shape)
        tensordict.set(self.chunk_key, chunk)
        tensordict.set(self.action_key, chunk[..., self.executed_slice, :])
        return tensordict
