package plan

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authn/scram"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// rolePrefix is what the services' roles begin with.
const rolePrefix = "redoubt_"

// postgres writes each service's connection string, and the SQL that its administrator runs.
func (m *maker) postgres() error {
	if m.Postgres == nil {
		return nil
	}
	m.out.SQL = m.at(sqlFile)
	text, err := os.ReadFile(m.out.SQL)
	write := err != nil || !strings.Contains(string(text), sqldb.LivesSchema) // of a version that had no rows of lives
	for _, in := range m.Instances {
		path := m.at(in.Folder(), dsnFile)
		if in.Service == rpc.Gateway || m.made[in.Folder()] || there(path) {
			continue
		}
		password, fresh, err := m.password(in)
		if err != nil {
			return err
		}
		write = write || fresh
		if err := os.MkdirAll(m.at(in.Folder()), 0o700); err != nil {
			return err
		}
		root := ""
		if m.Postgres.Root != "" {
			b, err := os.ReadFile(m.Postgres.Root)
			if err != nil {
				return bad("postgres.root", "cannot be read: "+err.Error())
			}
			if err := svid.WritePrivate(m.at(in.Folder(), dsnRoot), b); err != nil {
				return err
			}
			root = filepath.Join(m.seen(m.data, in.Folder()), dsnRoot)
		}
		dsn := m.Postgres.dsn(in.Service, password, root)
		if err := svid.WritePrivate(path, append([]byte(dsn), '\n')); err != nil {
			return err
		}
	}
	if !write {
		return nil
	}
	return m.sql()
}

// dsn is the connection string of a service. A server that is not on this machine is known by its certificate.
func (pg *Postgres) dsn(service, password, root string) string {
	q := url.Values{"sslmode": {"disable"}}
	if root != "" {
		q = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {root}}
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(rolePrefix+service, password), Path: "/" + pg.Database}
	if strings.HasPrefix(pg.Host, "/") {
		q.Set("host", pg.Host)
		q.Set("port", strconv.Itoa(pg.Port))
	} else {
		u.Host = net.JoinHostPort(pg.Host, strconv.Itoa(pg.Port))
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// password is that of an instance's service: the one that another instance has, or a new one where there is none yet.
func (m *maker) password(in Instance) (text string, fresh bool, err error) {
	other, known := m.sibling(in, dsnFile)
	switch {
	case other != "":
		text, err = passwordIn(other)
		return text, false, err
	case known:
		return "", false, fault.FailedPrecondition("%s needs the connection string that the other instances of %s have: put its file at %s", in.Folder(), in.Service, m.at(in.Folder(), dsnFile))
	}
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return base64.RawURLEncoding.EncodeToString(b[:]), true, nil
}

func passwordIn(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(strings.TrimSpace(string(b)))
	if err == nil {
		if text, ok := u.User.Password(); ok && text != "" {
			return text, nil
		}
	}
	return "", fault.FailedPrecondition("%s is not a connection string as bootstrap writes it: bring it back from its backup", path)
}

// connection is how the instance's database is reached from here, where the server's root lies at the plan's path.
func (m *maker) connection(in Instance) (redact.Secret, error) {
	path := m.at(in.Folder(), dsnFile)
	if !there(path) {
		return redact.Secret{}, fault.FailedPrecondition("the connection to the database of %s is needed: bring %s back", in.Service, path)
	}
	text, err := passwordIn(path)
	if err != nil {
		return redact.Secret{}, err
	}
	return redact.FromString(m.Postgres.dsn(in.Service, text, m.Postgres.Root)), nil
}

// sql writes what makes the roles and schemas. It holds verifiers, which nobody can sign in with.
func (m *maker) sql() error {
	var b strings.Builder
	var roles []string
	b.WriteString(`-- What Redoubt needs in its database: a role and a schema for every service. Written by redoubt bootstrap.
-- Run it once, connected to the database ` + m.Postgres.Database + ` (UTF8) as its owner with CREATEROLE, or as a superuser:
--   createdb -E UTF8 -T template0 ` + m.Postgres.Database + `; psql -v ON_ERROR_STOP=1 -d ` + m.Postgres.Database + ` -f postgres.sql
-- It may be run again. It holds no passwords, only what PostgreSQL verifies them with.
BEGIN;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON DATABASE ` + m.Postgres.Database + ` FROM PUBLIC;
`)
	for _, name := range node.Services {
		if name == rpc.Gateway {
			continue
		}
		path := ""
		for _, in := range m.Instances {
			if f := m.at(in.Folder(), dsnFile); in.Service == name && path == "" && there(f) {
				path = f
			}
		}
		if path == "" {
			return fault.FailedPrecondition("the connection string of %s is needed to write %s: bring its postgres.dsn back", name, m.out.SQL)
		}
		password, err := passwordIn(path)
		if err != nil {
			return err
		}
		verifier, err := scram.Verifier(redact.FromString(password))
		if err != nil {
			return err
		}
		role := rolePrefix + name
		roles = append(roles, role)
		fmt.Fprintf(&b, `
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '%[1]s') THEN CREATE ROLE %[1]s; END IF; END $$;
ALTER ROLE %[1]s LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '%[2]s';
GRANT CONNECT ON DATABASE %[3]s TO %[1]s;
GRANT %[1]s TO CURRENT_USER;
CREATE SCHEMA IF NOT EXISTS %[4]s AUTHORIZATION %[1]s;
`, role, verifier, m.Postgres.Database, name)
	}
	b.WriteString("\n-- The rows by which a change of rights fences the transactions of processes that stand still (docs/adr/0043).")
	b.WriteString(sqldb.LivesSQL(roles...))
	b.WriteString("COMMIT;\n")
	if err := svid.WritePrivate(m.out.SQL, []byte(b.String())); err != nil {
		return err
	}
	return os.Chmod(m.out.SQL, 0o644) // for the database's administrator, who is another user
}
