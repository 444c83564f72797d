"""Trains a logistic regression on the breast cancer data set, with Python's standard library alone.

Loss and accuracy of each epoch are logged over MLflow's REST API to MLFLOW_TRACKING_URI, and the model is written to
REDOUBT_OUTPUTS as model.json: weights, the scaling of the features, and which rows of the data were held out.
"""

import csv
import hashlib
import json
import math
import os
import pathlib
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
OUTPUTS = pathlib.Path(os.environ.get("REDOUBT_OUTPUTS", "."))
TRACKING = os.environ.get("MLFLOW_TRACKING_URI")
RUN_ID = os.environ.get("MLFLOW_RUN_ID", "")
EPOCHS = int(os.environ.get("EPOCHS", "40"))
STEPS_PER_EPOCH = 40
LEARNING_RATE = 0.05
DECAY = 0.001


def log(route, **fields):
    """Sends one request of MLflow's REST API. It returns when the platform has stored what was sent."""
    if not TRACKING:
        return
    body = json.dumps({"run_id": RUN_ID, **fields}).encode()
    request = urllib.request.Request(
        f"{TRACKING}/api/2.0/mlflow/runs/{route}", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        response.read()


def load():
    """Gives the names of the features, the rows, and the label of each row: 1 is benign."""
    with open(HERE / "breast-cancer.csv", newline="") as file:
        header, *lines = csv.reader(file)
    rows = [[float(cell) for cell in line] for line in lines]
    return header[:-1], [row[:-1] for row in rows], [int(row[-1]) for row in rows]


def held_out(index):
    """Whether a row is kept from training: a fifth of them, the same ones each time."""
    return hashlib.sha256(str(index).encode()).digest()[0] % 5 == 0


def scaling(rows):
    """Gives mean and standard deviation of each feature."""
    columns = list(zip(*rows))
    means = [sum(column) / len(column) for column in columns]
    stds = [
        math.sqrt(sum((value - mean) ** 2 for value in column) / len(column)) or 1.0
        for column, mean in zip(columns, means)
    ]
    return means, stds


def scale(row, means, stds):
    return [(value - mean) / std for value, mean, std in zip(row, means, stds)]


def probability(row, weights, bias):
    score = bias + sum(weight * value for weight, value in zip(weights, row))
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, score))))


def step(rows, labels, weights, bias):
    """One step of gradient descent over all rows."""
    gradient, slope = [0.0] * len(weights), 0.0
    for row, label in zip(rows, labels):
        error = probability(row, weights, bias) - label
        slope += error
        for i, value in enumerate(row):
            gradient[i] += error * value
    count = len(rows)
    weights = [
        weight - LEARNING_RATE * (g / count + DECAY * weight)
        for weight, g in zip(weights, gradient)
    ]
    return weights, bias - LEARNING_RATE * slope / count


def evaluate(rows, labels, weights, bias):
    """Gives mean loss and accuracy."""
    loss, right = 0.0, 0
    for row, label in zip(rows, labels):
        p = min(max(probability(row, weights, bias), 1e-12), 1 - 1e-12)
        loss -= math.log(p if label else 1 - p)
        right += (p >= 0.5) == (label == 1)
    return loss / len(rows), right / len(rows)


def main():
    features, rows, labels = load()
    test = [i for i in range(len(rows)) if held_out(i)]
    train = [i for i in range(len(rows)) if not held_out(i)]
    means, stds = scaling([rows[i] for i in train])
    scaled = [scale(row, means, stds) for row in rows]
    train_x, train_y = [scaled[i] for i in train], [labels[i] for i in train]
    test_x, test_y = [scaled[i] for i in test], [labels[i] for i in test]
    print(f"{len(rows)} rows, {len(features)} features: {len(train)} to train on, {len(test)} held out")

    log("log-batch", params=[
        {"key": "epochs", "value": str(EPOCHS)},
        {"key": "learning_rate", "value": str(LEARNING_RATE)},
        {"key": "held_out", "value": str(len(test))},
    ])
    log("set-tag", key="model", value="logistic regression")

    weights, bias = [0.0] * len(features), 0.0
    for epoch in range(1, EPOCHS + 1):
        for _ in range(STEPS_PER_EPOCH):
            weights, bias = step(train_x, train_y, weights, bias)
        loss, accuracy = evaluate(train_x, train_y, weights, bias)
        now = int(time.time() * 1000)
        log("log-batch", metrics=[
            {"key": "loss", "value": loss, "timestamp": now, "step": epoch},
            {"key": "accuracy", "value": accuracy, "timestamp": now, "step": epoch},
        ])
        print(f"epoch {epoch:2d}  loss {loss:.4f}  accuracy {accuracy:.4f}")

    loss, accuracy = evaluate(test_x, test_y, weights, bias)
    log("log-metric", key="held_out_accuracy", value=accuracy, timestamp=int(time.time() * 1000), step=EPOCHS)
    print(f"held out: loss {loss:.4f}  accuracy {accuracy:.4f}")

    model = {
        "features": features, "weights": weights, "bias": bias,
        "mean": means, "std": stds, "held_out": test,
    }
    (OUTPUTS / "model.json").write_text(json.dumps(model, indent=1) + "\n")
    print("model.json is written")


if __name__ == "__main__":
    main()
