"""HTTP with JSON: `POST /predict`, `GET /health`, `GET /stats`."""

import contextlib
import http.server
import json
import threading
import time
import urllib.parse

from edge_worker.serving.requests import BadRequest, read_inputs, render
from protos.addresses import is_loopback, split_address
from protos.errors import Refused

#: Seconds that a caller may keep us waiting for its next bytes.
_SOCKET_TIMEOUT_S = 10.0
_MAX_BODY_BYTES = 32 << 20
_MAX_CONNECTIONS = 64
#: A thread that has answered may take a moment to end.
_SLOT_TIMEOUT_S = 1.0
_FULL = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b'\r\n{"error": "Too many connections. Come back later."}'
)
_NOT_MEANT = {"error": "Ask for a loopback address, such as 127.0.0.1."}


def check_loopback(address):
    """Refuses an address that other machines can reach.

    Args:
        address: `"host:port"`.

    Returns:
        Host and port.

    Raises:
        ValueError: If it is no loopback address.
    """
    host, port = split_address(address)
    if not is_loopback(host):
        raise ValueError(
            "Expected a loopback address to listen on, such as "
            f"127.0.0.1:8080. Received: {address!r}. Put a server with TLS and "
            "a login in front of it."
        )
    return host, port


class HTTPServer(http.server.ThreadingHTTPServer):
    """Serves an edge worker over HTTP, in threads of its own.

    Args:
        address: `"host:port"` to listen on, a loopback address.
        worker: An `EdgeWorker`.
        log: A `RequestLog`.
    """

    daemon_threads = True
    # Waits for the threads that answer.
    block_on_close = True
    request_queue_size = _MAX_CONNECTIONS

    def __init__(self, address, worker, log):
        host, port = check_loopback(address)
        if ":" in host:
            import socket

            self.address_family = socket.AF_INET6
        self.worker, self.log = worker, log
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}
        )

    @property
    def address(self):
        """`"host:port"` that it listens on."""
        host, port = self.server_address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self):
        self._thread.start()

    def stop(self):
        """Answers what is being answered, and ends."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def process_request(self, request, client_address):
        if not self._slots.acquire(timeout=_SLOT_TIMEOUT_S):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(_FULL)
                # What is unread when it closes would reset the connection.
                request.recv(1 << 16)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request, client_address):
        # Callers that go away are none of ours.
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _SOCKET_TIMEOUT_S
    server_version = "edge-worker"
    sys_version = ""

    def do_GET(self):
        worker = self.server.worker
        if not self._is_meant():
            self._send(421, _NOT_MEANT)
        elif self.path == "/health":
            self._send(200, {"status": "ok", "cloud": worker.is_connected})
        elif self.path == "/stats":
            self._send(200, worker.stats)
        else:
            self._send(404, {"error": "Ask for /health or /stats."})

    def do_POST(self):
        started = time.monotonic()
        code, result = 500, None
        try:
            code, content, result = self._predict()
        # What is wrong is for the log; a caller gets a fixed sentence.
        except Exception as error:
            content = {"error": "The edge worker failed. Its log says why."}
            self.server.log.write(
                "failed", error=type(error).__name__, reason=str(error)
            )
        self.server.log.answered("http", code, started, result)
        self._send(code, content)

    def _predict(self):
        server = self.server
        if not self._is_meant():
            return 421, _NOT_MEANT, None
        if self.path != "/predict":
            return 404, {"error": "Send samples to /predict."}, None
        kind = self.headers.get_content_type()
        # A page in a browser cannot send this type unasked.
        if kind != "application/json":
            return 415, {"error": "Send application/json."}, None
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12:
            return 411, {"error": "Send a Content-Length."}, None
        if int(length) > _MAX_BODY_BYTES:
            return (
                413,
                {"error": f"Send {_MAX_BODY_BYTES} bytes at most."},
                None,
            )
        body = self.rfile.read(int(length))
        manifest = server.worker.bundle.manifest
        try:
            inputs = read_inputs(body, manifest.stages[0].inputs)
            result = server.worker.predict(inputs)
        except BadRequest as error:
            return 400, {"error": str(error)}, None
        except Refused as error:
            server.log.write("refused", reason=str(error))
            sentence = "The cloud worker refuses this edge. Its log says why."
            return 502, {"error": sentence}, None
        except ValueError as error:
            return 400, {"error": str(error)}, None
        return 200, render(result, manifest.class_names), result

    def _is_meant(self):
        """Whether the caller asked for this machine.

        A page in a browser that has pointed its own name here did not.
        """
        host = self.headers.get("Host")
        if host is None:
            return True
        try:
            return is_loopback(urllib.parse.urlsplit(f"//{host}").hostname)
        except ValueError:
            return False

    def _send(self, code, content):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        # The rest of a body that was not read would be the next request.
        self.close_connection = True
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        # `RequestLog` does.
        pass
