"""The third-party simulator, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from torchrl.envs.utils import check_env_specs

from torchrl_flow.offline import offline_task
from torchrl_flow.recsys import CollectSardineArgs, SardineTask, collect_sardine
from torchrl_flow.recsys.sardine_env import make_sardine_env


def test_bound_must_be_positive():
    with pytest.raises(ValueError, match="bound"):
        make_sardine_env(bound=0.0)


def test_specs_collection_and_evaluation(tmp_path):
    pytest.importorskip("sardine")
    check_env_specs(make_sardine_env())
    args = CollectSardineArgs(episodes=3, output=str(tmp_path / "a.npz"))
    path = collect_sardine(args, progress=False)
    with np.load(path, allow_pickle=False) as file:
        assert file["observations"].shape[1] == 30
        assert file["timeouts"].sum() == 3
        np.testing.assert_array_equal(file["observations"][1], file["next_observations"][0])
    task = offline_task(path)
    assert isinstance(task, SardineTask)
    references = task.references(episodes=2)
    assert references["sto"] > references["random_latent"]
