package tensor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Request is an inference that was asked for.
type Request struct {
	ID     string
	Inputs []Tensor
	// Outputs are the names of those that are wanted; none for all.
	Outputs []string
	// Raw says that the inputs came as bytes, and the outputs go so.
	Raw bool
}

type restRequest struct {
	ID     string `json:"id"`
	Inputs []struct {
		Name       string                     `json:"name"`
		Datatype   string                     `json:"datatype"`
		Shape      []int64                    `json:"shape"`
		Parameters map[string]json.RawMessage `json:"parameters"`
		Data       json.RawMessage            `json:"data"`
	} `json:"inputs"`
	Outputs []struct {
		Name       string                     `json:"name"`
		Parameters map[string]json.RawMessage `json:"parameters"`
	} `json:"outputs"`
	Parameters map[string]json.RawMessage `json:"parameters"`
}

var errBinary = errors.New("the binary extension is not spoken here: send data as JSON, or use gRPC with raw_input_contents")

// ParseREST reads a request of the Open Inference Protocol as JSON. The tensors refer to body.
func ParseREST(body []byte) (*Request, error) {
	var in restRequest
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	req := &Request{ID: in.ID, Inputs: make([]Tensor, 0, len(in.Inputs))}
	if _, ok := in.Parameters["binary_data_output"]; ok {
		return nil, errBinary
	}
	for i := range in.Inputs {
		t := &in.Inputs[i]
		if _, ok := t.Parameters["binary_data_size"]; ok {
			return nil, errBinary
		}
		got, err := restTensor(t.Datatype, t.Shape, t.Data)
		if err != nil {
			return nil, fmt.Errorf("input %d, %.60q: %w", i, t.Name, err)
		}
		req.Inputs = append(req.Inputs, Tensor{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape, elements: got})
	}
	for _, o := range in.Outputs {
		if v, ok := o.Parameters["binary_data"]; ok && !bytes.Equal(v, []byte("false")) {
			return nil, errBinary
		}
		req.Outputs = append(req.Outputs, o.Name)
	}
	return req, named(req.Inputs)
}

func restTensor(name string, shape []int64, data []byte) (*scalars, error) {
	d, err := of(name)
	if err != nil {
		return nil, err
	}
	if d.raw {
		return nil, fmt.Errorf("%s has no form in JSON: send FP32, or raw bytes by gRPC", name)
	}
	if shape == nil {
		return nil, errors.New("it has no shape")
	}
	n, err := count(shape)
	if err != nil {
		return nil, err
	}
	if data == nil {
		return nil, errors.New("it has no data")
	}
	got, as, err := scan(data)
	if err != nil {
		return nil, err
	}
	if len(as) == 0 {
		return nil, errors.New("data is no list")
	}
	if got.Len() != n || len(as) > 1 && n > 0 && !slices.Equal(as, shape) {
		return nil, fmt.Errorf("shape %v asks for %d elements, and data has %d, in lists of %v", shape, n, got.Len(), as)
	}
	return got, got.check(name, d)
}

// decode reads one JSON value, of which field names are taken as they are written.
func decode(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return fmt.Errorf("the body is no JSON, from byte %d on", syntax.Offset)
		case errors.As(err, &kind) && kind.Field != "":
			return fmt.Errorf("%s cannot be %s", kind.Field, kind.Value)
		case errors.As(err, &kind):
			return fmt.Errorf("the body cannot be %s", kind.Value)
		}
		return errors.New("the body cannot be read")
	}
	return nil
}

// AppendREST writes the answer to a request.
func AppendREST(dst []byte, model, version, id string, outputs []Tensor) []byte {
	dst = append(appendString(append(dst, `{"model_name":`...), model), `,"model_version":`...)
	dst = appendString(dst, version)
	if id != "" {
		dst = appendString(append(dst, `,"id":`...), id)
	}
	dst = append(dst, `,"outputs":[`...)
	for i := range outputs {
		o := &outputs[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(append(dst, `{"name":`...), o.Name), `,"datatype":`...)
		dst = append(appendString(dst, o.Datatype), `,"shape":[`...)
		for j, d := range o.Shape {
			if j > 0 {
				dst = append(dst, ',')
			}
			dst = fmt.Appendf(dst, "%d", d)
		}
		dst = append(o.appendFlat(append(dst, `],"data":`...)), '}')
	}
	return append(dst, "]}"...)
}
