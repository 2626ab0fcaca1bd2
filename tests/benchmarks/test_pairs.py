"""The benchmarks of updates state the numbers of parameters and the lower bound of both sides, and quartiles."""

from __future__ import annotations

import csv
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from torchrl_flow.reports import BENCHMARK_COLUMNS
from torchrl_flow.util.timing import count_flops

ROOT = Path(__file__).parents[2]
SIZES = re.compile(r"(\d+) / (\d+) parameters, floor ([\d.e+-]+) / ([\d.e+-]+) ms$")
SMALL = {"rounds": 2, "batch_size": 4}
UPDATES = {
    "reinflow_update": ({**SMALL, "repeats": 1, "pred_horizon": 4, "action_dim": 2, "num_steps": 1}, 6),
    "flow_updates": ({**SMALL, "num_qs": 2}, 4),
    "dsrl_update": ({**SMALL, "gradient_steps": 1, "distill_steps": 1, "num_steps": (1,), "schedule": "published"}, 1),
    "offline_updates": ({**SMALL, "repeats": 2, "hidden_sizes": (8,)}, 3),
    "q_ensemble": ({**SMALL, "repeats": 1, "num_qs": 2, "hidden_sizes": (8, 8)}, 8),
    "flow_sampling": ({"rounds": 2, "batch_sizes": (2,), "num_steps": (1,), "networks": ("concat_mlp",)}, 2),
}


@pytest.fixture
def load(monkeypatch):
    """Import a benchmark as its own script would find the others: from their directory."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def rows(table):
    with table.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_pair_is_stored_per_computation_with_both_numbers_and_floors(load, tmp_path, monkeypatch, capsys):
    pairs = load("pairs")
    left, right = torch.ones(8, 8), torch.ones(8, 8)
    once = lambda: left @ right  # noqa: E731
    sides = {
        "once": pairs.Side(once, 11),
        "twice": pairs.Side(lambda: (once(), once(), once(), once()), 22, calls=2),
        "compiled": pairs.Side(lambda: None, 11, products=once),
    }
    monkeypatch.setattr(pairs, "gemm_rate", lambda device: 1e6)
    monkeypatch.setattr(pairs, "alternate", lambda forms, **options: {name: [4.0, 8.0, 8.0] for name in forms})
    wanted = [pairs.Pair("once", "twice", "a / b", "8 rows"), pairs.Pair("compiled", "once", "c / a", "")]
    table = tmp_path / "pairs.csv"
    pairs.compare(sides, wanted, rounds=3, results=table)
    first, second = rows(table)
    assert list(first) == list(BENCHMARK_COLUMNS)
    flops = count_flops(once)
    assert flops == 2 * 8**3
    # A million products a second; two of the four products belong to one computation.
    assert first["mode"] == f"8 rows, 11 / 22 parameters, floor {flops / 1e3:.3g} / {2 * flops / 1e3:.3g} ms"
    assert second["mode"] == f"11 / 11 parameters, floor {flops / 1e3:.3g} / {flops / 1e3:.3g} ms"
    assert [float(first[name]) for name in ("ours_ms", "reference_ms", "ratio")] == [8.0, 4.0, 2.0]
    assert (first["pair"], first["threads"], first["device"]) == ("a / b", "1", "cpu")
    assert capsys.readouterr().out.count("parameters, floor") == 2


@pytest.mark.parametrize("name", UPDATES)
def test_the_benchmark_of_an_update_has_parameters_floors_and_quartiles(load, name, tmp_path):
    options, number = UPDATES[name]
    benchmark, table = load(name), tmp_path / "pairs.csv"
    benchmark.main(benchmark.Args(**options, results=table))
    written = rows(table)
    assert len(written) == number
    for row in written:
        found = SIZES.search(row["mode"])
        assert found, row["mode"]
        ours, reference, *floors = map(float, found.groups())
        assert min(ours, reference, *floors) > 0
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])


def test_every_benchmark_of_an_update_is_among_these():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")}
    compares = {name for name, text in texts.items() if "import Pair, Side, compare" in text}
    # The official code is compared from its checkouts alone.
    assert compares == {*UPDATES, "official_code"}
    assert compares >= {name for name in texts if name.endswith(("_update", "_updates"))}
