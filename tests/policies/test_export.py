"""Exported policies act as the policies do, in a process that cannot import this library, TorchRL or TensorDict."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.checkpoint import CheckpointError
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_flow.commands.export import ExportArgs
from torchrl_flow.modules import (
    CriticConfig,
    FlowActorConfig,
    LatentPolicyConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    StateValueConfig,
    SteeredFlowActor,
    make_flow_actor,
    make_latent_policy,
    make_noise_net,
    make_state_value,
)
from torchrl_flow.policies import (
    LATENT_POLICY,
    ExportedPolicy,
    RecedingHorizon,
    aw_flow_modules,
    export_policy,
    exported_policy,
    make_aw_flow_loss,
    make_aw_flow_stepper,
)
from torchrl_flow.policies.acting import policy_kind
from torchrl_flow.runs import load_checkpoint, save_checkpoint

HORIZONS = {"obs_horizon": 2, "pred_horizon": 6, "act_horizon": 3}
SMALL = {"action_dim": 3, "width": 16, "depth": 1, "num_steps": 2, **HORIZONS}
FORMS = {
    "state": FlowActorConfig(state_dim=5, **SMALL),
    "nested key, oldest first": FlowActorConfig(
        state_dim=5, observation_key=("robot", "state"), alignment="oldest", **SMALL
    ),
    "images": FlowActorConfig(pixels_size=(32, 32), **SMALL),
    "state and images": FlowActorConfig(state_dim=5, pixels_size=(32, 32), **SMALL),
}


def make_flow(config):
    torch.manual_seed(0)
    flow = make_flow_actor(config, action_low=-0.5 * torch.ones(3), action_high=torch.full((3,), 0.9))
    # Units of the environment that differ from those of the network, so that a lost normaliser is seen.
    flow.action_normalizer.loc.fill_(0.2)
    flow.action_normalizer.scale.fill_(0.7)
    if flow.encoder.state_normalizer is not None:
        flow.encoder.state_normalizer.loc.fill_(3.0)
        flow.encoder.state_normalizer.scale.fill_(2.0)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow.eval()


def save(path, flow, policy=None, *, modules=None, module_configs=None):
    parts = {"policy": flow, **({} if policy is None else {LATENT_POLICY: policy})}
    configs = {} if policy is None else {LATENT_POLICY: policy.config.to_dict()}
    configs = configs if module_configs is None else module_configs
    save_checkpoint(
        path,
        modules=parts if modules is None else modules,
        actor_config=flow.config,
        task={"task": "toy"},
        counters={"step": 7},
        metadata={"module_configs": configs},
    )
    return path


def observations(flow, rows):
    generator, data = torch.Generator().manual_seed(1), TensorDict(batch_size=[rows])
    for key in flow.in_keys:
        shape = flow.encoder.state_shape if key == flow.encoder.state_key else flow.encoder.pixel_encoder.shape
        value = 3 + 2 * torch.randn(rows, *shape, generator=generator)
        data[key] = value if key == flow.encoder.state_key else (40 * value).clamp(0, 255).to(torch.uint8)
    return data


def named(data, keys):
    return {".".join(key) if isinstance(key, tuple) else key: data[key].numpy() for key in keys}


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchrl_flow", "torchrl", "tensordict", "gymnasium", "h5py"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import numpy as np
from exported_policy import ExportedPolicy, RecedingHorizon
data = dict(np.load("data.npz"))
noise = data.pop("noise")
policy = ExportedPolicy("policy.pt2")
out = {"action": policy.chunk(data, noise), "chunk": policy.chunk(data, noise, whole=True)}
control = RecedingHorizon(policy, noise_scale=0)
out["acted"] = np.stack([control({k: v[t, -1] for k, v in data.items()}) for t in range(5)])
np.savez("out.npz", calls=control.calls, **out)
"""


def act_elsewhere(folder, data, noise):
    """What the helper beside the archive does in a process of its own."""
    np.savez(folder / "data.npz", noise=noise.numpy(), **data)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKED], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "out.npz"))


def receding(actor, data, steps=5):
    """The same control by hand, without noise."""
    flow = actor.flow if isinstance(actor, SteeredFlowActor) else actor
    actions, history = [], None
    for t in range(steps):
        frame = {key: data[key][t, -1] for key in actor.in_keys}
        history = [frame] * flow.obs_horizon if history is None else [*history[1:], frame]
        if t % flow.act_horizon == 0:
            seen = TensorDict(batch_size=[])
            for key in actor.in_keys:
                seen[key] = torch.stack([frame[key] for frame in history])
            seen[actor.noise_key] = torch.zeros(actor.noise_shape)
            with torch.no_grad():
                chunk = actor(seen)["action"]
        actions.append(chunk[t % flow.act_horizon])
    return torch.stack(actions).numpy()


def compare(actor, folder, acting=None):
    """Compare the archive with an actor, or with another module ``acting`` that acts as it does."""
    data, noise = observations(actor.flow if isinstance(actor, SteeredFlowActor) else actor, 5), None
    noise = torch.randn(5, *actor.noise_shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = (actor if acting is None else acting)(data.clone().set(actor.noise_key, noise))
    found = act_elsewhere(folder, named(data, actor.in_keys), noise)
    assert wanted["action_chunk"].std() > 0.05
    np.testing.assert_allclose(found["action"], wanted["action"].numpy(), atol=1e-6)
    np.testing.assert_allclose(found["chunk"], wanted["action_chunk"].numpy(), atol=1e-6)
    np.testing.assert_allclose(found["acted"], receding(actor, data), atol=1e-6)
    assert found["calls"] == 2
    assert found["action"].min() >= -0.5
    assert found["action"].max() <= np.float32(0.9)


@pytest.mark.parametrize("form", FORMS)
def test_a_flow_acts_without_the_library(form, tmp_path):
    flow = make_flow(FORMS[form])
    path = export_policy(save(tmp_path / "checkpoint.torchrl", flow), tmp_path / "out" / "policy.pt2")
    assert sorted(file.name for file in path.parent.iterdir()) == ["exported_policy.py", "policy.pt2"]
    compare(flow, path.parent)


@pytest.mark.parametrize(
    "changes", [{"steer_mode": "tied", "latent_bound": 2.0}, {"steer_mode": "act_horizon"}, {"prior_mixing": True}]
)
def test_a_steered_flow_acts_without_the_library(changes, tmp_path):
    flow = make_flow(FORMS["state"])
    policy = make_latent_policy(LatentPolicyConfig(hidden_sizes=(16,), **changes), flow)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = export_policy(save(tmp_path / "checkpoint.torchrl", flow, policy), tmp_path / "policy.pt2")
    compare(SteeredFlowActor(policy.eval(), flow), path.parent)


def test_a_steered_flow_on_features_of_images(tmp_path):
    flow = make_flow(FORMS["images"])
    policy = make_latent_policy(LatentPolicyConfig(hidden_sizes=(16,), on_features=True), flow)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = export_policy(save(tmp_path / "checkpoint.torchrl", flow, policy), tmp_path / "policy.pt2")
    compare(SteeredFlowActor(policy.eval(), flow), path.parent)


def test_a_wrong_observation_moves_nothing(tmp_path):
    config = FlowActorConfig(state_dim=5, **SMALL | {"obs_horizon": 1})
    path = export_policy(save(tmp_path / "checkpoint.torchrl", make_flow(config)), tmp_path / "policy.pt2")
    policy = ExportedPolicy(path)
    control, state = RecedingHorizon(policy, noise_scale=0), np.zeros(5)
    first = control(state)
    with pytest.raises(ValueError, match=r"^observation must have shape \[5\] at each step, got \[1, 5\]\.$"):
        control(state[None])
    with pytest.raises(ValueError, match=r"^observation must be finite, got nan at index \[3\]: check the sensor\.$"):
        control(np.array([0, 0, 0, np.nan, np.inf]))
    with pytest.raises(ValueError, match=r"^observation must be finite, got -inf at index \[0, 0, 1\]"):
        policy.chunk({"observation": np.array([[[0, -np.inf, 0, 0, 0]]])})
    again = RecedingHorizon(policy, noise_scale=0)
    assert first.shape == (3,)
    np.testing.assert_array_equal(control(state), [again(state), again(state)][1])
    assert control.calls == 1


@pytest.mark.parametrize("num_steps", [None, 4])
def test_a_flow_after_reinflow(num_steps, tmp_path):
    """The chain without its noise: what the noisy policy does where it does not explore."""
    flow, noise, values = make_flow(FORMS["state"]), NoiseNetConfig(), StateValueConfig((8,))
    noisy = NoisyFlowActor(flow, make_noise_net(noise, flow), num_steps=num_steps).eval()
    modules = {"policy": flow, "noise_net": noisy.noise_net, "value": make_state_value(values, flow)}
    configs = {"noise_net": noise.to_dict(), "value": values.to_dict()}
    checkpoint = save(tmp_path / "checkpoint.torchrl", flow, modules=modules, module_configs=configs)
    assert policy_kind(load_checkpoint(checkpoint)).name == "noisy flow"
    path = export_policy(checkpoint, tmp_path / "policy.pt2", num_steps=num_steps)
    flow.num_steps = noisy.num_steps
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        compare(flow, path.parent, acting=noisy)


def test_a_flow_after_awsc(tmp_path):
    """The averaged policy, which evaluation and the robot use, and not the one that is trained."""
    critic = CriticConfig(num_qs=2, hidden_sizes=(8,))
    loss_module = make_aw_flow_loss(make_flow(FORMS["state"]), critic)
    make_aw_flow_stepper(loss_module, lr=1e-3, critic_lr=1e-3, tau=0.01, ema=0.99)  # It makes the average.
    with torch.no_grad():
        for parameter in loss_module.actor_parameters():
            parameter.add_(1.0)
    average, trained = loss_module.ema_actor().eval(), loss_module.actor_network
    parts = {"modules": aw_flow_modules(loss_module), "module_configs": {"critic": critic.to_dict()}}
    checkpoint = save(tmp_path / "checkpoint.torchrl", make_flow(FORMS["state"]), **parts)
    assert policy_kind(load_checkpoint(checkpoint)).name == "weighted flow"
    path = export_policy(checkpoint, tmp_path / "policy.pt2")
    compare(average, path.parent)
    seen = observations(average, 2).set("noise", torch.zeros(2, *average.noise_shape))
    with torch.no_grad():
        assert not torch.allclose(trained(seen.clone())["action"], average(seen)["action"], atol=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_program(tmp_path):
    flow = make_flow(FORMS["state"])
    path = export_policy(save(tmp_path / "checkpoint.torchrl", flow), tmp_path / "policy.pt2", compile=True)
    compare(flow, path.parent)
    with pytest.raises(ValueError, match="was compiled for cpu"):
        ExportedPolicy(path, "cuda")


class TestHelper:
    @pytest.fixture(scope="class")
    def policy(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("helper")
        flow = make_flow(FORMS["state"])
        return ExportedPolicy(export_policy(save(folder / "c.torchrl", flow), folder / "policy.pt2", num_steps=4))

    def test_it_imports_torch_and_numpy_alone(self):
        tree = ast.parse(Path(exported_policy.__file__).read_text(encoding="utf-8"))
        names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        tops = {name.split(".")[0] for name in names}
        assert tops - set(sys.stdlib_module_names) == {"torch", "numpy"}

    def test_what_the_archive_tells(self, policy):
        told = policy.description
        assert (told["kind"], told["num_steps"], told["step"], told["task"]) == ("flow", 4, 7, {"task": "toy"})
        assert told["inputs"] == {"observation": {"shape": [2, 5], "dtype": "float32"}}
        assert told["noise_shape"] == [6, 3]

    def test_batches_and_single_histories(self, policy):
        one = policy.chunk({"observation": np.ones((2, 5))}, np.zeros((6, 3)))
        many = policy.chunk({"observation": torch.ones(4, 2, 5)}, torch.zeros(4, 6, 3))
        assert one.shape == (3, 3)
        assert many.shape == (4, 3, 3)
        np.testing.assert_allclose(many[2], one, atol=1e-6)

    def test_the_archive_is_a_program_of_torch_export(self, policy):
        histories, noise = torch.ones(4, 2, 5), torch.ones(4, 6, 3)
        action, chunk = torch.export.load(policy.path).module()(histories, noise)
        np.testing.assert_allclose(action, policy.chunk({"observation": histories}, noise), atol=1e-6)
        assert chunk.shape == (4, 6, 3)

    def test_noise_is_drawn_from_torch(self, policy):
        seen = {"observation": np.ones((2, 5))}
        torch.manual_seed(3)
        first, second = policy.chunk(seen), policy.chunk(seen)
        torch.manual_seed(3)
        assert np.array_equal(policy.chunk(seen), first)
        assert not np.array_equal(first, second)
        given = policy.chunk(seen, np.zeros((6, 3)))
        assert np.array_equal(policy.chunk(seen, noise_scale=0), given)

    def test_a_part_of_a_chunk(self, policy):
        control = RecedingHorizon(policy, execute=1, noise_scale=0)
        for _ in range(4):
            action = control(np.ones(5))
        assert control.calls == 4
        np.testing.assert_allclose(action, policy.chunk({"observation": np.ones((2, 5))}, noise_scale=0)[0], atol=1e-6)
        with pytest.raises(ValueError, match="execute must lie in 1 to 3, the steps of a chunk, got 4"):
            RecedingHorizon(policy, execute=4)

    def test_reset_forgets_history_and_chunk(self, policy):
        control = RecedingHorizon(policy, noise_scale=0)
        first = control(np.ones(5))
        control(np.full(5, 9.0))
        control.reset()
        assert np.array_equal(control(np.ones(5)), first)
        assert control.calls == 2

    def test_what_it_refuses(self, policy, tmp_path):
        with pytest.raises(ValueError, match=r"observation must have shape \[2, 5\] after the batch, got \[4, 3, 5\]"):
            policy.chunk({"observation": np.ones((4, 3, 5))})
        with pytest.raises(ValueError, match="the policy reads observation, got state"):
            policy.chunk({"state": np.ones((2, 5))})
        with pytest.raises(ValueError, match="the observation lacks observation"):
            RecedingHorizon(policy)({"state": np.ones(5)})
        other = tmp_path / "other.pt2"
        other.write_bytes(b"no archive")
        with pytest.raises(ValueError, match=r"other\.pt2 is not an archive of `torchrl-flow export`"):
            ExportedPolicy(other)

    def test_images_must_be_bytes(self, tmp_path):
        flow = make_flow(FORMS["images"])
        policy = ExportedPolicy(export_policy(save(tmp_path / "c.torchrl", flow), tmp_path / "policy.pt2"))
        with pytest.raises(ValueError, match="pixels must be bytes"):
            policy.chunk({"pixels": np.ones((2, 3, 32, 32))})


class TestCommand:
    def test_it_writes_beside_the_checkpoint_and_tells(self, tmp_path, capsys):
        path = save(tmp_path / "checkpoint.torchrl", make_flow(FORMS["state"]))
        ExportArgs(str(path))()
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(str((tmp_path / "policy.pt2").resolve()))
        assert lines[1] == f"{(tmp_path / 'exported_policy.py').resolve()}: loads it, with torch and NumPy alone"
        assert ExportedPolicy(tmp_path / "policy.pt2").act_horizon == 3

    def test_what_it_refuses(self, tmp_path, monkeypatch):
        path = save(tmp_path / "checkpoint.torchrl", make_flow(FORMS["state"]))
        with pytest.raises(SystemExit, match=r"--output policy\.onnx must end in \.pt2"):
            ExportArgs(str(path), output="policy.onnx").export()
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(SystemExit, match="--compile needs a C\\+\\+ compiler"):
            ExportArgs(str(path), compile=True).export()
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.torchrl"]
        with pytest.raises(ValueError, match=r"output must be a file \.pt2"):
            export_policy(path, tmp_path / "policy")

    def test_a_policy_of_single_actions_is_refused(self):
        old = Path(__file__).parents[1] / "older_checkpoints" / "cql.torchrl"
        with pytest.raises(CheckpointError, match="holds a policy of states"):
            export_policy(old, "policy.pt2")


def test_the_description_is_json(tmp_path):
    path = export_policy(save(tmp_path / "c.torchrl", make_flow(FORMS["state"])), tmp_path / "policy.pt2")
    assert json.loads(json.dumps(ExportedPolicy(path).description))["versions"]["torch"] == torch.__version__
