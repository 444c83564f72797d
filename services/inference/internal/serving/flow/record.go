package flow

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/edge"
)

// Record is a telemetryv1.ScoringRequest with the messages that stand in it, to be used again.
type Record struct {
	telemetryv1.ScoringRequest
	duration, queued durationpb.Duration
	time             timestamppb.Timestamp
}

func newRecord() *Record { return &Record{} }

// bounds of what a record takes of what a caller writes.
const (
	MaxAgent    = 256
	maxURL      = 1024
	maxClientID = 128
)

// Text cuts a caller's text for a record, which has to be UTF-8.
func Text(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// requestURL is path and query without anything that could be a secret: of the query only names, but for values that are known.
func requestURL(u *url.URL) string {
	path := Text(u.EscapedPath(), maxURL)
	if u.RawQuery == "" {
		return path
	}
	names := make([]string, 0, 4)
	for name, values := range u.Query() {
		value := "-"
		if name == "version" && len(values) == 1 && (values[0] == "2" || values[0] == "3") {
			value = values[0]
		}
		names = append(names, url.QueryEscape(Text(name, 64))+"="+value)
	}
	slices.Sort(names)
	return Text(path+"?"+strings.Join(names, "&"), maxURL)
}

// computeType is the kind of an endpoint as the log has it.
func computeType(k inferencev1.Endpoint_Kind) string {
	if k == inferencev1.Endpoint_KIND_CONTAINER_INSTANCE {
		return "container-instance"
	}
	return "local"
}

func setDuration(d *durationpb.Duration, v time.Duration) {
	d.Seconds, d.Nanos = int64(v/time.Second), int32(v%time.Second)
}

// Describe notes what the record says of the request.
func (c *Call) Describe(r *http.Request) {
	rec := c.Record
	rec.HttpMethod, rec.UserAgent, rec.RequestUrl = Text(r.Method, 32), Text(r.UserAgent(), MaxAgent), requestURL(r.URL)
	rec.Address, rec.ClientRequestId = edge.Host(r.RemoteAddr), Text(r.Header.Get("X-Ms-Client-Request-Id"), maxClientID)
}
