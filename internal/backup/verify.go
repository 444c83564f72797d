package backup

import (
	"context"
	"io"
	"os"

	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldump"
)

// Verify reads an archive that was decrypted already from its beginning to its end, and checks all that it says of itself. With the
// folder of the seals it checks besides that the installation's own services made it; "" leaves that out.
func Verify(ctx context.Context, r io.Reader, sealsDir string) (Summary, error) {
	in, err := NewReader(r)
	if err != nil {
		return Summary{}, err
	}
	out := summaryOf(in.Head())
	var own seals
	var scratch string
	if sealsDir != "" {
		if own, err = openSeals(sealsDir, in.Head()); err != nil {
			return out, err
		}
		defer own.close()
		if scratch, err = os.MkdirTemp("", "redoubt-verify-*"); err != nil {
			return out, err
		}
		defer func() { _ = os.RemoveAll(scratch) }()
	}
	for {
		h, more, err := in.Part()
		if err != nil {
			return out, err
		}
		if !more {
			break
		}
		var keys []keyRows
		err = in.rest(func(t sqldump.Table, n int, packed []byte) error {
			if t.Name == "data_keys" && own != nil {
				keys = append(keys, keyRows{t, n, packed})
			}
			return ctx.Err()
		})
		if err != nil {
			return out, err
		}
		e, err := in.PartEnd()
		if err != nil {
			return out, err
		}
		if own != nil {
			key, err := own.dataKeys(ctx, scratch, h, keys)
			if err != nil {
				return out, err
			}
			if err := check(key, h, e); err != nil {
				return out, err
			}
		}
		out.add(h, e)
	}
	return out, in.End()
}
