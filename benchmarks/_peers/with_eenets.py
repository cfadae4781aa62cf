"""MNIST with the EENets authors' code: their loss `v2`, leaving above 0.5.

Needs their checkout on the path.
"""

import sys
import types

import loss_functions
import numpy as np
import torch
from eenet import eenet20
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCH, RATE = 2, 64, 1e-3


def network():
    return eenet20(
        num_ee=2,
        distribution="linear",
        num_classes=10,
        input_shape=(1, 28, 28),
        exit_type="pool",
        loss_func="v2",
    )


def images(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def train(model, x, y):
    data = TensorDataset(images(x), torch.from_numpy(y))
    options = types.SimpleNamespace(num_ee=2, loss_func="v2", lambda_coef=1.0)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    model.train()
    for _ in range(EPOCHS):
        for batch, labels in DataLoader(data, BATCH, shuffle=True):
            optimizer.zero_grad()
            answers, confidences, costs = model(batch)
            costs = [*costs, torch.tensor(1.0)]
            loss, _, _ = loss_functions.loss(
                options, None, answers, labels, confidences, costs
            )
            loss.backward()
            optimizer.step()
        falls.step()


def choose(model, x, y, budget):
    """The largest threshold that keeps the budget; they have none to call."""
    found = []
    hooks = [
        block.register_forward_hook(lambda *call: found.append(call[2][1]))
        for block in model.exits
    ]
    # Nobody leaves.
    model.exit_threshold = 1.0
    answer(model, x)
    for hook in hooks:
        hook.remove()
    confidences = torch.cat(found).reshape(len(x), 2).numpy()
    costs = np.array([*model.cost, 1.0])
    thresholds = np.quantile(confidences, np.linspace(0, 1, 201))
    for threshold in thresholds:
        leaves = confidences > threshold
        taken = np.where(leaves.any(axis=1), leaves.argmax(axis=1), 2)
        if costs[taken].mean() <= budget:
            model.exit_threshold = threshold


def answer(model, x):
    model.eval()
    with torch.no_grad():
        found = [model(image) for image in images(x).split(1)]
    classes = np.array([int(scores.argmax()) for scores, _, _ in found])
    return classes, np.array([taken for _, taken, _ in found])


def main():
    data = np.load(sys.argv[1])
    model = network()
    train(model, data["x_train"], data["y_train"])
    choose(model, data["x_held_out"], data["y_held_out"], budget=0.6)
    classes, exits = answer(model, data["x_test"])
    print("right:", np.mean(classes == data["y_test"]))
    print("left at:", np.bincount(exits, minlength=3))


if __name__ == "__main__":
    main()
