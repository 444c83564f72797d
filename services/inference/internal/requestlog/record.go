package requestlog

import (
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

const (
	// maxRecord bounds an encoded record.
	maxRecord = 16 << 10
	// maxText is what is left of a text of a record that is longer than that.
	maxText = 512
)

// encode appends a record's bytes to b. What a stranger wrote into it may be long, or no UTF-8; then its texts are cut and mended.
func encode(b []byte, r *telemetryv1.ScoringRequest, now func() time.Time) ([]byte, bool) {
	if r.GetTime() == nil {
		r.Time = timestamppb.New(now())
	}
	out, err := proto.MarshalOptions{}.MarshalAppend(b, r)
	if err == nil && len(out)-len(b) <= maxRecord {
		return out, true
	}
	mend(r.ProtoReflect())
	out, err = proto.MarshalOptions{}.MarshalAppend(b, r)
	return out, err == nil && len(out)-len(b) <= maxRecord
}

func mend(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if field.Kind() == protoreflect.StringKind && !field.IsList() && !field.IsMap() {
			text := v.String()
			if len(text) > maxText {
				text = text[:maxText]
			}
			m.Set(field, protoreflect.ValueOfString(strings.ToValidUTF8(text, "")))
		}
		return true
	})
}
