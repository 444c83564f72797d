//go:build linux

package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/test/fault/internal/ledger"
	"github.com/redoubt-ml/redoubt/test/fault/internal/oracle"
)

const (
	// others is how many objects are looked at again besides those that were written since.
	others = 60
	// atOnce is how many are looked at at a time.
	atOnce = 8
	// Runs are waited for as long as ends. What has not ended then is looked for again the next time; at last after lastEnds, which is more
	// than compute waits for an agent that does not come. drain is how long the activity log may take to be whole.
	ends, lastEnds, drain = 10 * time.Second, 2 * time.Minute, 60 * time.Second
)

// pass is one look at an installation that nobody changes meanwhile: lists are read once.
type pass struct {
	l     *Load
	all   bool
	lists map[string]map[string][]string
	mine  *ledger.Ledger
	// Runs by the state in which they have ended, and why.
	states map[string]int
}

// Check compares what was written since the last time, and some of what was written before, or all of it, with what is there; then
// waits for the activity log and compares that. The load is paused meanwhile, and the installation has to be well. Ended says how
// runs have ended.
func (l *Load) Check(ctx context.Context, all bool, r *rand.Rand, starts *ledger.Ledger) (ended map[string]int, err error) {
	if err := l.SignIn(ctx); err != nil {
		return nil, fmt.Errorf("sign in: %w", err)
	}
	p := &pass{l: l, all: all, lists: make(map[string]map[string][]string), mine: starts, states: make(map[string]int)}
	objects := l.cfg.Book.Touched(all, others, r.IntN)
	if err := p.waitForRuns(ctx); err != nil {
		return nil, err
	}
	for _, o := range objects { // what is read in one piece is read before
		if err := p.list(ctx, o.Kind, o.At.(place)); err != nil {
			return nil, err
		}
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	found := make([][]string, len(objects))
	for i, o := range objects {
		g.Go(func() error {
			var err error
			if found[i], err = p.look(ctx, o.Kind, o.At.(place)); err != nil {
				return fmt.Errorf("looking for %s %s: %w", o.Kind, o.Name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, o := range objects {
		l.cfg.Book.Judge(o, found[i])
	}
	var runs []*oracle.Object
	for _, o := range objects {
		if o.Kind == kindRun && len(o.At.(place).data) > 0 {
			runs = append(runs, o)
		}
	}
	if err := l.activity(ctx, func() bool { // also what the platform did
		return !slices.ContainsFunc(runs, func(o *oracle.Object) bool {
			at := o.At.(place)
			return len(starts.Starts(string(at.data))) > 0 && l.cfg.Book.Started(at.id) == 0
		})
	}); err != nil {
		return nil, err
	}
	for _, o := range runs {
		ended, err := p.run(ctx, o.At.(place))
		if err != nil {
			return nil, err
		}
		if !ended {
			l.cfg.Book.Touch(o)
		}
	}
	return p.states, nil
}

// list reads a list that holds the object, if it is kept in one.
func (p *pass) list(ctx context.Context, kind string, at place) error {
	key := kind + " " + at.parent
	if _, ok := p.lists[key]; ok {
		return nil
	}
	found := make(map[string][]string)
	var err error
	c, token := at.c, ""
	for more := true; more && err == nil; more = token != "" {
		switch kind {
		case kindGroup:
			err = c.read(ctx, identityv1.DirectoryService_ListGroups_FullMethodName, func(ctx context.Context) error {
				r, err := identityv1.NewDirectoryServiceClient(c.Conn).ListGroups(ctx, &identityv1.ListGroupsRequest{PageSize: 1000, PageToken: token})
				for _, g := range r.GetGroups() {
					found[g.GetName()] = append(found[g.GetName()], g.GetName())
				}
				token = r.GetNextPageToken()
				return err
			})
		case kindAssignment:
			err = c.read(ctx, workspacev1.AccessService_ListRoleAssignments_FullMethodName, func(ctx context.Context) error {
				r, err := workspacev1.NewAccessServiceClient(c.Conn).ListRoleAssignments(ctx, &workspacev1.ListRoleAssignmentsRequest{Scope: at.parent, PageSize: 1000, PageToken: token})
				for _, a := range r.GetRoleAssignments() {
					found[a.GetPrincipal()] = append(found[a.GetPrincipal()], a.GetRole())
				}
				token = r.GetNextPageToken()
				return err
			})
		case kindModel:
			err = c.read(ctx, inferencev1.ModelService_ListModels_FullMethodName, func(ctx context.Context) error {
				r, err := inferencev1.NewModelServiceClient(c.Conn).ListModels(ctx, &inferencev1.ListModelsRequest{Parent: at.parent, PageSize: 100, PageToken: token})
				for _, m := range r.GetModels() {
					found[m.GetName()] = append(found[m.GetName()], m.GetDescription())
				}
				token = r.GetNextPageToken()
				return err
			})
		case kindRun:
			err = c.read(ctx, computev1.RunService_ListRuns_FullMethodName, func(ctx context.Context) error {
				r, err := computev1.NewRunServiceClient(c.Conn).ListRuns(ctx, &computev1.ListRunsRequest{Parent: at.parent, PageSize: 1000, PageToken: token})
				for _, m := range r.GetRuns() {
					found[m.GetName()] = append(found[m.GetName()], m.GetName())
				}
				token = r.GetNextPageToken()
				return err
			})
		case kindSnapshot:
			var names []string
			err = c.read(ctx, workspacev1.SnapshotService_ListSnapshots_FullMethodName, func(ctx context.Context) error {
				r, err := workspacev1.NewSnapshotServiceClient(c.Conn).ListSnapshots(ctx, &workspacev1.ListSnapshotsRequest{Parent: at.parent, PageSize: 1000, PageToken: token})
				for _, s := range r.GetSnapshots() {
					names = append(names, s.GetName())
				}
				token = r.GetNextPageToken()
				return err
			})
			for _, name := range names {
				if err == nil {
					err = p.snapshot(ctx, c, name, found)
				}
			}
		case kindPoint:
			err = c.read(ctx, telemetryv1.MetricService_ListMetricHistory_FullMethodName, func(ctx context.Context) error {
				r, err := telemetryv1.NewMetricServiceClient(c.Conn).ListMetricHistory(ctx, &telemetryv1.ListMetricHistoryRequest{Run: at.parent, Key: "m", PageSize: 10000, PageToken: token})
				for _, m := range r.GetMetrics() {
					step := fmt.Sprint(m.GetStep())
					found[step] = append(found[step], fmt.Sprint(m.GetValue()))
				}
				token = r.GetNextPageToken()
				return err
			})
			if status.Code(err) == codes.NotFound { // nothing was logged for the run yet
				err = nil
			}
		default:
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("list of %ss: %w", kind, err)
	}
	p.lists[key] = found
	return nil
}

// snapshot reads the content of a snapshot, by the path of its one file. A name stands for one content, so it is read once, and again
// when everything is.
func (p *pass) snapshot(ctx context.Context, c *Client, name string, found map[string][]string) error {
	if known, ok := p.l.contents[name]; ok && !p.all {
		found[known[0]] = append(found[known[0]], known[1])
		return nil
	}
	return c.read(ctx, workspacev1.SnapshotService_DownloadSnapshot_FullMethodName, func(ctx context.Context) error {
		snapshots := workspacev1.NewSnapshotServiceClient(c.Conn)
		s, err := snapshots.GetSnapshot(ctx, &workspacev1.GetSnapshotRequest{Name: name})
		if err != nil {
			return err
		}
		d, err := snapshots.DownloadSnapshot(ctx, &workspacev1.DownloadSnapshotRequest{Name: name})
		if err != nil {
			return err
		}
		var b bytes.Buffer
		for {
			m, err := d.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			b.Write(m.GetData())
			for _, f := range m.GetFiles() {
				b.Write(f.GetData())
			}
		}
		path := s.GetEntries()[0].GetPath()
		found[path] = append(found[path], b.String())
		p.l.contents[name] = [2]string{path, b.String()}
		return nil
	})
}

// look gives what there is of an object.
func (p *pass) look(ctx context.Context, kind string, at place) (values []string, err error) {
	c := at.c
	vault := keyvaultv1.NewSecretServiceClient(c.Conn)
	switch kind {
	case kindSecret:
		for version := int64(1); ; version++ {
			var value string
			err := c.read(ctx, keyvaultv1.SecretService_AccessSecret_FullMethodName, func(ctx context.Context) error {
				r, err := vault.AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: at.id, Version: version})
				value = string(r.GetValue())
				return err
			})
			switch {
			case status.Code(err) == codes.NotFound:
				return values, nil
			case err != nil:
				return nil, err
			}
			values = append(values, value)
		}
	case kindCipher:
		var plain string
		err := c.read(ctx, keyvaultv1.KeyService_Decrypt_FullMethodName, func(ctx context.Context) error {
			r, err := keyvaultv1.NewKeyServiceClient(c.Conn).Decrypt(ctx, &keyvaultv1.DecryptRequest{Name: at.id, Ciphertext: at.data})
			plain = string(r.GetPlaintext())
			return err
		})
		return []string{plain}, err
	default:
		return p.lists[kind+" "+at.parent][at.id], nil
	}
}

// waitForRuns waits until every run of the workspace has ended. At the end of the suite it waits as long as any of them gets on: how many still
// stand in the queue then is a matter of the machine.
func (p *pass) waitForRuns(ctx context.Context) error {
	if !p.l.cfg.Runs {
		return nil
	}
	c := p.l.clients[0]
	before := ""
	for begin, moved := time.Now(), time.Now(); ; {
		left, all := "", ""
		for _, state := range []computev1.Run_State{computev1.Run_STATE_QUEUED, computev1.Run_STATE_STARTING, computev1.Run_STATE_RUNNING, computev1.Run_STATE_FINALIZING} {
			err := c.read(ctx, computev1.RunService_ListRuns_FullMethodName, func(ctx context.Context) error {
				r, err := computev1.NewRunServiceClient(c.Conn).ListRuns(ctx, &computev1.ListRunsRequest{Parent: c.Workspace, State: state, PageSize: 100})
				for _, m := range r.GetRuns() {
					if m.GetKind() == computev1.Run_KIND_JOB {
						left = m.GetName() + " is " + m.GetState().String()
						all += left + "\n"
					}
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("waiting for runs: %w", err)
			}
		}
		if left == "" {
			return nil
		}
		if all != before {
			before, moved = all, time.Now()
		}
		switch {
		case !p.all && time.Since(begin) > ends:
			return nil
		case time.Since(moved) > lastEnds:
			p.l.cfg.Book.Violate("a run does not end: %s, and nothing has changed for %s", left, lastEnds)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// run judges one run that is there: how often it was carried out, by three accounts. It says whether the run has ended.
func (p *pass) run(ctx context.Context, at place) (ended bool, err error) {
	c := at.c
	started := len(p.mine.Starts(string(at.data)))
	if started > 1 {
		p.l.cfg.Book.Violate("%s was carried out %d times, says the kernel", at.id, started)
	}
	var r *computev1.Run
	err = c.read(ctx, computev1.RunService_GetRun_FullMethodName, func(ctx context.Context) (err error) {
		r, err = computev1.NewRunServiceClient(c.Conn).GetRun(ctx, &computev1.GetRunRequest{Name: at.id})
		return err
	})
	switch {
	case status.Code(err) == codes.NotFound:
		if started > 0 {
			p.l.cfg.Book.Violate("%s was carried out, and is not there", at.id)
		}
		return true, nil
	case err != nil:
		return false, err
	case !client.Ended(r):
		return false, nil
	}
	p.states[strings.TrimPrefix(r.GetState().String(), "STATE_")+" "+r.GetMessage()]++
	if n := p.l.cfg.Book.Started(at.id); n != 1 && (started > 0 || n > 0) {
		p.l.cfg.Book.Violate("%s was carried out, and the log says %d times that it was started", at.id, n)
	}
	if r.GetState() != computev1.Run_STATE_COMPLETED {
		return true, nil
	}
	if started == 0 { // it had ended before this process came to look at it
		p.states["COMPLETED unseen by the kernel's account"]++
	}
	var log bytes.Buffer
	err = c.read(ctx, computev1.RunService_StreamLogs_FullMethodName, func(ctx context.Context) error {
		log.Reset()
		s, err := computev1.NewRunServiceClient(c.Conn).StreamLogs(ctx, &computev1.StreamLogsRequest{Name: at.id})
		if err != nil {
			return err
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			log.Write(m.GetData())
		}
	})
	if err == nil && log.String() != "ran\n" {
		p.l.cfg.Book.Violate("%s has completed, and its log is %q", at.id, log.String())
	}
	return true, err
}

// activity waits until every change that was carried out stands in the activity log, and looks through everything that is new there.
func (l *Load) activity(ctx context.Context, whole func() bool) error {
	for begin := time.Now(); ; {
		if err := l.readActivity(ctx); err != nil {
			return err
		}
		missing := l.cfg.Book.Missing()
		if len(missing) == 0 && whole() {
			return nil
		}
		if time.Since(begin) > drain {
			l.cfg.Book.GiveUp()
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// readActivity reads what is new, newest first, until what is known, and then takes all of it.
func (l *Load) readActivity(ctx context.Context) error {
	var fresh []*telemetryv1.ActivityEvent
	for page, known := "", false; !known; {
		err := l.Admin.read(ctx, telemetryv1.ActivityService_ListActivity_FullMethodName, func(ctx context.Context) error {
			r, err := telemetryv1.NewActivityServiceClient(l.Admin.Conn).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 500, PageToken: page})
			if err != nil {
				return err
			}
			for _, e := range r.GetEvents() {
				if known = known || l.cfg.Book.Seen(e.GetUid()); !known {
					fresh = append(fresh, e)
				}
			}
			page = r.GetNextPageToken()
			known = known || page == ""
			return nil
		})
		if err != nil {
			return fmt.Errorf("activity log: %w", err)
		}
	}
	numbers := make(map[string][]int64)
	for _, e := range fresh {
		l.cfg.Book.Event(e)
		numbers[e.GetService()] = append(numbers[e.GetService()], e.GetSeq())
	}
	for service, list := range numbers {
		l.cfg.Book.Numbers(service, list)
	}
	return nil
}
