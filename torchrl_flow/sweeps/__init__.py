"""Sweeps of runs: plan, parallel execution with Ray, and summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.sweeps.plan import (
        RunStatus,
        SweepRun,
        Variant,
        gpu_share,
        plan_sweep,
        run_status,
        run_sweep,
        select_variants,
    )
    from torchrl_flow.sweeps.report import SeedRun, VariantResult, format_statuses, summarise_sweep, write_sweep_report
    from torchrl_flow.sweeps.scaling import scale_options

__all__ = [
    "RunStatus",
    "SeedRun",
    "SweepRun",
    "Variant",
    "VariantResult",
    "format_statuses",
    "gpu_share",
    "plan_sweep",
    "run_status",
    "run_sweep",
    "scale_options",
    "select_variants",
    "summarise_sweep",
    "write_sweep_report",
]

__getattr__, __dir__ = lazy_exports(__name__)
