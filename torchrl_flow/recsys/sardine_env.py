"""TorchRL environments of SARDINE, an optional third-party simulator of recommendation."""

from __future__ import annotations

import importlib.util
from typing import Any

from torchrl.envs import EnvBase, GymWrapper

_has_sardine = importlib.util.find_spec("sardine") is not None

__all__ = ["make_sardine_env"]


def make_sardine_env(name: str = "SlateTopK-Bored-v0", *, bound: float = 1.0, **kwargs: Any) -> EnvBase:
    """Make a SARDINE environment whose action is a vector; items are ranked by their product with it.

    The policy sees the simulator's ideal state (interests, recent topics, boredom) and returns a vector with one number
    per topic. The items with the highest products are the slate; the number of clicks is the reward.

    Args:
        name: a name registered under ``sardine/``, such as ``SlateTopK-Bored-v0``.
        bound: actions lie in ``[-bound, bound]``. It must be given to SARDINE's own wrapper, whose default fails.
        **kwargs: passed to ``gymnasium.make``.

    Raises:
        ImportError: if SARDINE is not installed.
        ValueError: if the bound is not above 0, or the name holds a colon.

    References:
        Deffayet et al., SARDINE, https://github.com/naver/sardine (MIT)
    """
    if ":" in name:  # gymnasium would import the module before the colon
        raise ValueError(f"name must be that of an environment alone, such as 'SlateTopK-Bored-v0', got {name!r}.")
    if bound <= 0:
        raise ValueError(f"bound must be above 0, got {bound}.")
    if not _has_sardine:
        raise ImportError("SARDINE is not installed: pip install 'torchrl-flow[sardine]'.")
    import gymnasium
    import numpy as np
    import sardine  # noqa: F401  # pyright: ignore[reportMissingImports]  # registers its environments
    from sardine.wrappers import IdealState, TopK  # pyright: ignore[reportMissingImports]

    env: Any = gymnasium.make(f"sardine/{name}", **kwargs)
    limits = np.full(env.unwrapped.num_topics, bound, dtype=np.float32)
    return GymWrapper(IdealState(TopK(env, "ideal", -limits, limits)))
