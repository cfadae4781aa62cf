"""What each exit loses against `final`, sample by sample, for `calibrate`."""

import numpy as np

from keras_earlyexit.calibration.temperature import apply_temperature

NAMES = ("zero_one", "brier")


def measure(seen, risk, loss):
    """Every sample's loss at every exit over that at `final`: (n, E + 1)."""
    target = seen.answers(-1) if risk == "consistency" else seen.labels
    found = [
        _loss_of(seen, k, target, loss) for k in range(len(seen.exit_names))
    ]
    found = np.stack(found, axis=1)
    return found - found[:, -1:]


def _loss_of(seen, exit_index, target, loss):
    """Losses (n,) of what one exit answers."""
    n = len(seen)
    if loss == "zero_one":
        wrong = seen.answers(exit_index) != target
        return wrong.reshape(n, -1).mean(axis=1)
    predicted = _probabilities(seen.head, seen.predictions[exit_index])
    if loss != "brier":
        return _checked_losses(loss, loss(target, predicted), n)
    if seen.head.task == "multilabel":
        found = 2.0 * (predicted - target) ** 2
    else:
        of_target = np.take_along_axis(predicted, target[..., None], axis=-1)
        found = (predicted**2).sum(axis=-1) - 2 * of_target[..., 0] + 1
    return found.reshape(n, -1).mean(axis=1)


def _checked_losses(loss, found, n):
    import keras

    found = np.asarray(keras.ops.convert_to_numpy(found), "float64")
    if not found.ndim or len(found) != n:
        raise ValueError(
            f"Expected `loss` to return one loss per sample, shape ({n},). "
            f"Received: shape {found.shape} from {name_of(loss)!r}. Leave the "
            "mean over samples out (`reduction=None`)."
        )
    found = found.reshape(n, -1).mean(axis=1)
    if not (found.min() >= 0 and found.max() <= 1 + 1e-6):
        raise ValueError(
            "Expected losses in [0, 1], without NaN. Received: values from "
            f"{found.min()} to {found.max()} from {name_of(loss)!r}. Divide "
            "by the largest possible loss, or clip."
        )
    return np.minimum(found, 1.0)


def _probabilities(head, prediction):
    """Probabilities of classes or labels in float64, or values."""
    prediction = prediction.astype("float64")
    if not head.from_logits:
        return prediction
    if head.task == "multilabel":
        return 0.5 + 0.5 * np.tanh(prediction / 2)
    return apply_temperature(prediction, 1.0)


def name_of(loss):
    return getattr(loss, "__name__", type(loss).__name__)
