package flow

import (
	"time"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// Endpoint is what the listener needs to know of one endpoint. It must not be changed after Set, nor what it refers to.
type Endpoint struct {
	UID, WorkspaceUID string
	// Name is the full resource name.
	Name string
	Kind inferencev1.Endpoint_Kind
	// Auth is the one form of credential that opens the endpoint. AUTH_UNSPECIFIED lets nobody in.
	Auth inferencev1.Endpoint_Auth
	// Credentials are those of the form Auth.
	Credentials []Credential
	// Others are the endpoint's credentials of the other form. They open nothing: who sends one is told which form the endpoint takes.
	Others []Credential
	// Deployments by their id.
	Deployments map[string]*Deployment
	// Traffic has the deployments with a percentage above 0.
	Traffic []Share
	// Mirror is the deployment that gets copies, or nil.
	Mirror *Share
}

// Credential is a key or a token, known by its SHA-256.
type Credential struct {
	Hash [32]byte
	// Label is "key-primary", "key-secondary" or "token".
	Label string
	// Principal is the uid of who a token was issued to, "" for a key.
	Principal string
	// Expires is when it ends; zero: never.
	Expires time.Time
}

// Share is a deployment's part of the requests.
type Share struct {
	Deployment string
	Percent    int
}

// Deployment is what the listener needs to know of one deployment.
type Deployment struct {
	ID, UID string
	// Model and ModelVersion are ids, for the metadata of the Open Inference Protocol.
	Model, ModelVersion string
	// QueueLength is how many requests may wait for a worker; 0 means none.
	QueueLength int
	// MaxBodyBytes of a request, unpacked; 0 means 10 MiB.
	MaxBodyBytes int64
	// Timeout of a request, its time in the queue included; 0 means 30 s.
	Timeout time.Duration
	// Replicas are the uids of the runs that take requests now.
	Replicas []string
}

// Log takes the record of each request. Append never blocks, and the record survives the process once it has returned. It must not keep
// r: the record is used again.
type Log interface {
	Append(r *telemetryv1.ScoringRequest)
}
