"""What `keras-earlyexit tune` runs, in one process or in several."""

import contextlib
import functools
import socket
import sys

from keras_earlyexit.cli import samples, tune_inputs
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    mendable,
    print_error,
)

_RANGES = {"exits": int, "cost_weights": float, "learning_rates": float}
_NAMES = ("placements", "blocks", "objectives", "policies")


def is_one_of_a_crew():
    """Whether this process is a chief or a worker for another one."""
    from keras_earlyexit.tuning import crew

    return crew.role() is not None


class Search:
    """A search: what it is given, and the processes that run it.

    Args:
        settings: Dict of the options that make it what it is.
        data_dir: Folder of the data sets of TFDS, or `None`.
        folder: Its folder.
        trials: How many trials in all.
    """

    def __init__(self, settings, data_dir, folder, trials):
        self.settings = settings
        self.data_dir = data_dir
        self.folder = folder
        self.trials = trials

    @functools.cached_property
    def splits(self):
        """Dict of `(x, y)`, see `tune_inputs.splits_of`."""
        shape = samples.input_shape(self._alone)
        with mendable():
            return tune_inputs.splits_of(
                self.settings["data"], shape, self.data_dir
            )

    @functools.cached_property
    def network(self):
        """A network without exits, to look at."""
        return self.make() if self._alone is None else self._alone

    @functools.cached_property
    def _alone(self):
        from keras_earlyexit.cli import networks

        return networks.make_alone(self.settings["model"])

    @property
    def is_trained(self):
        """Whether trials start from the weights of a file."""
        return self.settings["model"].endswith(".keras")

    def make(self):
        """A new network without exits, for a trial."""
        from keras_earlyexit.cli import networks
        from keras_earlyexit.sources import Samples

        text = self.settings["model"]
        model = networks.make_alone(text)
        if model is None:
            model = networks.make_for(text, Samples(*self.splits["train"]))
        return model

    @functools.cached_property
    def hypermodel(self):
        """The `ExitHyperModel`."""
        given = self.settings
        space = {name: tune_inputs.parse_names(given[name]) for name in _NAMES}
        for name, kind in _RANGES.items():
            option = name.replace("_", "-")
            space[name] = tune_inputs.parse_range(option, given[name], kind)
        source = self.network if self.is_trained else self.make
        from keras_earlyexit import tuning

        with mendable():
            return tuning.ExitHyperModel(
                source,
                budget=given["budget"],
                space=tuning.SearchSpace(**space),
                calibration=self.splits["calibration"],
                pruning=self._pruning(),
            )

    def _pruning(self):
        from keras_earlyexit import tuning

        if not self.settings["prune"]:
            return None
        return tuning.Pruning(
            warmup=max(3, self.settings["epochs"] // 3),
            budget=self.settings["budget"],
        )

    @functools.cached_property
    def study(self):
        """The `SharedStudy` of Optuna in its database."""
        import optuna

        from keras_earlyexit.tuning import optuna_study

        # What it would tell is told already.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with _of_a_database():
            return optuna_study.SharedStudy(
                self.settings["storage"], self.settings["study"]
            )

    def check(self):
        """Reads everything, so that nothing is wrong with it later."""
        from keras_earlyexit import surgery
        from keras_earlyexit.checks import check_data
        from keras_earlyexit.tasks import infer_head

        self.hypermodel  # noqa: B018
        network = self.network
        with mendable():
            head = infer_head(network, surgery.trace(network), None)
            for x, y in self.splits.values():
                samples.check_fit(network, x)
                check_data(head, x, y)

    def run(self, on_end=None):
        """Runs trials until there are enough, or hands them out as a chief."""
        # The tuners print, where JSON may be expected.
        with contextlib.redirect_stdout(sys.stderr):
            if self.settings["storage"] is not None:
                self._run_study(on_end)
            else:
                self._run_tuner(on_end)

    def _run_tuner(self, on_end):
        from keras_earlyexit.tuning.tuners import make_tuner

        given = self.settings
        tuner = make_tuner(
            given["tuner"],
            self.hypermodel,
            self.folder,
            trials=self.trials,
            epochs=given["epochs"],
            seed=given["seed"],
            on_end=on_end,
        )
        tuner.search(
            *self.splits["train"],
            validation_data=self.splits["validation"],
            epochs=given["epochs"],
            batch_size=given["batch_size"],
            verbose=0,
        )

    def _run_study(self, on_end):
        from keras_earlyexit.tuning import optuna_trials

        given = self.settings
        objective = optuna_trials.OptunaObjective(
            self.hypermodel,
            self.folder,
            *self.splits["train"],
            validation_data=self.splits["validation"],
            epochs=given["epochs"],
            batch_size=given["batch_size"],
            verbose=0,
        )
        self.study.run(objective, self.trials, on_end, tell=print_error)

    def run_crew(self, workers, listen, progress):
        """Runs a chief and workers as processes, until there are enough.

        Args:
            workers: How many workers on this machine.
            listen: Address for workers of other machines, or `None`.
            progress: Called now and then, see `Crew.run`.
        """
        from keras_earlyexit.tuning import crew

        address = ("127.0.0.1", crew.free_port())
        if listen is not None:
            address = parse_address("listen", listen)
            print_error(
                f"listening at {listen}, in plain text and to anybody: only "
                "for a network that you trust"
            )
        names = [f"worker-{k}" for k in range(workers)]
        # Of a study in a database nobody is the chief.
        has_chief = self.settings["storage"] is None
        made = self._crew(names, address, has_chief=has_chief)
        self._run(made, progress, wait_for_chief=listen is not None)

    def help(self, join, workers):
        """Runs workers for the search of another machine, until it ends."""
        name = socket.gethostname().replace("chief", "host")
        names = [f"{name}-{k}" for k in range(workers)]
        address = parse_address("join", join)
        self._run(self._crew(names, address, has_chief=False, joins=True))

    def _crew(self, names, address, **options):
        from keras_earlyexit.tuning import crew

        return crew.Crew(
            crew.this_command(self._arguments()),
            names,
            address,
            self.folder / "logs",
            tell=print_error,
            **options,
        )

    def _run(self, made, *arguments, **options):
        from keras_earlyexit.tuning import crew

        try:
            made.run(*arguments, **options)
        except crew.CrewError as error:
            raise CommandError(str(error), ExitCode.FAILED) from error

    def _arguments(self):
        """What says the same on the command line."""
        given = dict(self.settings, trials=self.trials, output=self.folder)
        if self.data_dir is not None:
            given["data_dir"] = self.data_dir
        prune = given.pop("prune")
        found = ["tune", "--prune" if prune else "--no-prune"]
        for name, value in given.items():
            if value is not None:
                found += [f"--{name.replace('_', '-')}", str(value)]
        return found


@contextlib.contextmanager
def _of_a_database():
    """Inside, the database is the user's, and so are its errors."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (ImportError, SQLAlchemyError) as error:
        raise CommandError(
            "Expected --storage to be the URL of a database, such as "
            f"sqlite:///search.db. It cannot be opened: {error}",
            ExitCode.INPUT,
        ) from error


def parse_address(option, text):
    """Host and port from text such as `10.0.0.5:7000`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise CommandError(
            f"Expected --{option} to be HOST:PORT, such as 10.0.0.5:7000. "
            f"Received: {text!r}.",
            ExitCode.USAGE,
        )
    return host, int(port)
