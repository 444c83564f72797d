package store

import (
	"context"
	"crypto/rand"
	"math/big"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store/db"
)

// DefaultExperiment is the id of the experiment that every workspace has, and DefaultName what it is called at first.
const (
	DefaultExperiment = "0"
	DefaultName       = "Default"
)

// MaxExperiments is how many a workspace may have, deleted ones too, and MaxExperimentBytes how long name and tags of one may be: they
// are searched by opening all of them.
const (
	MaxExperiments     = 10_000
	MaxExperimentBytes = 1 << 20
)

// Experiment is a named group of runs.
type Experiment struct {
	// UID is "" for Default without a row.
	UID, Workspace, ID string
	DisplayName        string
	Tags               map[string]string
	Deleted            bool
	Version            int64
	Created, Updated   time.Time
	CreatedBy          string
}

// NewExperimentID makes an id as MLflow's clients know them: 18 digits.
func NewExperimentID() (string, error) {
	least := int64(100_000_000_000_000_000)
	n, err := rand.Int(rand.Reader, big.NewInt(9*least))
	if err != nil {
		return "", fault.Internal(err, "no random number for the id of an experiment")
	}
	return n.Add(n, big.NewInt(least)).String(), nil
}

func virtual(workspace string) *Experiment {
	return &Experiment{Workspace: workspace, ID: DefaultExperiment, DisplayName: DefaultName}
}

func experimentAAD(workspace, uid string) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "experiment", ID: uid, Field: "content"}
}

func nameMAC(key *envelope.Key, workspace, name string) []byte {
	return key.MAC("experiment", workspace, name)
}

// sealExperiment binds the id too, so that two rows cannot exchange theirs.
func sealExperiment(key *envelope.Key, e *Experiment) ([]byte, error) {
	b, err := proto.Marshal(&computev1.Experiment{Name: e.ID, DisplayName: e.DisplayName, Tags: e.Tags})
	if err != nil {
		return nil, fault.Internal(err, "the experiment cannot be stored")
	}
	if len(b) > MaxExperimentBytes {
		return nil, fault.ResourceExhausted("the tags of an experiment have at most %d bytes in all; remove some first", MaxExperimentBytes)
	}
	return key.Seal(experimentAAD(e.Workspace, e.UID), b)
}

func openExperiment(key *envelope.Key, row db.Experiment) (*Experiment, error) {
	b, err := key.Open(experimentAAD(row.WorkspaceUID, row.UID), row.Content)
	if err != nil {
		return nil, err
	}
	var m computev1.Experiment
	if proto.Unmarshal(b, &m) != nil || m.GetName() != row.ID {
		return nil, fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the stored experiment cannot be read")
	}
	return &Experiment{
		UID: row.UID, Workspace: row.WorkspaceUID, ID: row.ID, DisplayName: m.GetDisplayName(), Tags: m.GetTags(), Deleted: row.Deleted != 0, Version: row.Version,
		Created: instant(row.CreateTime), Updated: instant(row.UpdateTime), CreatedBy: row.CreatedBy,
	}, nil
}

// get finds an experiment by its id; Default is found without a row.
func get(ctx context.Context, q *db.Queries, key *envelope.Key, workspace, id string) (*Experiment, error) {
	row, err := q.GetExperiment(ctx, db.GetExperimentParams{WorkspaceUID: workspace, ID: id})
	if err = sqldb.Fault(err); err != nil {
		if id == DefaultExperiment && fault.Is(err, codes.NotFound) {
			return virtual(workspace), nil
		}
		return nil, err
	}
	return openExperiment(key, row)
}

// byName finds an experiment by its display name. Default is found without a row, while nobody has given it another name.
func byName(ctx context.Context, q *db.Queries, key *envelope.Key, workspace, name string) (*Experiment, error) {
	row, err := q.GetExperimentByName(ctx, db.GetExperimentByNameParams{WorkspaceUID: workspace, NameMac: nameMAC(key, workspace, name)})
	if err = sqldb.Fault(err); err == nil {
		return openExperiment(key, row)
	}
	if name != DefaultName || !fault.Is(err, codes.NotFound) {
		return nil, err
	}
	e, err := get(ctx, q, key, workspace, DefaultExperiment)
	if err == nil && e.UID != "" {
		return nil, fault.NotFound("no experiment has that display name")
	}
	return e, err
}

// add makes an experiment, in a transaction in which its name was seen to be free.
func add(ctx context.Context, q *db.Queries, key *envelope.Key, e *Experiment) error {
	content, err := sealExperiment(key, e)
	if err != nil {
		return err
	}
	n, err := q.CountExperiments(ctx, e.Workspace)
	if err != nil {
		return sqldb.Fault(err)
	}
	if n >= MaxExperiments {
		return fault.ResourceExhausted("the workspace has %d experiments, which is the most; put runs into one that is there", MaxExperiments)
	}
	n, err = q.InsertExperiment(ctx, db.InsertExperimentParams{
		UID: e.UID, WorkspaceUID: e.Workspace, ID: e.ID, NameMac: nameMAC(key, e.Workspace, e.DisplayName), Content: content, CreateTime: micros(e.Created), CreatedBy: e.CreatedBy,
	})
	if err != nil {
		return sqldb.Fault(err)
	}
	if n == 0 {
		return nameTaken()
	}
	e.Version, e.Updated = 1, e.Created
	return nil
}

func nameTaken() error {
	return fault.AlreadyExists("the workspace has an experiment of that display name already, perhaps a deleted one; take another name, or restore it")
}

// InsertExperiment makes an experiment with a display name that none has, and fills in version and times.
func (s *Store) InsertExperiment(ctx context.Context, e *Experiment, record Record) error {
	key, err := s.keys.Key(ctx, e.Workspace)
	if err != nil {
		return err
	}
	return s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		if _, err := byName(ctx, q, key, e.Workspace, e.DisplayName); err == nil {
			return nameTaken()
		} else if !fault.Is(err, codes.NotFound) {
			return err
		}
		if err := add(ctx, q, key, e); err != nil {
			return err
		}
		return record(ctx, tx)
	})
}

// Experiment finds an experiment by its id.
func (s *Store) Experiment(ctx context.Context, workspace, id string) (*Experiment, error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, err
	}
	return get(ctx, db.New(s.db.Reader()), key, workspace, id)
}

// ExperimentByName finds an experiment by its display name, also a deleted one.
func (s *Store) ExperimentByName(ctx context.Context, workspace, name string) (*Experiment, error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, err
	}
	return byName(ctx, db.New(s.db.Reader()), key, workspace, name)
}

// experimentsAtOnce is how many are read at once.
const experimentsAtOnce = 100

// EachExperiment gives each of a workspace to fn, Default among them, in no order that means anything.
func (s *Store) EachExperiment(ctx context.Context, workspace string, fn func(e *Experiment)) error {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return err
	}
	q, after, withDefault := db.New(s.db.Reader()), "", false
	for {
		rows, err := q.ListExperiments(ctx, db.ListExperimentsParams{WorkspaceUID: workspace, UID: after, Column3: experimentsAtOnce})
		if err != nil {
			return sqldb.Fault(err)
		}
		for _, row := range rows {
			e, err := openExperiment(key, row)
			if err != nil {
				return err
			}
			fn(e)
			after, withDefault = row.UID, withDefault || row.ID == DefaultExperiment
		}
		if len(rows) < experimentsAtOnce {
			break
		}
	}
	if !withDefault {
		fn(virtual(workspace))
	}
	return nil
}

// UpdateExperiment reads an experiment in a transaction, lets change alter display name, tags and whether it is deleted, and stores
// it; Default gets its row by that. Its runs go with it when it is deleted, and those that went with it come back. One with runs that
// the platform carries is not deleted. A change that returns an error changes nothing.
func (s *Store) UpdateExperiment(ctx context.Context, workspace, id, by string, now time.Time, change func(e *Experiment) error, record Record) (*Experiment, error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, err
	}
	var out *Experiment
	err = s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		e, err := get(ctx, q, key, workspace, id)
		if err != nil {
			return err
		}
		out = e
		was := e.Deleted
		if err := change(e); err != nil {
			return err
		}
		if e.UID == "" {
			e.UID, e.Created, e.CreatedBy = resource.NewUID("exp"), now, by
			if err := add(ctx, q, key, e); err != nil {
				return err
			}
		}
		if err := store(ctx, q, key, e, now); err != nil {
			return err
		}
		if err := mark(ctx, q, e, was); err != nil {
			return err
		}
		return record(ctx, tx)
	})
	return out, err
}

// store writes what has changed of an experiment.
func store(ctx context.Context, q *db.Queries, key *envelope.Key, e *Experiment, now time.Time) error {
	mac := nameMAC(key, e.Workspace, e.DisplayName)
	taken, err := q.NameTaken(ctx, db.NameTakenParams{WorkspaceUID: e.Workspace, NameMac: mac, ID: e.ID})
	if err != nil {
		return sqldb.Fault(err)
	}
	if taken == 0 && e.DisplayName == DefaultName && e.ID != DefaultExperiment {
		d, err := get(ctx, q, key, e.Workspace, DefaultExperiment)
		if err != nil {
			return err
		}
		if d.UID == "" {
			taken++
		}
	}
	if taken > 0 {
		return nameTaken()
	}
	content, err := sealExperiment(key, e)
	if err != nil {
		return err
	}
	n, err := q.UpdateExperiment(ctx, db.UpdateExperimentParams{UID: e.UID, Version: e.Version, NameMac: mac, Content: content, Deleted: flag(e.Deleted), UpdateTime: micros(now)})
	if err != nil {
		return sqldb.Fault(err)
	}
	if n == 0 {
		return fault.Aborted("the experiment was changed in between; repeat the call")
	}
	e.Version, e.Updated = e.Version+1, now
	return nil
}

// mark takes the runs of an experiment with it.
func mark(ctx context.Context, q *db.Queries, e *Experiment, was bool) error {
	if e.Deleted == was {
		return nil
	}
	from, to := NotDeleted, DeletedWithExperiment
	if !e.Deleted {
		from, to = to, from
	}
	if e.Deleted {
		n, err := q.CarriedInExperiment(ctx, db.CarriedInExperimentParams{WorkspaceUID: e.Workspace, Experiment: e.ID, State: int64(computev1.Run_STATE_COMPLETED)})
		if err != nil {
			return sqldb.Fault(err)
		}
		if n > 0 {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "%d runs of the experiment wait or run; cancel them first", n)
		}
	}
	return sqldb.Fault(q.MarkRunsOfExperiment(ctx, db.MarkRunsOfExperimentParams{WorkspaceUID: e.Workspace, Experiment: e.ID, Deleted: int64(to), Deleted_2: int64(from)}))
}

// Join is the experiment that a run names by its display name, and what is asked before it gets in.
type Join struct {
	Name string
	// May refuses what the submitter may not do: join an experiment, or make it where make is set.
	May func(e *Experiment, make bool) error
}

// experiment is the id of the experiment that a run goes into. It is asked in the transaction that stores the run.
func (j *Join) experiment(ctx context.Context, q *db.Queries, key *envelope.Key, r *Run) (string, error) {
	switch {
	case r.Experiment != "":
		e, err := get(ctx, q, key, r.Workspace, r.Experiment)
		if err != nil {
			return "", err
		}
		return e.ID, deleted(e)
	case j == nil || j.Name == "":
		return DefaultExperiment, nil
	}
	e, err := byName(ctx, q, key, r.Workspace, j.Name)
	if err == nil {
		if err := j.May(e, false); err != nil {
			return "", err
		}
		return e.ID, deleted(e)
	}
	if !fault.Is(err, codes.NotFound) {
		return "", err
	}
	id, err := NewExperimentID()
	if err != nil {
		return "", err
	}
	e = &Experiment{UID: resource.NewUID("exp"), Workspace: r.Workspace, ID: id, DisplayName: j.Name, Created: r.Created, CreatedBy: r.Submitter}
	if err := j.May(e, true); err != nil {
		return "", err
	}
	return id, add(ctx, q, key, e)
}

func deleted(e *Experiment) error {
	if e.Deleted {
		return fault.FailedPrecondition("the experiment %s is deleted; restore it first, or take another one", e.ID)
	}
	return nil
}
