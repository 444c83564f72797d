package svid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	keyFile  = "key.pem"
	svidFile = "svid.pem"
	leftFile = "left.pins" // a pin a line
	maxLeft  = 256

	pemKey    = "PRIVATE KEY"
	pemCert   = "CERTIFICATE"
	hdrUse    = "Redoubt-Use"    // "root" on the roots of a stored SVID
	hdrIssued = "Redoubt-Issued" // on its leaf, RFC 3339

	maxFile = 256 << 10
)

// privateDir makes dir 0700 if it is not there, and refuses one in which others may put files.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Internal(err, "the folder for the workload's key could not be made")
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fault.Internal(err, "the folder for the workload's key could not be read")
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fault.FailedPrecondition("the folder for the workload's key can be written by others: chmod 0700 it")
	}
	return nil
}

func loadOrMakeKey(dir string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, keyFile)
	raw, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != pemKey {
		return nil, damaged("the workload's key file is damaged: restore it, or remove it and enrol with a new join token")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, damaged("the workload's key file is damaged: restore it, or remove it and enrol with a new join token")
	}
	return key, nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fault.Internal(err, "the workload's key could not be encoded")
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})
	defer clear(der)
	defer clear(text)
	if err := WritePrivate(path, text); err != nil {
		return nil, err
	}
	return key, nil
}

// readPrivate reads a file that only its owner may read; it does not follow a link. Absent is fs.ErrNotExist.
func readPrivate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, fault.Internal(err, "the workload's key folder could not be read")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fault.Internal(err, "the workload's key folder could not be read")
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fault.FailedPrecondition("the file %s can be read by others: it may be known, so remove it and enrol anew, or chmod 0600 it", filepath.Base(path))
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fault.Internal(err, "the workload's key folder could not be read")
	}
	if len(raw) > maxFile {
		return nil, damaged("the file %s is damaged", filepath.Base(path))
	}
	return raw, nil
}

// WritePrivate puts content at path in one step, 0600 and on disk when it returns: a crash leaves the old file or the new.
func WritePrivate(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".tmp-*") // 0600
	if err != nil {
		return fault.Internal(err, "the file %s could not be written", filepath.Base(path))
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fault.Internal(err, "the file %s could not be written", filepath.Base(path))
		}
	}()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// storeSVID writes chain and roots in one file. The key is not in it: it has its own.
func storeSVID(dir string, s *SVID) error {
	var b bytes.Buffer
	for i, c := range s.Chain {
		block := &pem.Block{Type: pemCert, Bytes: c.Raw}
		if i == 0 {
			block.Headers = map[string]string{hdrIssued: s.Issued.UTC().Format(time.RFC3339Nano)}
		}
		if err := pem.Encode(&b, block); err != nil {
			return err
		}
	}
	for _, c := range s.Bundle {
		if err := pem.Encode(&b, &pem.Block{Type: pemCert, Headers: map[string]string{hdrUse: "root"}, Bytes: c.Raw}); err != nil {
			return err
		}
	}
	return WritePrivate(filepath.Join(dir, svidFile), b.Bytes())
}

// loadSVID reads what storeSVID wrote, without the key and unchecked; fs.ErrNotExist when there is none.
func loadSVID(dir string) (*SVID, error) {
	rest, err := readPrivate(filepath.Join(dir, svidFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	s := &SVID{}
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != pemCert {
			return nil, damaged("the stored SVID is damaged")
		}
		if block.Headers[hdrUse] == "root" {
			s.Bundle = append(s.Bundle, c)
			continue
		}
		if len(s.Chain) == 0 {
			if s.Issued, err = time.Parse(time.RFC3339Nano, block.Headers[hdrIssued]); err != nil {
				return nil, damaged("the stored SVID is damaged")
			}
		}
		s.Chain = append(s.Chain, c)
	}
	if len(s.Chain) == 0 || len(s.Bundle) == 0 {
		return nil, damaged("the stored SVID is damaged")
	}
	return s, nil
}

// storeLeft writes the pins of roots that are not believed any more; nothing for none.
func storeLeft(dir string, pins []string) error {
	if len(pins) == 0 {
		return nil
	}
	path, text := filepath.Join(dir, leftFile), []byte(strings.Join(pins, "\n")+"\n")
	if old, err := readPrivate(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return WritePrivate(path, text)
}

func loadLeft(dir string) ([]string, error) {
	raw, err := readPrivate(filepath.Join(dir, leftFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(raw)), err
}

func parseCerts(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > 16 {
		return nil, untrusted(nil, "the authority answered without certificates, or with too many")
	}
	out := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, untrusted(err, "the authority answered with what is no certificate")
		}
		out[i] = c
	}
	return out, nil
}
