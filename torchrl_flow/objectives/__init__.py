"""Loss modules."""

from __future__ import annotations

from torchrl_flow.objectives.shortcut_flow import ShortCutFlowLoss

__all__ = ["ShortCutFlowLoss"]
