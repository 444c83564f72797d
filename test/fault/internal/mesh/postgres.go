//go:build linux

package mesh

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redoubt-ml/redoubt/test/fault/internal/netns"
)

const (
	postgresService = "postgres"
	postgresPort    = 5432
)

// postgresBin is the folder of PostgreSQL's programs, "" where there is none.
func postgresBin() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

// CheckPostgres says what is missing, or "".
func CheckPostgres() string {
	if postgresBin() == "" {
		return "it needs PostgreSQL's programs (Debian: postgresql)"
	}
	if _, err := user.Lookup("postgres"); err != nil {
		return "PostgreSQL does not run as root, and there is no user postgres"
	}
	return ""
}

// addPostgres makes a server with a certificate of a root of its own, on a host and a disk of its own. It gives the plan's section.
func (m *Mesh) addPostgres(ctx context.Context) (map[string]any, error) {
	if why := CheckPostgres(); why != "" {
		return nil, errors.New(why)
	}
	p, err := m.add(postgresService, postgresService)
	if err != nil {
		return nil, err
	}
	if err := netns.Disk(p.Dir, postgresDisk); err != nil {
		return nil, err
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	p.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, d := range []string{m.data, netns.Root} {
		if err := os.Chmod(d, 0o711); err != nil {
			return nil, err
		}
	}
	root, cert, key, err := certificate(p.Host.Addr)
	if err != nil {
		return nil, err
	}
	rootFile := filepath.Join(netns.Root, "postgres-root.pem")
	for path, b := range map[string][]byte{rootFile: root, filepath.Join(p.Dir, "server.crt"): cert, filepath.Join(p.Dir, "server.key"): key} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return nil, err
		}
		if path != rootFile {
			if err := os.Chown(path, uid, gid); err != nil {
				return nil, err
			}
		}
	}
	if err := os.Chown(p.Dir, uid, gid); err != nil {
		return nil, err
	}
	data := filepath.Join(p.Dir, "data")
	if err := p.asServer(ctx, "", "initdb", "--pgdata", data, "--username", "postgres", "--auth-local", "trust", "--auth-host", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"); err != nil {
		return nil, err
	}
	hba := "local all postgres trust\nhostssl all all 10.77.0.0/24 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		return nil, err
	}
	p.program = "setpriv"
	p.args = []string{
		"--reuid", "postgres", "--regid", "postgres", "--init-groups", filepath.Join(postgresBin(), "postgres"), "-D", data, "-c", "listen_addresses=" + p.Host.Addr,
		"-c", "port=" + strconv.Itoa(postgresPort), "-c", "unix_socket_directories=" + p.Dir, "-c", "ssl=on", "-c", "ssl_cert_file=" + filepath.Join(p.Dir, "server.crt"),
		"-c", "ssl_key_file=" + filepath.Join(p.Dir, "server.key"), "-c", "max_connections=300", "-c", "shared_buffers=64MB",
	}
	return map[string]any{"host": p.Host.Addr, "port": postgresPort, "root": rootFile}, nil
}

// openPostgres starts the server and makes the roles and schemas of the plan.
func (m *Mesh) openPostgres(ctx context.Context) error {
	p := m.Of(postgresService)[0]
	if err := p.Start(); err != nil {
		return err
	}
	sql, err := os.ReadFile(filepath.Join(m.data, "postgres.sql"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := Poll(ctx, func(ctx context.Context) error {
		return p.asServer(ctx, "SELECT 1;", "psql", "-h", p.Dir, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", "-")
	}); err != nil {
		return err
	}
	if err := p.asServer(ctx, "", "createdb", "-h", p.Dir, "-U", "postgres", "redoubt"); err != nil {
		return err
	}
	return p.asServer(ctx, string(sql), "psql", "-h", p.Dir, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-d", "redoubt", "-f", "-")
}

// Query asks PostgreSQL itself, as its administrator, and gives the one value that comes back.
func (m *Mesh) Query(ctx context.Context, query string) (string, error) {
	p := m.Of(postgresService)[0]
	out, err := p.output(ctx, query, "psql", "-h", p.Dir, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-d", "redoubt", "-q", "-A", "-t", "-f", "-")
	return strings.TrimSpace(out), err
}

// asServer runs one of PostgreSQL's programs as the server's user.
func (p *Process) asServer(ctx context.Context, input, program string, args ...string) error {
	_, err := p.output(ctx, input, program, args...)
	return err
}

func (p *Process) output(ctx context.Context, input, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(postgresBin(), program), args...)
	cmd.Dir, cmd.Stdin = "/", strings.NewReader(input)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.Dir, "TMPDIR=" + p.Dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.user}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return string(out), nil
}

// certificate makes a root, and a server's certificate for an address.
func certificate(addr string) (root, cert, key []byte, err error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	begin := time.Now().Add(-time.Hour)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fault test root"}, NotBefore: begin, NotAfter: begin.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: addr}, NotBefore: begin, NotAfter: begin.AddDate(1, 0, 0), IPAddresses: []net.IP{net.ParseIP(addr)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &rootKey.PublicKey, rootKey)
	if err != nil {
		return nil, nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, server, ca, &serverKey.PublicKey, rootKey)
	if err != nil {
		return nil, nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(serverKey)
	if err != nil {
		return nil, nil, nil, err
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return block("CERTIFICATE", rootDER), block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8), nil
}
