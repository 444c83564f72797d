package tensor

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// scalars are elements that stand in a JSON text.
type scalars struct {
	src   []byte
	spans []span
}

type span struct{ from, to int32 }

func (s *scalars) Len() int                        { return len(s.spans) }
func (s *scalars) Size() int                       { return len(s.src) + len(s.spans) }
func (s *scalars) Append(dst []byte, i int) []byte { return append(dst, s.at(i)...) }
func (s *scalars) at(i int) []byte                 { return s.src[s.spans[i].from:s.spans[i].to] }

// scanner reads lists of lists of scalars from JSON that is known to be well-formed.
type scanner struct {
	out   scalars
	at    int
	shape []int64 // of the first row on each level
}

func ragged() error { return fmt.Errorf("the rows are not of one length") }

// scan flattens lists in lists. The shape is that of a scalar, [], where there is no list.
func scan(src []byte) (*scalars, []int64, error) {
	if len(src) > 1<<31-1 {
		return nil, nil, fmt.Errorf("the tensor is too long")
	}
	s := &scanner{out: scalars{src: src}}
	if err := s.value(0); err != nil {
		return nil, nil, err
	}
	return &s.out, s.shape, nil
}

func (s *scanner) space() {
	for s.at < len(s.out.src) {
		switch s.out.src[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

func (s *scanner) value(depth int) error {
	s.space()
	switch c := s.out.src[s.at]; c {
	case '[':
		return s.list(depth)
	case '{':
		return fmt.Errorf("a tensor has no objects in it")
	case 'n':
		return fmt.Errorf("a tensor has no null in it")
	default:
		if depth != len(s.shape) {
			return ragged()
		}
		from := s.at
		s.scalar(c)
		s.out.spans = append(s.out.spans, span{int32(from), int32(s.at)})
		return nil
	}
}

func (s *scanner) scalar(c byte) {
	if c != '"' {
		for s.at < len(s.out.src) {
			switch s.out.src[s.at] {
			case ',', ']', '}', ' ', '\t', '\n', '\r':
				return
			}
			s.at++
		}
		return
	}
	for s.at++; s.out.src[s.at] != '"'; s.at++ {
		if s.out.src[s.at] == '\\' {
			s.at++
		}
	}
	s.at++
}

func (s *scanner) list(depth int) error {
	if depth >= maxDims {
		return fmt.Errorf("a tensor has at most %d dimensions", maxDims)
	}
	first := len(s.shape) == depth // the first list on this level
	if first {
		if len(s.out.spans) > 0 {
			return ragged()
		}
		s.shape = append(s.shape, -1)
	}
	s.at++ // the bracket
	n := int64(0)
	for {
		s.space()
		switch s.out.src[s.at] {
		case ']':
			s.at++
			if s.shape[depth] == -1 {
				s.shape[depth] = n
			} else if s.shape[depth] != n {
				return ragged()
			}
			return nil
		case ',':
			s.at++
		}
		if err := s.value(depth + 1); err != nil {
			return err
		}
		n++
	}
}

// check looks whether every scalar is of the datatype.
func (s *scalars) check(name string, d datatype) error {
	for i := range s.spans {
		b := s.at(i)
		var ok bool
		switch d.kind {
		case boolean:
			ok = b[0] == 't' || b[0] == 'f'
		case signed:
			_, err := strconv.ParseInt(string(b), 10, d.bits)
			ok = err == nil
		case unsigned:
			_, err := strconv.ParseUint(string(b), 10, d.bits)
			ok = err == nil
		case float:
			_, err := strconv.ParseFloat(string(b), d.bits)
			ok = err == nil && number(b)
		case text:
			ok = b[0] == '"'
		}
		if !ok {
			return fmt.Errorf("element %d, %.40q, is no %s", i, b, name)
		}
	}
	return nil
}

// number tells whether a scalar of well-formed JSON is a number.
func number(b []byte) bool { return b[0] == '-' || '0' <= b[0] && b[0] <= '9' }

// infer gives the datatype that holds all scalars.
func (s *scalars) infer() (string, error) {
	ints, floats, bools, texts := 0, 0, 0, 0
	for i := range s.spans {
		switch b := s.at(i); {
		case b[0] == '"':
			texts++
		case b[0] == 't' || b[0] == 'f':
			bools++
		default:
			if _, err := strconv.ParseInt(string(b), 10, 64); err == nil {
				ints++
			} else if _, err := strconv.ParseFloat(string(b), 64); err == nil {
				floats++
			} else {
				return "", fmt.Errorf("element %d, %.40q, is a number that fits no datatype", i, b)
			}
		}
	}
	switch n := len(s.spans); {
	case texts == n && n > 0:
		return "BYTES", nil
	case bools == n && n > 0:
		return "BOOL", nil
	case ints == n && n > 0:
		return "INT64", nil
	case ints+floats == n:
		return "FP64", nil
	}
	return "", fmt.Errorf("the elements are not of one datatype")
}

// unquote gives the text of a JSON string.
func unquote(b []byte) ([]byte, error) {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	return []byte(s), nil
}

// appendString writes text, which is UTF-8, as a JSON string.
func appendString[T string | []byte](dst []byte, s T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

func utf8Text(b []byte) bool { return utf8.Valid(b) }
