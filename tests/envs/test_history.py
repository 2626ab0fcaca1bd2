"""Observation histories on their own; with chunks they are in the table of test_smdp.py."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from tests.envs._envs import ScriptedEnv
from torchrl_flow.envs.transforms import SMDPChunk, history, history_transforms

KEYS = ("observation", "pixels")
KINDS = {
    "unbatched": lambda: ScriptedEnv(0, pixels=True),
    "serial": lambda: SerialEnv(3, [partial(ScriptedEnv, row, pixels=True) for row in range(3)]),
    "locked": lambda: ScriptedEnv(0, (3,), pixels=True),
    "locked, ignores _step": lambda: ScriptedEnv(0, (3,), honours_step=False, pixels=True),
    "nested batch": lambda: ScriptedEnv(0, (2, 3), pixels=True),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("obs_horizon", [1, 3])
def test_shapes_and_specs(kind, obs_horizon):
    env = TransformedEnv(KINDS[kind](), Compose(*history_transforms(obs_horizon, KEYS)))
    check_env_specs(env)
    td = env.reset()
    batch = env.batch_size
    assert td["observation"].shape == env.observation_spec["observation"].shape == (*batch, obs_horizon, 4)
    assert td["pixels"].shape == env.observation_spec["pixels"].shape == (*batch, obs_horizon, 3, 2, 2)
    assert td["pixels"].dtype is env.observation_spec["pixels"].dtype is torch.uint8


@each_kind
def test_begins_with_the_first_frame_repeated(kind):
    env = TransformedEnv(KINDS[kind](), Compose(*history_transforms(3, KEYS)))
    td = env.reset(seed=5)
    assert (td["observation"][..., 3] == 5).all()  # of every frame
    td = env.step_mdp(env.rand_step(td))
    assert (td["observation"][..., 0] == torch.tensor([0, 0, 1])).all()
    again = env.reset(seed=6)  # a full reset forgets what was
    assert (again["observation"][..., 3] == 6).all()
    assert (again["pixels"] == 0).all()


@each_kind
@pytest.mark.parametrize("act_horizon", [None, 3])
def test_partial_resets(kind, act_horizon):
    # Frames are consecutive steps of one episode; images, of another type and rank, follow the states.
    chunk = [] if act_horizon is None else [SMDPChunk(act_horizon)]
    env = TransformedEnv(KINDS[kind](), Compose(*history_transforms(3, KEYS), *chunk))
    td = env.reset()
    resets = 0
    for _ in range(15):
        data, td = env.step_and_maybe_reset(env.rand_action(td))
        for frames in (data["next"], td):
            steps, episode = frames["observation"][..., 0], frames["observation"][..., 1]
            newest = steps[..., 2:]
            assert (steps == (newest + torch.tensor([-2, -1, 0])).clamp(min=0)).all()
            assert (episode == episode[..., :1]).all()
            assert (frames["pixels"][..., 0, 0, 0] == steps).all()
        done = data["next", "done"].squeeze(-1)
        assert (td["observation"][..., 0][done] == 0).all()
        resets += int(done.any() and not done.all())
    assert resets > 0 or kind == "unbatched"


def test_other_keys_and_ranks():
    env = ScriptedEnv(0, (2,))
    env.observation_spec = Composite(
        observation=Unbounded((2, 4)),
        success=env.observation_spec["success"],
        robot=Composite(grid=Unbounded((2, 5, 6)), pixels_wrist=Unbounded((2, 3, 2, 2)), shape=(2,)),
        shape=(2,),
    )

    def frames(make):
        def call(tensordict, **kwargs):
            out = make(tensordict, **kwargs)
            grid, image = torch.zeros(2, 5, 6), torch.zeros(2, 3, 2, 2)
            return out.set("robot", TensorDict({"grid": grid, "pixels_wrist": image}, [2]))

        return call

    env._reset, env._step = frames(env._reset), frames(env._step)
    keys = [("robot", "grid"), ("robot", "pixels_wrist")]
    env = TransformedEnv(env, Compose(*history_transforms(2, keys, feature_dims={("robot", "grid"): 2})))
    check_env_specs(env)
    td = env.rollout(3, break_when_any_done=False)
    assert td["robot", "grid"].shape == (2, 3, 2, 5, 6)
    assert td["robot", "pixels_wrist"].shape == (2, 3, 2, 3, 2, 2)
    assert td["observation"].shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: history_transforms(0), "obs_horizon must be at least 1, got 0"),
        (lambda: history_transforms(2, ()), "in_keys must name"),
        (lambda: history_transforms(2, feature_dims={"pixels": 3}), "feature_dims names"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_docstring():
    assert doctest.testmod(history).failed == 0


def test_a_history_of_one_frame_has_no_buffer():
    (only,) = history_transforms(1, ["observation"])
    assert type(only).__name__ == "UnsqueezeTransform"
    assert len(history_transforms(2, ["observation"])) == 2
