"""The command that makes certificates for a trial."""

import datetime
import json
import shlex
import ssl
import sys

import pytest
from cryptography import x509

from keras_earlyexit import cli
from keras_earlyexit.cli import ExitCode


@pytest.fixture(autouse=True)
def seed():
    """In place of the one for all tests, which imports Keras."""


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in this process: (exit status, output, errors)."""
    # Wide enough that no cell of a table is wrapped.
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments):
        status = cli.main(["certs", *map(str, arguments)])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


def make(run, folder, *arguments):
    status, output, errors = run("--output", folder, "--json", *arguments)
    assert (status, errors) == (ExitCode.OK, "")
    return json.loads(output)


def load(path):
    with open(path, "rb") as file:
        return x509.load_pem_x509_certificate(file.read())


def common_name(certificate):
    (name,) = certificate.subject.get_attributes_for_oid(
        x509.NameOID.COMMON_NAME
    )
    return name.value


def is_accepted(ca, server, edge):
    """Shakes hands in memory; returns what the server sees of the edge."""
    contexts = []
    for files, side in ((server, "CLIENT_AUTH"), (edge, "SERVER_AUTH")):
        purpose = getattr(ssl.Purpose, side)
        context = ssl.create_default_context(purpose, cafile=ca)
        # What is not quite after the rules is refused by newer Pythons.
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(files["cert"], files["key"])
        contexts.append(context)
    contexts[0].verify_mode = ssl.CERT_REQUIRED
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    cloud = contexts[0].wrap_bio(up, down, server_side=True)
    here = contexts[1].wrap_bio(down, up, server_hostname="cloud.test")
    for _ in range(3):
        for end in (here, cloud):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return cloud.getpeercert()


def test_both_sides_accept_each_other(run, tmp_path):
    paths = make(run, tmp_path / "a", "--cloud", "cloud.test", "--edge", "e-1")
    seen = is_accepted(paths["ca"], paths["cloud"], paths["edges"]["e-1"])
    assert seen["subject"] == ((("commonName", "e-1"),),)
    other = make(run, tmp_path / "b", "--edge", "e-1")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE"):
        is_accepted(paths["ca"], paths["cloud"], other["edges"]["e-1"])
    with pytest.raises(ssl.SSLError, match="purpose"):
        is_accepted(paths["ca"], paths["cloud"], paths["cloud"])


def test_what_is_in_them(run, tmp_path):
    hosts = ["cloud.test", "10.0.0.7", "::1"]
    options = [word for host in hosts for word in ("--cloud", host)]
    paths = make(run, tmp_path, *options, "--edge", "e.1", "--days", 3)
    names = load(paths["cloud"]["cert"]).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(name.value) for name in names.value] == hosts
    edge = load(paths["edges"]["e.1"]["cert"])
    assert common_name(edge) == "e.1"
    left = edge.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert 2.9 < left / datetime.timedelta(days=1) <= 3
    assert edge.public_key().curve.name == "secp256r1"


def test_nobody_else_reads_the_keys(run, tmp_path):
    make(run, tmp_path / "new", "--cloud", "a", "--edge", "b")
    keys = list(tmp_path.rglob("*.key"))
    assert len(keys) == 3
    for path in keys:
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_nothing_is_overwritten(run, tmp_path):
    make(run, tmp_path, "--cloud", "a", "--edge", "b")
    before = {x: x.read_bytes() for x in tmp_path.rglob("*.*")}
    for options in (["--edge", "b"], ["--edge", "c", "--cloud", "a"]):
        status, output, errors = run("--output", tmp_path, *options)
        assert (status, output) == (ExitCode.INPUT, "")
        assert "which exist" in errors
    assert before == {x: x.read_bytes() for x in tmp_path.rglob("*.*")}


def test_edges_are_added_to_the_same_authority(run, tmp_path):
    first = make(run, tmp_path, "--cloud", "cloud.test")
    more = make(run, tmp_path, "--edge", "e-2", "--edge", "e-3")
    for edge in more["edges"].values():
        assert is_accepted(first["ca"], first["cloud"], edge)


@pytest.mark.parametrize("file", ["ca.pem", "ca.key"])
def test_a_damaged_authority_is_not_used(run, tmp_path, file):
    make(run, tmp_path, "--cloud", "a")
    (tmp_path / file).write_bytes(b"nonsense")
    status, _, errors = run("--output", tmp_path, "--edge", "b")
    assert status == ExitCode.INPUT and "authority" in errors
    (tmp_path / file).unlink()
    status, _, errors = run("--output", tmp_path, "--edge", "b")
    assert status == ExitCode.INPUT and "which exist" in errors


def test_the_commands_to_go_on_with(run, tmp_path):
    folder = tmp_path / "my certificates"
    options = ["--cloud", "::1", "--edge", "e-1"]
    status, output, _ = run("--output", folder, *options)
    assert status == ExitCode.OK
    serve, infer = (
        shlex.split(line)
        for line in output.splitlines()
        if line.startswith(("cloud-worker", "edge-worker"))
    )
    assert serve[1] == "serve" and infer[1] == "infer"
    for words, flags in (
        (serve, ("--tls-cert", "--tls-key", "--client-ca")),
        (infer, ("--ca", "--cert", "--key")),
    ):
        for flag in flags:
            with open(words[words.index(flag) + 1]) as file:
                assert file.read().startswith("-----BEGIN")
    assert infer[infer.index("--cloud") + 1] == "[::1]:50051"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--cloud", "host:50051"],
        ["--cloud", "a_b"],
        ["--cloud", "-a"],
        ["--cloud", ""],
        ["--cloud", "x" * 64],
        ["--cloud", "10.0.0.256"],
        ["--cloud", "fe80::1%eth0"],
        ["--edge", ""],
        ["--edge", "../x"],
        ["--edge", ".."],
        ["--edge", "x" * 65],
        ["--edge", "a", "--days", 0],
        ["--edge", "a", "--days", 1000],
    ],
)
def test_wrong_usage(run, tmp_path, options):
    status, output, errors = run("--output", tmp_path / "new", *options)
    assert (status, output) == (ExitCode.USAGE, "") and errors
    assert not (tmp_path / "new").exists()


def test_a_place_that_is_no_folder(run, tmp_path):
    file = tmp_path / "file"
    file.touch()
    status, _, errors = run("--output", file, "--edge", "a")
    assert status == ExitCode.INPUT and str(file) in errors


def test_without_cryptography(run, tmp_path, monkeypatch):
    name = "keras_earlyexit.cli._pki"
    make(run, tmp_path / "before", "--edge", "a")
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(cli, "_pki")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    status, _, errors = run("--output", tmp_path, "--edge", "a")
    assert status == ExitCode.MISSING
    assert "cryptography" in errors and "keras-earlyexit[split]" in errors
