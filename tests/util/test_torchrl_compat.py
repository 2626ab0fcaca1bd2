"""Each private part of TorchRL and TensorDict does what its function says; where it has moved, it is named."""

from __future__ import annotations

import ast
import importlib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, RandomSampler, RoundRobinWriter, TensorDictReplayBuffer
from torchrl.envs import Compose, EnvBase, PendulumEnv, RewardScaling, StepCounter, TransformedEnv

from torchrl_flow.envs import PlanarPickPlaceEnv
from torchrl_flow.util import torchrl_compat as compat

PACKAGE = Path(compat.__file__).parents[1]


def buffer(size=4):
    made = TensorDictReplayBuffer(
        storage=LazyTensorStorage(size), sampler=RandomSampler(), writer=RoundRobinWriter(), batch_size=2
    )
    made.extend(rows(3))
    return made


def rows(number):
    return TensorDict(x=torch.arange(float(number)), batch_size=[number])


def check_get_entry():
    data = TensorDict(a=torch.ones(1), b=TensorDict(c=torch.zeros(1)))
    assert compat.get_entry(data, "a") is data["a"]
    assert compat.get_entry(data, ("b", "c")) is data["b", "c"]
    assert compat.get_entry(data, "z") is None
    assert compat.get_entry(data, ("b", "z")) is None


def check_set_entry():
    data = TensorDict(b=TensorDict())
    compat.set_entry(data, "a", torch.ones(1))
    compat.set_entry(data, ("b", "c"), torch.zeros(1))
    assert (data["a"].item(), data["b", "c"].item()) == (1.0, 0.0)


def check_map_pairs():
    seen = compat.map_pairs(
        lambda one, other: one if other is None else one + other, TensorDict(a=torch.ones(1)), TensorDict()
    )
    assert seen["a"].item() == 1.0
    both = compat.map_pairs(torch.add, TensorDict(a=torch.ones(1)), TensorDict(a=torch.ones(1)))
    assert both["a"].item() == 2.0


def check_file_name_of(tmp_path):
    key = "a/b: c"
    TensorDict({key: torch.ones(1)}).memmap(tmp_path)
    assert (tmp_path / f"{compat.file_name_of(key)}.memmap").exists()


def check_raw_step():
    env = PendulumEnv()
    data = env.rand_action(env.reset())
    assert "reward" in set(compat.raw_step(env, data).keys())


def check_raw_transforms():
    env = TransformedEnv(PendulumEnv(), RewardScaling(loc=1.0, scale=2.0))
    data = env.base_env.rand_action(env.base_env.reset())
    inner = compat.raw_inverse(env.transform, data)
    assert inner["action"] is data["action"]
    following = compat.raw_step(env.base_env, inner)
    reward = following["reward"].clone()
    assert torch.equal(compat.raw_transform_step(env.transform, inner, following)["reward"], 2 * reward + 1)


def check_complete_done():
    env = PlanarPickPlaceEnv(2, seed=0)
    data = TensorDict(terminated=torch.ones(2, 1, dtype=torch.bool), batch_size=[2])
    compat.complete_done(env, data)
    assert data["done"].all()
    assert not data["truncated"].any()


def check_container_of():
    inner, outer = StepCounter(), Compose()
    assert compat.container_of(inner) is None
    outer.append(inner)
    env = TransformedEnv(PendulumEnv(), outer)
    assert compat.container_of(env.transform[0]) is env.transform
    assert compat.container_of(env.transform) is env


def check_resets_itself():
    env = PendulumEnv()
    assert not compat.resets_itself(env)
    env._torchrl_native_autoreset = True
    assert compat.resets_itself(env)
    # TorchRL's own reader and writer of the mark.
    source = (Path(importlib.import_module("torchrl").__file__).parent / "envs" / "common.py").read_text()
    assert '"_torchrl_native_autoreset"' in source


def check_can_set_state():
    assert not compat.can_set_state(EnvBase)  # the default of all environments
    assert compat.can_set_state(PlanarPickPlaceEnv(1, seed=0))


def check_env_wrapper():
    class Wrapper(compat.EnvWrapper):
        def _build_env(self, env):
            return env

        def _make_specs(self, env):
            pass

        def _init_env(self):
            pass

        def _check_kwargs(self, kwargs):
            pass

        def _set_seed(self, seed):
            pass

        def _reset(self, tensordict=None, **kwargs):
            pass

        def _step(self, tensordict):
            pass

    inside = object()
    assert compat.wrapped_env(Wrapper(env=inside)) is inside


def check_partial_step():
    from torchrl.envs import batched_envs

    assert f'"{compat.PARTIAL_STEP}"' in Path(batched_envs.__file__).read_text()


def check_revision_of():
    made = buffer()
    before = compat.revision_of(made.storage)
    made.extend(rows(1))
    assert compat.revision_of(made.storage) > before


def check_room_of():
    assert compat.room_of(buffer(5).storage) == 5
    assert compat.room_of(LazyTensorStorage(5), batched_data=rows(2)) == 5
    assert compat.room_of(LazyTensorStorage(5), single_data=rows(2)[0]) == 5


def check_clear():
    made = buffer()
    compat.clear(made.storage)
    compat.clear(made.sampler)
    assert len(made.storage) == 0


def check_stored_rows():
    assert compat.stored_rows(buffer().storage)["x"][:3].tolist() == [0.0, 1.0, 2.0]


def check_generators():
    made, own = buffer(), torch.Generator()
    made.set_rng(own)
    for part in (made.storage, made.sampler):
        assert compat.generator_of(part) is own
        compat.set_generator(part, None)
        assert compat.generator_of(part) is None
    compat.set_generator(made.storage, torch.Generator().manual_seed(0))
    one = made.sample()["x"]
    compat.set_generator(made.storage, torch.Generator().manual_seed(0))
    assert torch.equal(made.sample()["x"], one)


def check_set_last_cursor():
    storage = buffer().storage
    compat.set_last_cursor(storage, torch.tensor([1]))
    assert storage._last_cursor.tolist() == [1]


def check_writer():
    made = buffer()
    writer = made.writer
    assert compat.write_cursor(writer) == 3
    assert compat.write_cursor(writer, 1) == 1
    compat.count_writes(writer, 5)
    assert made.write_count == 8
    made.extend(rows(1))
    assert made.storage.get(1)["x"].item() == 0.0
    index = torch.tensor([2])
    assert compat.finish_write(writer, index, rows(1)).tolist() == [2]


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
#: Functions that share a test.
TOGETHER = {
    "raw_transforms": {"raw_inverse", "raw_transform_step"},
    "env_wrapper": {"EnvWrapper", "wrapped_env"},
    "partial_step": {"PARTIAL_STEP"},
    "generators": {"generator_of", "set_generator"},
    "writer": {"write_cursor", "count_writes", "finish_write"},
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_private_part_is_where_it_was(name, request):
    check = CHECKS[name]
    arguments = [request.getfixturevalue("tmp_path")] if check.__code__.co_argcount else []
    try:
        check(*arguments)
    except Exception as error:
        installed = {package: version(package) for package in compat.CHECKED}
        named = ", ".join(sorted(TOGETHER.get(name, {name})))
        pytest.fail(
            f"torchrl_compat.{named}: the private part behind it is not in {installed} what it was in "
            f"{compat.CHECKED} ({type(error).__name__}: {error}). Correct it in torchrl_flow/util/torchrl_compat.py."
        )


@pytest.mark.parametrize(("path", "names"), compat.OVERRIDDEN.items())
def test_what_is_defined_anew_is_what_torchrl_calls(path, names):
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    missing = [part for part in names if not hasattr(kind, part)]
    assert not missing, f"{path} has no {missing} any more: what overrides them here is never called."


def test_every_part_has_a_test():
    tested = set().union(*(TOGETHER.get(name, {name}) for name in CHECKS))
    assert tested == set(compat.__all__) - {"CHECKED", "OVERRIDDEN"}


def test_no_other_file_uses_these_parts():
    """Of another object: a class's own ``self._step`` may be TorchRL's extension point, or its own affair."""

    def attributes(path):
        return [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)]

    private = {
        node.attr for node in attributes(Path(compat.__file__)) if node.attr.startswith("_") and node.attr != "__dict__"
    }
    assert len(private) > 15
    # Losses have their own; the controllers are ManiSkill's.
    others = ("objectives/", "envs/maniskill/controllers.py", "util/torchrl_compat.py")
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        for node in [] if file.startswith(others) else attributes(path):
            owner = ast.unparse(node.value)
            if node.attr in private and owner not in ("self", "cls") and not owner.startswith("super("):
                wrong.append(f"{file}:{node.lineno} {owner}.{node.attr}")
        imports = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        for node in [] if file.startswith(others) else imports:
            if (node.module or "").split(".")[0] in ("torchrl", "tensordict"):
                wrong += [f"{file}: import {a.name}" for a in node.names if a.name.startswith("_")]
    assert wrong == []
