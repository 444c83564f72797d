"""Scores rows with the model that train.py has left: whether a tumour is benign, by 30 measured features.

POST {"data": [[17.99, 10.38, …], …]} and get {"predictions": [0, …], "probabilities": [0.0001, …]}: 1 is benign, and the probability
is that of being so.
"""

import json
import math
import os
import pathlib

model = None


def init():
    """Loads the model, once in each worker."""
    global model
    model = json.loads((pathlib.Path(os.environ["AZUREML_MODEL_DIR"]) / "model.json").read_text())


def probability(row):
    """Gives the probability that a row is benign."""
    if len(row) != len(model["weights"]):
        raise ValueError(f"a row has {len(model['weights'])} features, and this one has {len(row)}")
    score = model["bias"] + sum(
        weight * (float(value) - mean) / std
        for weight, value, mean, std in zip(model["weights"], row, model["mean"], model["std"])
    )
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, score))))


def run(raw_data):
    """Tells benign from malignant tumours.

    A row is the 30 features in the order of the data set's header.
    """
    probabilities = [probability(row) for row in json.loads(raw_data)["data"]]
    return {"predictions": [int(p >= 0.5) for p in probabilities], "probabilities": probabilities}


run.input_sample = {"data": [[
    17.99, 10.38, 122.8, 1001, 0.1184, 0.2776, 0.3001, 0.1471, 0.2419, 0.07871, 1.095, 0.9053, 8.589, 153.4, 0.006399, 0.04904, 0.05373, 0.01587,
    0.03003, 0.006193, 25.38, 17.33, 184.6, 2019, 0.1622, 0.6656, 0.7119, 0.2654, 0.4601, 0.1189,
]]}
run.output_sample = {"predictions": [0], "probabilities": [0.0001]}
