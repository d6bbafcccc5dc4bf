"""Object stores on localhost: an emulator of Google Cloud Storage, and moto's of Amazon S3.

python tests/buckets.py gs --port 9023 serves an empty store with the bucket `runs` until it is
killed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

BUCKET = "runs"
STORES = ("gs", "s3")


def _conditional(handler: Callable[..., Any], lock: threading.Lock) -> Callable[..., Any]:
    """A handler of the emulator that knows generations, which it stores and otherwise ignores."""
    from gcp_storage_emulator.exceptions import NotFound

    def generation(storage: Any, bucket: str, name: str) -> str:
        try:
            return str(storage.get_file_obj(bucket, name)["generation"])
        except NotFound:
            return "0"

    def handle(request: Any, response: Any, storage: Any) -> None:
        query = {key: values[0] for key, values in request.query.items()}
        name = request.params.get("object_id") or query.get("name")
        if not name and query.get("uploadType") == "multipart":
            name = request.data["meta"]["name"]
        with lock:
            now = generation(storage, request.params.get("bucket_name"), name) if name else "0"
            if query.get("ifGenerationMatch", now) != now:
                response.status = http.HTTPStatus.PRECONDITION_FAILED
            elif query.get("ifGenerationNotMatch") == now:
                response.status = http.HTTPStatus.NOT_MODIFIED
            else:
                handler(request, response, storage)
                if query.get("alt") == "media":
                    response["x-goog-generation"] = now

    return handle


def serve_gs(port: int) -> None:
    """Serves Google Cloud Storage, without an end."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.storage import Storage

    lock = threading.Lock()
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            handlers[method] = _conditional(handler, lock)
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    handler = functools.partial(server.RequestHandler, storage)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()


def serve_s3(port: int) -> None:
    """Serves Amazon S3, without an end."""
    from moto.server import main

    main(["-H", "127.0.0.1", "-p", str(port)])


def environment(store: str, port: int) -> dict[str, str]:
    """The variables by which every client finds a server."""
    address = f"http://127.0.0.1:{port}"
    if store == "gs":
        names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
        return {**dict.fromkeys(names, address), "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def running(store: str) -> Iterator[str]:
    """Starts a server and names it in the environment; yields the address of an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, store, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    variables = environment(store, port)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        _await(port, process)
        if store == "s3":
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request).close()
        yield f"{store}://{BUCKET}"
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("the server does not start")


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("store", choices=STORES)
    p.add_argument("--port", type=int, required=True)
    args = p.parse_args()
    {"gs": serve_gs, "s3": serve_s3}[args.store](args.port)


if __name__ == "__main__":
    main()
