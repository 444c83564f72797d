package models

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// blobsOf are the paths of a version's blobs on disk.
func (l *lab) blobsOf(v *inferencev1.ModelVersion) []string {
	l.t.Helper()
	key, err := l.cfg.Keys.Key(l.t.Context(), l.uids[ws1])
	must(l.t, err)
	var out []string
	for _, f := range v.GetFiles() {
		name, _ := place(key, v.GetUid(), f.GetPath())
		out = append(out, filepath.Join(l.blobs, name))
	}
	return out
}

// TestWhatWasChangedIsNotSent changes what is stored in every way that whoever holds the disk can, and asks for it.
func TestWhatWasChangedIsNotSent(t *testing.T) {
	swap := func(l *lab, column string) {
		l.exec("UPDATE model_versions SET " + column + " = (SELECT o." + column + " FROM model_versions o WHERE o.uid <> model_versions.uid)")
	}
	files := func(change func(a, b []string)) func(*lab, *inferencev1.ModelVersion, *inferencev1.ModelVersion) {
		return func(l *lab, a, b *inferencev1.ModelVersion) { change(l.blobsOf(a), l.blobsOf(b)) }
	}
	cases := map[string]struct {
		change func(l *lab, a, b *inferencev1.ModelVersion)
		// blob says that only the content was changed, so that Resolve does not see it.
		blob bool
	}{
		"a byte of the last file": {files(func(a, _ []string) {
			b, err := os.ReadFile(a[1])
			must(t, err)
			must(t, os.WriteFile(a[1], flip(b), 0o600))
		}), true},
		"a file cut short":    {files(func(a, _ []string) { must(t, os.Truncate(a[1], 300000)) }), true},
		"a file that is gone": {files(func(a, _ []string) { must(t, os.Remove(a[1])) }), true},
		"two files exchanged": {files(func(a, _ []string) {
			must(t, os.Rename(a[0], a[0]+".tmp"))
			must(t, os.Rename(a[1], a[0]))
			must(t, os.Rename(a[0]+".tmp", a[1]))
		}), true},
		"another version's file": {files(func(a, b []string) {
			c, err := os.ReadFile(b[1])
			must(t, err)
			must(t, os.WriteFile(a[1], c, 0o600))
		}), true},
		"a file sealed again": {func(l *lab, a, _ *inferencev1.ModelVersion) {
			key, err := l.cfg.Keys.Key(t.Context(), l.uids[ws1])
			must(t, err)
			f := file{Path: "first", Size: 1, SHA256: "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"}
			must(t, l.s.put(t.Context(), key, a.GetUid(), f, once("2")))
		}, true},
		"the manifest": {func(l *lab, _, _ *inferencev1.ModelVersion) {
			var m []byte
			must(t, l.db.Reader().QueryRowContext(t.Context(), "SELECT manifest FROM model_versions WHERE number = 1").Scan(&m))
			l.exec("UPDATE model_versions SET manifest = $1 WHERE number = 1", flip(m))
		}, false},
		"manifests exchanged": {func(l *lab, _, _ *inferencev1.ModelVersion) { swap(l, "manifest") }, false},
		"bodies exchanged":    {func(l *lab, _, _ *inferencev1.ModelVersion) { swap(l, "body") }, false},
		"numbers exchanged": {func(l *lab, _, _ *inferencev1.ModelVersion) {
			l.exec("UPDATE model_versions SET number = -number")
			l.exec("UPDATE model_versions SET number = 3 + number")
		}, false},
		"a later revision": {func(l *lab, _, _ *inferencev1.ModelVersion) { l.exec("UPDATE model_versions SET revision = 2") }, false},
		"signed by another key": {func(l *lab, a, _ *inferencev1.ModelVersion) {
			other, err := envelope.NewSigner()
			must(t, err)
			l.resign(a, other, nil)
		}, false},
		"signed again with other files": {func(l *lab, a, _ *inferencev1.ModelVersion) {
			by, err := l.s.signing.current(t.Context())
			must(t, err)
			l.resign(a, by, func(payload []byte) []byte { return bytes.Replace(payload, []byte(`"first"`), []byte(`"FIRST"`), 1) })
		}, false},
		"no signing key": {func(l *lab, _, _ *inferencev1.ModelVersion) {
			l.exec("DELETE FROM model_signing_keys")
			l.s.signing.mu.Lock()
			defer l.s.signing.mu.Unlock()
			clear(l.s.signing.signers)
		}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.model("m")
			m := ws1 + "/models/m"
			a := l.upload(m, named{"first", "1"}, named{"second", long(400000)})
			b := l.upload(m, named{"first", "1"}, named{"second", long(400000)})
			_, _, err := l.download(l.as("owner"), a.GetName(), "")
			must(t, err)
			c.change(l, a, b)
			_, n, err := l.download(l.as("owner"), a.GetName(), "")
			want(t, "download", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
			if n != 0 {
				t.Errorf("%d messages came before it was refused", n)
			}
			at, err := resource.Parse(a.GetName())
			must(t, err)
			if _, err = l.s.Resolve(t.Context(), l.uids[ws1], at); !c.blob {
				want(t, "resolve", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
				_, err = l.client().GetModelVersion(l.as("owner"), &inferencev1.GetModelVersionRequest{Name: a.GetName()})
				want(t, "get", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
			}
		})
	}
}

// resign puts a manifest in the place of a version's, sealed as the registry would.
func (l *lab) resign(v *inferencev1.ModelVersion, by *envelope.Signer, change func([]byte) []byte) {
	l.t.Helper()
	key, err := l.cfg.Keys.Key(l.t.Context(), l.uids[ws1])
	must(l.t, err)
	old, err := l.s.signing.current(l.t.Context())
	must(l.t, err)
	payload, err := old.VerifyDocument(payloadType, v.GetSignature())
	must(l.t, err)
	if change != nil {
		changed := change(payload)
		if bytes.Equal(changed, payload) {
			l.t.Fatal("the manifest was not changed")
		}
		payload = changed
	}
	signed, err := by.SignDocument(payloadType, payload)
	must(l.t, err)
	sealed, err := key.Seal(envelope.AAD{Owner: l.uids[ws1], Kind: "model_version", ID: v.GetUid(), Field: "manifest", Version: v.GetVersion()}, signed)
	must(l.t, err)
	l.exec("UPDATE model_versions SET manifest = $1 WHERE uid = $2", sealed, v.GetUid())
}

// TestNothingIsStoredInClear looks for what the tenant wrote in the database and the blobs (D1, D2).
func TestNothingIsStoredInClear(t *testing.T) {
	l := newLab(t)
	m, err := l.client().CreateModel(l.as("owner"), &inferencev1.CreateModelRequest{Parent: ws1, ModelId: "canary-model", Description: "canary-description", Tags: map[string]string{"canary-key": "canary-value"}})
	must(t, err)
	l.runs.set(func(r *runs) { r.outputs = map[string]string{"canary-path": "canary-content"} })
	v, err := l.fromRun(m.GetName(), func(r *inferencev1.CreateModelVersionRequest) {
		r.SourcePath, r.Description, r.RequestId, r.Tags = "", "canary-version", "canary-request", map[string]string{"canary-k": "canary-v"}
	})
	must(t, err)
	_, err = l.client().SetModelAlias(l.as("owner"), &inferencev1.SetModelAliasRequest{Name: m.GetName(), Alias: "canary-alias", Version: v.GetVersion()})
	must(t, err)
	at, err := resource.Parse(v.GetName())
	must(t, err)
	_, err = l.s.Resolve(t.Context(), l.uids[ws1], at)
	must(t, err)
	must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		return l.s.Hold(ctx, tx, v.GetUid(), "dep_1", "canary-deployment")
	}))
	must(t, filepath.WalkDir(filepath.Dir(l.blobs), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("canary")) || strings.Contains(path, "canary") || bytes.Contains(b, []byte("runs/r1")) {
			t.Errorf("%s holds what the tenant wrote in clear", path)
		}
		return err
	}))
	for _, table := range []string{"models", "model_versions", "model_uses", "model_signing_keys"} {
		rows, err := l.db.Reader().QueryContext(t.Context(), "SELECT * FROM "+table)
		must(t, err)
		columns, err := rows.Columns()
		must(t, err)
		for rows.Next() {
			values := make([]any, len(columns))
			for i := range values {
				values[i] = new([]byte)
			}
			must(t, rows.Scan(values...))
			for i, v := range values {
				if s := string(*v.(*[]byte)); strings.Contains(s, "canary") || strings.Contains(s, "runs/r1") {
					t.Errorf("%s.%s holds %q", table, columns[i], s)
				}
			}
		}
		must(t, rows.Err())
		must(t, rows.Close())
	}
}

func nothingRecorded(context.Context, *sqldb.Tx) error { return nil }

// once is content in one piece.
func once(text string) pieces {
	sent := false
	return func() ([]byte, error) {
		if sent {
			return nil, io.EOF
		}
		sent = true
		return []byte(text), nil
	}
}

// TestAfterAKill is what a new process finds of registrations and deletions that an earlier one did not end.
func TestAfterAKill(t *testing.T) {
	l := newLab(t)
	l.model("m")
	m := ws1 + "/models/m"
	kept := l.upload(m, named{"a", "b"})
	ctx := t.Context()
	key, err := l.cfg.Keys.Key(ctx, l.uids[ws1])
	must(t, err)

	// Between the blobs and the row.
	_, err = l.s.begin(ctx, key, "mver_unfinished")
	must(t, err)
	f := file{Path: "a", Size: 1, SHA256: "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"}
	must(t, l.s.put(ctx, key, "mver_unfinished", f, once("b")))
	must(t, l.s.sweep(ctx))
	if l.stored() != 2 {
		t.Fatal("a registration that is under way was swept")
	}
	// Between the row and the blobs of a deletion.
	gone := l.upload(m, named{"a", "b"})
	at, err := resource.Parse(gone.GetName())
	must(t, err)
	_, v, err := l.s.find(ctx, l.uids[ws1], at)
	must(t, err)
	_, err = l.s.store.DeleteVersion(ctx, v, folderOf(key, v.UID), l.now(), nothingRecorded)
	must(t, err)
	if l.stored() != 3 || l.count("model_leftovers") != 2 {
		t.Fatalf("%d blobs, %d left over", l.stored(), l.count("model_leftovers"))
	}

	l.restart()
	run, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- l.s.Run(run) }()
	l.until(func() bool { return l.count("model_leftovers") == 0 })
	cancel()
	must(t, <-ended)
	l.nothing("a restart", 1, 1)

	// A commit that was acknowledged too late: the registration believes that it failed.
	l.s.clear(ctx, store.Leftover{Version: kept.GetUid(), Workspace: l.uids[ws1], Folder: folderOf(key, kept.GetUid())})
	_, _, err = l.download(l.as("owner"), kept.GetName(), "")
	must(t, err)
}

// TestPurge removes a workspace's models, also those that are being registered, and nothing of others.
func TestPurge(t *testing.T) {
	l := newLab(t)
	l.model("m")
	v := l.upload(ws1+"/models/m", named{"a", "b"})
	msgs := messages(ws2+"/models/m", named{"a", "b"})
	msgs[0].CreateModel = true
	other, err := l.send("owner", msgs)
	must(t, err)
	must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return l.s.Hold(ctx, tx, v.GetUid(), "dep_1", "d") }))

	s, err := l.client().UploadModelVersion(l.as("owner"))
	must(t, err)
	msgs = messages(ws1+"/models/m", named{"a", "b"})
	must(t, s.Send(msgs[0]))
	l.until(func() bool { return l.count("model_leftovers") > 0 })
	for range 2 {
		must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return l.s.Purge(ctx, tx, l.uids[ws1]) }))
	}
	for _, m := range msgs[1:] {
		_ = s.Send(m)
	}
	_, err = s.CloseAndRecv()
	want(t, "what was under way", err, codes.FailedPrecondition, 0)
	if l.count("model_versions") != 1 || l.count("models") != 1 || l.count("model_uses") != 0 {
		t.Errorf("%d versions, %d models, %d uses", l.count("model_versions"), l.count("models"), l.count("model_uses"))
	}
	must(t, l.s.sweep(t.Context()))
	l.nothing("what a registration wrote meanwhile is swept", 1, 1)
	_, _, err = l.download(l.as("owner"), other.GetName(), "")
	must(t, err)
	_, _, err = l.download(l.as("owner"), v.GetName(), "")
	want(t, "what was purged", err, codes.NotFound, 0)
}

// TestARunReadsWhatItServes is the one call that a run's token opens.
func TestARunReadsWhatItServes(t *testing.T) {
	l := newLab(t)
	l.model("m")
	m := ws1 + "/models/m"
	l.upload(m, named{"a", "b"})
	l.upload(m, named{"a", "c"})
	key, err := authn.GenerateKey()
	must(t, err)
	prover, err := authn.NewProver(key, time.Now)
	must(t, err)
	l.mu.Lock()
	l.tokens["run"] = &authn.Verified{Claims: authn.Claims{
		Subject: "usr_owner", PrincipalType: "User", Run: "run_1", Workspace: l.uids[ws1], Actions: []string{"inference/models/content/read models/m/versions/1"}, Confirmation: prover.Thumbprint(),
	}}
	l.mu.Unlock()
	ctx := func(method string) context.Context {
		proof, err := prover.Proof("POST", issuer+"/redoubt.inference.v1.ModelService/"+method, "run", "")
		must(t, err)
		return metadata.AppendToOutgoingContext(t.Context(), "authorization", "DPoP run", "dpop", proof)
	}
	files, _, err := l.download(ctx("DownloadModelVersion"), m+"/versions/1", "")
	must(t, err)
	if files["a"] != "b" {
		t.Errorf("%q", files)
	}
	_, _, err = l.download(ctx("DownloadModelVersion"), m+"/versions/2", "")
	want(t, "another version", err, codes.NotFound, 0)
	_, err = l.client().GetModelVersion(ctx("GetModelVersion"), &inferencev1.GetModelVersionRequest{Name: m + "/versions/1"})
	want(t, "another call", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
}

func TestDecodeTakesOnlyTheCanonicalForm(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	good := `{"files":[{"path":"a<b>","sha256":"` + sum + `","size":1}],"model":"m","source":{},"uid":"u","version":1,"workspace":"w"}`
	m, err := decode([]byte(good))
	must(t, err)
	if m.Files[0].Path != "a<b>" || m.total() != 1 {
		t.Errorf("%+v", m)
	}
	for name, text := range map[string]string{
		"nothing":        "",
		"a space":        strings.Replace(good, `,"model"`, `, "model"`, 1),
		"another order":  strings.Replace(good, `"uid":"u","version":1`, `"version":1,"uid":"u"`, 1),
		"a field more":   strings.Replace(good, `"uid"`, `"x":1,"uid"`, 1),
		"a field twice":  strings.Replace(good, `"uid":"u"`, `"uid":"v","uid":"u"`, 1),
		"a short digest": strings.Replace(good, sum, "ab", 1),
		"capitals":       strings.Replace(good, sum, "xy"+sum[2:], 1),
		"a path above":   strings.Replace(good, "a<b>", "../a", 1),
		"a negative":     strings.Replace(good, `"size":1`, `"size":-1`, 1),
	} {
		if text == good {
			t.Errorf("%s: not changed", name)
		}
		_, err := decode([]byte(text))
		want(t, name, err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
	}
}
