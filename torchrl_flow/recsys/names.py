"""The names of the slate environments, and the items of each."""

from __future__ import annotations

from torchrl_flow.recsys.catalogue import ItemCatalogue
from torchrl_flow.recsys.dynamics import CLICK_MODELS

__all__ = ["SLATE_ENVS", "make_catalogue"]

_FOCUS_EXPONENTS = {"diffuse": 1.0, "focused": 2.0}
SLATE_ENVS = tuple(f"{focus}_{clicks}" for focus in _FOCUS_EXPONENTS for clicks in CLICK_MODELS)
"""Names of the environments: ``diffuse`` or ``focused`` items, and the click model."""


def make_catalogue(name: str, *, num_items: int = 1000, exponent: float | None = None, seed: int = 1) -> ItemCatalogue:
    """Generate the items of an environment.

    Args:
        name: one of :data:`SLATE_ENVS`.
        num_items: items.
        exponent: power that focuses items on few topics; by default 1 for ``diffuse`` and 2, the paper's, for
            ``focused``.
        seed: of the items.

    Raises:
        ValueError: if there is no such environment.
    """
    if name not in SLATE_ENVS:
        raise ValueError(f"name must be one of {SLATE_ENVS}, got {name!r}.")
    if exponent is None:
        exponent = _FOCUS_EXPONENTS[name.split("_")[0]]
    return ItemCatalogue.generate(num_items, exponent=exponent, seed=seed)
