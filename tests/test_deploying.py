"""The files in `examples/` for containers: what they name exists and works.

There may be no Docker here. So the commands of the compose file are run as they
stand there, but for paths, addresses and ports.
"""

import http.client
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import bundling
import keras
import numpy as np
import pytest
import yaml
from waiting import poll

import keras_earlyexit as ee
from keras_earlyexit.cli import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
IMAGES = ("cloud", "edge")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((EXAMPLES / "compose.yaml").read_text())


def dockerfile(name):
    """Pairs of an instruction and what follows it."""
    text = (EXAMPLES / "deploy" / f"Dockerfile.{name}").read_text()
    lines = [x for x in text.splitlines() if x and not x.startswith("#")]
    return [tuple(x.split(maxsplit=1)) for x in lines]


@pytest.mark.parametrize("name", IMAGES)
def test_images_copy_and_install_what_there_is(name):
    lines = dockerfile(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = []
    for word, rest in lines:
        if word == "COPY":
            copied += rest.split()[:-1]
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(copied)
    (install,) = (rest for word, rest in lines if "pip install" in rest)
    (extra,) = re.findall(r"'\.\[(\w+)\]'", install)
    needed = project["project"]["optional-dependencies"]
    assert extra in needed
    assert not any(
        "tensorflow" in x for x in [*needed[extra], *needed["split"]]
    )
    assert dict(lines)["USER"] != "root"
    command, subcommand = json.loads(dict(lines)["ENTRYPOINT"])
    assert command in project["project"]["scripts"]
    assert subcommand == "serve"


def test_compose_builds_and_mounts_what_there_is(compose):
    for name in IMAGES:
        build = compose["services"][name]["build"]
        assert (EXAMPLES / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).name == f"Dockerfile.{name}"
        assert (ROOT / build["dockerfile"]).is_file()
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source, _, mode = volume.split(":")
            assert mode == "ro"
            if source.startswith("./"):
                assert (EXAMPLES / source).is_file()


def test_those_who_watch_ask_at_the_right_address(compose):
    services = compose["services"]
    scraped = yaml.safe_load(
        (EXAMPLES / "deploy" / "prometheus.yml").read_text()
    )
    (job,) = scraped["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    flags = shlex.split(services["cloud"]["command"])
    port = flags[flags.index("--metrics-port") + 1]
    assert target == f"cloud:{port}"
    folder = EXAMPLES / "deploy" / "grafana"
    source = yaml.safe_load((folder / "datasource.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert any(":9090" in x for x in services["prometheus"]["ports"])
    provider = yaml.safe_load((folder / "dashboards.yaml").read_text())
    inside = provider["providers"][0]["options"]["path"]
    assert any(f":{inside}/" in x for x in services["grafana"]["volumes"])


@pytest.fixture(scope="module")
def started(compose, tmp_path_factory):
    """What both workers say first, by the commands of the compose file."""
    folder = tmp_path_factory.mktemp("deployed")
    keras.utils.set_random_seed(1)
    model = bundling.make_model()
    x = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")
    bundling.set_thresholds(model, x)
    ee.export(model, folder / "bundles", cut="exit_0")
    made = ["certs", "--out", str(folder / "certs"), "--cloud", "localhost"]
    assert main([*made, "--edge", "edge-1"]) == 0

    def start(name, **replaced):
        """Starts one; gives what its first line says."""
        command, subcommand = json.loads(dict(dockerfile(name))["ENTRYPOINT"])
        flags = compose["services"][name]["command"]
        for old, new in {
            "/bundles/": f"{folder}/bundles/",
            "/certs/": f"{folder}/certs/",
            **replaced,
        }.items():
            assert old in flags
            flags = flags.replace(old, new)
        log = folder / f"{name}.log"
        with open(log, "w") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", command.replace("-", "_")),
                    *(subcommand, *shlex.split(flags)),
                ],
                cwd=ROOT,
                stdout=file,
            )
        processes.append(process)
        poll(
            lambda: process.poll() is not None or "\n" in log.read_text(),
            within_s=120,
        )
        assert process.poll() is None
        return json.loads(log.read_text().splitlines()[0])

    processes = []
    try:
        cloud = start(
            "cloud",
            **{
                "0.0.0.0:50051": "127.0.0.1:0",
                "--metrics-host 0.0.0.0": "--metrics-host 127.0.0.1",
                "--metrics-port 9100": "--metrics-port 0",
            },
        )
        port = cloud["address"].rpartition(":")[2]
        edge = start(
            "edge",
            **{
                "localhost:50051": f"localhost:{port}",
                "127.0.0.1:8080": "127.0.0.1:0",
            },
        )
        yield cloud, edge, x
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def get(address, path, body=None):
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST" if body else "GET", path, body, headers)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_the_commands_work_and_every_figure_on_the_dashboard_exists(started):
    cloud, edge, x = started
    body = json.dumps({"inputs": x.tolist()})
    answers = json.loads(get(edge["address"], "/predict", body))["answers"]
    by = {answer["answered_by"] for answer in answers}
    assert by == {"edge", "cloud"}

    metrics = get(f"127.0.0.1:{cloud['metrics_port']}", "/metrics")
    samples = {}
    for line in metrics.splitlines():
        if line.startswith("#"):
            continue
        name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
        found = re.findall(r'(\w+)="', labels or "")
        samples.setdefault(name, set()).update(found)
    dashboard = json.loads(
        (EXAMPLES / "deploy" / "grafana" / "cloud_worker.json").read_text()
    )
    queries = [
        target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    assert len(queries) >= 10
    for query in queries:
        names = re.findall(r"cloud_worker_\w+", query)
        assert names
        for name in names:
            assert name in samples, query
            for labels in re.findall(r"by \(([\w, ]+)\)", query):
                assert samples[name].issuperset(labels.split(", ")), query
