package config

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

type mesh struct {
	TrustDomain string            `koanf:"trust_domain" config:"visible"`
	Listen      netip.AddrPort    `koanf:"listen" config:"visible"`
	Peers       []string          `koanf:"peers" config:"visible"`
	Labels      map[string]string `koanf:"labels" config:"visible"`
	Timeout     time.Duration     `koanf:"timeout" config:"visible"`
	Level       slog.Level        `koanf:"level" config:"visible"`
	Insecure    bool              `koanf:"insecure" config:"visible"`
}

type database struct {
	DSN      string        `koanf:"dsn" config:"sensitive"`
	Password redact.Secret `koanf:"password_file" config:"sensitive"`
	Limit    Size          `koanf:"limit" config:"visible"`
	Conns    uint8         `koanf:"conns" config:"visible"`
	Ratio    float64       `koanf:"ratio" config:"visible"`
}

func (d database) Validate() error {
	if d.Conns == 13 {
		return errors.New("conns may not be 13")
	}
	return nil
}

type target struct {
	Name  string         `koanf:"name" config:"visible"`
	Token redact.Secret  `koanf:"token_file" config:"sensitive"`
	Ports []int          `koanf:"ports" config:"visible"`
	Addr  []netip.Addr   `koanf:"addr" config:"visible"`
	Sizes map[string]int `koanf:"sizes" config:"visible"`
}

type identity struct {
	Database database          `koanf:"database"`
	Targets  []target          `koanf:"targets"`
	ByName   map[string]target `koanf:"by_name"`
	Pin      int               `koanf:"pin" config:"sensitive"`
}

func (i *identity) Validate() error {
	if i.Pin < 0 {
		return errors.New("pin is negative")
	}
	return nil
}

type process struct {
	Mesh     mesh      `koanf:"mesh"`
	Identity *identity `koanf:"identity"`
	Workers  int       `koanf:"workers" config:"visible"`
	internal int
	Skipped  func() `koanf:"-"`
}

func write(t testing.TB, dir, name, content string, mode os.FileMode) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	return p
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "db.secret", "hunter2\n", 0o600)
	write(t, dir, "token", "tok\r\n", 0o400)
	path := write(t, dir, "redoubt.yaml", `
# a comment
mesh:
  trust_domain: redoubt.example
  listen: "127.0.0.1:8443"
  peers: [a, b]
  labels: {host.example: x, "y": "z"}
  timeout: 1m30s
  level: WARN
  insecure: true
identity:
  database:
    dsn: postgres://db
    password_file: db.secret
    limit: 64MiB
    conns: 255
    ratio: 1
  targets:
    - name: one
      token_file: ./token
      ports: [1, -2]
      addr: ["::1"]
    - {name: two, sizes: {a: 3}}
  by_name:
    three.four: {name: three, token_file: `+filepath.Join(dir, "token")+`}
workers: 4
`, 0o644)
	got, err := Load[process](path, nil, process{})
	if err != nil {
		t.Fatal(err)
	}
	want := process{
		Mesh: mesh{
			TrustDomain: "redoubt.example", Listen: netip.MustParseAddrPort("127.0.0.1:8443"), Peers: []string{"a", "b"},
			Labels: map[string]string{"host.example": "x", "y": "z"}, Timeout: 90 * time.Second, Level: slog.LevelWarn, Insecure: true,
		},
		Identity: &identity{
			Database: database{DSN: "postgres://db", Password: redact.FromString("hunter2"), Limit: 64 << 20, Conns: 255, Ratio: 1},
			Targets: []target{
				{Name: "one", Token: redact.FromString("tok"), Ports: []int{1, -2}, Addr: []netip.Addr{netip.IPv6Loopback()}},
				{Name: "two", Sizes: map[string]int{"a": 3}},
			},
			ByName: map[string]target{"three.four": {Name: "three", Token: redact.FromString("tok")}},
		},
		Workers: 4,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v", got, got.Identity, want, want.Identity)
	}
}

func full() process {
	return process{
		Mesh: mesh{TrustDomain: "default", Peers: []string{"d1", "d2", "d3"}, Labels: map[string]string{"d": "1"}, Timeout: time.Second},
		Identity: &identity{
			Database: database{Conns: 7, Limit: 1},
			Targets:  []target{{Name: "d1", Ports: []int{9, 9}}, {Name: "d2"}},
			ByName:   map[string]target{"d": {Name: "d"}},
		},
		Workers: 1, internal: 5,
	}
}

// Flag over environment over file over default; a list or map replaces the one below whole.
func TestLayers(t *testing.T) {
	path := write(t, t.TempDir(), "c.yaml", "mesh: {trust_domain: file, peers: [f], labels: {f: '2'}}\nidentity: {targets: [{name: f}], by_name: {f: {name: f}}, pin: 1}\nworkers: 2\n", 0o600)
	env := []string{
		"REDOUBT_MESH_TRUST_DOMAIN=env", "REDOUBT_MESH_TIMEOUT=5s", "REDOUBT_IDENTITY_PIN=2", "REDOUBT_IDENTITY_DATABASE_DSN=a=b=c",
		"PATH=/bin", "REDOUBT_TOKEN=cli's own", "REDOUBT_WORKSPACE=ws", "REDOUBTX_MESH_Y=1", "OTHER_REDOUBT_MESH_Y=1",
	}
	flags := map[string]string{"identity.pin": "3", "mesh.peers": "x, y", "mesh.listen": "[::1]:0"}
	defaults := full()
	got, err := LoadFrom(Source{Path: path, Env: env, Flags: flags}, defaults)
	if err != nil {
		t.Fatal(err)
	}
	want := process{
		Mesh: mesh{
			TrustDomain: "env", Peers: []string{"x", "y"}, Labels: map[string]string{"f": "2"}, Timeout: 5 * time.Second,
			Listen: netip.MustParseAddrPort("[::1]:0"),
		},
		Identity: &identity{
			Database: database{Conns: 7, Limit: 1, DSN: "a=b=c"}, Targets: []target{{Name: "f"}},
			ByName: map[string]target{"f": {Name: "f"}}, Pin: 3,
		},
		Workers: 2, internal: 5,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v", got, got.Identity, want, want.Identity)
	}
	if !reflect.DeepEqual(defaults, full()) {
		t.Errorf("the defaults were changed: %+v %+v", defaults, defaults.Identity)
	}
}

// A section that a pointer leads to exists if something is set in it.
func TestOptionalSection(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		yaml string
		env  []string
		has  bool
	}{
		{"workers: 1\n", nil, false},
		{"identity: {}\n", nil, true},
		{"", []string{"REDOUBT_IDENTITY_PIN=1"}, true},
		{"# nothing\n", nil, false},
		{"---\n", nil, false},
		{"", nil, false},
	} {
		got, err := Load(write(t, dir, "c.yaml", tc.yaml, 0o600), tc.env, process{})
		if err != nil || (got.Identity != nil) != tc.has {
			t.Errorf("%q %v: %v %v", tc.yaml, tc.env, got.Identity, err)
		}
	}
	if _, err := Load("", nil, process{}); err != nil {
		t.Errorf("no file: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "ok.secret", "hunter2", 0o600)
	write(t, dir, "group.secret", "hunter2", 0o640)
	write(t, dir, "world.secret", "hunter2", 0o604)
	write(t, dir, "empty.secret", "\n", 0o600)
	write(t, dir, "long.secret", strings.Repeat("x", maxSecret+1), 0o600)
	if err := os.Mkdir(filepath.Join(dir, "dir.secret"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := func(name string) string { return "identity:\n  database:\n    password_file: " + name + "\n" }
	for _, tc := range []struct {
		name, yaml string
		env        []string
		flags      map[string]string
		want       []string // in the error
	}{
		{name: "unknown key", yaml: "workers: 1\nmsh: {}\n", want: []string{"c.yaml:2: msh: unknown key: did you mean mesh?"}},
		{name: "unknown nested key", yaml: "mesh:\n  trust_domian: x\n", want: []string{"c.yaml:2: mesh.trust_domian: unknown key: did you mean trust_domain?"}},
		{name: "other spelling", yaml: "mesh:\n  trustDomain: x\n", want: []string{"mesh.trustDomain: unknown key: did you mean trust_domain?"}},
		{name: "upper case", yaml: "Mesh: {}\n", want: []string{"Mesh: unknown key"}},
		{name: "unknown in a list", yaml: "identity:\n  targets:\n    - name: a\n    - nam: b\n", want: []string{"c.yaml:4: identity.targets[1].nam: unknown key"}},
		{name: "unknown in a map", yaml: "identity: {by_name: {x: {y: 1}}}\n", want: []string{"identity.by_name.x.y: unknown key"}},
		{name: "a skipped field", yaml: "Skipped: 1\ninternal: 1\n", want: []string{"Skipped: unknown key", "internal: unknown key"}},
		{name: "dotted key", yaml: "mesh.insecure: true\n", want: []string{"mesh.insecure: unknown key"}},
		{name: "all at once", yaml: "a: 1\nb: 2\nworkers: x\n", want: []string{"c.yaml:1: a", "c.yaml:2: b", "c.yaml:3: workers"}},
		{name: "key twice", yaml: "workers: 1\nworkers: 2\n", want: []string{"c.yaml:2: workers: the key stands twice"}},
		{name: "secret in the file", yaml: "identity:\n  database:\n    password: hunter2\n", want: []string{"set password_file to its path"}},
		{name: "alias", yaml: "mesh: &m {}\nidentity: *m\n", want: []string{"anchors and aliases"}},
		{name: "anchor on a value", yaml: "workers: &m 1\n", want: []string{"anchors and aliases"}},
		{name: "merge", yaml: "mesh:\n  <<: {insecure: true}\n", want: []string{"not a plain text"}},
		{name: "two documents", yaml: "workers: 1\n---\nworkers: 2\n", want: []string{"more than one document"}},
		{name: "a list on top", yaml: "- a\n", want: []string{"c.yaml:1: (top): needs a section"}},
		{name: "a text on top", yaml: "hello\n", want: []string{"needs a section"}},
		{name: "not YAML", yaml: "a: b: c\n", want: []string{"mapping values are not allowed"}},
		{name: "tab", yaml: "mesh:\n\tinsecure: true\n", want: []string{"line 2"}},
		{name: "custom tag", yaml: "workers: !!binary aGk=\n", want: []string{"workers: needs a text, a number"}},
		{name: "section a text", yaml: "mesh: x\n", want: []string{"mesh: needs a section"}},
		{name: "section empty", yaml: "mesh:\n", want: []string{"mesh: has no value"}},
		{name: "value empty", yaml: "workers:\n", want: []string{"workers: has no value"}},
		{name: "value a section", yaml: "workers: {a: 1}\n", want: []string{"workers: needs a single value"}},
		{name: "int a text", yaml: "workers: '1'\n", want: []string{"workers: needs a whole number"}},
		{name: "int a fraction", yaml: "workers: 1.5\n", want: []string{"workers: needs a whole number"}},
		{name: "int true", yaml: "workers: true\n", want: []string{"workers: needs a whole number"}},
		{name: "int too large", yaml: "workers: 99999999999999999999\n", want: []string{"workers: needs a whole number"}},
		{name: "uint8 too large", yaml: "identity: {database: {conns: 256}}\n", want: []string{"conns: needs a whole number from 0 to 2^8-1"}},
		{name: "uint8 negative", yaml: "identity: {database: {conns: -1}}\n", want: []string{"conns: needs a whole number from 0"}},
		{name: "bool a text", yaml: "mesh: {insecure: 'true'}\n", want: []string{"insecure: needs true or false"}},
		{name: "bool yes", yaml: "mesh: {insecure: yes}\n", want: []string{"insecure: needs true or false"}},
		{name: "text a number", yaml: "mesh: {trust_domain: 1}\n", want: []string{"trust_domain: needs a text"}},
		{name: "text a date", yaml: "mesh: {trust_domain: 2026-11-23}\n", want: []string{"trust_domain: needs a text"}},
		{name: "duration without unit", yaml: "mesh: {timeout: 30}\n", want: []string{"timeout: needs a duration with its unit"}},
		{name: "duration malformed", yaml: "mesh: {timeout: 30 s}\n", want: []string{"timeout: needs a duration"}},
		{name: "size malformed", yaml: "identity: {database: {limit: 64k}}\n", want: []string{"limit: needs a size"}},
		{name: "size negative", yaml: "identity: {database: {limit: -1}}\n", want: []string{"limit: needs a size"}},
		{name: "not a number", yaml: "identity: {database: {ratio: .nan}}\n", want: []string{"ratio: needs a finite number"}},
		{name: "address malformed", yaml: "mesh: {listen: nowhere}\n", want: []string{"mesh.listen:"}},
		{name: "list a text", yaml: "mesh: {peers: a}\n", want: []string{"peers: needs a list"}},
		{name: "item of another type", yaml: "mesh: {peers: [a, 1]}\n", want: []string{"mesh.peers[1]: needs a text"}},
		{name: "item empty", yaml: "mesh: {peers: [a, ]}\nidentity: {targets: [~]}\n", want: []string{"targets[0]: has no value"}},
		{name: "secret missing", yaml: secret("no.secret"), want: []string{"no.secret", "no such file"}},
		{name: "secret readable by the group", yaml: secret("group.secret"), want: []string{"has mode 0640", "chmod 0600"}},
		{name: "secret readable by all", yaml: secret("world.secret"), want: []string{"has mode 0604", "chmod 0600"}},
		{name: "secret empty", yaml: secret("empty.secret"), want: []string{"is empty"}},
		{name: "secret too long", yaml: secret("long.secret"), want: []string{"is longer than"}},
		{name: "secret a directory", yaml: secret("dir.secret"), want: []string{"not a regular file"}},
		{name: "secret a FIFO", yaml: secret("fifo.secret"), want: []string{"not a regular file"}},
		{name: "secret without a path", yaml: secret(`""`), want: []string{"needs the path of a file"}},
		{name: "secret in a list", yaml: "identity: {targets: [{token_file: group.secret}]}\n", want: []string{"has mode 0640"}},
		{name: "rule of a section", yaml: "identity: {database: {conns: 13}}\n", want: []string{"identity.database: conns may not be 13"}},
		{name: "rule of a section, by pointer", yaml: "identity: {pin: -1}\n", want: []string{"identity: pin is negative"}},
		{name: "two rules", yaml: "identity: {pin: -1, database: {conns: 13}}\n", want: []string{"pin is negative", "may not be 13"}},
		{name: "unknown variable", env: []string{"REDOUBT_MESH_TRUST_DOMIAN=x"}, want: []string{"REDOUBT_MESH_TRUST_DOMIAN: no such setting"}},
		{name: "variable for a list of sections", env: []string{"REDOUBT_IDENTITY_TARGETS=x"}, want: []string{"REDOUBT_IDENTITY_TARGETS: no such setting"}},
		{name: "variable of the wrong type", env: []string{"REDOUBT_WORKERS=many"}, want: []string{"REDOUBT_WORKERS: needs a whole number"}},
		{name: "variable too large", env: []string{"REDOUBT_IDENTITY_DATABASE_CONNS=256"}, want: []string{"CONNS: needs a whole number"}},
		{name: "variable empty", env: []string{"REDOUBT_WORKERS="}, want: []string{"REDOUBT_WORKERS: needs a whole number"}},
		{name: "variable's secret file", env: []string{"REDOUBT_IDENTITY_DATABASE_PASSWORD_FILE=" + filepath.Join(dir, "world.secret")}, want: []string{"has mode 0604"}},
		{name: "secret in a variable", env: []string{"REDOUBT_IDENTITY_DATABASE_PASSWORD=hunter2"}, want: []string{"REDOUBT_IDENTITY_DATABASE_PASSWORD: no such setting"}},
		{name: "unknown flag", flags: map[string]string{"mesh.x": "1"}, want: []string{"flag mesh.x: no such setting"}},
		{name: "flag of the wrong type", flags: map[string]string{"mesh.insecure": "maybe"}, want: []string{"flag mesh.insecure: needs true or false"}},
		{name: "flag's list of the wrong type", flags: map[string]string{"mesh.level": "LOUD"}, want: []string{"flag mesh.level:"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := write(t, dir, "c.yaml", tc.yaml, 0o600)
			got, err := LoadFrom(Source{Path: path, Env: tc.env, Flags: tc.flags}, full())
			if err == nil {
				t.Fatalf("loaded: %+v", got)
			}
			if !reflect.DeepEqual(got, process{}) {
				t.Errorf("an error and a configuration: %+v", got)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error lacks %q: %v", w, err)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestFileItself(t *testing.T) {
	dir := t.TempDir()
	for name, path := range map[string]string{
		"missing":           filepath.Join(dir, "no.yaml"),
		"writable by all":   write(t, dir, "w.yaml", "workers: 1\n", 0o602),
		"too long":          write(t, dir, "l.yaml", "# "+strings.Repeat("x", maxFile), 0o600),
		"a directory":       dir,
		"aliases in masses": write(t, dir, "b.yaml", "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n", 0o600),
		"very deep":         write(t, dir, "d.yaml", "mesh: "+strings.Repeat("{a: ", 500)+strings.Repeat("}", 500), 0o600),
	} {
		if _, err := Load(path, nil, process{}); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

// Somebody else's secret is not taken, even by root, unless it is root's.
func TestSecretOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	path := write(t, t.TempDir(), "s", "hunter2", 0o600)
	if err := os.Chown(path, 12345, 12345); err != nil {
		t.Skip("this root cannot either:", err)
	}
	if _, err := readSecret(path); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("got %v", err)
	}
}
