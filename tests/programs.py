"""What a program writes to the standard error, for tests of whole programs."""

from __future__ import annotations

import re


def own_errors(stderr: str) -> str:
    """Drop deprecation warnings from imports of other packages: TorchRL 0.14 shows its own, as with TensorDict 0.15."""
    return re.sub(r"(?m)^\S*site-packages\S*: DeprecationWarning: .*\n(?:  .*\n)?", "", stderr).strip()
