"""Features of a frozen flow in place of its observations: the same results, in a hundredth of the memory."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_flow.modules import (
    FEATURES_KEY,
    CriticConfig,
    FlowActorConfig,
    LatentPolicyConfig,
    SteeredFlowActor,
    flow_on_features,
    frozen_features,
    make_critic,
    make_flow_actor,
    make_latent_critics,
    make_latent_policy,
    write_features,
)
from torchrl_flow.objectives import (
    ActionScorer,
    ChunkCriticLoss,
    DistilledSACLoss,
    LatentAWMLELoss,
    LatentSACLoss,
    LatentScorer,
)
from torchrl_flow.runs import load_checkpoint, save_checkpoint
from torchrl_flow.training import ReplayState, macro_replay, macro_transitions

CONFIG = FlowActorConfig(
    action_dim=3, state_dim=5, pixels_size=(32, 32), pixel_features=8, obs_horizon=2, pred_horizon=4, act_horizon=2,
    width=16, depth=1, num_steps=1,
)  # fmt: skip
SIZES = (8, 8)


def make_flow():
    torch.manual_seed(3)
    flow = make_flow_actor(CONFIG, action_low=-torch.ones(3), action_high=torch.ones(3))
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return flow.eval().requires_grad_(False)


def seen(*batch):
    observation = torch.randn(*batch, 2, 5)
    pixels = torch.randint(0, 256, (*batch, 2, 3, 32, 32), dtype=torch.uint8)
    return {"observation": observation, "pixels": pixels}


def transitions(rows):
    flags = {name: torch.zeros(rows, 1, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
    flags["terminated"][::3] = flags["done"][::3] = True
    outcome = {**seen(rows), **flags, "reward": torch.randn(rows, 1), "steps_to_next_obs": torch.full((rows, 1), 2)}
    following = TensorDict(outcome, batch_size=[rows])
    root = {**seen(rows), "action": torch.rand(rows, 2, 3) * 2 - 1, "latent": torch.randn(rows, 4, 3)}
    return TensorDict({**root, "next": following}, batch_size=[rows])


@pytest.mark.parametrize("batch", [(), (7,), (2, 5)])
def test_features_are_those_of_the_encoder_in_blocks_of_any_size(batch):
    flow, data = make_flow(), TensorDict(seen(*batch), batch_size=batch)
    expected = flow.features(data)
    torch.testing.assert_close(frozen_features(flow, data, block_size=3), expected, atol=1e-6, rtol=1e-5)
    written = write_features(flow, data.clone(), block_size=3)[FEATURES_KEY]
    assert written.shape == (*batch, 1, flow.encoder.out_features)


def test_a_flow_on_features_samples_what_the_flow_samples():
    flow, data = make_flow(), TensorDict(seen(6), batch_size=[6])
    data["noise"] = torch.randn(6, 4, 3)
    reader = flow_on_features(flow)
    assert reader.velocity_network is flow.velocity_network
    inputs = write_features(flow, data.clone()).select(FEATURES_KEY, "noise")
    torch.testing.assert_close(reader(inputs)["action"], flow(data)["action"], atol=1e-5, rtol=1e-5)


def losses_of(flow, batch, on_features):
    """All losses of off-policy steering, from equal weights and draws."""
    torch.manual_seed(5)
    reads = flow_on_features(flow) if on_features else flow
    policy = make_latent_policy(LatentPolicyConfig(hidden_sizes=SIZES, on_features=on_features), flow)
    config = CriticConfig(2, SIZES, on_features=on_features)
    critic, critics = make_critic(config, reads), make_latent_critics(config, reads, policy)
    generator = torch.Generator().manual_seed(7)
    for module in (policy, critic, *critics):
        for name, parameter in module.named_parameters():
            if "encoder" not in name:
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    td = ChunkCriticLoss(reads, critic, policy, gamma=0.9, augment=False)
    sac = LatentSACLoss(policy, critics, gamma=0.9)
    teacher = ActionScorer(reads, critic, steer_mode=policy.steer_mode)
    distilled = DistilledSACLoss(policy, critics, teacher, mode="both", gamma=0.9)
    found = {}
    for name, loss in {
        "td": td,
        "sac": sac,
        "na": distilled,
        "aw": LatentAWMLELoss(policy, LatentScorer(distilled)),
    }.items():
        torch.manual_seed(11)
        found |= {f"{name}/{key}": value for key, value in loss(batch.clone()).items() if key.startswith("loss_")}
    return found


def test_losses_on_features_are_those_on_images():
    flow, batch = make_flow(), transitions(9)
    wanted, found = losses_of(flow, batch, False), losses_of(flow, macro_transitions(batch, flow=flow), True)
    assert wanted.keys() == found.keys()
    assert {"td/loss_qvalue", "sac/loss_actor", "na/loss_qvalue", "aw/loss_latent_policy"} <= wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_a_policy_on_features_acts_as_one_with_a_copy_of_the_encoder():
    flow, data = make_flow(), TensorDict({**seen(6), "latent_noise": torch.randn(6, 4, 3)}, batch_size=[6])
    actors = []
    for on_features in (False, True):
        policy = make_latent_policy(LatentPolicyConfig(hidden_sizes=SIZES, on_features=on_features), flow)
        generator = torch.Generator().manual_seed(7)
        for name, parameter in policy.named_parameters():
            if "encoder" not in name:
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        actors.append(SteeredFlowActor(policy, copy.deepcopy(flow)))
    own, reader = (actor(data.clone()) for actor in actors)
    torch.testing.assert_close(reader["action"], own["action"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reader[FEATURES_KEY], write_features(flow, data.clone())[FEATURES_KEY])
    assert actors[1].in_keys == actors[0].in_keys == ["observation", "pixels"]
    # What the last step has left under the key is not taken for this one's.
    stale = data.clone().set(FEATURES_KEY, torch.zeros_like(reader[FEATURES_KEY]))
    torch.testing.assert_close(actors[1](stale)["action"], reader["action"])
    assert not any("encoder" in name for name, _ in actors[1].policy.named_parameters())


def test_a_row_of_the_replay_takes_a_hundredth_of_the_images():
    flow, data = make_flow(), transitions(5)
    rows = [macro_transitions(data), macro_transitions(data, flow=flow)]
    size = [sum(value[0].numel() * value.element_size() for value in td.values(True, True)) for td in rows]
    assert size[0] > 2 * 2 * 3 * 32 * 32
    assert size[1] < size[0] / 20
    assert set(rows[1].keys()) == {FEATURES_KEY, "action", "latent", "is_demo", "next", "steps_to_next_obs"}


def test_every_row_has_the_same_entries():
    data = transitions(4)
    demos = macro_transitions(data.clone().set("is_demo", torch.ones(4, 1, dtype=torch.bool)))
    online = macro_transitions(data)
    assert set(demos.keys(True, True)) == set(online.keys(True, True))
    assert demos["is_demo"].all()
    assert not online["is_demo"].any()
    with pytest.raises(ValueError, match=r"chunks lack \['truncated'\]"):
        macro_transitions(data.exclude(("next", "truncated")))


@pytest.mark.parametrize("count", [3, 10, 13])
def test_a_replay_comes_back_from_a_small_file(tmp_path, count):
    """Rows, order of the ring and the place of the next row, before and after the ring is full."""
    capacity = 10
    buffer, other = (macro_replay(capacity, batch_size=4) for _ in range(2))
    for first in range(0, count, 5):
        rows = torch.arange(first, min(first + 5, count))
        buffer.extend(TensorDict({"x": rows, "next": {"y": 2.0 * rows}}, batch_size=[len(rows)]))
    path = save_checkpoint(tmp_path / "a.torchrl", state={"replay": ReplayState(buffer)})
    load_checkpoint(path).restore(state={"replay": ReplayState(other)})
    for _ in range(2):
        assert len(other) == len(buffer)
        assert torch.equal(other[:]["x"], buffer[:]["x"])
        assert torch.equal(other[:]["next", "y"], buffer[:]["next", "y"])
        for one in (buffer, other):
            one.extend(TensorDict({"x": torch.arange(3), "next": {"y": torch.zeros(3)}}, batch_size=[3]))
    big = TensorDictReplayBuffer(storage=LazyTensorStorage(1_000_000), batch_size=4)
    big.extend(TensorDict({"x": torch.zeros(5, 100)}, batch_size=[5]))
    assert save_checkpoint(tmp_path / "b.torchrl", state={"replay": ReplayState(big)}).stat().st_size < 100_000
    with pytest.raises(ValueError, match=f"{min(count, 10)} rows were saved, and the replay buffer has room for 2"):
        ReplayState(macro_replay(2, batch_size=1)).load_state_dict(ReplayState(buffer).state_dict() | {
            "rows": dict(buffer[: min(count, 10)].exclude("index").flatten_keys(".").items())})  # fmt: skip


def test_replay_has_the_executed_steps_at_the_root_also_from_older_states():
    data = TensorDict(
        {
            "observation": torch.zeros(3, 2, 5),
            "action": torch.zeros(3, 4, 2),
            "latent": torch.zeros(3, 8, 2),
            "steps_to_next_obs": torch.full((3, 1), 4),  # stale
            "next": {
                "observation": torch.zeros(3, 2, 5),
                **{key: torch.zeros(3, 1) for key in ("reward", "done", "terminated", "truncated")},
                "steps_to_next_obs": torch.tensor([[1], [2], [3]]),
            },
        },
        batch_size=[3],
    )
    buffer, other = macro_replay(10, batch_size=4), macro_replay(10, batch_size=4)
    buffer.extend(macro_transitions(data))
    assert buffer[:]["steps_to_next_obs"].squeeze(-1).tolist() == [1, 2, 3]
    state = ReplayState(buffer).state_dict()
    del state["rows"]["steps_to_next_obs"]
    ReplayState(other).load_state_dict(state)
    other.extend(macro_transitions(data))
    assert other[:]["steps_to_next_obs"].squeeze(-1).tolist() == [1, 2, 3, 1, 2, 3]
