"""Configuration of a flow actor, and the function that builds the actor."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_flow.functional.checks import check_at_least
from torchrl_flow.functional.chunk import ChunkAlignment
from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.config import MAX_DEPTH, Config, dense_weights
from torchrl_flow.modules.observation.encoders import ObservationEncoder, PixelEncoder
from torchrl_flow.modules.observation.normalizer import Normalizer, NormalizerMode
from torchrl_flow.modules.velocity.concat_mlp import ShortCutVelocityConcatMLP
from torchrl_flow.modules.velocity.dit import ShortCutVelocityDiT
from torchrl_flow.modules.velocity.mlp import ShortCutVelocityMLP
from torchrl_flow.modules.velocity.unet import ShortCutVelocityUNet1D

VelocityNetwork = Literal["mlp", "concat_mlp", "unet", "dit"]
"""Name of a velocity network: MLP with FiLM, MLP of concatenated inputs, U-Net or transformer."""
Statistics = Mapping[str, Mapping[str, Tensor]]
"""Statistics of a data set: a mapping of statistic name to tensor for each key."""

__all__ = ["FlowActorConfig", "Statistics", "VelocityNetwork", "check_within_bounds", "make_flow_actor"]


@dataclasses.dataclass(frozen=True)
class FlowActorConfig(Config):
    """Configuration of a :class:`FlowActor` without its weights, as plain numbers and strings.

    Raises:
        ValueError: if neither ``state_dim`` nor ``pixels_size`` is given, a name is unknown, or a size is below 1 or
            above its limit (:class:`~torchrl_flow.modules.config.Config`).
    """

    limits: ClassVar[Mapping[str, int]] = {"depth": MAX_DEPTH}

    action_dim: int
    """A, size of one action."""
    state_dim: int | None = None
    """D, size of one state observation; None if the policy reads images only."""
    pixels_size: tuple[int, int] | None = None
    """Height and width of the RGB images; None if the policy reads the state only."""
    obs_horizon: int = 2
    """T, frames of history in an observation."""
    pred_horizon: int = 16
    """H, steps of a predicted chunk."""
    act_horizon: int = 8
    """H_a, executed steps of a chunk."""
    alignment: ChunkAlignment = "newest"
    """Whether a chunk starts at the newest or the oldest observation's step."""
    network: VelocityNetwork = "mlp"
    """The velocity network."""
    width: int = 256
    """Hidden width (both MLPs), token width (dit), or channels of the finest level (unet), doubled at each level."""
    depth: int = 3
    """Residual blocks (both MLPs), transformer blocks (dit), or levels (unet)."""
    dropout: float = 0.0
    """Dropout rate (mlp)."""
    max_steps: int = 16
    """M, steps of the finest ShortCut sampler; a power of two."""
    num_steps: int = 4
    """K, sampling steps; a power of two up to max_steps."""
    state_normalizer: NormalizerMode = "meanstd"
    """How states are normalised."""
    state_bound: float | None = 5.0
    """Bound on normalised states; None for none."""
    action_normalizer: NormalizerMode = "meanstd"
    """How actions are normalised."""
    state_noise: float = 0.0
    """Scale of the training noise on normalised states."""
    shift: int = 4
    """Largest random shift of images in training, in pixels."""
    pixel_features: int = 64
    """Features per frame of the image encoder."""
    pixel_channels: tuple[int, ...] = (32, 64, 64)
    """Channels of the image encoder's convolutions, each of which halves height and width; multiples of 8."""
    observation_key: str | tuple[str, ...] = "observation"
    """Entry of the states; a tuple if nested."""
    pixels_key: str | tuple[str, ...] = "pixels"
    """Entry of the images."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        for name in (
            "action_dim",
            "state_dim",
            "obs_horizon",
            "pred_horizon",
            "act_horizon",
            "width",
            "depth",
            "num_steps",
        ):
            check_at_least(name, 1 if getattr(self, name) is None else getattr(self, name), 1)
        if self.state_dim is None and self.pixels_size is None:
            raise ValueError("give state_dim, pixels_size or both: a policy must see something.")
        if self.network not in get_args(VelocityNetwork):
            raise ValueError(f"network must be one of {get_args(VelocityNetwork)}, got {self.network!r}.")

    @classmethod
    def of_batch(cls, batch: TensorDictBase, **fields: Any) -> FlowActorConfig:
        """Make a configuration with the sizes of observations and actions of a batch of demonstrations.

        Args:
            batch: ``observation`` ``[B, T, D]``, ``action_chunk`` ``[B, H, A]``, and ``pixels``
                ``[B, T, 3, height, width]`` if the policy reads images.
            **fields: other fields of the configuration.
        """
        pixels = batch.get("pixels", None)
        sizes: dict[str, Any] = {"pixels_size": None if pixels is None else tuple(pixels.shape[-2:])}
        sizes |= {"action_dim": batch["action_chunk"].shape[-1], "state_dim": batch["observation"].shape[-1]}
        return cls(**sizes, **fields)

    def _weights(self) -> int:
        frames, chunk = self.obs_horizon * (self.state_dim or 1), self.pred_horizon * self.action_dim
        if self.network == "unet":
            # The blocks at the coarsest level have the most channels.
            finest, coarsest = self.width, self.width * 2 ** (self.depth - 1)
            return self.action_dim * finest + (frames + coarsest) * coarsest
        return dense_weights([frames + chunk, self.width, chunk]) + self.depth * self.width**2


def _make_velocity_network(config: FlowActorConfig, cond_dim: int) -> nn.Module:
    sizes = (config.action_dim, config.pred_horizon, cond_dim)
    if config.network == "mlp":
        return ShortCutVelocityMLP(*sizes, width=config.width, depth=config.depth, dropout=config.dropout)
    if config.network == "concat_mlp":
        return ShortCutVelocityConcatMLP(*sizes, width=config.width, depth=config.depth)
    if config.network == "dit":
        return ShortCutVelocityDiT(*sizes, width=config.width, depth=config.depth)
    channels = [config.width * 2**level for level in range(config.depth)]
    return ShortCutVelocityUNet1D(*sizes, channels=channels)


def _normalizer(
    statistics: Statistics | None,
    key: str | tuple[str, ...],
    size: int,
    mode: NormalizerMode,
    bound: float | None = None,
) -> Normalizer:
    if statistics is None:
        return Normalizer(size, bound=bound)
    if key not in statistics:
        raise ValueError(f"statistics hold no {key!r}, only {sorted(map(str, statistics))}.")
    values: Any = statistics
    normalizer = Normalizer.from_statistics(values[key], mode=mode, bound=bound)
    if normalizer.loc.shape[0] != size:
        raise ValueError(f"the statistics of {key!r} have {normalizer.loc.shape[0]} dimensions, not {size}.")
    return normalizer


def make_flow_actor(
    config: FlowActorConfig,
    *,
    statistics: Statistics | None = None,
    action_low: Tensor | None = None,
    action_high: Tensor | None = None,
) -> FlowActor:
    """Build the flow actor of a configuration.

    Args:
        config: the configuration.
        statistics: statistics of the training data, ``{"observation": ..., "action": ...}``, each as
            :meth:`Normalizer.from_statistics` reads it. Those of the states are under ``config.observation_key``;
            :func:`~torchrl_flow.data.column_statistics` computes statistics of any entry. Defaults to None: normalisers
            are the identity until a state dict is loaded.
        action_low: lower bound of actions, ``[A]``. Defaults to -inf.
        action_high: upper bound of actions, ``[A]``. Defaults to inf.

    Returns:
        the actor, with the configuration as ``actor.config``.

    Raises:
        ValueError: if sizes do not fit together, or the actions of the statistics and the bounds differ in scale.

    Warns:
        UserWarning: if more than 1 % of the actions of the statistics lie outside the bounds.
    """
    pixel_encoder = state_shape = state_normalizer = None
    if config.pixels_size is not None:
        shape = (config.obs_horizon, 3, *config.pixels_size)
        pixel_encoder = PixelEncoder(shape, channels=config.pixel_channels, features=config.pixel_features)
    if config.state_dim is not None:
        state_shape = (config.obs_horizon, config.state_dim)
        state_normalizer = _normalizer(
            statistics, config.observation_key, config.state_dim, config.state_normalizer, config.state_bound
        )
    encoder = ObservationEncoder(
        state_shape=state_shape,
        pixel_encoder=pixel_encoder,
        state_normalizer=state_normalizer,
        state_noise=config.state_noise,
        shift=config.shift,
        state_key=config.observation_key,
        pixels_key=config.pixels_key,
    )
    # Unbounded sides are stored as infinities, so that every state dict of a configuration has the same entries.
    infinity = torch.full((config.action_dim,), torch.inf)
    actor = FlowActor(
        _make_velocity_network(config, encoder.out_features),
        encoder,
        act_horizon=config.act_horizon,
        obs_horizon=config.obs_horizon,
        action_normalizer=_normalizer(statistics, "action", config.action_dim, config.action_normalizer),
        alignment=config.alignment,
        num_steps=config.num_steps,
        max_steps=config.max_steps,
        action_low=-infinity if action_low is None else action_low,
        action_high=infinity if action_high is None else action_high,
    )
    check_within_bounds((statistics or {}).get("action", {}), action_low, action_high)
    actor.config = config
    return actor


def check_within_bounds(action: Mapping[str, Tensor], low: Tensor | None, high: Tensor | None) -> None:
    """Compare the quantiles of the demonstrated actions with the actor's action bounds.

    Args:
        action: statistics of the actions, with the entries ``q01`` and ``q99`` ``[A]``; others are not compared.
        low: lower bounds ``[A]``.
        high: upper bounds ``[A]``.

    Raises:
        ValueError: if a quantile exceeds the bounds by more than their whole range: the actions are in another unit.

    Warns:
        UserWarning: if a quantile exceeds the bounds by more than a thousandth of their range.
    """
    if low is None or high is None or not {"q01", "q99"} <= action.keys():
        return
    low, high = (bound.to(action["q01"].device) for bound in (low, high))
    excess = torch.maximum(low - action["q01"], action["q99"] - high) / (high - low)
    outside = (excess > 1e-3).nonzero().flatten().tolist()
    if not outside:
        return
    ranges = [
        f"{name} {[round(v, 4) for v in values[outside].tolist()]}"
        for name, values in (
            ("1 % quantiles", action["q01"]),
            ("99 % quantiles", action["q99"]),
            ("low", low),
            ("high", high),
        )
    ]
    text = (
        f"the actions of the data lie outside the environment's bounds in dimensions {outside}: {', '.join(ranges)}. "
        "The actor clamps its actions to the bounds. Scale the actions, or give the bounds of the controller with "
        "which the data were recorded."
    )
    if excess[outside].max() > 1:  # An excess above the whole range means different units, not outliers.
        raise ValueError(text)
    warnings.warn(text, stacklevel=3)
