"""One side of training as a process of its own, to be killed by a test.

    training_child.py cloud FOLDER PORT [POINT COUNT]
    training_child.py edge FOLDER PORT STEPS [EDGE]

With a point and a count, the process kills itself when it has come there that
often.
"""

import asyncio
import os
import signal
import sys

import numpy as np
from linear_training import AGREEMENT, LinearStepper, batch

POINTS = (
    "before_decode",
    "after_decode",
    "after_step",
    "before_fsync",
    "after_fsync",
    "after_rename",
    "before_reply",
    "after_reply",
)


def cloud(folder, port, point=None, count=0):
    from training_server import start

    from cloud_worker.training import trainer

    if point is not None:
        _kill_at(point, int(count))

    async def run():
        made = trainer.Trainer(
            LinearStepper(),
            AGREEMENT,
            folder,
            commit_every=7,
            idle_commit_s=0.05,
        )
        # Kept: gRPC ends a server that nobody holds.
        server, _ = await start(made, f"127.0.0.1:{port}")
        print("ready", flush=True)
        await server.wait_for_termination()

    asyncio.run(run())


def edge(folder, port, steps, number="0"):
    from edge_worker.training.checkpoint import Checkpoint
    from protos import split_pb2, training
    from protos.calling.retry import Backoff
    from protos.feeding.journal import Journal
    from protos.feeding.sending import Sender
    from protos.security import ClientSecurity
    from protos.tensors import encode

    checkpoint = Checkpoint(folder, {})
    journal = Journal(os.path.join(folder, "journal"), max_bytes=20_000)
    found = checkpoint.read()
    sequence = found[1]["sequence"] if found else 0
    sender = Sender(
        journal,
        f"127.0.0.1:{port}",
        ClientSecurity(insecure=True),
        AGREEMENT,
        checkpoint.run,
        f"edge-{number}",
        backoff=Backoff(0.02, 0.1),
    )
    sender.start()
    print("ready", flush=True)
    while sequence < int(steps):
        (x,), y = batch(int(number), sequence)
        request = split_pb2.TrainRequest(
            generation=sender.generation,
            sequence=sequence,
            tensors=[encode(x)],
            labels=encode(y),
        )
        request.crc32 = training.checksum(request)
        content = request.SerializeToString(deterministic=True)
        following = journal.next_sequence
        if following is not None and sequence < following:
            assert journal.read(sequence) in (None, content)
        else:
            while not journal.append(sequence, content, 0.2):
                sender.check()
        sequence += 1
        if sequence % 10 == 0:
            checkpoint.write([np.zeros(1)], {"sequence": sequence})
    while not journal.wait_acknowledged(sequence, 0.2):
        sender.check()
    sender.close()
    print("done", flush=True)


def _kill_at(point, count):
    from cloud_worker.training import decoding
    from cloud_worker.training.trainer import Trainer

    left = [count]

    def reach(name):
        if name == point:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(owner, name, before, after):
        inner = getattr(owner, name)

        def call(*arguments, **options):
            reach(before)
            result = inner(*arguments, **options)
            reach(after)
            return result

        setattr(owner, name, call)

    around(decoding, "read", "before_decode", "after_decode")
    around(LinearStepper, "step", None, "after_step")
    around(os, "fsync", "before_fsync", "after_fsync")
    around(os, "replace", None, "after_rename")
    around(Trainer, "_reply", "before_reply", None)
    train = Trainer.train

    async def told(self, requests, edge_id):
        async for reply in train(self, requests, edge_id):
            yield reply
            reach("after_reply")

    Trainer.train = told


if __name__ == "__main__":
    {"cloud": cloud, "edge": edge}[sys.argv[1]](*sys.argv[2:])
