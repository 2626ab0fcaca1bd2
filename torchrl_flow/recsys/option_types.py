"""Types of options that name a part of the slate recommender."""

from __future__ import annotations

from typing import Annotated

from torchrl_flow.options.types import OneOf
from torchrl_flow.recsys.names import SLATE_ENVS

__all__ = ["SlateEnvName"]

SlateEnvName = Annotated[str, OneOf(SLATE_ENVS)]
"""An environment of the slate recommender."""
