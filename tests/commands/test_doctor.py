"""The doctor, on machines that lack something."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from torchrl.data.replay_buffers import samplers

from torchrl_flow.commands import doctor as doctor_module
from torchrl_flow.commands.doctor import OPTIONAL, RECIPE_NEEDS, Check, DoctorArgs, recipe_lines
from torchrl_flow.commands.doctor_probes import Outcome, Probe
from torchrl_flow.commands.recipes import find_recipes

ROOT = Path(__file__).parents[2]
EXTRAS = (*OPTIONAL, "mani_skill", "sapien", "mplib", "imageio")
# Two ways in which a package can be missing: not found, or an import that fails.
HIDE = """
import sys
hidden = {hidden!r}
class Hide:
    def __init__(self, finders): self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden: return None
        for finder in self.finders:
            spec = finder.find_spec(name, path, target)
            if spec is not None: return spec
    def invalidate_caches(self): pass
    def find_distributions(self, *args, **kwargs):
        for finder in self.finders:
            if hasattr(finder, "find_distributions"): yield from finder.find_distributions(*args, **kwargs)
sys.meta_path[:] = [Hide(list(sys.meta_path))]
sys.argv = ["torchrl-flow", "doctor"]
from torchrl_flow.__main__ import main
main()
"""


def doctor(hidden, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", HIDE.format(hidden=tuple(hidden))]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True)


def states(text):
    return {line[4:].split("  ")[0].strip(): line[:2] for line in text.splitlines() if line[:4] in ("ok  ", "no  ")}


def test_without_any_extra_the_core_works_and_each_command_is_named(tmp_path):
    done = doctor(EXTRAS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = states(done.stdout)
    assert found["core"] == "ok"
    missing = (
        "ManiSkill",
        "motion planner",
        "rendering",
        "matplotlib",
        "ffmpeg",
        "TensorBoard",
        "W&B",
        "Ray",
        "SARDINE",
    )
    assert all(found[name] == "no" for name in missing)
    for extra in ("maniskill", "plot", "wandb", "sweep", "sardine"):
        assert f"torchrl-flow[{extra}]" in done.stdout
    recipes = done.stdout.split("Recipes\n")[1].split("To mend")[0]
    for name in find_recipes():
        assert f"{name} " in recipes
    assert "ManiSkill (state): ManiSkill" in recipes
    assert "planar" in next(line for line in recipes.splitlines() if line.startswith("reinflow "))


@pytest.mark.parametrize("name", ["torchrl", "h5py"])
def test_without_the_core_it_says_so_and_fails(tmp_path, name):
    done = doctor([name], tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert states(done.stdout)["core"] == "no"
    assert f"not installed: {name}" in done.stdout
    assert "The core does not work" in done.stdout


def test_versions_is_the_same_command(tmp_path):
    code = HIDE.format(hidden=EXTRAS).replace('"doctor"', '"versions"')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert states(done.stdout)["core"] == "ok"


def test_every_recipe_says_what_it_needs():
    assert set(RECIPE_NEEDS) == set(find_recipes())


def test_a_recipe_works_where_all_that_it_needs_works():
    checks = [Check("core", True, ""), Check("ManiSkill", True, ""), Check("rendering", False, "")]
    lines = {name: (works, lacking) for name, works, lacking in recipe_lines(checks)}
    assert lines["reinflow"] == ("planar, ManiSkill (state)", "ManiSkill (images): rendering")
    broken = {name: works for name, works, _ in recipe_lines([Check("core", False, "")])}
    assert set(broken.values()) == {"nothing"}


def test_a_probe_outlives_a_package_that_ends_its_process(tmp_path, monkeypatch):
    (tmp_path / "first.py").write_text("print('noise', end='')", encoding="utf-8")
    (tmp_path / "fails.py").write_text("raise OSError('libX.so: cannot open')", encoding="utf-8")
    (tmp_path / "aborts.py").write_text("import os; os._exit(7)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = Probe(["first", "fails", "aborts", "later"]).outcomes()
    assert found["first"] == Outcome(True, "")
    assert found["fails"] == Outcome(False, "libX.so: cannot open")
    assert not found["aborts"].works
    assert "exit status 7" in found["aborts"].detail
    assert not found["later"].works
    assert "not tried" in found["later"].detail


@pytest.fixture
def extension(monkeypatch, capsys):
    """A function: the lines that the doctor prints if importing TorchRL's compiled extension raises ``error``."""

    def printed(error):
        def make(*args):
            if error is not None:
                raise RuntimeError("SumSegmentTreeFp32 is not available. See https://pytorch.org\nfor more")

        def import_module(name):
            if name == "torchrl._torchrl":
                raise error
            return importlib.__import__(name)

        monkeypatch.setattr(samplers, "PrioritizedSampler", make)
        monkeypatch.setattr(doctor_module.importlib, "import_module", import_module)
        monkeypatch.setattr(doctor_module, "examine", lambda: [Check("core", True, ""), doctor_module._extension()])
        assert DoctorArgs()() == 0  # the core works without it
        return capsys.readouterr().out.splitlines()

    return printed


def test_an_extension_of_another_torch(extension):
    symbol = "_torchrl.so: undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationE"
    lines = extension(ImportError(symbol))
    (line,) = [line for line in lines if line[4:].startswith("TorchRL C++ extension")]
    torch = metadata.version("torch")
    assert line.startswith("no  ")
    assert line.endswith(
        f"TorchRL's wheel was built for another version of torch than {torch} "
        "(no PrioritizedSampler of torchrl.data; that of torchrl_flow.data works)"
    )
    advice = lines[lines.index("To mend") + 1]
    build = "pip install --force-reinstall --no-deps --no-binary torchrl --no-build-isolation "
    assert advice.startswith(f"  {build}torchrl=={metadata.version('torchrl')}   (builds it here, with a C++ compiler")
    assert advice.endswith("or install the torch that its release notes name)")
    assert lines[lines.index("To mend") + 2] == "      for TorchRL C++ extension"


def test_an_extension_that_is_missing(extension):
    lines = extension(ModuleNotFoundError("No module named 'torchrl._torchrl'"))
    (line,) = [line for line in lines if line[4:].startswith("TorchRL C++ extension")]
    assert "No module named 'torchrl._torchrl' (no PrioritizedSampler" in line
    assert lines[lines.index("To mend") + 1] == "  pip install --force-reinstall --no-deps torchrl"


def test_an_extension_that_loads(extension):
    lines = extension(None)
    assert any(line.startswith("ok  TorchRL C++ extension") for line in lines)
    assert "To mend" not in lines
