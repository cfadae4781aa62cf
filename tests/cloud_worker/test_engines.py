"""What an engine is told, as far as none has to run."""

import importlib.util
import socket

import grpc
import pytest

from cloud_worker.cli import main
from cloud_worker.config import SettingsError, load
from cloud_worker.engines.loopback import is_open
from keras_earlyexit.cli.shared import ExitCode


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
