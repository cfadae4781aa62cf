"""Where exits go: the authors' tables, block ends, names and fractions."""

import json
import math
import pathlib

import keras
import numpy as np
import pytest
from keras import layers
from zoo import NAMES, ZOO, plain_and_early

import keras_earlyexit as ee
from keras_earlyexit import cutting, placement, surgery

EENETS = json.loads(
    (pathlib.Path(__file__).parent / "data" / "eenets.json").read_text("utf-8")
)
ROWS = {}
for row in EENETS["exits"]["rows"]:
    key = (row["model"], *row["input_shape"], row["classes"])
    ROWS.setdefault(key, []).append(row)

# Written down by hand from the definition of a block end.
BLOCK_ENDS = {
    "sequential_cnn": ["norm_0", "pool_1", "dropout"],
    "residual_cnn": ["block0_out", "block1_out", "pool"],
    "dense_cnn": ["block0_concat", "transition_relu", "pool"],
    "inception": ["mixed0", "mixed1", "pool"],
    "nested_functional": [
        *("unit_add", "base_add_0", "unit_add"),
        *("base_add_1", "unit_add", "dropout"),
    ],
    "nested_sequential": ["first_relu", "second_relu", "pool"],
    "shared_layer": ["add_0", "add_1", "add_2"],
    "siamese": ["difference", "block_gate"],
    "two_inputs_early": ["join", "block0_add", "block1_add"],
    "two_inputs_late": ["join"],
    "transformer": ["block0_add_0", "block0_add_1", "block1_add_0", "pool"],
    "masked_transformer": ["pool"],
    "tabular_mlp": ["dense_0", "dense_1", "dense_2"],
    "series_cnn": ["conv_0", "conv_1", "pool"],
    "lstm_stack": ["lstm_0", "lstm_1", "lstm_2"],
}


@pytest.fixture(scope="module")
def resnet_20():
    return surgery.trace(ee.backbones.resnet_cifar(20, (32, 32, 3), 10))


def names(places):
    return [place.name for place in places]


def backbone(key):
    name, *input_shape, classes = key
    depth = int(name.removeprefix("eenet"))
    build = ee.backbones.resnet_cifar
    if depth == 18:
        build = ee.backbones.resnet
    return build(depth, tuple(input_shape), classes)


def count_trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


@pytest.mark.parametrize("key", ROWS, ids=lambda key: "-".join(map(str, key)))
def test_positions_and_costs_are_the_authors(key):
    plain = backbone(key)
    assert ROWS[key]
    for row in ROWS[key]:
        model = ee.add_exits(
            plain,
            exits=row["early_exits"],
            placement=row["placement"],
            block=row["block"],
            cost="eenets",
        )
        said = row["placement"], row["early_exits"], row["block"]
        assert list(model.exit_layers) == [
            f"block{block}_out" for block in row["after_block"]
        ], said
        assert model.plain_macs == row["plain_macs"], said
        *costs, final = model.relative_costs
        np.testing.assert_allclose(
            costs, row["relative_costs"], rtol=0, atol=5.1e-5, err_msg=said
        )
        macs = np.multiply(costs, model.plain_macs)
        np.testing.assert_array_equal(macs.round(6), row["exit_macs"], said)
        assert final == 1
        assert count_trainable(plain) == row["plain_params"], said
        assert count_trainable(model.net) == row["eenet_params"], said


@pytest.mark.parametrize("filters", [2, 4])
def test_eenet8_costs_are_the_authors(filters):
    expected = EENETS["eenet8"][f"filters_{filters}"]
    plain = ee.backbones.eenet8(filters, (28, 28, 1), 10)
    model = ee.add_exits(plain, exits=["block1_out", "block2_out"])
    macs = model.relative_costs * model.plain_macs
    np.testing.assert_array_equal(macs.round(6), expected["macs"])
    np.testing.assert_allclose(
        model.relative_costs[:-1], expected["backbone_ratios"], atol=5.1e-5
    )
    confidence_at_final = 4 * filters + 1
    assert count_trainable(model.net) == (
        expected["params"] + confidence_at_final
    )


@pytest.mark.parametrize("exits", ["2", "3"])
@pytest.mark.parametrize("rule", placement.RULES)
def test_rules_have_the_authors_thresholds(rule, exits):
    expected = EENETS["placement_fractions"]["by_early_exits"][exits][rule]
    np.testing.assert_allclose(placement.RULES[rule](int(exits)), expected)


def test_convention_decides_where_a_rule_puts_exits(resnet_20):
    places = placement.place(resnet_20, 2, "pareto", "macs")
    assert names(places) == ["block2_out", "block4_out"]
    places = placement.place(resnet_20, 2, "pareto", "eenets")
    assert names(places) == ["block2_out", "block3_out"]


@pytest.mark.parametrize("name", NAMES)
def test_candidates_are_the_legal_cuts_with_the_macs_up_to_them(name):
    graph = surgery.trace(plain_and_early(name)[0])
    places = placement.candidates(graph)
    cuts = cutting.legal_cuts(graph)
    assert [p.index for p in places] == [cut.index for cut in cuts]
    total = ee.cost.count(keras.Model(graph.inputs, graph.outputs)).macs
    for place in places:
        head = keras.Model(graph.inputs, place.tensor)
        assert place.macs == ee.cost.count(head).macs, place.name
        assert place.fraction == place.macs / total


@pytest.mark.parametrize("name", BLOCK_ENDS)
def test_block_ends(name):
    plain, _ = plain_and_early(name)
    places = placement.candidates(plain)
    ends = [place for place in places if place.is_block_end]
    assert names(ends) == BLOCK_ENDS[name]
    eenets = placement.candidates(plain, "eenets")
    assert [p.is_block_end for p in eenets] == [p.is_block_end for p in places]


def test_block_ends_of_the_vision_transformer_leave_the_stem_out():
    places = placement.candidates(ZOO["vision_transformer"].build())
    ends = names([place for place in places if place.is_block_end])
    assert {"patches", "as_tokens", "positions"} <= set(names(places))
    assert ends[:3] == ["block0_add_0", "block0_add_1", "block1_add_0"]
    assert len(ends) == 4


def test_block_ends_of_a_resnet_are_its_blocks(resnet_20):
    ends = [p for p in placement.candidates(resnet_20) if p.is_block_end]
    assert names(ends)[:-1] == [f"block{i}_out" for i in range(1, 9)]
    assert names(ends)[-1] == "head_pool"


def test_logits_are_no_block_end():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, name="dense"),
            layers.ReLU(name="relu"),
            layers.Dense(2, name="logits"),
            layers.Softmax(name="softmax"),
        ]
    )
    places = placement.candidates(model)
    assert names(places) == ["dense", "relu", "logits"]
    assert [place.is_block_end for place in places] == [False, True, False]


@pytest.mark.parametrize(
    "exits, blocks", [(1, [5]), (2, [4, 7]), (3, [3, 5, 7])]
)
def test_even_placement_counts_blocks(resnet_20, exits, blocks):
    places = placement.place(resnet_20, exits, "even")
    assert names(places) == [f"block{block}_out" for block in blocks]


@pytest.mark.parametrize("rule", [*placement.RULES, "even"])
@pytest.mark.parametrize("exits", [1, np.int64(2), 4])
def test_rules_give_as_many_exits_as_asked_in_order(resnet_20, rule, exits):
    places = placement.place(resnet_20, exits, rule)
    assert len(places) == exits
    indices = [place.index for place in places]
    assert indices == sorted(set(indices))
    assert all(place.is_block_end for place in places)


def test_even_placement_fills_every_block_end(resnet_20):
    places = placement.place(resnet_20, 9, "even")
    ends = [p for p in placement.candidates(resnet_20) if p.is_block_end]
    assert names(places) == names(ends)


def test_fractions_take_the_first_block_end_that_reaches_them(resnet_20):
    ends = {p.name: p for p in placement.candidates(resnet_20)}
    share = ends["block4_out"].fraction
    assert names(placement.place(resnet_20, [share])) == ["block4_out"]
    above = [np.float32(0.6), share + 1e-9]
    assert names(placement.place(resnet_20, above)) == [
        "block5_out",
        "block6_out",
    ]
    # One exit each, also where two fractions lie in the same block.
    twice = placement.place(resnet_20, (0.01, 0.011))
    assert names(twice) == ["block1_out", "block2_out"]


def test_names_may_be_any_legal_cut_and_are_put_in_order(resnet_20):
    places = placement.place(resnet_20, ["block3_out", "stem_relu"])
    assert names(places) == ["stem_relu", "block3_out"]


def test_a_callable_chooses_among_the_block_ends(resnet_20):
    seen = []

    def every_third(ends, exits):
        seen.append((names(ends), exits))
        return [ends[5], "block3_out"]

    places = placement.place(resnet_20, 2, every_third)
    assert names(places) == ["block3_out", "block6_out"]
    (ends, exits) = seen[0]
    assert exits == 2
    assert len(ends) == 9


@pytest.mark.parametrize(
    "exits, rule, error, message",
    [
        (10, "pareto", ValueError, "at most 9 exits.*Received: exits=10"),
        (9, "pareto", ValueError, "found room for . of 9 exits.*'even'"),
        (0, "pareto", ValueError, "at least one exit.*exits=0"),
        (-1, "even", ValueError, "at least one exit"),
        ([], "pareto", ValueError, "at least one exit"),
        (True, "pareto", TypeError, "a count, a list.*exits=True .*bool"),
        ("block1_out", "pareto", TypeError, "a list of layer names.*str"),
        (2.0, "pareto", TypeError, "exits=2.0 .*float"),
        ([0.5, "block1_out"], "pareto", TypeError, "all.*or all"),
        ([0.5, 1.0], "pareto", ValueError, "between 0 and 1.*1.0 in exits"),
        ([0.0], "pareto", ValueError, "between 0 and 1.*Received: 0.0"),
        ([1, 2], "pareto", ValueError, "between 0 and 1.*Received: 1 in"),
        ([0.999, 0.9999], "pareto", ValueError, "places for 1 of the frac"),
        (2, "parteo", ValueError, "one of pareto, fine.*'parteo' .*str"),
        (2, ["even"], ValueError, "or a callable.*list"),
        (["block3_ot"], "", ValueError, "No layer 'block3_ot'.*block3_out"),
        (["block2_bn1"], "", ValueError, "'block2_bn1' cannot carry.*2 tens"),
        (["head"], "", ValueError, "own answer.*'final'.*head_pool"),
        (["block1_out"] * 2, "", ValueError, "two exits on 'block1_out'"),
        (2, lambda ends, exits: None, ValueError, "callable.*None .*NoneType"),
        (2, lambda ends, exits: [], ValueError, "callable.*Received: \\[\\]"),
        (2, lambda ends, exits: ["no"], ValueError, "callable.*'no'"),
        (2, lambda ends, exits: ends[:1] * 2, ValueError, "two exits on"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    resnet_20, exits, rule, error, message
):
    with pytest.raises(error, match=message):
        placement.place(resnet_20, exits, rule)


def test_a_cut_in_a_block_names_what_is_alive_and_the_cuts_around(resnet_20):
    with pytest.raises(
        ValueError,
        match=r"2 tensors are alive there \(block1_out, block2_relu1\), a cut "
        r"needs exactly one\..*Choose one of: block1_add, block1_out, "
        "block2_add, block2_out",
    ):
        placement.place(resnet_20, ["block2_relu1"])


def test_too_many_exits_for_a_model_with_few_cuts_says_where_cuts_are():
    graph = surgery.trace(ZOO["two_inputs_late"].build())
    with pytest.raises(
        ValueError,
        match=r"at most 1 exit, .*Received: exits=2\. Ask for fewer exits\. "
        r"Exits given by name.*'join' \(\d+\.\d\d%\), 'late_dense' .*second "
        "input",
    ):
        placement.place(graph, 2)
    graph = surgery.trace(ZOO["masked_transformer"].build())
    with pytest.raises(ValueError, match="the mask of block1_add_0.*: pool"):
        placement.place(graph, ["block1_add_0"])


def test_a_model_without_a_legal_cut_is_refused():
    inputs = keras.Input((4,))
    one = keras.Model(inputs, layers.Dense(2, "softmax")(inputs))
    x = layers.Dense(4)(inputs)
    skipped = keras.Model(inputs, layers.Concatenate()([x, inputs]))
    for model in (one, skipped):
        with pytest.raises(ValueError, match="at least one legal cut.*inputs"):
            placement.place(surgery.trace(model), 1)


def test_a_model_without_a_block_end_says_what_names_may_be():
    inputs = keras.Input((4, 4, 1))
    x = layers.Flatten(name="flatten")(inputs)
    model = keras.Model(inputs, layers.Dense(2, "softmax")(x))
    graph = surgery.trace(model)
    for exits in (1, [0.5]):
        with pytest.raises(ValueError, match="block ends.*by name.*'flatten'"):
            placement.place(graph, exits)


def test_open_axes_are_named_as_a_reason_for_no_block_end():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    graph = surgery.trace(keras.Model(inputs, layers.Dense(2, "softmax")(x)))
    with pytest.raises(ValueError, match="can be counted.*a fixed shape.*conv"):
        placement.place(graph, 1)


def test_axes_that_einsum_dense_leaves_open_are_counted():
    x = inputs = keras.Input((6, 8))
    for i in range(3):
        x = layers.EinsumDense("abc,cd->abd", (None, 8), name=f"mix_{i}")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(2, "softmax")(x))
    places = placement.candidates(model)
    assert [place.macs for place in places] == [384, 768, 1152, 1152]
    early = ee.add_exits(model, ["mix_0", "mix_1"])
    assert early.plain_macs == 1152 + 16
    np.testing.assert_allclose(
        early.relative_costs * early.plain_macs,
        [384 + 24, 768 + 48, 1152 + 16 + 48],
    )


def test_a_nested_model_stands_for_its_last_layer():
    graph = surgery.trace(ZOO["nested_functional"].build())
    assert names(placement.place(graph, ["base"])) == ["base_out"]
    graph = surgery.trace(ZOO["nested_sequential"].build())
    assert names(placement.place(graph, ["first"])) == ["first_relu"]
    with pytest.raises(ValueError, match="'image' is an input.*Choose one of"):
        placement.place(graph, ["image"])
