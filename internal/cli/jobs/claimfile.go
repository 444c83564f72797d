package jobs

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// mostClaim bounds what a claim file holds, in bytes: the id of a claim, as in the contract.
const mostClaim = 64

// claimFile is where a host keeps the claim that waits for its answer. It holds no secret: the installation gives the run to the same caller
// only. Two hosts with one claim would take each other's runs, so the file is locked.
type claimFile struct {
	path, id string
	lock     *os.File
}

// openClaim locks the file and reads it. An empty path keeps nothing.
func openClaim(path string) (*claimFile, error) {
	if path == "" {
		return &claimFile{}, nil
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, app.Usagef("--claim-file %s: %v", path, err)
	}
	f := &claimFile{path: path, lock: lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.close()
		return nil, app.Usagef("--claim-file %s: another process has it; give each its own", path)
	}
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.close()
		return nil, app.Usagef("--claim-file %s: %v", path, err)
	}
	if f.id = strings.TrimSpace(string(content)); len(f.id) > mostClaim {
		f.close()
		return nil, app.Usagef("--claim-file %s: that is no claim; remove it", path)
	}
	return f, nil
}

// keep writes the id of a new claim down.
func (f *claimFile) keep(id string) error {
	if f.path == "" {
		return nil
	}
	return svid.WritePrivate(f.path, []byte(id+"\n"))
}

// close lets another process have the file.
func (f *claimFile) close() {
	if f.lock != nil {
		_ = f.lock.Close()
	}
}

// keepClaim has each new claim written down before it is made.
func (a verbs) keepClaim(f *claimFile) func(id string) {
	return func(id string) {
		if err := f.keep(id); err != nil {
			a.Say("the claim could not be kept in %s: %v", f.path, err)
		}
	}
}
