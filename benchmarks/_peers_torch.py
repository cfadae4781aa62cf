"""The PyTorch side of peers.py: times one thing when it is told to.

Reads a name per line (`case runs`) and prints median seconds; the answers of
other processes run in between, so that all share the machine's ups and downs.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import sys
import time
import types

import torch

BATCH = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eenets", help="a checkout of the authors' code")
    options = parser.parse_args()
    torch.manual_seed(0)
    cases = earlyon()
    if options.eenets:
        sys.path.insert(0, options.eenets)
        cases |= eenets()
    for case in cases.values():
        case()
        case()
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"cases": sorted(cases), **facts}), flush=True)
    for line in sys.stdin:
        name, runs = line.split()
        cases[name]()
        times = []
        for _ in range(int(runs)):
            start = time.perf_counter()
            cases[name]()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


def earlyon():
    """ResNet-20 of earlyon with its three exits."""
    if importlib.util.find_spec("earlyon") is None:
        return {}
    # Its `models` imports torchvision for networks that are not needed here,
    # which fails where torchvision was built for another PyTorch.
    import earlyon

    package = types.ModuleType("earlyon.models")
    package.__path__ = [str(pathlib.Path(earlyon.__file__).parent / "models")]
    sys.modules["earlyon.models"] = package
    from earlyon.models.cifar_resnet_ee import cifar_resnet_ee
    from earlyon.training import joint_train_backbone_and_exits

    model = cifar_resnet_ee(10, depth=20).eval()
    image = torch.randn(1, 3, 32, 32)

    def answer(threshold):
        model.config.confidence_thresholds = [threshold] * 3
        with torch.inference_mode():
            return model(image)

    trained = cifar_resnet_ee(10, depth=20)
    optimizer = torch.optim.Adam(trained.parameters(), weight_decay=1e-4)
    batch = _batch()

    def step():
        # Their loop, over one batch.
        joint_train_backbone_and_exits(
            trained,
            [batch],
            epochs=1,
            optimizer=optimizer,
            on_epoch_end=lambda log: None,
        )

    return {
        "earlyon_exit_0": lambda: answer(0.0),
        "earlyon_final": lambda: answer(1.1),
        "earlyon_step": step,
    }


def eenets():
    """The EENets authors' EENet-20 with two early exits."""
    import loss_functions
    from eenet import eenet20

    model = eenet20(
        num_ee=2,
        distribution="pareto",
        num_classes=10,
        input_shape=(3, 32, 32),
        exit_type="pool",
        loss_func="v2",
    )
    image = torch.randn(1, 3, 32, 32)
    images, labels = _batch()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=1e-4)
    arguments = types.SimpleNamespace(num_ee=2, loss_func="v2", lambda_coef=1.0)

    def answer(threshold):
        model.eval()
        model.exit_threshold = threshold
        with torch.inference_mode():
            return model(image)

    def step():
        model.train()
        optimizer.zero_grad()
        predictions, confidences, cost = model(images)
        # As their training loop does: the last cost is that of the network.
        loss, _, _ = loss_functions.loss(
            arguments,
            None,
            predictions,
            labels,
            confidences,
            [*cost, torch.tensor(1.0)],
        )
        loss.backward()
        optimizer.step()

    return {
        "eenets_exit_0": lambda: answer(-1.0),
        "eenets_final": lambda: answer(2.0),
        "eenets_step": step,
    }


def _batch():
    return torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))


if __name__ == "__main__":
    main()
