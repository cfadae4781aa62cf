"""Multiply-adds, parameters and bytes of a model, call by call.

`count(model)` gives a `CostTable`, `call_cost(call)` the cost of one call.
`macs.py` has the formula of each kind of layer, `opening.py` takes layers
without a formula apart; here are the conventions that weigh the kinds of work,
and the tables. What a model takes on a device is measured by `profile`.

Why not a profiler: TensorFlow's is bound to one backend, and it counts a
recurrent layer's step once and attention only in part.

What cannot be counted (TensorFlow, JAX or PyTorch functions inside a layer, a
layer that multiplies its own weight from the left, shapes that are not known)
is named in `uncounted`, never guessed.
"""

import contextlib
import dataclasses
import math
import re
import warnings

import keras

from keras_earlyexit import call_graph, surgery
from keras_earlyexit.cost import macs, opening

# How much one unit of each kind of work adds to the MACs.
CONVENTIONS = {
    "macs": {"macs": 1, "attention": 1},
    "eenets": {
        "macs": 1,
        "conv_bias": 1,
        "batch_norm": 2,
        "relu": 1,
        "pooled": 1,
    },
}


@dataclasses.dataclass(frozen=True)
class CallCost:
    """What one call costs for one sample.

    `elementwise_ops` counts output elements written by a bias, normalisation,
    activation, merge or any other elementwise step, and input elements read
    by pooling and reductions. `uncounted` names what could not be counted:
    the call itself, or `block/inner` for a layer inside it.
    """

    macs: int
    elementwise_ops: int
    uncounted: tuple = ()

    @property
    def reliable(self):
        return not self.uncounted


@dataclasses.dataclass(frozen=True)
class CostRow:
    """One call in a `CostTable`; `kind` is the class of its operation."""

    name: str
    macs: int
    params: int
    output_bytes: int
    elementwise_ops: int
    kind: str
    uncounted: tuple = ()

    @property
    def reliable(self):
        return not self.uncounted


@dataclasses.dataclass(frozen=True, repr=False)
class CostTable:
    """The cost of a model for one sample, one row per call.

    `macs`, `params` and `elementwise_ops` are sums over the rows. A table is
    `reliable` if everything could be counted; otherwise `uncounted` says what
    is missing from the sums. `str(table)` is an aligned text table.
    """

    rows: tuple
    convention: str = "macs"

    @property
    def macs(self):
        return sum(row.macs for row in self.rows)

    @property
    def params(self):
        return sum(row.params for row in self.rows)

    @property
    def elementwise_ops(self):
        return sum(row.elementwise_ops for row in self.rows)

    @property
    def uncounted(self):
        return tuple(name for row in self.rows for name in row.uncounted)

    @property
    def reliable(self):
        return not self.uncounted

    def __repr__(self):
        return (
            f"<CostTable macs={self.macs} params={self.params} "
            f"rows={len(self.rows)} reliable={self.reliable}>"
        )

    def __str__(self):
        header = ("call", "kind", "MACs", "params", "output", "elementwise")
        lines = [_cells(row) for row in self.rows]
        count = f"{len(self.rows)} calls"
        total = _cells(
            CostRow(
                "total", self.macs, self.params, 0, self.elementwise_ops, count
            )
        )
        # The bytes of all outputs are never in memory, or sent, together.
        lines = [header, *lines, (*total[:4], "", total[5])]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        text = [_aligned(line, widths) for line in lines]
        text = [text[0], rule, *text[1:-1], rule, text[-1]]
        if self.uncounted:
            text.append("? not counted: " + ", ".join(self.uncounted))
        return "\n".join(text)


def count(model, convention="macs"):
    """Counts the multiply-adds, parameters and output bytes of a model.

    Every figure is for one sample. Nested functional and `Sequential` models
    are opened up into rows; any other layer that is made of layers is one
    row. A layer that is called twice has two rows and counts its parameters
    in the first. Nothing is computed, and no weight or state is changed.

    Conventions:

    - `macs`: multiply-adds of convolutions, dense and einsum-dense layers,
      attention products and recurrent kernels. Everything else is counted in
      `elementwise_ops`. `params` are all weights, as in `model.count_params()`.
    - `eenets`: the counting of the EENets authors. Convolutions with their
      bias, dense layers without it, twice the elements of batch norm, the
      elements of ReLU, and the input elements of pooling; nothing else.
      Attention products have no place in it and make a row unreliable.
      `params` are the weights that can be trained: no moving statistics.

    Args:
        model: A functional or `Sequential` model, an `EarlyExitModel`, or a
            built subclassed model or layer, which is counted from the shapes
            that it was built with.
        convention: `"macs"` or `"eenets"`.

    Returns:
        A `CostTable`.

    Raises:
        TypeError: If `model` is no Keras layer or model.
        ValueError: If `model` has no input shape yet, or if `convention` is
            not known.

    Example:

    ```python
    import keras

    import keras_earlyexit as ee

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    table = ee.cost.count(keras.Model(inputs, outputs))
    print(table)
    print(table.macs, table.params, table.reliable)
    ```
    """
    _check_convention(convention)
    if hasattr(model, "exit_names"):
        model = model.net
    if not isinstance(model, keras.Layer):
        raise TypeError(
            "Expected a Keras model or layer. "
            f"Received: model={model!r} (of type {type(model).__name__}). "
            "Pass a `keras.Model`, or one of its layers."
        )
    calls, batch_size = _calls(model)
    seen = set()
    rows = [_row(call, convention, batch_size, seen) for call in calls]
    rest = _new_params(model, convention, seen)
    if rest:
        name, kind = model.name, type(model).__name__
        rows.append(CostRow(name, 0, rest, 0, 0, kind))
    return CostTable(rows=tuple(rows), convention=convention)


def call_cost(call, convention="macs"):
    """Counts one call, as in `count`.

    A batch axis of unknown size counts as one; a call on tensors with a fixed
    batch size costs as much as that many samples.

    Args:
        call: A `Call` of `surgery.trace(model).calls`, or of `inner_calls`.
        convention: `"macs"` or `"eenets"`.

    Returns:
        A `CallCost`.

    Raises:
        ValueError: If `convention` is not known.

    Example:

    ```python
    for call in ee.surgery.trace(model).calls:
        print(call.name, ee.cost.call_cost(call).macs)
    ```
    """
    weights = CONVENTIONS[_check_convention(convention)]
    work, uncounted = _work(call)
    if work["attention"] and "attention" not in weights:
        uncounted = uncounted or (call.name,)
    elementwise = set(work) - {"macs", "attention"}
    return CallCost(
        macs=sum(work[kind] * weight for kind, weight in weights.items()),
        elementwise_ops=sum(work[kind] for kind in elementwise),
        uncounted=uncounted,
    )


def inner_calls(call):
    """Lists the calls that a call of a composite layer is made of.

    Args:
        call: A `Call`.

    Returns:
        A tuple of `Call` on tensors of batch size 1, in an order in which
        they can run: one step's calls for a recurrent or time-distributed
        layer. Empty for an operation that has a formula of its own, and for a
        layer that cannot be opened.
    """
    if macs.formula(call.operation) is not None or opening.has_unknown_shape(
        call
    ):
        return ()
    _, calls = opening.parts(call)
    return calls or ()


def _check_convention(convention):
    if convention not in CONVENTIONS:
        raise ValueError(
            f"`convention` must be one of {', '.join(CONVENTIONS)}. "
            f"Received: convention={convention!r} "
            f"(of type {type(convention).__name__}). Use 'macs', or 'eenets' "
            "to compare with the EENets authors' figures."
        )
    return convention


def _calls(model):
    """The calls of a model, and the batch size that their shapes carry."""
    if isinstance(model, (keras.Function, keras.Sequential)):
        with warnings.catch_warnings(), contextlib.suppress(TypeError):
            # That a nested model stays closed matters to exits only.
            warnings.filterwarnings("ignore", message="Nested models")
            graph = surgery.trace(model)
            batches = {x.shape[:1] for x in keras.tree.flatten(graph.inputs)}
            (batch_size,) = batches.pop() if len(batches) == 1 else (None,)
            return opening.complete(graph.calls), batch_size or 1
    call = _call_as_built(model)
    if isinstance(model, keras.Model):
        return inner_calls(call) or (call,), 1
    return (call,), 1


def _call_as_built(layer):
    """A call of a built layer on the shapes that it was built with."""
    config = (layer.get_build_config() if layer.built else None) or {}
    shapes = config.get("shapes_dict") or {"": config.get("input_shape")}
    if isinstance(layer, keras.Function):
        shapes = {"": keras.tree.map_structure(lambda x: x.shape, layer.input)}
    if None in shapes.values():
        raise ValueError(
            "Expected a model or layer whose input shape is known. Received: "
            f"{layer!r} (of type {type(layer).__name__}), which is not built. "
            "Call it once on data, or call `build(input_shape)` first."
        )
    tensors = [
        keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor((1, *shape[1:])), shape
        )
        for shape in shapes.values()
    ]
    outputs = keras.tree.flatten(layer.compute_output_spec(*tensors))
    return call_graph.Call(layer, tuple(tensors), {}, tuple(outputs))


def _row(call, convention, batch_size, seen):
    cost = call_cost(call, convention)
    known = not opening.has_unknown_shape(call)
    size = sum(map(_bytes, call.outputs)) if known else 0
    return CostRow(
        name=call.name,
        macs=cost.macs // batch_size,
        params=_new_params(call.operation, convention, seen),
        output_bytes=size // batch_size,
        elementwise_ops=cost.elementwise_ops // batch_size,
        kind=type(call.operation).__name__,
        uncounted=cost.uncounted,
    )


def _new_params(operation, convention, seen):
    """Counts the weights of an operation that are not in `seen`, adds them."""
    kind = "trainable_weights" if convention == "eenets" else "weights"
    weights = [x for x in getattr(operation, kind, ()) if id(x) not in seen]
    seen.update(map(id, weights))
    return sum(math.prod(weight.shape) for weight in weights)


def _bytes(tensor):
    bits = re.search(r"\d+", tensor.dtype)
    size = int(bits.group()) / 8 if bits else int(tensor.dtype == "bool")
    return math.ceil(macs.elements(tensor.shape) * size)


def _work(call):
    """The work of a call by kind, and the names of what is missing in it."""
    if opening.has_unknown_shape(call):
        return macs.Work(), (call.name,)
    formula = macs.formula(call.operation)
    if formula is not None:
        work = formula(call)
        return (macs.Work(), (call.name,)) if work is None else (work, ())
    times, calls = opening.parts(call)
    if calls is None:
        return macs.Work(), (call.name,)
    total, uncounted = macs.Work(), ()
    for inner in calls:
        work, names = _work(inner)
        total.update({kind: times * size for kind, size in work.items()})
        uncounted += tuple(f"{call.name}/{name}" for name in names)
    return total, uncounted


def _cells(row):
    return (
        _shortened(row.name, 30) + ("" if row.reliable else " ?"),
        _shortened(row.kind, 16),
        _human(row.macs),
        _human(row.params),
        f"{_human(row.output_bytes)}B",
        _human(row.elementwise_ops),
    )


def _aligned(cells, widths):
    """One line: text to the left, numbers to the right."""
    cells = [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _shortened(text, width):
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _human(value):
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.2f} {prefix}"
    return f"{value} "
