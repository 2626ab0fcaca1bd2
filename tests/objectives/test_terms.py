"""The terms that losses hold, by themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tensordict import TensorDict, TensorDictParams

from tests.objectives.latent_fixtures import H_A, A, D, H, T, make_networks
from torchrl_flow.objectives import AdvantageWeightTerm, ChunkTDTerm, FlowLossModule, ShortCutTerm


def params_of(network):
    return TensorDictParams(TensorDict.from_module(network), no_convert=True)


def observations(rows=6):
    return TensorDict(
        observation=torch.randn(rows, T, D, generator=torch.Generator().manual_seed(3)), batch_size=[rows]
    )


def test_a_row_of_flow_matching_is_the_velocity_error():
    flow, *_ = make_networks()
    data, chunk, mask = observations(), torch.randn(6, H, A), torch.ones(6, H, dtype=torch.bool)
    mask[1, 3:] = False
    torch.manual_seed(1)
    errors, means = ShortCutTerm(consistency_fraction=0.0)(flow, params_of(flow), params_of(flow), data, chunk, mask)
    torch.manual_seed(1)
    x_1 = torch.where(mask[..., None], flow.action_normalizer(chunk), torch.zeros(()))
    x_0 = torch.randn_like(x_1)
    t, _ = torch.rand(2, 6)
    x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * x_1
    velocity = flow.velocity(flow.features(data), x_t, t)
    wanted = (velocity - (x_1 - x_0)).square().mean(-1)
    wanted = torch.stack([row[kept].mean() for row, kept in zip(wanted, mask)])
    torch.testing.assert_close(errors, wanted)
    torch.testing.assert_close(means["flow_error"], wanted.mean())
    assert means["consistency_error"].isnan()


def test_values_chunks_and_bootstrap_fit_together():
    flow, _, critic, _ = make_networks(num_qs=3)
    term, data = ChunkTDTerm(num_min_qs=3, num_action_samples=4), observations()
    chunks = term.chunks(flow, params_of(flow), data, 4)
    assert chunks.shape == (6, 4, H_A, A)
    q = term.values(critic, params_of(critic), data, chunks)
    assert q.shape == (3, 6, 4)
    best = q.mean(0).argmax(-1)
    wanted = torch.stack([q[:, row, best[row]].amin() for row in range(6)])
    torch.testing.assert_close(term.bootstrap(q), wanted)
    torch.testing.assert_close(term.values(critic, params_of(critic), data, chunks[:, 0]), q[..., 0])


def test_chunks_start_from_what_steers_them():
    flow, *_ = make_networks()
    seen = []
    term = ChunkTDTerm()
    term.chunks(flow, params_of(flow), observations(), 2, lambda data, noise: seen.append(noise) or 0 * noise)
    assert seen[0].shape == (6, 2, H, A)
    still = term.chunks(flow, params_of(flow), observations(), 2, lambda data, noise: 0 * noise)
    assert torch.equal(still[:, 0], still[:, 1])


def test_the_critics_error_is_the_mean_over_members():
    q, target = torch.randn(3, 5, requires_grad=True), torch.randn(5)
    rows, largest, metrics = ChunkTDTerm()(q, target)
    torch.testing.assert_close(rows, ((q - target) ** 2).mean(0))
    torch.testing.assert_close(largest, (q - target).abs().amax(0).detach())
    assert rows.requires_grad
    assert not any(value.requires_grad for value in (largest, *metrics.values()))


def test_weights_tell_what_they_keep():
    weights, kept, metrics = AdvantageWeightTerm(beta=0.0)(torch.tensor([1.0, -1.0, -2.0]), always=torch.zeros(3) > 1)
    assert kept.tolist() == [True, False, False]
    assert weights.tolist() == [1.0, 0.0, 0.0]
    assert metrics["policy_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ShortCutTerm(consistency_fraction=1.5), "consistency_fraction"),
        (lambda: ShortCutTerm(target_clip=0.0), "target_clip must be above 0, or None for no bound"),
        (lambda: ChunkTDTerm(num_min_qs=0), "num_min_qs"),
        (lambda: ChunkTDTerm(target_reduction="max"), "target_reduction must be 'min', 'mean' or 'ucb'"),
        (lambda: AdvantageWeightTerm(beta=-1.0), "beta"),
        (lambda: AdvantageWeightTerm(norm="range"), "norm must be"),
        (lambda: FlowLossModule("average"), "reduction must be"),
    ],
)
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_terms_are_values():
    """Equal by their options, and not to be changed: another one is put in the place."""
    assert ShortCutTerm() == ShortCutTerm(0.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ChunkTDTerm().kappa = 0.0
