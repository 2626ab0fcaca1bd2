"""The names of the slate environments."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["CLICK_MODELS", "FOCUS_EXPONENTS", "SLATE_ENVS", "ClickModel", "SlatePolicyName"]

ClickModel = Literal["topdown", "mix", "divpen"]
"""Names of the click models."""
CLICK_MODELS: tuple[str, ...] = get_args(ClickModel)
SlatePolicyName = Literal["random", "sto", "logged", "medium", "expert"]
"""Name of a reference policy."""
FOCUS_EXPONENTS = {"diffuse": 1.0, "focused": 2.0}
"""Power that concentrates items on few topics."""
SLATE_ENVS = tuple(f"{focus}_{clicks}" for focus in FOCUS_EXPONENTS for clicks in CLICK_MODELS)
"""Names of the environments: ``diffuse`` or ``focused`` items, and the click model."""
