"""Bundles of small models, and workers, clients and certificates for tests."""

import contextlib
import logging

import numpy as np
import pytest
from cloud_serving import Client, Loop, assembled, serving

from cloud_worker import logs


@pytest.fixture(autouse=True)
def own_logs():
    """What a test configures of the log is put back."""
    root = logging.getLogger()
    loggers = (root, logs.logger, logs.start_logger)
    handlers, levels = root.handlers[:], [one.level for one in loggers]
    yield
    root.handlers[:] = handlers
    for one, level in zip(loggers, levels, strict=True):
        one.setLevel(level)


@pytest.fixture(scope="session")
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def x():
    return np.random.default_rng(0).normal(size=(64, 6)).astype("float32")


@pytest.fixture(scope="session")
def folders(tmp_path_factory, x):
    """A folder of bundles.

    `whole` (and `whole.keras`); `cut`, its segments; `other` weights; `moved`
    thresholds; `patient`, a policy that looks back, and `patient_cut`.
    """
    import keras
    from bundling import make_model, set_thresholds

    import keras_earlyexit as ee

    folder = tmp_path_factory.mktemp("bundles")

    def export(name, seed=0, policy="max_probability", at=None, **options):
        keras.utils.set_random_seed(seed)
        model = make_model(policy=policy)
        if at is None:
            set_thresholds(model, x)
        else:
            model.policy.threshold = at
        ee.export(model, folder / name, format="litert", **options)
        return model

    export("whole").save(folder / "whole.keras")
    export("cut", cut=["exit_0", "exit_1"])
    export("other", seed=1)
    export("moved", at=0.5)
    export("patient", policy="patience", at=0.5)
    export("patient_cut", policy="patience", at=0.5, cut="exit_0")
    return folder


@pytest.fixture
def serve(loop):
    """Starts a `CloudWorker` for bundles and settings; it ends by itself."""
    with contextlib.ExitStack() as stack:
        yield lambda *bundles, **options: stack.enter_context(
            serving(loop, *bundles, **options)
        )


@pytest.fixture
def serve_for_a_while(loop):
    """As `serve`, as a context manager."""
    return lambda *bundles, **options: serving(loop, *bundles, **options)


@pytest.fixture
def assemble(loop):
    """Starts the parts of a worker for a loaded bundle."""
    with contextlib.ExitStack() as stack:
        yield lambda bundle, **options: stack.enter_context(
            assembled(loop, bundle, **options)
        )


@pytest.fixture
def client():
    """Makes a `Client`."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(
            Client(*arguments, **options)
        )


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """A folder with ca, cloud and edge, each a `.pem` and a `.key`."""
    from keras_earlyexit.cli._pki import Authority

    folder = tmp_path_factory.mktemp("pki")
    authority = Authority.make()
    hosts = ["localhost", "127.0.0.1"]
    made = {
        "ca": authority.pem(),
        "cloud": authority.sign_server(hosts, 1),
        "edge": authority.sign_edge("edge-1", 1),
    }
    for name, (certificate, key) in made.items():
        (folder / f"{name}.pem").write_bytes(certificate)
        (folder / f"{name}.key").write_bytes(key)
    return folder
