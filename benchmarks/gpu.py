"""Speed of this library on a GPU, in one command of at most ten minutes.

    python benchmarks/gpu.py --results benchmarks/results.csv
    python benchmarks/gpu.py --device cpu          # a reduced form, marked as such

The benchmark measures loss, backward pass and optimiser step of each update in float32, TF32 and bfloat16 (autocast),
eager, compiled, compiled with CUDA graphs, and eager in one CUDA graph (tensordict's CudaGraphModule); the latency of a
chunk; QEnsemble's loop and its batched form; the planar task with 4,096 environments; ManiSkill's simulation on the GPU
with states and with images; and the memory of ReinFlow's rollouts and updates. The reference of a row is the eager
float32 form, or the loop of QEnsemble. If a form cannot be measured, its error is printed and the others continue.
Forms not started after `--minutes` are skipped.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import memory
import offline_updates
import torch
import tyro
from flow_updates import Args as FlowArgs
from flow_updates import make_actor, make_batch
from pairs import record_pair
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule
from torchrl.envs import EnvBase

from torchrl_flow.envs import ManiSkillEnv, PlanarPickPlaceEnv
from torchrl_flow.modules import QEnsemble
from torchrl_flow.objectives import AWFlowLoss, ShortCutFlowLoss
from torchrl_flow.util.timing import Form, alternate, count_flops, gemm_rate, num_parameters

Part = Literal["latency", "ensembles", "planar", "simulation", "memory", "updates", "graphs"]


@dataclass
class Args:
    """What to measure."""

    parts: tuple[Part, ...] = get_args(Part)
    """What to measure, in this order."""
    device: str = "auto"
    """cuda, cpu, or auto: cuda if available"""
    rounds: int = 20
    """Number of measurements of each form, taken alternately."""
    batch_size: int = 256
    num_envs: int = 4096
    """Environments of the planar task."""
    maniskill_envs: int = 1024
    """Environments of ManiSkill's simulation on the GPU; an eighth of them with images of 64 x 64 pixels."""
    minutes: float = 9.0
    """Time after which no further measurement is started."""
    compiled: bool = True
    """Also measure compiled forms."""
    results: Path | None = None
    """A CSV file to append the pairs to."""


PRECISIONS = ("float32", "TF32", "bfloat16")
MODES = {"eager": None, "compiled": "default", "compiled with CUDA graphs": "reduce-overhead"}


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """Set the precision inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def losses(args: Args) -> dict[str, tuple[Any, TensorDict, list[str]]]:
    """Return each update's loss, a batch, and the names of the minimised losses."""
    flow = FlowArgs(batch_size=args.batch_size, device=args.device)
    batch, actor = make_batch(flow), make_actor(flow, "mlp")
    critic = QEnsemble.for_actor(actor).to(args.device)
    made: dict[str, tuple[Any, TensorDict, list[str]]] = {
        "ShortCutFlowLoss": (ShortCutFlowLoss(make_actor(flow, "mlp")), batch, ["loss_flow"]),
        "ShortCutFlowLoss, concat_mlp": (ShortCutFlowLoss(make_actor(flow, "concat_mlp")), batch, ["loss_flow"]),
        "AWFlowLoss": (AWFlowLoss(actor, critic), batch, ["loss_actor", "loss_qvalue"]),
    }
    offline = offline_updates.Args(batch_size=args.batch_size, device=args.device)
    transitions = offline_updates.make_batch(offline)
    names = {"td3_bc": ["loss_actor", "loss_qvalue"], "iql": ["loss_actor", "loss_qvalue", "loss_value"]}
    names["cql"] = ["loss_actor", "loss_qvalue", "loss_cql", "loss_alpha"]
    for algorithm in ("td3_bc", "iql", "cql"):
        update = offline_updates.Ours(offline, algorithm, transitions)
        made[type(update.loss).__name__] = (update.loss, transitions, names[algorithm])
    return made


def update_of(loss: Any, batch: TensorDict, names: list[str], mode: str | None, kind: str, device: str) -> Form:
    """Return an update in one precision, eager or compiled."""

    def total(batch: TensorDict) -> torch.Tensor:
        found = loss(batch)
        return torch.stack([found[name] for name in names]).sum()

    compute: Any = total if mode is None else torch.compile(total, mode=mode)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-5, fused=True)

    def update() -> None:
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        with precision(kind, device):
            value = compute(batch.clone(False))
        value.backward()
        optimizer.step()

    return update


def update_in_one_graph(loss: Any, batch: TensorDict, names: list[str], device: str) -> Form:
    """Return an eager float32 update that is recorded once in a CUDA graph, and then replayed."""
    optimizer = torch.optim.Adam(loss.parameters(), 1e-5, capturable=True)

    def update(batch: TensorDict) -> TensorDict:
        optimizer.zero_grad(set_to_none=True)
        with precision("float32", device):
            found = loss(batch.clone(False))
        value = torch.stack([found[name] for name in names]).sum()
        value.backward()
        optimizer.step()
        return TensorDict(loss=value.detach())

    graph = CudaGraphModule(cast(Any, update), warmup=5)
    return lambda: graph(batch)


def in_one_line(error: Exception) -> str:
    """Return the kind of an error and the start of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"


class Report:
    """Printer of pairs that appends them to the table and checks the time limit."""

    def __init__(self, args: Args) -> None:
        self.args, self.end = args, time.monotonic() + 60 * args.minutes

    def pair(self, title: str, mode: str, ours: list[float], reference: list[float]) -> None:
        """Print and store one pair."""
        record_pair(title, mode, ours, reference, device=self.args.device, results=self.args.results)

    def has_time(self, what: str) -> bool:
        """Return whether time is left."""
        if time.monotonic() < self.end:
            return True
        print(f"{what}: left out, {self.args.minutes} minutes are over", flush=True)
        return False

    def measure(self, what: str, reference: Form, form: Form, sizes: str = "") -> None:
        """Measure a form and its reference; print an error if it fails."""
        if not self.has_time(what):
            return
        title, mode = what.split(": ")
        mode += f", {sizes}" * bool(sizes)
        try:
            times = alternate({"reference": reference, "form": form}, rounds=self.args.rounds, device=self.args.device)
        except Exception as error:
            print(f"{title}, {mode}: failed, {in_one_line(error)}", flush=True)
            return
        self.pair(title, mode, times["form"], times["reference"])


def rates(args: Args) -> dict[str, float]:
    """Return the rate of matrix products in each precision."""
    found = {}
    for kind in PRECISIONS:
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        with precision(kind, args.device):
            found[kind] = gemm_rate(args.device, dtype, rounds=10)
    return found


def sizes_of(loss: Any, flops: float, rate: float, reference: float) -> str:
    """Return the numbers of parameters and the lower bounds (only the matrix products) of a form and its reference."""
    number = num_parameters(loss.parameters())
    floors = f"{1e3 * flops / rate:.3g} / {1e3 * flops / reference:.3g} ms"
    return f"{number} / {number} parameters, floor {floors}"


def updates(args: Args, report: Report) -> None:
    cuda = args.device.startswith("cuda")
    modes = {name: mode for name, mode in MODES.items() if mode is None or (args.compiled and cuda)}
    kinds = PRECISIONS if cuda else ("float32", "bfloat16")
    forms = [(name, mode, kind) for kind in kinds for name, mode in modes.items()]
    made, rate = losses(args), rates(args)
    flops = {title: count_flops(update_of(*one, None, "float32", args.device)) for title, one in made.items()}
    for name, mode, kind in sorted(forms, key=lambda form: form[1] is not None):  # eager forms need little time
        for title, (loss, batch, names) in made.items():
            eager = update_of(loss, batch, names, None, "float32", args.device)
            form = update_of(loss, batch, names, mode, kind, args.device)
            sizes = sizes_of(loss, flops[title], rate[kind], rate["float32"])
            report.measure(f"{title} update: {kind} {name} / float32 eager", eager, form, sizes)
        torch.compiler.reset()


def graphs(args: Args, report: Report) -> None:
    """Measure each update in one CUDA graph; last of the updates, since a failed recording disturbs later kernels."""
    if not args.device.startswith("cuda"):
        return
    rate = rates(args)["float32"]
    for title, (loss, batch, names) in losses(args).items():
        eager = update_of(loss, batch, names, None, "float32", args.device)
        form = update_in_one_graph(loss, batch, names, args.device)
        sizes = sizes_of(loss, count_flops(eager), rate, rate)
        report.measure(f"{title} update: float32 CudaGraphModule / float32 eager", eager, form, sizes)


def latency(args: Args, report: Report) -> None:
    for network in ("mlp", "concat_mlp"):
        actor = make_actor(FlowArgs(device=args.device), network)
        for rows in (1, args.batch_size):
            data = TensorDict(observation=torch.randn(rows, 1, 23, device=args.device), batch_size=[rows])

            def sample(steps: int, actor: Any = actor, data: TensorDict = data) -> Form:
                return torch.no_grad()(lambda: actor(data, num_steps=steps))

            for steps in (4, 16):
                report.measure(f"a chunk of {network}, B {rows}: K {steps} / K 1", sample(1), sample(steps))


def ensembles(args: Args, report: Report) -> None:
    critic = QEnsemble.for_actor(make_actor(FlowArgs(device=args.device), "mlp")).to(args.device)
    features = torch.randn(args.batch_size, 23, device=args.device)
    action = torch.randn(args.batch_size, 8, 7, device=args.device)

    def form(compute: Any) -> Form:
        def run() -> None:
            critic.compute = compute
            critic.q_values(features, action).square().mean().backward()
            critic.zero_grad()

        return run

    report.measure("QEnsemble of ten, forward and backward: batched / loop", form("loop"), form("batched"))


def measure_steps(args: Args, env: EnvBase, title: str) -> None:
    """Measure steps of a batch of environments with random actions, and print their rate."""
    data = [env.reset()]
    action = env.full_action_spec.rand()["action"]

    def step() -> None:
        data[0] = env.step_and_maybe_reset(data[0].set("action", action))[1]

    ms = statistics.median(alternate({"step": step}, rounds=args.rounds, device=args.device)["step"])
    print(f"{title}: {ms:.2f} ms a step, {env.batch_size.numel() / (1e-3 * ms):,.0f} steps a second", flush=True)


def planar(args: Args, report: Report) -> None:
    title = f"planar, {args.num_envs} environments"
    if report.has_time(title):
        measure_steps(args, PlanarPickPlaceEnv(args.num_envs, seed=0, device=args.device), title)


def simulation(args: Args, report: Report) -> None:
    """Measure ManiSkill's simulation on the GPU, which needs SAPIEN's GPU library, and Vulkan for images."""
    if not args.device.startswith("cuda"):
        return
    for obs_mode, num_envs in (("state", args.maniskill_envs), ("rgb", args.maniskill_envs // 8)):
        title = f"ManiSkill PickCube-v1, {obs_mode}, {num_envs} environments"
        if not report.has_time(title):
            return
        options: dict[str, Any] = {"obs_mode": obs_mode, "render_size": 64 if obs_mode == "rgb" else None}
        try:
            env = ManiSkillEnv("PickCube-v1", num_envs=num_envs, sim_backend="physx_cuda", seed=0, **options)
            measure_steps(args, env, title)
        except Exception as error:
            print(f"{title}: failed, {in_one_line(error)}", flush=True)


def memories(args: Args, report: Report) -> None:
    """Print the peaks of ReinFlow's rollouts and updates, to be compared with the memory of a card."""
    if not args.device.startswith("cuda"):
        return
    sizes = memory.Args(device=args.device, num_envs=(256, 1024), batch_sizes=(256, 1024, 4096))
    for train_encoder in (False, True):
        for case in memory.cases(dataclasses.replace(sizes, train_encoder=train_encoder)):
            title = f"{case['what']}, {case['obs']}, {case['size']}" + ", trained encoder" * train_encoder
            if (train_encoder and (case["what"], case["obs"]) != ("update", "rgb")) or not report.has_time(title):
                continue
            before = torch.cuda.memory_allocated() / 2**20
            found = memory.take(dataclasses.replace(sizes, train_encoder=train_encoder), case)
            print(f"memory of ReinFlow, {title}: {found['peak_mb'] - before:,.0f} MiB", flush=True)


PARTS: dict[Part, Callable[[Args, Report], None]] = {
    "latency": latency,
    "ensembles": ensembles,
    "planar": planar,
    "simulation": simulation,
    "memory": memories,
    "updates": updates,
    "graphs": graphs,
}


def main(args: Args) -> None:
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    report = Report(args)
    if args.device.startswith("cuda"):
        print(f"{torch.cuda.get_device_name(args.device)}, torch {torch.__version__}")
        for dtype in (torch.float32, torch.bfloat16):
            print(f"matrix products of 4096, {dtype}: {gemm_rate(args.device, dtype, size=4096) / 1e12:.1f} TFLOP/s")
    else:
        torch.set_num_threads(1)
        args.rounds, args.batch_size, args.num_envs = min(args.rounds, 3), min(args.batch_size, 32), 64
        left_out = "without TF32, compiled forms, CUDA graphs and ManiSkill"
        print(f"no GPU: a reduced form of few rows, {left_out}; nothing to compare with")
    for name in args.parts:
        PARTS[name](args, report)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
