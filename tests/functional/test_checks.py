from __future__ import annotations

import re

import pytest
import torch

from torchrl_flow.functional import checks


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.check_one_of("mode", "x", ("a", "b", "c")), "mode must be 'a', 'b' or 'c', got 'x'."),
        (lambda: checks.check_at_least("num", 0, 1), "num must be at least 1, got 0."),
        (lambda: checks.check_positive("clip", 0.0), "clip must be above 0, got 0.0."),
        (lambda: checks.check_positive("clip", -1.0, none="none"), "clip must be above 0, or None for none, got -1.0."),
        (lambda: checks.check_fraction("share", 1.5), "share must lie in [0, 1], got 1.5."),
        (lambda: checks.check_fraction("share", float("nan")), "share must lie in [0, 1], got nan."),
        (
            lambda: checks.check_same_shape("[B, A]", x=torch.ones(2, 3), y=torch.ones(2, 1), z=torch.ones(2, 3)),
            "x, y and z must have one shape [B, A], got [2, 3], [2, 1], [2, 3]: nothing is broadcast here.",
        ),
        (
            lambda: checks.check_same_shape("[*B, H, A]", 2, x=torch.ones(2), y=torch.ones(2)),
            "x and y must have one shape [*B, H, A], got [2], [2]: nothing is broadcast here.",
        ),
        (
            lambda: checks.check_shape("mask", torch.ones(2, 1), (2, 3), "[B, H]"),
            "mask must have shape [B, H] = [2, 3], got [2, 1].",
        ),
        (
            lambda: checks.check_mask("mask", torch.ones(2), (2,)),
            "mask must be bool of shape [2], got torch.float32 of [2].",
        ),
        (
            lambda: checks.check_mask("mask", torch.ones(3, dtype=torch.bool), (2,)),
            "mask must be bool of shape [2], got torch.bool of [3].",
        ),
    ],
)
def test_a_refusal_names_argument_allowed_and_given(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_what_is_allowed_passes():
    checks.check_one_of("mode", "a", ("a", "b"))
    checks.check_at_least("num", 1, 1)
    checks.check_positive("clip", 0.1)
    for share in (0.0, 0.5, 1.0):
        checks.check_fraction("share", share)
    checks.check_same_shape("[B]", 1, x=torch.ones(2), y=torch.zeros(2))
    checks.check_same_shape("[]", x=torch.tensor(1.0), y=torch.tensor(2.0))
    checks.check_shape("x", torch.ones(2, 3), torch.Size([2, 3]), "[B, A]")
    checks.check_mask("mask", None, (2,))
    checks.check_mask("mask", torch.ones(2, dtype=torch.bool), (2,))
