"""Exits where the network answers at every position: costs and places."""

import keras
import numpy as np
import pytest
from dense_tasks import segmenter, tagger
from keras import layers

import keras_earlyexit as ee


def test_costs_count_each_block_where_it_works():
    model = ee.add_exits(segmenter(), exits=["stem", "middle"], block="dense")
    layers_macs = {
        "stem": 64 * 9 * 8,
        "down": 16 * 9 * 8 * 12,
        "middle": 16 * 9 * 12 * 12,
        "narrow": 64 * 12 * 8,
        "head": 64 * 8 * 4,
    }
    plain = sum(layers_macs.values())
    assert model.plain_macs == plain == ee.cost.count(segmenter()).macs
    # The second feature has half the size: its branch runs before the resize.
    first, second = 64 * 8 * 4 + 8, 16 * 12 * 4 + 12
    to_middle = sum(layers_macs[name] for name in ("stem", "down", "middle"))
    np.testing.assert_allclose(
        model.relative_costs * plain,
        [
            layers_macs["stem"] + first,
            to_middle + first + second,
            plain + first + second,
        ],
    )
    assert ee.cost.count(model).reliable


def test_exits_go_where_a_rule_puts_them():
    for build in (segmenter, tagger):
        model = ee.add_exits(build(), exits=1, block="dense")
        assert len(model.exit_layers) == 1
        assert model.predict(np.zeros((2, *model.net.input.shape[1:]))).ndim > 2


@pytest.mark.parametrize("block", ["pool", "plain", ee.ExitBlock(4, "conv")])
def test_blocks_that_answer_once_name_the_one_that_fits(block):
    with pytest.raises(ValueError, match="every position.*block='dense'"):
        ee.add_exits(segmenter(), block=block)


def test_a_callable_block_may_return_a_feature():
    def deeper(feature):
        return layers.Conv2D(16, 3, padding="same", activation="relu")(feature)

    model = ee.add_exits(segmenter(), exits=["middle"], block=deeper)
    block = model.net.get_layer("exit_0")
    assert (block.kind, block.positions) == ("dense", (8, 8))
    assert model.net.output["exit_0"].shape == (None, 8, 8, 4)
    with pytest.raises(ValueError, match=r"\(batch, positions\.\.\., chan"):
        ee.add_exits(
            segmenter(), ["middle"], block=lambda x: layers.Flatten()(x)
        )


def test_a_dense_block_needs_a_head_with_positions():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.GlobalAveragePooling2D()(x)
    plain = keras.Model(image, layers.Dense(3, "softmax")(x))
    with pytest.raises(ValueError, match=r"positions of shape \(\).*'pool'"):
        ee.add_exits(plain, ["conv"], block="dense")


def test_long_skips_leave_cuts_before_the_first_one():
    image = keras.Input((8, 8, 1))
    early = layers.Conv2D(6, 3, padding="same", name="early")(image)
    skip = layers.Conv2D(6, 3, padding="same", name="skip")(early)
    x = layers.Conv2D(8, 3, 2, "same", name="down")(skip)
    x = layers.UpSampling2D(name="up")(x)
    x = layers.Concatenate(name="join")([x, skip])
    plain = keras.Model(image, layers.Conv2D(11, 1, activation="softmax")(x))
    with pytest.raises(ValueError, match="'down'.*two|2 tensors are alive"):
        ee.add_exits(plain, ["down"], block="dense")
    model = ee.add_exits(plain, ["skip", "join"], block="dense")
    assert model.exit_layers == ("skip", "join")
