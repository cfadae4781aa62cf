"""What users hand in is brought into form, or refused."""

import numpy as np
import pytest

from keras_earlyexit.bundle.specs import TensorSpec, fit_inputs

IMAGE = TensorSpec("image", (None, 2, 3, 1), "float32")
ROW = TensorSpec("row", (None, 4), "float32")
TOKENS = TensorSpec("tokens", (None, None), "int32")


@pytest.mark.parametrize(
    "x",
    [
        np.ones((5, 2, 3, 1)),
        np.ones((5, 2, 3, 1), "uint8"),
        np.ones((5, 2, 3)),
        np.ones((5, 2, 3, 1)).tolist(),
        [np.ones((5, 2, 3, 1))],
        {"image": np.ones((5, 2, 3)), "other": None},
        np.ones((5, 2, 6, 1))[:, :, ::2],
    ],
)
def test_one_input(x):
    (array,) = fit_inputs(x, [IMAGE], "tensor")
    assert array.shape == (5, 2, 3, 1) and array.dtype == "float32"
    assert array.flags.c_contiguous


def test_what_fits_is_not_copied():
    x = np.ones((5, 4), "float32")
    assert fit_inputs(x, [ROW], "tensor")[0] is x


def test_several_inputs():
    x = np.ones((5, 4)), np.ones((5, 7))
    for structure in ("list", "dict"):
        given = {"tokens": x[1], "row": x[0]}
        arrays = fit_inputs(given, [ROW, TOKENS], structure)
        assert [array.dtype for array in arrays] == ["float32", "int32"]
    assert len(fit_inputs(x, [ROW, TOKENS], "list")) == 2
    with pytest.raises(ValueError, match="Received: 2 arrays"):
        fit_inputs(x, [ROW, TOKENS], "dict")


def test_strings():
    spec = TensorSpec("text", (None, 1), "string")
    (array,) = fit_inputs(["one", "two"], [spec], "tensor")
    assert array.shape == (2, 1) and array.dtype == object


@pytest.mark.parametrize(
    "x, specs, message",
    [
        (np.ones((5, 3)), [ROW], r"shape \(None, 4\).*shape \(5, 3\)"),
        (np.ones(4), [ROW], r"pass `x\[None\]`"),
        (np.ones((5, 4, 1)), [ROW], r"\(5, 4, 1\)"),
        (3, [ROW], "x.None"),
        (None, [ROW], "dtype object"),
        (np.array([["a"] * 4]), [ROW], "dtype <U1"),
        (np.ones((5, 4), complex), [ROW], "dtype complex128"),
        ({"other": 1}, [ROW], r"keys \['other'\]"),
        ([], [ROW], r"shape \(None, 4\)"),
        ([np.ones((5, 4))] * 2, [ROW], "Received: 2 arrays"),
        ([np.ones((5, 4))] * 3, [ROW, ROW], "Received: 3 arrays"),
        (np.ones((5, 4)), [ROW, ROW], "Received: ndarray"),
        ([np.ones((5, 4)), np.ones((6, 4))], [ROW, TOKENS], "equally many"),
        (np.full((5, 4), np.nan), [ROW], r"'row' with NaN in 5 of 5"),
    ],
)
def test_what_does_not_fit_is_refused(x, specs, message):
    structure = "list" if len(specs) > 1 else "tensor"
    with pytest.raises(ValueError, match=message):
        fit_inputs(x, specs, structure)


def test_infinities_are_numbers():
    x = np.array([[np.inf, -np.inf, 3e38, 3e38]], "float32")
    assert fit_inputs(x, [ROW], "tensor")[0] is x
