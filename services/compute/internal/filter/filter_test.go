package filter

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// record has what its maps have.
type record struct {
	texts   map[Key]string
	numbers map[Key]float64
}

func (r record) Text(k Key) (string, bool)    { v, ok := r.texts[k]; return v, ok }
func (r record) Number(k Key) (float64, bool) { v, ok := r.numbers[k]; return v, ok }

func sample() record {
	return record{
		texts: map[Key]string{
			{Attribute, RunID}: "r1", {Attribute, RunName}: "first run", {Attribute, Status}: "FINISHED", {Attribute, UserID}: "ann",
			{Param, "lr"}: "0.1", {Param, "batch size"}: "32", {Param, "a.b/c-d"}: "x", {Tag, "mlflow.user"}: "Ann", {Tag, "quote"}: "it's", {Tag, "ü"}: "ÄÖ",
			{Tag, "percent"}: "100%", {Tag, "empty"}: "", {Tag, "and"}: "AND",
		},
		numbers: map[Key]float64{
			{Attribute, StartTime}: 1700000000000, {Metric, "loss"}: 0.25, {Metric, "nan"}: math.NaN(), {Metric, "inf"}: math.Inf(1), {Metric, "neg"}: -3,
		},
	}
}

func TestMatch(t *testing.T) {
	r := sample()
	for filter, want := range map[string]bool{
		"": true, " \t\n": true,
		"metrics.loss < 0.5": true, "metrics.loss<0.5": true, "metrics.loss > 0.5": false, "metric.loss = 0.25": true, "metrics.loss != 0.25": false,
		"metrics.loss >= 0.25": true, "metrics.loss <= .25": true, "metrics.loss > 2.5e-1": false, "metrics.neg = -3": true, "metrics.neg<-2": true, "metrics.neg > -2": false,
		"metrics.absent < 1": false, "metrics.absent != 1": false, "metrics.nan = 0": false, "metrics.nan < 1": false, "metrics.nan != 1": true, "metrics.inf > 1e300": true,
		"metrics.`loss` < 1": true, `metrics."loss" < 1`: true, "metrics.\"lo`ss\" < 1": false,
		"params.lr = '0.1'": true, `params.lr = "0.1"`: true, "param.lr = '0.10'": false, "parameters.lr != '0.2'": true, "params.absent != 'x'": false,
		"params.`batch size` = '32'": true, `params."batch size" = '32'`: true, "params.a.b/c-d = 'x'": true,
		"params.absent IS NULL": true, "params.lr IS NULL": false, "params.lr is not null": true, "tags.absent IS NOT NULL": false, "tags.empty IS NULL": false,
		"tags.mlflow.user = 'Ann'": true, "tag.mlflow.user = 'ann'": false, "tags.`mlflow.user` LIKE 'A%'": true, "tags.mlflow.user LIKE 'a%'": false, "tags.mlflow.user ILIKE 'a%'": true,
		"tags.quote = 'it''s'": true, `tags.quote = "it's"`: true, "tags.ü = 'ÄÖ'": true, "tags.ü LIKE '__'": true, "tags.ü LIKE '_'": false, "tags.ü ILIKE 'äö'": true,
		"tags.percent LIKE '100_'": true, "tags.percent LIKE '%%%'": true, "tags.empty LIKE '%'": true, "tags.empty LIKE '_'": false, "tags.empty = ''": true, "tags.empty LIKE ''": true,
		"tags.and = 'AND' AND tags.and = 'AND'": true, "tags.and='AND'AND tags.and='OR'": false,
		"attributes.status = 'FINISHED'": true, "attribute.status != 'FAILED'": true, "run.status = 'RUNNING'": false, "status = 'FINISHED'": true, "attr.status LIKE 'FIN%'": true,
		"run_id = 'r1'": true, "attributes.run_id IN ('r0', 'r1')": true, "attributes.run_id in ('r0')": false, "attributes.run_id NOT IN ('r0', \"r2\")": true, "run_id not  in('r1')": false,
		"tags.absent NOT IN ('a')": false, "attributes.run_name LIKE '%run'": true, "attributes.`Run name` = 'first run'": true, "`run name` = 'first run'": true, `"run_id" = 'r1'`: true,
		"attributes.start_time > 1600000000000": true, "attributes.created < 1600000000000": false, "Created >= 1700000000000": true, "attributes.end_time > 0": false, "user_id = 'ann'": true,
		"metrics.loss < 1 AND params.lr = '0.1' and tags.mlflow.user ILIKE '%N%'": true, "metrics.loss < 1 AND params.lr = '0.2'": false,
	} {
		f, err := Parse("filter", filter, Runs())
		if err != nil {
			t.Errorf("%s: %v", filter, err)
			continue
		}
		if got := f.Match(r); got != want {
			t.Errorf("%s: %t", filter, got)
		}
	}
}

func TestRefused(t *testing.T) {
	many := func(n int, s, between string) string { return strings.Repeat(s+between, n-1) + s }
	for filter, words := range map[string]string{
		"metrics.loss":                      "character 13: a comparator is",
		"metrics.loss <":                    "character 15: a number",
		"metrics.loss < '1'":                "character 16: a number",
		"metrics.loss < 0x10":               "a number",
		"metrics.loss < inf":                "a number",
		"metrics.loss < NaN":                "a number",
		"metrics.loss < 1e999":              "out of range",
		"metrics.loss < 1-2":                "cannot be read",
		"metrics.loss == 1":                 "a comparator is",
		"metrics.loss <> 1":                 "a comparator is",
		"metrics.loss ! 1":                  "a comparator is",
		"metrics.loss LIKE '1'":             "numbers are compared by",
		"metrics.loss IN ('1')":             "numbers are compared by",
		"metrics.loss IS NULL":              "for params and tags",
		"attributes.end_time IS NULL":       "for params and tags",
		"params.lr < '1'":                   "text is compared by",
		"params.lr = 1":                     "character 13: a text in quotes is missing",
		"params.lr = `a`":                   "a text in quotes is missing",
		"params.lr = x":                     "a text in quotes is missing",
		"params.lr = 'x":                    "character 13: a quote that is not closed",
		"params.`lr = 'x'":                  "a quote that is not closed",
		"params. = 'x'":                     "no such key",
		"params.\"\" = 'x'":                 "no such key",
		"params. `a` = 'x'":                 "no such key",
		"params.a b = 'x'":                  "a comparator is",
		"attributes.nothing = 'x'":          "no such key",
		"nothing = 'x'":                     "no such key",
		"artifact_uri = 'x'":                "no such key",
		"nothing.x = 'x'":                   "no such entity",
		"'lr' = 'x'":                        "a key is missing",
		"= 'x'":                             "a key is missing",
		"AND":                               "no such key",
		"tags.ü = 'ü' x":                    "character 14: AND is missing",
		"tags.a = 'a' AND":                  "character 17: a key is missing",
		"tags.a = 'a' AND AND tags.b = 'b'": "no such key",
		"tags.a = 'a' OR tags.b = 'b'":      "character 14: terms are joined by AND only",
		"(tags.a = 'a')":                    "a key is missing",
		"tags.a = ('a')":                    "a text in quotes is missing",
		"NOT tags.a = 'a'":                  "no such key",
		"tags.a NOT LIKE 'a'":               "a comparator is",
		"tags.a IS 'a'":                     "a comparator is",
		"tags.a IS NOT 'a'":                 "a comparator is",
		"run_id IN 'a'":                     "a list in parentheses",
		"run_id IN ()":                      "a text in quotes is missing",
		"run_id IN ('a',)":                  "a text in quotes is missing",
		"run_id IN ('a' 'b')":               "a comma or a closing",
		"run_id IN ('a'":                    "a comma or a closing",
		"run_id IN ('a'))":                  "AND is missing",
		"tags.a = 'a'; DROP TABLE runs":     "a sign that does not belong",
		"tags.a = 'a' -- comment":           "AND is missing",
		"tags.a = 'a'\x00":                  "a sign that does not belong",
		"tags.a LIKE '" + strings.Repeat("%", MaxPattern+1) + "'":                  "a pattern has at most 1024",
		"tags." + strings.Repeat("a", MaxKey+1) + " = 'a'":                         "at most 250",
		many(MaxTerms+1, "tags.a = 'a'", " AND "):                                  "more than 1000 terms",
		"run_id IN (" + many(MaxValues+1, "'a'", ",") + ")":                        "more than 10000 values",
		"run_id IN (" + many(MaxValues, "'a'", ",") + ") AND run_id IN ('a', 'b')": "more than 10000 values",
		strings.Repeat("(", 1<<20):                                                 "a key is missing",
	} {
		_, err := Parse("filter", filter, Runs())
		if fault.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), words) {
			t.Errorf("%.60s: %v, want %s", filter, err, words)
		}
	}
	for _, filter := range []string{"metrics.a = 1", "params.a = 'a'", "attributes.run_id = 'a'", "attributes.status = 'a'", "creation_time = 'a'", "name > 'a'"} {
		if _, err := Parse("filter", filter, Experiments()); fault.Code(err) != codes.InvalidArgument {
			t.Errorf("experiments, %s: %v", filter, err)
		}
	}
	for _, filter := range []string{"name ILIKE '%a%'", "attribute.name = 'a'", "creation_time > 1 AND last_update_time <= 2", "tags.a = 'b'"} {
		if _, err := Parse("filter", filter, Experiments()); err != nil {
			t.Errorf("experiments, %s: %v", filter, err)
		}
	}
	for _, f := range []string{many(MaxTerms, "tags.a = 'a'", " AND "), "run_id IN (" + many(MaxValues, "'a'", ",") + ")"} {
		if _, err := Parse("filter", f, Runs()); err != nil {
			t.Errorf("the most: %v", err)
		}
	}
}

func TestSplit(t *testing.T) {
	f, err := Parse("filter", "metrics.a = 1 AND start_time >= 5 AND start_time < 10 AND tags.x = 'y' AND start_time > 2", Runs())
	if err != nil {
		t.Fatal(err)
	}
	times := func(k Key) bool { return k.Entity == Attribute }
	yes, no := f.Split(times)
	if len(yes.terms) != 3 || len(no.terms) != 2 || slices.ContainsFunc(no.Keys(), times) || !slices.ContainsFunc(yes.Keys(), times) {
		t.Errorf("%v, %v", yes, no)
	}
	if least, most := f.Range(Key{Attribute, StartTime}); least != 5 || most != 10 {
		t.Errorf("%v to %v", least, most)
	}
	if least, most := f.Range(Key{Attribute, EndTime}); !math.IsInf(least, -1) || !math.IsInf(most, 1) {
		t.Errorf("%v to %v", least, most)
	}
}

func TestOrder(t *testing.T) {
	at := func(n float64, text string) record {
		r := record{map[Key]string{}, map[Key]float64{}}
		if text != "" {
			r.texts[Key{Tag, "t"}] = text
		}
		if n != 99 {
			r.numbers[Key{Metric, "a b"}] = n
		}
		return r
	}
	names := map[string]record{"one": at(1, "z"), "two": at(2, "z"), "two again": at(2, "a"), "nan": at(math.NaN(), "z"), "none": at(99, "z"), "inf": at(math.Inf(-1), "z"), "no text": at(1, "")}
	for _, tc := range []struct {
		keys []string
		want string
	}{
		{[]string{"metrics.`a b`", "tags.t"}, "inf one no text two again two nan none"},
		{[]string{"metrics.\"a b\" DESC", "tags.t desc"}, "two two again one no text inf nan none"},
		{[]string{"tags.t ASC", "metrics.`a b` DESC"}, "two again two one inf nan none no text"},
	} {
		o, err := ParseOrder("order_by", tc.keys, Runs())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range names {
			got = append(got, name)
		}
		slices.SortFunc(got, func(a, b string) int { return o.Compare(o.Of(names[a]), o.Of(names[b])) })
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%v: %v, want %s", tc.keys, got, tc.want)
		}
	}
	for _, key := range []string{"", "metrics.", "metrics.a UP", "metrics.a DESC DESC", "metrics.a, metrics.b", "nothing", "metrics.a = 1", "'a'", "metrics.`a"} {
		if _, err := ParseOrder("order_by", []string{key}, Runs()); fault.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "order_by") {
			t.Errorf("%s: %v", key, err)
		}
	}
	o, err := ParseOrder("order_by", []string{"start_time DESC"}, Runs())
	if err != nil || !o.Only(Key{Attribute, StartTime}, true) || o.Only(Key{Attribute, StartTime}, false) || o.Only(Key{Attribute, EndTime}, true) || o.Empty() || len(o.Keys()) != 1 {
		t.Errorf("%v %v", o, err)
	}
}

// naive is a condition as a test sees it: written, and answered in another way than the package's.
type naive struct {
	text string
	fits func(r record) bool
}

// A part that is longer than a word of bits is found at its leftmost place.
func TestFind(t *testing.T) {
	for _, n := range []int{1, 62, 63, 64, 65, 127, 128, 129, 1000} {
		long := strings.Repeat("xy", n)[:n]
		p := newPart("_" + long)
		if at, ok := p.find("zz" + long + "z" + long); !ok || at != 2+n {
			t.Errorf("%d: %d, %t", n, at, ok)
		}
		if _, ok := p.find(long[:n-1] + "z"); ok {
			t.Errorf("%d: found what is not there", n)
		}
		if _, ok := p.find(long); ok {
			t.Errorf("%d: found without a character for _", n)
		}
	}
}

func quote(rt *rapid.T, s string) string {
	q := rapid.SampledFrom([]string{"'", `"`}).Draw(rt, "quote")
	return q + strings.ReplaceAll(s, q, q+q) + q
}

func condition(rt *rapid.T) naive {
	alphabet := rapid.StringOfN(rapid.RuneFrom([]rune("abAB'\"`%_ ä.")), 0, 6, -1)
	name := rapid.SampledFrom([]string{"a", "b", "a b", "ä/c"}).Draw(rt, "name")
	written := name
	if strings.Contains(name, " ") || rapid.Bool().Draw(rt, "quoted") {
		written = rapid.SampledFrom([]string{"`" + name + "`", `"` + name + `"`}).Draw(rt, "key")
	}
	if rapid.Bool().Draw(rt, "metric") {
		op := rapid.SampledFrom([]string{"=", "!=", "<", "<=", ">", ">="}).Draw(rt, "op")
		n := rapid.Float64Range(-3, 3).Draw(rt, "number")
		if rapid.Bool().Draw(rt, "round") {
			n = math.Round(n)
		}
		return naive{"metrics." + written + op + strconv.FormatFloat(n, 'g', -1, 64), func(r record) bool {
			v, ok := r.numbers[Key{Metric, name}]
			return ok && map[string]bool{"=": v == n, "!=": v != n, "<": v < n, "<=": v <= n, ">": v > n, ">=": v >= n}[op]
		}}
	}
	op := rapid.SampledFrom([]string{"=", "!=", "LIKE", "ilike", "IN", "NOT IN", "IS NULL", "is not null"}).Draw(rt, "op")
	value := alphabet.Draw(rt, "value")
	text := "params." + written + " " + op + " "
	switch op {
	case "IN", "NOT IN":
		other := alphabet.Draw(rt, "other")
		text += "(" + quote(rt, value) + "," + quote(rt, other) + ")"
		return naive{text, func(r record) bool {
			v, ok := r.texts[Key{Param, name}]
			return ok && (v == value || v == other) == (op == "IN")
		}}
	case "IS NULL", "is not null":
		return naive{text, func(r record) bool {
			_, ok := r.texts[Key{Param, name}]
			return ok == (op == "is not null")
		}}
	case "LIKE", "ilike":
		flags := "(?s)"
		if op == "ilike" {
			flags = "(?si)"
		}
		re := regexp.MustCompile(flags + "^" + strings.NewReplacer("%", ".*", "_", ".").Replace(regexp.QuoteMeta(value)) + "$")
		return naive{text + quote(rt, value), func(r record) bool {
			v, ok := r.texts[Key{Param, name}]
			return ok && re.MatchString(v)
		}}
	}
	return naive{text + quote(rt, value), func(r record) bool {
		v, ok := r.texts[Key{Param, name}]
		return ok && (v == value) == (op == "=")
	}}
}

// A filter fits what another reading of it fits, and so do its two parts together.
func TestAgainstNaive(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		conditions := rapid.SliceOfN(rapid.Custom(condition), 0, 4).Draw(rt, "filter")
		var text []string
		for _, c := range conditions {
			text = append(text, c.text)
		}
		in := strings.Join(text, rapid.SampledFrom([]string{" AND ", "\nand\t"}).Draw(rt, "and"))
		f, err := Parse("filter", in, Runs())
		if err != nil {
			rt.Fatalf("%s: %v", in, err)
		}
		value := rapid.StringOfN(rapid.RuneFrom([]rune("abAB'\"`%_ ä.")), 0, 6, -1)
		for range 8 {
			r := record{map[Key]string{}, map[Key]float64{}}
			for _, name := range []string{"a", "b", "a b", "ä/c"} {
				if rapid.Bool().Draw(rt, "has") {
					r.texts[Key{Param, name}] = value.Draw(rt, "text")
				}
				if rapid.Bool().Draw(rt, "has") {
					r.numbers[Key{Metric, name}] = rapid.OneOf(rapid.Float64Range(-3, 3), rapid.Map(rapid.IntRange(-3, 3), func(i int) float64 { return float64(i) }),
						rapid.Just(math.NaN())).Draw(rt, "number")
				}
			}
			want := true
			for _, c := range conditions {
				want = want && c.fits(r)
			}
			if got := f.Match(r); got != want {
				rt.Fatalf("%s: %v: %t", in, r, got)
			}
			yes, no := f.Split(func(k Key) bool { return k.Entity == Metric })
			if (yes.Match(r) && no.Match(r)) != want {
				rt.Fatalf("%s, in two parts: %v", in, r)
			}
		}
	})
}

// Whatever comes is parsed or refused with the field and a place; what is parsed fits or not.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "metrics.loss < 0.5 AND params.`batch size` = '32'", `tags."a""b" LIKE "%x_%"`, "run_id NOT IN ('a', 'b')", "params.a IS NOT NULL", "attributes.start_time >= 1e3",
		"tags.a = 'it''s' AND", "((((", "'''''", "metrics.a<-1", "tags.ü ILIKE '%Ä'", "a\x00b", "\xff\xfe = '\xff'", "created > 1", "tags.a LIKE '\xff_%_\xff'",
	} {
		f.Add(s)
	}
	r := sample()
	f.Fuzz(func(t *testing.T, in string) {
		for _, s := range []Schema{Runs(), Experiments()} {
			got, err := Parse("filter", in, s)
			if err != nil {
				if fault.Code(err) != codes.InvalidArgument || !strings.HasPrefix(fault.Describe(err).Message(), "filter, character ") {
					t.Errorf("%q: %v", in, err)
				}
				continue
			}
			got.Match(r)
			if len(got.terms) > MaxTerms {
				t.Errorf("%d terms", len(got.terms))
			}
			if o, err := ParseOrder("order_by", []string{in}, s); err == nil {
				if p := o.Of(r); o.Compare(p, p) != 0 {
					t.Errorf("%q: a record comes before itself", in)
				}
			}
		}
	})
}

// LIKE takes time that grows with text times pattern at most.
func BenchmarkLike(b *testing.B) {
	for _, pattern := range []string{"%" + strings.Repeat("a%", 500), strings.Repeat("%_a", 300) + "%", "%" + strings.Repeat("a", 900) + "_b%"} {
		b.Run(fmt.Sprintf("%.6s", pattern), func(b *testing.B) {
			p := newPattern(pattern, false)
			s := strings.Repeat("a", 8000)
			for b.Loop() {
				p.match(s)
			}
		})
	}
}
