package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// probeTimeout bounds the search for why etcd did not answer; it comes on top of the caller's deadline.
const probeTimeout = time.Second

// fault makes an error of etcd one of ours. When there was no answer it looks for the reason on the wire, since gRPC shows
// a refused certificate as a deadline that has passed.
func (r *Registry) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return fault.Wrap(err, codes.Canceled, faultv1.Reason_CALL_CANCELED, "the call was cancelled")
	}
	if errors.Is(err, rpctypes.ErrPermissionDenied) || errors.Is(err, rpctypes.ErrGRPCPermissionDenied) {
		return fault.Wrap(err, codes.PermissionDenied, faultv1.Reason_ACCESS_DENIED, "etcd does not allow this client to do that")
	}
	why := r.probe(ctx)
	if why == "" {
		why = "it is reachable and did not answer in time: see whether its members have a quorum"
	}
	return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "etcd: %s", why)
}

func message(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Message()
	}
	return "etcd did not answer"
}

// probe connects to the endpoints as the client does and says why the first that fails fails; "" when all of them talk.
func (r *Registry) probe(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	for _, e := range r.cfg.Endpoints {
		if why := r.probeOne(ctx, strings.TrimPrefix(e, "https://")); why != "" {
			return why
		}
	}
	return ""
}

func (r *Registry) probeOne(ctx context.Context, addr string) string {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "nothing answers at " + addr + ": start it, or correct etcd.endpoints"
	}
	defer raw.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(deadline)
	}
	conf := r.cfg.TLS.Clone()
	conf.NextProtos = []string{"h2"}
	conf.ServerName, _, _ = net.SplitHostPort(addr) // as etcd's client does, whatever was configured
	conn := tls.Client(raw, conf)
	err = conn.HandshakeContext(ctx)
	if err == nil {
		// In TLS 1.3 the server looks at our certificate after our side is done: its verdict is in the first answer.
		_, err = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
	}
	return explain(err, addr)
}

func explain(err error, addr string) string {
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var unknown x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &record):
		return addr + " does not speak TLS: it must, so correct etcd.endpoints or the member"
	case errors.As(err, &unknown):
		return "the member at " + addr + " is not of the configured root: correct etcd.ca_file or etcd.endpoints"
	case errors.As(err, &verify):
		return "the certificate of the member at " + addr + " is not valid for it: renew it, or correct etcd.endpoints"
	case errors.As(err, &alert), errors.As(err, &op) && op.Op == "remote error":
		return "the member at " + addr + " refuses our client certificate: set etcd.cert_file and etcd.key_file to ones of its root that have not ended"
	default:
		return ""
	}
}
