"""A web server of files on this machine that gives ranges, or answers wrongly as a test says."""

from __future__ import annotations

import http.server
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATUS = ("403", "404", "410", "408", "416", "429", "500", "502", "503")
# Answers after which it helps to ask again.
PASSING = ("408", "429", "500", "502", "503", "drop", "drop at once", "less", "other range", "late")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `faults` are what the next answers about files are, in place of right ones.

    `asked` counts questions by path; `always`, where set, is the answer to all.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: deque[str] = deque()
        self.always = ""
        self.asked: Counter[str] = Counter()
        self.ranges: list[tuple[int, int]] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def fault(self) -> str:
        with self.lock:
            return self.faults.popleft() if self.faults else self.always

    def handle_error(self, *_: Any) -> None:
        """A client that went away is none of ours."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def translate_path(self, path: str) -> str:
        return super().translate_path(path).replace(os.getcwd(), str(self.server.folder), 1)

    def do_PUT(self) -> None:
        self.server.asked["PUT"] += 1

    do_POST = do_PUT  # noqa: N815

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            super().do_GET()
            return
        with self.server.lock:
            self.server.asked[self.path] += 1
        fault = self.server.fault()
        if fault in STATUS or not path.is_file():
            self.send_error(int(fault or "404"))
            return
        if fault == "late":
            self.server.closing.wait(5)
            self.close_connection = True
            return
        if fault == "drop at once":
            self.close_connection = True
            return
        self._send(path, fault)

    def _send(self, path: Path, fault: str) -> None:
        content, stat = path.read_bytes(), path.stat()
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not byte_range or fault == "ignores ranges":
            self.send_response(200)
            part = content
        else:
            first, last = int(byte_range[1]), min(int(byte_range[2]), len(content) - 1)
            self.server.ranges.append((first, last))
            if first >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "less":
                last = first + (last - first) // 2
            if fault == "other range":
                first, last = first + 1, last + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            part = content[first : last + 1]
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')
        self.end_headers()
        if fault == "drop":
            part, self.close_connection = part[: len(part) // 2], True
        self.wfile.write(part)


@contextmanager
def serving(folder: Path, faults: Iterable[str] = ()) -> Iterator[Server]:
    """A server of a folder while the block lasts."""
    server = Server(folder)
    server.faults.extend(faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
