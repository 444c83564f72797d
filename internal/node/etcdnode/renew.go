package etcdnode

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// RenewLeaf signs dir/name.crt again, for the same key and names, valid for svid.MaxLeafTTL from now. Processes read the file at each
// handshake, so none is restarted; and it is no secret, so it can be carried to where they are. It gives the new end.
//
// Errors: FAILED_PRECONDITION where the certificate is not of this root.
func (p *PKI) RenewLeaf(dir, name string) (time.Time, error) {
	path := filepath.Join(dir, name+".crt")
	b, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, fault.FailedPrecondition("the certificate cannot be read: %v", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return time.Time{}, fault.FailedPrecondition("%s holds no certificate", path)
	}
	old, err := x509.ParseCertificate(block.Bytes)
	if err != nil || old.CheckSignatureFrom(p.a.Root()) != nil {
		return time.Time{}, fault.FailedPrecondition("%s is not of etcd's root", path)
	}
	l := svid.Leaf{
		CommonName: old.Subject.CommonName, DNSNames: old.DNSNames, IPs: old.IPAddresses,
		Server: slices.Contains(old.ExtKeyUsage, x509.ExtKeyUsageServerAuth), Client: slices.Contains(old.ExtKeyUsage, x509.ExtKeyUsageClientAuth),
	}
	chain, err := p.a.SignLeaf(old.PublicKey, l, fileLife, p.now())
	if err != nil {
		return time.Time{}, err
	}
	fresh, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return time.Time{}, fault.Internal(err, "etcd's root has signed what is no certificate")
	}
	return fresh.NotAfter, svid.WritePrivate(path, pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: chain[0]}))
}
