package history

import (
	"fmt"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// What a batch and a run may hold. All of a run's latest points, parameters and tags fit into one answer of 4 MiB.
const (
	MaxBatchItems  = 1000 // metrics, parameters and tags together
	MaxBatchBytes  = 1_000_000
	MaxBatchParams = 100
	MaxBatchTags   = 100
	MaxKeyBytes    = 250
	MaxParamBytes  = 6000
	MaxTagBytes    = 8000

	MaxRunMetrics   = 4000
	MaxRunTexts     = 4000    // parameters and tags
	MaxRunTextBytes = 2 << 20 // of their names and values

	// ChunkPoints and ChunkAge end a chunk.
	ChunkPoints = 1024
	ChunkAge    = time.Second
	// BatchMemory is how long the id of a batch is remembered.
	BatchMemory = 7 * 24 * time.Hour
)

// Text is a parameter or a tag.
type Text struct{ Key, Value string }

func (t Text) size() int64 { return int64(len(t.Key) + len(t.Value)) }

// Batch is what is stored at once.
type Batch struct {
	// ID makes a repeated batch harmless; empty for none.
	ID      string
	Metrics []Metric
	Params  []Text
	Tags    []Text
}

// Empty reports whether there is nothing to store.
func (b *Batch) Empty() bool { return len(b.Metrics)+len(b.Params)+len(b.Tags) == 0 }

// Check holds a batch to what MLflow's clients may send. Its faults name the field.
func (b *Batch) Check() error {
	items := len(b.Metrics) + len(b.Params) + len(b.Tags)
	switch {
	case items > MaxBatchItems:
		return invalid("metrics", "more than %d metrics, params and tags in one batch; send several batches", MaxBatchItems)
	case len(b.Params) > MaxBatchParams:
		return invalid("params", "more than %d in one batch; send several batches", MaxBatchParams)
	case len(b.Tags) > MaxBatchTags:
		return invalid("tags", "more than %d in one batch; send several batches", MaxBatchTags)
	}
	bytes := 0
	for i, m := range b.Metrics {
		bytes += len(m.Key) + 24
		if wrong := badKey(m.Key); wrong != "" {
			return invalid(fmt.Sprintf("metrics[%d].key", i), "%s", wrong)
		}
	}
	for _, texts := range []struct {
		field string
		list  []Text
		most  int
	}{{"params", b.Params, MaxParamBytes}, {"tags", b.Tags, MaxTagBytes}} {
		seen := make(map[string]bool, len(texts.list))
		for i, t := range texts.list {
			bytes += int(t.size())
			wrong := badKey(t.Key)
			switch {
			case wrong != "":
				return invalid(fmt.Sprintf("%s[%d].key", texts.field, i), "%s", wrong)
			case seen[t.Key]:
				return invalid(fmt.Sprintf("%s[%d].key", texts.field, i), "it stands in the batch twice")
			case len(t.Value) > texts.most:
				return invalid(fmt.Sprintf("%s[%d].value", texts.field, i), "longer than %d bytes", texts.most)
			case !utf8.ValidString(t.Value):
				return invalid(fmt.Sprintf("%s[%d].value", texts.field, i), "not UTF-8")
			}
			seen[t.Key] = true
		}
	}
	if bytes > MaxBatchBytes {
		return invalid("metrics", "the batch has more than %d bytes; send several batches", MaxBatchBytes)
	}
	return nil
}

// badKey says what is wrong with the name of a metric, parameter or tag, or "": letters, digits, and / _ . - and space, and as a
// path its own normal form.
func badKey(key string) string {
	switch {
	case key == "":
		return "it is empty"
	case len(key) > MaxKeyBytes:
		return fmt.Sprintf("longer than %d bytes", MaxKeyBytes)
	case !utf8.ValidString(key):
		return "not UTF-8"
	case path.Clean(key) != key || key == "." || strings.HasPrefix(key, "/") || strings.HasPrefix(key, ".."):
		return "as a path it must be relative and in its shortest form"
	}
	for _, r := range key {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/_.- ", r) {
			return "it may have letters, digits, slashes, underscores, dots, hyphens and spaces"
		}
	}
	return ""
}

func invalid(field, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return fault.New(codes.InvalidArgument, faultv1.Reason_METRIC_INVALID, "%s: %s", field, text).Field(field, text)
}
