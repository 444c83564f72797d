package requests

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// chunkRequests and chunkBytes end a chunk.
	chunkRequests = 256
	chunkBytes    = 64 << 10

	chunkVersion = 1
)

// Request is one request to an endpoint.
type Request = telemetryv1.ScoringRequest

// Endpoint names an endpoint by what never changes.
type Endpoint struct{ UID, WorkspaceUID string }

// chunk is the row of a chunk, and where it stands. All of it but sealed is bound to what is sealed.
type chunk struct {
	Endpoint
	minute, number, rev, requests, classes int64
	sealed                                 []byte
}

func (c *chunk) aad() envelope.AAD {
	field := fmt.Sprintf("%d %d %d %d", c.minute, c.number, c.requests, c.classes)
	return envelope.AAD{Owner: c.WorkspaceUID, Kind: "request-chunk", ID: c.UID, Field: field, Version: c.rev}
}

// open gives the plaintext.
func (c *chunk) open(key *envelope.Key) ([]byte, error) {
	plain, err := key.Open(c.aad(), c.sealed)
	if err != nil {
		return nil, err
	}
	if len(plain) < 1 || plain[0] != chunkVersion {
		return nil, errDamaged()
	}
	return plain, nil
}

// entry is a request of a chunk, still encoded, with the number of the change that brought it.
type entry struct {
	rev     int64
	encoded []byte
}

// entries takes a plaintext apart.
func (c *chunk) entries(plain []byte) ([]entry, error) {
	out := make([]entry, 0, c.requests)
	for plain = plain[1:]; len(plain) > 0; {
		rev, n := binary.Uvarint(plain)
		if n <= 0 {
			return nil, errDamaged()
		}
		plain = plain[n:]
		size, n := binary.Uvarint(plain)
		if n <= 0 || size > uint64(len(plain)-n) {
			return nil, errDamaged()
		}
		out = append(out, entry{int64(rev), plain[n : n+int(size)]})
		plain = plain[n+int(size):]
	}
	if int64(len(out)) != c.requests {
		return nil, errDamaged()
	}
	return out, nil
}

// appendEntry adds a request to a plaintext. Its endpoint and workspace are those of the chunk, and left out.
func appendEntry(plain []byte, rev int64, r *Request) ([]byte, error) {
	bare := proto.CloneOf(r)
	bare.WorkspaceUid, bare.EndpointUid = "", ""
	encoded, err := proto.Marshal(bare)
	if err != nil {
		return nil, fault.Internal(err, "a request could not be encoded")
	}
	plain = binary.AppendUvarint(plain, uint64(rev))
	plain = binary.AppendUvarint(plain, uint64(len(encoded)))
	return append(plain, encoded...), nil
}

// decode reads a request of the chunk.
func (c *chunk) decode(e entry) (*Request, error) {
	r := new(Request)
	if err := proto.Unmarshal(e.encoded, r); err != nil {
		return nil, errDamaged()
	}
	r.WorkspaceUid, r.EndpointUid = c.WorkspaceUID, c.UID
	return r, nil
}

// classOf is the bit of a status's class: 2 for 2xx, and 0 for what has none.
func classOf(status int32) int64 {
	if class := status / 100; class >= 1 && class <= 5 {
		return 1 << class
	}
	return 1
}

const allClasses = 1<<6 - 1

// minuteOf gives the minute that a time in microseconds lies in.
func minuteOf(micros int64) int64 {
	const minute = 60_000_000
	m := micros / minute
	if micros%minute < 0 {
		m--
	}
	return m
}

func errDamaged() error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "a part of the request log is damaged: it is not what was stored")
}
