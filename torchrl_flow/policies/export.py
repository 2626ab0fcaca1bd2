"""Export of policies as torch.export archives, which run without this library and without TorchRL."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor, nn
from torchrl.checkpoint import CheckpointError

from torchrl_flow._version import __version__
from torchrl_flow.modules import FlowActor, SteeredFlowActor
from torchrl_flow.policies import exported_policy
from torchrl_flow.policies.acting import load_acting_policy, policy_kind
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.runs.names import Which
from torchrl_flow.util.files import staged, write_bytes

__all__ = ["HELPER", "export_policy"]

HELPER = "exported_policy.py"
"""Module that runs an archive, written next to it; it needs only torch and NumPy."""
MAX_BATCH = 4096


def export_policy(
    source: str | Path | TrainingCheckpoint,
    output: str | Path,
    *,
    which: Which = "last",
    num_steps: int | None = None,
    compile: bool = False,
) -> Path:
    """Write a policy as an archive that runs without this library, and the Python module that runs it.

    The archive holds the weights, the normalisers of observations and actions, the sampler and the bounds of actions.
    Its program reads histories of observations ``[B, T, ...]`` and noise ``[B, H, A]``, for any B up to 4096, and
    returns the executed actions ``[B, H_a, A]`` and the whole chunk ``[B, H, A]``. The file ``exported_policy.py``
    beside it loads the archive and manages history and chunk; it needs only torch and NumPy.

    Args:
        source: checkpoint, its file, or the directory of a run.
        output: file to write, whose name ends in ``.pt2``.
        which: which checkpoint of a run to use, ``"last"`` or ``"best"``.
        num_steps: sampling steps K. Defaults to those of the policy.
        compile: compile the program by AOTInductor for the CPU of this machine, which needs a C++ compiler. The archive
            then cannot run on other machines.

    Returns:
        The archive.

    Raises:
        CheckpointError: if the checkpoint has no policy of action chunks.
        ValueError: if ``output`` does not end in ``.pt2``, ``num_steps`` is below 1, or there is no compiler.

    Warns:
        UserWarning: if the flow was not trained for ``num_steps``.

    References:
        https://docs.pytorch.org/docs/stable/export.html
    """
    output = Path(output)
    if output.suffix != ".pt2":
        raise ValueError(f"output must be a file .pt2, got {str(output)!r}.")
    if compile and not any(map(shutil.which, ("g++", "c++", "clang++", "cl"))):
        raise ValueError("compile=True needs a C++ compiler, and there is none: install g++, or leave it out.")
    actor, checkpoint = load_acting_policy(source, which=which)
    if not isinstance(actor, (FlowActor, SteeredFlowActor)):
        raise CheckpointError(
            f"{checkpoint.path} holds a {policy_kind(checkpoint).name}, and policies of action chunks alone are "
            "exported: name a run of shortcut_flow_bc or of a stage after it."
        )
    if num_steps is not None:
        actor.num_steps = _flow(actor).check_num_steps(num_steps)
    program = _Program(actor.requires_grad_(False))
    description = _describe(actor, checkpoint, compiled=compile)
    output.parent.mkdir(parents=True, exist_ok=True)
    with staged(output) as part:
        _write(program, description, part, compile=compile)
    write_bytes(output.parent / HELPER, Path(exported_policy.__file__).read_bytes())
    return output


class _Program(nn.Module):
    """The actor as a function of tensors: observations in the order of its keys, and noise."""

    def __init__(self, actor: FlowActor | SteeredFlowActor) -> None:
        super().__init__()
        self.actor = actor
        flow = _flow(actor)
        self.action_key, self.chunk_key = flow.action_key, flow.chunk_key

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *observations, noise = inputs
        data = TensorDict({}, batch_size=[])
        for key, value in zip(self.actor.in_keys, observations):
            data.set(key, value)
        data = self.actor(data.set(self.actor.noise_key, noise))
        return data[self.action_key], data[self.chunk_key]


def _write(program: _Program, description: dict[str, Any], path: Path, *, compile: bool) -> None:
    example = [_example(form) for form in description["inputs"].values()]
    example.append(torch.zeros(2, *description["noise_shape"]))
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with torch.no_grad():
        traced = torch.export.export(
            program.eval(), tuple(example), dynamic_shapes=(tuple({0: batch} for _ in example),), strict=False
        )
    text = json.dumps(description, indent=2)
    if not compile:
        torch.export.save(traced, path, extra_files={exported_policy.DESCRIPTION: text})
        return
    torch._inductor.aoti_compile_and_package(traced, package_path=str(path))
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].split("/", 1)[0]
        archive.writestr(f"{folder}/extra/{exported_policy.DESCRIPTION}", text)


def _describe(actor: FlowActor | SteeredFlowActor, checkpoint: TrainingCheckpoint, *, compiled: bool) -> dict[str, Any]:
    """Return the archive's description of its policy, JSON-able."""
    flow, encoder = _flow(actor), _flow(actor).encoder
    shapes: dict[NestedKey, tuple[Any, str]] = {}
    if encoder.state_shape is not None:
        shapes[encoder.state_key] = (encoder.state_shape, "float32")
    if encoder.pixel_encoder is not None:
        shapes[encoder.pixels_key] = (encoder.pixel_encoder.shape, "uint8")
    inputs = {_name(key): {"shape": list(shapes[key][0]), "dtype": shapes[key][1]} for key in actor.in_keys}
    return {
        "format": exported_policy.FORMAT,
        "kind": policy_kind(checkpoint).name,
        "inputs": inputs,
        "noise_shape": list(actor.noise_shape),
        **{name: getattr(flow, name) for name in ("obs_horizon", "pred_horizon", "act_horizon", "action_dim")},
        "num_steps": actor.num_steps,
        "compiled": compiled,
        "device": "cpu",
        "task": checkpoint.task.to_dict(),
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.step,
        "versions": {"torchrl_flow": __version__, "torch": torch.__version__},
    }


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else ".".join(map(str, key))


def _flow(actor: FlowActor | SteeredFlowActor) -> FlowActor:
    return actor.flow if isinstance(actor, SteeredFlowActor) else actor


def _example(form: dict[str, Any]) -> Tensor:
    return torch.zeros(2, *form["shape"], dtype=getattr(torch, form["dtype"]))
