"""Runs one of the programs beside it, in the Python that it needs.

The program's steps are called one by one, so that each can be looked at. Says
what came of it in JSON, on the last line.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import time
import types

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("data")
    parser.add_argument("--path", help="where else its modules are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", type=float, nargs="*", default=[])
    parser.add_argument("--memory", choices=("train", "1", "256"))
    options = parser.parse_args()
    if options.path:
        sys.path.insert(0, options.path)
    program = imported(options.program)
    with np.load(options.data) as stored:
        data = dict(stored) if options.memory is None else {}
        if options.memory == "train":
            data = {name: stored[name][:640] for name in stored}
    if options.memory is None:
        found = trained_and_answered(program, data, options)
    else:
        found = most_memory(program, data, options.memory)
    print(json.dumps(found), flush=True)


def imported(name):
    """The module of a program of this folder."""
    if name == "with_earlyon":
        without_torchvision()
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def without_torchvision():
    """Lets earlyon's models be imported where torchvision does not work.

    Their package imports it for networks that are not needed here.
    """
    import earlyon

    package = types.ModuleType("earlyon.models")
    package.__path__ = [str(pathlib.Path(earlyon.__file__).parent / "models")]
    sys.modules["earlyon.models"] = package


def trained_and_answered(program, data, options):
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(options.seed)
    else:
        sys.modules["torch"].manual_seed(options.seed)
    model = program.network()
    start = time.process_time()
    program.train(model, data["x_train"], data["y_train"])
    seconds = time.process_time() - start
    x, y = data["x_test"], data["y_test"]
    rows = []
    for budget in options.budgets:
        # 0: the threshold stays at what it is by default.
        if budget:
            held_out = data["x_held_out"], data["y_held_out"]
            program.choose(model, *held_out, budget)
        program.answer(model, x[:1])
        macs = Counter(model)
        classes, exits = program.answer(model, x)
        rows.append(
            {
                "budget": budget,
                "accuracy": float(np.mean(classes == y)),
                "shares": (np.bincount(exits, minlength=3) / len(y)).tolist(),
                "macs": macs.close() / len(y) or means(model, exits),
            }
        )
    return {"training_seconds": seconds, "rows": rows}


def means(model, exits):
    """Mean multiply-adds of a model of this library."""
    return float(model.relative_costs[exits].mean() * model.plain_macs)


class Counter:
    """Multiply-adds of what really runs in a PyTorch model; else 0."""

    def __init__(self, model):
        self._total, self._hooks = 0, []
        for module in model.modules() if "torch" in sys.modules else ():
            if type(module).__name__ in ("Conv2d", "Linear"):
                self._hooks.append(module.register_forward_hook(self._count))

    def _count(self, module, inputs, output):
        # Each weight is used once for every place of the output.
        places = output.numel() // output.shape[1]
        self._total += places * module.weight.numel()

    def close(self):
        for hook in self._hooks:
            hook.remove()
        return self._total


def most_memory(program, data, what):
    """The process' largest resident memory so far, in MB."""
    model = program.network()
    if what == "train":
        program.EPOCHS = 1
        program.train(model, data["x_train"], data["y_train"])
    else:
        x = np.zeros((int(what), 28, 28, 1), "float32")
        program.answer(model, x)
    # What `getrusage` says begins with the parent's.
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    kilobytes = int(status.split("VmHWM:")[1].split()[0])
    return {"megabytes": kilobytes * 1024 / 1e6}


if __name__ == "__main__":
    main()
