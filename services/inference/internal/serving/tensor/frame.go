package tensor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Instances reads a request of KServe v1, {"instances": […]}, and gives what a worker is asked.
func Instances(body []byte) ([]byte, error) {
	var in map[string]json.RawMessage
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	v, ok := in["instances"]
	if !ok || v[0] != '[' {
		return nil, errors.New(`the body is {"instances": [row, …]}`)
	}
	return data(v), nil
}

func data(v []byte) []byte {
	dst := make([]byte, 0, len(v)+16)
	return append(append(append(dst, `{"data":`...), v...), '}')
}

var errFrame = errors.New(`the body is an object with one of "dataframe_split", "dataframe_records", "instances" and "inputs"`)

// Invocation reads a request of MLflow's scoring server and gives what a worker is asked.
func Invocation(body []byte) ([]byte, error) {
	if b := bytes.TrimSpace(body); len(b) > 0 && b[0] != '{' {
		return nil, errFrame
	}
	var in map[string]json.RawMessage
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	if p, ok := in["params"]; ok {
		if s := string(bytes.TrimSpace(p)); s != "null" && s != "{}" {
			return nil, errors.New(`"params" are not passed on: leave them out`)
		}
		delete(in, "params")
	}
	if len(in) != 1 {
		return nil, errFrame
	}
	for name, v := range in {
		switch name {
		case "dataframe_split":
			return split(v)
		case "dataframe_records":
			return records(v)
		case "instances":
			if v[0] != '[' {
				return nil, errors.New(`"instances" is a list`)
			}
			return data(v), nil
		case "inputs":
			if v[0] != '[' && v[0] != '{' {
				return nil, errors.New(`"inputs" is a list, or an object of lists`)
			}
			return data(v), nil
		}
	}
	return nil, errFrame
}

func split(v []byte) ([]byte, error) {
	var frame struct {
		Columns []json.RawMessage   `json:"columns"`
		Data    [][]json.RawMessage `json:"data"`
	}
	if err := decode(v, &frame); err != nil {
		return nil, fmt.Errorf("dataframe_split: %w", err)
	}
	if frame.Data == nil {
		return nil, errors.New(`dataframe_split is {"columns": […], "data": [row, …]}`)
	}
	dst := append(make([]byte, 0, len(v)+16), `{"data":[`...)
	for i, row := range frame.Data {
		if frame.Columns != nil && len(row) != len(frame.Columns) {
			return nil, fmt.Errorf("dataframe_split: row %d has %d values, and there are %d columns", i, len(row), len(frame.Columns))
		}
		dst = appendRow(dst, i, row)
	}
	return append(dst, "]}"...), nil
}

func appendRow(dst []byte, i int, row []json.RawMessage) []byte {
	if i > 0 {
		dst = append(dst, ',')
	}
	dst = append(dst, '[')
	for j, v := range row {
		if j > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, v...)
	}
	return append(dst, ']')
}

// records turns a list of objects into rows, with the columns in the order of the first one.
func records(v []byte) ([]byte, error) {
	var list []json.RawMessage
	if err := decode(v, &list); err != nil {
		return nil, fmt.Errorf("dataframe_records: %w", err)
	}
	var columns []string
	dst := append(make([]byte, 0, len(v)+16), `{"data":[`...)
	for i, item := range list {
		var m map[string]json.RawMessage
		if err := decode(item, &m); err != nil || m == nil {
			return nil, fmt.Errorf("dataframe_records: record %d is no object", i)
		}
		if i == 0 {
			columns = keys(item)
		}
		if len(m) != len(columns) {
			return nil, fmt.Errorf("dataframe_records: record %d has %d columns, and the first has %d", i, len(m), len(columns))
		}
		row := make([]json.RawMessage, len(columns))
		for j, name := range columns {
			value, ok := m[name]
			if !ok {
				return nil, fmt.Errorf("dataframe_records: record %d has no column %.60q", i, name)
			}
			row[j] = value
		}
		dst = appendRow(dst, i, row)
	}
	return append(dst, "]}"...), nil
}

// keys are those of a well-formed object, in their order, each once.
func keys(object []byte) []string {
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		return nil
	}
	var names []string
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return names
		}
		name, _ := t.(string)
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		var skip json.RawMessage
		if d.Decode(&skip) != nil {
			return names
		}
	}
	return names
}
