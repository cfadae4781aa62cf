"""What `ee.plan_cut` says of a run, from both sides' profiles."""

import keras_earlyexit as ee
from _hierarchical import setting
from keras_earlyexit.planning.planner import LABEL_BYTES


class Predictions:
    """Predicts runs of the benchmark.

    Args:
        model: The network.
        profiles: Those of edge and cloud, as JSON.
        round_trip_s: Of the link.
    """

    def __init__(self, model, profiles, round_trip_s):
        self._model = model
        self._profiles = [ee.cost.DeviceProfile.from_json(p) for p in profiles]
        self._round_trip_s = round_trip_s
        feature = model.net.get_layer(model.exit_layers[0]).output
        self._elements = feature.shape[1] * feature.shape[2] * feature.shape[3]

    def __call__(self, row):
        """Seconds of a run, and what it waits for, a dict.

        Bytes and the share that goes up are those of the run: what a codec
        makes of a feature is not the plan's to know.
        """
        share = row.get("share", 1.0)
        samples = row["steps"] * setting.BATCH
        each = row["bytes_up"] / (share * samples) - LABEL_BYTES
        plan = ee.plan_cut(
            self._model,
            *self._profiles,
            ee.cost.Link(row["rate"] * 1e6, self._round_trip_s),
            mode="train",
            batch_size=setting.BATCH,
            bytes_per_element=each / self._elements,
            input_bytes=each,
            forward=share,
            samples=samples,
        )
        ways = {"whole": "cloud", "split": "split_learning"}
        (found,) = (
            x for x in plan.rows if x.way == ways.get(row["way"], "cut")
        )
        parts = {
            "edge": found.edge_seconds,
            "link": found.link_seconds,
            "cloud": found.cloud_seconds,
        }
        return {
            "predicted": found.epoch_seconds,
            "bottleneck": max(parts, key=parts.get),
            **{f"predicted_{k}": v for k, v in parts.items()},
        }
