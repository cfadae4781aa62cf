"""What Prometheus is told."""

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one worker, in a registry of their own.

    Several workers may live in one process, so nothing is global.
    """

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()

        def make(kind, name, text, labels=(), **options):
            name = f"cloud_worker_{name}"
            return kind(name, text, labels, registry=self.registry, **options)

        self.calls = make(
            Counter,
            "calls",
            "gRPC calls that ended; a stream is one.",
            ("method", "code"),
        )
        self.requests = make(
            Counter,
            "requests",
            "Batches that were to be answered, alone or in a stream.",
            ("code",),
        )
        self.request_seconds = make(
            Histogram,
            "request_seconds",
            "Time from having a request to having its answer or refusal.",
            ("code",),
            buckets=_SECONDS,
        )
        self.rows = make(Counter, "rows", "Samples that were answered.")
        self.exits = make(
            Counter,
            "exits",
            "Samples that were answered here, by the exit they left at.",
            ("exit",),
        )
        self.forwarded = make(
            Counter, "forwarded_rows", "Samples sent to a further worker."
        )
        self.degraded = make(
            Counter,
            "degraded_rows",
            "Samples whose further worker could not be asked.",
        )
        self.bytes = make(
            Counter, "bytes", "Bytes of messages.", ("direction",)
        )
        self.queue_seconds = make(
            Histogram,
            "queue_seconds",
            "Time that requests waited to be run.",
            buckets=_SECONDS,
        )
        self.batch_seconds = make(
            Histogram,
            "batch_seconds",
            "Time that batches took in the stages.",
            buckets=_SECONDS,
        )
        self.batch_rows = make(
            Histogram,
            "batch_rows",
            "Samples that ran together.",
            buckets=_ROWS,
        )
        self.in_flight = make(
            Gauge, "in_flight_requests", "Requests that are being answered."
        )
        self.queued = make(Gauge, "queued_rows", "Samples that wait.")
        self.generations = make(
            Gauge, "generations", "Generations that are served."
        )
        self.reloads = make(
            Counter, "reloads", "Bundles that were loaded anew.", ("outcome",)
        )

    def ran(self, rows, seconds):
        """Notes a batch."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def serve(self, host, port):
        """Answers `GET /metrics` in a thread of its own.

        Args:
            host: Address to listen on.
            port: Port; 0 lets the system choose.

        Returns:
            `(port, close)`: the port, and a function that ends it.
        """
        server, thread = prometheus_client.start_http_server(
            port, host, self.registry
        )

        def close():
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, close
