"""TorchRL's losses on chunks, each against the target R + gamma^k V of a chunk that was worked out by hand."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl import objectives
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, QValueActor, ValueOperator
from torchrl.objectives import (
    A2CLoss,
    BCLoss,
    ClipPPOLoss,
    CQLLoss,
    CrossQLoss,
    DDPGLoss,
    DiscreteSACLoss,
    DQNLoss,
    IQLLoss,
    KLPENPPOLoss,
    LossModule,
    PPOLoss,
    REDQLoss,
    ReinforceLoss,
    SACLoss,
    TD3BCLoss,
    TD3Loss,
    TQCLoss,
    ValueEstimators,
)
from torchrl.objectives.value import TD0Estimator

from torchrl_flow.objectives import ChunkTD3BCLoss, ConservativeQLoss, make_chunk_advantage, make_chunk_estimator
from torchrl_flow.objectives.chunk_estimator import REASONS

GAMMA, ACTION = 0.9, 2
ROOT, STEPS = "steps_to_next_obs", ("next", "steps_to_next_obs")
NEXT_VALUE = 2.5
# Chunk length, executed steps, terminated, truncated; the reward is that of the executed steps, each 1.
CHUNKS = {
    "chunk of 1": (1, 1, False, False),
    "chunk of 4": (4, 4, False, False),
    "early end": (4, 2, False, True),
    "terminated": (4, 3, True, False),
}


def folded(k: int) -> float:
    return sum(GAMMA**i for i in range(k))


TARGETS = {
    "chunk of 1": 1.0 + 0.9 * 2.5,
    "chunk of 4": (1.0 + 0.9 + 0.81 + 0.729) + 0.6561 * 2.5,
    "early end": (1.0 + 0.9) + 0.81 * 2.5,
    "terminated": 1.0 + 0.9 + 0.81,
}


def one_chunk(name, *, root=True):
    """A batch of one transition, as a chunk environment leaves it. The first entry of an observation is its value."""
    horizon, k, terminated, truncated = CHUNKS[name]
    flags = {"terminated": terminated, "truncated": truncated, "done": terminated or truncated}
    following = {
        "observation": torch.tensor([[NEXT_VALUE, 0.3]]),
        "reward": torch.tensor([[folded(k)]]),
        "steps_to_next_obs": torch.tensor([[k]]),
        **{key: torch.tensor([[value]]) for key, value in flags.items()},
    }
    data = {"observation": torch.tensor([[0.0, 0.7]]), "action": torch.zeros(1, horizon, ACTION), "next": following}
    if root:
        data[ROOT] = torch.tensor([[k]])
    return TensorDict(data, batch_size=[1])


class Point(torch.distributions.Distribution):
    """No randomness and a log-probability of 0, so that no entropy enters a target."""

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    def rsample(self, sample_shape=()):
        return self.loc.expand(*sample_shape, *self.loc.shape)

    sample = rsample

    def log_prob(self, value):
        return 0.0 * self.loc.sum((-2, -1))

    def entropy(self):
        return 0.0 * self.loc.sum((-2, -1))

    @property
    def mean(self):
        return self.loc

    deterministic_sample = mean


class FirstEntry(nn.Module):
    """The value of an observation is its first entry, whatever the chunk; one output for each of ``quantiles``."""

    def __init__(self, quantiles=1):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.quantiles = quantiles

    def forward(self, observation, action=None):
        value = self.gain * observation[..., :1]
        if action is not None:
            value = value + 0.0 * action.flatten(-2).sum(-1, keepdim=True)
        return value.expand(*value.shape[:-1], self.quantiles)


def deterministic(horizon):
    net = nn.Sequential(nn.Linear(2, horizon * ACTION), nn.Tanh(), nn.Unflatten(-1, (horizon, ACTION)))
    return TensorDictModule(net, ["observation"], ["action"])


def stochastic(horizon):
    net = nn.Sequential(nn.Linear(2, horizon * ACTION), nn.Tanh(), nn.Unflatten(-1, (horizon, ACTION)))
    return ProbabilisticActor(
        TensorDictModule(net, ["observation"], ["loc"]),
        in_keys=["loc"],
        distribution_class=Point,
        return_log_prob=True,
        default_interaction_type="random",
    )


def critics(number=2, quantiles=1):
    return [
        ValueOperator(FirstEntry(quantiles), ["observation", "action"], ["state_action_value"]) for _ in range(number)
    ]


def value():
    return ValueOperator(FirstEntry(), ["observation"], ["state_value"])


L2 = {"loss_function": "l2"}
ENTROPY = {"fixed_alpha": True, "target_entropy": -8.0}


def cql_options(horizon):
    spec = Bounded(-1.0, 1.0, torch.Size([horizon, ACTION]))
    return {"action_spec": spec, "fixed_alpha": True, "target_entropy": -8.0}


OFF_POLICY = {
    "SACLoss": lambda h: SACLoss(stochastic(h), critics(), num_qvalue_nets=2, **ENTROPY, **L2),
    "TQCLoss": lambda h: TQCLoss(
        stochastic(h), critics(quantiles=5), num_qvalue_nets=2, top_quantiles_to_drop_per_net=1, **ENTROPY
    ),
    "REDQLoss": lambda h: REDQLoss(stochastic(h), critics(3), num_qvalue_nets=3, sub_sample_len=2, **ENTROPY, **L2),
    "TD3Loss": lambda h: TD3Loss(deterministic(h), critics(), bounds=(-1.0, 1.0), **L2),
    "TD3BCLoss": lambda h: TD3BCLoss(deterministic(h), critics(), bounds=(-1.0, 1.0), **L2),
    "DDPGLoss": lambda h: DDPGLoss(deterministic(h), critics()[0], **L2),
    "IQLLoss": lambda h: IQLLoss(stochastic(h), critics(), value_network=value(), num_qvalue_nets=2, **L2),
    "ConservativeQLoss": lambda h: ConservativeQLoss(stochastic(h), critics(), **cql_options(h), **L2),
    "CrossQLoss": lambda h: CrossQLoss(
        stochastic(h), critics(), num_qvalue_nets=2, fixed_alpha=True, target_entropy=-8.0, **L2
    ),
}
"""All losses that TorchRL has for continuous actions and a value estimator of its own."""

ON_POLICY = {
    "PPOLoss": lambda h: PPOLoss(stochastic(h), value(), entropy_bonus=False),
    "ClipPPOLoss": lambda h: ClipPPOLoss(stochastic(h), value(), entropy_bonus=False),
    "KLPENPPOLoss": lambda h: KLPENPPOLoss(stochastic(h), value(), entropy_bonus=False),
    "A2CLoss": lambda h: A2CLoss(stochastic(h), value(), entropy_bonus=False),
    "ReinforceLoss": lambda h: ReinforceLoss(stochastic(h), value()),
}


def target_of(loss, data):
    """The target that a loss regresses a value of 0 on."""
    if isinstance(loss, TQCLoss):
        (atoms,) = loss.compute_target(data)
        assert atoms.unique().numel() == 1
        return atoms[0].item()
    squared = loss(data)["loss_qvalue" if "loss_qvalue" in loss.out_keys else "loss_value"].item()
    number = {REDQLoss: 1, DDPGLoss: 1}.get(type(loss), 2)
    return math.sqrt(squared / number)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", OFF_POLICY)
def test_target_with_an_estimator_for_chunks(name, chunk):
    loss = make_chunk_estimator(OFF_POLICY[name](CHUNKS[chunk][0]), gamma=GAMMA)
    assert target_of(loss, one_chunk(chunk)) == pytest.approx(TARGETS[chunk], rel=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", OFF_POLICY)
def test_target_where_no_key_was_set(name, chunk):
    loss = OFF_POLICY[name](CHUNKS[chunk][0])
    loss.make_value_estimator(gamma=GAMMA)
    assert target_of(loss, one_chunk(chunk)) == pytest.approx(TARGETS[chunk], rel=1e-5)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_a_batch_without_k_is_an_error(name):
    loss = make_chunk_estimator(OFF_POLICY[name](4), gamma=GAMMA)
    data = one_chunk("chunk of 4").exclude(STEPS, ROOT)
    with pytest.raises(KeyError, match=f"no .*steps_to_next_obs.*, by which {name} discounts chunks"):
        loss(data)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_k_under_next_is_enough(name):
    loss = make_chunk_estimator(OFF_POLICY[name](4), gamma=GAMMA)
    data = one_chunk("early end", root=False)
    assert target_of(loss, data) == pytest.approx(TARGETS["early end"], rel=1e-5)


def test_tqc_learns_from_data_without_root_entry():
    loss = make_chunk_estimator(OFF_POLICY["TQCLoss"](4), gamma=GAMMA)
    with_root, without = (loss(one_chunk("early end", root=root))["loss_qvalue"] for root in (True, False))
    assert with_root.item() == without.item()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("how", ["estimator", "forgotten"])
@pytest.mark.parametrize("name", ON_POLICY)
def test_advantage_of_losses_on_policy(name, how, chunk):
    loss = ON_POLICY[name](CHUNKS[chunk][0])
    if how == "estimator":
        make_chunk_estimator(loss, ValueEstimators.GAE, gamma=GAMMA, lmbda=0.7)
    else:
        loss.make_value_estimator(ValueEstimators.GAE, gamma=GAMMA, lmbda=0.7)
    data = one_chunk(chunk).unsqueeze(-1)
    loss.value_estimator(data, params=loss.critic_network_params, target_params=loss.target_critic_network_params)
    # One step of time, from a state of value 0.
    assert data["advantage"].item() == pytest.approx(TARGETS[chunk], rel=1e-5)
    assert data["value_target"].item() == pytest.approx(TARGETS[chunk], rel=1e-5)


@pytest.mark.parametrize("name", ON_POLICY)
def test_on_policy_losses_need_k_for_the_advantage_alone(name):
    loss = make_chunk_estimator(ON_POLICY[name](4), gamma=GAMMA)
    data = one_chunk("chunk of 4").exclude(STEPS, ROOT).unsqueeze(-1)
    with pytest.raises(KeyError, match=r"no .*steps_to_next_obs"):
        loss.value_estimator(data, params=loss.critic_network_params, target_params=loss.target_critic_network_params)
    data["advantage"] = data["value_target"] = torch.ones(1, 1, 1)
    data["action_log_prob"] = torch.zeros(1, 1)
    data["loc"] = torch.zeros(1, 1, 4, ACTION)
    if name != "KLPENPPOLoss":  # it asks for a divergence, which a Point has not
        assert all(value.isfinite().all() for value in loss(data).values())


@pytest.mark.parametrize("name", [name for name in OFF_POLICY if name != "ConservativeQLoss"])
def test_keywords_take_k(name):
    loss = make_chunk_estimator(OFF_POLICY[name](4), gamma=GAMMA)
    assert (ROOT if name == "TQCLoss" else STEPS) in loss.in_keys
    data = one_chunk("early end", root=name == "TQCLoss")
    keywords = {key if isinstance(key, str) else "_".join(key): data.get(key, None) for key in loss.in_keys}
    keywords = {key: value for key, value in keywords.items() if value is not None}
    found, wanted = loss(**keywords), loss(data)
    place = loss.out_keys.index("loss_value" if name == "DDPGLoss" else "loss_qvalue")
    assert found[place].item() == pytest.approx(wanted[loss.out_keys[place]].item())
    del keywords["steps_to_next_obs" if name == "TQCLoss" else "next_steps_to_next_obs"]
    with pytest.raises(KeyError, match=f"by which {name} discounts"):
        loss(**keywords)


def test_the_table_of_the_docs_has_these_targets():
    page = Path(__file__).parents[2] / "docs" / "tutorials" / "torchrl_losses.md"
    text = page.read_text(encoding="utf-8")
    (cells,) = re.findall(r"^\|((?: [\d.]+ \|){4})$", text, re.MULTILINE)
    assert [float(cell) for cell in cells.split("|")[:-1]] == pytest.approx(list(TARGETS.values()), rel=1e-9)
    (losses,) = re.findall(r"^All these losses give the numbers of the table: (.*?)\.", text, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", losses) == [*OFF_POLICY, *ON_POLICY]


def test_the_estimator_may_be_a_class_or_an_instance():
    for given, options in (
        (TD0Estimator, {"value_network": None}),
        (TD0Estimator(gamma=GAMMA, value_network=None), {}),
    ):
        loss = SACLoss(stochastic(4), critics(), num_qvalue_nets=2, **ENTROPY, **L2)
        make_chunk_estimator(loss, given, gamma=GAMMA, **options)
        assert isinstance(loss.value_estimator, TD0Estimator)
        assert loss.value_estimator.tensor_keys.steps_to_next_obs == STEPS


def test_another_key():
    loss = make_chunk_estimator(OFF_POLICY["IQLLoss"](4), gamma=GAMMA, steps_key=("next", "k"))
    data = one_chunk("early end", root=False)
    data["next", "k"] = data["next"].pop("steps_to_next_obs")
    assert target_of(loss, data) == pytest.approx(TARGETS["early end"], rel=1e-5)


def test_made_twice_it_asks_for_the_last_key():
    loss = make_chunk_estimator(OFF_POLICY["TD3Loss"](4), gamma=0.5, steps_key=("next", "k"))
    make_chunk_estimator(loss, gamma=GAMMA)
    assert target_of(loss, one_chunk("early end")) == pytest.approx(TARGETS["early end"], rel=1e-5)


def test_copies_keep_it():
    loss = make_chunk_estimator(OFF_POLICY["TD3Loss"](4), gamma=GAMMA)
    other = copy.deepcopy(loss)
    assert target_of(other, one_chunk("early end")) == pytest.approx(TARGETS["early end"], rel=1e-5)
    with pytest.raises(KeyError, match="by which TD3Loss"):
        other(one_chunk("early end").exclude(STEPS))


def test_our_own_losses_are_taken_too():
    loss = ChunkTD3BCLoss(deterministic(4), critics(), bounds=(-1.0, 1.0), gamma=0.5)
    make_chunk_estimator(loss, gamma=GAMMA)
    assert target_of(loss, one_chunk("early end")) == pytest.approx(TARGETS["early end"], rel=1e-5)


def test_losses_that_cannot_are_refused_by_name():
    actor = QValueActor(nn.Linear(2, 3), in_keys=["observation"], spec=None, action_space="categorical")
    with pytest.raises(ValueError, match=r"DQNLoss cannot learn from action chunks: it chooses among discrete actions"):
        make_chunk_estimator(DQNLoss(actor, action_space="categorical"))
    discrete = ProbabilisticActor(
        TensorDictModule(nn.Linear(2, 3), ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
    )
    q = TensorDictModule(nn.Linear(2, 3), ["observation"], ["action_value"])
    with pytest.raises(ValueError, match=r"DiscreteSACLoss cannot .* Losses that can are A2CLoss, CrossQLoss"):
        make_chunk_estimator(DiscreteSACLoss(discrete, q, action_space="categorical", num_actions=3))
    with pytest.raises(ValueError, match=r"CQLLoss cannot .* draws single actions; ConservativeQLoss takes chunks"):
        make_chunk_estimator(CQLLoss(stochastic(4), critics(), **cql_options(4)))
    with pytest.raises(ValueError, match=r"BCLoss cannot .* it has no value estimator"):
        make_chunk_estimator(BCLoss(stochastic(4)))
    with pytest.raises(ValueError, match="gamma must"):
        make_chunk_estimator(OFF_POLICY["TD3Loss"](4), gamma=1.5)


@pytest.mark.parametrize("name", REASONS)
def test_every_loss_with_a_reason_is_refused_by_name(name):
    """Also a subclass of one's own, with the reason of the loss that it extends."""
    kind = getattr(objectives, name)
    assert issubclass(kind, LossModule)
    for refused in (kind, type("Mine", (kind,), {})):
        loss = refused.__new__(refused)  # the check reads the class alone
        nn.Module.__init__(loss)
        wanted = f"^{refused.__name__} cannot learn from action chunks: {re.escape(REASONS[name])}. Losses that can are"
        with pytest.raises(ValueError, match=wanted):
            make_chunk_estimator(loss)
        assert "_value_estimator" not in vars(loss)


def test_every_loss_of_torchrl_with_a_value_estimator_is_supported_or_has_a_reason():
    """A loss that another version of TorchRL adds is neither."""
    supported = (*OFF_POLICY, *ON_POLICY)
    theirs = {c for c in vars(objectives).values() if isinstance(c, type) and issubclass(c, LossModule)}
    estimating = {c.__name__ for c in theirs if c.default_value_estimator is not None}
    assert estimating - {*REASONS} <= {*supported}
    assert {*supported} - {"ConservativeQLoss"} <= estimating


def test_the_advantage_estimator_discounts_each_chunk_by_its_executed_steps():
    identity = nn.Linear(1, 1, bias=False)
    identity.weight.data.fill_(1.0)
    value = ValueOperator(identity, in_keys=["observation"])
    flags = {name: torch.zeros(1, 2, 1, dtype=torch.bool) for name in ("done", "terminated")}
    following = {"observation": torch.tensor([[[0.25], [1.0]]]), "reward": torch.tensor([[[1.0], [2.0]]]), **flags}
    following["steps_to_next_obs"] = torch.tensor([[[2], [3]]])
    data = TensorDict({"observation": torch.tensor([[[0.5], [0.25]]]), "next": following}, batch_size=[1, 2])
    make_chunk_advantage(value, gamma=GAMMA, lmbda=0.5)(data)
    last = 2 + GAMMA**3 * 1.0 - 0.25
    first = 1 + GAMMA**2 * 0.25 - 0.5 + GAMMA**2 * 0.5 * last
    assert data["advantage"].flatten().tolist() == pytest.approx([first, last])


@pytest.mark.parametrize(("name", "value"), [("gamma", 1.5), ("lmbda", -0.1)])
def test_the_advantage_estimator_refuses_rates_outside_of_0_to_1(name, value):
    with pytest.raises(ValueError, match=name):
        make_chunk_advantage(nn.Linear(1, 1), **{"gamma": 0.9, "lmbda": 0.9, name: value})
