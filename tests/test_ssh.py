"""The ssh runner: on a stand-in for ssh, and against a real sshd on loopback (slow)."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.benchmark import bench
from edgeprune.errors import ArtifactError, MeasurementError, TargetError
from edgeprune.pipeline.explaining import profile_of
from edgeprune.runners import SshRunner, runner_for
from edgeprune.runners import board as board_module
from edgeprune.runners.board import Guard
from edgeprune.target import Runtime, load_target
from tests.conftest import edgeprune

RUNTIME = Runtime(runner="ssh", host="board", python=sys.executable)


def _relu(path: Path, width: int = 3) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of ssh."""

    def install(text: str) -> None:
        _script(tmp_path / "bin" / "ssh", text)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return install


# --- without ssh --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=x",
        "pi@-oProxyCommand=x",
        "pi board",
        "pi\nboard",
        "",
        "pi@",
        "$(x)",
        "a;b",
        "a`b`",
        "a'b",
    ],
)
def test_host_that_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(TargetError, match=r"runtime\.host is .*, expected a host name") as caught:
        runner_for(replace(RUNTIME, host=host))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "host",
    ["pi", "pi@raspberrypi.local", "10.0.0.7", "pi@fe80::1%eth0", "::1", "ssh://pi@board:2222", "a_b-c"],
)
def test_host_names(host: str) -> None:
    assert SshRunner(replace(RUNTIME, host=host)).host == host


def test_no_ssh_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MeasurementError, match=r"ssh is not on this machine.*Install openssh-client"
    ) as caught:
        SshRunner(RUNTIME).run("environment")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "ssh: Could not resolve hostname board: Name or service not known",
            "board is unknown: no such name",
        ),
        ("me@board: Permission denied (publickey,password).", "board is refusing the key.*ssh-copy-id board"),
        ("Host key verification failed.", "host key is not known here.*accept it: `ssh board`"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "host key has changed.*ssh-keygen -R",
        ),
        ("ssh: connect to host board port 22: Connection refused", "out of reach .*refused.*board is on"),
        ("~/.ssh/config: line 3: Bad configuration option: x", "configuration has a fault"),
        ("something new", r"board is out of reach \(something new\).*Try `ssh board`"),
        ("", r"board is out of reach \(no answer in time\)"),
    ],
)
def test_why_there_is_no_connection(fake_ssh: Callable[[str], None], said: str, message: str) -> None:
    fake_ssh(f"cat >&2 <<'END'\n{said}\nEND\nexit 255")
    with pytest.raises(MeasurementError, match=f"(?s)could not start measuring: .*{message}") as caught:
        SshRunner(RUNTIME).run("environment")
    assert caught.value.exit_code == 3


def test_board_without_room_for_a_folder(fake_ssh: Callable[[str], None]) -> None:
    fake_ssh("echo 'mktemp: failed to create directory' >&2; exit 93")
    with pytest.raises(
        MeasurementError, match=r"unable to make a temporary folder .*It takes a shell with mktemp"
    ):
        SshRunner(RUNTIME).run("environment")


def test_board_that_says_nothing(fake_ssh: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.runners.ssh.CONNECT_S", 0.2)
    fake_ssh("exec sleep 30")
    start = time.monotonic()
    with pytest.raises(MeasurementError, match="no answer in time"):
        SshRunner(RUNTIME).run("environment")
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("copying", "message"),
    [
        ("exec sleep 20", "connection to board is too slow: a copy did not end within 0 s"),
        ("echo 'cat: x: Permission denied' >&2; exit 1", r"not to be written \(cat: x: Permission denied\)"),
        ("echo 'tar: No space left on device' >&2; exit 1", r"folder on board is full\. Free space"),
        (
            "echo 'mux_client: session request failed: Session open refused by peer' >&2; exit 255",
            "connection to board is limited to one session, expected at least 2. Set MaxSessions",
        ),
        ("echo 'Connection closed' >&2; exit 255", r"connection to board is lost \(Connection closed\)"),
    ],
)
def test_copy_that_fails(
    fake_ssh: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, copying: str, message: str
) -> None:
    monkeypatch.setattr("edgeprune.runners.ssh.COPY_S", 0.3)
    fake_ssh(
        'case "$*" in *mktemp*) printf "Welcome!\nedgeprune-folder:/tmp/none\n"; cat; echo edgeprune-gone;; '
        f"*) {copying};; esac"
    )
    with SshRunner(RUNTIME) as runner, pytest.raises(MeasurementError, match=message) as caught:
        runner.run("environment")
    assert caught.value.exit_code == 3


def test_connection_asks_nothing_and_forwards_nothing(
    fake_ssh: Callable[[str], None], tmp_path: Path
) -> None:
    fake_ssh(f'printf "%s\\n" "$@" > {tmp_path}/words; exit 255')
    with pytest.raises(MeasurementError):
        SshRunner(RUNTIME).run("environment")
    words = (tmp_path / "words").read_text().splitlines()
    assert {"BatchMode=yes", "ClearAllForwardings=yes", "ForwardAgent=no", "-T"} <= set(words)
    assert words[words.index("--") + 1] == "board"


def _runs_here(folder: Path) -> str:
    """A stand-in for ssh that runs the command on this machine."""
    return f'for last; do :; done; export TMPDIR="{folder}"; exec sh -c "$last"'


@pytest.mark.parametrize("leads_a_group", [True, False])
def test_guard_takes_the_folder_and_its_jobs_away(tmp_path: Path, leads_a_group: bool) -> None:
    guard = Guard(["sh", "-c", f'export TMPDIR="{tmp_path}"; eval "$0"'], '"$TMPDIR"', _never, timeout_s=20)
    folder = Path(guard.folder)
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    job = subprocess.Popen(
        ["sh", "-c", board_module.as_job(str(folder), "sleep 60 & echo started; wait")],
        start_new_session=leads_a_group,  # some servers start no session
        stdout=subprocess.PIPE,
    )
    assert job.stdout is not None
    with job:
        assert job.stdout.readline() == b"started\n"
        assert guard.close()
        assert job.stdout.read() == b"", "the child that holds the pipe is gone too"
    assert not list(tmp_path.iterdir())
    assert not guard.close(), "a second time does nothing"


def test_guard_gives_up_when_it_hears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "SIGN_OF_LIFE_S", 60.0)
    command = ["sh", "-c", f'export TMPDIR="{tmp_path}"; eval "$0"']
    guard = Guard(command, '"$TMPDIR"', _never, timeout_s=20, silence_s=0.5)
    try:
        assert _until(lambda: not list(tmp_path.iterdir()))
        assert _until(lambda: not guard.is_there)
    finally:
        guard.close()


def test_guard_stays_while_it_hears_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "SIGN_OF_LIFE_S", 0.05)
    command = ["sh", "-c", f'export TMPDIR="{tmp_path}"; eval "$0"']
    guard = Guard(command, '"$TMPDIR"', _never, timeout_s=20, silence_s=0.5)
    try:
        time.sleep(0.8)
        assert guard.is_there
        assert Path(guard.folder).is_dir()
    finally:
        assert guard.close()


def _never(status: int | None, stderr: str) -> Any:
    raise AssertionError(f"{status}: {stderr}")


def _until(happens: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- a real sshd on loopback --------------------------------------------------------------------------------


@dataclass
class Board:
    """This machine behind an sshd of its own.

    Attributes:
        folder: Where its files are.
        tmp: What it takes for its temporary folder.
        config: The client's configuration; more may be written to it.
        process: The sshd.
    """

    folder: Path
    tmp: Path
    config: Path
    process: subprocess.Popen[bytes]

    def is_clean(self) -> bool:
        """Nothing left there: no file, and no process of a job."""
        return not list(self.tmp.iterdir()) and not self.processes()

    def processes(self) -> list[int]:
        """Processes on the board that name its temporary folder."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
                if f"{self.tmp}/edgeprune.".encode() in words and words.split(b"\0")[0] != b"ssh":
                    found.append(int(entry.name))
        return found


def _keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs sshd (Debian: openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    tmp = folder / "a board's tmp"
    tmp.mkdir()
    host_key, key, other = (_keygen(folder / name) for name in ("host", "key", "other"))
    shutil.copy(folder / "key.pub", folder / "authorized")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd as root insists
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f'KbdInteractiveAuthentication no\nSetEnv "TMPDIR={tmp}"\nMaxSessions 20\n'
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=log)
    public = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"board {' '.join(public)}\n")
    changed = (folder / "other.pub").read_text().split()[:2]
    (folder / "changed").write_text(f"board {' '.join(changed)}\n")
    common = (
        f"  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentitiesOnly yes\n"
        "  HostKeyAlias board\n  CheckHostIP no\n"
    )
    client = folder / "config"
    client.write_text(
        "".join(
            f"Host {name}\n  IdentityFile {identity}\n  UserKnownHostsFile {folder}/{known}\n{common}"
            for name, identity, known in (
                ("board", key, "known"),
                ("nokey", other, "known"),
                ("stranger", key, "none"),
                ("changed", key, "changed"),
            )
        )
        + "Host busy\n  HostName 127.0.0.1\n  RemoteCommand echo no\n  RequestTTY force\n"
        "  ControlMaster auto\n"
        f"  ControlPath {folder}/own\n  ControlPersist yes\n  LocalForward 127.0.0.1:1 127.0.0.1:1\n"
        f"  ForwardAgent yes\n{common.replace('  HostName 127.0.0.1', '')}"
        f"  IdentityFile {key}\n  UserKnownHostsFile {folder}/known\n"
        "Host off\n  HostName 127.0.0.1\n  Port 9\nHost nowhere\n  HostName nowhere.invalid\n"
    )
    try:
        assert _until(lambda: b"Server listening" in (folder / "log").read_bytes()), (
            folder / "log"
        ).read_text()
        yield Board(folder, tmp, client, process)
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


@pytest.fixture
def board(sshd: Board, fake_ssh: Callable[[str], None]) -> Iterator[Board]:
    """The board, reached by the real ssh with the test's configuration; it must be clean in the end."""
    fake_ssh(f'exec {shutil.which("ssh")} -F {sshd.config} "$@"')
    yield sshd
    assert _until(sshd.is_clean), (list(sshd.tmp.rglob("*")), sshd.processes())


def _target(path: Path, host: str = "board") -> Path:
    path.write_text(
        f'name = "loopback"\n[runtime]\nrunner = "ssh"\nhost = "{host}"\npython = "{sys.executable}"\n'
    )
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("board")
def test_bench_over_ssh(tmp_path: Path) -> None:
    slim, dense = _relu(tmp_path / "slim.onnx"), _relu(tmp_path / "dense.onnx")
    measurement = bench(slim, load_target(_target(tmp_path / "t.toml")), baseline=dense, processes=2, runs=20)
    assert measurement.placement["nodes"] == {"CPUExecutionProvider": 1}
    assert measurement.runtime["host"] == "board"
    assert [len(samples) for samples in measurement.latency_samples_s] == [20, 20]
    assert measurement.latency_ratio is not None
    assert measurement.memory["method"].endswith("MALLOC_MMAP_THRESHOLD_=65536")
    assert measurement.to_json() == type(measurement).from_json(measurement.to_json()).to_json()


@pytest.mark.usefixtures("board")
def test_profile_over_ssh(tmp_path: Path) -> None:
    found = profile_of(_relu(tmp_path / "slim.onnx"), load_target(_target(tmp_path / "t.toml")))
    assert not isinstance(found, str), found
    assert [kernel["op_type"] for kernel in found["kernels"]] == ["Relu"]


@pytest.mark.slow
def test_each_content_is_copied_once_on_one_connection(board: Board, tmp_path: Path) -> None:
    a, twin, wide = _relu(tmp_path / "a.onnx"), _relu(tmp_path / "twin.onnx"), _relu(tmp_path / "w.onnx", 5)
    connections = (board.folder / "log").read_bytes().count(b"Accepted publickey")
    with SshRunner(RUNTIME) as runner:
        first = runner.run("placement", [a])
        runner.run("latency", [a, twin, wide], runs=10, min_runs=1, seconds=1.0)
        (folder,) = board.tmp.iterdir()
        assert len(list(folder.glob("*/model.onnx"))) == 2
        stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*/model.onnx")}
        runner.run("placement", [twin])
        assert {path: path.stat().st_mtime_ns for path in folder.glob("*/model.onnx")} == stamps
        assert not list((folder / "pids").iterdir())
    assert board.is_clean()
    assert first == replace_runner(RUNTIME).run("placement", [a]), "the same worker, the same answer"
    assert (board.folder / "log").read_bytes().count(b"Accepted publickey") == connections + 1


def replace_runner(runtime: Runtime) -> Any:
    """The local runner of the same runtime."""
    return runner_for(replace(runtime, runner="local", host=None))


@pytest.mark.slow
@pytest.mark.usefixtures("board")
def test_model_fault_names_the_file_here(tmp_path: Path) -> None:
    broken = tmp_path / 'a "broken" model.onnx'
    onnx.save(
        helper.make_model(helper.make_graph([helper.make_node("Nonsense", [], [])], "g", [], [])), broken
    )
    with SshRunner(RUNTIME) as runner:
        with pytest.raises(
            ArtifactError, match=r'where.*|could not run the ONNX file: .*"broken" model.onnx is not'
        ) as caught:
            runner.run("placement", [broken])
        assert str(broken) in str(caught.value)
        assert "edgeprune." not in str(caught.value)
        assert caught.value.exit_code == 2
        with pytest.raises(ArtifactError, match=r"absent.onnx"):
            runner.run("placement", [tmp_path / "absent.onnx"])
        assert runner.run("placement", [_relu(tmp_path / "a.onnx")])["nodes"], "the runner goes on"


@pytest.mark.slow
def test_what_the_users_configuration_says_of_terminals_and_tunnels_does_no_harm(board: Board) -> None:
    with SshRunner(replace(RUNTIME, host="busy")) as runner:
        assert runner.run("environment")["cores"] >= 1
    assert not (board.folder / "own").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("board")
def test_exit_codes_of_the_command_line(tmp_path: Path) -> None:
    model, broken = _relu(tmp_path / "a.onnx"), tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    good = str(_target(tmp_path / "good.toml"))
    ends = {
        "good": edgeprune("bench", str(model), "--target", good, "--processes", "2", cwd=tmp_path),
        "broken": edgeprune("bench", str(broken), "--target", good, cwd=tmp_path),
        "nokey": edgeprune(
            "bench", str(model), "--target", str(_target(tmp_path / "n.toml", "nokey")), cwd=tmp_path
        ),
        "option": edgeprune(
            "bench", str(model), "--target", str(_target(tmp_path / "o.toml", "-oX=y")), cwd=tmp_path
        ),
    }
    assert {name: end.returncode for name, end in ends.items()} == {
        "good": 0, "broken": 2, "nokey": 3, "option": 2
    }  # fmt: skip
    assert "Traceback" not in "".join(end.stderr for end in ends.values())


@pytest.mark.slow
@pytest.mark.usefixtures("board")
def test_data_files_of_a_model_come_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.onnx"
    weight = numpy_helper.from_array(np.ones((1, 300), np.float32), "w")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 300])
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name="y")], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, model, save_as_external_data=True, location="the weights", size_threshold=0)
    monkeypatch.setattr("edgeprune.runners.ssh.files_of", lambda path: (path, path.parent / "the weights"))
    with SshRunner(RUNTIME) as runner:
        assert runner.run("placement", [model])["nodes"] == {"CPUExecutionProvider": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("nokey", "nokey is refusing the key"),
        ("stranger", "stranger is a machine whose host key is not known here"),
        ("changed", "changed is a machine whose host key has changed"),
        ("off", "off is out of reach .*Connection refused"),
        ("nowhere", "nowhere is unknown: no such name"),
    ],
)
@pytest.mark.usefixtures("board")
def test_no_way_in(host: str, message: str) -> None:
    with (
        SshRunner(replace(RUNTIME, host=host)) as runner,
        pytest.raises(MeasurementError, match=message) as caught,
    ):
        runner.run("environment")
    assert caught.value.exit_code == 3


@pytest.mark.slow
@pytest.mark.usefixtures("board")
def test_interpreters(tmp_path: Path) -> None:
    odd = _script(tmp_path / 'it\'s a "venv"' / "python = 3", f'exec {sys.executable} "$@"')
    for python in (str(odd), os.path.relpath(odd, Path.home()), f"~/{os.path.relpath(odd, Path.home())}"):
        with SshRunner(replace(RUNTIME, python=python)) as runner:
            assert runner.run("environment")["python"] == ".".join(map(str, sys.version_info[:3]))
    bare = _script(tmp_path / "bare", f'exec {sys.executable} -S "$@"')
    with (
        SshRunner(replace(RUNTIME, python=str(bare))) as runner,
        pytest.raises(MeasurementError, match=r"bare on board is unable to import .*Install numpy") as caught,
    ):
        runner.run("environment")
    assert caught.value.exit_code == 3
    with (
        SshRunner(replace(RUNTIME, python="no-python")) as runner,
        pytest.raises(
            MeasurementError, match=r"runtime.python is 'no-python' .*not found.*interpreter on board"
        ),
    ):
        runner.run("environment")


@pytest.mark.slow
@pytest.mark.usefixtures("board")
def test_worker_that_is_killed_there(tmp_path: Path) -> None:
    killer = _script(tmp_path / "python", "cat > /dev/null; kill -9 $$")
    with (
        SshRunner(replace(RUNTIME, python=str(killer))) as runner,
        pytest.raises(MeasurementError, match=r"killed by signal 9.*ran out of memory"),
    ):
        runner.run("environment")


@pytest.mark.slow
def test_worker_that_hangs_there(board: Board, tmp_path: Path) -> None:
    hanging = _script(tmp_path / "python", 'sleep 60 & exec sleep 60 "$@"')
    with SshRunner(replace(RUNTIME, python=str(hanging)), timeout_s=4.0) as runner:
        with pytest.raises(MeasurementError, match="the worker is still busy after 4 s"):
            runner.run("environment")
        assert _until(board.is_clean), "at once, not only at the end"


@pytest.mark.slow
def test_connection_that_is_lost(board: Board, tmp_path: Path) -> None:
    cutter = _script(tmp_path / "python", 'cat >/dev/null; pkill -9 -P $(cat "$SSHD_PID") ; sleep 60')
    text = cutter.read_text().replace("$SSHD_PID", str(board.folder / "pid"))
    cutter.write_text(text)
    with SshRunner(replace(RUNTIME, python=str(cutter))) as runner:
        with pytest.raises(MeasurementError, match="the connection to board is lost") as caught:
            runner.run("environment")
        assert caught.value.exit_code == 3
        assert replace_runner(RUNTIME).run("environment")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_bench_that_is_ended(board: Board, tmp_path: Path, end: signal.Signals) -> None:
    command = [sys.executable, "-m", "edgeprune", "bench", str(_relu(tmp_path / "a.onnx"))]
    process = subprocess.Popen(
        [*command, "--target", str(_target(tmp_path / "t.toml"))],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert _until(lambda: bool(board.processes()) and any(board.tmp.glob("*/*/model.onnx")), 60)
        os.killpg(process.pid, end)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"Traceback" not in stderr or end == signal.SIGINT


@pytest.mark.slow
def test_board_that_is_full(board: Board, tmp_path: Path) -> None:
    # A file system of 64 kB in the place of the board's temporary folder; a model of 1 MB does not fit.
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(board.tmp)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount")
    try:
        big = tmp_path / "big.onnx"
        weight = numpy_helper.from_array(np.zeros(2**18, np.float32), "w")
        onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [weight])), big)
        with (
            SshRunner(RUNTIME) as runner,
            pytest.raises(MeasurementError, match=r"temporary folder on board is full.*Free space") as caught,
        ):
            runner.run("placement", [big])
        assert caught.value.exit_code == 3
        assert _until(board.is_clean)
    finally:
        subprocess.run(["umount", str(board.tmp)], check=True)
