package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// A type that cannot be loaded safely is refused before anything is read.
func TestTypes(t *testing.T) {
	type nested struct {
		A struct {
			B int `koanf:"b"`
		} `koanf:"a"`
	}
	for name, f := range map[string]func() error{
		"not a struct": func() error { _, err := Load("", nil, 1); return err },
		"untagged leaf": func() error {
			_, err := Load("", nil, struct {
				A int `koanf:"a"`
			}{})
			return err
		},
		"untagged nested leaf": func() error { _, err := Load("", nil, nested{}); return err },
		"no name": func() error {
			_, err := Load("", nil, struct {
				A int `config:"visible"`
			}{})
			return err
		},
		"bad name": func() error {
			_, err := Load("", nil, struct {
				A int `koanf:"A.b" config:"visible"`
			}{})
			return err
		},
		"other visibility": func() error {
			_, err := Load("", nil, struct {
				A int `koanf:"a" config:"public"`
			}{})
			return err
		},
		"name twice": func() error {
			_, err := Load("", nil, struct {
				A int `koanf:"a" config:"visible"`
				B int `koanf:"a" config:"visible"`
			}{})
			return err
		},
		"name twice, in a list": func() error {
			_, err := Load("", nil, struct {
				L []struct {
					A int `koanf:"a" config:"visible"`
					B int `koanf:"a" config:"visible"`
				} `koanf:"l"`
			}{})
			return err
		},
		"secret that is not a file": func() error {
			_, err := Load("", nil, struct {
				A redact.Secret `koanf:"password" config:"sensitive"`
			}{})
			return err
		},
		"list of secrets that are not files": func() error {
			_, err := Load("", nil, struct {
				A []redact.Secret `koanf:"passwords" config:"sensitive"`
			}{})
			return err
		},
		"interface": func() error {
			_, err := Load("", nil, struct {
				A any `koanf:"a" config:"visible"`
			}{})
			return err
		},
		"pointer to a leaf": func() error {
			_, err := Load("", nil, struct {
				A *int `koanf:"a" config:"visible"`
			}{})
			return err
		},
		"two settings, one variable": func() error {
			_, err := Load("", nil, struct {
				A int `koanf:"a_b" config:"visible"`
				B struct {
					C int `koanf:"b" config:"visible"`
				} `koanf:"a"`
			}{})
			return err
		},
	} {
		if err := f(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDump(t *testing.T) {
	p := full()
	p.Mesh.Listen = netip.MustParseAddrPort("127.0.0.1:1")
	p.Mesh.Labels = map[string]string{"b": "postgres://u:hunter2@h/", "a": "https://h/a@b", "c": "x://u:hunter2@h:%zz"}
	p.Identity.Database = database{DSN: "postgres://u:hunter2@h", Password: redact.FromString("hunter2"), Limit: 64 << 20, Ratio: 0.5}
	p.Identity.Targets[0].Token = redact.FromString("hunter2")
	p.Identity.ByName["d"] = target{Token: redact.FromString("hunter2")}
	p.Identity.Pin = 4711
	want := `mesh:
    trust_domain: default
    listen: 127.0.0.1:1
    peers:
        - d1
        - d2
        - d3
    labels:
        a: https://h/a@b
        b: '[redacted]'
        c: '[redacted]'
    timeout: 1s
    level: INFO
    insecure: false
identity:
    database:
        dsn: '[redacted]'
        password_file: '[redacted]'
        limit: 64MiB
        conns: 0
        ratio: 0.5
    targets:
        - name: d1
          token_file: '[redacted]'
          ports:
            - 9
            - 9
          addr: []
          sizes: {}
        - name: d2
          token_file: ""
          ports: []
          addr: []
          sizes: {}
    by_name:
        d:
            name: ""
            token_file: '[redacted]'
            ports: []
            addr: []
            sizes: {}
    pin: '[redacted]'
workers: 1
`
	for _, v := range []any{p, &p} {
		got, err := Dump(v)
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	if strings.Contains(want, "hunter2") || strings.Contains(want, "4711") {
		t.Error("the expectation itself shows a secret")
	}
	if got, err := Dump(process{}); err != nil || strings.Contains(got, "identity") {
		t.Errorf("an absent section: %v\n%s", err, got)
	}
	for _, v := range []any{nil, 1, (*process)(nil), struct{ A int }{1}} {
		if _, err := Dump(v); err == nil {
			t.Errorf("%T was dumped", v)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]Size{
		"0": 0, "1": 1, "1B": 1, "1KiB": 1024, "64MiB": 64 << 20, "10 MB": 10e6, "3kB": 3000, "1TiB": 1 << 40, " 7 ": 7,
		"9223372036854775807": 1<<63 - 1,
	} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err != nil || s != want {
			t.Errorf("%q: %d, %v", in, s, err)
		}
		var back Size
		if err := back.UnmarshalText([]byte(s.String())); err != nil || back != s {
			t.Errorf("%q is written %q, which is read as %d, %v", in, s, back, err)
		}
	}
	for _, in := range []string{"", "B", "-1", "1.5GiB", "1k", "1 Ki B", "9223372036854775808", "8388608TiB", "0x10", "1e3", "١"} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was read as %d", in, s)
		}
	}
}

// No number is cut to fit.
func TestNumbersFit(t *testing.T) {
	type numbers struct {
		I8  int8    `koanf:"i8" config:"visible"`
		I64 int64   `koanf:"i64" config:"visible"`
		U64 uint64  `koanf:"u64" config:"visible"`
		U16 uint16  `koanf:"u16" config:"visible"`
		F32 float32 `koanf:"f32" config:"visible"`
	}
	dir := t.TempDir()
	for _, tc := range []struct {
		name, value string
		ok          bool
	}{
		{"i8", "127", true}, {"i8", "-128", true}, {"i8", "128", false}, {"i8", "-129", false},
		{"i64", "9223372036854775807", true}, {"i64", "-9223372036854775808", true}, {"i64", "9223372036854775808", false},
		{"u64", "18446744073709551615", true}, {"u64", "-1", false}, {"u64", "18446744073709551616", false},
		{"u16", "65535", true}, {"u16", "65536", false}, {"u16", "-1", false},
		{"f32", "1.5", true}, {"f32", "1e39", false}, {"f32", "7", true},
	} {
		path := write(t, dir, "c.yaml", tc.name+": "+tc.value+"\n", 0o600)
		for from, src := range map[string]Source{
			"file": {Path: path}, "env": {Env: []string{"REDOUBT_" + strings.ToUpper(tc.name) + "=" + tc.value}},
			"flag": {Flags: map[string]string{tc.name: tc.value}},
		} {
			got, err := LoadFrom(src, numbers{})
			if (err == nil) != tc.ok {
				t.Errorf("%s %s from %s: %v", tc.name, tc.value, from, err)
				continue
			}
			if text, _ := Dump(got); tc.ok && !strings.Contains(text, tc.name+": "+tc.value+"\n") {
				t.Errorf("%s %s from %s became\n%s", tc.name, tc.value, from, text)
			}
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		"mesh: {trust_domain: x, labels: {a: b}}\n", "identity: {targets: [{name: a, ports: [1]}]}", "a: &a [*a]", "? {a: b}\n: c",
		"workers: 0x10\n", "mesh: !!map {}", "\ufeffworkers: 1", "--- |\n x", "identity: {by_name: {? : {}}}",
	} {
		f.Add(s)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, s string) {
		path := write(t, dir, "c.yaml", s, 0o600)
		got, err := Load(path, nil, process{})
		if err != nil {
			return
		}
		if _, err := Dump(got); err != nil {
			t.Fatalf("%q was loaded and cannot be dumped: %v", s, err)
		}
	})
}

func Example() {
	type service struct {
		Listen  string        `koanf:"listen" config:"visible"`
		Timeout time.Duration `koanf:"timeout" config:"visible"`
	}
	type processConfig struct {
		Inference service `koanf:"inference"`
	}
	c, err := Load("", []string{"REDOUBT_INFERENCE_TIMEOUT=30s"}, processConfig{service{Listen: "127.0.0.1:0", Timeout: time.Second}})
	if err != nil {
		fmt.Println(err)
		return
	}
	text, _ := Dump(c)
	fmt.Print(text)
	// Output:
	// inference:
	//     listen: 127.0.0.1:0
	//     timeout: 30s
}
