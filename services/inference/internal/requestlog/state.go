package requestlog

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// state is what has to outlive a process besides the segments.
type state struct {
	// Source is the name under which telemetry counts the records.
	Source string `json:"source"`
	// Dropped is how many the source has lost.
	Dropped int64 `json:"dropped"`
	// Last is a number that was given.
	Last int64 `json:"last"`
}

func newState(instance string) state {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // crypto/rand never fails
	if instance == "" {
		instance = "a"
	}
	return state{Source: "inference/" + instance + "/" + hex.EncodeToString(id)}
}

const stateFile = "source.json"

func readState(dir string) (state, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return state{}, err
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil || s.Source == "" || s.Dropped < 0 {
		return state{}, fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "%s is damaged", filepath.Join(dir, stateFile))
	}
	return s, nil
}

// saveState writes the state, as far as the disk lets it.
func (l *Log) saveState(ctx context.Context) {
	l.state.Dropped, l.saved = l.dropped.Load(), l.cfg.Now()
	if err := writeState(l.cfg.Dir, l.state); err != nil {
		l.cfg.Logger.WarnContext(ctx, "the count of dropped requests could not be written; it is tried again", "error", err, "dropped", l.state.Dropped)
	}
}

// writeState puts the file in place whole.
func writeState(dir string, s state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	temp := filepath.Join(dir, stateFile+".new")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, stateFile))
}

// lockDir keeps other processes from the folder for as long as the file is open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errDir(dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "another process has the folder of the request log, %s", dir)
	}
	return f, nil
}

func errDir(dir string, err error) error {
	return fmt.Errorf("the folder of the request log, %s: %w", dir, err)
}
