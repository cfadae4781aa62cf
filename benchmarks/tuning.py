"""Searched exits against fixed placements, and how fast the search is.

A ResNet-20 is trained once; then, for each seed, exit blocks at all block
ends on the frozen network. Configurations are chosen on one part of held-out
images and measured on the test split. The chosen one is the cheapest whose
accuracy on the search images is at most `--loss` below the plain network's.
What it is compared with: `pareto`, `fine`, `linear` and `golden` with 2, 3
and 4 of the same exits and one shared threshold, each at the test accuracy
that the chosen one has (their threshold is looked up on the test split, which
is in their favour). With several `--blocks` the search chooses one at each
place, and fixed exits have all the same: the best for each rule, or the first.

    python benchmarks/tuning.py --directory /tmp/tuning
    python benchmarks/tuning.py --directory /tmp/tuning --blocks pool conv
    python benchmarks/tuning.py --only speed

An interrupted run goes on with the same `--directory`.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _shared import clock, write_report

RULES = ("pareto", "fine", "linear", "golden")
COUNTS = (2, 3, 4)
BATCH = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("speed", "accuracy"))
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--train", default="train[:15000]")
    parser.add_argument("--held-out", default="train[40000:]")
    parser.add_argument("--search", type=int, default=5000)
    parser.add_argument("--test", default="test")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--exit-samples", type=int, default=15000)
    parser.add_argument("--exit-epochs", type=int, default=3)
    parser.add_argument(
        "--trained",
        type=pathlib.Path,
        help="a kept model with candidates, of all --blocks",
    )
    parser.add_argument(
        "--blocks", nargs="+", default=["pool"], help="the default one first"
    )
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument(
        "--max-exits", type=int, default=4, help="with their own thresholds"
    )
    parser.add_argument("--directory", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    rows = []
    if options.only != "accuracy":
        rows += speed()
    if options.only != "speed":
        rows += accuracy(options)
    write_report(
        options.output,
        rows,
        **{
            name: str(value)
            for name, value in vars(options).items()
            if name != "output"
        },
    )


def speed():
    """Configurations a second, and how much faster than one by one."""
    rows = []
    for candidates in (12, 16):
        one, levels = made_up(10_000, candidates)
        seconds, work, count = timed_search(one, levels)
        row = {
            "candidates": candidates,
            "thresholds": len(levels),
            "samples": one.num_samples,
            "configurations": count,
            "seconds": seconds,
            "cpu_seconds": work,
            "configurations_per_second": count / seconds,
        }
        if candidates == 12:
            # In processor time, which other programs hardly change.
            each = one_by_one(one, levels)
            row["one_by_one_cpu_seconds"] = each * count
            row["times_faster"] = each * count / work
        rows.append(row)
        shown(row)
    return rows


def made_up(samples, candidates):
    """Scores of no network: time does not depend on what they say."""
    from keras_earlyexit.tuning import problem

    rng = np.random.default_rng(0)
    ease = rng.normal(size=(samples, 1))
    scores = ease + 0.5 * rng.normal(size=(samples, candidates))
    chance = 1 / (1 + np.exp(-1 - ease - np.linspace(-1, 1, candidates + 1)))
    prefix = np.linspace(0.1, 0.9, candidates)
    one = problem.Problem(
        scores.astype("float32"),
        (rng.random(chance.shape) < chance).astype("float64"),
        np.arange(candidates),
        (problem.Costing(prefix, np.full(candidates, 0.01), 1.0),),
    )
    return one, problem.shared_levels(one.scores, 100)


def timed_search(one, levels):
    from keras_earlyexit.tuning import shared

    found = []
    start = time.process_time()
    seconds = clock(lambda: found.append(shared.search(one, levels)))
    return seconds, time.process_time() - start, found[0][1]


def one_by_one(one, levels, subsets=40):
    """CPU seconds for a configuration, all thresholds of a subset at once."""
    rng = np.random.default_rng(0)
    start = time.process_time()
    for _ in range(subsets):
        chosen = np.flatnonzero(rng.random(one.num_candidates) < 0.5)
        curve(one, chosen, levels)
    return (time.process_time() - start) / (subsets * len(levels))


def curve(one, chosen, levels):
    """Cost and accuracy of some exits at each shared threshold."""
    costing = one.costings[0]
    blocks = np.cumsum(costing.blocks[chosen])
    costs = np.append(costing.prefix[chosen] + blocks, costing.final)
    costs[-1] += blocks[-1] if len(chosen) else 0.0
    values = one.values[:, [*chosen, -1]]
    taken = np.full((one.num_samples, len(levels)), len(chosen))
    for k in reversed(range(len(chosen))):
        taken[one.scores[:, chosen[k], None] > levels] = k
    return (
        costs[taken].mean(axis=0),
        np.take_along_axis(values, taken, axis=1).mean(axis=0),
    )


def accuracy(options):
    import keras

    import keras_earlyexit as ee

    given = options.trained is not None
    plain = None if given else backbone(options)
    data = {
        split: load(options, split)
        for split in (options.train, options.held_out, options.test)
        if not given or split != options.train
    }
    rows = []
    for seed in range(options.seeds):
        keras.utils.set_random_seed(seed)
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(data[options.held_out][1]))
        searched = [
            part[order[: options.search]] for part in data[options.held_out]
        ]
        if given:
            trained = keras.models.load_model(options.trained)
        else:
            x, y = data[options.train]
            own = rng.permutation(len(y))[: options.exit_samples]
            trained = ee.tuning.train_candidates(
                plain,
                x[own],
                y[own],
                block=options.blocks,
                epochs=options.exit_epochs,
                batch_size=BATCH,
                optimizer=keras.optimizers.Adam(5e-3),
                directory=options.directory,
                verbose=2,
            )
        rows += compared(options, trained, searched, data[options.test], seed)
    for thresholds in ("shared", "own"):
        for blocks, count in against(options):
            kinds = " ".join(options.blocks[:blocks])
            found = [
                row["saved"]
                for row in rows
                if (row["thresholds"], row["fixed"], row["fixed_of"])
                == (thresholds, count, kinds)
            ]
            exits = f"{count} exits" if count else "2, 3 or 4 exits"
            print(
                f"{thresholds}: {np.mean(found):.1%} less than the best fixed "
                f"placement of {exits}, {kinds.replace(' ', ' or ')} (seeds: "
                f"{', '.join(f'{one:.1%}' for one in found)})"
            )
    return rows


def backbone(options):
    """The plain network, trained or kept from before."""
    import keras

    import keras_earlyexit as ee

    file = None
    callbacks = []
    if options.directory is not None:
        options.directory.mkdir(parents=True, exist_ok=True)
        file = options.directory / "backbone.keras"
        if file.exists():
            return keras.models.load_model(file)
        folder = options.directory / "backbone"
        callbacks.append(keras.callbacks.BackupAndRestore(str(folder)))
    x, y = ee.datasets.load(options.data, options.train)
    keras.utils.set_random_seed(0)
    plain = ee.backbones.resnet_cifar(options.depth, x.shape[1:], 10)
    # The rate ends at half of its start: more epochs could follow.
    steps = 2 * options.epochs * -(-len(y) // BATCH)
    plain.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(2e-3, steps)
        ),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    batches = ee.datasets.pipeline(
        (x, y), batch_size=BATCH, recipe=options.data, training=True
    )
    plain.fit(batches, epochs=options.epochs, verbose=2, callbacks=callbacks)
    if file is not None:
        plain.save(file)
    return plain


def load(options, split):
    import keras_earlyexit as ee

    x, y = ee.datasets.load(options.data, split)
    return ee.datasets.normalize(options.data, x), y


def compared(options, trained, searched, test, seed):
    """A row for each way to search and each count of fixed exits."""
    import dataclasses

    import keras_earlyexit as ee
    from keras_earlyexit.tuning import problem

    shared = search(options, trained, searched)
    wanted = shared.plain.accuracy - options.loss
    found = {"shared": shared.choose(min_accuracy=wanted)}
    own = search(
        options,
        trained,
        searched,
        thresholds="own",
        max_exits=options.max_exits,
        min_accuracy=wanted,
        time_limit=options.time_limit,
    )
    found["own"] = own.best
    seen = ee.calibration.observe(trained, *test, verbose=0)
    one = dataclasses.replace(
        shared.problem, scores=seen.scores, values=seen.sample_metrics
    )
    print("exits alone, test:", seen.exit_accuracies().round(4).tolist())
    places = fixed_places(trained, len(options.blocks))
    rows = []
    for thresholds, point in found.items():
        there = problem.evaluate(one, point.candidates, point.thresholds)
        fixed = {
            key: (cost_at(one, chosen, there.value), key)
            for key, chosen in places.items()
        }
        for blocks, count in against(options):
            cost, (rule, _, block) = min(
                value
                for (_, number, block), value in fixed.items()
                if count in (None, number) and block < blocks
            )
            row = {
                "seed": seed,
                "thresholds": thresholds,
                "exits": len(point.exits),
                "places": " ".join(point.exits),
                "blocks": " ".join(
                    options.blocks[i % len(options.blocks)]
                    for i in point.candidates
                ),
                "search_seconds": own.seconds,
                "gap": own.gap,
                "test_accuracy": there.value,
                "plain_accuracy": float(seen.exit_accuracies()[-1]),
                "test_cost": there.cost,
                "fixed": count,
                "fixed_of": " ".join(options.blocks[:blocks]),
                "fixed_rule": rule,
                "fixed_block": options.blocks[block],
                "fixed_cost": cost,
                "saved": 1 - there.cost / cost,
            }
            rows.append(row)
            shown(row)
    return rows


def against(options):
    """What is compared with: pairs of a number of blocks, and of exits."""
    numbers = sorted({1, len(options.blocks)})
    return [(blocks, count) for blocks in numbers for count in (None, *COUNTS)]


def search(options, trained, searched, **more):
    import keras_earlyexit as ee

    return ee.tuning.search_exits(
        trained, *searched, directory=options.directory, **more
    )


def cost_at(one, chosen, accuracy):
    """Test cost of fixed exits where they have some test accuracy."""
    levels = np.unique(np.append(one.scores[:, chosen], [-np.inf, np.inf]))
    levels = levels[:: max(1, len(levels) // 400)]
    costs, values = curve(one, chosen, np.append(levels, np.inf))
    # Cheap and bad first; the cost at which the accuracy is reached for good.
    order = np.argsort(costs, kind="stable")
    costs, values = costs[order], values[order]
    below = np.flatnonzero(values < accuracy)
    if not len(below):
        return float(costs[0])
    last = below[-1]
    if last + 1 == len(costs):
        # Never as good: only the whole network is.
        return float(costs[-1])
    two = slice(last, last + 2)
    return float(np.interp(accuracy, values[two], costs[two]))


def fixed_places(trained, blocks):
    """Numbers of the candidates that each rule takes, with each block."""
    import keras_earlyexit as ee

    graph = ee.surgery.trace(ee.strip_exits(trained))
    # Candidates stand by their places, and at each by their blocks.
    return {
        (rule, count, block): np.array(
            [
                trained.exit_layers.index(place.name) + block
                for place in ee.placement.place(graph, count, rule)
            ]
        )
        for rule in RULES
        for count in COUNTS
        for block in range(blocks)
    }


def shown(row):
    print(
        ", ".join(
            f"{key} {value:.4g}"
            if isinstance(value, float)
            else f"{key} {value}"
            for key, value in row.items()
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
