"""Everything around a training loop: runs, checkpoints, evaluation, metrics, reports, sweeps, demonstrations.

The loops themselves are in the recipes.
"""

from torchrl_flow.training.acting_policy import (
    POLICY_KINDS,
    PolicyKind,
    RunLabels,
    load_acting_policy,
    policy_kind,
    run_labels,
)
from torchrl_flow.training.check_batch import CheckBatchArgs
from torchrl_flow.training.checkpoint import CheckpointDirectory, save_checkpoint
from torchrl_flow.training.checkpoint_reader import (
    TrainingCheckpoint,
    Which,
    latest_checkpoint,
    load_checkpoint,
    require_task,
)
from torchrl_flow.training.collect_slates import CollectSlatesArgs, RelabelSlatesArgs, collect_slates, relabel_slates
from torchrl_flow.training.conclusion import best_of_variants, can_film, conclude, read_evaluation, variant_labels
from torchrl_flow.training.curves import CurvesArgs, draw_curves, run_curve, window_means
from torchrl_flow.training.demo_source import DemoSource
from torchrl_flow.training.envs import append_features, base_env, make_chunk_env, reset_with_seeds
from torchrl_flow.training.evaluate_run import EvaluateArgs
from torchrl_flow.training.evaluation import compare_num_steps, evaluate, success_metrics
from torchrl_flow.training.evaluation_result import EvaluationResult
from torchrl_flow.training.files import write_json, write_text
from torchrl_flow.training.finite import (
    NonFiniteError,
    gradient_step,
    require_finite_modules,
)
from torchrl_flow.training.loss_groups import LossGroup
from torchrl_flow.training.macro_replay import (
    ReplayState,
    macro_replay,
    macro_transitions,
    replay_demonstrations,
    steered_rollouts,
)
from torchrl_flow.training.make_demos import MakeDemosArgs, MakeDemosReport, make_demonstrations
from torchrl_flow.training.metrics import RunLogger, read_metrics
from torchrl_flow.training.offline_conclusion import conclude_offline, offline_row
from torchrl_flow.training.offline_envs import GymTask, offline_task
from torchrl_flow.training.offline_task import OfflineTask, SlateReturns, episode_returns
from torchrl_flow.training.progress import Progress
from torchrl_flow.training.randomness import isolated_rng, mix_seeds, seed_everything
from torchrl_flow.training.refusals import refusals_in_one_line
from torchrl_flow.training.report import write_report
from torchrl_flow.training.results import (
    BENCHMARK_COLUMNS,
    RESULT_COLUMNS,
    append_benchmark,
    append_result,
    record_results,
)
from torchrl_flow.training.rollouts import ChunkRollouts, finished_success, minibatches
from torchrl_flow.training.run import EVALUATION, Run
from torchrl_flow.training.run_arguments import RunArgs, require_device
from torchrl_flow.training.sardine_task import CollectSardineArgs, SardineTask, collect_sardine
from torchrl_flow.training.slate_model_training import SlateModelsArgs, round_trip_return, train_slate_models
from torchrl_flow.training.slate_models import SlateLogs, SlateModels, play_slates
from torchrl_flow.training.slate_offline import (
    SlateTask,
    action_box,
    in_data_units,
    load_state_policy,
    q_diagnostics,
)
from torchrl_flow.training.stage_comparison import compare_stages, stages_svg
from torchrl_flow.training.steering import (
    alias_demonstrations,
    latent_value_gap,
    load_latent_policy,
    load_steered,
    policy_demonstrations,
    start_latent_policy,
    steering_flow,
)
from torchrl_flow.training.steppers import NamedLossStepper
from torchrl_flow.training.sweep import RunStatus, SweepRun, Variant, plan_sweep, run_status, run_sweep, select_variants
from torchrl_flow.training.sweep_report import VariantResult, format_statuses, summarise_sweep, write_sweep_report
from torchrl_flow.training.tables import markdown_table, mean_and_deviation
from torchrl_flow.training.task_identity import (
    PLANAR,
    action_bounds,
    padding_of,
    require_demonstrations_of,
    require_num_envs,
    task_info,
)
from torchrl_flow.training.tasks import (
    LATENT_POLICY,
    default_num_envs,
    evaluation_env,
    flow_config,
    load_critic,
    load_policy,
    make_evaluation_env,
    make_task_chunk_env,
    make_task_env,
    observation_keys,
    open_checkpoint,
    require_actor_config,
)
from torchrl_flow.training.training_env import make_training_env, training_env_options
from torchrl_flow.training.versions import collect_versions, command_line, git_commit, today
from torchrl_flow.training.video import FrameRecorder, as_frames, tile_episodes, video_suffix, write_video
from torchrl_flow.training.warm_start import warm_start

__all__ = [
    "BENCHMARK_COLUMNS",
    "EVALUATION",
    "LATENT_POLICY",
    "PLANAR",
    "POLICY_KINDS",
    "RESULT_COLUMNS",
    "CheckBatchArgs",
    "CheckpointDirectory",
    "ChunkRollouts",
    "CollectSardineArgs",
    "CollectSlatesArgs",
    "CurvesArgs",
    "DemoSource",
    "EvaluateArgs",
    "EvaluationResult",
    "FrameRecorder",
    "GymTask",
    "LossGroup",
    "MakeDemosArgs",
    "MakeDemosReport",
    "NamedLossStepper",
    "NonFiniteError",
    "OfflineTask",
    "PolicyKind",
    "Progress",
    "RelabelSlatesArgs",
    "ReplayState",
    "Run",
    "RunArgs",
    "RunLabels",
    "RunLogger",
    "RunStatus",
    "SardineTask",
    "SlateLogs",
    "SlateModels",
    "SlateModelsArgs",
    "SlateReturns",
    "SlateTask",
    "SweepRun",
    "TrainingCheckpoint",
    "Variant",
    "VariantResult",
    "Which",
    "action_bounds",
    "action_box",
    "alias_demonstrations",
    "append_benchmark",
    "append_features",
    "append_result",
    "as_frames",
    "base_env",
    "best_of_variants",
    "can_film",
    "collect_sardine",
    "collect_slates",
    "collect_versions",
    "command_line",
    "compare_num_steps",
    "compare_stages",
    "conclude",
    "conclude_offline",
    "default_num_envs",
    "draw_curves",
    "episode_returns",
    "evaluate",
    "evaluation_env",
    "finished_success",
    "flow_config",
    "format_statuses",
    "git_commit",
    "gradient_step",
    "in_data_units",
    "isolated_rng",
    "latent_value_gap",
    "latest_checkpoint",
    "load_acting_policy",
    "load_checkpoint",
    "load_critic",
    "load_latent_policy",
    "load_policy",
    "load_state_policy",
    "load_steered",
    "macro_replay",
    "macro_transitions",
    "make_chunk_env",
    "make_demonstrations",
    "make_evaluation_env",
    "make_task_chunk_env",
    "make_task_env",
    "make_training_env",
    "markdown_table",
    "mean_and_deviation",
    "minibatches",
    "mix_seeds",
    "observation_keys",
    "offline_row",
    "offline_task",
    "open_checkpoint",
    "padding_of",
    "plan_sweep",
    "play_slates",
    "policy_demonstrations",
    "policy_kind",
    "q_diagnostics",
    "read_evaluation",
    "read_metrics",
    "record_results",
    "refusals_in_one_line",
    "relabel_slates",
    "replay_demonstrations",
    "require_actor_config",
    "require_demonstrations_of",
    "require_device",
    "require_finite_modules",
    "require_num_envs",
    "require_task",
    "reset_with_seeds",
    "round_trip_return",
    "run_curve",
    "run_labels",
    "run_status",
    "run_sweep",
    "save_checkpoint",
    "seed_everything",
    "select_variants",
    "stages_svg",
    "start_latent_policy",
    "steered_rollouts",
    "steering_flow",
    "success_metrics",
    "summarise_sweep",
    "task_info",
    "tile_episodes",
    "today",
    "train_slate_models",
    "training_env_options",
    "variant_labels",
    "video_suffix",
    "warm_start",
    "window_means",
    "write_json",
    "write_report",
    "write_sweep_report",
    "write_text",
    "write_video",
]
