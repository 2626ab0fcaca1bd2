from __future__ import annotations

import shutil

import pytest
import torch

from torchrl_flow.data import DataError, DataWarning, DemoReplayBuffer, NoiseCache, data_digest, module_digest

OPTIONS = {"num_rows": 23, "latent_shape": (2, 3), "block_size": 5}
IDENTITY = {"data": "d", "flow": "f", "search": {"mode": "inversion", "steps": 30}}


def compute(rows, generator):
    latent = torch.randn(len(rows), 2, 3, generator=generator) + rows[:, None, None]
    return latent, latent.abs().mean((-2, -1))


def make(root, **kwargs):
    return NoiseCache(root, **{**OPTIONS, "identity": IDENTITY, **kwargs})


def filled(root):
    cache = make(root)
    for _ in cache.fill(compute):
        pass
    return cache


def test_a_cache_that_was_cut_short_is_gone_on_with_and_equals_one_go(tmp_path):
    whole = filled(tmp_path / "whole")
    part = make(tmp_path / "part")
    blocks = part.fill(compute)
    assert [next(blocks), next(blocks)] == [5, 10]
    del part, blocks  # as a kill would
    again = make(tmp_path / "part")
    assert again.missing == 13
    with pytest.raises(DataError, match="lacks 13 of 23 rows"):
        _ = again.latent
    calls = []
    for _ in again.fill(lambda rows, generator: calls.append(rows[0].item()) or compute(rows, generator)):
        pass
    assert calls == [10, 15, 20]
    assert torch.equal(again.latent, whole.latent)
    assert torch.equal(again.residual, whole.residual)


def test_a_block_that_was_half_written_is_done_again(tmp_path):
    whole = filled(tmp_path / "whole")

    def fails(rows, generator):
        if rows[0] == 10:
            raise KeyboardInterrupt
        return compute(rows, generator)

    part = make(tmp_path / "part")
    with pytest.raises(KeyboardInterrupt):
        list(part.fill(fails))
    again = make(tmp_path / "part")
    list(again.fill(compute))
    assert torch.equal(again.latent, whole.latent)


def test_a_full_cache_computes_nothing(tmp_path):
    filled(tmp_path)
    assert list(make(tmp_path).fill(lambda *_: pytest.fail("computed again"))) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"identity": {**IDENTITY, "flow": "g"}},
        {"identity": {**IDENTITY, "data": "e"}},
        {"identity": {**IDENTITY, "search": {"mode": "inversion", "steps": 31}}},
        {"num_rows": 24},
        {"latent_shape": (1, 3)},
        {"seed": 1},
    ],
)
def test_a_stale_cache_is_refused_by_name(tmp_path, changed):
    filled(tmp_path)
    name = next(iter(changed)) if "identity" not in changed else None
    if name is None:
        name = next(key for key in IDENTITY if changed["identity"][key] != IDENTITY[key])
    with pytest.raises(DataError, match=f"something else. {name}"):
        make(tmp_path, **changed)


def test_a_damaged_cache_is_refused(tmp_path):
    filled(tmp_path)
    shutil.rmtree(tmp_path / "rows")
    with pytest.raises(DataError, match="damaged"):
        make(tmp_path)


def test_digests_tell_weights_and_data_apart(store):
    layer = torch.nn.Linear(2, 2)
    before = module_digest(layer)
    layer.weight.data[0, 0] += 1e-6
    assert module_digest(layer) != before
    options = {"pred_horizon": 4, "act_horizon": 2}
    plain, discounted, shorter = (
        data_digest(DemoReplayBuffer(store, **{**options, **c})) for c in ({}, {"gamma": 0.5}, {"act_horizon": 3})
    )
    # Observations and actions do not depend on the discount.
    assert plain == discounted != shorter
    assert data_digest(DemoReplayBuffer(store, **options)) == plain


@pytest.mark.parametrize("damage", ["flipped", "zeroed", "nan"])
@pytest.mark.parametrize("key", ["latent", "residual"])
def test_a_damaged_block_is_said_and_computed_anew(tmp_path, key, damage):
    whole = filled(tmp_path / "cache")
    latent, residual = whole.latent.clone(), whole.residual.clone()
    path = tmp_path / "cache" / "rows" / f"{key}.memmap"
    content = bytearray(path.read_bytes())
    row = len(content) // 23
    if damage == "flipped":
        content[12 * row] ^= 1
    elif damage == "zeroed":
        content[12 * row : 13 * row] = bytes(row)
    else:
        content[12 * row : 12 * row + 4] = torch.tensor(torch.nan).numpy().tobytes()
    path.write_bytes(content)
    with pytest.warns(DataWarning, match="1 blocks of latents are damaged and are computed anew"):
        again = make(tmp_path / "cache")
    assert again.missing == 5
    assert list(again.fill(compute)) == [23]
    assert torch.equal(again.latent, latent)
    assert torch.equal(again.residual, residual)


def test_a_cache_of_before_is_taken_over_where_it_is_finite(tmp_path):
    first = filled(tmp_path)
    first._table["latent"][7] = torch.nan
    (tmp_path / "digests.json").unlink()
    again = make(tmp_path)
    assert again.missing == 5  # the block of row 7
    list(again.fill(compute))
    # From now on it has checksums.
    again._table["residual"][0] += 1
    with pytest.warns(DataWarning, match="1 blocks"):
        make(tmp_path)


def test_latents_that_are_not_finite_are_refused(tmp_path):
    def diverges(rows, generator):
        latent, residual = compute(rows, generator)
        return torch.where((rows == 7)[:, None, None], torch.inf, latent), residual

    cache = make(tmp_path)
    with pytest.raises(DataError, match="not finite for rows 5 to 9"):
        list(cache.fill(diverges))
    assert make(tmp_path).missing == 18


def test_damaged_digests_are_refused(tmp_path):
    filled(tmp_path)
    (tmp_path / "digests.json").write_text("[]")
    with pytest.raises(DataError, match=r"digests\.json is damaged"):
        make(tmp_path)
