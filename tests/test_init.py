"""The public names: pinned, sorted, and loaded when they are first used."""

import re

import pytest

import keras_earlyexit as ee

# A name leaves this list only with a note in CHANGELOG.md.
PUBLIC = [
    "Anytime",
    "EarlyExitModel",
    "ExitBlock",
    "ExitResult",
    "Plan",
    "Router",
    "SegmentModel",
    "__version__",
    "add_classes",
    "add_exits",
    "backbones",
    "blocks",
    "bundle",
    "calibrate",
    "calibration",
    "callbacks",
    "cost",
    "datasets",
    "export",
    "load_bundle",
    "losses",
    "merge",
    "model",
    "objectives",
    "optimizers",
    "partition",
    "placement",
    "plan_cut",
    "plots",
    "policies",
    "regimes",
    "report",
    "routing",
    "split",
    "strip_exits",
    "surgery",
    "tasks",
    "tuning",
]


def test_public_names_are_pinned():
    assert ee.__all__ == PUBLIC


def test_public_names_are_sorted_and_listed():
    assert ee.__all__ == sorted(set(ee.__all__))
    assert list(dir(ee)) == ee.__all__


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_found(name):
    assert getattr(ee, name) is not None


@pytest.mark.parametrize("name", [n for n in PUBLIC if n[0].isupper()])
def test_public_class_lives_in_this_package(name):
    assert getattr(ee, name).__module__.startswith("keras_earlyexit.")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ad_exits'"):
        ee.ad_exits  # noqa: B018


def test_version_is_a_release_number():
    assert re.match(r"\d+\.\d+\.\d+", ee.__version__)
