"""Observation encoders: state, RGB, or both, over a history of frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_flow.modules.activation import Mish
from torchrl_flow.modules.observation.normalizer import Normalizer

__all__ = ["ObservationEncoder", "PixelEncoder", "SpatialSoftmax", "random_shift"]


def random_shift(pixels: Tensor, offsets: Tensor, *, padding: int) -> Tensor:
    """Shift each row's images by whole pixels and repeat the border: DrQ's augmentation.

    Args:
        pixels: ``[B, T, 3, h, w]``, any dtype. All frames of a row have the same shift.
        offsets: integers in [0, 2 padding], ``[B, 2]`` (vertical, horizontal); ``padding`` means no shift.
        padding: the largest shift, in pixels.

    References:
        Kostrikov et al., "Image Augmentation Is All You Need", https://arxiv.org/abs/2004.13649

    Examples:
        >>> import torch
        >>> image = torch.arange(4).view(1, 1, 1, 2, 2)
        >>> random_shift(image, torch.tensor([[2, 1]]), padding=1).flatten().tolist()
        [2, 3, 2, 3]
    """
    height, width = pixels.shape[-2:]
    rows = (torch.arange(height, device=pixels.device) + offsets[:, :1] - padding).clamp(0, height - 1)
    cols = (torch.arange(width, device=pixels.device) + offsets[:, 1:] - padding).clamp(0, width - 1)
    batch = torch.arange(pixels.shape[0], device=pixels.device)
    shifted = pixels.permute(0, 3, 4, 1, 2)[batch[:, None, None], rows[:, :, None], cols[:, None, :]]
    return shifted.permute(0, 3, 4, 1, 2)


class SpatialSoftmax(nn.Module):
    """Expected image coordinates, in [-1, 1], of each channel's softmax over space.

    References:
        Levine et al., "End-to-End Training of Deep Visuomotor Policies", https://arxiv.org/abs/1504.00702

    Examples:
        >>> import torch
        >>> heat = torch.zeros(1, 1, 3, 3)
        >>> heat[0, 0, 0, 2] = 100.0  # top right
        >>> SpatialSoftmax()(heat)
        tensor([[ 1., -1.]])
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[N, C, h, w]`` to ``[N, 2 C]``: all x, then all y."""
        height, width = features.shape[-2:]
        weight = features.flatten(-2).softmax(-1).unflatten(-1, (height, width))
        x = (weight.sum(-2) * torch.linspace(-1, 1, width, device=features.device)).sum(-1)
        y = (weight.sum(-1) * torch.linspace(-1, 1, height, device=features.device)).sum(-1)
        return torch.cat([x, y], -1)


class PixelEncoder(nn.Module):
    """A small convolutional network with GroupNorm and spatial softmax, applied to each frame of a history.

    Args:
        shape: ``(T, 3, h, w)`` of the uint8 history.

    Keyword Args:
        channels: channels of the stride-2 convolutions.
        num_keypoints: number of feature maps whose coordinates the spatial softmax computes.
        features: size of the output per frame.

    Raises:
        ValueError: if the shape is not that of RGB frames, or the frames are too small for the strides.

    Examples:
        >>> import torch
        >>> encoder = PixelEncoder((2, 3, 64, 64), features=16)
        >>> encoder(torch.zeros(5, 2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([5, 32])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: Sequence[int] = (32, 64, 64),
        num_keypoints: int = 32,
        features: int = 64,
    ) -> None:
        super().__init__()
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"shape must be (obs_horizon, 3, height, width), channels first, got {tuple(shape)}.")
        if min(shape[-2:]) < 4 * 2 ** len(channels):
            smallest = 4 * 2 ** len(channels)
            raise ValueError(
                f"images of {shape[-2]}x{shape[-1]} are too small for {len(channels)} stride-2 convolutions; the "
                f"smallest allowed side is {smallest}: give larger images or fewer channels."
            )
        self.shape = tuple(shape)
        layers: list[nn.Module] = []
        for c_in, c_out in zip([3, *channels[:-1]], channels):
            layers += [nn.Conv2d(c_in, c_out, 5, stride=2, padding=2), nn.GroupNorm(8, c_out), Mish()]
        layers += [nn.Conv2d(channels[-1], num_keypoints, 1), SpatialSoftmax()]
        self.conv = nn.Sequential(*layers)
        self.linear = nn.Linear(2 * num_keypoints, features)
        self.norm = nn.LayerNorm(features)
        self.out_features = shape[0] * features

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode uint8 histories ``[B, T, 3, h, w]`` as ``[B, T * features]``.

        Raises:
            ValueError: if shape or dtype do not fit.
        """
        if tuple(pixels.shape[1:]) != self.shape or pixels.dtype != torch.uint8:
            raise ValueError(
                f"pixels must be uint8 of shape [B, {', '.join(map(str, self.shape))}], got {pixels.dtype} of shape "
                f"{tuple(pixels.shape)}."
            )
        frames = pixels.flatten(0, 1).to(self.linear.weight.dtype) / 127.5 - 1.0
        return self.norm(self.linear(self.conv(frames))).unflatten(0, (-1, self.shape[0])).flatten(1)


class ObservationEncoder(nn.Module):
    """Encoder of a history of states, images, or both as one feature vector.

    :meth:`preprocess` normalises and augments, :meth:`forward` encodes. They are separate, so that several networks (a
    student and its averaged teacher, an actor and a critic) can read the same augmented observation.

    Keyword Args:
        state_shape: ``(T, D)`` of the state history; ``None`` without states.
        pixel_encoder: encoder of the image history; ``None`` without images.
        state_normalizer: normaliser of states, of size D. Defaults to the identity.
        state_noise: scale of the training noise on normalised states. Each row draws one amplitude
            ``|N(0, 1)| * state_noise`` and then Gaussian noise of that amplitude, the same for all frames.
        shift: largest random shift of images in training, in pixels.
        state_key: key of the states.
        pixels_key: key of the images.

    Raises:
        ValueError: if neither states nor images are given.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> encoder = ObservationEncoder(state_shape=(2, 3))
        >>> data = TensorDict(observation=torch.zeros(5, 2, 3), batch_size=[5])
        >>> encoder(*encoder.preprocess(data)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        *,
        state_shape: tuple[int, int] | None = None,
        pixel_encoder: PixelEncoder | None = None,
        state_normalizer: Normalizer | None = None,
        state_noise: float = 0.0,
        shift: int = 4,
        state_key: NestedKey = "observation",
        pixels_key: NestedKey = "pixels",
    ) -> None:
        super().__init__()
        if state_shape is None and pixel_encoder is None:
            raise ValueError("an ObservationEncoder needs state_shape, pixel_encoder or both; both are None.")
        if state_noise < 0 or shift < 0:
            raise ValueError(f"state_noise and shift must be at least 0, got {state_noise} and {shift}.")
        self.state_shape = state_shape
        self.pixel_encoder = pixel_encoder
        self.state_noise, self.shift = state_noise, shift
        self.state_key, self.pixels_key = state_key, pixels_key
        if state_shape is not None and state_normalizer is None:
            state_normalizer = Normalizer(state_shape[-1])
        self.state_normalizer = state_normalizer
        self.out_features = 0 if state_shape is None else state_shape[0] * state_shape[1]
        self.out_features += 0 if pixel_encoder is None else pixel_encoder.out_features

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys of the encoder's observations."""
        keys = [] if self.state_shape is None else [self.state_key]
        return keys if self.pixel_encoder is None else [*keys, self.pixels_key]

    def batch_shape(self, tensordict: TensorDictBase) -> torch.Size:
        """Return the batch shape ``[*B]`` that precedes the history dimension of the observations."""
        if self.state_shape is not None:
            return tensordict[self.state_key].shape[:-2]
        return tensordict[self.pixels_key].shape[:-4]

    def preprocess(self, tensordict: TensorDictBase, *, augment: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """Read the observations of a batch, flatten it to ``[B]``, normalise and, in training, augment them.

        Args:
            tensordict: batch with the ``in_keys``, each ``[*B, T, ...]``.
            augment: add the state noise and the random shift.

        Returns:
            ``(states [B, T, D], pixels [B, T, 3, h, w])``, ``None`` for an absent kind.

        Raises:
            KeyError: if an observation is missing.
            ValueError: if a shape does not fit, or states have a higher precision than the network.
        """
        states = pixels = None
        if self.state_shape is not None and self.state_normalizer is not None:
            states = self._flat(tensordict, self.state_key, self.state_shape)
            states = self.state_normalizer(states, repr(self.state_key))
            if augment and self.state_noise > 0:
                amplitude = states.new_empty(states.shape[0], 1, 1).normal_().abs() * self.state_noise
                states = states + amplitude * torch.randn_like(states[:, :1])
        if self.pixel_encoder is not None:
            pixels = self._flat(tensordict, self.pixels_key, self.pixel_encoder.shape)
            if augment and self.shift > 0:
                offsets = torch.randint(0, 2 * self.shift + 1, (pixels.shape[0], 2), device=pixels.device)
                pixels = random_shift(pixels, offsets, padding=self.shift)
        return states, pixels

    def _flat(self, tensordict: TensorDictBase, key: NestedKey, shape: tuple[int, ...]) -> Tensor:
        value = tensordict[key]
        if value.ndim < len(shape) or tuple(value.shape[-len(shape) :]) != shape:
            raise ValueError(
                f"{key!r} must have shape [*B, {', '.join(map(str, shape))}], where {shape[0]} is obs_horizon, got "
                f"{list(value.shape)}. The history has its own dimension, also where it holds one frame: "
                "make_chunk_env adds it to an environment, DemoReplayBuffer to demonstrations."
            )
        return value.reshape(-1, *shape)

    def forward(self, states: Tensor | None, pixels: Tensor | None) -> Tensor:
        """Encode the results of :meth:`preprocess` as features ``[B, C]``."""
        features = [] if states is None else [states.flatten(1)]
        if pixels is not None and self.pixel_encoder is not None:
            features.append(self.pixel_encoder(pixels))
        return torch.cat(features, -1)
