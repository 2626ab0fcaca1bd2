"""Options of the command line: declared types, early checks, and the arguments common to all recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.options.advantage_weights import AdvantageWeightArgs, OnlineAdvantageWeightArgs
    from torchrl_flow.options.chain_ppo import ChainPPOArgs
    from torchrl_flow.options.checks import check_demonstrations, check_images, check_network, check_task
    from torchrl_flow.options.collection import CollectorArgs
    from torchrl_flow.options.compilation import CompileArgs
    from torchrl_flow.options.names import (
        DemoPath,
        ExistingFile,
        Installed,
        LoggedData,
        ManiSkillTask,
        RunName,
        RunSource,
        TaskName,
        WritableDirectory,
        WritableFile,
    )
    from torchrl_flow.options.parse import GROUPS, option_group, parse_options
    from torchrl_flow.options.recipe_arguments import (
        DemonstrationArgs,
        ImageArgs,
        LatentCriticArgs,
        OfflineArgs,
        OnlineArgs,
        OnlineSteeringArgs,
        PolicyArgs,
        PolicyOfTaskArgs,
        SimulationArgs,
        SteeringArgs,
        SweepArgs,
        TrainingArgs,
    )
    from torchrl_flow.options.refusals import refusals_in_one_line
    from torchrl_flow.options.run_arguments import RunArgs, require_device, resolve_device
    from torchrl_flow.options.types import (
        Count,
        Decay,
        Distinct,
        Fraction,
        NonNegative,
        NonNegativeInt,
        NotAbove,
        NotEmpty,
        OneOf,
        Positive,
        Range,
        Rate,
        SamplingSteps,
        Seed,
        Seeds,
        Sizes,
        check_options,
        nearest,
        option_name,
        option_problem,
    )

__all__ = [
    "GROUPS",
    "AdvantageWeightArgs",
    "ChainPPOArgs",
    "CollectorArgs",
    "CompileArgs",
    "Count",
    "Decay",
    "DemoPath",
    "DemonstrationArgs",
    "Distinct",
    "ExistingFile",
    "Fraction",
    "ImageArgs",
    "Installed",
    "LatentCriticArgs",
    "LoggedData",
    "ManiSkillTask",
    "NonNegative",
    "NonNegativeInt",
    "NotAbove",
    "NotEmpty",
    "OfflineArgs",
    "OneOf",
    "OnlineAdvantageWeightArgs",
    "OnlineArgs",
    "OnlineSteeringArgs",
    "PolicyArgs",
    "PolicyOfTaskArgs",
    "Positive",
    "Range",
    "Rate",
    "RunArgs",
    "RunName",
    "RunSource",
    "SamplingSteps",
    "Seed",
    "Seeds",
    "SimulationArgs",
    "Sizes",
    "SteeringArgs",
    "SweepArgs",
    "TaskName",
    "TrainingArgs",
    "WritableDirectory",
    "WritableFile",
    "check_demonstrations",
    "check_images",
    "check_network",
    "check_options",
    "check_task",
    "nearest",
    "option_group",
    "option_name",
    "option_problem",
    "parse_options",
    "refusals_in_one_line",
    "require_device",
    "resolve_device",
]

__getattr__, __dir__ = lazy_exports(__name__)
