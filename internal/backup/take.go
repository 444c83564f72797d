package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// attempts is how often a cut is tried.
	attempts = 5
	// prepareTimeout is how long a service may take to say that it holds.
	prepareTimeout = 10 * time.Second
)

// Peer is a service that is asked for its part.
type Peer struct {
	Service string
	// Conn is a connection to one of its instances, with an operator's certificate and token. It must take messages of MaxMessage bytes.
	Conn grpc.ClientConnInterface
}

// MaxMessage is the longest message of a service's part, in bytes.
const MaxMessage = maxRecord + 1<<10

// TakeConfig says what is taken.
type TakeConfig struct {
	// Peers are all services that keep something, each once.
	Peers []Peer
	// Installation is the trust domain.
	Installation string
	// Say is told what goes on; nil for nobody.
	Say func(format string, args ...any)
	Now func() time.Time // time.Now when nil
}

// Summary is what an archive has in it.
type Summary struct {
	ID, Installation string
	// Time of the cut, by the clock of whoever made it.
	Time time.Time
	// Version of the program that wrote it.
	Version string
	Parts   []PartSummary
	// ActivityPosition is how many records the activity log has.
	ActivityPosition int64
}

// PartSummary is what one service has in it.
type PartSummary struct {
	Service, Engine, Seal                     string
	Versions                                  map[string]int64
	Tables, Rows, Blobs, BlobBytes, BlobsGone int64
	// Held is how long its changes waited for the cut.
	Held time.Duration
}

// Held is how long changes waited for the cut anywhere.
func (s Summary) Held() time.Duration {
	var out time.Duration
	for _, p := range s.Parts {
		out = max(out, p.Held)
	}
	return out
}

func (s *Summary) add(h *maintenancev1.PartHead, e *maintenancev1.PartEnd) {
	s.ActivityPosition = max(s.ActivityPosition, h.GetActivityPosition())
	s.Parts = append(s.Parts, PartSummary{
		Service: h.GetService(), Engine: h.GetEngine(), Seal: h.GetSealFingerprint(), Versions: h.GetVersions(), Tables: e.GetTables(), Rows: e.GetRows(),
		Blobs: e.GetBlobs(), BlobBytes: e.GetBlobBytes(), BlobsGone: e.GetGone(), Held: time.Duration(h.GetHeldMicros()) * time.Microsecond,
	})
}

func summaryOf(h *maintenancev1.ArchiveHead) Summary {
	return Summary{ID: h.GetBackupId(), Installation: h.GetInstallation(), Time: h.GetTime().AsTime(), Version: h.GetVersion()}
}

// taking is one attempt.
type taking struct {
	peer   Peer
	stream grpc.BidiStreamingClient[maintenancev1.BackupRequest, maintenancev1.BackupResponse]
	held   *maintenancev1.Held
	first  []byte // the first record
}

// Take takes a backup of all peers and writes it to w, which encrypts. After an error what was written is of no use.
func Take(ctx context.Context, cfg TakeConfig, w io.Writer) (Summary, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Say == nil {
		cfg.Say = func(string, ...any) {}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	id := strings.ToLower(rand.Text())
	var all []*taking
	var end func()
	var err error
	for n := 1; ; n++ {
		if all, end, err = cfg.cut(ctx, id); err == nil {
			break
		}
		if n == attempts || !again(err) {
			return Summary{}, err
		}
		cfg.Say("no cut: %s; trying again (%d of %d)", fault.Describe(err).Message(), n+1, attempts)
		select {
		case <-ctx.Done():
			return Summary{}, ctx.Err()
		case <-time.After(time.Duration(n) * 200 * time.Millisecond):
		}
	}
	defer end()
	return cfg.write(all, id, w)
}

// again reports whether another attempt may do better.
func again(err error) bool {
	switch fault.Code(err) {
	case codes.Aborted, codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return true
	}
	return false
}

// cut makes all services hold, and lets them go on. What it gives are streams that are about to bring the parts; end ends them.
func (cfg TakeConfig) cut(ctx context.Context, id string) (_ []*taking, end func(), err error) {
	ctx, stop := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			stop()
		}
	}()
	timer := time.AfterFunc(prepareTimeout, stop)
	type outcome struct {
		i   int
		t   *taking
		err error
	}
	outcomes := make(chan outcome, len(cfg.Peers))
	for i, p := range cfg.Peers {
		go func() {
			t := &taking{peer: p}
			var err error
			if t.stream, err = maintenancev1.NewBackupServiceClient(p.Conn).Backup(ctx); err == nil {
				t.held, err = t.prepare(id)
			}
			outcomes <- outcome{i, t, err}
		}()
	}
	all := make([]*taking, len(cfg.Peers))
	var first error
	for range cfg.Peers {
		o := <-outcomes
		if o.err != nil && first == nil {
			first = named(o.t.peer.Service, o.err)
			stop() // the others need not hold any longer
		}
		all[o.i] = o.t
	}
	if first != nil {
		return nil, nil, first
	}
	if !timer.Stop() {
		return nil, nil, named(all[0].peer.Service, missed())
	}
	for _, t := range all {
		if err := t.stream.Send(&maintenancev1.BackupRequest{Step: &maintenancev1.BackupRequest_Go_{Go: &maintenancev1.BackupRequest_Go{}}}); err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, named(t.peer.Service, fault.FromStatus(err))
		}
	}
	// Each that begins its part now still held when the last one said that it holds.
	for _, t := range all {
		if t.first, err = t.next(); err != nil {
			return nil, nil, named(t.peer.Service, err)
		}
	}
	return all, stop, nil
}

// named says whose error it is.
func named(service string, err error) error {
	var known *fault.Error
	if errors.As(fault.FromStatus(err), &known) {
		return fault.Wrap(err, fault.Code(err), fault.ReasonOf(err), "%s: %s", service, fault.Describe(err).Message())
	}
	return fmt.Errorf("%s: %w", service, err)
}

func (t *taking) prepare(id string) (*maintenancev1.Held, error) {
	if err := t.stream.Send(&maintenancev1.BackupRequest{Step: &maintenancev1.BackupRequest_Prepare_{Prepare: &maintenancev1.BackupRequest_Prepare{BackupId: id}}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.FromStatus(err)
	}
	m, err := t.stream.Recv()
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	if m.GetHeld().GetService() != t.peer.Service || m.GetHeld().GetSealFingerprint() == "" {
		return nil, fault.Internal(nil, "it answered as %q", m.GetHeld().GetService())
	}
	return m.GetHeld(), nil
}

// next is the next record of the part.
func (t *taking) next() ([]byte, error) {
	m, err := t.stream.Recv()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fault.Internal(nil, "its part has no end")
		}
		return nil, fault.FromStatus(err)
	}
	if len(m.GetRecord()) == 0 {
		return nil, fault.Internal(nil, "it sent something that is no piece of a backup")
	}
	return m.GetRecord(), nil
}

// write writes head, parts, and end.
func (cfg TakeConfig) write(all []*taking, id string, to io.Writer) (Summary, error) {
	w, err := newWriter(to)
	if err != nil {
		return Summary{}, err
	}
	head := &maintenancev1.ArchiveHead{Format: format, BackupId: id, Installation: cfg.Installation, Time: timestamppb.New(cfg.Now()), Version: build()}
	for _, t := range all {
		head.Services = append(head.Services, t.held)
	}
	if err := w.record(&maintenancev1.Record{Kind: &maintenancev1.Record_ArchiveHead{ArchiveHead: head}}); err != nil {
		return Summary{}, err
	}
	out := summaryOf(head)
	end := &maintenancev1.ArchiveEnd{}
	for _, t := range all {
		if err := t.copy(w, &out); err != nil {
			return Summary{}, named(t.peer.Service, err)
		}
		p := out.Parts[len(out.Parts)-1]
		end.Rows += p.Rows
		end.Blobs += p.Blobs
		end.BlobBytes += p.BlobBytes
		cfg.Say("%s: %d rows, %d files of %d bytes", p.Service, p.Rows, p.Blobs, p.BlobBytes)
	}
	end.Digest = w.all.sum()
	if err := w.record(&maintenancev1.Record{Kind: &maintenancev1.Record_ArchiveEnd{ArchiveEnd: end}}); err != nil {
		return Summary{}, err
	}
	return out, w.w.Flush()
}

// copy writes one part, whose digest has to be right, and waits for the service's own word that it is done.
func (t *taking) copy(w *writer, out *Summary) error {
	sum := newDigest()
	var head *maintenancev1.PartHead
	for b := t.first; ; {
		r, err := parse(b)
		if err != nil {
			return err
		}
		if err := w.raw(b); err != nil {
			return err
		}
		if h := r.GetPartHead(); h != nil {
			head = h
		}
		if e := r.GetPartEnd(); e != nil {
			if !equal(e.GetDigest(), sum.sum()) || head == nil {
				return damaged("its part was damaged on its way")
			}
			out.add(head, e)
			break
		}
		sum.add(b)
		if b, err = t.next(); err != nil {
			return err
		}
	}
	if err := t.stream.CloseSend(); err != nil {
		return fault.FromStatus(err)
	}
	// The record of the call is stored before its end comes.
	if _, err := t.stream.Recv(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = fault.Internal(nil, "something follows its part")
		}
		return fault.FromStatus(err)
	}
	return nil
}
