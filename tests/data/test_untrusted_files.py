"""No loader of data runs what a file holds, follows it to another file, or trusts sizes that it claims."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile

import h5py
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer

from tests.data.test_mixed_replay import mixed, same, transitions
from tests.data.test_noise_cache import filled, make
from tests.doctored import TABLES, Payload, non_tensor, stray_pickle
from torchrl_flow.data import DataError, DemoReplayBuffer, DemoStore, load_demonstrations, read_maniskill, read_npz
from torchrl_flow.data.checks.archive import check_zip
from torchrl_flow.data.checks.json import parse_json
from torchrl_flow.data.checks.memmap import check_memmap, load_memmap
from torchrl_flow.data.checks.replay import check_dump, is_empty_prefetch

CHUNKS = {"pred_horizon": 5, "act_horizon": 3}


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code_ran"


def refused(call, *parts):
    """The refusal, whose message has every part; nothing else may be raised."""
    with pytest.raises(DataError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), (part, str(caught.value))


def test_the_payload_is_alive(tmp_path, marker):
    TensorDict({"x": torch.zeros(2)}, [2]).memmap(tmp_path / "table")
    non_tensor(tmp_path / "table", marker)
    TensorDict.load_memmap(tmp_path / "table", allow_pickle=True)
    assert marker.exists()


@pytest.mark.parametrize("name", TABLES)
def test_a_doctored_noise_cache_is_refused(tmp_path, marker, name):
    filled(tmp_path / "cache")
    TABLES[name](tmp_path / "cache" / "rows", marker)
    refused(lambda: make(tmp_path / "cache"), str(tmp_path / "cache"))
    assert not marker.exists()


@pytest.mark.parametrize("table", ["frames", "steps", "episodes"])
@pytest.mark.parametrize("name", TABLES)
def test_a_doctored_store_is_refused(store, marker, name, table):
    TABLES[name](store.root / table, marker)
    for load in (DemoStore.open, lambda path: DemoReplayBuffer(path, **CHUNKS)):
        refused(lambda load=load: load(store.root), str(store.root))
    refused(lambda: load_demonstrations(store.root, **CHUNKS), str(store.root))
    assert not marker.exists()


@pytest.mark.parametrize("name", TABLES)
def test_a_doctored_mixed_storage_is_refused(store, tmp_path, marker, name):
    buffer = mixed(store)
    buffer.extend(transitions(4))
    buffer._storage.dumps(tmp_path / "dump")
    TABLES[name](tmp_path / "dump" / "online", marker)
    refused(lambda: mixed(store)._storage.loads(tmp_path / "dump"), str(tmp_path / "dump"))
    assert not marker.exists()


@pytest.mark.parametrize("name", TABLES)
def test_a_doctored_dump_of_a_buffer_is_refused(store, tmp_path, marker, name):
    buffer = mixed(store, generator=torch.Generator(), demo_sampler=SamplerWithoutReplacement())
    buffer.extend(transitions(4))
    buffer.sample()
    for table in ("storage/online", "rng_state", "sampler/demos"):
        shutil.rmtree(tmp_path / "dump", ignore_errors=True)
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
        buffer.dumps(tmp_path / "dump")
        TABLES[name](tmp_path / "dump" / table, marker)
        other = mixed(store, demo_sampler=SamplerWithoutReplacement())
        refused(lambda other=other: other.loads(tmp_path / "dump"), str(tmp_path / "dump"))
        assert len(other) == len(store)
        assert not marker.exists()


def dumped(store, path, **options):
    buffer = mixed(store, **options)
    buffer.extend(transitions(4))
    buffer.dumps(path)
    return buffer


def test_a_pickled_queue_is_refused_and_an_empty_one_is_read(store, tmp_path, marker):
    buffer = dumped(store, tmp_path / "dump")
    assert not list((tmp_path / "dump").rglob("*.pkl"))
    # What TorchRL writes for a buffer without a queue, as in dumps of before.
    empty = pickle.dumps({"version": 1, "capacity": 0, "queue": ()})
    (tmp_path / "dump" / "prefetch.pkl").write_bytes(empty)
    (tmp_path / "dump" / "digests.json").unlink()
    other = mixed(store)
    other.loads(tmp_path / "dump")
    assert same(buffer[:], other[:])
    for queue in (pickle.dumps({"version": 1, "capacity": 0, "queue": (Payload(marker),)}), empty + b" ", b""):
        (tmp_path / "dump" / "prefetch.pkl").write_bytes(queue)
        refused(lambda: mixed(store).loads(tmp_path / "dump"), "prefetch.pkl", "pickle", str(tmp_path / "dump"))
    assert not marker.exists()


def test_what_stock_buffers_pickle_without_a_queue_is_known(tmp_path):
    for prefetch in (None, 3):
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10), batch_size=4, prefetch=prefetch)
        buffer.extend(TensorDict({"x": torch.zeros(5)}, [5]))
        buffer.dumps(tmp_path / str(prefetch))
        assert is_empty_prefetch(tmp_path / str(prefetch) / "prefetch.pkl")
        check_dump(tmp_path / str(prefetch))


@pytest.mark.parametrize("prefetch", [1, 2])
def test_a_queue_of_prefetched_batches_is_kept_without_pickle(store, tmp_path, marker, prefetch):
    buffer = mixed(store, prefetch=prefetch, generator=torch.Generator().manual_seed(5))
    buffer.extend(transitions(4))
    buffer.sample()
    buffer.dumps(tmp_path / "dump")
    assert not list((tmp_path / "dump").rglob("*.pkl"))
    other = mixed(store, prefetch=prefetch, generator=torch.Generator())
    other.loads(tmp_path / "dump")
    # Two threads of TorchRL's buffer draw later batches in any order; the queue itself keeps its order.
    assert all(same(buffer.sample(), other.sample()) for _ in range(6 if prefetch == 1 else 2))
    torch.save({"version": 1, "capacity": prefetch, "queue": [Payload(marker)]}, tmp_path / "dump" / "prefetch.pt")
    refused(lambda: mixed(store, prefetch=prefetch).loads(tmp_path / "dump"), "prefetch.pt")
    assert not marker.exists()


STRAYS = {
    "sampler/demos/streaming_slice.pt": lambda path, marker: torch.save({"x": Payload(marker)}, path),
    "transform.t": lambda path, marker: torch.save({"x": Payload(marker)}, path),
    "writer/old.pt": lambda path, marker: path.write_bytes(pickle.dumps(Payload(marker))),
    "writer/legacy.pt": lambda path, marker: torch.save(
        {"x": Payload(marker)}, path, _use_new_zipfile_serialization=False
    ),
    "storage/prefetch.pkl": lambda path, marker: path.write_bytes(pickle.dumps(Payload(marker))),
    "storage/online/x.pickle": lambda path, marker: path.write_bytes(pickle.dumps(Payload(marker))),
    "writer/checkpoint.h5": lambda path, marker: path.write_bytes(b"\x89HDF\r\n\x1a\n"),
    "writer/module.py": lambda path, marker: path.write_text("raise SystemExit"),
    "writer/link.json": lambda path, marker: path.symlink_to("/etc/hostname"),
    "writer/device.json": lambda path, marker: os.mkfifo(path),
    "writer/deep.json": lambda path, marker: path.write_text("[" * 100_000 + "]" * 100_000),
    "writer/eval.json": lambda path, marker: path.write_text(
        json.dumps([{"__type__": "torch.dtype", "value": f"__import__('os').mknod({str(marker)!r})"}])
    ),
    "writer/generation.memmap": lambda path, marker: path.write_bytes(b"1234"),
}


@pytest.mark.parametrize("member", STRAYS)
def test_a_stray_member_of_a_dump_is_refused(store, tmp_path, marker, member):
    dumped(store, tmp_path / "dump")
    path = tmp_path / "dump" / member
    path.parent.mkdir(exist_ok=True)
    STRAYS[member](path, marker)
    refused(lambda: mixed(store).loads(tmp_path / "dump"), str(tmp_path / "dump"), path.name)
    assert not marker.exists()


def test_mapped_files_beside_a_table_have_the_size_that_json_gives(tmp_path):
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "sampler_metadata.json").write_text('{"_max_capacity": 3}')
    for name in ("sumtree", "mintree"):
        (tmp_path / "sampler" / f"{name}.memmap").write_bytes(bytes(24))
    check_dump(tmp_path)
    (tmp_path / "sampler" / "sampler_metadata.json").write_text('{"_max_capacity": 1000000000}')
    refused(lambda: check_dump(tmp_path), "sampler/mintree.memmap", "24 bytes")


def test_a_stray_member_of_a_store_or_cache_is_refused(store, tmp_path, marker):
    (store.root / ".DS_Store").write_bytes(b"\0")
    DemoStore.open(store.root)
    filled(tmp_path / "cache")
    (tmp_path / "cache" / ".cache.json.part").write_text("{")  # of a kill while it was made anew
    make(tmp_path / "cache")
    stray_pickle(store.root, marker)
    refused(lambda: DemoStore.open(store.root), "other.pickle", str(store.root))
    stray_pickle(tmp_path / "cache", marker)
    refused(lambda: make(tmp_path / "cache"), "other.pickle", str(tmp_path / "cache"))
    assert not marker.exists()


def test_a_cache_is_not_made_through_a_link(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "latent.memmap").write_bytes(b"years of work")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "rows").symlink_to(tmp_path / "precious")
    refused(lambda: make(tmp_path / "cache"), "link rows")
    (tmp_path / "cache" / "rows").unlink()
    (tmp_path / "cache" / "rows").mkdir()
    (tmp_path / "cache" / "rows" / "latent.memmap").symlink_to(tmp_path / "precious" / "latent.memmap")
    refused(lambda: make(tmp_path / "cache"), "link rows/latent.memmap")
    assert (tmp_path / "precious" / "latent.memmap").read_bytes() == b"years of work"


METADATA = {
    "type of no tensor": lambda m: m["columns"]["steps"]["action"].update(dtype="load"),
    "shape of no tensor": lambda m: m["columns"]["steps"]["action"].update(shape="many"),
    "huge shape": lambda m: m["columns"]["steps"]["action"].update(shape=[2**62, 2**62]),
    "other shape": lambda m: m["columns"]["steps"]["action"].update(shape=[3, 37]),
    "column elsewhere": lambda m: m["columns"]["steps"].update({"../../x": m["columns"]["steps"]["action"]}),
    "table elsewhere": lambda m: m["columns"].update({"../x": {}}),
    "column that is no object": lambda m: m["columns"]["steps"].update(action=3),
    "table that is no object": lambda m: m["columns"].update(steps=["action"]),
    "no checksum": lambda m: m["columns"]["steps"]["action"].pop("sha256"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_does_not_fit_the_files_is_refused(store, name):
    metadata = json.loads((store.root / "metadata.json").read_text())
    METADATA[name](metadata)
    (store.root / "metadata.json").write_text(json.dumps(metadata))
    refused(lambda: DemoStore.open(store.root), str(store.root))


def test_headers_of_tensordict_0_15_pass_and_no_other_class(tmp_path):
    TensorDict({"x": torch.arange(3), "deep": {"y": torch.ones(3)}}, [3]).memmap(tmp_path / "rows")
    headers = [tmp_path / "rows" / "meta.json", tmp_path / "rows" / "deep" / "meta.json"]
    written = [json.loads(header.read_text()) for header in headers]

    def write(**extra):
        for header, entries in zip(headers, written, strict=True):
            header.write_text(json.dumps({**entries, **extra}))

    write(_format_version=1, _class="tensordict:TensorDict")
    assert load_memmap(tmp_path / "rows")["deep", "y"].tolist() == [1.0, 1.0, 1.0]
    for extra in ({"_format_version": 2}, {"_format_version": True}, {"_class": "os:system"}, {"_class": 1}):
        write(**extra)
        with pytest.raises(DataError, match=f"has the entry '{next(iter(extra))}'"):
            load_memmap(tmp_path / "rows")


def test_nested_and_odd_keys_and_empty_tensors_pass(tmp_path):
    rows = TensorDict(
        {
            "a": torch.rand(3, 2),
            "inner": {"x/../y": torch.ones(3, 1), "shape ä.b": torch.zeros(3, dtype=torch.bool)},
            "none": torch.zeros(3, 0),
            "half": torch.zeros(3, 2, dtype=torch.bfloat16),
        },
        [3],
    )
    rows.memmap(tmp_path / "rows")
    assert same(load_memmap(tmp_path / "rows"), rows)
    assert check_memmap(tmp_path / "rows")["inner", "x/../y"].shape == (3, 1)
    TensorDict({"x": torch.zeros(())}, []).memmap(tmp_path / "scalar")
    assert load_memmap(tmp_path / "scalar")["x"].shape == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"[" * 70 + b"]" * 70, "levels"), (b"\xff{}", "JSON"), (b'{"a":', "JSON"), (b"9" * 10_000, "JSON")],
)
def test_json_is_bounded(text, reason):
    refused(lambda: parse_json(text, "x.json"), "x.json", reason)


def archive(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def npz(path, **arrays):
    rows = {
        "observations": np.zeros((4, 2), np.float32),
        "actions": np.zeros((4, 1), np.float32),
        "rewards": np.zeros(4, np.float32),
        "terminals": np.array([0, 0, 0, 1], bool),
        **arrays,
    }
    np.savez(path, **rows)
    return path


def test_an_npz_runs_nothing_and_does_not_unpack_without_bounds(tmp_path, marker):
    read_npz(npz(tmp_path / "good.npz"))
    objects = np.array([Payload(marker)] * 4, dtype=object)
    refused(lambda: read_npz(npz(tmp_path / "objects.npz", rewards=objects)), "objects.npz", "rewards")
    np.savez_compressed(tmp_path / "bomb.npz", observations=np.zeros((2**16, 2**9), np.float32))
    refused(lambda: read_npz(tmp_path / "bomb.npz"), "bomb.npz", "unpack")
    assert not marker.exists()


def link_member(file):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    file.writestr(info, "/etc/passwd")


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a//b", "C:x", "a\\b", "a/", "./a", "a\nb"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name):
    path = archive(tmp_path / "x.zip", [("aa", "x"), (name, "x")])
    with zipfile.ZipFile(path) as file:
        refused(lambda: check_zip(file, "x.zip"), "x.zip", "member")


def test_links_repeated_and_overlapping_members_of_an_archive_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "twice.zip", [("a", "1"), ("a", "2")])
    with zipfile.ZipFile(path) as file:
        refused(lambda: check_zip(file, "twice.zip"), "twice")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        link_member(file)
    with zipfile.ZipFile(tmp_path / "link.zip") as file:
        refused(lambda: check_zip(file, "link.zip"), "link")
    # A table of contents in which two names share the same bytes.
    path = archive(tmp_path / "overlap.zip", [("a", bytes(10_000)), ("b", "x")])
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    struct.pack_into("<II", content, at + 20, 10_000, 10_000)
    struct.pack_into("<I", content, at + 42, 0)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as file:
        refused(lambda: check_zip(file, "overlap.zip"), "overlap")
    with zipfile.ZipFile(archive(tmp_path / "packed.zip", [("a", bytes(100))], zipfile.ZIP_LZMA)) as file:
        refused(lambda: check_zip(file, "packed.zip"), "compressed")


def external_storage(file, secret):
    del file["traj_0/obs"]
    size = secret.stat().st_size // 4
    file.create_dataset("traj_0/obs", (7, 1), "f4", external=[(str(secret), 0, 4 * min(size, 7))])


def external_link(file, secret):
    del file["traj_0/obs"]
    file["traj_0/obs"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/data")


def external_link_to_a_trajectory(file, secret):
    del file["traj_1"]
    file["traj_1"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")


def soft_link_to_an_external_link(file, secret):
    file["elsewhere"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")
    del file["traj_0/obs"]
    file["traj_0/obs"] = h5py.SoftLink("/elsewhere/data")


def virtual(file, secret):
    layout = h5py.VirtualLayout((7, 1), "f4")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "data", shape=(7, 1))
    del file["traj_0/obs"]
    file.create_virtual_dataset("traj_0/obs", layout)


def hollow(file, secret):
    del file["traj_0/obs"]
    file.create_dataset("traj_0/obs", (2**20, 2**20), "f4", chunks=(1, 2**10))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (external_storage, "stores its data in the file"),
        (external_link, "link"),
        (external_link_to_a_trajectory, "link"),
        (soft_link_to_an_external_link, "link"),
        (virtual, "virtual"),
        (hollow, "claims"),
    ],
)
def test_an_hdf5_file_that_reads_another_one_is_refused(write_maniskill, tmp_path, monkeypatch, change, reason):
    monkeypatch.setenv("TORCHRL_FLOW_CACHE", str(tmp_path / "cache"))
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(7, dtype=np.float32).tobytes())
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["data"] = np.arange(7, dtype=np.float32)[:, None]
    path = write_maniskill()
    with h5py.File(path, "a") as file:
        change(file, secret)
    refused(lambda: read_maniskill(path), path.name, "traj_" if "to_an" not in change.__name__ else "elsewhere", reason)
    refused(lambda: load_demonstrations(path, **CHUNKS), path.name)
    assert not (tmp_path / "cache").exists()


def test_links_within_an_hdf5_file_are_fine(write_maniskill, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHRL_FLOW_CACHE", str(tmp_path / "cache"))
    path = write_maniskill()
    with h5py.File(path, "a") as file:
        file["shared"] = file["traj_0/obs"][:]
        expected = file["shared"][:]
        del file["traj_0/obs"]
        file["traj_0/obs"] = h5py.SoftLink("/shared")
        file["traj_0/again"] = file["traj_0"]  # a hard link to its own group
        file["dangling"] = h5py.SoftLink("/nowhere")
    from torchrl_flow.data.demos.trajectory_file import TrajectoryFile

    with TrajectoryFile(path) as source:
        np.testing.assert_array_equal(source.group(0)["obs"], expected)
