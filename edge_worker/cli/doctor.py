"""`edge-worker doctor`: what is wrong on the way to the cloud worker."""

from edge_worker.cli.shared import ExitCode
from keras_earlyexit.cli import options
from keras_earlyexit.cli.shared import print_json, print_table


def doctor(
    settings,
    as_json: options.Json = False,
):
    """Check the bundle, the certificates, the clock and the link."""
    # It imports gRPC.
    from edge_worker.examining import examine

    checks = examine(settings)
    if as_json:
        print_json({"checks": [check._asdict() for check in checks]})
    else:
        print_table(
            f"{settings.bundle} -> {settings.config.target}",
            ("check", "", "found", "what to do"),
            [
                (
                    check.name,
                    "ok" if check.is_fine else "PROBLEM",
                    check.found,
                    check.fix,
                )
                for check in checks
            ],
        )
    fine = all(check.is_fine for check in checks)
    return ExitCode.OK if fine else ExitCode.PROBLEM
