package mlflow

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
)

// badNumberError says what a number should have been.
type badNumberError struct{ want string }

// Error implements error.
func (e *badNumberError) Error() string { return e.want }

// Number is a double, as a JSON number or as a string that holds one, "NaN" and "Infinity" among them.
type Number float64

// UnmarshalJSON implements json.Unmarshaler.
func (n *Number) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	switch s {
	case "NaN":
		*n = Number(math.NaN())
		return nil
	case "Infinity":
		*n = Number(math.Inf(1))
		return nil
	case "-Infinity":
		*n = Number(math.Inf(-1))
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || strings.ContainsAny(s, "nNxX_pP") {
		return &badNumberError{`the value of a metric is a number, "NaN", "Infinity" or "-Infinity"`}
	}
	*n = Number(f)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (n Number) MarshalJSON() ([]byte, error) {
	switch f := float64(n); {
	case math.IsNaN(f):
		return []byte(`"NaN"`), nil
	case math.IsInf(f, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(f, -1):
		return []byte(`"-Infinity"`), nil
	default:
		return json.Marshal(f)
	}
}

// Integer is an int64, as a JSON number or as a string that holds one. It is written as a number.
type Integer int64

// UnmarshalJSON implements json.Unmarshaler.
func (n *Integer) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	i, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(s, 64)
		if ferr != nil || f != math.Trunc(f) || math.Abs(f) >= 1<<53 || strings.ContainsAny(s, "nNxX_pP") {
			return &badNumberError{"steps, timestamps and counts are whole numbers"}
		}
		i = int64(f)
	}
	*n = Integer(i)
	return nil
}

// Decode reads a JSON object. Fields that into does not know are ignored.
func Decode(body []byte, into any) *Refusal {
	if err := json.Unmarshal(body, into); err != nil {
		var wrong *json.UnmarshalTypeError
		var bad *badNumberError
		switch {
		case errors.As(err, &bad):
			return BadParameter(bad.Error())
		case errors.As(err, &wrong):
			return BadParameter("the field " + strconv.Quote(wrong.Field) + " cannot be a JSON " + wrong.Value)
		}
		return BadRequest(`the body is not a JSON object (NaN and infinite values are written as strings: "NaN", "Infinity", "-Infinity")`)
	}
	return nil
}
