package envelope

import (
	"encoding/base64"
	"encoding/binary"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// maxPageToken bounds a page token before anything is decoded; the contracts say the same.
const maxPageToken = 1024

// SealPage makes the page token of a list: the cursor, sealed and bound to the query that it belongs to. query names the list and
// its arguments; a token is of no use for another.
func (k *Key) SealPage(query string, cursor []byte) (string, error) {
	b, err := k.Seal(pageAAD(k.owner, query), cursor)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// OpenPage reads what SealPage made for the same query.
//
// Errors: PAGE_TOKEN_INVALID for anything else.
func (k *Key) OpenPage(query, token string) ([]byte, error) {
	bad := fault.New(codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID, "the page token is not one of this list with these arguments; start again without one").
		Field("page_token", "belongs to another query, or is damaged")
	if len(token) > maxPageToken {
		return nil, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return nil, bad
	}
	cursor, err := k.Open(pageAAD(k.owner, query), b)
	if fault.Is(err, codes.DataLoss) {
		return nil, bad
	}
	return cursor, err
}

func pageAAD(owner, query string) AAD { return AAD{Owner: owner, Kind: "page", ID: query} }

// Cursor is the place in a list in the order of creation after which the next page starts: the time in microseconds and the uid of
// the last row that was given. The zero value is the beginning.
type Cursor struct {
	Time int64
	UID  string
}

// Bytes is the cursor as SealPage takes it.
func (c Cursor) Bytes() []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(c.Time)), c.UID...)
}

// ParseCursor reads what Bytes wrote.
//
// Errors: PAGE_TOKEN_INVALID for anything shorter.
func ParseCursor(b []byte) (Cursor, error) {
	if len(b) < 8 {
		return Cursor{}, fault.New(codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID, "the page token is not one of ours")
	}
	return Cursor{int64(binary.BigEndian.Uint64(b)), string(b[8:])}, nil
}
