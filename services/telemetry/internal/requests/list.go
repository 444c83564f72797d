package requests

import (
	"context"
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/requests/internal/store/db"
)

const (
	// listChunks is how many chunks one query of List reads, scanChunks how many one call opens: about 65,000 requests.
	listChunks = 16
	scanChunks = 256
	// listBytes ends a page.
	listBytes = 2 << 20
)

// Filter selects requests. The zero value selects those of the microsecond 0: use Everything.
type Filter struct {
	// Start is inclusive, End exclusive; microseconds.
	Start, End int64
	// Status is one (404), a class (4), or 0 for all.
	Status int32
	// Deployment and RequestID are exact; "" for all.
	Deployment, RequestID string
}

// Everything selects all requests.
func Everything() Filter { return Filter{Start: math.MinInt64, End: math.MaxInt64} }

func (f *Filter) classes() int64 {
	switch {
	case f.Status == 0:
		return allClasses
	case f.Status <= 5:
		return 1 << f.Status
	}
	return classOf(f.Status)
}

func (f *Filter) holds(r *Request) bool {
	if t := r.GetTime().AsTime().UnixMicro(); t < f.Start || t >= f.End {
		return false
	}
	switch {
	case f.Status > 5 && r.GetStatusCode() != f.Status,
		f.Status > 0 && f.Status <= 5 && r.GetStatusCode()/100 != f.Status,
		f.Deployment != "" && r.GetDeployment() != f.Deployment,
		f.RequestID != "" && r.GetRequestId() != f.RequestID:
		return false
	}
	return true
}

// Place is where a request stands; a list goes on with those before it.
type Place struct{ Minute, Number, Index int64 }

// List gives at most most requests to an endpoint that come before a place (nil for the end), the newest first, and the place of the last
// that was looked at if there are likely more.
func (s *Store) List(ctx context.Context, e Endpoint, f Filter, before *Place, most int) ([]*Request, *Place, error) {
	if f.End <= f.Start {
		return nil, nil, nil
	}
	key, err := s.cfg.Keys.Key(ctx, e.WorkspaceUID)
	if err != nil {
		return nil, nil, err
	}
	if before == nil {
		before = &Place{math.MaxInt64, math.MaxInt64, math.MaxInt64}
	}
	page := page{filter: &f, most: most}
	err = s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		for at := *before; ; {
			rows, err := q.ListChunks(ctx, db.ListChunksParams{
				EndpointUID: e.UID, WorkspaceUID: e.WorkspaceUID, FirstMinute: minuteOf(f.Start), LastMinute: minuteOf(f.End - 1), Wanted: f.classes(),
				BeforeMinute: at.Minute, BeforeNumber: at.Number, Most: listChunks,
			})
			if err != nil {
				return err
			}
			for i, row := range rows {
				c := &chunk{Endpoint: e, minute: row.Minute, number: row.Number, rev: row.Rev, requests: row.Requests, classes: row.Classes, sealed: row.Sealed}
				end := int64(math.MaxInt64)
				if c.minute == before.Minute && c.number == before.Number {
					end = before.Index
				}
				plain, err := c.open(key)
				if err != nil {
					return err
				}
				full, err := page.fill(c, plain, end)
				if err != nil {
					return err
				}
				if full {
					if page.next.Index == 0 && i == len(rows)-1 && len(rows) < listChunks {
						page.next = nil // it was the very last
					}
					return nil
				}
			}
			if len(rows) < listChunks {
				page.next = nil
				return nil
			}
			last := rows[len(rows)-1]
			at = Place{last.Minute, last.Number - 1, 0}
		}
	})
	if err != nil {
		return nil, nil, err
	}
	return page.requests, page.next, nil
}

// page is what a call of List has found.
type page struct {
	filter   *Filter
	most     int
	requests []*Request
	bytes    int
	scanned  int
	next     *Place
}

// fill takes the requests of a chunk before an index, from the last on, and reports whether the page is full.
func (p *page) fill(c *chunk, plain []byte, end int64) (full bool, err error) {
	entries, err := c.entries(plain)
	if err != nil {
		return false, err
	}
	for i := min(end, int64(len(entries))) - 1; i >= 0; i-- {
		r, err := c.decode(entries[i])
		if err != nil {
			return false, err
		}
		if !p.filter.holds(r) {
			continue
		}
		p.requests = append(p.requests, r)
		p.bytes += proto.Size(r)
		if len(p.requests) >= p.most || p.bytes >= listBytes {
			p.next = &Place{c.minute, c.number, i}
			return true, nil
		}
	}
	p.scanned++
	p.next = &Place{c.minute, c.number, 0}
	return p.scanned >= scanChunks, nil
}
