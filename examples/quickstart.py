"""Early exits in thirty lines: train, choose a threshold, answer."""

import keras

import keras_earlyexit as ee

keras.utils.set_random_seed(0)
data = {}
for split in ("train", "calibration", "test"):
    x, y = ee.datasets.load("digits", split)
    data[split] = ee.datasets.normalize("digits", x), y

plain = ee.backbones.resnet_cifar(20, (8, 8, 1), num_classes=10)
model = ee.add_exits(plain, exits=2, block="plain", policy="max_probability")

model.compile(
    keras.optimizers.Adam(2e-3), ee.objectives.TwoStage("eenet_v2", epochs=8)
)
model.fit(*data["train"], batch_size=64, epochs=24, verbose=2)

# The threshold comes from data that the model was not trained on.
print(ee.calibrate(model, *data["calibration"], risk="performance_gap"))

x, y = data["test"]
result = model.predict_exits(x)
accuracy = (result.predictions.argmax(axis=-1) == y).mean()
print(f"accuracy {accuracy:.1%} at {result.mean_cost:.1%} of the plain cost")
print("left at", result.exit_shares(3).round(3), "of", model.exit_names)
