package tensor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/redoubt-ml/redoubt/gen/inference"
)

// ParseMessage reads a request of the Open Inference Protocol as a message. The tensors refer to it.
func ParseMessage(in *inference.ModelInferRequest) (*Request, error) {
	raw := in.GetRawInputContents()
	req := &Request{ID: in.GetId(), Inputs: make([]Tensor, 0, len(in.GetInputs())), Raw: len(raw) > 0}
	if req.Raw && len(raw) != len(in.GetInputs()) {
		return nil, fmt.Errorf("there are %d inputs, and %d raw_input_contents: raw is used for all of them, or for none", len(in.GetInputs()), len(raw))
	}
	for i, t := range in.GetInputs() {
		var got elements
		d, err := of(t.GetDatatype())
		var n int
		if err == nil {
			n, err = count(t.GetShape())
		}
		switch {
		case err != nil:
		case req.Raw && t.GetContents() != nil:
			err = errors.New("it has contents, and raw_input_contents besides: raw is used for all of a request, or for none")
		case req.Raw:
			got, err = fromRaw(t.GetDatatype(), d, n, raw[i])
		case d.raw:
			err = fmt.Errorf("%s has no field in contents: send raw_input_contents", t.GetDatatype())
		default:
			got, err = fromContents(t.GetDatatype(), d, n, t.GetContents())
		}
		if err != nil {
			return nil, fmt.Errorf("input %d, %.60q: %w", i, t.GetName(), err)
		}
		req.Inputs = append(req.Inputs, Tensor{Name: t.GetName(), Datatype: t.GetDatatype(), Shape: t.GetShape(), elements: got})
	}
	for _, o := range in.GetOutputs() {
		req.Outputs = append(req.Outputs, o.GetName())
	}
	return req, named(req.Inputs)
}

// values are elements of a field of a message, or of bytes.
type values[T any] struct {
	list  []T
	width int
	put   func(dst []byte, v T) []byte
}

func (v *values[T]) Len() int                        { return len(v.list) }
func (v *values[T]) Size() int                       { return len(v.list) * v.width }
func (v *values[T]) Append(dst []byte, i int) []byte { return v.put(dst, v.list[i]) }

// fromContents takes the one field that the datatype asks for, and sees that the others are empty.
func fromContents(name string, d datatype, n int, c *inference.InferTensorContents) (elements, error) {
	total := len(c.GetBoolContents()) + len(c.GetIntContents()) + len(c.GetInt64Contents()) + len(c.GetUintContents()) + len(c.GetUint64Contents()) +
		len(c.GetFp32Contents()) + len(c.GetFp64Contents()) + len(c.GetBytesContents())
	var got elements
	var err error
	switch {
	case d.kind == boolean:
		got = &values[bool]{c.GetBoolContents(), d.width(), strconv.AppendBool}
	case d.kind == signed && d.bits == 64:
		got = &values[int64]{c.GetInt64Contents(), d.width(), appendInt[int64]}
	case d.kind == signed:
		got, err = &values[int32]{c.GetIntContents(), d.width(), appendInt[int32]}, fits(name, c.GetIntContents(), -1<<(d.bits-1), 1<<(d.bits-1)-1)
	case d.kind == unsigned && d.bits == 64:
		got = &values[uint64]{c.GetUint64Contents(), d.width(), appendUint[uint64]}
	case d.kind == unsigned:
		got, err = &values[uint32]{c.GetUintContents(), d.width(), appendUint[uint32]}, fits(name, c.GetUintContents(), 0, 1<<d.bits-1)
	case d.kind == float && d.bits == 64:
		got, err = &values[float64]{c.GetFp64Contents(), d.width(), appendFloat64}, finite(c.GetFp64Contents())
	case d.kind == float:
		got, err = &values[float32]{c.GetFp32Contents(), d.width(), appendFloat32}, finite(c.GetFp32Contents())
	default:
		got, err = texts(c.GetBytesContents())
	}
	switch {
	case err != nil:
		return nil, err
	case got.Len() != total:
		return nil, fmt.Errorf("contents has elements in a field that is not %s's", name)
	case got.Len() != n:
		return nil, fmt.Errorf("the shape asks for %d elements, and contents has %d", n, got.Len())
	}
	return got, nil
}

// fromRaw takes little-endian bytes.
func fromRaw(name string, d datatype, n int, raw []byte) (elements, error) {
	if d.kind == text {
		list, err := prefixed(raw)
		if err != nil {
			return nil, err
		}
		if len(list) != n {
			return nil, fmt.Errorf("the shape asks for %d elements, and its raw contents have %d", n, len(list))
		}
		return texts(list)
	}
	size := d.bits / 8
	if len(raw) != n*size {
		return nil, fmt.Errorf("the shape asks for %d elements of %d bytes, and its raw contents have %d bytes", n, size, len(raw))
	}
	r := &rawElements{name: name, d: d, b: raw, n: n}
	for i := range n {
		switch d.kind {
		case boolean:
			if raw[i] > 1 {
				return nil, fmt.Errorf("element %d is neither 0 nor 1", i)
			}
		case float:
			if f := r.float(i); math.IsNaN(f) || math.IsInf(f, 0) {
				return nil, notFinite(i)
			}
		}
	}
	return r, nil
}

// rawElements are elements of a fixed size.
type rawElements struct {
	name string
	d    datatype
	b    []byte
	n    int
}

func (r *rawElements) Len() int  { return r.n }
func (r *rawElements) Size() int { return r.n * r.d.width() }

func (r *rawElements) uint(i int) uint64 {
	switch r.d.bits {
	case 8:
		return uint64(r.b[i])
	case 16:
		return uint64(binary.LittleEndian.Uint16(r.b[2*i:]))
	case 32:
		return uint64(binary.LittleEndian.Uint32(r.b[4*i:]))
	}
	return binary.LittleEndian.Uint64(r.b[8*i:])
}

func (r *rawElements) float(i int) float64 {
	v := r.uint(i)
	switch {
	case r.name == "BF16":
		return float64(math.Float32frombits(uint32(v) << 16))
	case r.d.bits == 16:
		return half(uint16(v))
	case r.d.bits == 32:
		return float64(math.Float32frombits(uint32(v)))
	}
	return math.Float64frombits(v)
}

// Append implements elements.
func (r *rawElements) Append(dst []byte, i int) []byte {
	switch v := r.uint(i); r.d.kind {
	case boolean:
		return strconv.AppendBool(dst, v == 1)
	case signed:
		shift := 64 - r.d.bits
		return strconv.AppendInt(dst, int64(v<<shift)>>shift, 10)
	case unsigned:
		return strconv.AppendUint(dst, v, 10)
	}
	if r.d.bits == 64 {
		return appendFloat64(dst, r.float(i))
	}
	return appendFloat32(dst, float32(r.float(i)))
}

// half is the value of an IEEE 754 number of 16 bits.
func half(v uint16) float64 {
	sign, exp, frac := 1.0, int(v>>10&31), float64(v&1023)
	if v>>15 == 1 {
		sign = -1
	}
	switch exp {
	case 0:
		return sign * math.Ldexp(frac, -24)
	case 31:
		if frac == 0 {
			return math.Inf(int(sign))
		}
		return math.NaN()
	}
	return sign * math.Ldexp(1024+frac, exp-25)
}

// prefixed takes elements apart that have their length in front, as 4 bytes.
func prefixed(raw []byte) ([][]byte, error) {
	var list [][]byte
	for len(raw) > 0 {
		if len(raw) < 4 {
			return nil, fmt.Errorf("element %d: its raw contents end within a length", len(list))
		}
		n := binary.LittleEndian.Uint32(raw)
		if raw = raw[4:]; uint64(n) > uint64(len(raw)) {
			return nil, fmt.Errorf("element %d: %d bytes are announced, and %d are left", len(list), n, len(raw))
		}
		list = append(list, raw[:n])
		raw = raw[n:]
	}
	return list, nil
}

func texts(list [][]byte) (elements, error) {
	longest := 0
	for i, b := range list {
		if !utf8Text(b) {
			return nil, fmt.Errorf("element %d of BYTES is not UTF-8: workers are asked in JSON", i)
		}
		longest = max(longest, len(b))
	}
	return &strs{list}, nil
}

// strs are elements of BYTES.
type strs struct{ list [][]byte }

func (s *strs) Len() int                        { return len(s.list) }
func (s *strs) Append(dst []byte, i int) []byte { return appendString(dst, s.list[i]) }
func (s *strs) Size() int {
	n := 3 * len(s.list)
	for _, b := range s.list {
		for _, c := range b {
			switch {
			case c < ' ':
				n += 6
			case c == '"' || c == '\\':
				n += 2
			default:
				n++
			}
		}
	}
	return n
}

func fits[T int32 | uint32](name string, list []T, low, high int64) error {
	for i, v := range list {
		if int64(v) < low || int64(v) > high {
			return fmt.Errorf("element %d, %d, is no %s", i, v, name)
		}
	}
	return nil
}

func finite[T float32 | float64](list []T) error {
	for i, v := range list {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return notFinite(i)
		}
	}
	return nil
}

func notFinite(i int) error {
	return fmt.Errorf("element %d is not a finite number, and workers are asked in JSON, which has no other", i)
}

func appendInt[T int32 | int64](dst []byte, v T) []byte { return strconv.AppendInt(dst, int64(v), 10) }
func appendUint[T uint32 | uint64](dst []byte, v T) []byte {
	return strconv.AppendUint(dst, uint64(v), 10)
}
func appendFloat32(dst []byte, v float32) []byte {
	return strconv.AppendFloat(dst, float64(v), 'g', -1, 32)
}
func appendFloat64(dst []byte, v float64) []byte { return strconv.AppendFloat(dst, v, 'g', -1, 64) }

// Message makes the answer to a request: with raw contents where the request had them.
func Message(model, version string, req *Request, outputs []Tensor) (*inference.ModelInferResponse, error) {
	out := &inference.ModelInferResponse{ModelName: model, ModelVersion: version, Id: req.ID}
	for i := range outputs {
		t := &outputs[i]
		s, ok := t.elements.(*scalars)
		if !ok {
			return nil, errors.New("an output is not of JSON")
		}
		o := &inference.ModelInferResponse_InferOutputTensor{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape}
		c := &inference.InferTensorContents{}
		var raw []byte
		for i := range s.Len() {
			b := s.at(i)
			var err error
			switch t.Datatype {
			case "BOOL":
				if v := b[0] == 't'; !req.Raw {
					c.BoolContents = append(c.BoolContents, v)
				} else if v {
					raw = append(raw, 1)
				} else {
					raw = append(raw, 0)
				}
			case "INT64":
				var v int64
				if v, err = strconv.ParseInt(string(b), 10, 64); req.Raw {
					raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
				} else {
					c.Int64Contents = append(c.Int64Contents, v)
				}
			case "FP64":
				var v float64
				if v, err = strconv.ParseFloat(string(b), 64); req.Raw {
					raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(v))
				} else {
					c.Fp64Contents = append(c.Fp64Contents, v)
				}
			default:
				var v []byte
				if v, err = unquote(b); req.Raw {
					raw = append(binary.LittleEndian.AppendUint32(raw, uint32(len(v))), v...)
				} else {
					c.BytesContents = append(c.BytesContents, v)
				}
			}
			if err != nil {
				return nil, fmt.Errorf("element %d cannot be read", i)
			}
		}
		if req.Raw {
			out.RawOutputContents = append(out.RawOutputContents, raw)
		} else {
			o.Contents = c
		}
		out.Outputs = append(out.Outputs, o)
	}
	return out, nil
}
