"""What is drawn from a search space."""

import itertools

import keras_tuner
import pytest

from keras_earlyexit import objectives
from keras_earlyexit.tuning import SearchSpace

ENDS = ["a", "b", "c", "d", "e"]


def places(exits, steps, **options):
    hp = keras_tuner.HyperParameters()
    hp.values = {f"place_{k}": step for k, step in enumerate(steps)}
    space = SearchSpace(exits=exits, objectives="sdn")
    return space.draw(hp, ENDS, **options).exits


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_set_of_places_can_come_up(count):
    found = {
        tuple(places(count, steps))
        for steps in itertools.product(range(len(ENDS)), repeat=count)
    }
    assert found == set(itertools.combinations(ENDS, count))


def test_the_first_exit_is_one_that_the_budget_can_pay():
    found = {
        tuple(places(2, steps, num_first=2))
        for steps in itertools.product(range(len(ENDS)), repeat=2)
    }
    pairs = itertools.combinations(ENDS, 2)
    assert found == {pair for pair in pairs if pair[0] in "ab"}


def test_what_depends_on_other_choices_is_drawn_only_with_them():
    hp = keras_tuner.HyperParameters()
    space = SearchSpace(exits=(1, 3), placements=("pareto", "free"))
    choices = space.draw(hp, ENDS)
    assert (choices.placement, choices.exits) == ("pareto", 1)
    assert not any(name.startswith("place_") for name in hp.values)
    assert "cost_weight" not in hp.values
    hp = keras_tuner.HyperParameters()
    hp.values = {"placement": "free", "exits": 2, "objective": "eenet_v2"}
    choices = space.draw(hp, ENDS)
    drawn = {name for name in hp.values if name.startswith("place_")}
    assert drawn == {"place_0", "place_1"} and len(choices.exits) == 2
    assert choices.objective.cost_weight == hp.values["cost_weight"]
    # All of it is known to the tuner.
    assert {"place_2", "cost_weight"} <= {part.name for part in hp.space}


def test_a_single_value_is_no_hyperparameter():
    hp = keras_tuner.HyperParameters()
    space = SearchSpace(
        exits=2, objectives="eenet_v1", cost_weights=2.0, learning_rates=0.1
    )
    choices = space.draw(hp, ENDS)
    assert set(hp.values) == {"place_0", "place_1"}
    assert choices.objective.cost_weight == 2.0
    assert choices.learning_rate == 0.1 and choices.policy is None


def test_objectives_of_ones_own_are_made_anew():
    given = objectives.get("eenet_v2", cost_weight=7.0)
    space = SearchSpace(exits=1, objectives={"mine": given, "sdn": "sdn"})
    hp = keras_tuner.HyperParameters()
    drawn = space.draw(hp, ENDS).objective
    assert type(drawn) is type(given) and drawn is not given
    assert drawn.cost_weight == 7.0 and hp.values["objective"] == "mine"


def test_no_more_exits_than_places():
    hp = keras_tuner.HyperParameters()
    SearchSpace(exits=(1, 9)).draw(hp, ENDS[:2])
    (count,) = [part for part in hp.space if part.name == "exits"]
    assert count.max_value == 2
    with pytest.raises(ValueError, match="at least 3 block ends.*with 2"):
        SearchSpace(exits=(3, 9)).draw(hp, ENDS[:2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"exits": (3, 1)}, "exits=.3, 1."),
        ({"exits": 0}, "at least 1"),
        ({"exits": 1.5}, "whole numbers"),
        ({"exits": "two"}, "one number, or the least and the most"),
        ({"cost_weights": (0, 1)}, "above 0"),
        ({"learning_rates": (1e-3,)}, "the least and the most"),
        ({"objectives": ("snd",)}, "Did you mean 'sdn'"),
        ({"blocks": ()}, "at least one name"),
    ],
)
def test_bad_spaces(given, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**given)
