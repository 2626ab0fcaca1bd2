"""Paths of the core on Linux, macOS and Windows; the latter two by what they would be asked to do."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from torchrl_flow.runs import Run
from torchrl_flow.sweeps import SweepRun, Variant, plan
from torchrl_flow.util import platform
from torchrl_flow.util.files import write_text
from torchrl_flow.util.platform import flush, is_alive, largest_resident_mib, locked, replace

PACKAGE = Path(platform.__file__).parent
#: Names that some system lacks, or that do something else there.
APART = frozenset(
    {"fork", "uname", "execv", "execvp", "fsync", "getuid", "geteuid", "setsid", "killpg", "mkfifo", "kill"}
)
MODULES = frozenset({"fcntl", "resource", "pwd", "grp", "termios", "msvcrt", "winreg", "tty", "pty"})


def of_one_system(source: str) -> list[str]:
    """What a file uses of one system alone: modules, and ``os`` in functions that do not ask which one it is."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef) and any("sys.platform" in ast.unparse(n.test) for n in ast.walk(node)
                                                     if isinstance(n, ast.If)):  # fmt: skip
            return
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            found.extend([f"os.{node.attr}"] if node.attr in APART else [])
        elif isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.append(str(node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def test_the_check_sees_each_way():
    assert of_one_system("import os, fcntl\nos.uname()\nfrom resource import getrusage\nos.replace(a, b)") == [
        *("fcntl", "os.uname", "resource")
    ]
    guarded = "def f():\n    if sys.platform == 'win32':\n        return\n    os.execv(a, b)"
    assert of_one_system(guarded) == []
    assert of_one_system(guarded.replace("sys.platform", "name")) == ["os.execv"]


def test_what_one_system_lacks_is_in_one_file():
    # A file that was just written is flushed by the descriptor that wrote it, which every system allows.
    allowed = {"os.fsync"}
    wrong = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "platform.py" and (names := set(of_one_system(path.read_text(encoding="utf-8"))) - allowed)
    }
    assert wrong == {}


def test_files_are_not_flushed_through_a_descriptor_for_reading():
    """Windows refuses that; `flush` opens as each system needs."""
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if "os.fsync(" in line and path.name != "platform.py":
                opened = " ".join(lines[max(0, number - 8) : number])
                assert '"rb"' not in opened, f"{path.name}:{number + 1}"


def test_a_file_is_replaced_and_flushed(tmp_path):
    old, new = tmp_path / "a", tmp_path / "b"
    old.write_text("old")
    new.write_text("new")
    flush(new)
    replace(new, old)
    flush(tmp_path)
    assert old.read_text() == "new"
    assert not new.exists()


def test_windows_is_asked_again_while_the_target_is_open(tmp_path, monkeypatch):
    tries = []

    def refuse_twice(source, target):
        tries.append((source, target))
        if len(tries) < 3:
            raise PermissionError(13, "used by another process")

    monkeypatch.setattr(os, "replace", refuse_twice)
    with pytest.raises(PermissionError):
        replace("a", "b")  # Linux means it.
    tries.clear()
    monkeypatch.setattr(platform, "_WINDOWS", True)
    replace("a", "b")
    assert tries == [("a", "b")] * 3
    monkeypatch.setattr(platform, "_RETRY_S", 0.1)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "open")))
    with pytest.raises(PermissionError, match="open"):
        replace("a", "b")


def test_windows_flushes_files_that_are_open_for_writing_and_no_directory(tmp_path, monkeypatch):
    flags = []
    real = os.open
    monkeypatch.setattr(platform, "_WINDOWS", True)
    monkeypatch.setattr(os, "open", lambda path, flag: flags.append(flag) or real(path, flag))
    flush(tmp_path)
    assert flags == []
    (tmp_path / "a").write_bytes(b"x\r\n")
    flush(tmp_path / "a")
    assert flags[0] & os.O_RDWR
    assert (tmp_path / "a").read_bytes() == b"x\r\n"


def test_a_lock_holds_off_others(tmp_path):
    order = []

    def other():
        with locked(tmp_path):
            order.append("other")

    with locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def windows_locks(monkeypatch):
    """`msvcrt`, as far as locks need it: one byte of a file, by its inode."""
    held = set()

    def locking(descriptor, mode, count):
        key = os.fstat(descriptor).st_ino
        if mode == "lock" and key in held:
            raise OSError(36, "deadlock avoided")
        (held.add if mode == "lock" else held.remove)(key)

    module = types.ModuleType("msvcrt")
    module.locking, module.LK_NBLCK, module.LK_UNLCK = locking, "lock", "unlock"
    monkeypatch.setitem(sys.modules, "msvcrt", module)
    monkeypatch.setattr(platform, "_WINDOWS", True)
    return held


def test_windows_locks_a_file_in_the_directory(tmp_path, windows_locks, monkeypatch):
    with locked(tmp_path):
        assert len(windows_locks) == 1
        monkeypatch.setattr(platform, "_LOCK_S", 0.1)
        with pytest.raises(OSError, match=r"\.lock is locked by another program"), locked(tmp_path):
            pass
    assert windows_locks == set()
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert windows_locks == set()


def test_a_process_is_alive_until_it_ends():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(process.pid)
    process.communicate(b"\n")
    assert not is_alive(process.pid)
    assert is_alive(os.getpid())


def test_windows_is_never_sent_a_signal_to_ask_for_a_process(monkeypatch):
    import ctypes

    class Kernel:
        codes = {1: 259, 2: 0}  # noqa: RUF012

        def OpenProcess(self, access, inherit, pid):
            return pid if pid in self.codes else 0

        def GetLastError(self):
            return 87

        def GetExitCodeProcess(self, handle, code):
            code._obj.value = self.codes[handle]
            return 1

        def CloseHandle(self, handle):
            pass

    monkeypatch.setattr(platform, "_WINDOWS", True)
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=Kernel()), raising=False)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal"))
    assert [is_alive(pid) for pid in (1, 2, 3)] == [True, False, False]


def test_memory_is_told_in_mib(monkeypatch):
    import resource

    assert 1 < largest_resident_mib() < 1e6
    monkeypatch.setattr(resource, "getrusage", lambda _: types.SimpleNamespace(ru_maxrss=3 * 2**20))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert largest_resident_mib() == 3.0
    monkeypatch.setattr(sys, "platform", "linux")
    assert largest_resident_mib() == 3 * 2**10


def test_runs_of_a_sweep_start_without_what_linux_alone_has(tmp_path, monkeypatch):
    options = {}
    real = subprocess.Popen
    monkeypatch.setattr(plan, "_LIBC", None)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: options.update(k) or real(*a, **k))
    run = SweepRun(Variant("a", "a"), 0, tmp_path / "sweep" / "a-0", (sys.executable, "-c", "print('a b')"))
    assert plan._execute(run, 1) == 0
    assert options["preexec_fn"] is None
    assert run.log.read_text().strip() == "a b"


def test_a_signal_handler_of_another_language_is_put_back(tmp_path, monkeypatch):
    real = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGTERM else real(n))
    with Run(tmp_path / "run", {}, progress=False) as run:
        assert list(run.steps(2)) == [1, 2]
    assert real(signal.SIGTERM) == signal.SIG_DFL


def test_text_keeps_its_line_ends_on_every_system(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "linesep", "\r\n")
    write_text(tmp_path / "a", "one\ntwo\n")
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"
