"""Training over two processes and a slow link, and what it is compared with.

ResNet-20 on CIFAR-10, cut behind its one early exit. Edge and cloud are
processes with a core each; between them is a link with a rate and a round trip.

    python benchmarks/hierarchical.py speed
    python benchmarks/hierarchical.py accuracy --way undivided
    python benchmarks/hierarchical.py accuracy --way divided
    python benchmarks/hierarchical.py predict
    python benchmarks/hierarchical.py forwarding

`accuracy` takes an hour or more, and goes on where it was stopped. `speed
--trained outputs/hierarchical/accuracy/divided` starts from what it has
trained, so that features are compressed as well, and samples leave as often, as
those of a network in use. `forwarding` is a smaller network, on MNIST.
"""

import argparse
import pathlib

RATES = (1, 5, 10, 50, 100)
ALL = ("all uint8+zstd", "all uint4+zstd")
NON_EXITED = ("non_exited uint8+zstd", "non_exited uint4+zstd")
NETWORKS = ("resnet20", "resnet18", "vgg16")
BLOCKS = ("conv", "narrowing", "residual", "residual2x2")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.set_defaults(command=None)
    commands = parser.add_subparsers()
    _add_accuracy(commands)
    _add_speed(commands)
    _add_predict(commands)
    _add_forwarding(commands)
    for name in ("edge", "cloud"):
        _add_process(commands, name)
    options = parser.parse_args()
    if options.command is None:
        options = parser.parse_args(["speed"])
    options.command(options)


def _add_accuracy(commands):
    parser = _added(commands, "accuracy", "how good the last exit becomes")
    parser.add_argument(
        "--way", choices=("undivided", "divided"), required=True
    )
    _add_cut(parser)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--every", type=int, default=5, help="epochs between two tests"
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=(*ALL, *NON_EXITED),
        default=(ALL[0], *NON_EXITED),
        help="what goes up, and its codec, for each later segment",
    )

    def run(options):
        from _hierarchical import accuracy

        accuracy.run(options)

    parser.set_defaults(command=run)


def _add_speed(commands):
    parser = _added(commands, "speed", "how long it takes")
    _add_network(parser)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rates", type=float, nargs="*", default=RATES)
    parser.add_argument("--ways", nargs="*")
    parser.add_argument("--plan", action="store_true", help="predict, too")
    parser.add_argument("--round-trip-ms", type=float, default=20.0)
    parser.add_argument("--output", type=pathlib.Path)

    def run(options):
        from _hierarchical import speed

        speed.run(options)

    parser.set_defaults(command=run)


def _add_predict(commands):
    parser = _added(commands, "predict", "what the plan says of more networks")
    parser.add_argument("--networks", nargs="*", default=("vgg16", "resnet18"))
    parser.add_argument("--rates", type=float, nargs="*", default=RATES)
    parser.add_argument(
        "--cloud-speeds",
        type=float,
        nargs="*",
        default=(1, 10),
        help="times as fast as the edge",
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--cuts",
        nargs="*",
        default=[None],
        help="layers to cut behind, of all of these networks",
    )
    parser.add_argument(
        "--compressed",
        type=float,
        default=1.0,
        help="what a lossless codec makes of a byte of a feature",
    )
    parser.add_argument("--round-trip-ms", type=float, default=20.0)
    parser.add_argument("--output", type=pathlib.Path)

    def run(options):
        from _hierarchical import predicted_rows

        predicted_rows.run(options)

    parser.set_defaults(command=run)


def _add_forwarding(commands):
    parser = _added(commands, "forwarding", "which samples should go up")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path)

    def run(options):
        from _hierarchical import forwarding

        forwarding.run(options)

    parser.set_defaults(command=run)


def _add_process(commands, name):
    parser = _added(commands, name, "started by `speed`")
    _add_network(parser)
    if name == "edge":
        parser.add_argument("--targets", nargs=2)

    def run(options):
        from _hierarchical import processes, setting

        getattr(processes, name)(
            options.folder,
            setting.Start.of(options),
            options.paced,
            *(options.targets if name == "edge" else ()),
        )

    parser.set_defaults(command=run)


def _add_network(parser):
    _add_cut(parser)
    parser.add_argument(
        "--trained", type=_trained, help="what `accuracy` has written"
    )
    parser.add_argument(
        "--leave", type=float, help="share of the images that leave early"
    )
    parser.add_argument(
        "--paced",
        action="store_true",
        help="steps sleep for the processor time that they were measured to "
        "take: for a machine with other work",
    )


def _trained(path):
    if not pathlib.Path(path).is_file():
        raise argparse.ArgumentTypeError(
            f"no file {path}; `accuracy --way divided` writes one"
        )
    return path


def _add_cut(parser):
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--layer", help="what the exit is behind, and the cut")
    parser.add_argument(
        "--block",
        choices=BLOCKS,
        default=BLOCKS[0],
        help="what reads the exit's feature",
    )
    parser.add_argument(
        "--threshold", type=float, help="the score above which samples leave"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the first weights, and in `accuracy` of all that is drawn",
    )


def _added(commands, name, help_text):
    parser = commands.add_parser(name, help=help_text)
    parser.add_argument(
        "--folder", type=pathlib.Path, default="outputs/hierarchical"
    )
    return parser


if __name__ == "__main__":
    main()
