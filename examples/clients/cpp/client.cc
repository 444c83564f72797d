// A Redoubt client in C++: sign in, make a workspace, submit a run, follow its logs, read its metric and an error's reason.
// usage: client SERVER CA_FILE USER PASSWORD_FILE WORKSPACE_ID COMPUTE FILE      (as ../python/client.py; ../README.md says what it needs)
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <openssl/sha.h>
#include <fstream>
#include <functional>
#include <iostream>
#include <sstream>
#include "redoubt/compute/v1/compute.grpc.pb.h"
#include "redoubt/identity/v1/identity.grpc.pb.h"
#include "redoubt/telemetry/v1/telemetry.grpc.pb.h"
#include "redoubt/workspace/v1/snapshot.grpc.pb.h"
#include "redoubt/workspace/v1/workspace.grpc.pb.h"
using namespace redoubt::compute::v1;
using namespace redoubt::identity::v1;
using namespace redoubt::telemetry::v1;
using namespace redoubt::workspace::v1;

std::string read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return in ? std::string(std::istreambuf_iterator<char>(in), {}) : throw std::runtime_error("cannot read " + path);
}

// The one ErrorInfo that every error of Redoubt carries.
std::string reason(const grpc::Status& s) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  details.ParseFromString(s.error_details());
  for (const auto& d : details.details())
    if (d.UnpackTo(&info)) return info.reason();
  return "none";
}

// Makes one call, and fails as it does.
void call(const std::function<grpc::Status(grpc::ClientContext*)>& f) {
  grpc::ClientContext context;
  auto s = f(&context);
  if (!s.ok()) throw std::runtime_error(s.error_message() + " (" + reason(s) + ")");
}

// Reads a stream to its end.
template <typename R, typename M, typename F>
grpc::Status each(R stream, M* message, F f) {
  while (stream->Read(message)) f();
  return stream->Finish();
}

// Makes a snapshot of one file: its content by digest, and then its name. (A content that the workspace has is taken again.)
std::string upload(std::shared_ptr<grpc::Channel> channel, const std::string& parent, const std::string& name, const std::string& data) {
  unsigned char sum[SHA256_DIGEST_LENGTH];
  std::string digest(reinterpret_cast<char*>(SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(), sum)), sizeof sum);
  auto snapshots = SnapshotService::NewStub(channel);
  UploadBlobRequest first;
  UploadBlobResponse stored;
  first.set_parent(parent), first.set_digest(digest), first.set_size(data.size()), first.set_data(data);
  call([&](auto* c) {
    auto stream = snapshots->UploadBlob(c, &stored);
    return stream->Write(first), stream->WritesDone(), stream->Finish();
  });
  CreateSnapshotRequest create;
  Snapshot snapshot;
  create.set_parent(parent), create.add_entries()->set_path(name);
  create.mutable_entries(0)->set_digest(digest), create.mutable_entries(0)->set_size(data.size());
  call([&](auto* c) { return snapshots->CreateSnapshot(c, create, &snapshot); });
  return snapshot.name();
}

void run(char** arg) {
  auto tls = grpc::SslCredentials({read(arg[2]), "", ""});
  SignInRequest in;
  SignInResponse session;
  std::istringstream(read(arg[4])) >> *in.mutable_password();
  in.set_user(arg[3]);
  call([&](auto* c) { return SignInService::NewStub(grpc::CreateChannel(arg[1], tls))->SignIn(c, in, &session); });
  std::cout << "signed in: " << session.session().principal() << "\n";
  auto channel = grpc::CreateChannel(arg[1], grpc::CompositeChannelCredentials(tls, grpc::AccessTokenCredentials(session.session().access_token())));  // on every call
  auto resources = ResourceService::NewStub(channel);
  CreateWorkspaceRequest create;
  Workspace made;
  create.set_parent("subscriptions/default/resourceGroups/default"), create.set_workspace_id(arg[5]);
  call([&](auto* c) { return resources->CreateWorkspace(c, create, &made); });
  std::cout << "workspace: " << made.name() << "\n";
  std::string target = arg[6], parent = target.substr(0, target.find("/computes/")), file = arg[7], name = file.substr(file.rfind('/') + 1);
  SubmitRunRequest submit;
  Run run;
  submit.set_parent(parent), submit.set_compute(target), submit.set_snapshot(upload(channel, parent, name, read(file)));
  submit.add_command("python3"), submit.add_command(name);
  auto runs = RunService::NewStub(channel);
  call([&](auto* c) { return runs->SubmitRun(c, submit, &run); });
  StreamLogsRequest logs;
  WatchRunRequest watch;
  LogChunk chunk;
  logs.set_name(run.name()), logs.set_follow(true), watch.set_name(run.name());
  call([&](auto* c) { return each(runs->StreamLogs(c, logs), &chunk, [&] { std::cout << chunk.data() << std::flush; }); });
  call([&](auto* c) { return each(runs->WatchRun(c, watch), &run, [] {}); });  // the stream ends with the run
  std::cout << "state: " << Run::State_Name(run.state()) << "\n";
  ListMetricHistoryRequest ask;
  ListMetricHistoryResponse history;
  ask.set_run(run.name()), ask.set_key("loss");
  call([&](auto* c) { return MetricService::NewStub(channel)->ListMetricHistory(c, ask, &history); });
  std::cout << "loss:";
  for (const auto& m : history.metrics()) std::cout << " " << m.value();
  grpc::ClientContext context;
  watch.set_name(parent + "/runs/no-such-run");
  auto refused = runs->WatchRun(&context, watch)->Finish();
  std::cout << "\nrefused: " << (refused.error_code() == grpc::NOT_FOUND ? "NOT_FOUND" : "?") << " " << reason(refused) << "\n";
  DeleteWorkspaceRequest remove;
  google::protobuf::Empty empty;
  remove.set_name(made.name());
  call([&](auto* c) { return resources->DeleteWorkspace(c, remove, &empty); });
}

int main(int argc, char** argv) try {
  return argc == 8 ? (run(argv), 0) : throw std::runtime_error("it takes seven arguments: see above");
} catch (const std::exception& e) {
  return std::cerr << e.what() << "\n", 1;
}
