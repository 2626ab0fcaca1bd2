"""Rounds of playing and cloning: what is kept, that a killed run goes on to the same bits, and the command `record`."""

from __future__ import annotations

import pytest
import torch

from examples import awsc_rounds, shortcut_flow_bc
from torchrl_flow.commands.record import RecordArgs
from torchrl_flow.data import DemoStore
from torchrl_flow.policies import load_policy
from torchrl_flow.runs import load_checkpoint

SMALL = {"eval_episodes": 20, "num_videos": 0, "results": None, "save_every": 20}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = {"task": "planar", "num_demos": 60, "iterations": 400, "width": 96, "depth": 2, "compare_steps": ()}
        shortcut_flow_bc.main(
            shortcut_flow_bc.Args(name="clone", runs=str(folder), quality="expert", **options, **SMALL)
        )
    return folder


def rounds(runs, name, **options):
    given = {"rounds": 2, "episodes": 30, "iterations": 40, "eval_every": 0, "batch_size": 32, **SMALL, **options}
    return awsc_rounds.main(awsc_rounds.Args(policy=str(runs / "clone"), runs=str(runs), name=name, **given))


def weights(run):
    return load_checkpoint(run).state_dict("ema_policy")


def test_rounds_keep_what_solves_the_task_and_count_what_was_played(runs):
    rounds(runs, "whole")
    first, second = (DemoStore.open(runs / "whole" / "rounds" / str(number)) for number in (1, 2))
    assert first.num_episodes == first.metadata["solved"] > 0, "the clone solves nothing: nothing is tested"
    assert second.num_episodes == first.num_episodes + second.metadata["solved"]
    assert bool(second.episodes["success"].all())
    assert first.metadata["env_steps"] == 30 * 100
    assert load_checkpoint(runs / "whole").counters["env_steps"] == 60 * 100
    seeds = second.episodes["seed"]
    assert len(seeds.unique()) == len(seeds)
    assert min(seeds) >= 1_000_000
    assert max(seeds) < 2_000_030
    own = first.episodes["success"].numel()
    assert torch.equal(second.steps["action"][: len(first)], first.steps["action"]), own


def test_a_run_that_was_stopped_in_a_round_ends_with_the_same_bits(runs, monkeypatch):
    rounds(runs, "straight")
    original = awsc_rounds.Learner.update
    calls = []

    def stops(self, args, data, step):
        calls.append(step)
        if len(calls) == 65:
            raise InterruptedError
        return original(self, args, data, step)

    monkeypatch.setattr(awsc_rounds.Learner, "update", stops)
    with pytest.raises(InterruptedError):
        rounds(runs, "stopped")
    monkeypatch.undo()
    rounds(runs, "stopped", resume=True)
    one, other = weights(runs / "straight"), weights(runs / "stopped")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_round_can_go_on_from_the_weights_of_the_one_before(runs):
    rounds(runs, "further", iterations=1, rounds=1, lr=1e-9)
    before, after = (load_policy(runs / name)[0].state_dict() for name in ("clone", "further"))
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    rounds(runs, "anew", anew=True, iterations=1, rounds=1, lr=1e-9)
    anew = load_policy(runs / "anew")[0].state_dict()
    assert not all(torch.allclose(before[key], anew[key], atol=1e-6) for key in before)


def test_record_keeps_whole_episodes_or_what_solves_the_task(runs, tmp_path):
    options = {"episodes": 12, "checkpoint": str(runs / "clone")}
    assert "12 of 12 episodes, 1200 steps" in RecordArgs(output=str(tmp_path / "all"), keep="all", **options).record()
    store = DemoStore.open(tmp_path / "all", verify=True)
    assert store.episodes["seed"].tolist() == list(range(1_000_000, 1_000_012))
    solved = int(store.episodes["success"].sum())
    text = RecordArgs(output=str(tmp_path / "some"), **options).record()
    assert f"{solved} of 12 episodes" in text
    assert f"--num-demos {solved}" in text
    assert DemoStore.open(tmp_path / "some").task_info["task"] == "planar"


def test_nothing_solved_is_said(runs, tmp_path):
    args = RecordArgs(checkpoint=str(runs / "clone"), output=str(tmp_path / "none"), episodes=2, max_episode_steps=5)
    with pytest.raises(SystemExit, match=r"none of 2 episodes .* --keep all"):
        args.record()
    assert not (tmp_path / "none").exists()
