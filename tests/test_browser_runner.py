"""The browser runner without a browser: its server on loopback, and a page that is a thread of this test."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.benchmark import bench
from edgeprune.cli import main
from edgeprune.errors import ArtifactError, MeasurementError, TargetError
from edgeprune.runners import BrowserRunner, LocalRunner, follow, open_runner
from edgeprune.runners.browser import invitation
from edgeprune.runners.browser.certificate import make_tls
from edgeprune.runners.browser.desk import Desk, Gone
from edgeprune.runners.browser.invitation import serving_address
from edgeprune.runners.browser.library import BACKENDS, find_library
from edgeprune.runners.browser.server import HEADERS, MAX_BODY_BYTES, PageServer
from edgeprune.target import Runtime, Target
from tests.conftest import run

RUNTIME = Runtime(runner="browser")
TOKEN = "not-a-secret-of-anybody"
NAME = "0123456789abcdef"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits as long as for a person."""
    monkeypatch.setattr("edgeprune.runners.browser.server.BEAT_S", 0.005)
    monkeypatch.setattr("edgeprune.runners.browser.desk.ONCE_S", 0.005)


# --- the server ---------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    """A server on loopback whose page never waits long."""
    monkeypatch.setattr("edgeprune.runners.browser.server.POLL_S", 0.05)
    server = PageServer("127.0.0.1", 0, TOKEN, Desk(wait_s=5, lost_s=5))
    yield server
    server.close()


def ask(
    server: PageServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """One request on a connection of its own; ``path`` as it stands on the line."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    try:
        connection.putrequest(method, path, skip_host=True)
        sent = {"Host": server.hosts[0], **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None:
            sent.setdefault("Content-Length", str(len(body)))
        for name, value in sent.items():
            if value:
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()


def post(server: PageServer, path: str, **message: Any) -> tuple[int, Any]:
    """What the page's script sends."""
    body = json.dumps({"page": NAME, **message}).encode()
    status, content, _ = ask(server, "POST", f"/{TOKEN}/{path}", body)
    return status, json.loads(content) if status == 200 else None


def test_the_page_is_served_isolated(server: PageServer) -> None:
    for path, kind in (("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        status, content, headers = ask(server, "GET", f"/{TOKEN}/{path}")
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert len(content) > 500
        assert HEADERS.items() <= headers.items()
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "http" not in headers["Content-Security-Policy"]
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/{TOKEN}/"


def test_the_page_loads_nothing_from_elsewhere() -> None:
    folder = Path(sys.modules["edgeprune.runners.browser"].__file__ or "").parent / "page"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert {"index.html", "page.css", "page.js", "worker.js"} == set(texts)
    assert not any("//" in text.replace(": //", "").partition("http")[2][:4] for text in texts.values())


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        f"/{TOKEN}",
        f"/{TOKEN[:-1]}/",
        f"/{TOKEN}x/page.js",
        "/wrong/page.js",
        f"/x/../{TOKEN}/page.js",
        f"http://127.0.0.1/{TOKEN}/",
        "/t\u00f6ken/page.js".encode().decode("latin-1"),
    ],
)
def test_wrong_token_is_refused(server: PageServer, path: str) -> None:
    if not path:
        path = "/?token=" + TOKEN
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=5) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {server.hosts[0]}\r\n\r\n".encode("latin-1"))
        assert raw.recv(4096).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "path",
    [
        "../server.py",
        "..%2fserver.py",
        "page/../../server.py",
        "/etc/passwd",
        "%2e%2e/",
        "page.js/",
        "ort.mjs",
    ],
)
def test_paths_outside_are_not_there(server: PageServer, path: str) -> None:
    assert ask(server, "GET", f"/{TOKEN}/{path}")[0] == 404


def test_a_published_file_is_there_and_its_neighbour_is_not(server: PageServer, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"model")
    (tmp_path / "b.onnx").write_bytes(b"secret")
    url = server.publish(tmp_path / "a.onnx", "0/model.onnx")
    assert ask(server, "GET", f"/{TOKEN}/{url}")[:2] == (200, b"model")
    for path in ("0/b.onnx", "0/a.onnx", "0/", "0"):
        assert ask(server, "GET", f"/{TOKEN}/{path}")[0] == 404
    (tmp_path / "a.onnx").unlink()
    assert ask(server, "GET", f"/{TOKEN}/{url}")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", ""])
def test_wrong_host_is_refused(server: PageServer, host: str) -> None:
    assert ask(server, "GET", f"/{TOKEN}/", Host=host)[0] == 421
    port = server.server_address[1]
    assert ask(server, "GET", f"/{TOKEN}/", Host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_another_page_may_not_post(server: PageServer, origin: str) -> None:
    body = json.dumps({"page": NAME}).encode()
    assert ask(server, "POST", f"/{TOKEN}/next", body, Origin=origin)[0] == 403
    assert server.desk.page is None
    assert ask(server, "POST", f"/{TOKEN}/next", body, Origin=f"http://{server.hosts[0]}")[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"])
def test_other_methods_are_refused(server: PageServer, method: str) -> None:
    assert ask(server, method, f"/{TOKEN}/page.js")[0] == 405


def test_methods_do_not_mix(server: PageServer) -> None:
    assert ask(server, "GET", f"/{TOKEN}/next")[0] == 405
    assert ask(server, "POST", f"/{TOKEN}/page.js", b"{}")[0] == 405
    assert ask(server, "POST", f"/{TOKEN}/nowhere", b"{}")[0] == 404


@pytest.mark.parametrize(
    ("length", "status"),
    [(str(MAX_BODY_BYTES + 1), 413), ("9" * 30, 413), ("-1", 411), ("", 411), ("1e3", 411), ("\u00b2", 411)],
)
def test_large_or_odd_bodies_are_refused_unread(server: PageServer, length: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=5) as raw:
        line = f"Content-Length: {length}\r\n" if length else ""
        raw.sendall(
            f"POST /{TOKEN}/answer HTTP/1.1\r\nHost: {server.hosts[0]}\r\n{line}\r\n".encode("latin-1")
        )
        answer = raw.recv(4096)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"Connection: close" in answer


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"page": 3}', b'{"page": "x"}', b"[" * 200_000, b"\xff"]
)
def test_messages_that_the_page_does_not_send(server: PageServer, body: bytes) -> None:
    assert ask(server, "POST", f"/{TOKEN}/next", body)[0] == 400
    assert server.desk.page is None


def test_one_page_alone_gets_work(server: PageServer) -> None:
    assert post(server, "next", have=0) == (200, {"job": None, "status": {}})
    assert post(server, "next", page="fedcba9876543210")[0] == 409
    assert post(server, "answer", id=1, answer={})[1] == {"taken": False}


def test_a_slow_connection_holds_nobody_up(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=5) as slow:
        slow.sendall(b"GET /")
        assert ask(server, "GET", f"/{TOKEN}/")[0] == 200


def test_closing_frees_the_port(server: PageServer) -> None:
    address = server.server_address[:2]
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(address[0]), int(address[1])), timeout=5)


def test_tls() -> None:
    pytest.importorskip("cryptography")
    tls = make_tls("127.0.0.1")
    server = PageServer("127.0.0.1", 0, TOKEN, Desk(), tls.context)
    try:
        assert server.url.startswith("https://127.0.0.1:")
        pem = ssl.get_server_certificate(("127.0.0.1", server.server_address[1]))
        client = ssl.create_default_context(cadata=pem)  # the certificate is for this address and holds
        connection = http.client.HTTPSConnection(*server.server_address[:2], timeout=5, context=client)
        connection.request("GET", f"/{TOKEN}/")
        assert connection.getresponse().status == 200
        connection.close()
        plain = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
        plain.request("GET", f"/{TOKEN}/")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
        plain.close()
    finally:
        server.close()
    assert len(tls.fingerprint.split(":")) == 32


def test_tls_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(
        MeasurementError, match=r"cryptography is not installed.*`pip install \"edgeprune\[bro"
    ):
        make_tls("192.0.2.1")


# --- addresses and what is said -----------------------------------------------------------------------------


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serving_address(None) == "127.0.0.1"
    assert serving_address("192.0.2.7") == "192.0.2.7"
    for wrong in ("0.0.0.0", "::", "raspberrypi.local", ""):
        with pytest.raises(
            MeasurementError, match=r"--host is '.*', expected one IP address of this machine"
        ):
            serving_address(wrong)

    class Unplugged(socket.socket):
        def connect(self, _: Any) -> None:
            raise OSError("Network is unreachable")

    monkeypatch.setattr(invitation.socket, "socket", Unplugged)
    with pytest.raises(MeasurementError, match="this machine is in no network"):
        serving_address("lan")


def test_an_address_of_another_machine(library: Path) -> None:
    pytest.importorskip("cryptography")
    with (
        BrowserRunner(RUNTIME, host="192.0.2.1", web=str(library)) as runner,
        pytest.raises(MeasurementError, match=r"--host is '192\.0\.2\.1', port any"),
    ):
        runner.start()


def test_invitation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    here = invitation.invite("http://127.0.0.1:1/x/", 300, None)
    assert "this machine alone" in here
    assert 'pip install "edgeprune[browser]"' in here
    there = invitation.invite("https://192.0.2.1:1/x/", 300, "AB:CD")
    assert "local network" in there
    assert "AB:CD" in there


def test_qr_code() -> None:
    pytest.importorskip("segno")
    lines = invitation.invite("http://127.0.0.1:1/x/", 300, None).splitlines()
    assert sum("█" in line for line in lines) > 10


# --- the library --------------------------------------------------------------------------------------------


def pack(folder: Path, version: str = "1.30.0", name: str = "onnxruntime-web") -> Path:
    """A folder that looks like what npm installs."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
    for _, script, wasm in BACKENDS.values():
        (folder / "dist" / script).write_text("export {}")
        (folder / "dist" / wasm).write_bytes(b"\0asm")
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder that npm could have filled."""
    return pack(tmp_path / "web" / "node_modules" / "onnxruntime-web")


def test_library_is_found(library: Path, tmp_path: Path) -> None:
    for given in (library, library / "dist", library.parent, library.parent.parent):
        assert find_library("CPUExecutionProvider", str(given)).version == "1.30.0"
    deep = library.parent.parent / "a" / "b"
    deep.mkdir(parents=True)
    assert find_library("WebGpuExecutionProvider", None, deep).backend == "webgpu"
    with pytest.raises(MeasurementError, match=r"onnxruntime-web is not there.*npm install onnxruntime-web"):
        find_library("CPUExecutionProvider", None, tmp_path)
    with pytest.raises(
        MeasurementError, match=r"onnxruntime-web is not in '.*'.*npm install onnxruntime-web"
    ):
        find_library("CPUExecutionProvider", str(tmp_path))


def test_library_that_does_not_do(tmp_path: Path) -> None:
    old = pack(tmp_path / "old", "1.17.3")
    with pytest.raises(
        MeasurementError, match=r"version 1\.17\.3, expected onnxruntime-web of at least 1\.24"
    ):
        find_library("CPUExecutionProvider", str(old))
    torn = pack(tmp_path / "torn")
    (torn / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(MeasurementError, match=r"1\.30\.0 without ort-wasm-simd-threaded\.wasm"):
        find_library("CPUExecutionProvider", str(torn))
    with pytest.raises(MeasurementError, match="not in"):
        find_library("CPUExecutionProvider", str(pack(tmp_path / "other", name="onnxruntime-node")))
    with pytest.raises(MeasurementError, match="'XnnpackExecutionProvider', expected one of CPUEx"):
        find_library("XnnpackExecutionProvider")


# --- the desk -----------------------------------------------------------------------------------------------


def test_nobody_comes() -> None:
    with pytest.raises(Gone, match="not opened by any browser within 0 s"):
        Desk(wait_s=0.1).ask({}, 5)


@pytest.mark.parametrize(("left", "text"), [(False, "no longer there"), (True, "closed before")])
def test_the_page_goes(left: bool, text: str) -> None:
    desk = Desk(lost_s=0.1)
    assert desk.admits(NAME)
    if left:
        desk.leave(NAME)
    with pytest.raises(Gone, match=text):
        desk.ask({}, 5)


def test_the_page_does_not_get_done() -> None:
    desk = Desk()
    desk.admits(NAME)
    with pytest.raises(Gone, match="still busy after 0 s"):
        desk.ask({}, 0.1)


def test_a_page_that_is_loaded_anew_gets_the_job_again() -> None:
    desk = Desk()
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(desk.ask({"job": "latency"}, 5)))
    desk.admits(NAME)
    asking.start()
    first = desk.next(NAME, 0, 5)["job"]
    assert desk.next(NAME, first["id"], 0.01)["job"] is None  # at work on it
    desk.leave(NAME)
    assert desk.admits(NAME)
    assert desk.next(NAME, 0, 5)["job"] == first
    assert desk.hand_in(NAME, first["id"] + 1, {})["taken"] is False
    assert desk.hand_in(NAME, first["id"], "text")["taken"] is False
    assert desk.hand_in(NAME, first["id"], {"done": True})["taken"] is True
    assert desk.hand_in(NAME, first["id"], {"done": False})["taken"] is False
    asking.join()
    assert answers == [{"done": True}]


# --- the runner, with a page that is a thread ---------------------------------------------------------------


def network(path: Path, width: int) -> Path:
    """One convolution."""
    weight = numpy_helper.from_array(np.ones((width, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("GlobalMaxPool", ["a"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width, 1, 1])], [weight],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class FakePage:
    """Does what page.js does, in a thread; ``answers`` says what to each job."""

    def __init__(self, answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] | None = None) -> None:
        self.answers = {"environment": self.environment, "placement": self.placement, "latency": self.latency}
        self.answers.update(answers or {})
        self.jobs: list[dict[str, Any]] = []
        self.ended: dict[str, Any] | None = None
        self.status: dict[str, Any] = {}
        self.thread: threading.Thread | None = None

    def __call__(self, invitation: str) -> None:
        address = next(word for word in invitation.split() if word.startswith("http://"))
        self.host, self.token = address.split("/")[2:4]
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def post(self, path: str, **message: Any) -> Any:
        connection = http.client.HTTPConnection(self.host, timeout=10)
        connection.request("POST", f"/{self.token}/{path}", json.dumps({"page": NAME, **message}))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def get(self, url: str) -> bytes:
        connection = http.client.HTTPConnection(self.host, timeout=10)
        connection.request("GET", f"/{self.token}/{url}")
        content = connection.getresponse().read()
        connection.close()
        return content

    def work(self) -> None:
        have = 0
        while self.ended is None:
            found = self.post("next", have=have)
            self.status, self.ended = found["status"], found.get("ended")
            if found.get("job"):
                have = found["job"]["id"]
                self.jobs.append(found["job"])
                self.post("answer", id=have, answer=self.answers[found["job"]["job"]](found["job"]))

    def environment(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"browser": "a thread", "platform": "test", "cores": 4, "gpu": None, "software_adapter": "",
                "cross_origin_isolated": True, "clock_step_ms": 0.005}  # fmt: skip

    def placement(self, job: dict[str, Any]) -> dict[str, Any]:
        (model,) = job["models"]
        # What the CPU computed is served beside the model.
        x, y = (np.frombuffer(self.get(v["url"]), "<f4") for v in (*model["inputs"], *model["outputs"]))
        assert y == pytest.approx(np.full(y.shape, x.reshape(3, 16).sum(0).max()), rel=1e-5)
        assert self.get(model["url"])[-5:]
        return {"nodes": {job["provider"]: 2}, "left_to_cpu": [], "difference": 1e-7, "repeat": 2,
                "software_adapter": "", "clock_step_ms": 0.005}  # fmt: skip

    def latency(self, job: dict[str, Any]) -> dict[str, Any]:
        assert [model["repeat"] for model in job["models"]] == [2] * len(job["models"])
        took = {model["name"]: 10**6 * (1 + (model["name"] == "dense.onnx")) for model in job["models"]}
        return {
            "models": [
                {"samples_ns": [ns] * job["runs"], "load_ns": 3 * ns, "first_ns": 2 * ns}
                for ns in took.values()
            ]
        }


def opened(page: FakePage, library: Path, runtime: Runtime = RUNTIME, **serving: Any) -> BrowserRunner:
    """A runner whose page comes at once."""
    return BrowserRunner(runtime, web=str(library), say=page, **{"wait_s": 5, "lost_s": 5, **serving})


def test_a_whole_measurement(library: Path, tmp_path: Path) -> None:
    slim, dense = network(tmp_path / "slim.onnx", 2), network(tmp_path / "dense.onnx", 4)
    page, told = FakePage(), []
    target = Target("test", 8, RUNTIME, (), Path("test.toml"), "ab" * 32)
    with opened(page, library) as runner:
        progress = follow(runner, lambda *step: told.append(step))
        found = bench(slim, target, baseline=dense, processes=3, on_progress=progress, runner=runner)
        server = runner.server
    assert found.latency_ratio is not None
    assert found.latency_ratio.value == 0.5
    assert found.environment["onnxruntime"] == "1.30.0 (onnxruntime-web)"
    assert found.placement["output_difference"] == 1e-7
    assert (
        found.why_unmeasured("peak_memory")
        == "a page is not told the peak memory of the process that runs it."
    )
    assert "fresh web worker" in found.notes[0]
    assert any("the mean of 2 inferences" in note for note in found.notes)
    orders = [[model["name"] for model in job["models"]] for job in page.jobs if job["job"] == "latency"]
    assert orders == [["slim.onnx", "dense.onnx"], ["dense.onnx", "slim.onnx"], ["slim.onnx", "dense.onnx"]]
    assert page.thread is not None
    page.thread.join(5)
    assert page.ended is not None
    assert page.ended["result"]["ratio"][0] == 0.5
    assert [one["text"] for one in page.ended["result"]["medians"]] == ["1.00 ms", "2.00 ms"]
    assert page.status["done"] > 0
    assert told[-1][2] == "done"
    assert server is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(server.server_address[1])), timeout=5)


def reference(_: LocalRunner, job: str, models: list[Path], folder: str) -> dict[str, Any]:
    """In place of the worker: one input and one output, both empty."""
    assert (job, len(models)) == ("reference", 1)
    values = []
    for name in ("input0.bin", "output0.bin"):
        Path(folder, name).write_bytes(b"")
        values.append(
            [{"name": "x", "type": "tensor(float)", "dtype": "float32", "shape": [0], "file": name}]
        )
    return dict(zip(("inputs", "outputs"), values, strict=True))


@pytest.fixture
def without_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is all that counts."""
    monkeypatch.setattr(LocalRunner, "run", reference)


def placed(**facts: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A placement that differs from a good one."""
    good = {"left_to_cpu": [], "difference": 0.0, "repeat": 1, "software_adapter": "", "clock_step_ms": 0.1}
    return lambda job: {**good, "nodes": {job["provider"]: 2}, **facts}


@pytest.mark.usefixtures("without_worker")
@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (
            {"difference": 2e-4},
            r"a difference of 0\.0002 of the largest output to the CPU here, .* most 0\.0001",
        ),
        ({"difference": None}, "a difference of not a number"),
        ({"nodes": {"WebGpuExecutionProvider": 3}}, "listed, but took none of the 3 nodes of slim.onnx"),
        ({"nodes": {"CPUExecutionProvider": 0}}, "the page is answering in another form"),
        ({"difference": "small"}, "the page is answering in another form"),
        ({"left_to_cpu": [3]}, "the page is answering in another form"),
        ({"left_to_cpu": [{"name": "a", "op_type": 3}]}, "the page is answering in another form"),
        ({"difference": float("nan")}, "the page is answering in another form"),
        ({"difference": float("inf")}, "a difference of inf of the largest output"),
        ({"repeat": 10**400}, "the page is answering in another form"),
        ({"error": {"kind": "worker", "message": "a\x1b[31m\nred"}}, r"the page is a\[31mred\."),
        ({"error": {"kind": "provider", "message": "absent"}}, "CPUExecutionProvider is absent"),
        ({"error": {"kind": "worker", "message": "a bug"}}, "the page is a bug"),
    ],
)
def test_placements_that_are_refused(library: Path, facts: dict[str, Any], text: str) -> None:
    page = FakePage({"placement": placed(**facts)})
    with (
        pytest.raises(MeasurementError, match=text) as refusal,
        opened(page, library) as runner,
    ):
        runner.run("placement", [Path("slim.onnx")])
    assert page.thread is not None
    page.thread.join(5)
    assert page.ended == {"error": str(refusal.value)}  # the person at the device reads it too


@pytest.mark.usefixtures("without_worker")
def test_precision_and_provider_loosen_the_comparison(library: Path) -> None:
    for runtime, limit in (
        (replace(RUNTIME, precision="int8"), 0.05),
        (replace(RUNTIME, provider="WebGpuExecutionProvider"), 1e-3),
    ):
        for difference, passes in ((limit, True), (1.01 * limit, False)):
            with opened(FakePage({"placement": placed(difference=difference)}), library, runtime) as runner:
                if passes:
                    answer = runner.run("placement", [Path("slim.onnx")])
                    assert answer["output_difference"] == limit
                else:
                    with pytest.raises(MeasurementError, match="could not trust the browser's outputs"):
                        runner.run("placement", [Path("slim.onnx")])


@pytest.mark.usefixtures("without_worker")
def test_a_model_at_fault_is_the_models_fault(library: Path) -> None:
    fault = {"error": {"kind": "model", "message": "unable to load it", "model": "slim.onnx"}}
    with (
        opened(FakePage({"placement": lambda _: fault}), library) as runner,
        pytest.raises(ArtifactError, match=r"in the browser: slim\.onnx is unable to load it"),
    ):
        runner.run("placement", [Path("slim.onnx")])


@pytest.mark.usefixtures("without_worker")
@pytest.mark.parametrize("late", [False, True])
def test_a_software_adapter_is_never_timed(library: Path, late: bool) -> None:
    """Whether the browser says so when it is asked, or the device that was really taken does."""
    page = FakePage()
    software = {"software_adapter": "google swiftshader"}
    page.answers["placement"] = placed(**(software if late else {}))
    page.answers["environment"] = lambda job: page.environment(job) | ({} if late else software)
    runtime = replace(RUNTIME, provider="WebGpuExecutionProvider")
    with opened(page, library, runtime) as runner:
        runner.run("environment")
        runner.run("placement", [Path("slim.onnx")])
        with pytest.raises(
            MeasurementError, match=r"'google swiftshader'.*slim\.onnx: 2 of 2 nodes, outputs wi"
        ):
            runner.run("latency", [Path("slim.onnx")], runs=5)
    assert [job["job"] for job in page.jobs] == ["environment", "placement"]


@pytest.mark.usefixtures("without_worker")
@pytest.mark.parametrize(
    "taken", [[], [{"samples_ns": [0], "load_ns": 1, "first_ns": 1}], [{"samples_ns": [1.5]}], [{}], ["x"]]
)
def test_times_that_are_none(library: Path, taken: list[Any]) -> None:
    page = FakePage({"placement": placed(), "latency": lambda _: {"models": taken}})
    with opened(page, library) as runner:
        runner.run("placement", [Path("slim.onnx")])
        with pytest.raises(
            MeasurementError, match="could not measure latency: the page is answering in another"
        ):
            runner.run("latency", [Path("slim.onnx")], runs=1)


def test_silence_ends_it(library: Path) -> None:
    with (
        BrowserRunner(RUNTIME, web=str(library), wait_s=0.1) as runner,
        pytest.raises(MeasurementError, match="the page is not opened by any browser within 0 s"),
    ):
        runner.run("environment")


def test_ctrl_c_ends_it(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = FakePage()

    def interrupted(*_: Any) -> dict[str, Any]:
        deadline = time.monotonic() + 5
        while runner.desk.page is None and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        raise KeyboardInterrupt

    runner = opened(page, library)
    monkeypatch.setattr(runner.desk, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt), runner:
        runner.run("environment")
    assert page.thread is not None
    page.thread.join(5)
    assert page.ended == {"error": "Stopped on the other side."}
    assert runner.server is None


def test_memory_needs_no_page() -> None:
    answer = BrowserRunner(RUNTIME).run("memory", [Path("a.onnx")])
    assert answer["peak_bytes"] is None
    assert "page" in answer["why"]


def test_what_a_page_cannot_do_is_refused() -> None:
    with pytest.raises(TargetError, match=r"runtime.strict is true, expected false .*max_cpu_nodes"):
        BrowserRunner(replace(RUNTIME, strict=True))
    with pytest.raises(
        MeasurementError, match=r"could not count instructions: .* 'browser', whose page cannot"
    ):
        BrowserRunner(RUNTIME).run("instructions", [Path("a.onnx")])


@pytest.mark.usefixtures("without_worker")
def test_external_data_are_refused(library: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "a.onnx", 2)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="a.data", size_threshold=0)
    page = FakePage()
    with opened(page, library) as runner:
        runner.run("environment")  # so that the page is there, and hears of the end
        with pytest.raises(ArtifactError, match=r"a.onnx is one with external data, expected one file"):
            runner.run("placement", [path])
    assert page.thread is not None
    page.thread.join(5)


def test_open_runner() -> None:
    with open_runner(Runtime()) as runner:
        assert isinstance(runner, LocalRunner)
        assert follow(runner, print) is print
    with open_runner(RUNTIME, wait_s=7) as runner:
        assert isinstance(runner, BrowserRunner)
        assert runner.desk.wait_s == 7


def test_the_warm_model_is_that_of_the_worker() -> None:
    from edgeprune.runners.worker.session import WARM_MODEL

    package = sys.modules["edgeprune.runners.browser"].__file__
    script = (Path(package or "").parent / "page" / "worker.js").read_text(encoding="utf-8")
    lines = script.partition("const WARM_MODEL = [")[2].partition("]")[0].split()
    assert base64.b64decode("".join(line.strip('",') for line in lines)) == WARM_MODEL


# --- the command line ---------------------------------------------------------------------------------------


def test_absent_library_exits_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "a.onnx", 2)
    code, _, err = run(capsys, "bench", "a.onnx", "--runner", "browser", "--web", "nowhere")
    assert code == 3
    assert "`npm install onnxruntime-web`" in err


def test_serving_options_are_for_the_browser(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    network(tmp_path / "a.onnx", 2)
    code, _, err = run(capsys, "bench", str(tmp_path / "a.onnx"), "--port", "8000")
    assert code == 2
    assert "--port is given, expected for the runner browser alone, and the target's is local" in err
    code, _, err = run(capsys, "bench", str(tmp_path), "--wait", "5")
    assert code == 2
    assert "--wait is given with a run folder" in err


def test_the_command_waits_says_where_and_gives_up(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, library: Path
) -> None:
    words = ["bench", str(network(tmp_path / "a.onnx", 2)), "--runner", "browser", "--host", "127.0.0.1"]
    with pytest.raises(SystemExit) as ending:
        main([*words, "--web", str(library), "--wait", "0.1"])
    assert ending.value.code == 3
    err = capsys.readouterr().err
    assert "Open this on the device to measure: http://127.0.0.1:" in err
    assert "not opened by any browser within 0 s" in err


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path, library: Path) -> None:
    network(tmp_path / "a.onnx", 2)
    words = ["bench", "a.onnx", "--runner", "browser", "--host", "127.0.0.1", "--web", str(library)]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprune", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        line = next(line for line in process.stderr if line.startswith("Open this"))
        port = int(line.rpartition("127.0.0.1:")[2].partition("/")[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
