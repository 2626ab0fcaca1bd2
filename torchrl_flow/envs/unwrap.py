"""Access to the environments and transforms inside a transformed environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torchrl.envs import EnvBase, Transform, TransformedEnv

__all__ = ["base_env", "find_transform", "layers"]

TransformT = TypeVar("TransformT", bound=Transform)


def layers(env: EnvBase) -> Iterator[EnvBase]:
    """Yield the environment and each environment below its transforms, down to the one without transforms."""
    yield env
    while isinstance(env, TransformedEnv):
        env = env.base_env
        yield env


def base_env(env: EnvBase) -> EnvBase:
    """Return the environment below all transforms, which holds the simulation's state; checkpoint this environment.

    The ``state_dict`` of a :class:`~torchrl.envs.TransformedEnv` holds only the transforms.
    """
    *_, innermost = layers(env)
    return innermost


def find_transform(env: EnvBase, kind: type[TransformT]) -> TransformT | None:
    """Return the outermost transform of a kind in an environment, nested ones included; None if there is none."""
    for layer in layers(env):
        for module in layer.transform.modules() if isinstance(layer, TransformedEnv) else ():
            if isinstance(module, kind):
                return module
    return None
