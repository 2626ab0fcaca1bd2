from __future__ import annotations

import pytest
import torch

from torchrl_flow.modules import (
    Normalizer,
    PixelEncoder,
    ShortCutVelocityConcatMLP,
    ShortCutVelocityDiT,
    ShortCutVelocityMLP,
    ShortCutVelocityUNet1D,
    SinusoidalEmbedding,
    SpatialSoftmax,
    random_shift,
)

H, A, C = 8, 3, 5
NETWORKS = {
    "mlp": lambda: ShortCutVelocityMLP(A, H, C, width=32, depth=2),
    "unet": lambda: ShortCutVelocityUNet1D(A, H, C, channels=(8, 16)),
    "concat_mlp": lambda: ShortCutVelocityConcatMLP(A, H, C, width=32, depth=2),
    "dit": lambda: ShortCutVelocityDiT(A, H, C, width=16, depth=2),
}


def perturbed(name):
    net = NETWORKS[name]()
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net.double()


def inputs(batch=4):
    return (
        torch.randn(batch, H, A, dtype=torch.float64),
        torch.rand(batch, dtype=torch.float64),
        torch.rand(batch, dtype=torch.float64),
        torch.randn(batch, C, dtype=torch.float64),
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_velocity_starts_at_zero_and_depends_on_every_input(name):
    fresh = NETWORKS[name]().double()
    assert (fresh(*inputs()) == 0).all()
    net, arguments = perturbed(name), [value.requires_grad_() for value in inputs()]
    net(*arguments).square().sum().backward()
    for value in arguments:
        assert value.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_do_not_mix(name):
    net, arguments = perturbed(name), inputs()
    together = net(*arguments)
    alone = torch.cat([net(*(value[i : i + 1] for value in arguments)) for i in range(4)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("index", "match"), [(0, "sample"), (1, "timestep"), (2, "step_size"), (3, "global_cond")])
def test_wrong_shapes_are_named(name, index, match):
    arguments = list(inputs())
    arguments[index] = arguments[index][..., None]
    with pytest.raises(ValueError, match=match):
        NETWORKS[name]()(*arguments)


def test_unet_refuses_a_horizon_that_its_strides_cannot_halve():
    with pytest.raises(ValueError, match=r"pred_horizon 10 cannot be halved 2 times.*\[4, 8, 12, 16, 20\]"):
        ShortCutVelocityUNet1D(A, 10, C, channels=(8, 16, 32))
    with pytest.raises(ValueError, match="multiple of groups"):
        ShortCutVelocityUNet1D(A, 8, C, channels=(12,))
    with pytest.raises(ValueError, match="odd"):
        ShortCutVelocityUNet1D(A, 8, C, channels=(8,), kernel_size=4)


def test_dit_refuses_a_width_that_its_heads_do_not_divide():
    with pytest.raises(ValueError, match="num_heads=4, got 18"):
        ShortCutVelocityDiT(A, H, C, width=18)


def test_embedding_separates_the_dyadic_step_sizes():
    embedded = SinusoidalEmbedding(64)(torch.tensor([0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]))
    distance = torch.cdist(embedded, embedded) + 1e9 * torch.eye(6)
    assert distance.min() > 1.0


def test_spatial_softmax_finds_a_peak():
    features = torch.zeros(1, 2, 9, 5)
    features[0, 0, 8, 0] = features[0, 1, 4, 2] = 100.0
    torch.testing.assert_close(SpatialSoftmax()(features), torch.tensor([[-1.0, 0.0, 1.0, 0.0]]))


def test_pixel_encoder_refuses_what_is_not_uint8_rgb():
    encoder = PixelEncoder((2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        encoder(torch.zeros(1, 2, 3, 32, 32))
    with pytest.raises(ValueError, match="channels first"):
        PixelEncoder((2, 32, 32, 3))
    with pytest.raises(ValueError, match="smallest allowed side is 32"):
        PixelEncoder((2, 3, 16, 16))


def test_pixel_encoder_sees_where_things_are():
    encoder = PixelEncoder((1, 3, 32, 32)).double()
    images = torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8)
    images[0, :, :, :8, :8] = images[1, :, :, -8:, -8:] = 255
    left, right = encoder(images)
    assert (left - right).norm() > 0.1


def test_random_shift_equals_a_padded_crop():
    pixels = torch.randint(0, 256, (4, 2, 3, 6, 5), dtype=torch.uint8)
    offsets = torch.tensor([[0, 4], [2, 2], [3, 1], [4, 0]])
    shifted = random_shift(pixels, offsets, padding=2)
    padded = torch.nn.functional.pad(pixels.flatten(0, 1).float(), (2, 2, 2, 2), mode="replicate")
    padded = padded.unflatten(0, (4, 2)).byte()
    for row, (down, right) in enumerate(offsets.tolist()):
        assert torch.equal(shifted[row], padded[row, :, :, down : down + 6, right : right + 5])
    assert torch.equal(shifted[1], pixels[1])


STATISTICS = {
    "min": torch.tensor([-2.0, 5.0]),
    "max": torch.tensor([6.0, 5.0]),
    "q01": torch.tensor([-1.0, 5.0]),
    "q99": torch.tensor([1.0, 5.0]),
    "mean": torch.tensor([1.0, 5.0]),
    "std": torch.tensor([2.0, 0.0]),
}


@pytest.mark.parametrize(
    ("mode", "expected"), [("minmax", 1.0), ("quantile", 6.0), ("meanstd", 2.5), ("identity", 6.0)]
)
def test_normalizer_modes(mode, expected):
    normalizer = Normalizer.from_statistics(STATISTICS, mode=mode)
    value = torch.tensor([6.0, 5.0])
    normalised = normalizer(value)
    assert normalised[0] == expected
    torch.testing.assert_close(normalizer.inverse(normalised), value)


def test_constant_dimension_stays_finite_when_it_moves():
    normalised = Normalizer.from_statistics(STATISTICS, mode="meanstd")(torch.tensor([1.0, 7.0]))
    torch.testing.assert_close(normalised, torch.tensor([0.0, 2.0]))


def test_bound_clamps():
    normalizer = Normalizer.from_statistics(STATISTICS, mode="meanstd", bound=3.0)
    assert normalizer(torch.tensor([100.0, 5.0]))[0] == 3.0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Normalizer(2, scale=torch.tensor([1.0, 0.0])), "scale must be above 0"),
        (lambda: Normalizer(2, loc=torch.tensor([1.0, float("nan")])), "not finite"),
        (lambda: Normalizer(3, loc=torch.zeros(2)), r"shape \[3\]"),
        (lambda: Normalizer(2, bound=0.0), "bound"),
        (lambda: Normalizer.from_statistics({"min": torch.zeros(2)}, mode="minmax"), r"\['max'\]"),
        (lambda: Normalizer.from_statistics(STATISTICS, mode="zscore"), "'zscore'"),
    ],
)
def test_bad_statistics_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("samples", [None, 2])
def test_velocity_at_each_step_equals_a_call_for_its_time(rows, samples):
    # 4 times 200 rows are modulated step by step, fewer rows for all steps at once
    torch.manual_seed(0)
    net = ShortCutVelocityMLP(2, 4, 6, width=16, depth=2).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    times, cond = torch.arange(4) / 4, torch.randn(rows, 6)
    points = torch.randn(rows, *([] if samples is None else [samples]), 4, 2)
    at_step = net.steps(cond, times, 0.25)
    for i in range(4):
        expected = net(points, times[i].expand(rows), torch.full((rows,), 0.25), cond)
        torch.testing.assert_close(at_step(points, i), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(at_step(points, 0), at_step(points, 3), atol=1e-2)
