"""Options that contradict a task or that no network can have are refused in one line."""

from __future__ import annotations

import pytest

from torchrl_flow.options import check_images


@pytest.mark.parametrize(
    ("task", "obs_mode", "demos", "size", "channels", "message"),
    [
        ("PickCube-v1", "state", None, 64, (32, 64, 64), "--image-size 64 .*--obs-mode rgb"),
        ("planar", "rgb+state", None, 64, (32, 64, 64), "--image-size 64 .*a task of ManiSkill"),
        ("PickCube-v1", "rgb", "demos.h5", 64, (32, 64, 64), "no effect with --demos demos.h5"),
        ("PickCube-v1", "rgb", None, 16, (32, 64, 64), "too small for 3 convolutions .* give 32 or more"),
        ("PickCube-v1", "rgb", None, None, (16, 12), "multiples of 8, .* got 12"),
    ],
)
def test_images_that_nobody_renders_or_encodes_are_refused(task, obs_mode, demos, size, channels, message):
    with pytest.raises(SystemExit, match=message):
        check_images(task, obs_mode, demos, size, channels)


def test_images_of_an_allowed_size_pass():
    check_images("PickCube-v1", "rgb", None, 32, (32, 64, 64))
    check_images("PickCube-v1", "state", None, None, (16,))
