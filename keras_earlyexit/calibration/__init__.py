"""Thresholds with a guarantee, and how far confidences can be trusted.

Numpy throughout, scipy only inside the functions that need it, and loaded
lazily: importing this package loads neither of its modules.
"""

import importlib

_HOMES = {
    "Observations": "observations",
    "ReliabilityData": "metrics",
    "RiskReport": "calibrating",
    "apply_temperature": "temperature",
    "calibrate": "calibrating",
    "conformal_quantile": "metrics",
    "conformal_quantiles": "metrics",
    "control_risk": "risk_control",
    "expected_calibration_error": "metrics",
    "fit_temperature": "temperature",
    "hoeffding_bentkus_p_value": "bounds",
    "hoeffding_bentkus_upper_bound": "bounds",
    "observe": "observations",
    "prediction_set_summary": "metrics",
    "prediction_sets": "metrics",
    "reliability_data": "metrics",
    "top_label": "metrics",
    "wsr_upper_bound": "bounds",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
