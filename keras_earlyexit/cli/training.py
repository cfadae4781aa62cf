"""The training that the options of `keras-earlyexit train` describe."""

import numpy as np

import keras_earlyexit as ee
from keras_earlyexit.checks import check_data
from keras_earlyexit.cli import networks
from keras_earlyexit.cli.models import make_optimizer
from keras_earlyexit.cli.samples import check_fit, load
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    hushed,
    mendable,
)

_SAMPLES_SHOWN = 500


class Training:
    """Samples and a compiled model.

    Args:
        settings: Dict of the options by name.
        data_dir: Folder of the data sets of TFDS, or `None`.

    Raises:
        CommandError: If something does not fit.
    """

    def __init__(self, settings, data_dir):
        self._settings = settings
        with hushed():
            model = networks.make_alone(settings["model"])
        shape = None
        if settings["input_shape"] is not None:
            with mendable(ExitCode.USAGE):
                text = settings["input_shape"].split(",")
                shape = tuple(int(size) for size in text)
        samples = load(
            settings["data"],
            model=model,
            shape=shape,
            split=settings["split"],
            image_scale=settings["image_scale"],
            data_dir=data_dir,
        )
        self.training, self.validation = _parted(
            samples, settings["validation_split"], settings["seed"]
        )
        with hushed():
            self.model = networks.with_exits(
                model or networks.make_for(settings["model"], samples),
                *(settings["exits"], settings["placement"]),
                *(settings["block"], settings["policy"], settings["task"]),
            )
        check_fit(self.model, samples.x)
        with mendable():
            check_data(
                *(self.model.head, samples.x, samples.y),
                sample_weight=samples.sample_weight,
            )
        with mendable(ExitCode.USAGE):
            self.model.compile(
                make_optimizer(
                    settings["optimizer"], settings["learning_rate"]
                ),
                self._objective(),
            )

    def _objective(self):
        name, weight = (
            self._settings["objective"],
            self._settings["cost_weight"],
        )
        given = {} if weight is None else {"cost_weight": weight}
        objective = ee.objectives.get(name, **given)
        first = self._settings["first_epochs"]
        if first is None:
            # From scratch these can settle on never leaving.
            late = name.startswith("eenet_") and name != "eenet_v0"
            first = self._settings["epochs"] // 3 if late else 0
        if not first:
            return objective
        epochs = self._settings["epochs"]
        if first > epochs:
            raise CommandError(
                f"Expected --first-epochs of at most {epochs}, as many as "
                f"there are. Received: {first}.",
                ExitCode.USAGE,
            )
        return ee.objectives.TwoStage(objective, epochs=first, **given)

    def facts(self):
        """What is going to be done, as plain values."""
        model, settings = self.model, self._settings
        samples = _count(self.training)
        steps = samples and -(-samples // settings["batch_size"])
        early = len(model.exit_names) - 1
        thresholds = [float(x) for x in model.policy.thresholds(early)]
        objective = model.objective
        text = settings["objective"]
        if isinstance(objective, ee.objectives.TwoStage):
            first = objective.first.name
            text = f"{first} for {objective.epochs} epochs, then {text}"
        return {
            "model": model.name,
            "parameters": model.count_params(),
            "plain_macs": model.plain_macs,
            "samples": samples,
            "held_out": _count(self.validation),
            "steps": steps,
            "epochs": settings["epochs"],
            "batch_size": settings["batch_size"],
            "objective": text,
            "optimizer": type(model.optimizer).__name__,
            "policy": model.policy.name,
            "exits": [
                {
                    "name": name,
                    "layer": layer,
                    "threshold": threshold,
                    "relative_cost": float(cost),
                }
                for name, layer, threshold, cost in zip(
                    model.exit_names,
                    (*model.exit_layers, None),
                    (*thresholds, None),
                    model.relative_costs,
                    strict=True,
                )
            ],
        }

    def fit(self, callbacks, tensorboard, quiet):
        """Trains, and shows how it goes.

        Args:
            callbacks: Further callbacks.
            tensorboard: Folder, or `None`.
            quiet: Whether standard output is for something else.
        """
        from rich.console import Console

        console = Console(stderr=quiet)
        callbacks = [*callbacks, ee.callbacks.LiveTable(console)]
        validation = None
        if self.validation is not None:
            validation = tuple(
                part for part in self.validation[:3] if part is not None
            )
        if tensorboard is not None:
            shown = validation or self.training[:2]
            callbacks.append(
                ee.callbacks.TensorBoard(
                    tensorboard,
                    tuple(part[:_SAMPLES_SHOWN] for part in shown[:2])
                    if isinstance(shown[0], np.ndarray)
                    else None,
                )
            )
        with mendable():
            self.model.fit(
                self.training.x,
                self.training.y,
                sample_weight=self.training.sample_weight,
                batch_size=self._settings["batch_size"],
                epochs=self._settings["epochs"],
                validation_data=validation,
                callbacks=callbacks,
            )

    def figures(self):
        """What has come of it, measured on the samples that were held out."""
        facts = self.facts()
        metric, figures = "accuracy", None
        if self.validation is not None:
            seen = ee.calibration.observe(
                self.model, *self.validation[:2], verbose=0
            )
            early = len(self.model.exit_names) - 1
            thresholds = self.model.policy.thresholds(early)
            metric = seen.metric_name
            figures = {
                "routed": float(seen.metric(thresholds)),
                "mean_cost": seen.mean_cost(thresholds),
            }
            found = zip(
                facts["exits"],
                seen.exit_metrics(),
                seen.exit_shares(thresholds),
                strict=True,
            )
            for exit_, value, share in found:
                exit_ |= {"metric": float(value), "share": float(share)}
        return {"exits": facts["exits"], "metric": metric, "figures": figures}


def _parted(samples, share, seed):
    """Samples to train on, and to watch it on or `None`."""
    if samples.y is None or not isinstance(samples.x, np.ndarray):
        return samples, None
    order = np.random.default_rng(seed).permutation(len(samples.y))
    held_out = round(len(order) * share)
    if held_out == len(order):
        raise CommandError(
            f"Expected samples to train on. Received: {len(order)}, of which "
            f"{held_out} are held out.",
            ExitCode.INPUT,
        )

    def taken(rows):
        weight = samples.sample_weight
        return samples._replace(
            x=samples.x[rows],
            y=np.asarray(samples.y)[rows],
            sample_weight=None if weight is None else weight[rows],
        )

    training = taken(np.sort(order[held_out:]))
    return training, taken(np.sort(order[:held_out])) if held_out else None


def _count(samples):
    if samples is None:
        return 0
    try:
        return len(samples.x if samples.y is None else samples.y)
    except TypeError:
        return None
