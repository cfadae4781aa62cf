"""Thresholds with a guarantee, and how far confidences can be trusted.

Numpy throughout but for the metrics in `streaming`, scipy only inside the
functions that need it, and loaded lazily: importing this package loads none
of its modules.
"""

from keras_earlyexit import _lazy

_HOMES = {
    "BudgetReport": "reports",
    "CalibrationError": "streaming",
    "Controlled": "risk_control",
    "DriftMonitor": "drift",
    "DriftReport": "drift",
    "Fingerprints": "fingerprints",
    "Observations": "observations",
    "ReliabilityData": "metrics",
    "Risk": "risk_control",
    "RiskReport": "reports",
    "SetCoverage": "streaming",
    "SetSize": "streaming",
    "apply_temperature": "temperature",
    "calibrate": "calibrating",
    "calibrate_budget": "budget",
    "conformal_quantile": "metrics",
    "conformal_quantiles": "metrics",
    "control_risk": "risk_control",
    "control_risks": "risk_control",
    "exit_shares_for": "budget",
    "expected_calibration_error": "metrics",
    "fingerprints_of": "fingerprints",
    "fit_temperature": "temperature",
    "hoeffding_bentkus_p_value": "bounds",
    "hoeffding_bentkus_upper_bound": "bounds",
    "observe": "observations",
    "prediction_set_summary": "metrics",
    "prediction_sets": "metrics",
    "reliability_data": "metrics",
    "threshold_sequence": "budget",
    "thresholds_for_shares": "budget",
    "top_label": "metrics",
    "wsr_upper_bound": "bounds",
}

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _HOMES)
