package models

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

func TestModels(t *testing.T) {
	l := newLab(t)
	c := l.client()
	m := l.model("Iris.v1_a-b")
	if m.GetName() != ws1+"/models/Iris.v1_a-b" || !strings.HasPrefix(m.GetUid(), "mod_") || m.GetCreatedBy() != "usr_owner" || m.GetLatestVersion() != 0 || m.GetEtag() == "" || !m.GetCreateTime().AsTime().Equal(m.GetUpdateTime().AsTime()) {
		t.Errorf("%v", m)
	}
	got, err := c.GetModel(l.as("reader"), &inferencev1.GetModelRequest{Name: m.GetName()})
	must(t, err)
	if !proto.Equal(got, m) {
		t.Errorf("%v is not %v", got, m)
	}
	_, err = c.CreateModel(l.as("owner"), &inferencev1.CreateModelRequest{Parent: ws1, ModelId: "Iris.v1_a-b"})
	want(t, "the same id", err, codes.AlreadyExists, faultv1.Reason_RESOURCE_ALREADY_EXISTS)
	_, err = c.CreateModel(l.as("owner"), &inferencev1.CreateModelRequest{Parent: ws2, ModelId: "Iris.v1_a-b"})
	must(t, err)
	_, err = c.CreateModel(l.as("reader"), &inferencev1.CreateModelRequest{Parent: ws1, ModelId: "m"})
	want(t, "a reader", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	_, err = c.GetModel(l.as("other"), &inferencev1.GetModelRequest{Name: m.GetName()})
	want(t, "a stranger", err, codes.NotFound, 0)
	for _, id := range []string{"..", ".a", "-a", "a/b", "a b", "a%2e", "ä", "a\\b", "a\x00", strings.Repeat("a", 256)} {
		_, err = c.CreateModel(l.as("owner"), &inferencev1.CreateModelRequest{Parent: ws1, ModelId: id})
		want(t, fmt.Sprintf("id %q", id), err, codes.InvalidArgument, 0)
	}

	changed, err := c.UpdateModel(l.as("owner"), &inferencev1.UpdateModelRequest{
		Model: &inferencev1.ModelUpdate{Name: m.GetName(), Description: "d", Tags: map[string]string{"a": "b"}, Etag: m.GetEtag()},
	})
	must(t, err)
	if changed.GetDescription() != "d" || changed.GetTags()["a"] != "b" || changed.GetEtag() == m.GetEtag() || !changed.GetUpdateTime().AsTime().After(m.GetUpdateTime().AsTime()) {
		t.Errorf("%v", changed)
	}
	_, err = c.UpdateModel(l.as("owner"), &inferencev1.UpdateModelRequest{Model: &inferencev1.ModelUpdate{Name: m.GetName(), Etag: m.GetEtag()}})
	want(t, "an old etag", err, codes.Aborted, faultv1.Reason_ETAG_MISMATCH)
	_, err = c.UpdateModel(l.as("owner"), &inferencev1.UpdateModelRequest{Model: &inferencev1.ModelUpdate{Name: m.GetName()}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"uid"}}})
	want(t, "a mask of what cannot be changed", err, codes.InvalidArgument, 0)
	changed, err = c.UpdateModel(l.as("owner"), &inferencev1.UpdateModelRequest{
		Model: &inferencev1.ModelUpdate{Name: m.GetName(), Description: "e"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description"}},
	})
	must(t, err)
	if changed.GetDescription() != "e" || changed.GetTags()["a"] != "b" {
		t.Errorf("the mask was not heeded: %v", changed)
	}

	renamed, err := c.RenameModel(l.as("owner"), &inferencev1.RenameModelRequest{Name: m.GetName(), NewModelId: "new"})
	must(t, err)
	if renamed.GetName() != ws1+"/models/new" || renamed.GetUid() != m.GetUid() || renamed.GetDescription() != "e" {
		t.Errorf("%v", renamed)
	}
	_, err = c.GetModel(l.as("owner"), &inferencev1.GetModelRequest{Name: m.GetName()})
	want(t, "the old name", err, codes.NotFound, 0)
	l.model("taken")
	_, err = c.RenameModel(l.as("owner"), &inferencev1.RenameModelRequest{Name: renamed.GetName(), NewModelId: "taken"})
	want(t, "a taken name", err, codes.AlreadyExists, 0)
	_, err = c.RenameModel(l.as("owner"), &inferencev1.RenameModelRequest{Name: renamed.GetName(), NewModelId: "../x"})
	want(t, "a hostile name", err, codes.InvalidArgument, 0)

	_, err = c.DeleteModel(l.as("owner"), &inferencev1.DeleteModelRequest{Name: renamed.GetName()})
	must(t, err)
	_, err = c.DeleteModel(l.as("owner"), &inferencev1.DeleteModelRequest{Name: renamed.GetName()})
	want(t, "again", err, codes.NotFound, 0)
}

func TestListModelsNewestFirst(t *testing.T) {
	l := newLab(t)
	for i := range 5 {
		l.model(fmt.Sprint("m", i))
	}
	var ids []string
	req := &inferencev1.ListModelsRequest{Parent: ws1, PageSize: 2}
	for {
		page, err := l.client().ListModels(l.as("reader"), req)
		must(t, err)
		for _, m := range page.GetModels() {
			ids = append(ids, strings.TrimPrefix(m.GetName(), ws1+"/models/"))
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
		if _, err := l.client().ListModels(l.as("reader"), &inferencev1.ListModelsRequest{Parent: ws2, PageToken: req.PageToken}); err == nil {
			t.Error("the token opens the list of another workspace")
		}
	}
	if !slices.Equal(ids, []string{"m4", "m3", "m2", "m1", "m0"}) {
		t.Errorf("%v", ids)
	}
	_, err := l.client().ListModels(l.as("reader"), &inferencev1.ListModelsRequest{Parent: ws1, PageToken: "x"})
	want(t, "a made-up token", err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	_, err = l.client().ListModels(l.as("reader"), &inferencev1.ListModelsRequest{Parent: ws1, PageSize: -1})
	want(t, "a negative size", err, codes.InvalidArgument, 0)
}

// TestAPageOfLongTagsEndsEarlier lists more than a client's message limit holds.
func TestAPageOfLongTagsEndsEarlier(t *testing.T) {
	l := newLab(t)
	tags := make(map[string]string)
	for i := range 100 {
		tags[fmt.Sprint(i)] = long(5000)
	}
	const models = 11 // of half a megabyte each
	for i := range models {
		_, err := l.client().CreateModel(l.as("owner"), &inferencev1.CreateModelRequest{Parent: ws1, ModelId: fmt.Sprint("m", i), Tags: tags})
		must(t, err)
	}
	seen, pages := make(map[string]bool), 0
	for req := (&inferencev1.ListModelsRequest{Parent: ws1, PageSize: 1000}); ; pages++ {
		page, err := l.client().ListModels(l.as("reader"), req)
		must(t, err)
		for _, m := range page.GetModels() {
			seen[m.GetUid()] = true
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if len(seen) != models || pages < 2 {
		t.Errorf("%d models on %d pages", len(seen), pages+1)
	}
}

// TestRegisterFromARun is the way from a run to a version: whose files, which paths, from where.
func TestRegisterFromARun(t *testing.T) {
	l := newLab(t)
	l.model("m")
	m := ws1 + "/models/m"
	v, err := l.fromRun(m, func(r *inferencev1.CreateModelVersionRequest) {
		r.Description, r.Tags = "d", map[string]string{"a": "b"}
	})
	must(t, err)
	if v.GetName() != m+"/versions/1" || v.GetVersion() != 1 || v.GetSourceRun() != run1 || v.GetSourceSnapshot() != snap || v.GetSourcePath() != "model" ||
		v.GetTotalBytes() != 12 || len(v.GetFiles()) != 2 || v.GetFiles()[0].GetPath() != "a.json" || v.GetFiles()[1].GetPath() != "sub/b.bin" || v.GetDescription() != "d" || v.GetTags()["a"] != "b" {
		t.Errorf("%v", v)
	}
	files, _, err := l.download(l.as("owner"), v.GetName(), "")
	must(t, err)
	if !maps.Equal(files, map[string]string{"a.json": "aaaaaaaaaa", "sub/b.bin": "bb"}) {
		t.Errorf("%q", files)
	}
	for path, names := range map[string][]string{"": {"empty", "log.txt", "model/a.json", "model/sub/b.bin"}, "model/sub": {"b.bin"}, "model/a.json": {"a.json"}, "empty": {"empty"}} {
		v, err := l.fromRun(m, func(r *inferencev1.CreateModelVersionRequest) { r.SourcePath = path })
		must(t, err)
		var got []string
		for _, f := range v.GetFiles() {
			got = append(got, f.GetPath())
		}
		if !slices.Equal(got, names) {
			t.Errorf("source_path %q: %q, want %q", path, got, names)
		}
	}
	blobs, versions := l.stored(), l.count("model_versions")
	for name, c := range map[string]struct {
		change func(*inferencev1.CreateModelVersionRequest)
		code   codes.Code
		reason faultv1.Reason
	}{
		"a run of another workspace": {func(r *inferencev1.CreateModelVersionRequest) { r.SourceRun = ws2 + "/runs/r" }, codes.InvalidArgument, 0},
		"a path above":               {func(r *inferencev1.CreateModelVersionRequest) { r.SourcePath = "../x" }, codes.InvalidArgument, faultv1.Reason_PATH_INVALID},
		"a path with a backslash":    {func(r *inferencev1.CreateModelVersionRequest) { r.SourcePath = `a\b` }, codes.InvalidArgument, faultv1.Reason_PATH_INVALID},
		"a folder's half name":       {func(r *inferencev1.CreateModelVersionRequest) { r.SourcePath = "mod" }, codes.FailedPrecondition, 0},
		"no such model":              {func(r *inferencev1.CreateModelVersionRequest) { r.Parent = ws1 + "/models/none" }, codes.NotFound, 0},
		"no such run's name":         {func(r *inferencev1.CreateModelVersionRequest) { r.SourceRun = ws1 + "/runs/.." }, codes.InvalidArgument, 0},
	} {
		_, err := l.fromRun(m, c.change)
		want(t, name, err, c.code, c.reason)
	}
	_, err = l.client().CreateModelVersion(l.as("other"), &inferencev1.CreateModelVersionRequest{Parent: ws2 + "/models/m", SourceRun: run1, CreateModel: true})
	want(t, "a run that the caller may not see", err, codes.NotFound, 0)
	_, err = l.client().CreateModelVersion(l.as("reader"), &inferencev1.CreateModelVersionRequest{Parent: m, SourceRun: run1})
	want(t, "a reader", err, codes.PermissionDenied, 0)
	l.runs.set(func(r *runs) { r.list = fault.PermissionDenied("no") })
	_, err = l.fromRun(m, nil)
	want(t, "compute refuses", err, codes.PermissionDenied, 0)
	l.runs.set(func(r *runs) { r.list, r.get = nil, fault.Unavailable("away") })
	_, err = l.fromRun(m, nil)
	want(t, "compute is away", err, codes.Unavailable, 0)
	l.nothing("what was refused", blobs, versions)
	l.runs.set(func(r *runs) { r.get = fault.PermissionDenied("no") })
	v, err = l.fromRun(m, nil)
	must(t, err)
	if v.GetSourceRun() != run1 || v.GetSourceSnapshot() != "" {
		t.Errorf("the lineage of who may not read the run: %v", v)
	}
}

// TestACopyThatBreaksOffLeavesNothing also changes an output while it is copied.
func TestACopyThatBreaksOffLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.model("m")
	m := ws1 + "/models/m"
	for name, c := range map[string]struct {
		during func(string) error
		code   codes.Code
	}{
		"compute goes away": {func(p string) error {
			if p == "model/sub/b.bin" {
				return fault.Unavailable("away")
			}
			return nil
		}, codes.Unavailable},
		"an output is replaced": {func(p string) error {
			l.runs.set(func(r *runs) { r.outputs[p] = strings.ToUpper(r.outputs[p]) })
			return nil
		}, codes.Aborted},
	} {
		l.runs.set(func(r *runs) { r.during = c.during })
		_, err := l.fromRun(m, nil)
		want(t, name, err, c.code, 0)
		l.nothing(name, 0, 0)
	}
	l.runs.set(func(r *runs) { r.during = nil })
	v, err := l.fromRun(m, nil)
	must(t, err)
	if v.GetVersion() != 1 {
		t.Errorf("a registration that failed used up a number: the next is %d", v.GetVersion())
	}
}

func TestARequestIDGivesTheSameVersion(t *testing.T) {
	l := newLab(t)
	m := ws1 + "/models/m"
	ask := func(r *inferencev1.CreateModelVersionRequest) {
		r.RequestId, r.CreateModel = "4ec51a30-d1f3-4d66-a4a4-8c3f3c7ac3a5", true
	}
	v, err := l.fromRun(m, ask)
	must(t, err)
	again, err := l.fromRun(m, ask)
	must(t, err)
	if !proto.Equal(v, again) || l.count("model_versions") != 1 {
		t.Errorf("%v, then %v", v, again)
	}
	_, err = l.fromRun(m, func(r *inferencev1.CreateModelVersionRequest) { ask(r); r.SourcePath = "" })
	want(t, "another request", err, codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED)
	l.advance(25 * time.Hour)
	v, err = l.fromRun(m, ask)
	must(t, err)
	if v.GetVersion() != 2 {
		t.Errorf("a day later it is version %d", v.GetVersion())
	}
}

func TestUpload(t *testing.T) {
	l := newLab(t)
	m := ws1 + "/models/m"
	_, err := l.send("owner", messages(m, named{"a", "b"}))
	want(t, "no such model", err, codes.NotFound, 0)
	msgs := messages(m, named{"dir/b", long(300000)}, named{"a", ""})
	msgs[0].CreateModel = true
	// The first file's entry may stand in the first message.
	msgs[0].File, msgs[0].Data = msgs[1].GetFile(), msgs[1].GetData()
	msgs = slices.Delete(msgs, 1, 2)
	v, err := l.send("owner", msgs)
	must(t, err)
	if v.GetVersion() != 1 || len(v.GetFiles()) != 2 || v.GetFiles()[0].GetPath() != "a" || v.GetSourceRun() != "" || v.GetDescription() != "uploaded" || v.GetTags()["k"] != "v" {
		t.Errorf("%v", v)
	}
	files, n, err := l.download(l.as("owner"), v.GetName(), "")
	must(t, err)
	if n != 3 || !maps.Equal(files, map[string]string{"a": "", "dir/b": long(300000)}) {
		t.Errorf("%d messages, files %v", n, slices.Sorted(maps.Keys(files)))
	}
	files, _, err = l.download(l.as("owner"), m+"/versions/latest", "a")
	must(t, err)
	if !maps.Equal(files, map[string]string{"a": ""}) {
		t.Errorf("one file: %v", files)
	}
	_, _, err = l.download(l.as("owner"), v.GetName(), "none")
	want(t, "no such file", err, codes.NotFound, 0)
	_, _, err = l.download(l.as("other"), v.GetName(), "")
	want(t, "a stranger", err, codes.NotFound, 0)
	_, err = l.send("reader", messages(m, named{"a", "b"}))
	want(t, "a reader uploads", err, codes.PermissionDenied, 0)
}

// TestAnUploadThatIsRefusedLeavesNothing has every way in which an upload can be wrong.
func TestAnUploadThatIsRefusedLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.model("m")
	m := ws1 + "/models/m"
	good := named{"good", "content"}
	with := func(change func(msgs []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
		return change(messages(m, good, named{"second", "12"}))
	}
	cases := map[string]struct {
		msgs   []*inferencev1.UploadModelVersionRequest
		code   codes.Code
		reason faultv1.Reason
	}{
		"nothing":             {messages(m), codes.InvalidArgument, 0},
		"a folder as well":    {messages(m, good, named{"good/x", "x"}), codes.InvalidArgument, faultv1.Reason_PATH_INVALID},
		"a file as well":      {messages(m, named{"good/x", "x"}, good), codes.InvalidArgument, faultv1.Reason_PATH_INVALID},
		"twice":               {messages(m, good, good), codes.InvalidArgument, faultv1.Reason_PATH_INVALID},
		"too many files":      {messages(m, named{"1", ""}, named{"2", ""}, named{"3", ""}, named{"4", ""}, named{"5", ""}), codes.ResourceExhausted, 0},
		"too much at once":    {messages(m, named{"1", long(1<<20 + 1)}), codes.ResourceExhausted, 0},
		"too much together":   {messages(m, good, named{"1", long(1 << 20)}), codes.ResourceExhausted, 0},
		"data without a file": {[]*inferencev1.UploadModelVersionRequest{{Parent: m, Data: []byte("x")}}, codes.InvalidArgument, 0},
		"cut short within a file": {with(func(m []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
			return m[:len(m)-1]
		}), codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		"more than was announced": {with(func(m []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
			m[2].Data = []byte("contents")
			return m
		}), codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		"another digest": {with(func(m []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
			m[2].Data = []byte("TENT")
			return m
		}), codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		"no digest": {with(func(m []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
			m[1].File.Digest = nil
			return m
		}), codes.InvalidArgument, 0},
		"a description later": {with(func(m []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
			m[2].Description = "x"
			return m
		}), codes.InvalidArgument, 0},
		"another model later": {with(func(m []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
			m[2].Parent = ws1 + "/models/n"
			return m
		}), codes.InvalidArgument, 0},
		"a negative size": {with(func(m []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
			m[1].File.Size = -1
			return m
		}), codes.InvalidArgument, 0},
		"a message that is too big": {with(func(m []*inferencev1.UploadModelVersionRequest) []*inferencev1.UploadModelVersionRequest {
			m[1].Data = make([]byte, 1<<18+1)
			return m
		}), codes.InvalidArgument, 0},
	}
	for _, p := range []string{"/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a/./b", `a\..\b`, "a\x00b", "a\nb", "a\u0301", strings.Repeat("a", 1025)} {
		cases[fmt.Sprintf("path %.20q", p)] = struct {
			msgs   []*inferencev1.UploadModelVersionRequest
			code   codes.Code
			reason faultv1.Reason
		}{messages(m, good, named{p, "x"}), codes.InvalidArgument, 0}
	}
	for name, c := range cases {
		_, err := l.send("owner", c.msgs)
		want(t, name, err, c.code, c.reason)
		l.nothing(name, 0, 0)
	}
	v := l.upload(m, good)
	if v.GetVersion() != 1 {
		t.Errorf("what was refused used up numbers: the next is %d", v.GetVersion())
	}

	// A client that goes away in the middle; the handler has ended when the row is gone.
	ctx, cancel := context.WithCancel(l.as("owner"))
	s, err := l.client().UploadModelVersion(ctx)
	must(t, err)
	for _, msg := range messages(m, good, named{"second", "12"})[:4] {
		must(t, s.Send(msg))
	}
	l.until(func() bool { return l.count("model_leftovers") > 0 })
	cancel()
	l.until(func() bool { return l.count("model_leftovers") == 0 })
	l.nothing("a client that went away", 1, 1)
}

// until waits for something that another goroutine does.
func (l *lab) until(done func() bool) {
	l.t.Helper()
	for end := time.Now().Add(time.Minute); !done(); {
		if time.Now().After(end) {
			l.t.Fatal("it does not come")
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

func TestVersionsAndAliases(t *testing.T) {
	l := newLab(t)
	l.model("m")
	m, c := ws1+"/models/m", l.client()
	for range 3 {
		l.upload(m, named{"a", "b"})
	}
	set := func(alias string, n int64) (*inferencev1.Model, error) {
		return c.SetModelAlias(l.as("owner"), &inferencev1.SetModelAliasRequest{Name: m, Alias: alias, Version: n})
	}
	_, err := set("Production", 2)
	must(t, err)
	got, err := set("champion", 2)
	must(t, err)
	if !maps.Equal(got.GetAliases(), map[string]int64{"Production": 2, "champion": 2}) || got.GetLatestVersion() != 3 {
		t.Errorf("%v", got)
	}
	for alias, n := range map[string]int64{"latest": 3, "Production": 2, "2": 2} {
		v, err := c.GetModelVersion(l.as("reader"), &inferencev1.GetModelVersionRequest{Name: m + "/versions/" + alias})
		must(t, err)
		if v.GetVersion() != n || v.GetName() != fmt.Sprint(m, "/versions/", n) || n == 2 && !slices.Equal(v.GetAliases(), []string{"Production", "champion"}) {
			t.Errorf("%s: %v", alias, v)
		}
	}
	for _, n := range []string{"0", "02", "4", "none", "champion2", "9223372036854775808"} {
		_, err := c.GetModelVersion(l.as("reader"), &inferencev1.GetModelVersionRequest{Name: m + "/versions/" + n})
		want(t, n, err, codes.NotFound, 0)
	}
	for _, a := range []string{"latest", "Latest", "v1", "V12", "7", "a b", "a/b", "ä", ".."} {
		_, err := set(a, 1)
		want(t, "alias "+a, err, codes.InvalidArgument, 0)
	}
	_, err = set("none", 9)
	want(t, "an alias of what is not there", err, codes.NotFound, 0)
	got, err = set("champion", 3)
	must(t, err)
	if !maps.Equal(got.GetAliases(), map[string]int64{"Production": 2, "champion": 3}) {
		t.Errorf("it did not move: %v", got)
	}
	_, err = c.DeleteModelAlias(l.as("owner"), &inferencev1.DeleteModelAliasRequest{Name: m, Alias: "none"})
	want(t, "no such alias", err, codes.NotFound, 0)
	_, err = c.DeleteModelAlias(l.as("owner"), &inferencev1.DeleteModelAliasRequest{Name: m, Alias: "champion"})
	must(t, err)

	// A number is not given again, and an alias does not outlive its version.
	_, err = c.DeleteModelVersion(l.as("owner"), &inferencev1.DeleteModelVersionRequest{Name: m + "/versions/latest"})
	want(t, "deleted by an alias", err, codes.InvalidArgument, 0)
	for _, n := range []string{"3", "2"} {
		_, err = c.DeleteModelVersion(l.as("owner"), &inferencev1.DeleteModelVersionRequest{Name: m + "/versions/" + n})
		must(t, err)
	}
	l.nothing("two deleted versions", 1, 1)
	got, err = c.GetModel(l.as("owner"), &inferencev1.GetModelRequest{Name: m})
	must(t, err)
	if len(got.GetAliases()) > 0 || got.GetLatestVersion() != 1 {
		t.Errorf("%v", got)
	}
	if v := l.upload(m, named{"a", "b"}); v.GetVersion() != 4 {
		t.Errorf("the next version is %d, want 4", v.GetVersion())
	}

	v, err := c.UpdateModelVersion(l.as("owner"), &inferencev1.UpdateModelVersionRequest{
		ModelVersion: &inferencev1.ModelVersionUpdate{Name: m + "/versions/4", Description: "new"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description"}},
	})
	must(t, err)
	if v.GetDescription() != "new" || v.GetTags()["k"] != "v" || len(v.GetFiles()) != 1 {
		t.Errorf("%v", v)
	}
	_, err = c.UpdateModelVersion(l.as("owner"), &inferencev1.UpdateModelVersionRequest{ModelVersion: &inferencev1.ModelVersionUpdate{Name: m + "/versions/4", Etag: "old"}})
	want(t, "an old etag", err, codes.Aborted, faultv1.Reason_ETAG_MISMATCH)

	var numbers []int64
	req := &inferencev1.ListModelVersionsRequest{Parent: m, PageSize: 1}
	for {
		page, err := c.ListModelVersions(l.as("reader"), req)
		must(t, err)
		for _, v := range page.GetModelVersions() {
			numbers = append(numbers, v.GetVersion())
			if len(v.GetFiles()) > 0 || len(v.GetSignature()) > 0 || v.GetTotalBytes() != 1 || len(v.GetDigest()) != 32 {
				t.Errorf("in a list: %v", v)
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if !slices.Equal(numbers, []int64{4, 1}) {
		t.Errorf("%v", numbers)
	}
	_, err = c.DeleteModel(l.as("owner"), &inferencev1.DeleteModelRequest{Name: m})
	must(t, err)
	l.nothing("the model is gone", 0, 0)
}

// TestWhatIsUsedStays has a deployment's part of it.
func TestWhatIsUsedStays(t *testing.T) {
	l := newLab(t)
	l.model("m")
	m, c := ws1+"/models/m", l.client()
	l.upload(m, named{"a", "b"})
	l.upload(m, named{"a", "b"})
	name, err := resource.Parse(m + "/versions/latest")
	must(t, err)
	v, err := l.s.Resolve(t.Context(), l.uids[ws1], name)
	must(t, err)
	if v.Name != m+"/versions/2" || v.Number != 2 || v.Model != "m" || v.WorkspaceUID != l.uids[ws1] || !strings.HasPrefix(v.UID, "mver_") {
		t.Errorf("%+v", v)
	}
	_, err = l.s.Resolve(t.Context(), l.uids[ws2], name)
	want(t, "of another workspace", err, codes.NotFound, 0)
	const user = ws1 + "/endpoints/e/deployments/blue"
	hold := func(version string) error {
		return l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return l.s.Hold(ctx, tx, version, "dep_1", user) })
	}
	want(t, "what is not there", hold("mver_none"), codes.NotFound, 0)
	must(t, hold(v.UID))
	must(t, hold(v.UID))
	used := func(name string, err error) {
		t.Helper()
		want(t, name, err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
		if err == nil || !strings.Contains(fault.FromStatus(err).Error(), user) {
			t.Errorf("%s: %v does not name the user", name, err)
		}
	}
	_, err = c.DeleteModelVersion(l.as("owner"), &inferencev1.DeleteModelVersionRequest{Name: v.Name})
	used("delete the version", err)
	_, err = c.DeleteModel(l.as("owner"), &inferencev1.DeleteModelRequest{Name: m})
	used("delete the model", err)
	_, err = c.RenameModel(l.as("owner"), &inferencev1.RenameModelRequest{Name: m, NewModelId: "n"})
	used("rename the model", err)
	got, err := c.GetModelVersion(l.as("reader"), &inferencev1.GetModelVersionRequest{Name: v.Name})
	must(t, err)
	list, err := c.ListModelVersions(l.as("reader"), &inferencev1.ListModelVersionsRequest{Parent: m})
	must(t, err)
	if !slices.Equal(got.GetDeployments(), []string{user}) || !slices.Equal(list.GetModelVersions()[0].GetDeployments(), []string{user}) || len(list.GetModelVersions()[1].GetDeployments()) > 0 {
		t.Errorf("%v", got.GetDeployments())
	}
	_, err = c.DeleteModelVersion(l.as("owner"), &inferencev1.DeleteModelVersionRequest{Name: m + "/versions/1"})
	must(t, err)
	for range 2 {
		must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return l.s.Release(ctx, tx, "dep_1") }))
	}
	_, err = c.DeleteModelVersion(l.as("owner"), &inferencev1.DeleteModelVersionRequest{Name: v.Name})
	must(t, err)
	want(t, "held after it is gone", hold(v.UID), codes.NotFound, 0)
}

// TestTheSignatureIsForEverybody verifies a version as a client does: with the published keys and the standard library.
func TestTheSignatureIsForEverybody(t *testing.T) {
	l := newLab(t)
	l.model("m")
	v := l.upload(ws1+"/models/m", named{"a", "content"})
	keys, err := l.client().ListSigningKeys(l.as("reader"), &inferencev1.ListSigningKeysRequest{})
	must(t, err)
	if len(keys.GetKeys()) != 1 {
		t.Fatalf("%d keys", len(keys.GetKeys()))
	}
	block, _ := pem.Decode([]byte(keys.GetKeys()[0].GetPublicKeyPem()))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	must(t, err)
	var d struct {
		PayloadType string
		Payload     []byte
		Signatures  []struct {
			KeyID string
			Sig   []byte
		}
	}
	must(t, json.Unmarshal(v.GetSignature(), &d))
	if d.Signatures[0].KeyID != keys.GetKeys()[0].GetKeyId() || !ed25519.Verify(public.(ed25519.PublicKey), fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(d.PayloadType), d.PayloadType, len(d.Payload), d.Payload), d.Signatures[0].Sig) {
		t.Error("the signature does not verify")
	}
	sum := sha256.Sum256(d.Payload)
	content := sha256.Sum256([]byte("content"))
	if string(sum[:]) != string(v.GetDigest()) || !strings.Contains(string(d.Payload), fmt.Sprintf(`"files":[{"path":"a","sha256":"%x","size":7}]`, content)) || !strings.Contains(string(d.Payload), `"version":1,`) {
		t.Errorf("%s", d.Payload)
	}

	// The key outlives the process.
	l.restart()
	again, err := l.s.ListSigningKeys(t.Context(), nil)
	must(t, err)
	if !proto.Equal(again, keys) {
		t.Errorf("%v, then %v", keys, again)
	}
}
