"""What a cloud worker can be told: one schema for file, environment, flags.

Each of them counts more than the one before. What is not known is an error,
since it may be a misspelt `client_ca`.
"""

import math
import os
import pathlib
import re
from typing import Annotated, Literal

import pydantic
import pydantic_settings
from pydantic import Field

from keras_earlyexit.storage.urls import is_url

PREFIX = "CLOUD_WORKER_"

_Path = pathlib.Path


def _place(value):
    # A path would make one slash of the two.
    return (
        value if not isinstance(value, str) or is_url(value) else _Path(value)
    )


_Source = Annotated[str | _Path, pydantic.BeforeValidator(_place)]
# In the environment paths stand as in PATH; URLs have a colon of their own.
_BETWEEN = re.compile(f"{re.escape(os.pathsep)}(?!//)")
_Count = Annotated[int, Field(ge=1, le=1_000_000)]
_Port = Annotated[int, Field(ge=0, le=65535)]
_Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class SettingsError(ValueError):
    """Settings that are not known, or that cannot be right."""


class Settings(pydantic_settings.BaseSettings):
    """The settings of a cloud worker; the descriptions are in the fields."""

    model_config = pydantic_settings.SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, case_sensitive=False
    )

    bundle: Annotated[
        tuple[_Source, ...], pydantic_settings.NoDecode, Field(min_length=1)
    ] = Field(
        description="Folder or URL of a bundle, or a .keras file of a model "
        "with exits; may be given several times."
    )
    listen: str = Field(
        "127.0.0.1:50051",
        description="host:port to listen on; port 0 lets the system choose.",
    )
    tls_cert: _Path | None = Field(
        None, description="PEM file of this worker's certificate."
    )
    tls_key: _Path | None = Field(None, description="PEM file of its key.")
    client_ca: _Path | None = Field(
        None,
        description="PEM file of the authority whose certificates let edges "
        "in.",
    )
    token_file: _Path | None = Field(
        None, description="File with tokens that let edges in, one a line."
    )
    insecure: bool = Field(
        False, description="Plain text; on a loopback address only."
    )
    allow_raw_input: bool = Field(
        False,
        description="Also serve the first stage, which takes the model's own "
        "input.",
    )
    max_batch: _Count = Field(
        64, description="Rows that run together, and the most in a request."
    )
    max_queue: _Count = Field(
        1024,
        description="Rows that may wait, for each stage that is entered.",
    )
    max_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = Field(
        0.0,
        description="How long a batch waits for being filled. 0 runs at once "
        "what is there.",
    )
    max_deadline_s: Annotated[
        float, Field(gt=0, le=3600, allow_inf_nan=False)
    ] = Field(
        60.0, description="The most that a request is given, if it says more."
    )
    max_calls: _Count = Field(
        4096, description="Calls at the same time; a stream is one."
    )
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        2,
        description="Batches that run at the same time: with two, one is made "
        "ready while the other runs.",
    )
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="Threads that one batch may use, for LiteRT and ONNX.",
    )
    reload_every_s: _Seconds = Field(
        1.0,
        description="How often to look for changed bundles; 0 looks at a "
        "SIGHUP only.",
    )
    drain_s: _Seconds = Field(
        60.0,
        description="Seconds without a request after which an older "
        "generation is dropped.",
    )
    max_generations: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="Generations of a bundle that are kept at most."
    )
    grace_s: _Seconds = Field(
        20.0, description="Seconds to end what is in flight when stopped."
    )
    forward: str | None = Field(
        None,
        description="host:port of a further worker, for samples that do not "
        "leave here.",
    )
    forward_ca: _Path | None = Field(
        None, description="PEM file of the authority of the further worker."
    )
    forward_cert: _Path | None = Field(
        None, description="PEM file of the certificate to show it."
    )
    forward_key: _Path | None = Field(
        None, description="PEM file of that certificate's key."
    )
    forward_token_file: _Path | None = Field(
        None, description="File whose first token is sent to it."
    )
    forward_insecure: bool = Field(
        False, description="Plain text to it; on a loopback address only."
    )
    forward_codec: str = Field(
        "float32", description="Form in which features go to it."
    )
    forward_edge_id: str = Field(
        "cloud-worker",
        description="What this worker calls itself there; the certificate's "
        "name if it has one.",
    )
    metrics_port: _Port | None = Field(
        None, description="Port for Prometheus; 0 lets the system choose."
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address for Prometheus to ask at."
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="What runs the stages: local, this process; ray, replicas "
        "on Ray Serve.",
    )
    replicas: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="Replicas on Ray, always as many."
    )
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None,
        description="Replicas on Ray at most: from one on, by the requests "
        "that wait.",
    )
    replica_target: Annotated[
        float, Field(gt=0, le=100_000, allow_inf_nan=False)
    ] = Field(
        16.0,
        description="Requests of one replica, waiting or running, that "
        "max_replicas aims at.",
    )
    replica_idle_s: _Seconds = Field(
        60.0,
        description="Seconds with fewer requests after which a replica is let "
        "go.",
    )
    ray_proxy: str | None = Field(
        None,
        description="host:port, on loopback, of the gRPC proxy of a Ray Serve "
        "that runs already; none is started then.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="debug, info, warning or error. Every request is a line "
        "of level info.",
    )

    @pydantic.field_validator("bundle", mode="before")
    @classmethod
    def _paths(cls, value):
        return _BETWEEN.split(value) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _go_together(self):
        if self.max_queue < self.max_batch:
            raise ValueError(
                f"max_queue is {self.max_queue}, below max_batch="
                f"{self.max_batch}: no full batch could ever wait"
            )
        given = [x for x in _FORWARDING if getattr(self, x)]
        if self.forward is None and given:
            raise ValueError(f"{given[0]} is given without forward")
        given = [x for x in _ON_RAY if getattr(self, x) is not None]
        if self.engine != "ray" and given:
            raise ValueError(f"{given[0]} is given without engine=ray")
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are both given")
        return self

    def as_toml(self):
        """The settings as a file that `load` takes."""
        return "".join(
            f"{name} = {_toml(value)}\n"
            for name, value in self
            if value is not None
        )


_FORWARDING = (
    "forward_ca",
    "forward_cert",
    "forward_key",
    "forward_token_file",
    "forward_insecure",
)
# Each of them without the others.
_ON_RAY = ("replicas", "max_replicas", "ray_proxy")


def load(file=None, **flags):
    """The settings of a worker.

    Args:
        file: TOML file; `None` for none.
        **flags: What counts most; `None` for what was not given.

    Returns:
        `Settings`.

    Raises:
        SettingsError: If something is unknown or cannot be right.
    """
    _refuse_unknown_variables()

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls, init_settings, env_settings, **others
        ):
            # What comes first counts most.
            return (
                init_settings,
                env_settings,
                pydantic_settings.TomlConfigSettingsSource(settings_cls, file),
            )

    given = {name: x for name, x in flags.items() if x not in (None, ())}
    if file is not None and not os.path.isfile(file):
        raise SettingsError(
            f"Expected a TOML file with settings. Received: {str(file)!r}, "
            "which is not there. Correct the path after --config."
        )
    try:
        return Layered(**given)
    except pydantic.ValidationError as error:
        raise SettingsError(_explain(error)) from error
    except ValueError as error:
        # Of the TOML itself.
        raise SettingsError(
            f"Expected a TOML file. Received: {str(file)!r} ({error}). "
            "Correct it there; --print-config shows how it looks."
        ) from error


def _refuse_unknown_variables():
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise SettingsError(
                f"Expected environment variables {PREFIX}* that are settings. "
                f"Received: {name}. Choose one of: {', '.join(sorted(known))}."
            )


def _explain(error):
    lines = []
    for found in error.errors(include_url=False):
        name = ".".join(map(str, found["loc"])) or "settings"
        if found["type"] == "extra_forbidden":
            lines.append(
                f"Expected a known setting. Received: {name}="
                f"{found['input']!r}. Choose one of: "
                f"{', '.join(Settings.model_fields)}."
            )
        elif found["type"] == "missing":
            lines.append(
                f"Expected the setting {name}. Received: none. Pass "
                f"--{name.replace('_', '-')}, set {PREFIX}{name.upper()}, or "
                "write it into the file."
            )
        elif found["loc"]:
            value = found["input"]
            lines.append(
                f"Expected another value of {name}. Received: {name}="
                f"{value!r} (of type {type(value).__name__}). "
                f"{found['msg']}."
            )
        else:
            reason = found["msg"].removeprefix("Value error, ")
            lines.append(
                "Expected settings that go together. Received: others: "
                f"{reason}. Change one of the two."
            )
    return "\n".join(lines)


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
