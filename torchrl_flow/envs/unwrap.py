"""The environments inside of an environment with transforms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torchrl.envs import EnvBase, Transform, TransformedEnv

__all__ = ["base_env", "find_transform", "layers"]

TransformT = TypeVar("TransformT", bound=Transform)


def layers(env: EnvBase) -> Iterator[EnvBase]:
    """Yield the environment, the one below its transforms, and so on down to the one without transforms."""
    yield env
    while isinstance(env, TransformedEnv):
        env = env.base_env
        yield env


def base_env(env: EnvBase) -> EnvBase:
    """Return the environment below all transforms, which holds the state of the simulation and is what to checkpoint.

    A :class:`~torchrl.envs.TransformedEnv` has in its own ``state_dict`` the transforms alone.
    """
    *_, innermost = layers(env)
    return innermost


def find_transform(env: EnvBase, kind: type[TransformT]) -> TransformT | None:
    """Return the outermost transform of a kind among those of an environment, nested ones too; None where none is."""
    for layer in layers(env):
        for module in layer.transform.modules() if isinstance(layer, TransformedEnv) else ():
            if isinstance(module, kind):
                return module
    return None
