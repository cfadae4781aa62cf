"""`keras-earlyexit info`: what a saved model is and costs."""

from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import load_model
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    print_facts,
    print_json,
    print_table,
    print_text,
)


def info(
    model: options.Model = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="List every legal cut and every layer."),
    ] = False,
    as_json: options.Json = False,
):
    """Show a model's size and cost, its exits, and where exits can go."""
    facts = describe_model(model)
    if as_json:
        print_json(facts)
    else:
        _print_model(facts, every)
    return ExitCode.OK


def describe_model(path):
    """Collects what `info` shows about a saved model, as plain values."""
    model = load_model(path)
    import keras_earlyexit as ee

    has_exits = isinstance(model, ee.EarlyExitModel)
    net = model.net if has_exits else model
    facts = {
        "file": str(path),
        "name": model.name,
        "class": type(model).__name__,
        "inputs": _input_shapes(net),
        "outputs": _output_shapes(net),
        "layers": len(net.layers),
    }
    try:
        table = ee.cost.count(model)
    except (TypeError, ValueError) as error:
        raise CommandError(
            f"The cost of '{path}' is unknown. {error}", ExitCode.INPUT
        ) from error
    for name in ("params", "macs", "elementwise_ops", "reliable", "uncounted"):
        facts[name] = getattr(table, name)
    facts["exits"] = _describe_exits(model) if has_exits else None
    try:
        plain = ee.strip_exits(model) if has_exits else model
        places = ee.placement.candidates(plain)
        reason = "nowhere but at its end is exactly one tensor alive."
    except (TypeError, ValueError) as error:
        places, reason = (), str(error)
    facts["no_legal_cuts"] = None if places else reason
    facts["legal_cuts"] = [
        {
            "name": place.name,
            "macs": place.macs,
            "fraction": place.fraction,
            "block_end": place.is_block_end,
        }
        for place in places
    ]
    facts["rows"] = [
        {
            "name": row.name,
            "kind": row.kind,
            "macs": row.macs,
            "params": row.params,
            "output_bytes": row.output_bytes,
        }
        for row in table.rows
    ]
    return facts


def _describe_exits(model):
    early = len(model.exit_names) - 1
    thresholds = [float(x) for x in model.policy.thresholds(early)]
    return {
        "policy": model.policy.name,
        "cost_convention": (
            model.cost
            if model.measured_cost is None
            else model.measured_cost.unit
        ),
        "plain_macs": model.plain_macs,
        "places": [
            {
                "name": name,
                "layer": layer,
                "relative_cost": float(cost),
                "threshold": threshold,
            }
            for name, layer, cost, threshold in zip(
                model.exit_names,
                (*model.exit_layers, None),
                model.relative_costs,
                (*thresholds, None),
                strict=True,
            )
        ],
    }


def _input_shapes(net):
    return {x.name: list(x.shape) for x in getattr(net, "inputs", None) or ()}


def _output_shapes(net):
    output = getattr(net, "output", None)
    if not isinstance(output, dict):
        outputs = getattr(net, "outputs", None) or ()
        names = getattr(net, "output_names", [x.name for x in outputs])
        output = dict(zip(names, outputs, strict=True))
    return {name: list(tensor.shape) for name, tensor in output.items()}


def _print_model(facts, every):
    print_facts(
        f"{facts['class']} {facts['name']!r}",
        {
            "file": facts["file"],
            "inputs": _shape_text(facts["inputs"]),
            "outputs": _shape_text(facts["outputs"]),
            "layers": f"{facts['layers']:,}",
            "parameters": f"{facts['params']:,}",
            "MACs": f"{facts['macs']:,}",
            "elementwise ops": f"{facts['elementwise_ops']:,}",
            "not counted": ", ".join(facts["uncounted"]) or "-",
        },
    )
    if facts["exits"]:
        exits = facts["exits"]
        print_table(
            f"Exits, policy {exits['policy']!r}",
            ("exit", "behind", ">relative cost", ">threshold"),
            [
                (
                    place["name"],
                    place["layer"] or "the whole model",
                    f"{place['relative_cost']:.3f}",
                    "-"
                    if place["threshold"] is None
                    else f"{place['threshold']:.4g}",
                )
                for place in exits["places"]
            ],
        )
    if facts["no_legal_cuts"]:
        print_text(f"No legal cut: {facts['no_legal_cuts']}")
        return
    shown = [cut for cut in facts["legal_cuts"] if every or cut["block_end"]]
    print_table(
        "Legal cuts" if every else "Block ends, where exits are placed",
        ("behind", ">MACs up to there", ">share"),
        [
            (cut["name"], f"{cut['macs']:,}", f"{cut['fraction']:.1%}")
            for cut in shown
        ],
    )
    if every:
        print_table(
            "Layers and operations",
            ("name", "kind", ">MACs", ">parameters", ">output bytes"),
            [
                (
                    row["name"],
                    row["kind"],
                    f"{row['macs']:,}",
                    f"{row['params']:,}",
                    f"{row['output_bytes']:,}",
                )
                for row in facts["rows"]
            ],
        )
    else:
        total = len(facts["legal_cuts"])
        print_text(f"With --all: the legal cuts ({total}) and the layers.")


def _shape_text(shapes):
    return "\n".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
