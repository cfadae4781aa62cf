"""`keras-earlyexit certs`: certificates to try a split model with."""

import ipaddress
import os
import pathlib
import re
import shlex
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    install_command,
    print_json,
    print_table,
)

_DAYS = 90
_MAX_DAYS = 825
_PORT = 50051
_EDGE_ID = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# What ends in a number is an address, or would be one.
_HOST = re.compile(rf"(?=.{{1,253}}$)(?!(.*\.)?[0-9]+$){_LABEL}(\.{_LABEL})*")


def certs(
    output: Annotated[
        pathlib.Path,
        typer.Option(
            "--output", "-o", "--out", help="Folder to write them to."
        ),
    ],
    cloud: Annotated[
        list[str] | None,
        typer.Option(
            "--cloud",
            help="Name or IP address under which edges reach the cloud "
            "worker. May be given several times.",
        ),
    ] = None,
    edge: Annotated[
        list[str] | None,
        typer.Option(
            "--edge", help="Id of an edge. May be given several times."
        ),
    ] = None,
    days: Annotated[
        int,
        typer.Option(
            "--days", min=1, max=_MAX_DAYS, help="How long they are valid."
        ),
    ] = _DAYS,
    as_json: options.Json = False,
):
    """Make a private authority and certificates for a trial.

    In a folder that has an authority already, its certificates are added to.
    """
    hosts, edge_ids = _checked(cloud or [], edge or [])
    contents, paths = _sign(output, hosts, edge_ids, days)
    _write(contents)
    if as_json:
        print_json(paths)
    else:
        _print_paths(paths, hosts)
    return ExitCode.OK


def _checked(hosts, edge_ids):
    if not hosts and not edge_ids:
        raise typer.BadParameter("Name at least one --cloud or --edge.")
    for host in hosts:
        if not _is_host(host):
            raise typer.BadParameter(
                f"Expected a host name or an IP address, without a port. "
                f"Received: {host!r}.",
                param_hint="--cloud",
            )
    for edge_id in edge_ids:
        if not _EDGE_ID.fullmatch(edge_id):
            raise typer.BadParameter(
                "Expected 1 to 64 letters, digits, dots, dashes and "
                f"underscores, a letter or digit first. Received: {edge_id!r}.",
                param_hint="--edge",
            )
    return list(dict.fromkeys(hosts)), list(dict.fromkeys(edge_ids))


def _is_host(host):
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(_HOST.fullmatch(host))
    # A zone means something on this machine only; certificates have none.
    return "%" not in host


def _sign(folder, hosts, edge_ids, days):
    """All files with their contents, and the paths that are printed."""
    try:
        from keras_earlyexit.cli import _pki
    except ModuleNotFoundError as error:
        raise CommandError(
            f"certs needs the package {error.name}. Install it with: "
            f"{install_command('split')}",
            ExitCode.MISSING,
        ) from error
    contents = {}

    def add(name, pem):
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        contents[cert], contents[key] = pem
        return {"cert": str(cert), "key": str(key)}

    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    if ca.exists() and ca_key.exists():
        try:
            authority = _pki.Authority.load(
                ca.read_bytes(), ca_key.read_bytes()
            )
        except (OSError, ValueError) as error:
            raise CommandError(
                f"Expected an authority in {ca} and {ca_key}. Received: "
                f"files that cannot be used ({error}). Pass another --output.",
                ExitCode.INPUT,
            ) from error
    else:
        authority = _pki.Authority.make()
        add("ca", authority.pem())
    return contents, {
        "ca": str(ca),
        "ca_key": str(ca_key),
        "cloud": add("cloud", authority.sign_server(hosts, days))
        if hosts
        else None,
        "edges": {
            edge_id: add(f"edges/{edge_id}", authority.sign_edge(edge_id, days))
            for edge_id in edge_ids
        },
    }


def _write(contents):
    present = [str(path) for path in contents if path.exists()]
    if present:
        raise CommandError(
            f"Expected places without a file. Received: {', '.join(present)}, "
            "which exist. Pass another --output, or remove them.",
            ExitCode.INPUT,
        )
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Nobody else may read a key, not even before it is written.
            mode = 0o600 if path.suffix == ".key" else 0o644
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(path, flags, mode), "wb") as file:
                file.write(content)
    except OSError as error:
        raise CommandError(
            f"Expected a folder that can be written to. Received: "
            f"{error.filename} ({error.strerror}). Pass another --output.",
            ExitCode.INPUT,
        ) from error


def _print_paths(paths, hosts):
    server, edges = paths["cloud"], paths["edges"]
    rows = [("authority", paths["ca"], paths["ca_key"])]
    if server:
        rows.append(("cloud worker", server["cert"], server["key"]))
    rows += [(f"edge {id_}", x["cert"], x["key"]) for id_, x in edges.items()]
    print_table("Certificates", ("for", "certificate", "key"), rows)
    # Not through rich, which would break the lines.
    if server:
        print("\nStart the cloud worker with its files and the authority's:\n")
        print(
            _command(
                "cloud-worker serve --bundle BUNDLE",
                listen=f"0.0.0.0:{_PORT}",
                tls_cert=server["cert"],
                tls_key=server["key"],
                client_ca=paths["ca"],
            )
        )
    if edges:
        print("\nCopy to each edge its own two files and the authority's:\n")
    for files in edges.values():
        print(
            _command(
                "edge-worker infer --bundle BUNDLE --input x.npy "
                "--output answers.jsonl",
                cloud=f"{_bracketed(hosts[0]) if hosts else 'HOST'}:{_PORT}",
                ca=paths["ca"],
                cert=files["cert"],
                key=files["key"],
            )
        )
    print(
        f"\nKeep {paths['ca_key']} where neither worker is: whoever has it "
        "can make edges.\nThe same command with other --edge ids adds edges."
    )


def _bracketed(host):
    return f"[{host}]" if ":" in host else host


def _command(start, **options):
    words = [
        f"--{name.replace('_', '-')} {shlex.quote(value)}"
        for name, value in options.items()
    ]
    return " ".join([start, *words])
