"""Damage files of every kind that the library reads, read them, and count the outcomes.

    python scripts/damage_drill.py                       # every kind, 150 inputs each
    python scripts/damage_drill.py store cache --inputs 1000 --seed 3

Each input is an intact file with one damage: bytes flipped, zeroed, overwritten, removed or inserted, or the end cut
off. The outcome of reading it is one of

    equal     it reads the original content: the damaged bytes have no meaning or no checksum
    warned    it reads other content, with a warning
    refused   it raises DataError, CheckpointError or a ValueError that names the file
    silent    it reads other content, without a warning
    foreign   it raises another exception
    hung      it does not end within 20 s, or kills the process

Exits with 1 if an outcome was foreign or hung. Reads run in forked processes: Linux and macOS only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from damage_kinds import KINDS, Kind  # noqa: E402
from torchrl.checkpoint import CheckpointError  # noqa: E402

OUTCOMES = ("equal", "warned", "refused", "silent", "foreign", "hung")
LIMIT_S = 20
MEMORY = 8 * 2**30


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one damage; it differs from the input unless that is empty."""
    if not content:
        return b"\x00"
    while True:
        changed = bytearray(content)
        place, length = rng.randrange(len(content)), min(rng.choice((1, 4, 16, 64, 512)), len(content))
        way = rng.choice(("flip", "flip", "bits", "zero", "random", "cut", "truncate", "insert", "empty"))
        if way == "flip":
            changed[place] ^= 1 << rng.randrange(8)
        elif way == "bits":
            for _ in range(rng.randint(2, 8)):
                changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif way == "zero":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif way == "random":
            changed[place : place + length] = rng.randbytes(len(changed[place : place + length]))
        elif way == "cut":
            del changed[place : place + length]
        elif way == "truncate":
            del changed[place:]
        elif way == "insert":
            changed[place:place] = rng.randbytes(length)
        elif rng.random() < 0.1:  # an empty file is only one input
            changed.clear()
        if bytes(changed) != content:
            return bytes(changed)


def files_of(kind: Kind, folder: Path) -> list[Path]:
    """Return the files of a kind to damage; larger files are repeated, since most stored bytes are data."""
    found = sorted({path for pattern in kind.damaged for path in folder.glob(pattern) if path.is_file()})
    return [path.relative_to(folder) for path in found]


def equal(one: Any, other: Any) -> bool:
    """Return whether two readings are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.shape == other.shape and one.dtype == other.dtype
        return same and bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        same = isinstance(other, (list, tuple)) and len(one) == len(other)
        return same and all(equal(*pair) for pair in zip(one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def attempt(kind: Kind, folder: Path, intact: Any) -> tuple[str, str]:
    """Read the files in a folder; return the outcome and the message."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = kind.read(folder)
        except (CheckpointError, ValueError) as error:
            # ValueError and CheckpointError of the library name the file; those of other libraries do not.
            clear = str(folder) in str(error) or any(p.name in str(error) for p in folder.rglob("*"))
            decoding = isinstance(error, (UnicodeError, json.JSONDecodeError))
            return "refused" if clear and not decoding else "foreign", f"{type(error).__name__}: {error}"
        except FileNotFoundError as error:
            return "refused", str(error)
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return "foreign", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    if equal(intact, found):
        return "equal", ""
    told = [str(warning.message) for warning in heard if issubclass(warning.category, UserWarning)]
    return ("warned", told[0]) if told else ("silent", "")


def trials(kind: Kind, folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Damage and read ``count`` times; yield outcome, message and file."""
    intact_folder = folder / "intact"
    intact_folder.mkdir()
    kind.make(intact_folder)
    files = files_of(kind, intact_folder)
    names = [rng.choice(files) for _ in range(count)]
    done, seeds = 0, [rng.getrandbits(32) for _ in range(count)]
    while done < count:
        for result in _forked(kind, folder, names[done:], seeds[done:]):
            yield result
            done += 1


def limit_memory() -> None:
    """Limit the memory of this process to MEMORY more than it has; without effect on macOS."""
    with contextlib.suppress(OSError):
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def in_a_limited_process(action: Callable[[], None]) -> str | None:
    """Run an action in a separate process with the limits of the drill; return how it failed, None if it did not.

    Args:
        action: called once; it calls ``signal.alarm(LIMIT_S)`` before each reading.
    """
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
        told, status = "", 0
        try:
            limit_memory()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            action()
        except BaseException:
            told, status = traceback.format_exc()[-8000:], 1
        os.write(send, told.encode("utf-8", "replace"))
        os._exit(status)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8", errors="replace") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"the process ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return told or f"the process ended by status {status}" if status else None


def _forked(kind: Kind, folder: Path, names: Sequence[Path], seeds: Sequence[int]) -> Iterator[tuple[str, str, str]]:
    """Read in a separate process; if it dies, this is the outcome of its current input."""
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(receive)
        with os.fdopen(send, "w") as pipe:
            limit_memory()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            _read_all(kind, folder, names, seeds, pipe)
        os._exit(0)
    os.close(send)
    told = 0
    with os.fdopen(receive) as pipe:
        for line in pipe:
            if not line.endswith("\n"):
                break
            told += 1
            outcome, message, name = json.loads(line)
            yield outcome, message, name
    _, status = os.waitpid(pid, 0)
    if told < len(names):
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
        yield "hung", f"the process ended by {how}", str(names[told])


def _read_all(kind: Kind, folder: Path, names: Sequence[Path], seeds: Sequence[int], pipe: Any) -> None:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "intact", copy)
    intact = kind.read(copy)
    for name, seed in zip(names, seeds):
        shutil.rmtree(copy)
        shutil.copytree(folder / "intact", copy)
        (copy / name).write_bytes(mutate((copy / name).read_bytes(), random.Random(seed)))
        signal.alarm(LIMIT_S)
        outcome, message = attempt(kind, copy, intact)
        signal.alarm(0)
        pipe.write(json.dumps([outcome, message[:300], str(name)]) + "\n")
        pipe.flush()


def drill(name: str, count: int, seed: int, *, show: int = 0) -> collections.Counter[str]:
    """Do the trials of one kind; print up to ``show`` examples of each bad outcome."""
    counts: collections.Counter[str] = collections.Counter()
    shown: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for outcome, message, file in trials(KINDS[name], Path(folder), count, random.Random(f"{name} {seed}")):
            counts[outcome] += 1
            if outcome in ("silent", "foreign", "hung") and shown[f"{outcome} {message[:40]}"] < 1:
                shown[f"{outcome} {message[:40]}"] += 1
                if sum(shown.values()) <= show:
                    print(f"  {name}: {outcome}: {file}: {message}", flush=True)
    return counts


def main() -> int:
    """Parse the command line and run the drills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"which: {', '.join(KINDS)}; all by default")
    parser.add_argument("--inputs", type=int, default=150, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--show", type=int, default=0, help="examples to print of each kind that is not clear")
    args = parser.parse_args()
    unknown = [name for name in args.kinds if name not in KINDS]
    if unknown:
        parser.error(f"there are no kinds {unknown}; there are {', '.join(KINDS)}")
    torch.set_num_threads(1)
    print(f"| kind | inputs | {' | '.join(OUTCOMES)} |\n| --- |{' ---: |' * (len(OUTCOMES) + 1)}")
    total: collections.Counter[str] = collections.Counter()
    for name in args.kinds or KINDS:
        counts = drill(name, args.inputs, args.seed, show=args.show)
        total += counts
        cells = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
        print(f"| {KINDS[name].of} (`{name}`) | {sum(counts.values())} | {cells} |", flush=True)
    return 1 if total["foreign"] or total["hung"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
