"""The images name files and extras that exist; no image is built here."""

from __future__ import annotations

import fnmatch
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTRUCTIONS = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and what each says, continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def said(path: Path, name: str) -> list[str]:
    return [text for instruction, text in instructions(path) if instruction == name]


def copied(path: Path) -> list[str]:
    return [source for text in said(path, "COPY") for source in text.split()[:-1]]


def ignored(name: str) -> bool:
    """Whether the root's ``.dockerignore`` keeps a path of the root out; the last pattern that fits decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.lstrip("!")
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.split("/")[0], pattern):
                out = not line.startswith("!")
    return out


def test_there_is_an_image_for_cpus_and_one_for_gpus():
    assert [path.name for path in IMAGES] == ["cpu.Dockerfile", "gpu.Dockerfile"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_sources_exist_and_reach_the_build(path):
    sources = copied(path)
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    # What the build of the package reads must be there when it is built.
    for needed in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "torchrl_flow", "examples"):
        assert needed in sources, needed


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_what_is_installed_is_what_the_package_declares(path):
    (extras,) = [text.split("=", 1)[1] for text in said(path, "ARG") if text.startswith("EXTRAS=")]
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    declared = {re.split(r"[<>=\[; ]", requirement, maxsplit=1)[0] for requirement in PROJECT["dependencies"]}
    installs = [part.strip() for text in said(path, "RUN") for part in text.split("&&") if "pip install" in part]
    assert len(installs) == 2
    for install in installs:
        assert "--constraint constraints.txt" in install
        target = install.split()[-1].strip('"')
        assert target == ".[$EXTRAS]" or target in declared, target
    assert installs[-1].endswith('--editable ".[$EXTRAS]"')


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_the_base_runs_the_package_and_the_user_is_not_root(path):
    assert {name for name, _ in instructions(path)} <= INSTRUCTIONS
    (base,) = said(path, "FROM")
    version = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert version is not None
    assert int(version[1]) >= int(re.search(r">=3\.(\d+)", PROJECT["requires-python"])[1])
    assert said(path, "USER") == ["user"]
    assert said(path, "ENTRYPOINT") == ['["python", "-m", "torchrl_flow"]']
    assert not re.search(r"https?://", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["runs", "data", "tests", ".git", "docs", "results", ".venv"])
def test_what_is_large_or_private_stays_out_of_the_build(name):
    assert ignored(name)


def test_the_gpu_image_can_compute_and_render():
    (path,) = [image for image in IMAGES if image.stem == "gpu"]
    variables = " ".join(said(path, "ENV"))
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics" in variables
    assert "libvulkan1" in " ".join(said(path, "RUN"))


def test_the_batch_script_of_the_docs_is_one():
    """Its options are those of recipes, its lines those of a shell, and what SLURM reads comes before any command."""
    import shutil
    import subprocess

    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, flags=re.S)
    lines = script.splitlines()
    last_directive = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") or not line for line in lines[:last_directive])
    assert re.search(r"#SBATCH --signal=TERM@\d+", script)
    assert "--requeue" in script
    assert "--resume" in script
    recipe = re.search(r"torchrl_flow run (\w+)", script)
    assert recipe is not None
    source = (ROOT / "examples" / f"{recipe[1]}.py").read_text(encoding="utf-8")
    source += (ROOT / "torchrl_flow" / "options" / "run_arguments.py").read_text(encoding="utf-8")
    for option in set(re.findall(r" --([a-z-]+)", script.split("srun", 1)[1])):
        assert f"    {option.replace('-', '_')}:" in source, option
    bash = shutil.which("bash")
    if bash is not None:
        assert subprocess.run([bash, "-n"], input=script, encoding="utf-8", check=False).returncode == 0
