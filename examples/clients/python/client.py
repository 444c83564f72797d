"""A Redoubt client in Python: sign in, make a workspace, submit a run, follow its logs, read its metric and an error's reason.

usage: client.py SERVER CA_FILE USER PASSWORD_FILE WORKSPACE_ID COMPUTE FILE
  SERVER   host:port of the gateway; CA_FILE the root that it is believed by
  COMPUTE  the full name of a compute target: subscriptions/…/workspaces/…/computes/…
  FILE     the Python program to run

Needs grpcio, and what `make clients` generates: see ../README.md.
"""

import hashlib
import pathlib
import sys
import uuid

import grpc
from google.rpc import error_details_pb2, status_pb2
from redoubt.compute.v1 import compute_pb2, compute_pb2_grpc
from redoubt.identity.v1 import identity_pb2, identity_pb2_grpc
from redoubt.telemetry.v1 import telemetry_pb2, telemetry_pb2_grpc
from redoubt.workspace.v1 import snapshot_pb2, snapshot_pb2_grpc, workspace_pb2, workspace_pb2_grpc

GROUP = "subscriptions/default/resourceGroups/default"


class Bearer(grpc.AuthMetadataPlugin):
    """Adds the token to every call."""

    def __init__(self, token):
        self._token = token

    def __call__(self, context, callback):
        callback((("authorization", "Bearer " + self._token),), None)


def reason(error):
    """The one ErrorInfo that every error of Redoubt carries."""
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return "none"


def upload(channel, workspace, path):
    """Makes a snapshot of one file: its content by digest, if the workspace does not have it yet, and then its name."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).digest()
    snapshots = snapshot_pb2_grpc.SnapshotServiceStub(channel)
    if snapshots.FindMissingBlobs(snapshot_pb2.FindMissingBlobsRequest(parent=workspace, digests=[digest])).missing:
        first = snapshot_pb2.UploadBlobRequest(parent=workspace, digest=digest, size=len(data), data=data)
        snapshots.UploadBlob(iter([first]))
    entry = snapshot_pb2.SnapshotEntry(path=path.name, digest=digest, size=len(data))
    return snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(parent=workspace, entries=[entry]))


def main(server, ca_file, user, password_file, workspace_id, compute, file):
    tls = grpc.ssl_channel_credentials(pathlib.Path(ca_file).read_bytes())
    with grpc.secure_channel(server, tls) as anonymous:
        password = pathlib.Path(password_file).read_text().strip()
        answer = identity_pb2_grpc.SignInServiceStub(anonymous).SignIn(identity_pb2.SignInRequest(user=user, password=password))
    print("signed in:", answer.session.principal)

    token = grpc.metadata_call_credentials(Bearer(answer.session.access_token))
    with grpc.secure_channel(server, grpc.composite_channel_credentials(tls, token)) as channel:
        workspaces = workspace_pb2_grpc.ResourceServiceStub(channel)
        made = workspaces.CreateWorkspace(
            workspace_pb2.CreateWorkspaceRequest(parent=GROUP, workspace_id=workspace_id, request_id=str(uuid.uuid4()))
        )
        print("workspace:", made.name)

        parent = compute.rsplit("/computes/", 1)[0]
        path = pathlib.Path(file)
        snapshot = upload(channel, parent, path)
        runs = compute_pb2_grpc.RunServiceStub(channel)
        run = runs.SubmitRun(
            compute_pb2.SubmitRunRequest(
                parent=parent, compute=compute, snapshot=snapshot.name, command=["python3", path.name], request_id=str(uuid.uuid4())
            )
        )
        for chunk in runs.StreamLogs(compute_pb2.StreamLogsRequest(name=run.name, follow=True)):
            print(chunk.data.decode(), end="")
        for run in runs.WatchRun(compute_pb2.WatchRunRequest(name=run.name)):
            pass  # the stream ends with the run
        print("state:", compute_pb2.Run.State.Name(run.state))

        data = telemetry_pb2_grpc.MetricServiceStub(channel)
        history = data.ListMetricHistory(telemetry_pb2.ListMetricHistoryRequest(run=run.name, key="loss"))
        print("loss:", " ".join(f"{m.value:g}" for m in history.metrics))

        try:
            runs.GetRun(compute_pb2.GetRunRequest(name=parent + "/runs/no-such-run"))
        except grpc.RpcError as e:
            print("refused:", e.code().name, reason(e))
        workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(name=made.name))


if __name__ == "__main__":
    if len(sys.argv) != 8:
        sys.exit(__doc__)
    main(*sys.argv[1:])
