"""Tracks a small sweep with MLflow's own client: pip install 'mlflow-skinny<3', then set MLFLOW_TRACKING_URI as docs/mlflow.md says.

Nothing of Redoubt is imported: this is what any script that logs to MLflow does.
"""

import json
import math
import os
import sys
import tempfile

try:
    import mlflow
    from mlflow.tracking import MlflowClient
except ImportError:
    sys.exit("MLflow's client is not installed here: pip install 'mlflow-skinny<3', or run rest.py, which needs nothing but Python")

if not os.environ.get("MLFLOW_TRACKING_URI"):
    sys.exit("set MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN and MLFLOW_TRACKING_SERVER_CERT_PATH: see docs/mlflow.md")

MODEL = "sweep"


def train(rate):
    """One run: parameters, a curve, a file."""
    with mlflow.start_run(run_name=f"rate-{rate}") as run:
        mlflow.log_params({"rate": rate, "steps": 20})
        loss = 1.0
        for step in range(20):
            loss = math.exp(-rate * step)
            mlflow.log_metric("loss", loss, step=step)
        mlflow.set_tag("framework", "none")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.json")
            with open(path, "w", encoding="utf-8") as f:
                json.dump({"rate": rate, "loss": loss}, f)
            mlflow.log_artifact(path, artifact_path="model")
        return run.info.run_id


def main():
    """Tracks three runs, finds the best, registers it and reads it back."""
    mlflow.set_experiment("stock client")
    for rate in (0.1, 0.3, 0.5):
        train(rate)
    best = mlflow.search_runs(filter_string="tags.framework = 'none'", order_by=["metrics.loss ASC"], max_results=1, output_format="list")[0]
    print("best:", best.info.run_name, best.data.metrics["loss"])

    client = MlflowClient()
    try:
        client.create_registered_model(MODEL, description="the best of a sweep")
    except mlflow.exceptions.MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(MODEL, f"runs:/{best.info.run_id}/model", best.info.run_id)
    client.set_registered_model_alias(MODEL, "champion", version.version)
    with tempfile.TemporaryDirectory() as folder:
        uri = client.get_model_version_download_uri(MODEL, version.version)
        path = mlflow.artifacts.download_artifacts(artifact_uri=uri + "/model.json", dst_path=folder)
        with open(path, encoding="utf-8") as f:
            print("version", version.version, "holds", json.load(f))


if __name__ == "__main__":
    main()
