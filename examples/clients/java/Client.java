import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import io.grpc.*;
import io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.nio.file.*;
import java.security.MessageDigest;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;
import io.github.redoubt_ml.redoubt.compute.v1.*;
import io.github.redoubt_ml.redoubt.identity.v1.*;
import io.github.redoubt_ml.redoubt.telemetry.v1.*;
import io.github.redoubt_ml.redoubt.workspace.v1.*;

/**
 * A Redoubt client in Java: sign in, make a workspace, submit a run, follow its logs, read its metric and an error's reason.
 *
 * <p>usage: Client SERVER CA_FILE USER PASSWORD_FILE WORKSPACE_ID COMPUTE FILE (as ../python/client.py)
 *
 * <p>Needs grpc-java with Netty, and what `make clients` generates: see ../README.md.
 */
public final class Client {
  /** Adds the token to every call. */
  static final class Bearer extends CallCredentials {
    private static final Metadata.Key<String> KEY = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
    private final String token;

    Bearer(String token) {
      this.token = token;
    }

    @Override
    public void applyRequestMetadata(RequestInfo call, java.util.concurrent.Executor executor, MetadataApplier to) {
      Metadata headers = new Metadata();
      headers.put(KEY, "Bearer " + token);
      to.apply(headers);
    }

    @Override
    public void thisUsesUnstableApi() {}
  }

  /** The one ErrorInfo that every error of Redoubt carries. */
  static String reason(StatusRuntimeException e) throws Exception {
    for (var detail : StatusProto.fromThrowable(e).getDetailsList()) {
      if (detail.is(ErrorInfo.class)) return detail.unpack(ErrorInfo.class).getReason();
    }
    return "none";
  }

  /** Makes a snapshot of one file: its content by digest, if the workspace does not have it yet, and then its name. */
  static String upload(Channel channel, CallCredentials token, String parent, Path file) throws Exception {
    byte[] data = Files.readAllBytes(file);
    ByteString digest = ByteString.copyFrom(MessageDigest.getInstance("SHA-256").digest(data));
    var snapshots = SnapshotServiceGrpc.newBlockingStub(channel).withCallCredentials(token);
    if (snapshots.findMissingBlobs(FindMissingBlobsRequest.newBuilder().setParent(parent).addDigests(digest).build()).getMissingCount() > 0) {
      var stored = new CompletableFuture<Void>();
      var answer = new StreamObserver<UploadBlobResponse>() {
        public void onNext(UploadBlobResponse r) {}
        public void onError(Throwable t) { stored.completeExceptionally(t); }
        public void onCompleted() { stored.complete(null); }
      };
      var stream = SnapshotServiceGrpc.newStub(channel).withCallCredentials(token).uploadBlob(answer);
      stream.onNext(UploadBlobRequest.newBuilder().setParent(parent).setDigest(digest).setSize(data.length).setData(ByteString.copyFrom(data)).build());
      stream.onCompleted();
      stored.get();
    }
    var entry = SnapshotEntry.newBuilder().setPath(file.getFileName().toString()).setDigest(digest).setSize(data.length);
    return snapshots.createSnapshot(CreateSnapshotRequest.newBuilder().setParent(parent).addEntries(entry).build()).getName();
  }

  public static void main(String[] arg) throws Exception {
    if (arg.length != 7) throw new IllegalArgumentException("usage: Client SERVER CA_FILE USER PASSWORD_FILE WORKSPACE_ID COMPUTE FILE");
    var tls = GrpcSslContexts.forClient().trustManager(new File(arg[1])).build();
    ManagedChannel channel = NettyChannelBuilder.forTarget(arg[0]).sslContext(tls).build();
    String password = Files.readString(Path.of(arg[3])).strip();
    var session = SignInServiceGrpc.newBlockingStub(channel).signIn(SignInRequest.newBuilder().setUser(arg[2]).setPassword(password).build()).getSession();
    System.out.println("signed in: " + session.getPrincipal());

    var token = new Bearer(session.getAccessToken());
    var resources = ResourceServiceGrpc.newBlockingStub(channel).withCallCredentials(token);
    var made = resources.createWorkspace(CreateWorkspaceRequest.newBuilder().setParent("subscriptions/default/resourceGroups/default")
        .setWorkspaceId(arg[4]).setRequestId(UUID.randomUUID().toString()).build());
    System.out.println("workspace: " + made.getName());

    String parent = arg[5].substring(0, arg[5].indexOf("/computes/"));
    Path file = Path.of(arg[6]);
    var runs = RunServiceGrpc.newBlockingStub(channel).withCallCredentials(token);
    var run = runs.submitRun(SubmitRunRequest.newBuilder().setParent(parent).setCompute(arg[5]).setSnapshot(upload(channel, token, parent, file))
        .addCommand("python3").addCommand(file.getFileName().toString()).setRequestId(UUID.randomUUID().toString()).build());
    var lines = runs.streamLogs(StreamLogsRequest.newBuilder().setName(run.getName()).setFollow(true).build());
    while (lines.hasNext()) System.out.print(lines.next().getData().toStringUtf8());
    var states = runs.watchRun(WatchRunRequest.newBuilder().setName(run.getName()).build());
    while (states.hasNext()) run = states.next(); // the stream ends with the run
    System.out.println("state: " + run.getState());

    var history = MetricServiceGrpc.newBlockingStub(channel).withCallCredentials(token)
        .listMetricHistory(ListMetricHistoryRequest.newBuilder().setRun(run.getName()).setKey("loss").build());
    System.out.println("loss: " + history.getMetricsList().stream().map(m -> String.format("%s", m.getValue()).replaceAll("\\.0$", "")).collect(Collectors.joining(" ")));

    try {
      runs.getRun(GetRunRequest.newBuilder().setName(parent + "/runs/no-such-run").build());
    } catch (StatusRuntimeException e) {
      System.out.println("refused: " + e.getStatus().getCode() + " " + reason(e));
    }
    resources.deleteWorkspace(DeleteWorkspaceRequest.newBuilder().setName(made.getName()).build());
    channel.shutdownNow();
  }
}
