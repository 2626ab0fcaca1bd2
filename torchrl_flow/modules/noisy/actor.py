"""A flow actor with noise in every sampling step: a stochastic policy with a known density."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.chain import LogProbReduction, chain_log_prob, chain_times
from torchrl_flow.modules.actors.exploration import draws_noise
from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.noisy.chain_normal import ChainNormal
from torchrl_flow.modules.noisy.explore_noise import ExploreNoiseNet

__all__ = ["NoisyFlowActor"]


class NoisyFlowActor(TensorDictModuleBase):
    """Policy that samples and scores noisy chains ``x_{k+1} ~ Normal(x_k + v(x_k, k/K, 1/K) / K, sigma_k)``.

    As a policy it reads the encoder's observations ``[*B, T, ...]`` and, if present, ``noise`` ``[*B, H, A]`` (the
    chain's start) and ``chain_noise`` ``[*B, K, H, A]`` (standard normal noise of the steps). Missing noise is drawn,
    or is zero if :func:`~torchrl_flow.modules.draws_noise` returns False, which gives the flow actor's own chunk. It
    writes ``action_chunk``, ``action``, and the chain ``("flow", "x")``, ``("flow", "x_next")`` ``[*B, K, H, A]`` in
    normalised units, with its log-probability ``("flow", "log_prob")`` ``[*B]``.

    As the actor network of TorchRL's policy-gradient losses (``ClipPPOLoss(actor, value)`` works with default keys) it
    provides :meth:`get_dist`, which reads observations and ``("flow", "x")`` and scores all K steps in one call of the
    network, on the time grid of sampling. The initial noise's density cancels in the ratio and is omitted. The losses'
    ``in_keys`` do not list ``("flow", "x")``: do not drop entries under ``"flow"`` from the batch.

    The chain runs in units of normalised actions and its points are not clamped. Without noise it therefore equals the
    flow actor's chain bit for bit, and every mean has a gradient. The environment's bounds apply only to the action, a
    function of the chain's end, and do not enter the density. ``mean_bound=1.0`` clamps every step's mean to [-1, 1],
    in both sampling and scoring. This suits actions normalised by minimum and maximum; with mean-std normalisation a
    clamped chain could not reach valid actions outside [-1, 1].

    Args:
        flow_actor: flow actor whose network is fine-tuned. It is shared, not copied.
        noise_net: network of the noise levels of the steps.

    Keyword Args:
        num_steps: sampling steps K. Defaults to those of the flow actor.
        log_prob_reduction: ``"mean"`` over K, H and A, or ``"sum"``; see
            :func:`~torchrl_flow.functional.chain_log_prob`.
        mean_bound: clamp the means of the steps to ``[-mean_bound, mean_bound]``; ``None`` for no clamp.
        train_encoder: let the policy's loss train the encoder.
        chain_noise_key: key of the optional noise of the steps.
        x_key: key of the points before each step.
        x_next_key: key of the points after each step.
        log_prob_key: key of the log-probability.

    Raises:
        ValueError: if actor and noise network do not fit together or an argument is outside its allowed range.

    References:
        Zhang et al., "ReinFlow", https://arxiv.org/abs/2505.22094

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, NoiseNetConfig, make_flow_actor, make_noise_net
        >>> flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=8, act_horizon=4))
        >>> actor = NoisyFlowActor(flow, make_noise_net(NoiseNetConfig(), flow))
        >>> with torch.no_grad():
        ...     data = actor(TensorDict(observation=torch.zeros(6, 2, 5), batch_size=[6]))
        >>> data["flow", "x_next"].shape, actor.get_dist(data).log_prob(data["flow", "x_next"]).shape
        (torch.Size([6, 4, 8, 3]), torch.Size([6]))
    """

    def __init__(
        self,
        flow_actor: FlowActor,
        noise_net: ExploreNoiseNet,
        *,
        num_steps: int | None = None,
        log_prob_reduction: LogProbReduction = "mean",
        mean_bound: float | None = None,
        train_encoder: bool = False,
        chain_noise_key: NestedKey = "chain_noise",
        x_key: NestedKey = ("flow", "x"),
        x_next_key: NestedKey = ("flow", "x_next"),
        log_prob_key: NestedKey = ("flow", "log_prob"),
    ) -> None:
        self.chain_noise_key = chain_noise_key
        self.x_key, self.x_next_key, self.log_prob_key = x_key, x_next_key, log_prob_key
        self.in_keys = list(flow_actor.in_keys)  # pyright: ignore[reportAttributeAccessIssue]
        written = [x_key, x_next_key, log_prob_key]
        self.out_keys = [*flow_actor.out_keys, *written]  # pyright: ignore[reportAttributeAccessIssue]
        # TorchRL's losses read their keys of the action and its log-probability from these attributes.
        self.dist_sample_keys, self.log_prob_keys = [x_next_key], [log_prob_key]
        super().__init__()
        wanted = (flow_actor.action_dim, flow_actor.pred_horizon, flow_actor.encoder.out_features)
        found = (noise_net.action_dim, noise_net.pred_horizon, noise_net.cond_dim)
        if wanted != found:
            raise ValueError(f"the actor has (action_dim, pred_horizon, cond_dim) {wanted}, the noise network {found}.")
        if log_prob_reduction not in ("mean", "sum"):
            raise ValueError(f"log_prob_reduction must be 'mean' or 'sum', got {log_prob_reduction!r}.")
        if mean_bound is not None and mean_bound <= 0:
            raise ValueError(f"mean_bound must be above 0 or None, got {mean_bound}.")
        self.flow_actor, self.noise_net = flow_actor, noise_net
        self.num_steps = flow_actor.check_num_steps(flow_actor.num_steps if num_steps is None else num_steps)
        self.log_prob_reduction: LogProbReduction = log_prob_reduction
        self.mean_bound, self.train_encoder = mean_bound, train_encoder

    def features(self, tensordict: TensorDictBase) -> Tensor:
        """Return encoded observations ``[B, C]`` of a batch of any shape; ``train_encoder`` enables their gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            return self.flow_actor.features(tensordict)

    def _velocities(self, features: Tensor, times: Tensor) -> Callable[[Tensor, int | None], Tensor]:
        return self.flow_actor.velocities(features, times, self.flow_actor.step_size(self.num_steps))

    def _mean(self, x: Tensor, velocity: Tensor) -> Tensor:
        """Return the means of steps from points, clamped to the bound if there is one."""
        mean = x + velocity * (1.0 / self.num_steps)
        return mean if self.mean_bound is None else mean.clamp(-self.mean_bound, self.mean_bound)

    def _times(self, reference: Tensor) -> Tensor:
        return chain_times(self.num_steps, device=reference.device, dtype=reference.dtype)

    def _chain_noise(self, tensordict: TensorDictBase, batch: torch.Size, reference: Tensor) -> Tensor | None:
        """Return the noise of the steps ``[B, K, H, A]``, or ``None`` for a chain without noise."""
        shape = (*batch, self.num_steps, *self.flow_actor.noise_shape)
        noise = tensordict.get(self.chain_noise_key, None)
        if noise is not None:
            if tuple(noise.shape) != shape:
                raise ValueError(f"{self.chain_noise_key!r} must have shape {list(shape)}, got {list(noise.shape)}.")
            return noise.to(reference.dtype).reshape(-1, *shape[len(batch) :])
        if not draws_noise():
            return None
        return torch.randn(shape, device=reference.device, dtype=reference.dtype).reshape(-1, *shape[len(batch) :])

    def sample_chain(
        self, features: Tensor, noise: Tensor, chain_noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the chain and return its points ``[B, K + 1, H, A]`` and the mean and standard deviation of each step.

        Args:
            features: encoded observations ``[B, C]``.
            noise: starting points ``[B, H, A]``.
            chain_noise: standard normal noise of the steps ``[B, K, H, A]``; ``None`` for a chain without noise.
        """
        times = self._times(features)
        sigma = self.noise_net(features, times)
        velocity = self._velocities(features, times)
        points, means = [noise], []
        for k in range(self.num_steps):
            means.append(self._mean(points[-1], velocity(points[-1], k)))
            points.append(means[-1] if chain_noise is None else means[-1] + sigma[:, k] * chain_noise[:, k])
        return torch.stack(points, 1), torch.stack(means, 1), sigma

    def get_dist(self, tensordict: TensorDictBase) -> ChainNormal:
        """Return the distribution of the chain's points given each step's start, for data of any shape ``[*B]``.

        Raises:
            ValueError: if the chain's shape is not ``[*B, K, H, A]``.
        """
        batch = self.flow_actor.encoder.batch_shape(tensordict)
        x = tensordict[self.x_key]
        shape = (*batch, self.num_steps, *self.flow_actor.noise_shape)
        if tuple(x.shape) != shape:
            raise ValueError(f"{self.x_key!r} must have shape [*B, K, H, A] = {list(shape)}, got {list(x.shape)}.")
        features = self.features(tensordict)
        times = self._times(features)
        points = x.reshape(-1, *shape[len(batch) :])
        mean = self._mean(points, self._velocities(features, times)(points, None))
        sigma = self.noise_net(features, times)
        return ChainNormal(mean.reshape(shape), sigma.reshape(shape), reduction=self.log_prob_reduction)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Sample a chain, and write the chain, the chunk and the executed slice.

        Raises:
            ValueError: if a shape does not fit.
        """
        flow = self.flow_actor
        batch = self.flow_actor.encoder.batch_shape(tensordict)
        features = self.features(tensordict)
        start = flow._noise(tensordict, batch, features)
        chain_noise = self._chain_noise(tensordict, batch, features)
        points, means, sigma = self.sample_chain(features, start.reshape(-1, *flow.noise_shape), chain_noise)
        chunk = flow.clamp(flow.action_normalizer.inverse(points[:, -1])).reshape(*batch, *flow.noise_shape)
        tensordict.set(flow.chunk_key, chunk)
        tensordict.set(flow.action_key, chunk[..., flow.executed_slice, :])
        x, x_next = points[:, :-1], points[:, 1:]
        log_prob = chain_log_prob(x_next, means, sigma, reduction=self.log_prob_reduction)
        tensordict.set(self.x_key, x.reshape(*batch, *x.shape[1:]))
        tensordict.set(self.x_next_key, x_next.reshape(*batch, *x.shape[1:]))
        return tensordict.set(self.log_prob_key, log_prob.reshape(batch))
