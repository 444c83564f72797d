package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/blob/blobtest"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// stream is n bytes that are not all the same, from a seed.
func stream(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

func sum(t *testing.T, r io.Reader) [32]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func sumOf(t *testing.T, s *blob.Store, name string) [32]byte {
	t.Helper()
	r, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	return sum(t, r)
}

// Sizes around the border between one request and several come back as they were, on both kinds.
func TestSizesAroundAPart(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
		for i, n := range []int64{blob.PartSize - 1, blob.PartSize, blob.PartSize + 1, 2 * blob.PartSize, 2*blob.PartSize + 1} {
			if got, err := s.Put(t.Context(), "large", stream(byte(i), n)); err != nil || got != n {
				t.Fatalf("%d: %d, %v", n, got, err)
			}
			if sumOf(t, s, "large") != sum(t, stream(byte(i), n)) {
				t.Errorf("%d bytes came back changed", n)
			}
			if info, err := s.Stat(t.Context(), "large"); err != nil || info.Size != n {
				t.Errorf("%d: %+v, %v", n, info, err)
			}
			r, err := s.GetRange(t.Context(), "large", n-10, 20)
			if err != nil {
				t.Fatal(err)
			}
			if tail, err := io.ReadAll(r); err != nil || len(tail) != 10 {
				t.Errorf("%d: a tail of %d bytes, %v", n, len(tail), err)
			}
			_ = r.Close()
		}
	})
}

// A large blob passes through a bounded piece of memory.
func TestLargeStreamsAreNotHeld(t *testing.T) {
	const size, bound = 16 * blob.PartSize, 48 << 20
	s := blobtest.Open(t, blobtest.S3(t))
	var most uint64
	runtime.GC()
	look := func(p []byte) {
		if rand.IntN(64) == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
		}
	}
	if _, err := s.Put(t.Context(), "large", &looking{stream(1, size), look}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Get(t.Context(), "large")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if sum(t, &looking{r, look}) != sum(t, stream(1, size)) {
		t.Error("came back changed")
	}
	if most == 0 || most > bound {
		t.Errorf("%d MiB of heap for a blob of %d MiB", most>>20, size>>20)
	}
	t.Logf("%d MiB of heap for a blob of %d MiB", most>>20, int64(size)>>20)
}

type looking struct {
	r    io.Reader
	look func([]byte)
}

func (l *looking) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	l.look(p[:n])
	return n, err
}

// What fails in its middle shows nothing and leaves nothing.
func TestFailedUploadLeavesNothing(t *testing.T) {
	s := blobtest.Open(t, blobtest.S3(t))
	put(t, s, "a", "old")
	mine := errors.New("mine")
	ctx, cancel := context.WithCancel(t.Context())
	for name, c := range map[string]struct {
		ctx  context.Context
		r    io.Reader
		want error
	}{
		"the reader fails":     {t.Context(), io.MultiReader(stream(1, 2*blob.PartSize+5), iotest.ErrReader(mine)), mine},
		"the caller goes away": {ctx, io.MultiReader(stream(1, 2*blob.PartSize+5), readerFunc(cancel), stream(2, blob.PartSize)), context.Canceled},
	} {
		if n, err := s.Put(c.ctx, "a", c.r); n != 0 || err != c.want { //nolint:errorlint // the very error comes back
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	if n, err := s.Uploads(t.Context()); n != 0 || err != nil {
		t.Errorf("%d uploads are left, %v", n, err)
	}
	if get(t, s, "a") != "old" {
		t.Error("the old content is gone")
	}
}

// Open removes old uploads of its own prefix, and leaves those that another replica may have under way.
func TestOpenRemovesStaleUploads(t *testing.T) {
	c := blobtest.S3(t)
	s := blobtest.Open(t, c)
	if err := s.BeginUpload(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	count := func(want int) {
		t.Helper()
		if n, err := s.Uploads(t.Context()); n != want || err != nil {
			t.Errorf("%d uploads, want %d; %v", n, want, err)
		}
	}
	blobtest.Open(t, c)
	count(1)
	later := c
	later.Now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	beside := later
	beside.Prefix += "x"
	blobtest.Open(t, beside)
	count(1)
	blobtest.Open(t, later)
	count(0)
}

// Replicas share a bucket.
func TestTwoStoresOnOneBucket(t *testing.T) {
	c := blobtest.S3(t)
	one, two := blobtest.Open(t, c), blobtest.Open(t, c)
	put(t, one, "a", "1")
	if get(t, two, "a") != "1" {
		t.Error("the second does not see what the first has put")
	}
	put(t, two, "a", "2")
	if get(t, one, "a") != "2" {
		t.Error("the first does not see what the second has put")
	}
	apart := c
	apart.Prefix += "0"
	if names := list(t, blobtest.Open(t, apart), ""); len(names) != 0 {
		t.Errorf("another prefix sees %v", names)
	}
}

func TestBucketIsRefusedWithWords(t *testing.T) {
	c := blobtest.S3(t)
	id, key := keys(t, c.CredentialsFile)
	wrong := func(id, key string) string {
		path := filepath.Join(t.TempDir(), "credentials.yaml")
		if err := os.WriteFile(path, []byte("access_key_id: "+id+"\nsecret_access_key: "+key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	host := newProxy(t, "127.0.0.2:0", address(c)) // the certificate does not have this address
	none := httptest.NewServer(nil)
	none.Close()
	for name, k := range map[string]struct {
		change func(c *blob.Config)
		code   codes.Code
		words  string
	}{
		"another key":     {func(c *blob.Config) { c.CredentialsFile = wrong(id, "x"+key) }, codes.FailedPrecondition, "the credentials are not right"},
		"another id":      {func(c *blob.Config) { c.CredentialsFile = wrong("nobody", key) }, codes.FailedPrecondition, "the credentials"},
		"no such bucket":  {func(c *blob.Config) { c.URL = strings.Replace(c.URL, "//redoubt?", "//nothing?", 1) }, codes.FailedPrecondition, "make it first"},
		"another region":  {func(c *blob.Config) { c.URL = strings.Replace(c.URL, "us-east-1", "eu-west-1", 1) }, codes.FailedPrecondition, "cannot be opened"},
		"another root":    {func(c *blob.Config) { c.RootFile = filepath.Join(filepath.Dir(c.RootFile), "other.pem") }, codes.FailedPrecondition, "blob_root_file"},
		"system's roots":  {func(c *blob.Config) { c.RootFile = "" }, codes.FailedPrecondition, "blob_root_file"},
		"another host":    {func(c *blob.Config) { c.URL = strings.Replace(c.URL, address(*c), host.addr, 1) }, codes.FailedPrecondition, "for another host"},
		"nobody there":    {func(c *blob.Config) { c.URL = strings.Replace(c.URL, address(*c), none.Listener.Addr().String(), 1) }, codes.Unavailable, "does not answer"},
		"no TLS at all":   {func(c *blob.Config) { c.URL = strings.Replace(c.URL, address(*c), plain.Listener.Addr().String(), 1) }, codes.Unavailable, ""},
		"http in the URL": {func(c *blob.Config) { c.URL = strings.Replace(c.URL, "https:", "http:", 1) }, codes.InvalidArgument, "http is refused"},
	} {
		t.Run(name, func(t *testing.T) {
			k2 := c
			k.change(&k2)
			begun := time.Now()
			_, err := blob.Open(t.Context(), k2)
			if fault.Code(err) != k.code || !strings.Contains(err.Error(), k.words) || strings.Contains(err.Error(), key) {
				t.Errorf("after %v: %v", time.Since(begun), err)
			}
			if time.Since(begun) > 10*time.Second {
				t.Errorf("only after %v", time.Since(begun))
			}
		})
	}
}

func keys(t *testing.T, file string) (id, key string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ": ")
		switch name {
		case "access_key_id":
			id = value
		case "secret_access_key":
			key = value
		}
	}
	return id, key
}
