package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	mostOutputMessage = 256 << 10
	mostNotes         = 100 // lines about what is skipped
)

// outputs uploads what the run left in its output folder, and returns how many files are stored. What is no regular file, or
// has a name that would be another one elsewhere, is left out, with a line in the log.
func (c *carry) outputs(ctx context.Context, root *os.Root) (int32, error) {
	stored, notes := int32(0), 0
	skip := func(name, why string) {
		if notes++; notes <= mostNotes {
			c.logs.note("output %q is left out: %s", clip(name, 256), why)
		}
	}
	skipped, err := sandbox.EachOutput(root, func(o sandbox.Output) error {
		if why := badName(o.Name); why != "" {
			skip(o.Name, why)
			return nil
		}
		if err := c.upload(ctx, o); err != nil {
			return err
		}
		stored++
		return nil
	})
	for _, s := range skipped {
		skip(s.Name, s.Why)
	}
	if notes > mostNotes {
		c.logs.note("and %d more", notes-mostNotes)
	}
	return stored, err
}

// badName says why a name is not one that compute takes, or "".
func badName(name string) string {
	switch {
	case name == "" || len(name) > 1024:
		return "its name is longer than 1,024 bytes"
	case !utf8.ValidString(name) || !norm.NFC.IsNormalString(name):
		return "its name is not UTF-8 in NFC"
	case strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }):
		return "its name holds control characters or a backslash"
	case name[0] == '/' || path.Clean(name) != name || name == "." || name == ".." || strings.HasPrefix(name, "../"):
		return "its name is no plain path"
	}
	return ""
}

// upload sends one file. Nothing of the run is going any more, so that it does not change between reading it for its digest and
// sending it; if it did, compute would refuse it.
func (c *carry) upload(ctx context.Context, o sandbox.Output) error {
	sum := sha256.New()
	size, err := io.Copy(sum, o.File)
	if err != nil {
		return fault.Wrap(err, codes.Internal, faultv1.Reason_INTERNAL_FAULT, "an output could not be read")
	}
	first := &computev1.UploadOutputRequest{Name: c.a.cfg.Run, Path: o.Name, Size: size, Digest: sum.Sum(nil)}
	return c.a.link.retryEach(ctx, 0, func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.a.link.runs.UploadOutput(ctx)
		if err != nil {
			return err
		}
		buf, m := make([]byte, min(size, mostOutputMessage)), proto.CloneOf(first)
		for at := int64(0); ; m = new(computev1.UploadOutputRequest) {
			n, err := o.File.ReadAt(buf[:min(size-at, mostOutputMessage)], at)
			if err != nil {
				return fault.Wrap(err, codes.Internal, faultv1.Reason_INTERNAL_FAULT, "an output could not be read")
			}
			m.Data = buf[:n]
			if err := stream.Send(m); errors.Is(err, io.EOF) {
				break // the answer says why
			} else if err != nil {
				return err
			}
			if at += int64(n); at >= size {
				break
			}
		}
		_, err = stream.CloseAndRecv()
		return err
	})
}
