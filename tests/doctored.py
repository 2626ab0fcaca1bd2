"""Files as somebody might doctor them: each would run code, or reach for another file, if a loader trusted it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from tensordict import LazyStackedTensorDict, NonTensorData, TensorDict


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mknod, (self.marker,))


def _rewrite(table: Path, change) -> None:
    """Replaces a memory-mapped TensorDict by a changed one."""
    data = TensorDict.load_memmap(table, allow_pickle=False).clone()
    shutil.rmtree(table)
    change(data).memmap(table)


def _header(table: Path, change) -> None:
    header = json.loads((table / "meta.json").read_text())
    change(header)
    (table / "meta.json").write_text(json.dumps(header))


def _leaf(table: Path) -> str:
    header = json.loads((table / "meta.json").read_text())
    return next(key for key, entry in header.items() if isinstance(entry, dict) and "dtype" in entry)


def non_tensor(table, marker):
    _rewrite(table, lambda data: data.set("note", NonTensorData(Payload(marker), batch_size=data.batch_size)))


def nested_non_tensor(table, marker):
    inner = TensorDict({"deep": NonTensorData(Payload(marker))}, [])
    _rewrite(table, lambda data: data.set("inner", inner.expand(data.batch_size)))


def whole_table_non_tensor(table, marker):
    shutil.rmtree(table)
    NonTensorData(Payload(marker)).memmap(table)


def non_tensor_text(table, marker):
    _rewrite(table, lambda data: data.set("note", NonTensorData("text", batch_size=data.batch_size)))


def lazy_stack(table, marker):
    _rewrite(table, lambda data: LazyStackedTensorDict(data, data.clone(), stack_dim=0))


def stray_pickle(table, marker):
    (table / "other.pickle").write_bytes(b"cposix\nmknod\n(S'" + str(marker).encode() + b"'\ntR.")


def stray_torch_file(table, marker):
    torch.save({"x": Payload(marker)}, table / "state.pt")


def foreign_class(table, marker):
    _header(table, lambda header: header.update(_type="<class 'tensordict.tensorclass.NonTensorData'>"))
    stray_pickle(table, marker)


def linked_file(table, marker):
    path = table / f"{_leaf(table)}.memmap"
    path.rename(table.parents[1] / "elsewhere")
    path.symlink_to(table.parents[1] / "elsewhere")


def linked_table(table, marker):
    shutil.move(table, table.parents[1] / "elsewhere")
    table.symlink_to(table.parents[1] / "elsewhere")


def shorter_file(table, marker):
    path = table / f"{_leaf(table)}.memmap"
    os.truncate(path, path.stat().st_size - 1)


def longer_file(table, marker):
    path = table / f"{_leaf(table)}.memmap"
    os.truncate(path, path.stat().st_size + 8)


def missing_file(table, marker):
    (table / f"{_leaf(table)}.memmap").unlink()


def huge_shape(table, marker):
    key = _leaf(table)
    _header(table, lambda header: header[key].update(shape=[2**40, 2**40]))


def negative_shape(table, marker):
    key = _leaf(table)
    _header(table, lambda header: header[key].update(shape=[-1, 3]))


def unknown_type(table, marker):
    key = _leaf(table)
    _header(table, lambda header: header[key].update(dtype="torch.load"))


def outside_key(table, marker):
    entry = {"device": "cpu", "shape": [1], "dtype": "torch.uint8", "is_nested": False}
    (table.parent / "secret.memmap").write_bytes(b"x")
    _header(table, lambda header: header.update({"../secret": entry}))


def deep_header(table, marker):
    (table / "meta.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def no_header(table, marker):
    (table / "meta.json").unlink()


def device_of_code(table, marker):
    _header(table, lambda header: header.update(device="__import__('os')"))


TABLES = {
    change.__name__: change
    for change in (
        *(non_tensor, nested_non_tensor, whole_table_non_tensor, non_tensor_text, lazy_stack, stray_pickle),
        *(stray_torch_file, foreign_class, linked_file, linked_table, shorter_file, longer_file, missing_file),
        *(huge_shape, negative_shape, unknown_type, outside_key, deep_header, no_header, device_of_code),
    )
}
"""Ways to doctor the directory of a memory-mapped TensorDict: ``change(table, marker)``."""
