"""What comes of `keras-earlyexit tune`: progress, model, pictures, table."""

import json
import shutil
import sys

from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    hushed,
    print_facts,
    print_json,
    print_table,
    print_text,
)

_STATIC = "static.json"
_MOST_ROWS = 12


class Progress:
    """A line for each trial that has ended.

    Args:
        folder: Folder of the search.
        trials: How many there will be, or `None` if nobody knows.
    """

    def __init__(self, folder, trials):
        self._folder = folder
        self._trials = trials
        self._told = set()

    def resume(self):
        """Takes the trials that are there for told."""
        self._told = {trial.id for trial in self._ended()}
        self._say(f"going on: {len(self._told)} trials have ended before")

    def __call__(self, trial_id=None):
        """Tells what is new; returns how many trials have ended."""
        ended = self._ended()
        best = None
        for trial in sorted(ended, key=lambda trial: trial.id in self._told):
            if trial.is_judged and (best is None or trial.score > best.score):
                best = trial
        for trial in ended:
            if trial.id not in self._told:
                self._told.add(trial.id)
                self._say(self._line(trial, best))
        return len(ended)

    def _ended(self):
        from keras_earlyexit import tuning

        trials = tuning.read_trials(self._folder)
        return [trial for trial in trials if trial.status != "running"]

    def _line(self, trial, best):
        total = "" if self._trials is None else f" of {self._trials}"
        count = f"{len(self._told):>3}{total}  trial {trial.id}"
        if not trial.is_judged:
            return f"{count}  failed: {trial.message}"
        places = ", ".join(trial.exit_layers)
        pruned = ", stopped early" if trial.status == "pruned" else ""
        return (
            f"{count}  {shown(trial)} for {trial.mean_cost:.1%} of the cost, "
            f"exits behind {places}{pruned} ({trial.seconds:.0f} s); best: "
            f"{shown(best)} for {best.mean_cost:.1%}"
        )

    def _say(self, text):
        print(text, file=sys.stderr, flush=True)


def shown(trial, value=None):
    """The metric of a trial as text."""
    value = trial.metric if value is None else value
    if trial.metric_name == "accuracy":
        return f"{value:.1%}"
    return f"error {value:.4g}"


def finish(search, tensorboard=None):
    """Saves the best model and the pictures; returns plain facts.

    Args:
        search: `tune_search.Search`.
        tensorboard: Folder for TensorBoard, or `None`.
    """
    import keras

    from keras_earlyexit import plots, tuning

    folder = search.folder
    trials = tuning.read_trials(folder)
    best = tuning.best_of(trials)
    if best is None:
        reasons = [trial.message for trial in trials if trial.message]
        raise CommandError(
            f"None of {len(trials)} trials could be judged. The last one: "
            f"{reasons[-1] if reasons else 'was not finished'}",
            ExitCode.INPUT,
        )
    shutil.copyfile(best.model_path, folder / "best.keras")
    with hushed():
        model = keras.models.load_model(folder / "best.keras")
    from keras_earlyexit.calibration import observe

    seen = observe(model, *search.splits["test"], verbose=0)
    thresholds = model.policy.threshold
    static = _static(search)
    budget = search.settings["budget"]
    files = {
        "model": folder / "best.keras",
        "front": folder / "front.png",
        "trials": folder / "trials.png",
        "places": folder / "places.png",
        "network": folder / "network.png",
    }
    tuning.plot_front(
        trials,
        references={} if static is None else {"without exits": (1.0, static)},
        budget=budget,
        path=files["front"],
    )
    tuning.plot_trials(trials, files["trials"])
    tuning.plot_places(trials, files["places"])
    plots.network(model, seen, path=files["network"])
    if tensorboard is not None:
        tuning.write_hparams(trials, tensorboard)
        files["tensorboard"] = tensorboard
    return {
        "folder": str(folder),
        "budget": budget,
        "best": _facts(best),
        "test": {
            best.metric_name: seen.metric(thresholds),
            "mean_cost": seen.mean_cost(thresholds),
            "samples": len(seen),
        },
        "without_exits": static,
        "trials": [_facts(trial) for trial in trials],
        "front": [trial.id for trial in _front(trials)],
        "files": {name: str(path) for name, path in files.items()},
    }


def show(facts, as_json):
    """Prints what `finish` has found."""
    if as_json:
        print_json(facts)
        return
    by_id = {trial["id"]: trial for trial in facts["trials"]}
    front = [by_id[name] for name in facts["front"]]
    best, test = facts["best"], facts["test"]
    is_error = "mean_absolute_error" in test
    label = "error" if is_error else "accuracy"

    def figure(value):
        return f"{value:.4g}" if is_error else f"{value:.1%}"

    rows = [
        (
            f"{'* ' if trial['id'] == best['id'] else ''}{trial['id']}",
            f"{trial['mean_cost']:.1%}",
            figure(trial["metric"]),
            ", ".join(trial["exit_layers"]),
            str(trial["values"].get("objective", "")),
        )
        for trial in front[:_MOST_ROWS]
    ]
    statuses = [trial["status"] for trial in facts["trials"]]
    counts = ", ".join(
        f"{statuses.count(status)} {status}"
        for status in ("completed", "pruned", "failed", "running")
        if status in statuses
    )
    print_table(
        f"Trials that no other beats, on the validation split ({counts})",
        ("trial", ">cost", f">{label}", "exits behind", "objective"),
        rows,
    )
    text = (
        f"Best: trial {best['id']}. On {test['samples']} test samples: "
        f"{label} {figure(test[best['metric_name']])} for "
        f"{test['mean_cost']:.1%} of the cost"
    )
    if facts["without_exits"] is not None:
        text += (
            f"; without exits {figure(facts['without_exits'])} on the "
            "validation split"
        )
    print_text(f"{text}.")
    print_text(f"Model and pictures: {facts['folder']}")


def _facts(trial):
    names = (
        "id status values message exit_layers relative_costs metric_name "
        "metric mean_cost final_metric thresholds score seconds"
    )
    return {name: getattr(trial, name) for name in names.split()}


def _front(trials):
    from keras_earlyexit import tuning

    judged = [trial for trial in trials if trial.is_judged]
    rows = tuning.pareto_front(
        [trial.mean_cost for trial in judged],
        [trial.worth for trial in judged],
    )
    return [judged[row] for row in rows]


def _static(search):
    """Accuracy of the network without exits, trained as long as a trial.

    `None` where it is no classifier. Trained once for a folder.
    """
    from keras_earlyexit import json_values

    path = search.folder / _STATIC
    if path.exists():
        return json.loads(json_values.read(path))
    value = _train_static(search)
    json_values.write(path, json.dumps(value))
    return value


def _train_static(search):
    import keras

    from keras_earlyexit import surgery
    from keras_earlyexit.tasks import infer_head

    network = search.network
    head = infer_head(network, surgery.trace(network), None)
    if head.task != "classification":
        return None
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    copy.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(head.from_logits),
        metrics=["sparse_categorical_accuracy"],
    )
    # A network from a file is trained already, or so it was meant.
    if not search.is_trained:
        copy.fit(
            *search.splits["train"],
            epochs=search.settings["epochs"],
            batch_size=search.settings["batch_size"],
            verbose=0,
        )
    result = copy.evaluate(
        *search.splits["validation"], verbose=0, return_dict=True
    )
    return float(result["sparse_categorical_accuracy"])


def show_plan(search, as_json):
    """Says what a search would do.

    Args:
        search: A `Search` that has been checked.
        as_json: Whether to say it to another program.
    """
    sizes = {name: len(y) for name, (_, y) in search.splits.items()}
    facts = {
        "folder": str(search.folder),
        "network": search.network.name,
        "trials": search.trials,
        "samples": sizes,
        **search.settings,
    }
    if as_json:
        print_json(facts)
        return
    shown = {
        name.replace("_", " "): str(value)
        for name, value in facts.items()
        if value is not None
    }
    shown["samples"] = ", ".join(f"{x}: {n:,}" for x, n in sizes.items())
    print_facts("Would search", shown)
