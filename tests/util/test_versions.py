from __future__ import annotations

import sys

import pytest

from torchrl_flow.util import collect_versions, command_line


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("examples/a.py", "python examples/a.py --name 'x y'"),
        ("{cwd}/examples/a.py", "python examples/a.py --name 'x y'"),
        ("/elsewhere/a.py", "python /elsewhere/a.py --name 'x y'"),
        ("pytest", "pytest --name 'x y'"),
        ("torchrl-flow run iql", "torchrl-flow run iql --name 'x y'"),
        ("python -m torchrl_flow run iql", "python -m torchrl_flow run iql --name 'x y'"),
        ("/venv/bin/torchrl-flow", "torchrl-flow --name 'x y'"),
        ("/with spaces/a.py", "python '/with spaces/a.py' --name 'x y'"),
    ],
)
def test_command_names_the_program_from_where_it_was_called(tmp_path, monkeypatch, program, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program.format(cwd=tmp_path), "--name", "x y"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert command_line() == expected


def test_versions_hold_what_a_result_depends_on():
    assert {"torchrl_flow", "python", "torch", "torchrl", "tensordict"} <= set(collect_versions())
