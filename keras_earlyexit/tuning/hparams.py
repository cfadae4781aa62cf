"""Trials for TensorBoard's page of hyperparameters."""

import pathlib


def write_hparams(trials, log_dir):
    """Writes every judged trial for TensorBoard's tab HPARAMS.

    One run for each trial, with its hyperparameters and, as metrics, `score`,
    `accuracy` or `mean_absolute_error`, `mean_cost` and `seconds`; with
    `Pruning` also the best of each epoch on the calibration split. Whatever
    has been written of these trials before is replaced.

    Args:
        trials: List of `TrialRecord`.
        log_dir: Folder for TensorBoard.

    Raises:
        ImportError: If TensorFlow or TensorBoard is not installed.

    Example:

    ```python
    ee.tuning.write_hparams(ee.tuning.read_trials("search"), "logs")
    # tensorboard --logdir logs
    ```
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    for trial in trials:
        if not trial.is_judged:
            continue
        folder = pathlib.Path(log_dir) / f"trial_{trial.id}"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        figures = {
            "score": trial.score,
            trial.metric_name: trial.metric,
            "mean_cost": trial.mean_cost,
            "seconds": trial.seconds,
        }
        writer = tf.summary.create_file_writer(str(folder))
        with writer.as_default():
            api.hparams(trial.values, trial_id=f"trial_{trial.id}")
            last = max(trial.epochs, default=0)
            for epoch, points in trial.epochs.items():
                best = max(value for _, value in points)
                tf.summary.scalar("best_of_epoch", best, step=epoch)
            for name, value in figures.items():
                tf.summary.scalar(name, value, step=last)
        writer.close()
