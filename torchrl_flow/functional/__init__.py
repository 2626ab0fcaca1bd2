"""Pure functions: tensors in, tensors out."""

from __future__ import annotations

from torchrl_flow.functional.chunk import (
    chunk_return,
    executed_mask,
    executed_slice,
    executed_steps,
    latch,
)

__all__ = [
    "chunk_return",
    "executed_mask",
    "executed_slice",
    "executed_steps",
    "latch",
]
