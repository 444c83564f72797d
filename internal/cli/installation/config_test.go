package installation

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
)

// folder is a service's folder as bootstrap makes it, with its configuration.
func folder(t *testing.T, change func(*node.Config)) string {
	t.Helper()
	dir := t.TempDir()
	pki, err := etcdnode.OpenPKI(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteClient(filepath.Join(dir, "etcd"), "compute-a"); err != nil {
		t.Fatal(err)
	}
	c := node.Defaults()
	c.Mesh = node.Mesh{
		TrustDomain: "redoubt.test", PublicURL: "https://redoubt.test:1", Etcd: []string{"https://etcd:2"}, EtcdTLS: filepath.Join(dir, "etcd"),
		EnrolAddresses: []string{"identity-a:3"}, LeafLife: time.Hour,
	}
	c.Service.Name, c.Service.Instance, c.Service.Dir, c.Service.Listen = "compute", "a", dir, "127.0.0.1:4"
	if change != nil {
		change(&c)
	}
	path := filepath.Join(dir, "service.yaml")
	if err := node.WriteConfig(path, c); err != nil {
		t.Fatal(err)
	}
	return path
}

func configCommand(env []string, args ...string) (string, error) {
	var out bytes.Buffer
	c := verbs{&app.App{Out: &out, Environ: env}}.config()
	c.SetArgs(args)
	c.SilenceErrors, c.SilenceUsage = true, true
	err := c.Execute()
	return out.String(), err
}

// D10: flag over environment over file over default, each setting with where it is from.
func TestConfigDump(t *testing.T) {
	path := folder(t, nil)
	out, err := configCommand([]string{"REDOUBT_SERVICE_INSTANCE=b", "REDOUBT_SERVICE_LISTEN=127.0.0.1:5"}, "dump", path, "--set", "service.listen=127.0.0.1:6", "--set", "mesh.etcd=https://x:1,https://y:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"listen: 127.0.0.1:6 # --set", "instance: b # REDOUBT_SERVICE_INSTANCE", "name: compute # " + path, "local_targets: true # default", "- https://x:1\n", "# --set\n    etcd:", "leaf_life: 1h0m0s # ",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
}

// D10: what would keep a process from starting is said before, and named.
func TestConfigCheck(t *testing.T) {
	if out, err := configCommand(nil, "check", folder(t, nil)); err != nil || !strings.Contains(out, "is good") {
		t.Errorf("%q, %v", out, err)
	}
	for name, c := range map[string]struct {
		change func(*node.Config)
		env    []string
		args   []string
		says   string
	}{
		"unknown setting":  {nil, nil, []string{"--set", "service.lisen=x"}, "service.lisen"},
		"no value":         {nil, nil, []string{"--set", "service.listen"}, "SETTING=VALUE"},
		"twice":            {nil, nil, []string{"--set", "service.listen=a:1", "--set", "service.listen=a:2"}, "twice"},
		"unknown variable": {nil, []string{"REDOUBT_SERVICE_LISEN=x"}, nil, "REDOUBT_SERVICE_LISEN"},
		"a bad value":      {nil, nil, []string{"--set", "service.listen=nowhere"}, "service.listen"},
		"a bad type":       {nil, []string{"REDOUBT_SERVICE_LOCAL_TARGETS=perhaps"}, nil, "true or false"},
		"no etcd files":    {func(c *node.Config) { c.Mesh.EtcdTLS = "/nowhere" }, nil, nil, "mesh.etcd_tls"},
		"no seal":          {func(c *node.Config) { c.Service.SealFile = "/nowhere/seal" }, nil, nil, "service.seal_file"},
		"no DSN":           {func(c *node.Config) { c.Service.PostgresFile = "/nowhere/dsn" }, nil, nil, "service.postgres_file"},
		"a bad socket":     {nil, []string{"SPIFFE_ENDPOINT_SOCKET=tcp:127.0.0.1:1"}, nil, "service.workload_api"},
		"no folder":        {func(c *node.Config) { c.Service.Dir = "/nowhere" }, nil, nil, "service.dir"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := configCommand(c.env, append([]string{"check", folder(t, c.change)}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("it does not say %q: %v", c.says, err)
			}
		})
	}
}
