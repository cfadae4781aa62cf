"""A study that processes share: as many trials as are asked for, and no more.

Optuna counts trials once they have ended, so that each process that still runs
one when there are enough has run one too many. Here the number of a trial
decides, which the database gives to one process alone: of the trials that
count, the first so many are run. One that was lost with its process does not
count, its repetition does. Who finds nothing to run waits for the others, as
what they run may be lost yet.
"""

import time
import warnings

from keras_earlyexit.tuning.optuna_trials import OptunaObjective

# How often a trial is repeated that was lost with its process.
_REPETITIONS = 2
_HAS_RUN = "has_run"


class SharedStudy:
    """A study in a database, made if it is not there.

    Args:
        storage: URL of a database, such as `sqlite:///search.db`.
        name: Name of the study.
        seed: Integer, of what is drawn, or `None`.
        heartbeat_s: How often a process says that it still runs a trial. What
            nothing was heard of for six times as long is given to another.
    """

    def __init__(self, storage, name, seed=None, heartbeat_s=20):
        import optuna
        from optuna import storages

        with _experimental():
            retry = storages.RetryHeartbeatStaleTrialCallback(_REPETITIONS)
            self._database = storages.RDBStorage(
                storage,
                heartbeat_interval=heartbeat_s,
                grace_period=6 * heartbeat_s,
                heartbeat_stale_trial_callback=retry,
            )
        self.study = optuna.create_study(
            study_name=name,
            storage=self._database,
            sampler=optuna.samplers.TPESampler(seed=seed),
            directions=list(OptunaObjective.directions),
            load_if_exists=True,
        )
        self._look_s = heartbeat_s / 10
        self._heard_of = set()

    def run(self, objective, trials, on_end=None, tell=None):
        """Runs trials until a study has enough that have ended.

        Args:
            objective: `OptunaObjective`, or another function of a trial.
            trials: How many there are to be, of all who take part. Those that
                have failed count.
            on_end: Called with the number, as text, of each trial that has
                ended here.
            tell: Called with a text when there is nothing to do but to wait.
        """
        import optuna
        from optuna.trial import TrialState

        def run_one_that_counts(trial):
            counting = self._counting()
            if sum(one.number < trial.number for one in counting) >= trials:
                raise optuna.TrialPruned("As many as are asked for are there.")
            figures = objective(trial)
            trial.set_user_attr(_HAS_RUN, True)
            return figures

        def ended(_, trial):
            if on_end is not None and trial.state != TrialState.PRUNED:
                on_end(f"{trial.number:04d}")

        has_told = tell is None
        while True:
            with _experimental():
                optuna.storages.fail_stale_trials(self.study)
            counting = self._counting()[:trials]
            states = {trial.state for trial in counting}
            if len(counting) < trials or TrialState.WAITING in states:
                self.study.optimize(
                    run_one_that_counts, n_trials=1, callbacks=[ended]
                )
            elif TrialState.RUNNING in states:
                if not has_told:
                    tell("waiting for trials of other processes")
                    has_told = True
                self._expect_to_hear_of(counting)
                time.sleep(self._look_s)
            else:
                return

    def _counting(self):
        """The trials that no other stands in for, by their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        repeated = {number for trial in trials for number in _history(trial)}
        return [
            trial
            for trial in trials
            if trial.number not in repeated and not _is_void(trial)
        ]

    def _expect_to_hear_of(self, trials):
        """Starts the clock of trials, which a lost process may not have."""
        from optuna.trial import TrialState

        database = self._database
        study = database.get_study_id_from_name(self.study.study_name)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                if trial.number not in self._heard_of:
                    self._heard_of.add(trial.number)
                    database.record_heartbeat(
                        database.get_trial_id_from_study_id_trial_number(
                            study, trial.number
                        )
                    )


def _is_void(trial):
    """Whether another trial is drawn in the place of this one."""
    from optuna.trial import TrialState

    # Only who came too late is: what a hypermodel stops has figures.
    if trial.state == TrialState.PRUNED:
        return True
    # One that was lost again and again counts as failed.
    is_given_up = len(_history(trial)) == _REPETITIONS
    has_ended = _HAS_RUN in trial.user_attrs or is_given_up
    return trial.state == TrialState.FAIL and not has_ended


def _history(trial):
    """Numbers of the lost trials that a trial repeats."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    with _experimental():
        return RetryHeartbeatStaleTrialCallback.retry_history(trial)


def _experimental():
    """Hearing from processes is "experimental", since version 2.8."""
    import optuna

    return warnings.catch_warnings(
        action="ignore", category=optuna.exceptions.ExperimentalWarning
    )
