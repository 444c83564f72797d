//go:build linux

package stage

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write deploy/seccomp-agent.json anew")

// hostCalls are what the agent and the init make besides what user code may: namespaces, mounts and a filter of their own. None gives an
// ordinary user without capabilities anything outside of a user namespace that he made.
const hostCalls = `
	clone unshare mount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount pivot_root sethostname seccomp memfd_create
	socket socketpair personality`

// profile is what Docker's engine reads.
type profile struct {
	DefaultAction   string    `json:"defaultAction"`
	DefaultErrnoRet uint      `json:"defaultErrnoRet"` // engines before 23 do not know it and answer EPERM
	ArchMap         []archMap `json:"archMap"`
	Syscalls        []rule    `json:"syscalls"`
}

type archMap struct {
	Architecture     string   `json:"architecture"`
	SubArchitectures []string `json:"subArchitectures"`
}

type rule struct {
	Comment  string   `json:"comment"`
	Names    []string `json:"names"`
	Action   string   `json:"action"`
	ErrnoRet *uint    `json:"errnoRet,omitempty"`
}

// containerProfile is the system call filter of a container in which an agent isolates runs. The runs have their own filter besides.
func containerProfile(t *testing.T) []byte {
	t.Helper()
	host := strings.Fields(hostCalls)
	refused := slices.DeleteFunc(strings.Fields(forbidden), func(name string) bool { return slices.Contains(host, name) })
	user := slices.DeleteFunc(strings.Fields(allowed), func(name string) bool { return slices.Contains(host, name) })
	for _, list := range [][]string{host, refused, user} {
		slices.Sort(list)
	}
	const enosys = 38
	eperm, missing := uint(1), uint(enosys)
	p := profile{
		DefaultAction: "SCMP_ACT_ERRNO", DefaultErrnoRet: enosys,
		// No 32-bit calls: nothing here makes them.
		ArchMap: []archMap{{"SCMP_ARCH_X86_64", []string{}}, {"SCMP_ARCH_AARCH64", []string{}}},
		Syscalls: []rule{
			{Comment: "what user code may do, in the sandbox too", Names: user, Action: "SCMP_ACT_ALLOW"},
			{Comment: "what isolates a run: namespaces, mounts in them, a filter", Names: host, Action: "SCMP_ACT_ALLOW"},
			{Comment: "its flags lie in memory that a filter cannot read; libraries use clone in its place", Names: []string{"clone3"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: &missing},
			{Comment: "what reaches out of a container or deep into the kernel", Names: refused, Action: "SCMP_ACT_ERRNO", ErrnoRet: &eperm},
		},
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(p); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The profile that is shipped for the agent's container comes from the same lists as the sandbox's own filter.
func TestContainerProfile(t *testing.T) {
	path := filepath.Join("..", "..", "..", "..", "..", "deploy", "seccomp-agent.json")
	want := containerProfile(t)
	if *update {
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the lists have changed; if that is meant: go test ./internal/agent/sandbox/internal/stage -run TestContainerProfile -update")
	}
	var p profile
	if err := json.Unmarshal(got, &p); err != nil {
		t.Fatal(err)
	}
	for _, never := range []string{"ptrace", "bpf", "keyctl", "setns", "init_module", "kexec_load", "perf_event_open", "userfaultfd", "io_uring_setup", "open_by_handle_at", "process_vm_readv", "chroot"} {
		for _, r := range p.Syscalls {
			if r.Action == "SCMP_ACT_ALLOW" && slices.Contains(r.Names, never) {
				t.Errorf("the container may call %s", never)
			}
		}
	}
}
