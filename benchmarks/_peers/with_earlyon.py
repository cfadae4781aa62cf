"""MNIST with earlyon: joint training, its search for a cost to keep."""

import sys

import numpy as np
import torch
from earlyon.core.thresholds import calibrate_thresholds_for_budget
from earlyon.models.cifar_resnet_ee import CifarResNet
from earlyon.models.custom import custom_ee
from earlyon.training import joint_train_backbone_and_exits
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCH, RATE = 2, 64, 1e-3


def network():
    backbone = CifarResNet(n=3, num_classes=10)
    # Theirs takes three colours.
    backbone.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1, bias=False)
    return custom_ee(
        backbone, ["stage1", "stage2"], 10, input_shape=(1, 1, 28, 28)
    )


def images(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def batches(x, y, shuffle):
    data = TensorDataset(images(x), torch.from_numpy(y))
    return DataLoader(data, BATCH, shuffle=shuffle)


def train(model, x, y):
    joint_train_backbone_and_exits(
        model,
        batches(x, y, shuffle=True),
        epochs=EPOCHS,
        optimizer=torch.optim.Adam(model.parameters(), RATE),
    )


def choose(model, x, y, budget):
    calibrate_thresholds_for_budget(model, batches(x, y, False), budget)


def answer(model, x):
    model.eval()
    found = [model(image) for image in images(x).split(1)]
    exits = np.array([one.exit_taken for one in found])
    classes = np.array([int(one.prediction.argmax()) for one in found])
    return classes, np.where(exits < 0, 2, exits)


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
