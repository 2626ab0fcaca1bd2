"""Environments whose observations include the features of a frozen encoder."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorSpec, Unbounded
from torchrl.envs import EnvBase, Transform

from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.modules import FEATURES_KEY, FlowActor, write_features

__all__ = ["append_features"]


class _Features(Transform):
    """Transform that encodes an env's observations, also at resets."""

    def __init__(self, actor: FlowActor) -> None:
        super().__init__(in_keys=list(actor.encoder.in_keys), out_keys=[FEATURES_KEY])
        # Not a submodule: the actor's weights are not part of the env's state.
        self.__dict__["_actor"] = actor

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        actor: FlowActor = self.__dict__["_actor"]
        observed, device = next_tensordict.select(*self.in_keys), next(actor.parameters()).device
        features = write_features(actor, observed.to(device))[FEATURES_KEY]
        return next_tensordict.set(FEATURES_KEY, features.to(observed[self.in_keys[0]].device))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Any) -> TensorSpec:
        shape = torch.Size([*observation_spec.shape, 1, self.__dict__["_actor"].encoder.out_features])
        observation_spec[FEATURES_KEY] = Unbounded(shape, device=observation_spec.device)
        return observation_spec


def append_features(env: Any, actor: FlowActor) -> Any:
    """Add the features ``[*B, 1, C]`` of a frozen encoder to the observations of an environment.

    They are entry :data:`~torchrl_flow.modules.FEATURES_KEY`, which :func:`~torchrl_flow.modules.flow_on_features`
    reads. Rollouts then need not store the observations, and each observation is encoded once. In an environment of
    :func:`make_chunk_env` the observation at the end of a chunk is encoded.

    Args:
        env: ``TransformedEnv``, which is changed in place, or :class:`~torchrl_flow.envs.CollectorEnvs`, whose
            processes get a copy of the encoder on the CPU.
        actor: flow actor. In this process it is shared, not copied; its encoder gets no gradient.

    Returns:
        ``env``, or the new :class:`~torchrl_flow.envs.CollectorEnvs`.
    """
    if isinstance(env, CollectorEnvs):
        frozen = copy.deepcopy(actor).to("cpu").requires_grad_(False)
        return dataclasses.replace(env, make=functools.partial(_make_with_features, env.make, frozen))
    env.append_transform(_Features(actor))
    return env


def _make_with_features(make: Callable[[], EnvBase], actor: FlowActor) -> EnvBase:
    return append_features(make(), actor)
