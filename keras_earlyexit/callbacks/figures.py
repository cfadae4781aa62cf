"""The figures of every exit, found among what `fit` logs."""

ROUTED = "routed"
_VALIDATION = "val_"


def parted(logs):
    """What is of training, and what is of validation: two dicts."""
    training, validation = {}, {}
    for name, value in (logs or {}).items():
        if name.startswith(_VALIDATION):
            validation[name.removeprefix(_VALIDATION)] = value
        else:
            training[name] = value
    return training, validation


def tag(name, exit_names):
    """A log's place in a hierarchy: what it measures, and of what.

    Args:
        name: Name of a log, without `val_`.
        exit_names: Names of the exits.

    Returns:
        Text such as `"accuracy/exit_0"`, `"cost/routed"` or `"loss/total"`.
    """
    for owner in (*exit_names, ROUTED):
        if name.startswith(f"{owner}_"):
            return f"{name.removeprefix(f'{owner}_')}/{owner}"
    if name == "mean_cost":
        return f"cost/{ROUTED}"
    if name == "loss":
        return "loss/total"
    part, is_part, _ = name.partition("_loss")
    return f"loss/{part}" if is_part else name


def metric_name(logs, exit_names):
    """The first metric that every exit has, such as `"accuracy"`, or `None`."""
    for name in parted(logs)[0]:
        start = f"{exit_names[-1]}_"
        if name.startswith(start):
            return name.removeprefix(start)
    return None
