"""Checks for contradictory or unusable options before an environment is started."""

from __future__ import annotations

from typing import Any

from torchrl_flow.envs import DEMO_QUALITIES
from torchrl_flow.envs.names import PLANAR, PLANAR_CONTROL_MODE
from torchrl_flow.envs.own import is_own_task
from torchrl_flow.modules import FlowActorConfig, make_flow_actor
from torchrl_flow.options.types import OneOf, option_name

__all__ = ["check_demonstrations", "check_images", "check_network", "check_task"]


def check_task(task: str, obs_mode: str, control_mode: str | None = None) -> None:
    """Validate observation mode and control mode of the planar task.

    Raises:
        SystemExit: if the check fails. The error names the option.
    """
    if task != PLANAR:
        return
    if obs_mode == "rgb":
        raise SystemExit(
            "--obs-mode of the planar task must be state or rgb+state, got rgb: its state is always observed."
        )
    if control_mode not in (None, PLANAR_CONTROL_MODE):
        raise SystemExit(f"--control-mode of the planar task must be {PLANAR_CONTROL_MODE}, got {control_mode}.")


def check_demonstrations(task: str, demos: str | None, *, quality: str | None, retime: bool | None = None) -> None:
    """Refuse options for making demonstrations if a path is given or the task does not support the options.

    Args:
        task: ``"planar"`` or the id of a ManiSkill task.
        demos: path of the demonstrations; ``None`` if they are made.
        quality: quality of demonstrations that are made.
        retime: whether to re-time demonstrations that are made.

    Raises:
        SystemExit: if the check fails. The error names the option.
    """
    if is_own_task(task) and demos is None:
        raise SystemExit(f"--demos is missing: demonstrations of {task} cannot be made automatically.")
    known = OneOf(tuple(DEMO_QUALITIES) if task == PLANAR else ("expert", "mixed"))
    problem = None if quality is None else known.problem(quality, None)
    if problem is not None:
        raise SystemExit(f"--quality of {task} {problem}, got {quality}.")
    made = {"--quality": quality, "--retime": retime}
    given = [name for name, value in made.items() if value is not None]
    if demos is not None and given:
        raise SystemExit(
            f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} only for demonstrations that the recipe "
            f"makes: leave out {' and '.join(given)}, or --demos {demos}."
        )
    if task == PLANAR and retime:
        raise SystemExit("--retime has no effect for the planar task, which has no motion planner: leave it out.")


def check_images(
    task: str, obs_mode: str, demos: str | None, image_size: int | None, pixel_channels: tuple[int, ...]
) -> None:
    """Refuse an image size for images that are not rendered, and an image encoder that cannot be built.

    Args:
        task: name of the task, see :func:`check_demonstrations`.
        obs_mode: observation mode.
        demos: path of the demonstrations; ``None`` if they are made.
        image_size: height and width of rendered images; ``None`` for the size of the camera.
        pixel_channels: channels of the image encoder's convolutions.

    Raises:
        SystemExit: if the check fails. The error names the option.
    """
    if image_size is not None and (obs_mode == "state" or task == PLANAR or is_own_task(task)):
        raise SystemExit(
            f"--image-size {image_size} applies only to images of ManiSkill: give --obs-mode rgb with a task of "
            "ManiSkill, or leave it out."
        )
    if image_size is not None and demos is not None:
        raise SystemExit(
            f"--image-size has no effect with --demos {demos}, whose images have a size already: leave it out."
        )
    uneven = [channels for channels in pixel_channels if channels % 8]
    if uneven:
        raise SystemExit(f"--pixel-channels must be multiples of 8, which are normalised in 8 groups, got {uneven[0]}.")
    smallest = 4 * 2 ** len(pixel_channels)
    if image_size is not None and image_size < smallest:
        raise SystemExit(
            f"--image-size {image_size} is too small for {len(pixel_channels)} convolutions that halve it: give "
            f"{smallest} or more, or fewer --pixel-channels."
        )


def check_network(**fields: Any) -> None:
    """Refuse a velocity network that cannot be built.

    Args:
        **fields: fields of :class:`~torchrl_flow.modules.FlowActorConfig`; the options have the same names.

    Raises:
        SystemExit: if the check fails. The error names the options and the reason.
    """
    try:
        make_flow_actor(FlowActorConfig(action_dim=1, state_dim=1, **fields))
    except ValueError as error:
        words = " ".join(f"{option_name(name)} {value}" for name, value in fields.items())
        raise SystemExit(f"{words}: {error}") from None
