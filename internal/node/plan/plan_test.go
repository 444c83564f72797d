package plan

import (
	"bytes"
	"crypto/sha256"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

const good = `
public_url: https://redoubt.test:8443
scoring_url: https://score.test:8452
etcd:
  - {name: etcd-1, host: etcd-1}
  - {name: b, host: 192.0.2.2}
  - {name: c, host: etcd-c, listen: 192.0.2.3}
instances:
  - {service: identity, name: a, host: identity-a}
  - {service: workspace, name: a, host: 192.0.2.12}
  - {service: keyvault, name: a, host: keyvault}
  - {service: telemetry, name: a, host: telemetry}
  - {service: compute, name: a, host: compute}
  - {service: inference, name: a, host: inference, listen: 192.0.2.16}
  - {service: gateway, name: a, host: gateway}
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plan.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, data, text string, change ...func(*Config)) (*Made, error) {
	t.Helper()
	cfg := Config{Plan: write(t, text), Data: data, Options: node.Options{LogWriter: io.Discard, Password: password.Config{Passes: 1, MemoryKiB: 8 << 10, Lanes: 1}}}
	for _, f := range change {
		f(&cfg)
	}
	return Make(t.Context(), cfg)
}

func made(t *testing.T, data, text string) *Made {
	t.Helper()
	m, err := run(t, data, text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// digests of all files but identity's database, which is opened.
func digests(t *testing.T, data string) map[string][32]byte {
	t.Helper()
	out := make(map[string][32]byte)
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(data, path)
		if d.IsDir() {
			if info.Mode().Perm() != 0o700 && rel != "." {
				t.Errorf("%s has mode %v", rel, info.Mode())
			}
			return nil
		}
		if info.Mode().Perm() != 0o600 && rel != sqlFile {
			t.Errorf("%s has mode %v", rel, info.Mode())
		}
		b, err := os.ReadFile(path)
		if !strings.Contains(rel, "db.sqlite") {
			out[rel] = sha256.Sum256(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// D10: what rotates, and how fast, stands in the plan; identity alone is told what is identity's.
func TestRotationIsPlanned(t *testing.T) {
	data := t.TempDir()
	made(t, data, "root_period: 720h\nleaf_life: 30m\nconnection_age: 10m\nrun_life: 5m\nkey_period: 168h\nkey_ahead: 2h\nworkload_api: unix:///run/spire/agent.sock\ncertificate_file: /run/secrets/tls.crt\nkey_file: /run/secrets/tls.key\n"+good)
	for _, name := range node.Services {
		dir := filepath.Join(data, name+"-a")
		c, err := config.Load(filepath.Join(dir, serviceFile), nil, node.Defaults())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s := c.Service
		got := []time.Duration{c.Mesh.LeafLife, c.Mesh.ConnectionAge, s.RootPeriod, s.RunLife, s.KeyPeriod, s.KeyAhead}
		want := []time.Duration{30 * time.Minute, 10 * time.Minute, 0, 0, 0, 0}
		if name == "identity" {
			want = []time.Duration{30 * time.Minute, 10 * time.Minute, 720 * time.Hour, 5 * time.Minute, 168 * time.Hour, 2 * time.Hour}
		}
		if !slices.Equal(got, want) || s.WorkloadAPI != "unix:///run/spire/agent.sock" {
			t.Errorf("%s: %v, not %v; %q", name, got, want, s.WorkloadAPI)
		}
		if (s.CertificateFile == "/run/secrets/tls.crt" && s.KeyFile == "/run/secrets/tls.key") != (name == rpc.Gateway) {
			t.Errorf("%s shows %q", name, s.CertificateFile)
		}
		if s.JoinTokenFile != "" || there(filepath.Join(dir, joinFile)) {
			t.Errorf("%s has a join token, and enrols nowhere", name)
		}
	}
	// Again: nothing is missing.
	if m := made(t, data, "root_period: 720h\nleaf_life: 30m\nconnection_age: 10m\nrun_life: 5m\nkey_period: 168h\nkey_ahead: 2h\nworkload_api: unix:///run/spire/agent.sock\ncertificate_file: /run/secrets/tls.crt\nkey_file: /run/secrets/tls.key\n"+good); len(m.Added) != 0 {
		t.Errorf("made again: %v", m.Added)
	}
}

// D10: what could not start is found before anything is written.
func TestRotationThatCannotBePlanned(t *testing.T) {
	for line, says := range map[string]string{
		"root_period: 1h":                      "root_period longer",
		"root_period: -1h":                     "root_period",
		"root_period: 90000h":                  "root_period",
		"leaf_life: 25h":                       "SVIDs",
		"connection_age: 25h":                  "connection_age",
		"connection_age: 10ms":                 "connection_age",
		"run_life: 11m":                        "run_life",
		"run_life: 1s":                         "run_life",
		"key_period: 1m":                       "key",
		"key_ahead: 800h":                      "key",
		"workload_api: /run/agent.sock":        "workload_api",
		"workload_api: tcp://127.0.0.1:1":      "workload_api",
		"workload_api: unix:///run/../agent":   "workload_api",
		"certificate_file: /a.crt":             "certificate_file",
		"certificate_file: a\nkey_file: /b":    "absolute",
		"root_period: 2h\nconnection_age: 24h": "root_period longer",
	} {
		if _, err := Read(write(t, line+"\n"+good)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// D10: every folder holds all that its process needs, and nothing of another's.
func TestFolders(t *testing.T) {
	data := t.TempDir()
	m := made(t, data, "state: /var/lib/redoubt\nmtls_url: https://gateway.test:8455\nlocal_targets: false\ntrace_endpoint: 127.0.0.1:4317\n"+good)
	if len(m.Added) != 10 || len(m.Processes) != 10 || m.Admin.Password.Empty() || len(m.CA) == 0 {
		t.Errorf("%d made, %d processes: %+v", len(m.Added), len(m.Processes), m)
	}
	want := map[string]node.Service{
		"identity":  {Listen: ":8445", Advertise: "identity-a:8445", EnrolListen: ":8446", MTLSListen: ":8455", MTLSURL: "https://gateway.test:8455", PublicHosts: []string{"gateway", "inference", "score.test"}},
		"workspace": {Listen: "192.0.2.12:8447", Advertise: "192.0.2.12:8447", Admin: m.Admin.UID},
		"keyvault":  {Listen: ":8448", Advertise: "keyvault:8448"},
		"telemetry": {Listen: ":8449", Advertise: "telemetry:8449"},
		"compute":   {Listen: ":8450", Advertise: "compute:8450"},
		"inference": {Listen: "192.0.2.16:8451", Advertise: "inference:8451", ScoringListen: "192.0.2.16:8452", ReplicaListen: "192.0.2.16:8453", ReplicaAdvertise: "inference:8453", ScoringURL: "https://score.test:8452"},
		"gateway":   {Listen: ":8443", MeshListen: ":8444", Advertise: "gateway:8444"},
	}
	seals := make(map[string]bool)
	for name, w := range want {
		dir := filepath.Join(data, name+"-a")
		c, err := config.Load(filepath.Join(dir, serviceFile), nil, node.Defaults())
		if err != nil {
			t.Fatal(err)
		}
		got := c.Service // as it is written: a check fills in what is not said
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		w.Name, w.Instance, w.Dir, w.LocalTargets = name, "a", "/var/lib/redoubt", name != "compute"
		if name != "identity" {
			w.JoinTokenFile = "/var/lib/redoubt/join.token"
		}
		if a, b := dump(t, got), dump(t, w); a != b {
			t.Errorf("%s:\n%s\nnot\n%s", name, a, b)
		}
		if c.Mesh.EtcdTLS != "/var/lib/redoubt/etcd" || !slices.Equal(c.Mesh.EnrolAddresses, []string{"identity-a:8446"}) || c.Mesh.TraceEndpoint == "" ||
			!slices.Equal(c.Mesh.Etcd, []string{"https://etcd-1:2379", "https://192.0.2.2:2379", "https://etcd-c:2379"}) || c.Mesh.CAPin == "" {
			t.Errorf("%s: %+v", name, c.Mesh)
		}
		if _, err := (etcdnode.Files{CA: dir + "/etcd/root.crt", Cert: dir + "/etcd/client.crt", Key: dir + "/etcd/client.key"}).ClientTLS(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, sealFile)); (err == nil) == (name == "gateway") || err == nil && seals[string(b)] {
			t.Errorf("%s has no seal of its own: %v", name, err)
		} else {
			seals[string(b)] = true
		}
	}
	for folder, listen := range map[string]string{"etcd-1": "0.0.0.0", "etcd-b": "192.0.2.2", "etcd-c": "192.0.2.3"} {
		e, err := etcdnode.ReadMember(filepath.Join(data, folder, memberFile), nil)
		if err != nil || e.ClientListen != listen+":2379" || e.PeerListen != listen+":2380" || e.TLS != "/var/lib/redoubt/pki" || len(e.Cluster) != 3 {
			t.Errorf("%s: %+v, %v", folder, e, err)
		}
	}
	for path := range digests(t, data) {
		if strings.Contains(path, "root.key") && !strings.HasPrefix(path, etcdRoot+"/") {
			t.Errorf("the key of a root lies at %s", path)
		}
	}
}

func dump(t *testing.T, s node.Service) string {
	t.Helper()
	text, err := config.Dump(node.Config{Service: s})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// D10: the same plan changes nothing, a longer one adds what is new and changes nothing else.
func TestAgain(t *testing.T) {
	data := t.TempDir()
	first := made(t, data, good)
	before := digests(t, data)
	again := made(t, data, good)
	if len(again.Added) != 0 || len(again.CA) != 0 || !again.Admin.Password.Empty() {
		t.Errorf("again: %+v", again)
	}
	if got := digests(t, data); !maps.Equal(got, before) {
		t.Error("the same plan has changed files")
	}
	longer := made(t, data, good+"  - {service: gateway, name: b, host: gateway-b}\n")
	if !slices.Equal(longer.Added, []string{"gateway-b"}) {
		t.Errorf("added %v", longer.Added)
	}
	got := digests(t, data)
	delete(before, keptFile)
	delete(before, "first.password")
	for path, sum := range before {
		if got[path] != sum {
			t.Errorf("%s was changed", path)
		}
	}
	if first.Admin.UID != longer.Admin.UID {
		t.Errorf("another administrator: %+v", longer.Admin)
	}
	// A token that was never used is over after a week: without it, there is a new one.
	token := filepath.Join(data, "compute-a", joinFile)
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	made(t, data, good)
	if _, err := os.Stat(token); err != nil {
		t.Error(err)
	}
	// A folder that was carried away is not made again: it would have another seal.
	if err := os.RemoveAll(filepath.Join(data, "keyvault-a")); err != nil {
		t.Fatal(err)
	}
	if m := made(t, data, good); len(m.Added) != 0 || there(filepath.Join(data, "keyvault-a")) {
		t.Errorf("made again: %v", m.Added)
	}
	for name, c := range map[string]struct{ text, says string }{
		"another URL":  {strings.Replace(good, "redoubt.test:8443", "redoubt.test:9443", 1), "public_url"},
		"another host": {strings.Replace(good, "host: telemetry", "host: elsewhere", 1), "instances[3]"},
		"etcd":         {strings.Replace(good, "host: etcd-c", "host: etcd-d", 1), "etcd"},
	} {
		if _, err := run(t, data, c.text); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for file, text := range map[string]string{"etcd-root": "etcd-root", "identity-a": "identity-a"} {
		if err := os.Rename(filepath.Join(data, file), filepath.Join(data, "away")); err != nil {
			t.Fatal(err)
		}
		if _, err := run(t, data, good+"  - {service: gateway, name: c, host: gateway-c}\n"); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("without %s: %v", file, err)
		}
		if err := os.Rename(filepath.Join(data, "away"), filepath.Join(data, file)); err != nil {
			t.Fatal(err)
		}
	}
}

// D10: an installation of one machine becomes one of a plan: its folders are moved, and what was written for one machine is made again.
func TestFromOneMachine(t *testing.T) {
	old, data := t.TempDir(), t.TempDir()
	b, err := node.Bootstrap(t.Context(), node.BootstrapConfig{
		Data: old, Listen: "127.0.0.1:0", Options: node.Options{LogWriter: io.Discard, Password: password.Config{Passes: 1, MemoryKiB: 8 << 10, Lanes: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	seals := make(map[string][]byte)
	for _, name := range node.Services {
		dir := filepath.Join(data, name+"-a")
		if err := os.Rename(filepath.Join(old, name), dir); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{serviceFile, etcdFolder} {
			if err := os.RemoveAll(filepath.Join(dir, f)); err != nil {
				t.Fatal(err)
			}
		}
		seals[name], _ = os.ReadFile(filepath.Join(dir, sealFile))
	}
	m := made(t, data, good)
	if !bytes.Equal(m.CA, b.CA) || !m.Admin.Password.Empty() || m.Admin.Name != b.Admin {
		t.Errorf("another root or administrator: %+v", m.Admin)
	}
	c, err := config.Load(filepath.Join(data, "workspace-a", serviceFile), nil, node.Defaults())
	if err != nil || c.Service.Admin != m.Admin.UID || c.Mesh.CAPin == "" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, name := range node.Services {
		if now, _ := os.ReadFile(filepath.Join(data, name+"-a", sealFile)); name == "identity" && !bytes.Equal(now, seals[name]) {
			t.Errorf("%s has another seal", name)
		}
	}
}

// D10: what is wrong is named by its field, and nothing is written.
func TestRefused(t *testing.T) {
	replace := func(old, text string) string {
		out := strings.Replace(good, old, text, 1)
		if out == good {
			t.Fatalf("%q is not in the plan", old)
		}
		return out
	}
	for name, c := range map[string]struct{ text, says string }{
		"unknown key":        {good + "blob: x\n", "blob"},
		"no URL":             {replace("public_url: https://redoubt.test:8443", ""), "public_url"},
		"URL without port":   {replace("https://score.test:8452", "https://score.test"), "scoring_url"},
		"plain URL":          {replace("https://redoubt.test", "http://redoubt.test"), "public_url"},
		"relative state":     {good + "state: var/lib\n", "state"},
		"even cluster":       {replace("  - {name: b, host: 192.0.2.2}\n", ""), "etcd has 2"},
		"member twice":       {replace("{name: b,", "{name: c,"), "etcd[2].name"},
		"folder twice":       {replace("{name: b,", "{name: \"1\","), "etcd[1].name"},
		"same peer port":     {replace("host: 192.0.2.2}", "host: 192.0.2.2, peer_port: 2379}"), "etcd[1]"},
		"member's host":      {replace("host: 192.0.2.2", "host: 0.0.0.0"), "etcd[1].host"},
		"listen":             {replace("listen: 192.0.2.3", "listen: etcd-c"), "etcd[2].listen"},
		"unknown service":    {replace("service: compute", "service: computer"), "instances[4].service"},
		"missing service":    {replace("  - {service: keyvault, name: a, host: keyvault}\n", ""), "keyvault"},
		"instance's name":    {replace("{service: compute, name: a", "{service: compute, name: A b"), "instances[4].name"},
		"instance twice":     {good + "  - {service: gateway, name: a, host: elsewhere}\n", "instances[7].name"},
		"no host":            {replace("host: compute", "host: \"\""), "instances[4].host"},
		"host with a port":   {replace("host: compute", "host: \"compute:1\""), "instances[4].host"},
		"one port for two":   {good + "  - {service: gateway, name: b, host: gateway}\n", "instances[7]"},
		"second on SQLite":   {good + "  - {service: compute, name: b, host: compute-b}\n", "postgres"},
		"port":               {good + "base_port: 65530\n", "base_port"},
		"leaf life":          {good + "leaf_life: 1ms\n", "leaf_life"},
		"postgres unsafe":    {good + "postgres: {host: db.test}\n", "postgres.root"},
		"postgres database":  {good + "postgres: {host: 127.0.0.1, database: \"a;b\"}\n", "postgres.database"},
		"two without bucket": {good + "  - {service: compute, name: b, host: compute-b}\npostgres: {host: 127.0.0.1}\n", "blobs is not set"},
		"bucket by http":     {good + "blobs: {url: \"s3://bucket?endpoint=http://s3:9000&region=x\", credentials: key.yaml}\n", "blobs.url"},
		"no credentials":     {good + "blobs: {url: \"s3://bucket?region=x\"}\n", "blobs.credentials"},
		"admin":              {good + "admin: \"a b\"\n", "admin"},
		"log level":          {good + "log_level: loud\n", "log_level"},
		"trace endpoint":     {good + "trace_endpoint: nowhere\n", "trace_endpoint"},
		"public host":        {good + "public_hosts: [\"a b\"]\n", "public_hosts"},
	} {
		t.Run(name, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "data")
			if _, err := run(t, data, c.text); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("it does not say %q: %v", c.says, err)
			}
			if there(data) {
				t.Error("something was written")
			}
		})
	}
}

// D10: PostgreSQL's administrator gets verifiers, each service a password of its own, which its instances share.
func TestSQL(t *testing.T) {
	root := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(root, []byte("-----BEGIN CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := good + "  - {service: compute, name: b, host: compute-b}\npostgres: {host: db.test, root: " + root + "}\nstate: /state\nblobs: {url: \"s3://bucket?region=x\", credentials: key.yaml}\n"
	data := t.TempDir()
	m, err := run(t, data, text, func(c *Config) { c.SQLOnly = true })
	if err != nil || m.SQL == "" || there(filepath.Join(data, keptFile)) {
		t.Fatalf("%+v, %v", m, err)
	}
	before := digests(t, data)
	if _, err := run(t, data, text, func(c *Config) { c.SQLOnly = true }); err != nil || !maps.Equal(before, digests(t, data)) {
		t.Errorf("again: %v, or other files", err)
	}
	b, err := os.ReadFile(m.SQL)
	if err != nil {
		t.Fatal(err)
	}
	sql := string(b)
	passwords := make(map[string]string)
	for _, in := range []string{"identity-a", "workspace-a", "keyvault-a", "telemetry-a", "compute-a", "compute-b", "inference-a"} {
		service, _, _ := strings.Cut(in, "-")
		path := filepath.Join(data, in, dsnFile)
		dsn, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p, err := passwordIn(path)
		if err != nil || strings.Contains(sql, p) || !strings.Contains(sql, "ALTER ROLE redoubt_"+service+" LOGIN") || passwords[p] != "" && passwords[p] != service {
			t.Errorf("%s: %v, or the password is in the SQL, or another's", in, err)
		}
		passwords[p] = service
		if want := "@db.test:5432/redoubt?sslmode=verify-full&sslrootcert=%2Fstate%2Fpostgres.crt"; !strings.Contains(string(dsn), want) {
			t.Errorf("%s: no %s", in, want)
		}
		if !there(filepath.Join(data, in, dsnRoot)) {
			t.Errorf("%s has no root", in)
		}
	}
	if len(passwords) != 6 || there(filepath.Join(data, "gateway-a", dsnFile)) {
		t.Errorf("%d passwords", len(passwords))
	}
	// One that was written before there were rows of lives is written again.
	if !strings.Contains(sql, "GRANT USAGE ON SCHEMA redoubt_fence TO redoubt_identity, redoubt_workspace,") || !strings.HasSuffix(sql, "RESET ROLE;\nCOMMIT;\n") {
		t.Error("the SQL makes no rows of lives for all services")
	}
	if err := os.WriteFile(m.SQL, []byte("BEGIN;\nCOMMIT;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, data, text, func(c *Config) { c.SQLOnly = true }); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(m.SQL); err != nil || !strings.Contains(string(b), "redoubt_fence.hold") {
		t.Errorf("an old SQL stays: %v", err)
	}
	if _, err := run(t, t.TempDir(), good, func(c *Config) { c.SQLOnly = true }); err == nil {
		t.Error("SQL without PostgreSQL")
	}
	// The server is not there: nothing is kept as made.
	if _, err := run(t, data, text); err == nil || !strings.Contains(err.Error(), sqlFile) || there(filepath.Join(data, keptFile)) {
		t.Errorf("without the server: %v", err)
	}
}

// D10: who keeps blobs gets the bucket's key and root, for himself alone, and nobody else does.
func TestBucket(t *testing.T) {
	text := good + "blobs: {url: \"s3://bucket?endpoint=https://s3:9000&region=x\", credentials: key.yaml, root: root.pem}\nstate: /state\n"
	data := t.TempDir()
	plan := write(t, text)
	put := func(name, content string, mode os.FileMode) {
		path := filepath.Join(filepath.Dir(plan), name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	do := func() error {
		_, err := Make(t.Context(), Config{Plan: plan, Data: data, Options: node.Options{LogWriter: io.Discard, Password: password.Config{Passes: 1, MemoryKiB: 8 << 10, Lanes: 1}}})
		return err
	}
	if err := do(); err == nil || !strings.Contains(err.Error(), "blobs.credentials") {
		t.Errorf("without the file: %v", err)
	}
	put("key.yaml", "canary", 0o644)
	if err := do(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key for everyone: %v", err)
	}
	put("key.yaml", "canary", 0o600)
	put("root.pem", "root", 0o644)
	if err := do(); err != nil {
		t.Fatal(err)
	}
	digests(t, data) // looks at the modes
	for _, s := range node.Services {
		key, err := os.ReadFile(filepath.Join(data, s+"-a", blobKey))
		config, _ := os.ReadFile(filepath.Join(data, s+"-a", serviceFile))
		if keeps := slices.Contains(node.BlobServices, s); keeps != (err == nil && string(key) == "canary") ||
			keeps != strings.Contains(string(config), "blob_credentials_file: /state/blobs.yaml") || keeps != there(filepath.Join(data, s+"-a", blobRoot)) {
			t.Errorf("%s: key %q, %v\n%s", s, key, err, config)
		}
	}
}
