package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written "64KiB", "10MB", "1GiB" or as a plain number.
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	text, unit := strings.TrimSpace(string(b)), int64(1)
	for _, u := range sizeUnits {
		if digits, ok := strings.CutSuffix(text, u.suffix); ok {
			text, unit = strings.TrimSpace(digits), u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || int64(n) > math.MaxInt64/unit {
		return errors.New("needs a size such as 64KiB, 10MB or 1GiB")
	}
	*s = Size(int64(n) * unit)
	return nil
}

// String writes s with the largest unit that divides it.
func (s Size) String() string {
	for i := 3; i >= 0; i-- {
		if u := sizeUnits[i]; s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// store checks that v, as it came from YAML, can be a t, or says what is needed there. It gives the form in which the
// value waits to be decoded: what is written as a text and the path of a secret wait as texts.
func store(v any, t reflect.Type, sensitive bool) (any, error) {
	c, err := convert(v, t, sensitive)
	if err != nil || t == typeSecret || !reflect.PointerTo(t).Implements(typeText) {
		return c, err
	}
	if n, ok := v.(int); ok {
		return strconv.Itoa(n), nil
	}
	return v, nil
}

// convert gives v the type t of a leaf, except the path of a secret, or says what is needed. It does not repeat v.
func convert(v any, t reflect.Type, sensitive bool) (any, error) {
	if t == typeSecret {
		if s, ok := v.(string); ok && s != "" {
			return s, nil
		}
		return nil, errors.New("needs the path of a file that holds the secret")
	}
	if t == typeDuration {
		if s, ok := v.(string); ok {
			if d, err := time.ParseDuration(s); err == nil {
				return d, nil
			}
		}
		return nil, errors.New("needs a duration with its unit, such as 500ms, 10s or 1h30m")
	}
	out := reflect.New(t)
	if u, ok := out.Interface().(encoding.TextUnmarshaler); ok {
		text, ok := v.(string)
		if n, isInt := v.(int); isInt {
			text, ok = strconv.Itoa(n), true
		}
		if !ok {
			return nil, errors.New("needs a text")
		}
		if err := u.UnmarshalText([]byte(text)); err != nil {
			if sensitive {
				return nil, errors.New("is malformed")
			}
			return nil, err
		}
		return out.Elem().Interface(), nil
	}
	e, from := out.Elem(), reflect.ValueOf(v)
	switch t.Kind() {
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			e.SetBool(b)
			return e.Interface(), nil
		}
		return nil, errors.New("needs true or false")
	case reflect.String:
		if s, ok := v.(string); ok {
			e.SetString(s)
			return e.Interface(), nil
		}
		return nil, errors.New("needs a text: put it in quotes")
	case reflect.Float32, reflect.Float64:
		var f float64
		switch {
		case from.IsValid() && from.CanFloat():
			f = from.Float()
		case from.IsValid() && from.CanInt():
			f = float64(from.Int())
		default:
			return nil, errors.New("needs a number")
		}
		if math.IsNaN(f) || math.IsInf(f, 0) || e.OverflowFloat(f) {
			return nil, errors.New("needs a finite number")
		}
		e.SetFloat(f)
		return e.Interface(), nil
	}
	if e.CanInt() {
		if from.IsValid() && from.CanInt() && !e.OverflowInt(from.Int()) {
			e.SetInt(from.Int())
			return e.Interface(), nil
		}
		bits := t.Bits() - 1
		return nil, fmt.Errorf("needs a whole number from -2^%d to 2^%d-1", bits, bits)
	}
	if from.IsValid() && from.CanInt() && from.Int() >= 0 {
		from = reflect.ValueOf(uint64(from.Int()))
	}
	if from.IsValid() && from.CanUint() && !e.OverflowUint(from.Uint()) {
		e.SetUint(from.Uint())
		return e.Interface(), nil
	}
	return nil, fmt.Errorf("needs a whole number from 0 to 2^%d-1", t.Bits())
}

// storeText does what store does for a variable or a flag, which are texts. A list is separated by commas.
func storeText(s string, t reflect.Type, sensitive bool) (any, error) {
	if !leaf(t) { // a list of leaves
		out := []any{}
		for _, item := range strings.Split(s, ",") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			v, err := storeText(item, t.Elem(), sensitive)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	}
	if t == typeSecret || t == typeDuration || t.Kind() == reflect.String || reflect.PointerTo(t).Implements(typeText) {
		return store(s, t, sensitive)
	}
	var v any = s // which fits no kind below, so that convert says what is needed
	switch t.Kind() {
	case reflect.Bool:
		if b, err := strconv.ParseBool(s); err == nil {
			v = b
		}
	case reflect.Float32, reflect.Float64:
		if f, err := strconv.ParseFloat(s, 64); err == nil {
			v = f
		}
	default:
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			v = n
		} else if u, err := strconv.ParseUint(s, 10, 64); err == nil {
			v = u
		}
	}
	return store(v, t, sensitive)
}
