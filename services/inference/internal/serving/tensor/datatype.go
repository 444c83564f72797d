package tensor

import (
	"fmt"
	"math"
)

// kind is how elements of a datatype are written.
type kind uint8

const (
	boolean kind = iota + 1
	signed
	unsigned
	float
	text
)

// datatype is one of the protocol's.
type datatype struct {
	kind kind
	bits int // of one element; 0 for BYTES
	raw  bool
}

// of gives a datatype by its name. Those that are raw only have no field of their own in messages and no form in JSON.
func of(name string) (datatype, error) {
	switch name {
	case "BOOL":
		return datatype{kind: boolean, bits: 8}, nil
	case "INT8":
		return datatype{kind: signed, bits: 8}, nil
	case "INT16":
		return datatype{kind: signed, bits: 16}, nil
	case "INT32":
		return datatype{kind: signed, bits: 32}, nil
	case "INT64":
		return datatype{kind: signed, bits: 64}, nil
	case "UINT8":
		return datatype{kind: unsigned, bits: 8}, nil
	case "UINT16":
		return datatype{kind: unsigned, bits: 16}, nil
	case "UINT32":
		return datatype{kind: unsigned, bits: 32}, nil
	case "UINT64":
		return datatype{kind: unsigned, bits: 64}, nil
	case "FP16", "BF16":
		return datatype{kind: float, bits: 16, raw: true}, nil
	case "FP32":
		return datatype{kind: float, bits: 32}, nil
	case "FP64":
		return datatype{kind: float, bits: 64}, nil
	case "BYTES":
		return datatype{kind: text}, nil
	}
	return datatype{}, fmt.Errorf("datatype %.40q is not known: BOOL, INT8 to INT64, UINT8 to UINT64, FP16, BF16, FP32, FP64 and BYTES are", name)
}

// width is how many bytes an element takes as JSON at most, with a comma; of text, besides its own.
func (d datatype) width() int {
	switch {
	case d.kind == boolean, d.bits == 8:
		return 6
	case d.kind == float && d.bits == 64, d.bits == 64:
		return 25
	}
	return 16
}

const (
	// maxDims bounds the dimensions of a tensor: each adds brackets around every element.
	maxDims = 8
	// maxElements bounds the elements of a tensor.
	maxElements = math.MaxInt32
)

// count is how many elements a shape asks for.
func count(shape []int64) (int, error) {
	if len(shape) > maxDims {
		return 0, fmt.Errorf("the shape has %d dimensions; at most %d are taken", len(shape), maxDims)
	}
	n := int64(1)
	empty := false
	for _, d := range shape {
		switch {
		case d < 0:
			return 0, fmt.Errorf("the shape %v has a negative dimension", shape)
		case d == 0:
			empty = true
		case n > maxElements/d:
			return 0, fmt.Errorf("the shape %v asks for too many elements", shape)
		default:
			n *= d
		}
	}
	if empty {
		return 0, nil
	}
	return int(n), nil
}

// elements are those of a tensor, row by row, all checked.
type elements interface {
	// Len is how many there are.
	Len() int
	// Append writes one as JSON.
	Append(dst []byte, i int) []byte
	// Size bounds what Append writes for all of them, with a comma each.
	Size() int
}

// Tensor is one that was checked: as many elements as its shape asks for, each of its datatype.
type Tensor struct {
	Name, Datatype string
	Shape          []int64
	elements       elements
}

// Size bounds what a tensor takes as JSON.
func (t *Tensor) Size() int {
	return t.elements.Size() + 2*len(t.Shape)*(t.elements.Len()+1) + len(t.Name)*6 + 8
}

// appendRows writes the elements as lists in lists.
func (t *Tensor) appendRows(dst []byte) []byte {
	if t.elements.Len() == 0 {
		return append(dst, "[]"...)
	}
	next := 0
	return t.rows(dst, t.Shape, &next)
}

func (t *Tensor) rows(dst []byte, shape []int64, next *int) []byte {
	if len(shape) == 0 {
		dst = t.elements.Append(dst, *next)
		*next++
		return dst
	}
	dst = append(dst, '[')
	for i := range shape[0] {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = t.rows(dst, shape[1:], next)
	}
	return append(dst, ']')
}

// appendFlat writes the elements as one list.
func (t *Tensor) appendFlat(dst []byte) []byte {
	dst = append(dst, '[')
	for i := range t.elements.Len() {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = t.elements.Append(dst, i)
	}
	return append(dst, ']')
}

// Data writes what a worker is asked: {"data": rows} of one tensor, {"data": {"name": rows, …}} of several.
func Data(dst []byte, inputs []Tensor) []byte {
	dst = append(dst, `{"data":`...)
	if len(inputs) == 1 {
		return append(inputs[0].appendRows(dst), '}')
	}
	for i := range inputs {
		if i == 0 {
			dst = append(dst, '{')
		} else {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, inputs[i].Name), ':')
		dst = inputs[i].appendRows(dst)
	}
	return append(dst, "}}"...)
}

// Size bounds what Data writes.
func Size(inputs []Tensor) int {
	n := 16
	for i := range inputs {
		n += inputs[i].Size()
	}
	return n
}

// named checks the names of inputs: a worker is told several by them.
func named(inputs []Tensor) error {
	if len(inputs) == 0 {
		return fmt.Errorf("the request has no inputs")
	}
	seen := make(map[string]struct{}, len(inputs))
	for i := range inputs {
		name := inputs[i].Name
		if _, twice := seen[name]; twice || name == "" || len(name) > 256 {
			return fmt.Errorf("input %d has no name, one of more than 256 bytes, or that of another", i)
		}
		seen[name] = struct{}{}
	}
	return nil
}
