package show

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// YAML writes a message as YAML: the protobuf mapping of JSON, in block style. A reader of either gets the same.
func YAML(w io.Writer, m proto.Message) error {
	b, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	return YAMLOf(w, b)
}

// Document writes a message as one document of a stream of YAML.
func Document(w io.Writer, m proto.Message) error {
	var out bytes.Buffer
	out.WriteString("---\n")
	if err := YAML(&out, m); err != nil {
		return err
	}
	_, err := out.WriteTo(w)
	return err
}

// YAMLOf writes JSON as YAML. The order of fields stays. A string that other readers could take for something else is quoted.
func YAMLOf(w io.Writer, text []byte) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	node, err := yamlNode(dec)
	if err != nil {
		return fmt.Errorf("the answer cannot be written as YAML: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the answer cannot be written as YAML: it is more than one value")
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(node), enc.Close()); err != nil {
		return err
	}
	_, err = out.WriteTo(w)
	return err
}

// yamlNode reads one value.
func yamlNode(dec *json.Decoder) (*yaml.Node, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{}
	switch v := t.(type) {
	case json.Delim:
		n.Kind = yaml.SequenceNode
		if v == '{' {
			n.Kind = yaml.MappingNode
		}
		for dec.More() {
			// The keys of an object are values too, of the kind string.
			item, err := yamlNode(dec)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, item)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		_, err = dec.Token()
		return n, err
	case json.Number:
		n.Kind, n.Value = yaml.ScalarNode, v.String()
		return n, nil
	case string:
		err := n.Encode(v)
		Quote(n)
		return n, err
	default:
		return n, n.Encode(v)
	}
}

// Quote has texts quoted, in all of a tree, that mean something in YAML where they are not, or are line breaks to some readers.
func Quote(n *yaml.Node) {
	for _, c := range n.Content {
		Quote(c)
	}
	if tag := n.ShortTag(); n.Kind != yaml.ScalarNode || tag != "!!str" && tag != "!!merge" {
		return
	}
	if n.Value == "<<" || n.Value == "=" || strings.ContainsAny(n.Value, "\r\u0085\u2028\u2029\ufeff") {
		n.Tag, n.Style = "!!str", yaml.DoubleQuotedStyle
	}
}
