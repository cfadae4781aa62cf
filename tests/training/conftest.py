"""Processes that train, ended with the test."""

import pytest
from training_processes import Processes


@pytest.fixture
def run(folder):
    made = []

    def make(name):
        made.append(Processes(folder, name))
        return made[-1]

    yield make
    for processes in made:
        for side in processes.running:
            processes.kill(side)
            # Shown where the test has failed.
            print(processes.name, side, processes.log(side)[-3000:])
