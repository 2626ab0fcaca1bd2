"""A recorder of the single steps of episodes, including steps inside chunks."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, Transform

from torchrl_flow.envs.unwrap import find_transform

__all__ = ["StepRecorder", "find_step_recorder"]

Steps = dict[NestedKey, list[Tensor]]
"""Values of each step by key, in order; observations have one more value, that of the reset."""


class _Recording:
    """State that a recorder shares with its clones, from which TorchRL builds the parents of later transforms."""

    def __init__(self) -> None:
        self.on = False
        self.steps: Steps = {}


class StepRecorder(Transform):
    """Recorder of observations, actions and outcomes of every environment step, including those inside a chunk.

    Placed before the observation history and :class:`~torchrl_flow.envs.SMDPChunk`, it records single steps, the
    content of a demonstration. It writes nothing to the TensorDict, and records nothing until :meth:`start`.

    Args:
        obs_keys: observations to keep.
        step_keys: entries below ``next`` to keep, in addition to the action.

    Keyword Args:
        action_key: key of the action.

    Examples:
        >>> recorder = StepRecorder(["observation"], ["reward"])
        >>> recorder.start()
        >>> recorder.stop()
        {}
    """

    def __init__(
        self, obs_keys: Sequence[NestedKey], step_keys: Sequence[NestedKey], *, action_key: NestedKey = "action"
    ) -> None:
        super().__init__(in_keys=[], out_keys=[])
        self.obs_keys, self.step_keys, self.action_key = list(obs_keys), list(step_keys), action_key
        self._recording = _Recording()

    def start(self) -> None:
        """Discard recorded steps and record from the next reset on."""
        self._recording.on, self._recording.steps = True, {}

    def stop(self) -> Steps:
        """Stop and return the entries by key: T + 1 observations ``[*B, ...]``, T values of other entries."""
        steps, self._recording.steps = self._recording.steps, {}
        self._recording.on = False
        return steps

    def _keep(self, tensordict: TensorDictBase, keys: Sequence[NestedKey]) -> None:
        for key in keys:
            self._recording.steps.setdefault(key, []).append(tensordict[key].clone())

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if self._recording.on and self._recording.steps:
            self._keep(tensordict, [self.action_key])
            self._keep(next_tensordict, [*self.obs_keys, *self.step_keys])
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        # A partial reset starts an episode that is not part of the recording: its rows continue past their ends.
        if self._recording.on and (tensordict is None or "_reset" not in tensordict):
            self._recording.steps = {}
            self._keep(tensordict_reset, self.obs_keys)
        return tensordict_reset

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return ``tensordict`` unchanged: outside an environment there are no steps."""
        return tensordict


def find_step_recorder(env: EnvBase) -> StepRecorder | None:
    """Return the recorder among the transforms of ``env``, or None."""
    return find_transform(env, StepRecorder)
