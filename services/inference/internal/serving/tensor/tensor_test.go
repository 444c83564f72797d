package tensor

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/gen/inference"
)

// one is a REST request with one input.
func one(datatype, shape, data string) string {
	return `{"inputs":[{"name":"x","datatype":"` + datatype + `","shape":` + shape + `,"data":` + data + `}]}`
}

func TestParseREST(t *testing.T) {
	for _, c := range []struct{ name, body, want, err string }{
		{"flat", one("FP32", "[2,2]", "[1,2.5,-3e2,4]"), `{"data":[[1,2.5],[-3e2,4]]}`, ""},
		{"in rows", one("FP32", "[2,2]", "[[1,2],[3,4]]"), `{"data":[[1,2],[3,4]]}`, ""},
		{"one dimension", one("INT64", "[3]", "[1, 2 ,\n3]"), `{"data":[1,2,3]}`, ""},
		{"integers of 64 bits stay as they are", one("INT64", "[2]", "[9223372036854775807,-9223372036854775808]"), `{"data":[9223372036854775807,-9223372036854775808]}`, ""},
		{"and without sign", one("UINT64", "[1]", "[18446744073709551615]"), `{"data":[18446744073709551615]}`, ""},
		{"bool", one("BOOL", "[2]", "[true,false]"), `{"data":[true,false]}`, ""},
		{"text", one("BYTES", "[2]", `["a,]\"","\u00e9"]`), `{"data":["a,]\"","\u00e9"]}`, ""},
		{"three dimensions", one("INT8", "[1,2,1]", "[-128,127]"), `{"data":[[[-128],[127]]]}`, ""},
		{"none", one("FP32", "[0]", "[]"), `{"data":[]}`, ""},
		{"none, of rows", one("FP32", "[1000000000,0]", "[]"), `{"data":[]}`, ""},
		{"two", `{"id":"i","inputs":[{"name":"a","datatype":"INT32","shape":[1],"data":[1]},{"name":"b","datatype":"INT32","shape":[1,1],"data":[[2]]}],"outputs":[{"name":"o"}]}`, `{"data":{"a":[1],"b":[[2]]}}`, ""},
		{"names with quotes", `{"inputs":[{"name":"a\"","datatype":"INT32","shape":[1],"data":[1]},{"name":"b","datatype":"INT32","shape":[1],"data":[2]}]}`, `{"data":{"a\"":[1],"b":[2]}}`, ""},

		{"more than the shape asks for", one("FP32", "[2]", "[1,2,3]"), "", "shape [2] asks for 2 elements, and data has 3"},
		{"fewer", one("FP32", "[2,2]", "[1,2,3]"), "", "asks for 4 elements"},
		{"other rows", one("FP32", "[2,3]", "[[1,2],[3,4],[5,6]]"), "", "in lists of [3 2]"},
		{"ragged", one("FP32", "[2,2]", "[[1,2],[3]]"), "", "not of one length"},
		{"ragged in depth", one("FP32", "[2]", "[1,[2]]"), "", "not of one length"},
		{"ragged by nothing", one("FP32", "[1]", "[[],1]"), "", "not of one length"},
		{"a negative dimension", one("FP32", "[-1]", "[1]"), "", "negative"},
		{"too many elements", one("FP32", "[4294967296,4294967296]", "[1]"), "", "too many"},
		{"too many dimensions", one("FP32", "[1,1,1,1,1,1,1,1,1]", "[1]"), "", "dimensions"},
		{"no shape", `{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}`, "", "no shape"},
		{"no data", `{"inputs":[{"name":"x","datatype":"FP32","shape":[1]}]}`, "", "no data"},
		{"no list", one("FP32", "[]", "1"), "", "no list"},
		{"an object", one("FP32", "[1]", `{"a":1}`), "", "no objects"},
		{"null", one("FP32", "[1]", "[null]"), "", "no null"},
		{"unknown datatype", one("FP8", "[1]", "[1]"), "", `"FP8" is not known`},
		{"no datatype", one("", "[1]", "[1]"), "", "is not known"},
		{"FP16", one("FP16", "[1]", "[1]"), "", "no form in JSON"},
		{"BF16", one("BF16", "[1]", "[1]"), "", "no form in JSON"},
		{"INT8 is too large", one("INT8", "[1]", "[128]"), "", "is no INT8"},
		{"UINT8 is negative", one("UINT8", "[1]", "[-1]"), "", "is no UINT8"},
		{"INT32 with a fraction", one("INT32", "[1]", "[1.5]"), "", "is no INT32"},
		{"FP32 is too large", one("FP32", "[1]", "[1e39]"), "", "is no FP32"},
		{"FP32 is text", one("FP32", "[1]", `["1"]`), "", "is no FP32"},
		{"FP64 is true", one("FP64", "[1]", `[true]`), "", "is no FP64"},
		{"BOOL is a number", one("BOOL", "[1]", "[1]"), "", "is no BOOL"},
		{"BYTES is a number", one("BYTES", "[1]", "[1]"), "", "is no BYTES"},
		{"no inputs", `{"inputs":[]}`, "", "no inputs"},
		{"nothing", `{}`, "", "no inputs"},
		{"no name", `{"inputs":[{"datatype":"FP32","shape":[1],"data":[1]}]}`, "", "no name"},
		{"a name twice", `{"inputs":[{"name":"a","datatype":"INT32","shape":[1],"data":[1]},{"name":"a","datatype":"INT32","shape":[1],"data":[1]}]}`, "", "of another"},
		{"binary data", `{"inputs":[{"name":"a","datatype":"INT32","shape":[1],"parameters":{"binary_data_size":4}}]}`, "", "binary extension"},
		{"binary outputs", `{"inputs":[{"name":"a","datatype":"INT32","shape":[1],"data":[1]}],"outputs":[{"name":"o","parameters":{"binary_data":true}}]}`, "", "binary extension"},
		{"no JSON", `{"inputs":`, "", "no JSON"},
		{"a list", `[1]`, "", "cannot be array"},
		{"inputs is no list", `{"inputs":{}}`, "", "inputs cannot be object"},
		{"empty", ``, "", "no JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := ParseREST([]byte(c.body))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("err %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := Data(nil, req.Inputs)
			if string(got) != c.want || len(got) > Size(req.Inputs) {
				t.Errorf("%s (of at most %d bytes), want %s", got, Size(req.Inputs), c.want)
			}
		})
	}
}

func le[T any](v T) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err)
	}
	return b
}

func TestParseMessage(t *testing.T) {
	input := func(datatype string, shape []int64, c *inference.InferTensorContents) *inference.ModelInferRequest {
		return &inference.ModelInferRequest{Inputs: []*inference.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: datatype, Shape: shape, Contents: c}}}
	}
	raw := func(datatype string, shape []int64, b ...[]byte) *inference.ModelInferRequest {
		r := input(datatype, shape, nil)
		r.RawInputContents = b
		return r
	}
	type contents = inference.InferTensorContents
	for _, c := range []struct {
		name      string
		in        *inference.ModelInferRequest
		want, err string
	}{
		{"BOOL", input("BOOL", []int64{2}, &contents{BoolContents: []bool{true, false}}), `{"data":[true,false]}`, ""},
		{"INT8", input("INT8", []int64{2, 1}, &contents{IntContents: []int32{-128, 127}}), `{"data":[[-128],[127]]}`, ""},
		{"INT64", input("INT64", []int64{1}, &contents{Int64Contents: []int64{math.MinInt64}}), `{"data":[-9223372036854775808]}`, ""},
		{"UINT16", input("UINT16", []int64{1}, &contents{UintContents: []uint32{65535}}), `{"data":[65535]}`, ""},
		{"UINT64", input("UINT64", []int64{1}, &contents{Uint64Contents: []uint64{math.MaxUint64}}), `{"data":[18446744073709551615]}`, ""},
		{"FP32", input("FP32", []int64{2}, &contents{Fp32Contents: []float32{0.1, math.MaxFloat32}}), `{"data":[0.1,3.4028235e+38]}`, ""},
		{"FP64", input("FP64", []int64{1}, &contents{Fp64Contents: []float64{math.SmallestNonzeroFloat64}}), `{"data":[5e-324]}`, ""},
		{"BYTES", input("BYTES", []int64{2}, &contents{BytesContents: [][]byte{[]byte("a\"\n\\"), []byte("é")}}), `{"data":["a\"\u000a\\","é"]}`, ""},
		{"none", input("FP32", []int64{0}, nil), `{"data":[]}`, ""},
		{"raw BOOL", raw("BOOL", []int64{2}, []byte{1, 0}), `{"data":[true,false]}`, ""},
		{"raw INT8", raw("INT8", []int64{2}, []byte{0x80, 0x7f}), `{"data":[-128,127]}`, ""},
		{"raw INT16", raw("INT16", []int64{1}, le(int16(-2))), `{"data":[-2]}`, ""},
		{"raw INT32", raw("INT32", []int64{1}, le(int32(math.MinInt32))), `{"data":[-2147483648]}`, ""},
		{"raw INT64", raw("INT64", []int64{1}, le(int64(math.MinInt64))), `{"data":[-9223372036854775808]}`, ""},
		{"raw UINT8", raw("UINT8", []int64{1}, []byte{255}), `{"data":[255]}`, ""},
		{"raw UINT16", raw("UINT16", []int64{1}, le(uint16(65535))), `{"data":[65535]}`, ""},
		{"raw UINT32", raw("UINT32", []int64{1}, le(uint32(math.MaxUint32))), `{"data":[4294967295]}`, ""},
		{"raw UINT64", raw("UINT64", []int64{1}, le(uint64(math.MaxUint64))), `{"data":[18446744073709551615]}`, ""},
		{"raw FP16", raw("FP16", []int64{5}, le([]uint16{0x3c00, 0xc000, 0x0001, 0x7bff, 0x3555})), `{"data":[1,-2,5.9604645e-08,65504,0.33325195]}`, ""},
		{"raw BF16", raw("BF16", []int64{2}, le([]uint16{0x3f80, 0xc049})), `{"data":[1,-3.140625]}`, ""},
		{"raw FP32", raw("FP32", []int64{1, 2}, le([]float32{0.1, -1})), `{"data":[[0.1,-1]]}`, ""},
		{"raw FP64", raw("FP64", []int64{1}, le(float64(0.1))), `{"data":[0.1]}`, ""},
		{"raw BYTES", raw("BYTES", []int64{2}, []byte("\x01\x00\x00\x00a\x00\x00\x00\x00")), `{"data":["a",""]}`, ""},
		{"two", &inference.ModelInferRequest{Inputs: []*inference.ModelInferRequest_InferInputTensor{{Name: "a", Datatype: "INT8", Shape: []int64{1}}, {Name: "b", Datatype: "INT8", Shape: []int64{1}}}, RawInputContents: [][]byte{{1}, {2}}}, `{"data":{"a":[1],"b":[2]}}`, ""},

		{"no inputs", &inference.ModelInferRequest{}, "", "no inputs"},
		{"unknown datatype", input("STRING", []int64{1}, nil), "", "is not known"},
		{"too few", input("FP32", []int64{2}, &contents{Fp32Contents: []float32{1}}), "", "asks for 2 elements, and contents has 1"},
		{"too many", input("FP32", []int64{1}, &contents{Fp32Contents: []float32{1, 2}}), "", "contents has 2"},
		{"no contents", input("FP32", []int64{1}, nil), "", "contents has 0"},
		{"another field", input("FP32", []int64{1}, &contents{Fp64Contents: []float64{1}}), "", "a field that is not FP32's"},
		{"another field besides", input("FP32", []int64{1}, &contents{Fp32Contents: []float32{1}, BoolContents: []bool{true}}), "", "a field that is not FP32's"},
		{"a negative dimension", input("FP32", []int64{-1, -1}, &contents{Fp32Contents: []float32{1}}), "", "negative"},
		{"an overflow", input("FP32", []int64{1 << 62, 4}, nil), "", "too many"},
		{"INT8 is too large", input("INT8", []int64{1}, &contents{IntContents: []int32{128}}), "", "is no INT8"},
		{"INT16 is too small", input("INT16", []int64{1}, &contents{IntContents: []int32{-32769}}), "", "is no INT16"},
		{"UINT8 is too large", input("UINT8", []int64{1}, &contents{UintContents: []uint32{256}}), "", "is no UINT8"},
		{"NaN", input("FP32", []int64{1}, &contents{Fp32Contents: []float32{float32(math.NaN())}}), "", "finite"},
		{"infinity", input("FP64", []int64{1}, &contents{Fp64Contents: []float64{math.Inf(-1)}}), "", "finite"},
		{"FP16 as contents", input("FP16", []int64{1}, &contents{Fp32Contents: []float32{1}}), "", "raw_input_contents"},
		{"bytes that are no text", input("BYTES", []int64{1}, &contents{BytesContents: [][]byte{{0xff}}}), "", "not UTF-8"},
		{"raw for one of two", &inference.ModelInferRequest{Inputs: []*inference.ModelInferRequest_InferInputTensor{{Name: "a", Datatype: "INT8", Shape: []int64{1}}, {Name: "b", Datatype: "INT8", Shape: []int64{1}}}, RawInputContents: [][]byte{{1}}}, "", "for all of them, or for none"},
		{"raw and contents", func() *inference.ModelInferRequest {
			r := raw("INT8", []int64{1}, []byte{1})
			r.Inputs[0].Contents = &contents{IntContents: []int32{1}}
			return r
		}(), "", "for all of a request, or for none"},
		{"raw of a byte less", raw("FP32", []int64{2}, make([]byte, 7)), "", "2 elements of 4 bytes, and its raw contents have 7"},
		{"raw of a byte more", raw("FP32", []int64{2}, make([]byte, 9)), "", "have 9"},
		{"raw NaN", raw("FP16", []int64{1}, le(uint16(0x7e00))), "", "finite"},
		{"raw infinity", raw("BF16", []int64{1}, le(uint16(0x7f80))), "", "finite"},
		{"raw BOOL of 2", raw("BOOL", []int64{1}, []byte{2}), "", "neither 0 nor 1"},
		{"a length past the end", raw("BYTES", []int64{1}, []byte("\x05\x00\x00\x00abcd")), "", "5 bytes are announced, and 4 are left"},
		{"a length of 4 GiB", raw("BYTES", []int64{1}, []byte("\xff\xff\xff\xffabcd")), "", "4294967295 bytes are announced"},
		{"half of a length", raw("BYTES", []int64{1}, []byte("\x01\x00")), "", "within a length"},
		{"more texts than the shape asks for", raw("BYTES", []int64{1}, []byte("\x00\x00\x00\x00\x00\x00\x00\x00")), "", "have 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := ParseMessage(c.in)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("err %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := Data(nil, req.Inputs)
			if string(got) != c.want || len(got) > Size(req.Inputs) || !json.Valid(got) {
				t.Errorf("%s (of at most %d bytes), want %s", got, Size(req.Inputs), c.want)
			}
		})
	}
}

func TestOutputs(t *testing.T) {
	for _, c := range []struct {
		name, body string
		wanted     []string
		rest, err  string
	}{
		{"integers", `[1, 2]`, nil, `{"name":"output-0","datatype":"INT64","shape":[2],"data":[1,2]}`, ""},
		{"numbers", ` [[1.5,2],[3,4]] `, nil, `{"name":"output-0","datatype":"FP64","shape":[2,2],"data":[1.5,2,3,4]}`, ""},
		{"bools", `[[true],[false]]`, nil, `{"name":"output-0","datatype":"BOOL","shape":[2,1],"data":[true,false]}`, ""},
		{"texts", `["a","b\""]`, nil, `{"name":"output-0","datatype":"BYTES","shape":[2],"data":["a","b\""]}`, ""},
		{"one number", `7`, nil, `{"name":"output-0","datatype":"INT64","shape":[1],"data":[7]}`, ""},
		{"none", `[]`, nil, `{"name":"output-0","datatype":"FP64","shape":[0],"data":[]}`, ""},
		{"predictions", `{"predictions":[1]}`, nil, `{"name":"predictions","datatype":"INT64","shape":[1],"data":[1]}`, ""},
		{"result", `{"result":[1]}`, nil, `{"name":"result","datatype":"INT64","shape":[1],"data":[1]}`, ""},
		{"outputs by name", `{"outputs":{"b":[1],"a":[2.5]}}`, nil, `{"name":"a","datatype":"FP64","shape":[1],"data":[2.5]},{"name":"b","datatype":"INT64","shape":[1],"data":[1]}`, ""},
		{"two", `{"b":[1],"a":["x"]}`, nil, `{"name":"a","datatype":"BYTES","shape":[1],"data":["x"]},{"name":"b","datatype":"INT64","shape":[1],"data":[1]}`, ""},
		{"the one that is wanted has its name", `[1]`, []string{"y"}, `{"name":"y","datatype":"INT64","shape":[1],"data":[1]}`, ""},
		{"one of two is wanted", `{"b":[1],"a":[2]}`, []string{"b"}, `{"name":"b","datatype":"INT64","shape":[1],"data":[1]}`, ""},
		{"above 64 bits", `[18446744073709551615]`, nil, `{"name":"output-0","datatype":"FP64","shape":[1],"data":[18446744073709551615]}`, ""},
		{"one that is not there is wanted", `{"b":[1],"a":[2]}`, []string{"c"}, "", "no output"},
		{"mixed", `[1,"a"]`, nil, "", "not of one datatype"},
		{"ragged", `[[1],[2,3]]`, nil, "", "fits no tensor"},
		{"null", `null`, nil, "", "no null"},
		{"an object in a list", `[{"a":1}]`, nil, "", "no objects"},
		{"an empty object", `{}`, nil, "", "nothing in it"},
		{"NaN", `[NaN]`, nil, "", "no JSON"},
		{"out of range", `[1e999]`, nil, "", "fits no datatype"},
		{"no JSON", `<html>`, nil, "", "no JSON"},
		{"empty", ``, nil, "", "no JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := Outputs([]byte(c.body), c.wanted)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("err %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := AppendREST(nil, "m", "1", "id", out)
			if want := `{"model_name":"m","model_version":"1","id":"id","outputs":[` + c.rest + `]}`; string(got) != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	out, err := Outputs([]byte(`{"b":[true,false],"i":[[1],[-2]],"f":[0.5],"s":["a\n","é"]}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	typed, err := Message("m", "2", &Request{ID: "i"}, out)
	if err != nil {
		t.Fatal(err)
	}
	want := &inference.ModelInferResponse{}
	if err := protojson.Unmarshal([]byte(`{"modelName":"m","modelVersion":"2","id":"i","outputs":[
		{"name":"b","datatype":"BOOL","shape":["2"],"contents":{"boolContents":[true,false]}},
		{"name":"f","datatype":"FP64","shape":["1"],"contents":{"fp64Contents":[0.5]}},
		{"name":"i","datatype":"INT64","shape":["2","1"],"contents":{"int64Contents":["1","-2"]}},
		{"name":"s","datatype":"BYTES","shape":["2"],"contents":{"bytesContents":["YQo=","w6k="]}}]}`), want); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(typed, want) {
		t.Errorf("%v, want %v", typed, want)
	}
	raw, err := Message("m", "2", &Request{Raw: true}, out)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range [][]byte{{1, 0}, le(0.5), le([]int64{1, -2}), []byte("\x02\x00\x00\x00a\n\x02\x00\x00\x00é")} {
		if string(raw.GetRawOutputContents()[i]) != string(b) || raw.GetOutputs()[i].GetContents() != nil {
			t.Errorf("raw %d: %x, want %x", i, raw.GetRawOutputContents()[i], b)
		}
	}
}

func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func([]byte) ([]byte, error)
		body string
		want string
		err  string
	}{
		{"instances", Instances, `{"instances":[[1,2],{"a":1}]}`, `{"data":[[1,2],{"a":1}]}`, ""},
		{"instances is no list", Instances, `{"instances":1}`, "", "instances"},
		{"no instances", Instances, `{"inputs":[1]}`, "", "instances"},
		{"instances of a list", Instances, `[1]`, "", "cannot be array"},
		{"split", Invocation, `{"dataframe_split":{"columns":["b","a"],"index":[0,1],"data":[[1,"x"],[2.50,null]]}}`, `{"data":[[1,"x"],[2.50,null]]}`, ""},
		{"split without columns", Invocation, `{"dataframe_split":{"data":[[1]]}}`, `{"data":[[1]]}`, ""},
		{"split, no rows", Invocation, `{"dataframe_split":{"columns":["a"],"data":[]}}`, `{"data":[]}`, ""},
		{"split, a row too short", Invocation, `{"dataframe_split":{"columns":["b","a"],"data":[[1,2],[1]]}}`, "", "row 1 has 1 values"},
		{"split without data", Invocation, `{"dataframe_split":{"columns":["a"]}}`, "", "dataframe_split is"},
		{"split is a list", Invocation, `{"dataframe_split":[1]}`, "", "dataframe_split"},
		{"records", Invocation, `{"dataframe_records":[{"b":1,"a":"x"},{"a":"y","b":2}]}`, `{"data":[[1,"x"],[2,"y"]]}`, ""},
		{"records, none", Invocation, `{"dataframe_records":[]}`, `{"data":[]}`, ""},
		{"records, a column less", Invocation, `{"dataframe_records":[{"b":1,"a":2},{"a":1}]}`, "", "record 1 has 1 columns"},
		{"records, another column", Invocation, `{"dataframe_records":[{"b":1},{"a":1}]}`, "", `no column "b"`},
		{"records, a list in it", Invocation, `{"dataframe_records":[[1]]}`, "", "record 0 is no object"},
		{"records, null", Invocation, `{"dataframe_records":[null]}`, "", "record 0 is no object"},
		{"instances", Invocation, `{"instances":[1],"params":{}}`, `{"data":[1]}`, ""},
		{"inputs", Invocation, `{"inputs":{"a":[1]}}`, `{"data":{"a":[1]}}`, ""},
		{"inputs of a number", Invocation, `{"inputs":1}`, "", "inputs"},
		{"params", Invocation, `{"inputs":[1],"params":{"t":1}}`, "", "params"},
		{"two of them", Invocation, `{"inputs":[1],"instances":[1]}`, "", "one of"},
		{"none of them", Invocation, `{"columns":[1]}`, "", "one of"},
		{"a plain list", Invocation, `[[1,2]]`, "", "one of"},
		{"nothing", Invocation, `{}`, "", "one of"},
		{"no JSON", Invocation, `a,b`, "", "one of"},
		{"half", Invocation, `{"inputs":`, "", "no JSON"},
		{"empty", Invocation, ``, "", "no JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.do([]byte(c.body))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%s, err %v, want one with %q", got, err, c.err)
				}
				return
			}
			if err != nil || string(got) != c.want {
				t.Errorf("%s, %v, want %s", got, err, c.want)
			}
		})
	}
}

func TestPredictions(t *testing.T) {
	for body, want := range map[string]string{`[1,2]`: `[1,2]`, `{"predictions":[1]}`: `[1]`, `{"outputs":[2],"n":1}`: `[2]`, `{"result":3}`: `3`, `{"class":"a"}`: `{"class":"a"}`, ` 7 `: `7`, `NaN`: "", ``: ""} {
		got, err := Predictions([]byte(body))
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %s %v", body, got, err)
		}
	}
}

// FuzzREST: whatever comes, no panic, and what is made of it is JSON with as many elements, within its bound.
func FuzzREST(f *testing.F) {
	f.Add([]byte(one("FP32", "[2,2]", "[[1,2],[3,4]]")))
	f.Add([]byte(one("BYTES", "[1]", `["a\\"]`)))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := ParseREST(body)
		if err != nil {
			return
		}
		got := Data(nil, req.Inputs)
		if !json.Valid(got) || len(got) > Size(req.Inputs) {
			t.Errorf("%s of at most %d", got, Size(req.Inputs))
		}
	})
}

func FuzzOutputs(f *testing.F) {
	f.Add([]byte(`{"a":[[1,2],[3,4]]}`))
	f.Add([]byte(`["a\\"]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		out, err := Outputs(body, nil)
		if err != nil {
			return
		}
		if got := AppendREST(nil, "m", "1", "", out); !json.Valid(got) {
			t.Errorf("%s", got)
		}
		if _, err := Message("m", "1", &Request{}, out); err != nil {
			t.Errorf("%v", err)
		}
	})
}
