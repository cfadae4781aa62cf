"""What a search may vary, and what one trial of it is.

Only the four methods that hyperparameters have in KerasTuner are used (`Int`,
`Float`, `Choice`, `conditional_scope`), so that whatever offers them can draw
trials; KerasTuner itself is not needed here.
"""

import contextlib
import dataclasses
import numbers

import keras

from keras_earlyexit import blocks, objectives, placement, policies

FREE = "free"
OWN = "own"


@dataclasses.dataclass(frozen=True)
class Choices:
    """What one trial is.

    Args:
        exits: Layer names that exits hang on, or a count for a rule.
        placement: Name of the rule, or `"free"`.
        block: The exit block, as `add_exits` takes it.
        objective: The training objective, as `compile` takes it.
        policy: The policy, as `add_exits` takes it, or `None`.
        learning_rate: A float.
    """

    exits: list | int
    placement: str
    block: object
    objective: object
    policy: object
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """What `ExitHyperModel` varies from trial to trial.

    Everything takes either one value, which then stays the same, or what is
    said below to choose from.

    Args:
        exits: `(least, most)` early exits. No more are tried than the network
            has block ends.
        placements: Names of rules (see `ee.placement`), and `"free"`, which
            chooses the block end of every exit by itself: hyperparameter
            `place_k` says how far exit k lies into the block ends that are
            left for it. Every set of places can come up.
        blocks: Names of exit blocks, or a dict of blocks by name.
        objectives: Names of objectives, or a dict of `Objective` by name.
            These keep their own cost weight.
        cost_weights: `(least, most)`, drawn evenly on a logarithmic scale, for
            objectives that count cost.
        policies: Names of policies; `"own"` is the objective's.
        learning_rates: `(least, most)`, on a logarithmic scale.

    Raises:
        ValueError: If a range is empty or a name is not known.

    Example:

    ```python
    space = ee.tuning.SearchSpace(
        exits=(1, 4), blocks=("pool", "bnpool"), learning_rates=1e-3
    )
    ```
    """

    exits: object = (1, 3)
    placements: object = FREE
    blocks: object = "pool"
    objectives: object = ("branchynet", "sdn", "eenet_v2")
    cost_weights: object = (0.1, 3.0)
    policies: object = OWN
    learning_rates: object = (3e-4, 1e-2)

    def __post_init__(self):
        least, most = _range("exits", self.exits)
        if not all(isinstance(n, numbers.Integral) for n in (least, most)):
            raise _wrong("exits", self.exits, "whole numbers")
        if least < 1:
            raise _wrong("exits", self.exits, "numbers of at least 1")
        for name in ("cost_weights", "learning_rates"):
            if _range(name, getattr(self, name))[0] <= 0:
                raise _wrong(name, getattr(self, name), "numbers above 0")
        for name in ("placements", "blocks", "objectives", "policies"):
            if not _options(getattr(self, name)):
                raise _wrong(name, getattr(self, name), "at least one name")
        for objective in _options(self.objectives).values():
            objectives.get(objective)
        for policy in _options(self.policies).values():
            if policy != OWN:
                policies.get(policy)
        self._check_names("blocks", blocks.KINDS)
        self._check_names("placements", (FREE, *placement.RULES, "even"))

    def _check_names(self, name, known):
        for one in _options(getattr(self, name)).values():
            if isinstance(one, str) and one not in known:
                expected = f"one or several of {', '.join(known)}"
                raise _wrong(name, one, expected)

    @property
    def block_options(self):
        """The exit blocks by name."""
        return _options(self.blocks)

    def draw(self, hp, ends, num_first=None):
        """One trial of this space.

        Args:
            hp: What draws: `keras_tuner.HyperParameters`, or whatever has its
                methods `Int`, `Float`, `Choice` and `conditional_scope`.
            ends: Names of the block ends of the network.
            num_first: How many of them the first exit may hang on, if chosen
                freely; `None` for all.

        Returns:
            `Choices`.

        Raises:
            ValueError: If the network has too few block ends.
        """
        self.check_room(ends)
        least, most = _range("exits", self.exits)
        most = min(most, len(ends))
        exits, placement = self._draw_exits(
            hp, least, most, ends, min(num_first or len(ends), len(ends))
        )
        _, block = _choose(hp, "block", self.blocks)
        objective = self._draw_objective(hp)
        policy, _ = _choose(hp, "policy", self.policies)
        rate = _number(
            hp.Float,
            "learning_rate",
            *_range("learning_rates", self.learning_rates),
            sampling="log",
        )
        return Choices(
            exits=exits,
            placement=placement,
            block=block,
            objective=objective,
            policy=None if policy == OWN else policy,
            learning_rate=rate,
        )

    def check_room(self, ends):
        """Raises a `ValueError` if a network has too few block ends."""
        least, _ = _range("exits", self.exits)
        if len(ends) < least:
            raise ValueError(
                f"Expected a network with at least {least} block ends, places "
                f"where an exit can hang. Received: one with {len(ends)} "
                f"({', '.join(ends) or 'none'}). Ask for fewer exits, or name "
                "legal cuts by `ee.add_exits(model, [...])`."
            )

    def _draw_exits(self, hp, least, most, ends, num_first):
        """The exits, and the name of the rule that they are placed by."""
        placement, _ = _choose(hp, "placement", self.placements)
        names = list(_options(self.placements))
        rules = [name for name in names if name != FREE]
        count = places = None
        # The number stands twice, since what depends on it has to lie in the
        # same scope as it does.
        if FREE in names:
            with _scope(hp, "placement", [FREE], fixed=not rules):
                free = _number(hp.Int, "exits", least, most)
                places = self._draw_places(
                    hp, free if placement == FREE else 0, most, ends, num_first
                )
        if rules:
            with _scope(hp, "placement", rules, fixed=FREE not in names):
                count = _number(hp.Int, "exits", least, most)
        return (places if placement == FREE else count), placement

    def _draw_places(self, hp, count, most, ends, num_first):
        """The block ends of all exits, in order and each only once.

        Every exit takes one of the ends behind the exit before it that leave
        one for each exit to come.
        """
        chosen, start = [], 0
        for k in range(most):
            counts = list(range(k + 1, most + 1))
            fixed = _range("exits", self.exits)[0] > k
            with _scope(hp, "exits", counts, fixed):
                step = hp.Int(f"place_{k}", 0, len(ends) - 1)
            if k >= count:
                continue
            room = len(ends) - start - (count - 1 - k)
            if k == 0:
                room = min(room, num_first)
            # A network that the trial has made shorter has fewer ends.
            place = start + min(int(step) * room // len(ends), room - 1)
            chosen.append(ends[place])
            start = place + 1
        return chosen

    def _draw_objective(self, hp):
        options = _options(self.objectives)
        name, objective = _choose(hp, "objective", self.objectives)
        by_name = [n for n, found in options.items() if found == n]
        weighted = [n for n in by_name if objectives.get(n).counts_cost]
        weight = None
        if weighted:
            low, high = _range("cost_weights", self.cost_weights)
            fixed = len(options) == 1
            with _scope(hp, "objective", weighted, fixed):
                weight = _number(
                    hp.Float, "cost_weight", low, high, sampling="log"
                )
        if name in weighted:
            return objectives.get(name, cost_weight=weight)
        if name in by_name:
            return objectives.get(name)
        # Another one for each trial: an objective has state.
        return keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(objective)
        )


def _scope(hp, name, values, fixed):
    """Where something is drawn only if something else has some values."""
    if fixed:
        return contextlib.nullcontext()
    return hp.conditional_scope(name, values)


def _number(draw, name, low, high, **options):
    return low if low == high else draw(name, low, high, **options)


def _choose(hp, name, given):
    options = _options(given)
    names = list(options)
    chosen = names[0] if len(names) == 1 else hp.Choice(name, names)
    return chosen, options[chosen]


def _options(given):
    """What is to choose from, by name."""
    if isinstance(given, dict):
        return given
    if isinstance(given, (list, tuple)):
        return {name: name for name in given}
    return {given: given}


def _range(name, given):
    ends = given if isinstance(given, (list, tuple)) else (given, given)
    valid = len(ends) == 2 and all(
        isinstance(end, numbers.Real) and not isinstance(end, bool)
        for end in ends
    )
    if not valid or not ends[0] <= ends[1]:
        raise _wrong(name, given, "one number, or the least and the most")
    return ends


def _wrong(name, given, expected):
    return ValueError(
        f"Expected `{name}` to be {expected}. Received: {name}={given!r} (of "
        f"type {type(given).__name__})."
    )
