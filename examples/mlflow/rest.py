"""Does what stock_client.py does, over MLflow's REST API with Python's standard library.

Set MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN and MLFLOW_TRACKING_SERVER_CERT_PATH as docs/mlflow.md says.
"""

import json
import math
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

MODEL = "sweep"


class Client:
    """MLflow's REST API at a tracking URI."""

    def __init__(self, uri, token, ca):
        self.base = uri.rstrip("/") + "/api/2.0/"
        self.token = token
        self.tls = ssl.create_default_context(cafile=ca)

    def raw(self, method, path, data=None, kind=None):
        """Sends bytes, gives bytes. A refusal is an urllib.error.HTTPError."""
        request = urllib.request.Request(self.base + path, data=data, method=method)
        request.add_header("Authorization", "Bearer " + self.token)
        if kind:
            request.add_header("Content-Type", kind)
        with urllib.request.urlopen(request, context=self.tls, timeout=60) as answer:
            return answer.read()

    def get(self, route, **fields):
        """A GET with its fields in the query."""
        return json.loads(self.raw("GET", "mlflow/" + route + "?" + urllib.parse.urlencode(fields, doseq=True)))

    def post(self, route, **fields):
        """A POST with its fields in the body."""
        return json.loads(self.raw("POST", "mlflow/" + route, json.dumps(fields).encode(), "application/json"))


def code(error):
    """The error_code of a refusal."""
    return json.load(error).get("error_code")


def train(client, experiment, rate):
    """One run: parameters, a curve, a file."""
    now = int(time.time() * 1000)
    run = client.post("runs/create", experiment_id=experiment, run_name=f"rate-{rate}", start_time=now, tags=[{"key": "framework", "value": "none"}])["run"]["info"]
    curve = [{"key": "loss", "value": math.exp(-rate * step), "timestamp": now + step, "step": step} for step in range(20)]
    client.post("runs/log-batch", run_id=run["run_id"], metrics=curve, params=[{"key": "rate", "value": str(rate)}, {"key": "steps", "value": "20"}], tags=[])
    model = json.dumps({"rate": rate, "loss": curve[-1]["value"]}).encode()
    root = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    client.raw("PUT", "mlflow-artifacts/artifacts/" + root + "/model/model.json", model, "application/octet-stream")
    client.post("runs/update", run_id=run["run_id"], status="FINISHED", end_time=int(time.time() * 1000))


def main():
    """Tracks three runs, finds the best, registers it and reads it back."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        sys.exit("set MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN and MLFLOW_TRACKING_SERVER_CERT_PATH: see docs/mlflow.md")
    client = Client(uri, os.environ.get("MLFLOW_TRACKING_TOKEN", ""), os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    try:
        experiment = client.get("experiments/get-by-name", experiment_name="rest")["experiment"]["experiment_id"]
    except urllib.error.HTTPError as e:
        if code(e) != "RESOURCE_DOES_NOT_EXIST":
            raise
        experiment = client.post("experiments/create", name="rest")["experiment_id"]
    for rate in (0.1, 0.3, 0.5):
        train(client, experiment, rate)
    best = client.post("runs/search", experiment_ids=[experiment], filter="tags.framework = 'none'", order_by=["metrics.loss ASC"], max_results=1)["runs"][0]["info"]
    print("best:", best["run_name"])

    try:
        client.post("registered-models/create", name=MODEL, description="the best of a sweep")
    except urllib.error.HTTPError as e:
        if code(e) != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.post("model-versions/create", name=MODEL, source=f"runs:/{best['run_id']}/model", run_id=best["run_id"])["model_version"]["version"]
    client.post("registered-models/alias", name=MODEL, alias="champion", version=version)
    uri = client.get("model-versions/get-download-uri", name=MODEL, version=version)["artifact_uri"]
    print("version", version, "holds", client.raw("GET", "mlflow-artifacts/artifacts/" + uri.removeprefix("mlflow-artifacts:/") + "/model.json").decode())


if __name__ == "__main__":
    main()
