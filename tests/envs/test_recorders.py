"""The recorders of steps and frames: what they keep, and when they are off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import TransformedEnv

from tests.envs._envs import ScriptedEnv
from torchrl_flow.envs import FrameRecorder
from torchrl_flow.envs.transforms.executed_steps import free_root_steps
from torchrl_flow.envs.transforms.steps import StepRecorder

ROWS = 2


class RenderedEnv(ScriptedEnv):
    """A scripted env whose ``render`` returns ``images``, by default an image of each sub-environment's step."""

    images = "steps"

    def render(self):
        """Return the images."""
        if self.images != "steps":
            return self.images
        return self.t.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 2, 2, 3)


def recorded(recorder):
    env = TransformedEnv(RenderedEnv(0, (ROWS,)), recorder)
    return env, env.rand_action(env.reset())


def steps_of(recorder):
    return {key: [value[..., 0].flatten().tolist() for value in values] for key, values in recorder.stop().items()}


def test_step_recorder_is_off_until_the_first_reset_after_start():
    recorder = StepRecorder(["observation"], ["reward"])
    env, data = recorded(recorder)
    env.step(data)
    assert recorder.stop() == {}
    recorder.start()
    env.step(data)  # of an episode whose beginning was not recorded
    assert recorder.stop() == {}
    env.step(env.rand_action(env.reset()))
    assert recorder.stop() == {}  # stopped


def test_step_recorder_keeps_observations_actions_and_outcomes():
    recorder = StepRecorder(["observation"], ["reward"])
    env, _ = recorded(recorder)
    recorder.start()
    data = env.rand_action(env.reset())
    after = env.step(data)
    found = recorder.stop()
    assert torch.equal(
        torch.stack(found["observation"]), torch.stack([data["observation"], after["next", "observation"]])
    )
    assert [
        torch.equal(found["action"][0], data["action"]),
        torch.equal(found["reward"][0], after["next", "reward"]),
    ] == [
        True,
        True,
    ]


def test_a_whole_reset_starts_the_recording_again_and_a_partial_one_does_not():
    recorder = StepRecorder(["observation"], ["reward"])
    env, _ = recorded(recorder)
    recorder.start()
    after = env.step(env.rand_action(env.reset()))
    partial = after["next"].select("observation", "done", "terminated", "truncated")
    partial["_reset"] = torch.tensor([[True], [False]])
    env.reset(partial)
    assert len(recorder._recording.steps["observation"]) == 2
    env.reset()
    assert steps_of(recorder) == {"observation": [[0.0] * ROWS]}


def test_frame_recorder_keeps_the_reset_and_every_step_of_the_first_rows():
    recorder = FrameRecorder()
    env, data = recorded(recorder)
    assert recorder.stop() == []  # it was off
    recorder.start(rows=1)
    data = env.step(env.rand_action(env.reset()))
    partial = data["next"].select("observation", "done", "terminated", "truncated")
    partial["_reset"] = torch.tensor([[True], [False]])
    env.reset(partial)  # adds no frame
    frames = recorder.stop()
    assert [frame.shape for frame in frames] == [(1, 2, 2, 3)] * 2
    assert [int(frame.max()) for frame in frames] == [0, 1]
    assert all(frame.dtype == np.uint8 for frame in frames)


def test_a_render_that_returns_a_list_gives_an_image_of_each_row():
    recorder = FrameRecorder()
    env, _ = recorded(recorder)
    env.base_env.images = [np.full((2, 2, 3), value, np.uint8) for value in (7, 9)]
    recorder.start(rows=ROWS)
    env.reset()
    (frames,) = recorder.stop()
    assert frames[:, 0, 0, 0].tolist() == [7, 9]


@pytest.mark.parametrize("images", [None, [None, None], (np.zeros((2, 2, 3), np.uint8), None)])
def test_a_render_without_images_is_refused(images):
    recorder = FrameRecorder()
    env, _ = recorded(recorder)
    env.base_env.images = images
    recorder.start(rows=1)
    with pytest.raises(RuntimeError, match="returned no image"):
        env.reset()


def test_an_environment_without_render_is_refused():
    env = TransformedEnv(ScriptedEnv(0, (ROWS,)), recorder := FrameRecorder())
    env.reset()
    env.base_env.render = None
    recorder.start(rows=1)
    with pytest.raises(RuntimeError, match=r"needs an environment with a `render\(\)`"):
        env.reset()


def test_free_root_steps_copies_the_root_and_leaves_a_missing_one():
    steps = torch.ones(2, 1)
    data = free_root_steps(TensorDict(k=steps, batch_size=[2]), "k")
    assert torch.equal(data["k"], steps)
    assert data["k"] is not steps
    empty = TensorDict(batch_size=[2])
    assert "k" not in free_root_steps(empty, "k")
