from __future__ import annotations

import pytest

from torchrl_flow.sweeps import scale_options


def test_a_number_keeps_its_ratio_to_the_reference():
    reference = {"lr": 3e-5, "rollout_steps": 128, "warmup": 5000, "schedule": "linear", "num_steps": 8, "coef": 0.0}
    base = {"lr": 2e-4, "rollout_steps": 12, "warmup": 1000, "schedule": "linear", "num_steps": 8, "coef": 0.5}
    options = {"lr": 1e-5, "rollout_steps": 64, "warmup": 0, "schedule": "constant", "num_steps": 4, "coef": 0.1}
    found = scale_options(options, reference, base, absolute=("num_steps",))
    assert found == {
        "lr": pytest.approx(2e-4 / 3, rel=1e-5),
        "rollout_steps": 6,
        "warmup": 0,
        "schedule": "constant",
        "num_steps": 4,
        "coef": 0.1,
    }
    assert scale_options({"rollout_steps": 1}, reference, base) == {"rollout_steps": 1}
