package store

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store/db"
)

// Run is a run as it is stored.
type Run struct {
	UID, Workspace, Compute string
	// Kind says which of the fields below count. One that is not set is refused.
	Kind computev1.Run_Kind
	// Spec is what was submitted, with run_id filled in; its parent is the workspace's name. Of a replica it is made from Replica.
	Spec *computev1.SubmitRunRequest
	// Replica is what inference asked for; nil for all other kinds.
	Replica   *computev1.StartReplicaRequest
	Submitter string
	State     computev1.Run_State
	// Outcome is how it ended, or why it is where it is.
	Outcome *computev1.ReportRunRequest
	// Generation counts how often it was handed to an agent: 0 or 1, for a run is started once.
	Generation int64
	// AgentKey is the thumbprint of the agent's key, once one has come.
	AgentKey                                       string
	Cancel                                         bool
	Version                                        int64
	Created, Started, Ended, Heartbeat, CanceledAt time.Time // zero where it did not happen
	LogBytes                                       int64
	// Revoked says that identity has killed the run's tokens, Narrowed that it has limited them to what delivers.
	Revoked, Narrowed bool
	// DeliverUntil is until when the agent of a run that was cancelled, or given up as lost, may deliver; zero is not at all.
	DeliverUntil time.Time
	// Reported is what the agent of a lost run has reported since, and when.
	Reported   computev1.Run_State
	ReportedAt time.Time
	// Claim finds the run that was given for a claim, made by ClaimMAC; nil where it cannot be claimed again.
	Claim []byte
	// Experiment is the id of the experiment that it belongs to.
	Experiment string
	Deleted    Deleted
	// Instance is the one that started its agent on its own machine; "" where none did.
	Instance string
	// Stopped says that the platform has ended it: what is left of its agent is killed.
	Stopped bool
	// Labels are what is said of it besides: display name and user. nil where nothing was.
	Labels *computev1.CreateTrackedRunRequest
}

// Name is the run's resource name.
func (r *Run) Name() string { return r.Spec.GetParent() + "/runs/" + r.Spec.GetRunId() }

// DisplayName is the name that was given to it last.
func (r *Run) DisplayName() string {
	if r.Labels != nil {
		return r.Labels.GetDisplayName()
	}
	return r.Spec.GetDisplayName()
}

// HasEnded reports whether the run is in one of its last states.
func (r *Run) HasEnded() bool { return r.State >= computev1.Run_STATE_COMPLETED }

// MayDeliver reports whether all that the run's agent may do, at some time, is to deliver what it has.
func (r *Run) MayDeliver(now time.Time) bool {
	return (r.Cancel && !r.HasEnded() || r.State == computev1.Run_STATE_LOST) && now.Before(r.DeliverUntil)
}

// Delivers reports whether the agent of a run that has ended is still heard.
func (r *Run) Delivers(now time.Time) bool {
	return r.HasEnded() && r.MayDeliver(now) && r.Deleted == NotDeleted
}

// closed is what Delivers denies of a row: it has ended, and takes nothing more of its agent.
func closed(row db.Run, now time.Time) bool {
	late := row.State == int64(computev1.Run_STATE_LOST) && row.DeliverTime > micros(now) && row.Deleted == int64(NotDeleted)
	return row.State >= int64(computev1.Run_STATE_COMPLETED) && !late
}

func runAAD(workspace, uid, field string) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "run", ID: uid, Field: field}
}

// InsertRun stores a run that names no experiment by its display name; see Submit.
func (s *Store) InsertRun(ctx context.Context, r *Run, requestID string, record Record) (*Run, error) {
	return s.Submit(ctx, r, requestID, nil, record)
}

// Submit stores a run. With a request id that was used within the last day, the run of then is given back instead, if what was
// asked is the same. A run without an experiment joins the one that join is for; without either it is in Default.
func (s *Store) Submit(ctx context.Context, r *Run, requestID string, join *Join, record Record) (*Run, error) {
	key, err := s.keys.Key(ctx, r.Workspace)
	if err != nil {
		return nil, err
	}
	spec, outcome, err := s.sealRun(key, r)
	if err != nil {
		return nil, err
	}
	labels, err := sealLabels(key, r)
	if err != nil {
		return nil, err
	}
	requestMAC := []byte{}
	if requestID != "" {
		requestMAC = key.MAC("run request", r.Workspace+"/"+r.Submitter, requestID)
	}
	var earlier *Run
	err = s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		earlier = nil
		if requestID != "" {
			row, err := q.GetRunByRequest(ctx, db.GetRunByRequestParams{WorkspaceUID: r.Workspace, RequestMac: requestMAC, CreateTime: r.Created.Add(-24 * time.Hour).UnixMicro()})
			if err = sqldb.Fault(err); err == nil {
				earlier, err = s.run(ctx, row)
				return err
			} else if !fault.Is(err, codes.NotFound) {
				return err
			}
		}
		experiment, err := join.experiment(ctx, q, key, r)
		if err != nil {
			return err
		}
		n, err := q.InsertRun(ctx, db.InsertRunParams{
			UID: r.UID, WorkspaceUID: r.Workspace, ComputeUID: r.Compute, IDMac: key.MAC("run", r.Workspace, r.Spec.GetRunId()), RequestMac: requestMAC,
			Spec: spec, Outcome: outcome, Submitter: r.Submitter, State: int64(r.State), CreateTime: micros(r.Created), Kind: int64(r.Kind),
			StartTime: micros(r.Started), EndTime: micros(r.Ended), Experiment: experiment, Labels: labels,
		})
		if err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 {
			return fault.AlreadyExists("the workspace has a run of that id already")
		}
		if r.Compute != "" {
			if err := signal(ctx, tx, ComputeTopic(r.Compute), QueueTopic); err != nil {
				return err
			}
		}
		return record(ctx, tx)
	})
	if err != nil {
		return nil, err
	}
	if earlier != nil {
		return earlier, nil
	}
	return s.RunByUID(ctx, r.UID)
}

func (s *Store) sealRun(key *envelope.Key, r *Run) (spec, outcome []byte, err error) {
	if spec, err = sealSpec(key, r); err != nil {
		return nil, nil, err
	}
	outcome, err = sealOutcome(key, r)
	return spec, outcome, err
}

func sealOutcome(key *envelope.Key, r *Run) ([]byte, error) {
	if r.Outcome == nil {
		r.Outcome = &computev1.ReportRunRequest{}
	}
	b, err := proto.Marshal(r.Outcome)
	if err != nil {
		return nil, fault.Internal(err, "the run's end cannot be stored")
	}
	return key.Seal(runAAD(r.Workspace, r.UID, "outcome"), b)
}

// run opens a row.
func (s *Store) run(ctx context.Context, row db.Run) (*Run, error) {
	key, err := s.keys.Key(ctx, row.WorkspaceUID)
	if err != nil {
		return nil, err
	}
	r := &Run{
		UID: row.UID, Workspace: row.WorkspaceUID, Compute: row.ComputeUID, Submitter: row.Submitter, State: computev1.Run_State(row.State),
		Generation: row.Generation, AgentKey: row.AgentKey, Cancel: row.Cancel != 0, Version: row.Version, LogBytes: row.LogBytes, Revoked: row.Revoked != 0,
		Created: instant(row.CreateTime), Started: instant(row.StartTime), Ended: instant(row.EndTime), Heartbeat: instant(row.HeartbeatTime), CanceledAt: instant(row.CancelTime),
		Kind: computev1.Run_Kind(row.Kind), Outcome: &computev1.ReportRunRequest{}, Experiment: row.Experiment, Deleted: Deleted(row.Deleted), Instance: row.Instance, Stopped: row.Stopped != 0,
		Narrowed: row.Narrowed != 0, DeliverUntil: instant(row.DeliverTime), Reported: computev1.Run_State(row.ReportState), ReportedAt: instant(row.ReportTime), Claim: row.ClaimMac,
	}
	if err := openSpec(key, r, row.Spec); err != nil {
		return nil, err
	}
	if err := openLabels(key, r, row.Labels); err != nil {
		return nil, err
	}
	outcome, err := key.Open(runAAD(r.Workspace, r.UID, "outcome"), row.Outcome)
	if err != nil {
		return nil, err
	}
	if proto.Unmarshal(outcome, r.Outcome) != nil {
		return nil, fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the stored run cannot be read")
	}
	return r, nil
}

func (s *Store) runs(ctx context.Context, rows []db.Run) ([]*Run, error) {
	out := make([]*Run, 0, len(rows))
	for _, row := range rows {
		r, err := s.run(ctx, row)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// readable is for lists that span workspaces: a row that is damaged, or whose workspace has lost its key, must not stop the others.
func (s *Store) readable(ctx context.Context, rows []db.Run) []*Run {
	out := make([]*Run, 0, len(rows))
	for _, row := range rows {
		r, err := s.run(ctx, row)
		if err != nil {
			s.log.Warn("a run cannot be read and is passed over", "run_uid", row.UID, "error", err)
			continue
		}
		out = append(out, r)
	}
	return out
}

// Run finds a run by its id.
func (s *Store) Run(ctx context.Context, workspace, id string) (*Run, error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, err
	}
	row, err := db.New(s.db.Reader()).GetRunByID(ctx, db.GetRunByIDParams{WorkspaceUID: workspace, IDMac: key.MAC("run", workspace, id)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return s.run(ctx, row)
}

// RunByUID finds a run by its uid.
func (s *Store) RunByUID(ctx context.Context, uid string) (*Run, error) {
	row, err := db.New(s.db.Reader()).GetRun(ctx, uid)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return s.run(ctx, row)
}

// ListRuns gives runs after the cursor, newest first, but no replicas; state 0 is all.
func (s *Store) ListRuns(ctx context.Context, workspace string, state computev1.Run_State, deleted bool, after Cursor, limit int) ([]*Run, Cursor, error) {
	if after.Time == 0 {
		after.Time = 1 << 62
	}
	q := db.New(s.db.Reader())
	var rows []db.Run
	var err error
	most := int64(NotDeleted)
	if deleted {
		most = int64(DeletedWithExperiment)
	}
	if state == 0 {
		rows, err = q.ListRuns(ctx, db.ListRunsParams{WorkspaceUID: workspace, CreateTime: after.Time, UID: after.UID, Column4: int64(limit), Kind: int64(computev1.Run_KIND_REPLICA), Deleted: most})
	} else {
		rows, err = q.ListRunsInState(ctx, db.ListRunsInStateParams{WorkspaceUID: workspace, State: int64(state), CreateTime: after.Time, UID: after.UID, Column5: int64(limit), Kind: int64(computev1.Run_KIND_REPLICA), Deleted: most})
	}
	if err != nil {
		return nil, after, sqldb.Fault(err)
	}
	out, err := s.runs(ctx, rows)
	if n := len(rows); n > 0 {
		after = Cursor{Time: rows[n-1].CreateTime, UID: rows[n-1].UID}
	}
	return out, after, err
}

// WaitedFor gives the uids of the targets that runs wait for.
func (s *Store) WaitedFor(ctx context.Context) ([]string, error) {
	uids, err := db.New(s.db.Reader()).ComputesInState(ctx, int64(computev1.Run_STATE_QUEUED))
	return uids, sqldb.Fault(err)
}

// QueuedOn gives the runs that wait for one target, oldest first; one that does not open is passed over.
func (s *Store) QueuedOn(ctx context.Context, compute string, limit int) ([]*Run, error) {
	rows, err := db.New(s.db.Reader()).QueuedOnCompute(ctx, db.QueuedOnComputeParams{ComputeUID: compute, State: int64(computev1.Run_STATE_QUEUED), Column3: int64(limit)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return s.readable(ctx, rows), nil
}

// Active gives every run that an agent has or is on its way to; one that does not open is passed over.
func (s *Store) Active(ctx context.Context) ([]*Run, error) {
	rows, err := db.New(s.db.Reader()).RunsInStates(ctx, db.RunsInStatesParams{State: int64(computev1.Run_STATE_STARTING), State_2: int64(computev1.Run_STATE_FINALIZING)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return s.readable(ctx, rows), nil
}

// ActiveUIDs gives the uids of the runs that an agent has or is on its way to, readable or not.
func (s *Store) ActiveUIDs(ctx context.Context) ([]string, error) {
	rows, err := db.New(s.db.Reader()).RunsInStates(ctx, db.RunsInStatesParams{State: int64(computev1.Run_STATE_STARTING), State_2: int64(computev1.Run_STATE_FINALIZING)})
	uids := make([]string, 0, len(rows))
	for _, row := range rows {
		uids = append(uids, row.UID)
	}
	return uids, sqldb.Fault(err)
}

// Standing is what a row says of a run that has not ended.
type Standing struct {
	UID, Submitter string
	Created        time.Time
}

// NotEnded gives every run that waits or goes on, readable or not, but none that a client tracks.
func (s *Store) NotEnded(ctx context.Context) ([]Standing, error) {
	rows, err := db.New(s.db.Reader()).StandingRuns(ctx, db.StandingRunsParams{State: int64(computev1.Run_STATE_QUEUED), State_2: int64(computev1.Run_STATE_FINALIZING)})
	out := make([]Standing, 0, len(rows))
	for _, row := range rows {
		out = append(out, Standing{UID: row.UID, Submitter: row.Submitter, Created: instant(row.CreateTime)})
	}
	return out, sqldb.Fault(err)
}

// ActiveOn counts the runs that take up room on a target.
func (s *Store) ActiveOn(ctx context.Context, compute string) (int64, error) {
	return activeOn(ctx, s.db.Reader(), compute)
}

// ActiveOnIn is ActiveOn in the transaction that takes up more of it.
func ActiveOnIn(ctx context.Context, tx *sqldb.Tx, compute string) (int64, error) {
	return activeOn(ctx, tx, compute)
}

func activeOn(ctx context.Context, from sqldb.DBTX, compute string) (int64, error) {
	n, err := db.New(from).ActiveOnCompute(ctx, db.ActiveOnComputeParams{ComputeUID: compute, State: int64(computev1.Run_STATE_STARTING), State_2: int64(computev1.Run_STATE_FINALIZING)})
	return n, sqldb.Fault(err)
}

// NotRevoked gives runs of whose tokens identity has to be told something: that they are to be killed, or limited to what delivers. One that
// does not open is passed over.
func (s *Store) NotRevoked(ctx context.Context, now time.Time) ([]*Run, error) {
	rows, err := db.New(s.db.Reader()).NotRevoked(ctx, db.NotRevokedParams{
		State: int64(computev1.Run_STATE_STARTING), State_2: int64(computev1.Run_STATE_COMPLETED), DeliverTime: micros(now),
	})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return s.readable(ctx, rows), nil
}

// Update reads a run in a transaction, lets change alter it, and stores it if nobody else has in between. A change that returns
// an error changes nothing. record may be nil where change is part of another record.
func (s *Store) Update(ctx context.Context, uid string, change func(ctx context.Context, tx *sqldb.Tx, r *Run) error, record Record) (*Run, error) {
	before, err := s.RunByUID(ctx, uid) // opens the key outside the transaction
	if err != nil {
		return nil, err
	}
	key, err := s.keys.Key(ctx, before.Workspace)
	if err != nil {
		return nil, err
	}
	var out *Run
	err = s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		row, err := q.GetRun(ctx, uid)
		if err != nil {
			return sqldb.Fault(err)
		}
		r, err := s.run(ctx, row)
		if err != nil {
			return err
		}
		if err := change(ctx, tx, r); err != nil {
			return err
		}
		outcome, err := sealOutcome(key, r)
		if err != nil {
			return err
		}
		n, err := q.UpdateRun(ctx, db.UpdateRunParams{
			UID: uid, Version: row.Version, Outcome: outcome, State: int64(r.State), Generation: r.Generation, AgentKey: r.AgentKey, Cancel: flag(r.Cancel),
			StartTime: micros(r.Started), EndTime: micros(r.Ended), HeartbeatTime: micros(r.Heartbeat), CancelTime: micros(r.CanceledAt), LogBytes: r.LogBytes, Revoked: flag(r.Revoked),
			Instance: r.Instance, Stopped: flag(r.Stopped), Narrowed: flag(r.Narrowed), DeliverTime: micros(r.DeliverUntil), ReportState: int64(r.Reported),
			ReportTime: micros(r.ReportedAt), ClaimMac: r.Claim,
		})
		if err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 {
			return fault.Aborted("the run was changed in between; repeat the call")
		}
		r.Version++
		out = r
		topics := []string{RunTopic(uid)}
		if r.HasEnded() && row.State < int64(computev1.Run_STATE_COMPLETED) && r.Compute != "" {
			topics = append(topics, ComputeTopic(r.Compute), QueueTopic, EndedTopic)
		}
		if err := signal(ctx, tx, topics...); err != nil {
			return err
		}
		if record == nil {
			return nil
		}
		return record(ctx, tx)
	})
	return out, err
}

// MarkTold notes that identity has limited a run's tokens to what delivers or, where the run has ended, killed them. It needs no key, so it waits for
// nobody.
func (s *Store) MarkTold(ctx context.Context, uid string, deliver bool) error {
	return s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if deliver {
			return sqldb.Fault(db.New(tx).MarkNarrowed(ctx, uid))
		}
		return sqldb.Fault(db.New(tx).MarkRevoked(ctx, db.MarkRevokedParams{UID: uid, State: int64(computev1.Run_STATE_COMPLETED)}))
	})
}

// Touch notes a sign of life.
func (s *Store) Touch(ctx context.Context, uid string, now time.Time) error {
	return s.w.WriteGrouped(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := db.New(tx).TouchRun(ctx, db.TouchRunParams{UID: uid, HeartbeatTime: micros(now), State: int64(computev1.Run_STATE_COMPLETED)})
		return sqldb.Fault(err)
	})
}

// Left is what a row says of a run of which something may be left on a machine.
type Left struct {
	State   computev1.Run_State
	Stopped bool
	// DeliverUntil is as in Run.
	DeliverUntil time.Time
}

// HasEnded reports whether the run is in one of its last states.
func (l Left) HasEnded() bool { return l.State >= computev1.Run_STATE_COMPLETED }

// Left finds out without opening anything: the key of its workspace may be gone.
func (s *Store) Left(ctx context.Context, uid string) (Left, error) {
	row, err := db.New(s.db.Reader()).GetRun(ctx, uid)
	return Left{State: computev1.Run_State(row.State), Stopped: row.Stopped != 0, DeliverUntil: instant(row.DeliverTime)}, sqldb.Fault(err)
}

// ClaimMAC is what finds the run that was given to a caller at a target for a claim of his. Nobody else's claim is found by it.
func (s *Store) ClaimMAC(ctx context.Context, c Compute, principal, claim string) ([]byte, error) {
	if claim == "" {
		return nil, nil
	}
	key, err := s.keys.Key(ctx, c.Workspace)
	if err != nil {
		return nil, err
	}
	return key.MAC("run claim", c.UID+"/"+principal, claim), nil
}

// Claimed finds the run that was given for a claim.
func (s *Store) Claimed(ctx context.Context, compute string, claim []byte) (*Run, error) {
	row, err := db.New(s.db.Reader()).ClaimedRun(ctx, db.ClaimedRunParams{ComputeUID: compute, ClaimMac: claim})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return s.run(ctx, row)
}

// StartingOn gives the uids of the runs that an instance has taken out of the queue and of whose agents nothing was heard yet.
func (s *Store) StartingOn(ctx context.Context, instance string) ([]string, error) {
	uids, err := db.New(s.db.Reader()).StartingOf(ctx, db.StartingOfParams{Instance: instance, State: int64(computev1.Run_STATE_STARTING)})
	return uids, sqldb.Fault(err)
}

// OfWorkspace gives every run of a workspace.
func (s *Store) OfWorkspace(ctx context.Context, workspace string) ([]*Run, error) {
	rows, err := db.New(s.db.Reader()).RunsOfWorkspace(ctx, workspace)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return s.runs(ctx, rows)
}
