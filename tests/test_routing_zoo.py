"""Every kind of model is routed rightly, in a batch and one by one."""

import keras
import numpy as np
import pytest
import zoo
from keras import ops

pytestmark = pytest.mark.backends


@pytest.mark.parametrize("name", zoo.ZOO)
def test_routed_answers(name):
    _, model = zoo.plain_and_early(name)
    x, _ = zoo.ZOO[name].batch(8)
    outputs = {key: zoo.as_numpy(value) for key, value in model(x).items()}
    scores = [
        outputs[f"{exit_name}_confidence"][:, 0]
        for exit_name in model.exit_names[:-1]
    ]
    # About half of the samples leave at every exit, none of them by a hair.
    thresholds = [float(np.median(score)) for score in scores]
    close = np.stack(
        [
            np.abs(score - threshold) < 1e-6
            for score, threshold in zip(scores, thresholds, strict=True)
        ]
    ).any(axis=0)
    exits = np.full(8, len(scores))
    expected = outputs["final"].copy()
    for i in reversed(range(len(scores))):
        leaves = scores[i] > thresholds[i]
        exits[leaves] = i
        expected[leaves] = outputs[f"exit_{i}"][leaves]
    before = model.policy.threshold
    model.policy.threshold = thresholds
    try:
        result = model.predict_exits(x)
        alone = [
            model.predict_exits(
                keras.tree.map_structure(lambda a, k=k: a[k : k + 1], x)
            )
            for k in range(8)
        ]
    finally:
        model.policy.threshold = before
    clear = ~close
    np.testing.assert_array_equal(result.exit_index[clear], exits[clear])
    tolerance = 2e-2 if "mixed" in name else 1e-5
    for found in (
        result.predictions,
        np.concatenate([one.predictions for one in alone]),
    ):
        np.testing.assert_allclose(
            found[clear], expected[clear], atol=tolerance
        )
    assert ops.shape(result.predictions) == ops.shape(expected)
