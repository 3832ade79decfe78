"""Serves one page and nothing else: each path is a row of a table, and all of them begin with the token."""

from __future__ import annotations

import hmac
import json
import socket
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from edgeprune.runners.browser.answers import cleaned
from edgeprune.runners.browser.desk import Desk
from edgeprune.runners.browser.invitation import LOOPBACK

MAX_BODY_BYTES = 8 * 2**20
IDLE_S = 30.0  # a connection that says nothing for so long is closed
BEAT_S = 0.1  # how often the server looks whether it is to end
POLL_S = 15.0  # a page that asks for work is told "not yet" after so long
PAGE = {"": "index.html", "page.css": "page.css", "page.js": "page.js", "worker.js": "worker.js"}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
HEADERS = {
    # Both are what a browser asks for before it lends a page threads and a fine clock.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
        "connect-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """An HTTP server of one page, at one address, for who knows the token.

    Args:
        address: IP address to bind to.
        port: 0: any that is free.
        token: First part of every path.
        desk: Where the page gets its jobs and leaves its answers.
        context: TLS; None: plain HTTP.
    """

    daemon_threads = True
    block_on_close = False  # a page that waits for work must not hold up the end

    def __init__(
        self, address: str, port: int, token: str, desk: Desk, context: ssl.SSLContext | None = None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.token, self.desk, self.context = token, desk, context
        page = files("edgeprune.runners.browser") / "page"
        self.paths: dict[str, Path] = {path: Path(str(page / name)) for path, name in PAGE.items()}
        super().__init__((address, port), Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(BEAT_S,), daemon=True)
        self.thread.start()

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser that asked for this server, and for no other name, sends as host."""
        address, port = self.server_address[:2]
        named = [f"[{address!s}]" if ":" in str(address) else str(address)]
        named += ["localhost"] if address in LOOPBACK else []
        return tuple(f"{name}:{port}" for name in named)

    @property
    def url(self) -> str:
        """The page, token included."""
        return f"{'https' if self.context else 'http'}://{self.hosts[0]}/{self.token}/"

    def publish(self, path: Path, name: str) -> str:
        """Serve a file as ``name``, relative to the page."""
        self.paths[name] = path
        return name

    def close(self) -> None:
        """Stop, and free the port."""
        self.shutdown()
        self.server_close()
        self.thread.join(5)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; the handshake is left to its own thread, so that none can hold up the rest."""
        connection, address = super().get_request()
        connection.settimeout(IDLE_S)
        if self.context:
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the browser's affair: it asks again."""


class Handler(BaseHTTPRequestHandler):
    """Refuses everything that the page does not send."""

    protocol_version = "HTTP/1.1"
    server_version = "edgeprune"
    sys_version = ""
    timeout = IDLE_S

    def __getattr__(self, name: str) -> Any:
        # The base class would answer 501 with a page of its own.
        if name.startswith("do_"):
            return lambda: self.refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        raise AttributeError(name)

    def log_message(self, *_: Any) -> None:
        """Say nothing: paths hold the token."""

    @property
    def owner(self) -> PageServer:
        """The server, by its own type."""
        return cast(PageServer, self.server)

    def do_GET(self) -> None:
        """A file of the page."""
        path = self.allowed_path()
        if path is None:
            return
        if path not in self.owner.paths:
            self.refuse(HTTPStatus.NOT_FOUND if path not in ACTIONS else HTTPStatus.METHOD_NOT_ALLOWED)
            return
        file = self.owner.paths[path]
        try:
            content = file.read_bytes()
        except OSError:
            self.refuse(HTTPStatus.NOT_FOUND)
            return
        self.reply(HTTPStatus.OK, content, TYPES.get(file.suffix, "application/octet-stream"))

    def do_POST(self) -> None:
        """The page asks for work, or hands in what it has done."""
        path = self.allowed_path()
        if path is None:
            return
        origin = self.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] not in self.owner.hosts:
            self.refuse(HTTPStatus.FORBIDDEN)
        elif path not in ACTIONS:
            known = path in self.owner.paths
            self.refuse(HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND)
        else:
            message = self.body()
            if message is not None:
                self.act(ACTIONS[path], message)

    def act(self, action: Callable[[Desk, str, dict[str, Any]], Any], message: dict[str, Any]) -> None:
        """Do what the page asks of the desk."""
        page = message.get("page")
        if not isinstance(page, str) or not 8 <= len(page) <= 64:
            self.refuse(HTTPStatus.BAD_REQUEST)
        elif not self.owner.desk.admits(page):
            self.refuse(HTTPStatus.CONFLICT)
        else:
            answer = action(self.owner.desk, page, message)
            content = json.dumps(answer).encode()
            self.reply(HTTPStatus.OK, content, "application/json")

    def allowed_path(self) -> str | None:
        """The path behind the token; None if the request was refused."""
        if self.headers.get("Host") not in self.owner.hosts:
            # A page of another name that resolves to this machine must not read from it.
            self.refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        token, slash, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.owner.token.encode()):
            self.refuse(HTTPStatus.FORBIDDEN)
            return None
        return path

    def body(self) -> dict[str, Any] | None:
        """The JSON object of a request; None if the request was refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self.refuse(HTTPStatus.LENGTH_REQUIRED)
            return None
        if int(length) > MAX_BODY_BYTES:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        try:
            message = cleaned(json.loads(self.rfile.read(int(length))))
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self.refuse(HTTPStatus.BAD_REQUEST)
            return None
        return message

    def refuse(self, status: HTTPStatus) -> None:
        """Answer with a status and end the connection: what else it holds is not read."""
        self.close_connection = True
        self.reply(status, status.phrase.encode(), "text/plain; charset=utf-8")

    def reply(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


ACTIONS: dict[str, Callable[[Desk, str, dict[str, Any]], Any]] = {
    "next": lambda desk, page, message: desk.next(page, message.get("have"), POLL_S),
    "answer": lambda desk, page, message: desk.hand_in(page, message.get("id"), message.get("answer")),
    "leave": lambda desk, page, message: desk.leave(page),  # noqa: ARG005
}
