"""What a model costs: counted by formulas, or measured on a device.

`counting.py` has tables and conventions, `macs.py` the formula of each kind of
layer, `opening.py` takes layers without one apart. `exit_costs.py` is the cost
of leaving at each exit, `costing.py` what a model goes by. `measured.py` and
`profiles.py` hold what `profiling` has measured, as JSON.
"""

from keras_earlyexit import _lazy

_HOMES = {
    **dict.fromkeys(
        (
            "CONVENTIONS",
            "CallCost",
            "CostRow",
            "CostTable",
            "call_cost",
            "count",
            "inner_calls",
        ),
        "counting",
    ),
    "DeviceProfile": "profiles",
    "Link": "measured",
    "MeasuredCost": "measured",
    "profile": ".profiling.measuring",
}

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _HOMES)
