"""The environments inside of an environment with transforms."""

from __future__ import annotations

from collections.abc import Iterator

from torchrl.envs import EnvBase, TransformedEnv

__all__ = ["base_env", "layers"]


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
