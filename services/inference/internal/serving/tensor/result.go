package tensor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// lone are the names under which a model may answer with one list.
func lone() []string { return []string{"predictions", "outputs", "result"} }

// Predictions gives what a model answered for the protocols that have one list of predictions: the list, from within an object that has
// one, or else all of it.
func Predictions(body []byte) (json.RawMessage, error) {
	body = bytes.TrimSpace(body)
	if !json.Valid(body) {
		return nil, errors.New("the model's answer is no JSON")
	}
	if body[0] == '{' {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(body, &m); err != nil {
			return nil, errors.New("the model's answer is no JSON")
		}
		for _, name := range lone() {
			if v, ok := m[name]; ok {
				return v, nil
			}
		}
	}
	return body, nil
}

// Outputs gives what a model answered as tensors: of a list one, of an object that has lists one of each. wanted chooses among them by
// name; where there is one on both sides, it gives the name.
func Outputs(body []byte, wanted []string) ([]Tensor, error) {
	body = bytes.TrimSpace(body)
	if !json.Valid(body) {
		return nil, errors.New("the model's answer is no JSON")
	}
	outputs, err := outputs("output-0", body)
	if err != nil {
		return nil, err
	}
	if len(wanted) == 0 {
		return outputs, nil
	}
	if len(wanted) == 1 && len(outputs) == 1 {
		outputs[0].Name = wanted[0]
		return outputs, nil
	}
	chosen := make([]Tensor, 0, len(wanted))
	for _, name := range wanted {
		i := slices.IndexFunc(outputs, func(t Tensor) bool { return t.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("the model gives no output %.60q", name)
		}
		chosen = append(chosen, outputs[i])
	}
	return chosen, nil
}

func outputs(name string, body []byte) ([]Tensor, error) {
	if body[0] != '{' {
		t, err := output(name, body)
		return []Tensor{t}, err
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, errors.New("the model's answer is no JSON")
	}
	for _, one := range lone() {
		if v, ok := m[one]; ok && len(m) == 1 {
			return outputs(one, bytes.TrimSpace(v))
		}
	}
	if len(m) == 0 {
		return nil, errors.New("the model's answer has nothing in it")
	}
	list := make([]Tensor, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		t, err := output(name, m[name])
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

func output(name string, data []byte) (Tensor, error) {
	got, shape, err := scan(data)
	if err != nil {
		return Tensor{}, fmt.Errorf("the model's answer fits no tensor: %w", err)
	}
	datatype, err := got.infer()
	if err != nil {
		return Tensor{}, fmt.Errorf("the model's answer fits no tensor: %w", err)
	}
	if len(shape) == 0 {
		shape = []int64{1}
	}
	return Tensor{Name: name, Datatype: datatype, Shape: shape, elements: got}, nil
}

// ErrorText is what a model says went wrong: the text in {"error": text}, or "".
func ErrorText(body []byte) string {
	var e struct {
		Error any `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	s, _ := e.Error.(string)
	return s
}
