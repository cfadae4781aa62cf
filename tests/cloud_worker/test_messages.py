"""What is told of answers, and of ourselves."""

import numpy as np
from calling.serving import make_bundles
from cloud_serving import answers_of

from cloud_worker.answering import Answer
from cloud_worker.batching import Queue
from cloud_worker.generations import build
from cloud_worker.messages import hello_reply, infer_reply
from protos import split_pb2
from protos.identity import PROTOCOL, difference


def answer_of(**changes):
    values = {
        "predictions": np.array([[0.25, 0.75], [1, 0]], "float32"),
        "exit_index": np.array([1, 2]),
        "score": np.array([0.75, np.nan], "float32"),
        "degraded": np.array([1]),
        "queue_s": 0.001,
        "compute_s": 0.0025,
    }
    return Answer(**{**values, **changes})


def test_an_answer():
    request = split_pb2.InferRequest(request_id="one")
    answer = answer_of()
    reply = infer_reply(request, answer)
    assert reply.request_id == "one" and not reply.HasField("status")
    predictions, exit_index, score = answers_of(reply, 2)
    np.testing.assert_array_equal(predictions, answer.predictions)
    np.testing.assert_array_equal(exit_index, [1, 2])
    np.testing.assert_array_equal(score, answer.score)
    assert list(reply.degraded) == [1]
    assert (reply.queue_us, reply.compute_us) == (1000, 2500)


def test_times_that_have_no_place_in_a_message():
    request = split_pb2.InferRequest()
    reply = infer_reply(request, answer_of(queue_s=-0.1, compute_s=1e9))
    assert (reply.queue_us, reply.compute_us) == (0, 2**32 - 1)


def test_a_greeting():
    generation = build(
        "here",
        make_bundles()[1],
        max_message_bytes=None,
        max_batch=16,
        queue=lambda: Queue(100, 16),
        raw_input=False,
    )
    reply = hello_reply(generation.entrances[1])
    assert reply.accepted and reply.max_rows == 16
    assert reply.generation == generation.entrances[1].identity.generation
    assert (reply.protocol_major, reply.protocol_minor) == PROTOCOL
    assert reply.clock > 1.6e9


def test_a_refusal():
    reply = hello_reply(None, [difference("weights", "a", "b")])
    assert not reply.accepted and not reply.generation and not reply.max_rows
    (found,) = reply.differences
    assert (found.what, found.edge, found.cloud) == ("weights", "a", "b")
