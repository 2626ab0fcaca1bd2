"""No loader of checkpoints runs what a file holds, unpacks it without bounds, or takes weights that are not finite."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.checkpoint import CheckpointError, StateDictCheckpointAdapter
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer

from tests.doctored import TABLES, Payload
from torchrl_flow.data import DataError
from torchrl_flow.modules import CriticConfig, FlowActorConfig, StatePolicyConfig, make_critic, make_flow_actor
from torchrl_flow.offline import offline_task
from torchrl_flow.policies import load_critic, load_flow_checkpoint, load_latent_policy, load_policy
from torchrl_flow.recsys import BeliefEncoder, BeliefEncoderConfig, ItemCatalogue, SlateRanker, SlateRankerConfig
from torchrl_flow.recsys.collect import relabel_slates
from torchrl_flow.recsys.models import SlateModels
from torchrl_flow.recsys.sardine_env import make_sardine_env
from torchrl_flow.recsys.task import load_state_policy
from torchrl_flow.runs import CheckpointDirectory, load_checkpoint, restore, save_checkpoint
from torchrl_flow.training.finite import non_finite_entry


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code_ran"


def refused(call, *parts):
    """The refusal, whose message has every part; nothing else may be raised."""
    with pytest.raises(CheckpointError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), (part, str(caught.value))


def buffer(**options):
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(10), sampler=SamplerWithoutReplacement(), batch_size=3, **options
    )


def written(path, **parts):
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(policy.parameters())
    policy(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    replay = buffer(generator=torch.Generator())
    replay.extend(TensorDict({"x": torch.arange(7.0)}, [7]))
    replay.sample()
    parts = {"modules": {"policy": policy}, "optimizers": {"adam": optimizer}, "state": {"replay": replay}, **parts}
    save_checkpoint(path, counters={"step": 2}, **parts)
    return policy


def unpacked(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def edit(path, change):
    """Changes entries and manifest of a checkpoint, and lists what it then holds as files of their components."""
    entries = unpacked(path)
    manifest = json.loads(entries["manifest.json"])
    change(entries, manifest)
    entries["manifest.json"] = json.dumps(manifest).encode()
    packed(path, entries)


def relist(entries, manifest):
    for record in manifest["components"].values():
        folder = record["path"] + "/"
        record["files"] = sorted(name.removeprefix(folder) for name in entries if name.startswith(folder))


def folder_of(manifest, name):
    return manifest["components"][name]["path"]


def add_directory(entries, prefix, folder):
    for file in folder.rglob("*"):
        if file.is_file():
            entries[f"{prefix}/{file.relative_to(folder).as_posix()}"] = file.read_bytes()


class Holder:
    """A state that TorchRL's own adapter can write as a directory of tensors."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def as_directory(path, tmp_path, marker, change):
    """Makes the policy a directory of memory-mapped tensors, as TorchRL's adapter reads it, and doctors that."""
    folder = tmp_path / "component"
    state = load_checkpoint(path).state_dict("policy")
    StateDictCheckpointAdapter().save(Holder(state), folder, args=(), kwargs={})
    if change is not None:
        change(folder / "state", marker)

    def put(entries, manifest):
        own = folder_of(manifest, "module.policy")
        del entries[f"{own}/state.pt"]
        add_directory(entries, own, folder)
        relist(entries, manifest)

    edit(path, put)


@pytest.mark.parametrize("name", [None, *TABLES])
def test_a_policy_that_is_a_directory_of_tensors_is_refused(tmp_path, marker, name):
    path = tmp_path / "a.torchrl"
    written(path)
    as_directory(path, tmp_path, marker, TABLES[name] if name else None)
    for load in (load_checkpoint, load_policy):
        refused(lambda load=load: load(path), str(path), "module.policy", "state.pt alone")
    assert not marker.exists()


@pytest.mark.parametrize("name", [n for n in TABLES if "linked" not in n])
@pytest.mark.parametrize("table", ["storage", "sampler", "rng_state"])
def test_a_doctored_replay_buffer_is_refused(tmp_path, marker, name, table):
    path, folder = tmp_path / "a.torchrl", tmp_path / "component"
    written(path)
    replay = buffer(generator=torch.Generator())
    replay.extend(TensorDict({"x": torch.arange(7.0)}, [7]))
    replay.sample()
    replay.dumps(folder)
    (folder / "prefetch.pkl").unlink()
    before = (folder / "storage" / "storage_metadata.json").read_bytes()
    TABLES[name](folder / table, marker)
    (folder / "storage" / "storage_metadata.json").write_bytes(before)

    def put(entries, manifest):
        own = folder_of(manifest, "state.replay")
        for member in [m for m in entries if m.startswith(own + "/")]:
            del entries[member]
        add_directory(entries, own, folder)
        relist(entries, manifest)

    edit(path, put)
    other = buffer()
    refused(lambda: load_checkpoint(path).restore(state={"replay": other}), str(path), "state.replay")
    assert len(other) == 0
    assert not marker.exists()


def test_pickles_of_a_replay_buffer_are_refused_and_an_empty_queue_of_before_is_read(tmp_path, marker):
    path = tmp_path / "a.torchrl"
    written(path)
    assert not [name for name in unpacked(path) if name.endswith(".pkl")]

    def put(name, content):
        def change(entries, manifest):
            entries[f"{folder_of(manifest, 'state.replay')}/{name}"] = content
            relist(entries, manifest)

        edit(path, change)

    put("prefetch.pkl", pickle.dumps({"version": 1, "capacity": 0, "queue": ()}))
    replay = buffer()
    load_checkpoint(path).restore(state={"replay": replay})
    assert len(replay) == 7
    torch_file = io.BytesIO()
    torch.save({"x": Payload(marker)}, torch_file)
    contents = {
        "prefetch.pkl": pickle.dumps({"version": 1, "capacity": 0, "queue": (Payload(marker),)}),
        "transform.t": torch_file.getvalue(),
        "sampler/consuming_sampler.pt": torch_file.getvalue(),
        "writer/x.pickle": pickle.dumps(Payload(marker)),
    }
    for name, content in contents.items():
        written(path)
        put(name, content)
        refused(lambda: load_checkpoint(path).restore(state={"replay": buffer()}), str(path), name)
    assert not marker.exists()


def test_a_buffer_with_prefetched_batches_is_refused_when_it_is_saved(tmp_path):
    replay = buffer(prefetch=2)
    replay.extend(TensorDict({"x": torch.arange(7.0)}, [7]))
    replay.sample()
    with pytest.raises(ValueError, match=r"prefetch\.pkl.*prefetch=None"):
        save_checkpoint(tmp_path / "a.torchrl", state={"replay": replay})
    assert list(tmp_path.iterdir()) == []


def torch_payload(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def deflated(payload):
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(payload)) as source, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return stream.getvalue()


def test_a_state_file_that_is_no_plain_torch_file_is_refused(tmp_path, marker):
    path = tmp_path / "a.torchrl"
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 1)), script)
    legacy = io.BytesIO()
    torch.save({"x": Payload(marker)}, legacy, _use_new_zipfile_serialization=False)
    payloads = {
        "pickle": pickle.dumps(Payload(marker)),
        "class": torch_payload({"0.weight": Payload(marker)}),
        "legacy": legacy.getvalue(),
        "script": script.getvalue(),
        "bomb": deflated(torch_payload({"0.weight": torch.zeros(2**20)})),
        "empty": b"",
    }
    for payload in payloads.values():
        written(path)
        edit(
            path,
            lambda entries, manifest, payload=payload: entries.update(
                {f"{folder_of(manifest, 'module.policy')}/state.pt": payload}
            ),
        )
        checkpoint = load_checkpoint(path)
        refused(lambda checkpoint=checkpoint: checkpoint.state_dict("policy"), str(path), "state.pt")
        policy = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        refused(lambda c=checkpoint, p=policy: c.restore(modules={"policy": p}), str(path), "state.pt")
    assert not marker.exists()


def swap_after_opening(path, other):
    checkpoint = load_checkpoint(path)
    shutil.copy(other, path)
    return checkpoint


def test_a_file_that_is_exchanged_after_opening_is_checked_again(tmp_path, marker):
    path, other = tmp_path / "a.torchrl", tmp_path / "b.torchrl"
    written(path)
    written(other)
    as_directory(other, tmp_path, marker, TABLES["non_tensor"])
    checkpoint = swap_after_opening(path, other)
    refused(lambda: checkpoint.state_dict("policy"), str(path), "state.pt alone")
    assert not marker.exists()


def added(name, content=b"x"):
    return lambda entries, manifest: entries.update({name: content})


def listed(name):
    return lambda entries, manifest: manifest["components"]["state.replay"]["files"].append(name)


def record(**changes):
    return lambda entries, manifest: manifest["components"]["module.policy"].update(changes)


MEMBERS = {
    "member outside": (added("../x"), "../x"),
    "absolute member": (added("/tmp/x"), "/tmp/x"),
    "member that is not listed": (added("components/x.pkl"), "components/x.pkl"),
    "member with a backslash": (added("components\\x"), "components"),
    "listed outside": (listed("../../x"), "../../x"),
    "listed and missing": (listed("gone.json"), "gone.json"),
    "component elsewhere": (record(path="../../tmp"), "tmp"),
    "component that is absolute": (record(path="/tmp"), "/tmp"),
    "adapter of another kind": (record(adapter="torchrl.json"), "torchrl.json"),
    "module that dumps": (record(adapter="torchrl.dump_load"), "torchrl.dump_load"),
    "no files": (record(files=[]), "state.pt alone"),
    "files that are none": (record(files=3), "module.policy"),
    "path that is none": (record(path=3), "module.policy"),
    "record that is none": (lambda entries, manifest: manifest["components"].update({"module.policy": 3}), "invalid"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_do_not_belong_there_are_refused(tmp_path, name):
    path = tmp_path / "a.torchrl"
    written(path)
    change, reason = MEMBERS[name]
    edit(path, change)
    refused(lambda: load_checkpoint(path), str(path), reason)


def test_a_link_a_repeated_or_a_compressed_member_is_refused(tmp_path):
    path = tmp_path / "a.torchrl"
    written(path)
    entries = unpacked(path)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("components/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    refused(lambda: load_checkpoint(path), str(path), "components/link", "link")
    packed(path, entries)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("manifest.json", entries["manifest.json"])
    refused(lambda: load_checkpoint(path), str(path), "twice")
    packed(path, entries, zipfile.ZIP_DEFLATED)
    refused(lambda: load_checkpoint(path), str(path), "compressed")


FIELDS = ("config", "task", "actor_config", "counters", "metadata", "versions")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ["absent", None, [], 3])
def test_a_manifest_without_a_field_is_refused_by_its_name(tmp_path, field, value):
    path = tmp_path / "a.torchrl"
    written(path)

    def change(entries, manifest):
        if value == "absent":
            del manifest["metadata"][field]
        else:
            manifest["metadata"][field] = value

    edit(path, change)
    refused(lambda: load_checkpoint(path), str(path), repr(field))


MANIFESTS = {
    "no date": (lambda m: m.pop("created_at"), "created_at"),
    "counter of text": (lambda m: m["metadata"]["counters"].update(step="2"), "'step'"),
    "negative counter": (lambda m: m["metadata"]["counters"].update(step=-1), "'step'"),
    "module_configs of another kind": (
        lambda m: m["metadata"]["metadata"].update(module_configs=[1]),
        "module_configs",
    ),
    "metadata of another kind": (lambda m: m.update(metadata=[1]), "not one of torchrl_flow"),
    "versions of another kind": (lambda m: m["metadata"].update(versions=3, format_version=9), "version 9"),
    "metric of text": (lambda m: m["metadata"].update({"metric/x": "high"}), "metric/x"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_with_wrong_values_is_refused(tmp_path, name):
    path = tmp_path / "a.torchrl"
    written(path)
    change, reason = MANIFESTS[name]
    edit(path, lambda entries, manifest: change(manifest))
    refused(lambda: load_checkpoint(path), str(path), reason)


TEXTS = {
    "deep": b'{"metadata":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "list": b"[]",
    "number": b"3",
    "not text": b"\xff\xfe",
    "huge number": b'{"metadata": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_an_absurd_manifest_is_refused(tmp_path, name):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / "checkpoint-000000000002.torchrl"
    written(path)
    entries = unpacked(path)
    entries["manifest.json"] = TEXTS[name]
    packed(path, entries)
    refused(lambda: load_checkpoint(path), str(path), "manifest.json")
    if name == "deep":
        refused(lambda: load_checkpoint(tmp_path / "run"), str(path))
        refused(CheckpointDirectory(folder).latest, str(path))


def test_a_manifest_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "checkpoint-000000000002.torchrl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("manifest.json", "w") as member:
        for _ in range(80):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    refused(lambda: load_checkpoint(path), str(path), "bytes")
    refused(CheckpointDirectory(tmp_path).latest, str(path), "bytes")


def test_a_directory_is_no_checkpoint_file(tmp_path):
    folder = tmp_path / "checkpoint-000000000002"
    written(tmp_path / "a.torchrl")
    with zipfile.ZipFile(tmp_path / "a.torchrl") as archive:
        archive.extractall(folder)
    (tmp_path / "a.torchrl").unlink()
    refused(lambda: load_checkpoint(tmp_path), str(folder), "single regular file")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_before_anything_is_touched(tmp_path, value):
    path = tmp_path / "a.torchrl"
    good, bad = nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    bad[1].weight.data[1, 2] = value
    save_checkpoint(path, modules={"a_good": good, "policy": bad})
    checkpoint = load_checkpoint(path)
    refused(lambda: checkpoint.state_dict("policy"), str(path), "'policy'", "'1.weight'")
    other = nn.Linear(3, 1)
    before = other.weight.clone()
    new = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    refused(lambda: checkpoint.restore(modules={"a_good": other, "policy": new}), str(path), "'policy'", "'1.weight'")
    assert torch.equal(other.weight, before)
    assert torch.equal(checkpoint.state_dict("a_good")["weight"], good.weight)


def test_an_optimiser_that_is_not_finite_is_refused(tmp_path):
    path, policy = tmp_path / "a.torchrl", nn.Linear(2, 1)
    optimizer = torch.optim.Adam(policy.parameters())
    policy(torch.full((1, 2), torch.nan)).sum().backward()
    optimizer.step()
    save_checkpoint(path, optimizers={"adam": optimizer})
    refused(lambda: load_checkpoint(path).restore(optimizers={"adam": optimizer}), str(path), "'adam'", "exp_avg")


def test_infinite_buffers_are_kept_and_nan_in_them_is_not(tmp_path):
    module = nn.Linear(2, 1)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    path = save_checkpoint(tmp_path / "a.torchrl", modules={"policy": module})
    load_checkpoint(path).restore(modules={"policy": module})
    refused(lambda: load_checkpoint(path).state_dict("policy"), "'mask'")
    module.get_buffer("mask")[0] = torch.nan
    save_checkpoint(path, modules={"policy": module})
    refused(lambda: load_checkpoint(path).restore(modules={"policy": module}), "'mask'")


def test_what_counts_as_not_finite():
    inf = torch.full((2,), torch.inf)
    assert non_finite_entry({"actor.action_low": -inf, "actor.action_high": inf}) is None
    assert non_finite_entry({"actor.action_low": inf}) == "actor.action_low"
    assert non_finite_entry({"actor.action_high": torch.tensor([torch.nan])}) == "actor.action_high"
    assert non_finite_entry({"count": torch.tensor(3), "flags": torch.ones(2, dtype=torch.bool)}) is None
    assert non_finite_entry({"half": torch.tensor([70000.0]).half()}) == "half"
    assert non_finite_entry({"z": torch.tensor([complex(0.0, float("nan"))])}) == "z"
    assert non_finite_entry({"expanded": torch.zeros(1).expand(2**40)}) is None
    assert non_finite_entry({"expanded": torch.full((1,), torch.nan).expand(2**40)}) == "expanded"
    assert non_finite_entry({"claims": torch.zeros(2**21).as_strided((2**20, 2**20), (1, 1))}) is not None
    assert non_finite_entry({"state": {0: {"exp_avg": [torch.zeros(1), inf]}}}) == "state.0.exp_avg.1"
    assert non_finite_entry({"empty": torch.zeros(0)}) is None


@pytest.fixture
def slate_models(tmp_path):
    torch.manual_seed(0)
    catalogue = ItemCatalogue(torch.rand(12, 4).softmax(-1), 2)
    encoder = BeliefEncoder(BeliefEncoderConfig(num_items=12))
    ranker = SlateRanker(SlateRankerConfig(num_items=12, item_dim=4, slate_size=3))
    models = SlateModels("diffuse_topdown", catalogue, encoder, ranker, {"x": 1.0})
    return models.save(tmp_path / "models.torchrl")


def test_slate_models_of_a_doctored_file_are_refused(slate_models, tmp_path, marker):
    assert SlateModels.load(slate_models).quality == {"x": 1.0}
    original = slate_models.read_bytes()
    for change in (
        lambda e, m: m["metadata"]["task"].pop("num_topics"),
        lambda e, m: m["metadata"]["task"].update(task=3),
        lambda e, m: m["metadata"]["metadata"].pop("quality"),
        lambda e, m: m["metadata"]["metadata"]["module_configs"]["ranker"].update(unknown=3),
        lambda e, m: m["metadata"]["metadata"]["module_configs"]["ranker"].pop("hidden_sizes"),
        lambda e, m: m["metadata"]["metadata"]["module_configs"].update(belief_encoder=[1]),
        lambda e, m: m["components"].pop("module.catalogue") and None,
        lambda e, m: e.update({f"{folder_of(m, 'module.ranker')}/state.pt": torch_payload({"x": Payload(marker)})}),
    ):
        slate_models.write_bytes(original)
        edit(slate_models, change)
        refused(lambda: SlateModels.load(slate_models), str(slate_models))
    assert not marker.exists()


def test_slates_that_would_fill_the_memory_are_not_unpacked(slate_models, tmp_path):
    np.savez_compressed(tmp_path / "logs.npz", slates=np.zeros((2**15, 2**10), np.float32), metadata="{}")
    with pytest.raises(DataError, match=r"logs\.npz.*unpack"):
        relabel_slates(tmp_path / "logs.npz", SlateModels.load(slate_models), tmp_path / "out.npz")


def test_the_name_of_an_environment_imports_nothing():
    with pytest.raises(ValueError, match="alone, such as"):
        make_sardine_env("x:SlateTopK-Bored-v0")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"colour": 1}, "colour"),
        ({"width": "wide"}, "'str'"),
        ({"width": -3}, "width"),
        ({"network": "pickle"}, "pickle"),
        ({"pred_horizon": None}, "NoneType"),
        ({"colour": 1, "widht": 8}, "Did you mean width?"),
        ({"depth": 10**6}, "depth=1000000 in a FlowActorConfig is above its limit of 1000"),
        ({"width": 10**6}, "width=1000000 in a FlowActorConfig is above its limit of 100000"),
        ({"width": 10**5, "depth": 100}, "above the limit of 2147483648"),
    ],
)
def test_a_policy_that_cannot_be_built_is_refused_with_the_field(tmp_path, change, part):
    config = FlowActorConfig(action_dim=2, state_dim=3, width=8, depth=1)
    fields = {**dataclasses.asdict(config), **change}
    path = save_checkpoint(
        tmp_path / "a.torchrl", modules={"policy": make_flow_actor(config)}, actor_config=fields, rng=False
    )
    refused(lambda: load_policy(path), str(path), "'actor_config'", part)


LARGE_NETWORKS = {
    "actor": {"width": 20_000, "depth": 4},  # 1.6e9 weights by its sizes
    "critic": {"hidden_sizes": [20_000, 20_000], "num_qs": 2},
    "latent_policy": {"hidden_sizes": [20_000, 20_000]},
    "state_policy": {"hidden_sizes": [20_000, 20_000]},
    "critic without large products": {"hidden_sizes": [50_000], "num_qs": 100},  # by its number of inputs alone
}


@pytest.mark.parametrize("part", LARGE_NETWORKS)
def test_a_small_file_that_describes_a_large_network_is_refused_before_it_is_allocated(tmp_path, part):
    config = FlowActorConfig(action_dim=2, state_dim=3, width=8, depth=1)
    actor, name = make_flow_actor(config), part.split()[0]
    fields = config.to_dict() | (LARGE_NETWORKS[part] if name == "actor" else {})
    described = StatePolicyConfig(3, 2).to_dict() if name == "state_policy" else {}
    path = save_checkpoint(
        tmp_path / "a.torchrl",
        modules={"policy": actor, "critic": actor, "latent_policy": actor},
        actor_config=fields,
        metadata={"module_configs": {} if name == "actor" else {name: {**described, **LARGE_NETWORKS[part]}}},
        rng=False,
    )
    load = {
        "actor": [lambda: load_policy(path), lambda: load_flow_checkpoint(path)],
        "critic": [lambda: load_critic(path, actor)],
        "latent_policy": [lambda: load_latent_policy(path, actor)],
        "state_policy": [lambda: load_state_policy(path)],
    }[name]
    resource = pytest.importorskip("resource")
    limits, used = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used * resource.getpagesize() + 2**30, limits[1]))
    try:
        for each in load:
            refused(each, str(path), "describes a network of", "does not fit into the file")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_large_network_that_the_file_holds_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "UNCHECKED_WEIGHTS", 100)
    config = FlowActorConfig(action_dim=2, state_dim=3, width=32, depth=1)
    actor = make_flow_actor(config)
    critic = CriticConfig(num_qs=3, hidden_sizes=(16,))
    path = save_checkpoint(
        tmp_path / "a.torchrl",
        modules={"policy": actor, "critic": make_critic(critic, actor)},
        actor_config=config,
        metadata={"module_configs": {"critic": critic.to_dict()}},
        rng=False,
    )
    found, _ = load_policy(path)
    assert sum(p.numel() for p in found.parameters()) > 100
    assert load_critic(path, found)[0] is not None
    fields = {**config.to_dict(), "width": 128}
    wider = save_checkpoint(tmp_path / "b.torchrl", modules={"policy": actor}, actor_config=fields, rng=False)
    refused(lambda: load_policy(wider), "describes a network of", "weights of 'policy'")


@pytest.mark.parametrize("part", ["critic", "latent_policy", "state_policy"])
def test_a_module_of_absurd_size_is_refused_before_it_is_allocated(tmp_path, part):
    config = FlowActorConfig(action_dim=2, state_dim=3, width=8, depth=1)
    described = StatePolicyConfig(3, 2).to_dict() if part == "state_policy" else {}
    actor = make_flow_actor(config)
    path = save_checkpoint(
        tmp_path / "a.torchrl",
        modules={"policy": actor},
        actor_config=config.to_dict(),
        metadata={"module_configs": {part: {**described, "hidden_sizes": [10**6]}}},
        rng=False,
    )
    load = {
        "critic": lambda: load_critic(path, actor),
        "latent_policy": lambda: load_latent_policy(path, actor),
        "state_policy": lambda: load_state_policy(path),
    }[part]
    refused(load, str(path), f"module_configs.{part}", "hidden_sizes=1000000", "limit of 100000")


def test_slate_models_of_absurd_size_are_refused_before_they_are_allocated(slate_models):
    def change(entries, manifest):
        manifest["metadata"]["metadata"]["module_configs"]["ranker"]["item_dim"] = 10**9

    edit(slate_models, change)
    refused(lambda: SlateModels.load(slate_models), str(slate_models), "item_dim=1000000000", "limit of 100000")


def test_a_file_of_data_does_not_choose_what_is_imported(tmp_path):
    arrays = {name: np.zeros((4, 2), "f4") for name in ("observations", "next_observations", "actions")}
    arrays |= {"rewards": np.zeros(4, "f4"), "terminals": np.array([0, 0, 0, 1], bool)}
    np.savez(tmp_path / "a.npz", **arrays, metadata=json.dumps({"env": "gym/this_module_runs_code:Env-v0"}))
    with pytest.raises(DataError, match="this_module_runs_code"):
        offline_task(tmp_path / "a.npz")
