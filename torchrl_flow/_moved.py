"""Names from before the packages were split: they import as before, with a DeprecationWarning, until version 0.3.

A module of before is found by :class:`MovedModules`, a name of a package of before by its ``__getattr__``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any

__all__ = ["MODULES", "NAMES", "MovedModules", "install", "moved_name"]

NAMES: dict[str, dict[str, str]] = {
    "training": {
        "commands.check_batch": "CheckBatchArgs",
        "commands.evaluate": "EvaluateArgs",
        "data": "padding_of require_demonstrations_of",
        "demos": "DemoSource MakeDemosArgs MakeDemosReport make_demonstrations",
        "envs": (
            "FrameRecorder PLANAR action_bounds as_frames base_env default_num_envs make_chunk_env "
            "make_evaluation_env make_task_chunk_env make_task_env observation_keys require_num_envs reset_with_seeds "
            "task_info"
        ),
        "evaluation": (
            "EvaluationResult OfflineTask SlateReturns compare_num_steps episode_returns evaluate success_metrics "
            "warm_up"
        ),
        "figures": "InlineVideo markdown_table mean_and_deviation show_video tile_episodes video_suffix write_video",
        "offline": "GymTask conclude_offline offline_row offline_task",
        "options": (
            "Count Decay DemoPath Distinct ExistingFile Fraction Installed LoggedData ManiSkillTask NonNegative "
            "NonNegativeInt NotAbove NotEmpty OneOf Positive Range Rate RunArgs RunName RunSource SamplingSteps Seed "
            "Seeds Sizes TaskName WritableDirectory WritableFile check_demonstrations check_network check_options "
            "check_task nearest option_problem refusals_in_one_line require_device resolve_device"
        ),
        "policies": (
            "LATENT_POLICY POLICY_KINDS PolicyKind RunLabels alias_demonstrations evaluation_env=checkpoint_env "
            "evaluation_env_options flow_config latent_value_gap load_acting_policy load_critic load_flow_checkpoint "
            "load_latent_policy load_policy load_steered make_training_env make_training_envs open_checkpoint "
            "policy_demonstrations policy_evaluation_env policy_kind require_actor_config run_labels "
            "start_latent_policy steering_flow training_env_options warm_start"
        ),
        "recsys": (
            "CollectSardineArgs CollectSlatesArgs RelabelSlatesArgs SardineTask SlateEnvName SlateLogs SlateModels "
            "SlateModelsArgs SlateTask action_box collect_sardine collect_slates in_data_units load_state_policy "
            "play_slates q_diagnostics relabel_slates round_trip_return train_slate_models"
        ),
        "reports": (
            "BENCHMARK_COLUMNS CurvesArgs RESULT_COLUMNS SeedBand append_benchmark append_result best_of_variants "
            "can_film compare_stages conclude draw_curves group_by_seed read_evaluation record_results run_curve "
            "seed_band stages_svg variant_labels window_means write_report"
        ),
        "runs": (
            "CheckpointDirectory EVALUATION Run RunLogger TrainingCheckpoint Which latest_checkpoint load_checkpoint "
            "read_metrics require_task save_checkpoint"
        ),
        "sweeps": (
            "RunStatus SeedRun SweepRun Variant VariantResult format_statuses gpu_share plan_sweep run_status "
            "run_sweep select_variants summarise_sweep write_sweep_report"
        ),
        "util": (
            "Progress collect_versions command_line git_commit isolated_rng mix_seeds seed_everything today "
            "write_json write_text"
        ),
    },
    "envs": {
        "recsys": (
            "BeliefState ItemCatalogue LatentSlate SLATE_ENVS SLATE_POLICIES SlateEnv SlatePolicy latent_slate_env "
            "make_catalogue make_slate_policy"
        ),
    },
    "modules": {
        "recsys": "BeliefEncoder BeliefEncoderConfig LatentActionBox SlateRanker SlateRankerConfig",
    },
}
"""For a package of an earlier version: where its names are now, and their new names if those changed (``old=new``)."""

MODULES: dict[str, str] = {
    "data.archive_check": "data.checks.archive",
    "data.chunks": "data.demos.chunks",
    "data.episode": "data.demos.episode",
    "data.hdf5_check": "data.checks.hdf5",
    "data.json_check": "data.checks.json",
    "data.maniskill": "data.demos.maniskill",
    "data.maniskill_reader": "data.demos.maniskill_reader",
    "data.memmap_check": "data.checks.memmap",
    "data.mixed_replay": "data.mixed.replay",
    "data.mixed_storage": "data.mixed.storage",
    "data.npz": "data.logged.npz",
    "data.npz_file": "data.logged.npz_file",
    "data.npz_stream": "data.logged.npz_stream",
    "data.online_rows": "data.mixed.online_rows",
    "data.ratio_sampler": "data.mixed.ratio_sampler",
    "data.replay": "data.demos.replay",
    "data.replay_check": "data.checks.replay",
    "data.safe_replay": "data.checks.safe_replay",
    "data.statistics": "data.demos.statistics",
    "data.step_ring": "data.mixed.step_ring",
    "data.storage_parts": "data.mixed.storage_parts",
    "data.store": "data.demos.store",
    "data.trajectory_file": "data.demos.trajectory_file",
    "data.trajectory_json": "data.demos.trajectory_json",
    "data.writer": "data.demos.writer",
    "envs.sardine": "recsys.sardine_env",
    "envs.slate": "recsys",
    "envs.slate.env": "recsys.env",
    "envs.slate.policies": "recsys.policies",
    "envs.slate.transforms": "recsys.transforms",
    "functional.slate": "recsys.functional",
    "modules.action_box": "modules.actors.action_box",
    "modules.belief_encoder": "recsys.belief_encoder",
    "modules.best_of_n": "modules.actors.best_of_n",
    "modules.chain_normal": "modules.noisy.chain_normal",
    "modules.critic_config": "modules.critics.config",
    "modules.embedding": "modules.velocity.embedding",
    "modules.encoders": "modules.observation.encoders",
    "modules.exploration": "modules.actors.exploration",
    "modules.explore_noise": "modules.noisy.explore_noise",
    "modules.flow_actor": "modules.actors.flow",
    "modules.frozen_features": "modules.observation.frozen_features",
    "modules.latent_critic": "modules.critics.latent",
    "modules.latent_distribution": "modules.steering.latent_distribution",
    "modules.latent_policy": "modules.steering.latent_policy",
    "modules.noise_aliaser": "modules.steering.noise_aliaser",
    "modules.noisy_flow_actor": "modules.noisy.actor",
    "modules.normalizer": "modules.observation.normalizer",
    "modules.q_ensemble": "modules.critics.q_ensemble",
    "modules.scaled_noise": "modules.actors.scaled_noise",
    "modules.single_step": "modules.actors.single_step",
    "modules.slate_ranker": "recsys.slate_ranker",
    "modules.state_policy": "modules.actors.state_policy",
    "modules.state_value": "modules.critics.state_value",
    "modules.steered_flow_actor": "modules.steering.actor",
    "modules.velocity_dit": "modules.velocity.dit",
    "modules.velocity_mlp": "modules.velocity.mlp",
    "modules.velocity_unet": "modules.velocity.unet",
    "training.acting_policy": "policies.acting",
    "training.check_batch": "commands.check_batch",
    "training.checkpoint": "runs.checkpoint",
    "training.checkpoint_check": "runs.checkpoint_check",
    "training.checkpoint_reader": "runs.checkpoint_reader",
    "training.collect_slates": "recsys.collect",
    "training.conclusion": "reports.conclusion",
    "training.curves": "reports.curves",
    "training.demo_arguments": "demos.arguments",
    "training.demo_ledger": "demos.ledger",
    "training.demo_recording": "demos.recording",
    "training.demo_source": "demos.source",
    "training.directory_lock": "runs.directory_lock",
    "training.envs": "envs.chunk_env training.features",
    "training.evaluate_run": "commands.evaluate",
    "training.evaluation": "evaluation.protocol",
    "training.evaluation_result": "evaluation.result",
    "training.files": "util.files",
    "training.finite_state": "training.finite",
    "training.group_rollout": "evaluation.group_rollout",
    "training.html_pages": "figures.pages",
    "training.imperfection": "demos.imperfection",
    "training.make_demos": "demos.make",
    "training.metric_axes": "figures.axes",
    "training.metrics": "runs.metrics",
    "training.motion_planning": "demos.planner demos.motion",
    "training.notebook": "figures.notebook",
    "training.offline_conclusion": "offline.conclusion",
    "training.offline_envs": "offline.envs",
    "training.offline_report": "offline.report",
    "training.offline_task": "evaluation.offline_task",
    "training.option_checks": "options.checks",
    "training.option_values": "options.names recsys.option_types",
    "training.options": "options.types",
    "training.progress": "util.progress",
    "training.randomness": "util.randomness",
    "training.refusals": "options.refusals",
    "training.report": "reports.report",
    "training.report_plots": "figures.plots",
    "training.report_style": "figures.style",
    "training.results": "reports.results",
    "training.retiming": "demos.retiming",
    "training.run": "runs.run",
    "training.run_arguments": "options.run_arguments",
    "training.sardine_task": "recsys.sardine_task",
    "training.seed_bands": "reports.seed_bands",
    "training.slate_model_training": "recsys.model_training",
    "training.slate_models": "recsys.models",
    "training.slate_offline": "recsys.task",
    "training.stage_comparison": "reports.stage_comparison",
    "training.steering": "policies.steering",
    "training.sweep": "sweeps.plan",
    "training.sweep_conclusion": "sweeps.conclusion",
    "training.sweep_report": "sweeps.report",
    "training.tables": "figures.tables",
    "training.task_identity": "envs.task_identity data.demos.task_match",
    "training.tasks": "policies.rebuild envs.tasks policies.environment",
    "training.training_env": "policies.training_env",
    "training.versions": "util.versions",
    "training.video": "figures.video envs.transforms.frames",
    "training.warm_start": "policies.initial_weights",
}
"""For a module of an earlier version: the modules that have its names now."""


def moved_name(package: str, name: str) -> Any:
    """Return a name that a package exported in an earlier version.

    Args:
        package: full name of the package.
        name: name to look up.

    Raises:
        AttributeError: if the package never had it.
    """
    for place, names in NAMES.get(package.removeprefix("torchrl_flow."), {}).items():
        for entry in names.split():
            old, _, new = entry.partition("=")
            if old == name:
                found = f"torchrl_flow.{place}"
                _warn(f"{package}.{name}", f"{found}.{new or old}", 4)
                return getattr(importlib.import_module(found), new or old)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def _warn(old: str, new: str, stacklevel: int) -> None:
    message = f"{old} is {new} now; the old name goes with version 0.3."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of earlier versions, whose names are looked up in the modules that have them now."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of a module of :data:`MODULES`, or None."""
        name = fullname.removeprefix("torchrl_flow.")
        if name == fullname or name not in MODULES:
            return None
        is_package = any(other.startswith(f"{name}.") for other in MODULES)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=is_package)

    def create_module(self, spec: Any) -> None:
        """Leave the making of the module to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its names, when they are asked for."""
        old = module.__name__
        places = [f"torchrl_flow.{place}" for place in MODULES[old.removeprefix("torchrl_flow.")].split()]

        def find(name: str) -> Any:
            if not name.startswith("__"):
                for place in places:
                    found = getattr(importlib.import_module(place), name, None)
                    if found is not None:
                        _warn(f"{old}.{name}", f"{place}.{name}", 3)
                        return found
            raise AttributeError(f"module {old!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = find


def install() -> None:
    """Let the import system ask :class:`MovedModules` after all others, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
