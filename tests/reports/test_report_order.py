"""What a report shows first, in which units, and what it compares with what."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
import torch

from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.evaluation import EvaluationResult, compare_num_steps, evaluate
from torchrl_flow.figures.plots import curves_svg
from torchrl_flow.functional import difference_interval, wilson_interval
from torchrl_flow.modules import FlowActorConfig, make_flow_actor
from torchrl_flow.offline.report import write_offline_report
from torchrl_flow.reports import conclude, write_report
from torchrl_flow.reports.stage_comparison import compare_stages, stages_svg
from torchrl_flow.sweeps.conclusion import SeedRun, VariantResult, conclude_sweep, exceeds_spread
from torchrl_flow.sweeps.plan import Variant
from torchrl_flow.sweeps.report import write_sweep_report

CONFIG = FlowActorConfig(
    action_dim=3, state_dim=12, obs_horizon=1, pred_horizon=8, act_horizon=4, width=16, depth=1, num_steps=2
)
TASK = {"task": "planar", "obs_mode": "state", "control_mode": "delta_position"}
STEPS = ([1, 2, 3], [0.1, 0.2, 0.3])


def result(successes=10, *, seeds=range(20), policy_ms=3.0, wall_s=12.0, videos=()):
    n = len(seeds)
    once = torch.arange(n) < successes
    return EvaluationResult(
        seeds=tuple(seeds), returns=once.double(), lengths=torch.full((n,), 5), success_once=once, success_at_end=once,
        wall_s=wall_s, policy_ms=policy_ms, policy_calls=9, videos=list(videos),
    )  # fmt: skip


def places(text, *parts):
    return [text.index(part) for part in parts]


def test_success_comes_first_and_bookkeeping_last_and_folded(tmp_path):
    names = ["train/wall_s", "train/gradient_norm_actor", "train/epoch_s", "train/loss_actor", "eval/wall_s",
             "eval/success_once", "eval/return"]  # fmt: skip
    curves = {**{name: STEPS for name in names}, "train/env_steps": ([1, 2, 3], [100.0, 200.0, 300.0])}
    page = write_report(tmp_path / "r.html", title="x", results={"final": result()}, curves=curves, command="python x")
    text = page.read_text(encoding="utf-8")
    body = text[text.index("<main>") :]
    found = places(body, "Success once", "<h2>Results", "<h2>Evaluations during training", "<h2>Training curves",
                   "<h2>Every episode", "<h2>How it was made", "<summary>Bookkeeping: 5 curves")  # fmt: skip
    assert found == sorted(found)
    labels = re.findall(r'aria-label="([^"]+)"', body)
    assert labels == [
        *("eval/success_once", "eval/return", "train/loss_actor"),
        *("train/wall_s", "train/gradient_norm_actor", "train/epoch_s", "eval/wall_s", "train/env_steps"),
    ]
    folded = body.index("<details><summary>Bookkeeping")
    assert body.index('aria-label="train/wall_s"') > folded > body.index('aria-label="train/loss_actor"')


def test_curves_have_units(tmp_path):
    online = {"train/env_steps": ([1, 2, 3], [100.0, 200.0, 300.0]), "eval/success_once": STEPS, "train/wall_s": STEPS}
    text = write_report(tmp_path / "a.html", title="x", curves=online).read_text(encoding="utf-8")
    # Twice below the axis and once beside it, in the drawing of the counter itself.
    assert text.count(">environment steps<") == 3
    assert text.count(">iterations<") == 1
    assert text.count(">success rate<") == 1
    assert text.count(">seconds<") == 1
    offline = {"train/loss": STEPS, "q/data": STEPS, "q/policy": STEPS}
    text = write_offline_report(tmp_path / "b.html", title="x", curves=offline).read_text(encoding="utf-8")
    assert text.count(">gradient steps<") == 2
    assert ">value<" in text
    assert ">loss<" in text


def test_an_offline_report_has_the_same_order(tmp_path):
    curves = {name: STEPS for name in ("train/wall_s", "train/loss", "q/data", "eval/return")}
    path = write_offline_report(tmp_path / "r.html", title="x", returns=[("cql", 1.0, 0.1)], curves=curves)
    text = path.read_text(encoding="utf-8")
    assert re.findall(r'aria-label="([^"]+)"', text) == [
        "eval/return",
        "value of actions",
        "train/loss",
        "train/wall_s",
    ]
    found = places(text, "<h2>Mean return", 'aria-label="eval/return"', "<summary>Bookkeeping: 1 curve<")
    assert found == sorted(found)
    assert "default-src 'none'" in text


def test_times_of_a_filmed_evaluation_are_left_out(tmp_path):
    films = [np.zeros((2, 8, 8, 3), np.uint8)]
    results = {
        "plain": result(policy_ms=3.21, wall_s=45.6),
        "filmed": result(policy_ms=9.87, wall_s=65.4, videos=films),
    }
    text = write_report(tmp_path / "r.html", title="x", results=results).read_text(encoding="utf-8")
    assert ">3.21<" in text
    assert ">45.6<" in text
    assert "9.87" not in text
    assert "65.4" not in text
    assert "rendering takes part" in text
    assert "rendering" not in write_report(tmp_path / "p.html", title="x", results={"a": result()}).read_text()
    alone = write_report(tmp_path / "f.html", title="x", results={"f": results["filmed"]}).read_text(encoding="utf-8")
    assert "Policy call" not in alone


def test_evaluations_on_other_seeds_are_marked(tmp_path):
    same = {"a": result(), "b": result(3, seeds=range(19, -1, -1))}
    assert "same seeds" not in write_report(tmp_path / "a.html", title="x", results=same).read_text()
    other = {"a": result(), "b": result(3, seeds=range(100, 120))}
    assert "not on the same seeds" in write_report(tmp_path / "b.html", title="x", results=other).read_text()


class SlowToDraw(PlanarPickPlaceEnv):
    """Takes time for each frame."""

    drawn = 0

    def render(self, *args, **kwargs):
        type(self).drawn += 1
        time.sleep(0.25)
        return super().render(*args, **kwargs)


def test_a_run_is_filmed_in_a_pass_that_no_time_includes(tmp_path):
    env = make_chunk_env(SlowToDraw(max_episode_steps=8), obs_horizon=1, act_horizon=4, gamma=1.0)
    actor = make_flow_actor(CONFIG)
    seeds = range(10_000, 10_003)
    evaluation, page = conclude(tmp_path, actor, env, seeds, task=TASK, recipe="r", num_videos=2, progress=False)
    assert SlowToDraw.drawn == 2 * (1 + 8)
    assert evaluation.wall_s < 0.25 * SlowToDraw.drawn / 2
    assert not evaluation.filmed
    plain = evaluate(env, actor, seeds, progress=False)
    assert torch.equal(evaluation.returns, plain.returns)
    text = page.read_text(encoding="utf-8")
    assert "data:video/mp4" in text
    assert "Policy call" in text
    assert (tmp_path / "episodes.mp4").stat().st_size > 0


def test_a_run_is_concluded_where_no_video_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_flow.figures.video._has_ffmpeg", False)
    monkeypatch.setattr("torchrl_flow.figures.video._has_pillow", False)
    env = make_chunk_env(PlanarPickPlaceEnv(max_episode_steps=4), obs_horizon=1, act_horizon=4, gamma=1.0)
    _, page = conclude(tmp_path, make_flow_actor(CONFIG), env, [1], task=TASK, recipe="r", progress=False)
    assert "torchrl-flow[plot]" in page.read_text(encoding="utf-8")
    assert (tmp_path / "evaluation.json").exists()


def test_no_number_of_steps_pays_for_what_its_first_call_sets_up():
    env = make_chunk_env(PlanarPickPlaceEnv(max_episode_steps=8), obs_horizon=1, act_horizon=4, gamma=1.0)
    known = set()

    def policy(tensordict, num_steps):
        if num_steps not in known:
            time.sleep(1.0)
            known.add(num_steps)
        return tensordict.set("action", torch.zeros(env.action_spec.shape))

    found = compare_num_steps(env, policy, [1, 2], num_steps=(1, 2), progress=False)
    assert all(value.wall_s < 1.0 for value in found.values())


def test_stages_are_drawn_by_the_same_pipeline(tmp_path):
    svg = stages_svg({"prior": result(4), "1": result(16)}, title="stages")
    assert svg.startswith("<svg xmlns=")
    assert ">success rate (once)<" in svg
    assert "var(--accent)" in svg
    env = make_chunk_env(PlanarPickPlaceEnv(max_episode_steps=4), obs_horizon=1, act_horizon=4, gamma=1.0)
    compare_stages(tmp_path, {"prior": make_flow_actor(CONFIG)}, env, [1, 2], task=TASK, recipe="r", progress=False)
    assert (tmp_path / "stages.svg").read_text(encoding="utf-8").startswith("<svg xmlns=")


def test_bands_and_members_are_drawn():
    curve = ([0.0, 1.0], [0.2, 0.4])
    svg = curves_svg({"_a": curve, "b": curve}, title="t", bands={"b": ([0.0, 1.0], [0.1, 0.3], [0.3, 0.5])},
                     members={"b": [curve, curve]}, x_label="seconds", y_label="loss")  # fmt: skip
    assert svg.count("PolyCollection") == 1
    assert svg.count("stroke-opacity: 0.45") == 2
    for text in (">_a<", ">b<", ">seconds<", ">loss<"):
        assert text in svg


def variant(name, successes, *, episodes=100, by_seed=(), **more):
    rate, interval = successes / episodes, wilson_interval(successes, episodes)
    return VariantResult(Variant(name, "c"), len(by_seed) or 1, rate, interval, None, None, None, ([1, 2], [0, rate]),
                         successes=successes, episodes=episodes, seed_success=by_seed or (rate,), **more)  # fmt: skip


def test_an_interval_of_a_difference_is_newcombes():
    # The first example of his paper.
    assert difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference_interval(48, 80, 56, 70) == pytest.approx((-0.3339, -0.0524), abs=1e-4)
    assert difference_interval(10, 10, 0, 20)[1] == 1.0
    with pytest.raises(ValueError, match="n must be at least 1"):
        difference_interval(1, 2, 0, 0)


def test_a_difference_exceeds_the_spread_of_episodes_and_seeds():
    low, high = variant("a", 50, by_seed=(0.4, 0.6)), variant("b", 80, by_seed=(0.75, 0.85))
    assert exceeds_spread(high, low)
    assert exceeds_spread(low, high)
    assert not exceeds_spread(variant("c", 80, by_seed=(0.55, 1.0)), low)
    assert not exceeds_spread(variant("d", 55, by_seed=(0.61, 0.62)), low)


def test_a_sweep_concludes(tmp_path):
    base = variant("baseline", 50, by_seed=(0.4, 0.6))
    broken = VariantResult(Variant("broken", "c"), 0, None, None, None, None, None, ([], []), 2)
    found = [base, variant("better", 82, by_seed=(0.8, 0.84)), variant("best", 85, by_seed=(0.8, 0.9)),
             variant("worse", 20, by_seed=(0.15, 0.25)), variant("same", 52, by_seed=(0.5, 0.54)), broken]  # fmt: skip
    lines = "\n".join(conclude_sweep(found))
    assert "Best: best, success 0.850 [0.767, 0.907] over 2 seeds and 100 episodes, 0.800 to 0.900 by seed." in lines
    assert "The best differs from it by +0.350 [+0.223, +0.462], which exceeds the spread." in lines
    assert "Not told from the best by these runs: better." in lines
    assert "Beyond the spread above the baseline: best, better." in lines
    assert "Beyond the spread below the baseline: worse." in lines
    assert "Without a finished run: broken (2 crashed)." in lines


def test_a_conclusion_says_what_is_not_known():
    assert conclude_sweep([]) == ["No run is finished."]
    one_seed = "\n".join(conclude_sweep([variant("baseline", 50), variant("a", 40)]))
    assert "No configuration is better than the baseline." in one_seed
    assert "how much the seed matters is not known" in one_seed
    unequal = "\n".join(conclude_sweep([variant("baseline", 50), variant("a", 40, by_seed=(0.4, 0.4))]))
    assert "different numbers of finished seeds: baseline 1, a 2" in unequal


def test_a_sweep_links_to_its_runs(tmp_path):
    sweep = tmp_path / "sweep"
    odd = "javascript:alert(1)\" onclick='x"
    runs = []
    for name, state in (("a-0", "finished"), ("a-1", "crashed"), (odd, "finished"), ("a-3", "waiting")):
        (sweep / name).mkdir(parents=True)
        log = sweep / "logs" / "a-1.log" if state == "crashed" else sweep / "logs" / "none.log"
        runs.append(SeedRun(len(runs), state, sweep / name, log))
    for run in (runs[0], runs[2]):
        (run.directory / "report.html").write_text("x")
    runs[1].log.parent.mkdir()
    runs[1].log.write_text("x")
    page = write_sweep_report(sweep, [variant("a", 3, runs=tuple(runs))], title="x").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]*)">([^<]*)</a>', page)
    assert links == [
        ("a-0/report.html", "seed 0"),
        ("logs/a-1.log", "seed 1 (crashed)"),
        ("javascript%3Aalert%281%29%22%20onclick%3D%27x/report.html", "seed 2"),
    ]
    assert "seed 3 (waiting)" in page
    assert places(page, "<h2>Conclusion", "<h2>Configurations", "<h2>Success during") == sorted(
        places(page, "<h2>Conclusion", "<h2>Configurations", "<h2>Success during")
    )
