"""Reports of runs: pages, rows of results, learning curves, comparison of stages and seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.reports.conclusion import (
        best_of_variants,
        can_film,
        conclude,
        conclude_run,
        read_evaluation,
        variant_labels,
    )
    from torchrl_flow.reports.curves import CurvesArgs, draw_curves, reach_table, run_curve, window_means
    from torchrl_flow.reports.report import write_report
    from torchrl_flow.reports.results import (
        BENCHMARK_COLUMNS,
        RESULT_COLUMNS,
        append_benchmark,
        append_result,
        record_results,
    )
    from torchrl_flow.reports.seed_bands import SeedBand, group_by_seed, seed_band
    from torchrl_flow.reports.stage_comparison import compare_stages, stages_svg
    from torchrl_flow.reports.stage_rows import evaluation_rows, has_evaluation_rows, stage_table

__all__ = [
    "BENCHMARK_COLUMNS",
    "RESULT_COLUMNS",
    "CurvesArgs",
    "SeedBand",
    "append_benchmark",
    "append_result",
    "best_of_variants",
    "can_film",
    "compare_stages",
    "conclude",
    "conclude_run",
    "draw_curves",
    "evaluation_rows",
    "group_by_seed",
    "has_evaluation_rows",
    "reach_table",
    "read_evaluation",
    "record_results",
    "run_curve",
    "seed_band",
    "stage_table",
    "stages_svg",
    "variant_labels",
    "window_means",
    "write_report",
]

__getattr__, __dir__ = lazy_exports(__name__)
