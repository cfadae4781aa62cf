"""A TCP proxy that makes a link slow, narrow, deaf or dead.

It runs in a thread of its own. What it does can be changed at any time, for
each direction: `UP` goes to the server, `DOWN` comes from it.
"""

import asyncio
import contextlib
import dataclasses
import socket
import struct
import threading

from waiting import poll as poll

UP, DOWN = "up", "down"
_CHUNK = 65536
_IDLE_S = 0.002
_LINGER_0 = struct.pack("ii", 1, 0)


@dataclasses.dataclass
class Faults:
    """What is wrong with one direction.

    Args:
        latency_s: Seconds that bytes are on the way.
        bytes_per_s: How many get through; `None` for all.
        slice_bytes: Pieces that they are sent in; `None` for as they come.
        blackhole: Whether bytes vanish. A connection that has lost some is
            dead: bytes of it vanish for ever.
        cut_after: Bytes of a connection after which it is reset.
    """

    latency_s: float = 0.0
    bytes_per_s: float | None = None
    slice_bytes: int | None = None
    blackhole: bool = False
    cut_after: int | None = None


@dataclasses.dataclass
class Traffic:
    """What has passed in one direction, of all connections.

    Args:
        num_bytes: How much.
        first: When the first of it came, on the loop's clock.
        last: When the last of it was through.
    """

    num_bytes: int = 0
    first: float | None = None
    last: float | None = None

    @property
    def bytes_per_s(self):
        """How much went through a second, while anything did."""
        return self.num_bytes / (self.last - self.first)


class Proxy:
    """Forwards connections to a server and does damage on the way.

    Args:
        target: `"host:port"` of the server.
        record: Whether to keep all bytes, in `recorded[UP]` and `[DOWN]`.
    """

    def __init__(self, target, record=False):
        host, _, port = target.rpartition(":")
        self.target = (host, int(port))
        self.faults = {UP: Faults(), DOWN: Faults()}
        self.recorded = {UP: bytearray(), DOWN: bytearray()}
        #: Counted since it was last assigned to.
        self.traffic = {UP: Traffic(), DOWN: Traffic()}
        self.num_connections = 0
        self._record = record
        self._writers = set()
        self._serving = set()
        self._loop = asyncio.new_event_loop()
        self._server = None
        self._port = 0
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.up()

    @property
    def address(self):
        """`"host:port"` to connect to."""
        return f"127.0.0.1:{self._port}"

    def set(self, direction=None, **faults):
        """Sets faults of one direction, or of both."""
        for name in (direction,) if direction else (UP, DOWN):
            self.faults[name] = Faults(**faults)

    def heal(self):
        """Takes all faults away; connections that lost bytes stay dead."""
        self.set()

    def reset(self):
        """Resets all connections."""
        self._run(self._reset())

    def down(self):
        """Resets all connections and refuses new ones."""
        self._run(self._down())

    def up(self):
        """Accepts connections, at the same port as before."""
        self._run(self._up())

    def close(self):
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(5)

    async def _up(self):
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self._port
            )
            self._port = self._server.sockets[0].getsockname()[1]

    async def _down(self):
        server, self._server = self._server, None
        if server is not None:
            # A closed server lets no accepted connection become a transport,
            # and leaves its socket open: those that are on their way go first.
            self._loop.remove_reader(server.sockets[0])
            await asyncio.sleep(0)
            server.close()
        # A connection that was accepted a moment ago is in tasks that have not
        # begun: cancelled then, they would leave its socket open.
        while rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await self._reset()
            for task in self._serving:
                task.cancel()
            await asyncio.wait(rest, timeout=0.05)

    async def _reset(self):
        for writer in list(self._writers):
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0
                )
            writer.transport.abort()

    async def _serve(self, reader, writer):
        self.num_connections += 1
        task, ends = asyncio.current_task(), {writer}
        self._serving.add(task)
        self._writers |= ends
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there = await asyncio.open_connection(*self.target)
            ends.add(there[1])
            self._writers |= ends
            await asyncio.gather(
                self._pump(UP, reader, there[1]),
                self._pump(DOWN, there[0], writer),
            )
        self._writers -= ends
        for each in ends:
            each.transport.abort()
        self._serving.discard(task)

    def _count(self, direction, num_bytes, came_at):
        found = self.traffic[direction]
        found.num_bytes += num_bytes
        found.last = self._loop.time()
        if found.first is None:
            found.first = came_at

    async def _pump(self, direction, reader, writer):
        """Forwards one direction of a connection."""
        passed, is_dead = 0, False
        free_at = asked_at = self._loop.time()
        while data := await reader.read(_CHUNK):
            came_at = self._loop.time()
            if came_at - asked_at > _IDLE_S:
                # Nothing was waiting, so the link was free.
                free_at = came_at
            faults = self.faults[direction]
            size = faults.slice_bytes or len(data)
            for start in range(0, len(data), size):
                piece = data[start : start + size]
                # As it is now: these pieces may have waited.
                is_dead = is_dead or self.faults[direction].blackhole
                if is_dead:
                    break
                passed += len(piece)
                if faults.cut_after is not None and passed > faults.cut_after:
                    raise OSError("cut")
                if self._record:
                    self.recorded[direction] += piece
                if faults.bytes_per_s:
                    # By a timetable: a sleep that ends late costs no rate.
                    free_at += len(piece) / faults.bytes_per_s
                    await asyncio.sleep(free_at - self._loop.time())
                self._count(direction, len(piece), came_at)
                self._loop.call_later(faults.latency_s, _write, writer, piece)
            if not writer.transport.is_closing():
                await writer.drain()
            asked_at = self._loop.time()
        raise OSError("closed")


def _write(writer, piece):
    if not writer.transport.is_closing():
        writer.write(piece)
