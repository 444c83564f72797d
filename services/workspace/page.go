package workspace

import (
	"context"
	"encoding/base64"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// The limits of a list.
const (
	pageDefault = 100
	pageMost    = 1000
)

// pager makes and reads the page tokens of one query. A token is sealed, and opens for the same query only.
type pager struct {
	key   *envelope.Key
	query string
	after store.Cursor
	limit int
}

// page reads the paging fields of a request. query says what is listed, for whom.
func (s *Service) page(ctx context.Context, query, token string, size int32) (*pager, error) {
	limit, err := resource.PageSize(size, pageDefault, pageMost)
	if err != nil {
		return nil, err
	}
	key, err := s.store.Key(ctx)
	if err != nil {
		return nil, err
	}
	p := &pager{key: key, query: query, limit: limit}
	if token == "" {
		return p, nil
	}
	invalid := fault.New(codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID, "the page token is not one of ours, or belongs to another query; start the list over without it").Field("page_token", "is not of this query")
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return nil, invalid
	}
	plain, err := key.Open(p.aad(), raw)
	if err != nil {
		return nil, invalid
	}
	p.after, err = store.ParseCursor(plain)
	return p, err
}

func (p *pager) aad() envelope.AAD {
	return envelope.AAD{Owner: envelope.ServiceOwner, Kind: "page", ID: p.query}
}

// next is the token of the page after the cursor.
func (p *pager) next(after store.Cursor) (string, error) {
	sealed, err := p.key.Seal(p.aad(), after.Bytes())
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(sealed), nil
}

// placed is what stands in a list.
type placed interface{ Cursor() store.Cursor }

// fill collects a page of what keep lets through. fetch gives rows after a cursor, in order. A page may end before it is full only
// where the list does.
func fill[T placed](p *pager, fetch func(after store.Cursor, limit int) ([]T, error), keep func(T) (bool, error)) (out []T, token string, err error) {
	after := p.after
	for {
		rows, err := fetch(after, p.limit+1)
		if err != nil {
			return nil, "", err
		}
		for i, row := range rows {
			ok, err := keep(row)
			if err != nil {
				return nil, "", err
			}
			if ok && len(out) == p.limit { // there is one more
				token, err = p.next(after)
				return out, token, err
			}
			if ok {
				out = append(out, row)
			}
			after = rows[i].Cursor()
		}
		if len(rows) <= p.limit {
			return out, "", nil
		}
	}
}
