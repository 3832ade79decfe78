"""A device for the real adb server, over TCP: shell (version 2) and push, on this machine.

Written from adb's own descriptions of its protocol (protocol.txt, SYNC.TXT, SERVICES.TXT): messages of 24
bytes and a payload, one stream per service. It asks for no key, as a device in userdebug does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

VERSION, MAX_DATA = 0x01000000, 64 * 1024
BANNER = b"device::ro.product.model=Fake;features=shell_v2,cmd"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class FakeAdbd:
    """Listens on a port; what runs there finds /data/local/tmp at ``tmp``, and ``path`` first in its PATH."""

    def __init__(self, tmp: Path, path: Path) -> None:
        self.tmp, self.path = tmp, path
        self.connection: socket.socket | None = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def cut(self) -> None:
        """Drop the connection, as a pulled cable does."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self.thread.join(timeout=20)
        self.listener.close()

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self.listener.accept()
                self.connection = connection
                with connection, contextlib.suppress(ConnectionError):
                    _Transport(self, connection).serve()
        except OSError:
            return


class _Transport:
    def __init__(self, device: FakeAdbd, connection: socket.socket) -> None:
        self.device, self.connection = device, connection
        self.lock = threading.Lock()
        self.streams: dict[int, Any] = {}

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        number = struct.unpack("<I", command)[0]
        head = struct.pack(
            "<6I", number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF
        )
        with self.lock:
            self.connection.sendall(head + data)

    def serve(self) -> None:
        file = self.connection.makefile("rb")
        try:
            while len(head := file.read(24)) == 24:
                command, first, second, length = struct.unpack("<4sIII", head[:16])
                self.handle(command, first, second, file.read(length))
        finally:
            file.close()
            for stream in list(self.streams.values()):
                stream.hang_up()

    def handle(self, command: bytes, remote: int, local: int, data: bytes) -> None:
        if command == b"CNXN":
            self.send(b"CNXN", VERSION, MAX_DATA, BANNER)
        elif command == b"OPEN":
            service = data.rstrip(b"\0").decode()
            number = remote + 1000
            if service.startswith("shell,"):
                self.streams[number] = _Shell(self, number, remote, service.partition(":")[2])
            elif service == "sync:":
                self.streams[number] = _Sync(self, number, remote)
            else:
                self.send(b"CLSE", 0, remote)
        elif command == b"WRTE" and local in self.streams:
            self.send(b"OKAY", local, remote)
            self.streams[local].write(data)
        elif command == b"OKAY" and local in self.streams:
            self.streams[local].ready.set()
        elif command == b"CLSE" and local in self.streams:
            self.streams.pop(local).hang_up()


class _Stream:
    def __init__(self, transport: _Transport, local: int, remote: int) -> None:
        self.transport, self.local, self.remote = transport, local, remote
        self.ready = threading.Event()  # one message at a time may be on its way
        self.ready.set()
        self.lock = threading.Lock()
        self.data = b""
        transport.send(b"OKAY", local, remote)

    def send(self, data: bytes) -> None:
        with self.lock:
            if self.ready.wait(timeout=30):
                self.ready.clear()
                self.transport.send(b"WRTE", self.local, self.remote, data)

    def hang_up(self) -> None:
        """The other side is gone."""


class _Shell(_Stream):
    """Packets of a kind (1 byte), a length (4) and data, both ways."""

    def __init__(self, transport: _Transport, local: int, remote: int, command: str) -> None:
        super().__init__(transport, local, remote)
        device = transport.device
        self.process = subprocess.Popen(
            ["sh", "-c", command.replace("/data/local/tmp", str(device.tmp))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PATH": f"{device.path}:{os.environ['PATH']}"},
            start_new_session=True,
        )
        readers = [
            threading.Thread(target=self._copy, args=(kind, pipe), daemon=True)
            for kind, pipe in ((STDOUT, self.process.stdout), (STDERR, self.process.stderr))
        ]
        for reader in readers:
            reader.start()
        threading.Thread(target=self._finish, args=(readers,), daemon=True).start()

    def _copy(self, kind: int, pipe: Any) -> None:
        while data := os.read(pipe.fileno(), 16 * 1024):
            self._packet(kind, data)

    def _packet(self, kind: int, data: bytes) -> None:
        try:
            self.send(struct.pack("<BI", kind, len(data)) + data)
        except OSError:
            return

    def _finish(self, readers: list[threading.Thread]) -> None:
        status = self.process.wait()
        for reader in readers:
            reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                continue
        self._packet(EXIT, bytes([status if status >= 0 else 128 - status]))
        try:
            self.ready.wait(timeout=5)
            self.transport.send(b"CLSE", self.local, self.remote)
        except OSError:
            return

    def write(self, data: bytes) -> None:
        self.data += data
        while len(self.data) >= 5:
            kind, length = struct.unpack("<BI", self.data[:5])
            if len(self.data) < 5 + length:
                return
            content, self.data = self.data[5 : 5 + length], self.data[5 + length :]
            stdin = self.process.stdin
            assert stdin is not None
            try:
                if kind == STDIN:
                    stdin.write(content)
                    stdin.flush()
                elif kind == CLOSE_STDIN:
                    stdin.close()
            except (OSError, ValueError):
                return

    def hang_up(self) -> None:
        try:
            assert self.process.stdin is not None
            self.process.stdin.close()
        except OSError:
            return


class _Sync(_Stream):
    """STAT and SEND: requests of an id (4 bytes), a length (4) and data."""

    file: Any = None

    def __init__(self, transport: _Transport, local: int, remote: int) -> None:
        super().__init__(transport, local, remote)
        # In a thread of its own, since an answer waits for what the transport's thread reads.
        self.requests: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (request := self.requests.get()) is not None:
            try:
                self._request(*request)
            except OSError:
                return

    def hang_up(self) -> None:
        self.requests.put(None)

    def write(self, data: bytes) -> None:
        self.data += data
        while len(self.data) >= 8:
            kind, length = struct.unpack("<4sI", self.data[:8])
            size = 0 if kind in (b"DONE", b"QUIT") else length
            if len(self.data) < 8 + size:
                return
            content, self.data = self.data[8 : 8 + size], self.data[8 + size :]
            self.requests.put((kind, content))

    def _request(self, kind: bytes, content: bytes) -> None:
        if kind == b"STAT":
            path = self._path(content)
            found = path.stat() if path.exists() else None
            numbers = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
            self.send(struct.pack("<4s3I", b"STAT", *numbers))
        elif kind == b"SEND":
            path, _, mode = content.rpartition(b",")
            self.file = self._path(path).open("wb")
            Path(self.file.name).chmod(int(mode) & 0o777)
        elif kind == b"DATA":
            self.file.write(content)
        elif kind == b"DONE":
            self.file.close()
            self.send(struct.pack("<4sI", b"OKAY", 0))
        elif kind == b"QUIT":
            self.transport.send(b"CLSE", self.local, self.remote)

    def _path(self, name: bytes) -> Path:
        return Path(name.decode().replace("/data/local/tmp", str(self.transport.device.tmp)))
