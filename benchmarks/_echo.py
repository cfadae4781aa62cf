"""gRPC alone: messages of a size there, of another back, between two processes.

What a call between two workers cannot be faster than, whatever they do. Run as
a program, it is the server, with the options of a cloud worker.
"""

import asyncio
import contextlib
import os
import queue
import subprocess
import sys

import grpc
from _workers import ROOT

from protos.options import open_channel, server_options

_MAX_BYTES = 4 << 20
_STREAM, _CALL = "/echo/Stream", "/echo/Call"


@contextlib.contextmanager
def echo(up_bytes, down_bytes):
    """Runs a server on loopback.

    Args:
        up_bytes: Size of a request.
        down_bytes: Size of a reply.

    Yields:
        Two functions, which send a request and wait for the reply: over a
        stream that stays open, and as a call of its own.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, str(down_bytes)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = f"127.0.0.1:{int(process.stdout.readline())}"
        request, requests = bytes(up_bytes), queue.SimpleQueue()
        with open_channel(address, None, _MAX_BYTES) as channel:
            replies = channel.stream_stream(_STREAM)(iter(requests.get, None))
            call = channel.unary_unary(_CALL)

            def over_stream():
                requests.put(request)
                return next(replies)

            yield over_stream, lambda: call(request, timeout=60)
            requests.put(None)
    finally:
        process.kill()
        process.communicate()


async def serve(down_bytes):
    reply = bytes(down_bytes)

    async def call(request, context):
        return reply

    async def stream(requests, context):
        async for _ in requests:
            await context.write(reply)

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method == _CALL:
                return grpc.unary_unary_rpc_method_handler(call)
            return grpc.stream_stream_rpc_method_handler(stream)

    server = grpc.aio.server(options=server_options(_MAX_BYTES, 16))
    server.add_generic_rpc_handlers((Handlers(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
