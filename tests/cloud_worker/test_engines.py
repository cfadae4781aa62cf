"""What an engine is told, as far as none has to run."""

import importlib
import importlib.util
import pathlib
import socket

import grpc
import pytest
import yaml

from cloud_worker.cli import main
from cloud_worker.config import Settings, SettingsError, load
from cloud_worker.engines import loopback
from cloud_worker.engines.front import APPLICATION
from cloud_worker.engines.loopback import is_open
from keras_earlyexit.cli.shared import ExitCode

MANIFEST = (
    pathlib.Path(__file__).parents[2]
    / "examples/deploy/kubernetes/ray-service.yaml"
)


def named(path):
    """What an import path names."""
    module, _, name = path.replace(":", ".").rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_settings_of_replicas_need_ray():
    with pytest.raises(SettingsError, match="replicas is given without engin"):
        load(bundle=["b"], replicas=2)
    with pytest.raises(SettingsError, match="both given"):
        load(bundle=["b"], engine="ray", replicas=2, max_replicas=3)
    assert load(bundle=["b"], engine="ray", max_replicas=3).max_replicas == 3


def test_another_engine():
    with pytest.raises(SettingsError, match="'local' or 'ray'"):
        load(bundle=["b"], engine="spark")


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is not None, reason="Ray is installed"
)
def test_without_ray_it_says_what_to_install(folders, capsys):
    command = ["serve", "--insecure", "--engine", "ray"]
    bundle = str(folders / "whole")
    status = main([*command, "--bundle", bundle, "--listen", "127.0.0.1:0"])
    assert status == ExitCode.MISSING
    assert "keras-earlyexit[serve]" in capsys.readouterr().err


def test_a_proxy_that_is_on_another_machine(folders, capsys):
    command = ["serve", "--insecure", "--engine", "ray"]
    bundle = str(folders / "whole")
    status = main(
        [*command, "--bundle", bundle, "--ray-proxy", "192.0.2.1:9000"]
    )
    assert status == ExitCode.INPUT
    assert "loopback" in capsys.readouterr().err


def test_a_port_on_loopback_is_not_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not is_open(server.getsockname()[1])
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert is_open(server.getsockname()[1])


def test_grpc_ports_are_told_apart():
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(1))
    near = server.add_insecure_port("127.0.0.1:0")
    far = server.add_insecure_port("[::]:0")
    server.start()
    assert not is_open(near) and is_open(far)
    server.stop(0).wait()


@pytest.fixture(scope="module")
def service():
    return next(yaml.safe_load_all(MANIFEST.read_text()))["spec"]


def test_the_manifest_for_a_cluster_has_settings_of_a_worker(service):
    serve = yaml.safe_load(service["serveConfigV2"])
    (functions,) = serve["grpc_options"]["grpc_servicer_functions"]
    assert callable(named(functions))
    (application,) = serve["applications"]
    assert application["name"] == APPLICATION
    assert Settings(**application["args"], engine="ray", insecure=True)
    head = service["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    node, front = head["containers"]
    environment = {each["name"]: each["value"] for each in node["env"]}
    assert callable(named(environment[loopback.HOOK]))
    flags = dict(flag.lstrip("-").split("=") for flag in front["args"])
    settings = load(**{k.replace("-", "_"): v for k, v in flags.items()})
    assert settings.ray_proxy.endswith(f":{serve['grpc_options']['port']}")
    assert not settings.insecure and settings.client_ca


# Of Ray's own modules, when they are imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_manifest_for_a_cluster_is_what_ray_takes(service):
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.serve.schema import ServeDeploySchema

    serve = yaml.safe_load(service["serveConfigV2"])
    found = ServeDeploySchema(**serve)
    (application,) = found.applications
    assert callable(named(application.import_path))
