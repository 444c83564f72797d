package history

import (
	"cmp"
	"encoding/binary"
	"math"
)

// Point is one measured value. Time is microseconds since 1970 (UTC).
type Point struct {
	Step, Time int64
	Value      float64
}

// Metric is a point with its metric's name.
type Metric struct {
	Key string
	Point
}

// Compare orders points as "latest" means it: by step, then time, then value, where NaN stands below every number and is
// equal to itself.
func (p Point) Compare(o Point) int {
	return cmp.Or(cmp.Compare(p.Step, o.Step), cmp.Compare(p.Time, o.Time), cmp.Compare(p.Value, o.Value))
}

// span is what a chunk's row says of its points.
type span struct {
	stepMin, stepMax, timeMin, timeMax int64
}

// spanOf is the span of at least one point.
func spanOf(points []Point) span {
	s := span{math.MaxInt64, math.MinInt64, math.MaxInt64, math.MinInt64}
	for _, p := range points {
		s.stepMin, s.stepMax = min(s.stepMin, p.Step), max(s.stepMax, p.Step)
		s.timeMin, s.timeMax = min(s.timeMin, p.Time), max(s.timeMax, p.Time)
	}
	return s
}

// encodePoints writes a version, then each point: the change of step and of time as zigzag varints, and the bits of the value.
// Differences wrap around, so every int64 comes back.
func encodePoints(points []Point) []byte {
	b := make([]byte, 1, 1+12*len(points))
	b[0] = pointsVersion
	var last Point
	for _, p := range points {
		b = binary.AppendVarint(b, p.Step-last.Step)
		b = binary.AppendVarint(b, p.Time-last.Time)
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(p.Value))
		last = p
	}
	return b
}

const pointsVersion = 1

// decodePoints reads what encodePoints wrote; n is how many points there have to be.
func decodePoints(b []byte, n int64) ([]Point, error) {
	if len(b) < 1 || b[0] != pointsVersion || n < 1 || n > ChunkPoints {
		return nil, errDamaged("a chunk of points")
	}
	b = b[1:]
	points := make([]Point, n)
	var last Point
	for i := range points {
		var ok bool
		if last, b, ok = next(last, b); !ok {
			return nil, errDamaged("a chunk of points")
		}
		points[i] = last
	}
	if len(b) > 0 {
		return nil, errDamaged("a chunk of points")
	}
	return points, nil
}

// cutPoint reads one encoded point from the front of b.
func cutPoint(b []byte) (p Point, rest string, err error) {
	if len(b) < 1 || b[0] != pointsVersion {
		return Point{}, "", errDamaged("a point")
	}
	p, b, ok := next(Point{}, b[1:])
	if !ok {
		return Point{}, "", errDamaged("a point")
	}
	return p, string(b), nil
}

// next reads the point after last.
func next(last Point, b []byte) (Point, []byte, bool) {
	step, k := binary.Varint(b)
	if k <= 0 {
		return Point{}, nil, false
	}
	b = b[k:]
	time, k := binary.Varint(b)
	if k <= 0 || len(b) < k+8 {
		return Point{}, nil, false
	}
	value := math.Float64frombits(binary.LittleEndian.Uint64(b[k:]))
	return Point{last.Step + step, last.Time + time, value}, b[k+8:], true
}
