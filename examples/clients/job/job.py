"""The job that the client examples submit: three steps, each with a line and a metric. It needs Python's standard library."""

import json
import os
import urllib.request

TRACKING, RUN = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"]

for step in range(3):
    loss = 1 / 2**step
    body = {"run_id": RUN, "key": "loss", "value": loss, "step": step, "timestamp": 0}
    call = urllib.request.Request(
        TRACKING + "/api/2.0/mlflow/runs/log-metric", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(call, timeout=30).read()
    print("step", step, "loss", loss, flush=True)
