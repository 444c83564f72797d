// Package blobtest runs a suite on every kind of blob store: on a folder of the test always, and in a part of a bucket, which is removed after
// it, when REDOUBT_TEST_S3 holds a bucket's URL (tools/with-s3.sh). Imported by tests only.
package blobtest

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/blob"
)

// The variables with a bucket's URL, the file with its credentials, and the root to believe.
const (
	Env            = "REDOUBT_TEST_S3"
	EnvCredentials = "REDOUBT_TEST_S3_CREDENTIALS" //nolint:gosec // a variable's name
	EnvRoot        = "REDOUBT_TEST_S3_ROOT"
	// EnvServer is the versitygw program, for tests that start servers of their own.
	EnvServer = "REDOUBT_TEST_S3_SERVER"
)

// Run runs fn as the subtests "folder" and "s3", each with the configuration of an empty store. The second is skipped where there is no bucket.
func Run(t *testing.T, fn func(t *testing.T, c blob.Config)) {
	t.Helper()
	t.Run("folder", func(t *testing.T) { fn(t, blob.Config{Dir: filepath.Join(t.TempDir(), "blob")}) })
	t.Run("s3", func(t *testing.T) { fn(t, S3(t)) })
}

// S3 is the configuration of an empty part of the bucket. It skips the test where there is none.
func S3(t testing.TB) blob.Config {
	t.Helper()
	if os.Getenv(Env) == "" {
		t.Skip(Env + " is not set: make test-s3")
	}
	c := blob.Config{URL: os.Getenv(Env), CredentialsFile: os.Getenv(EnvCredentials), RootFile: os.Getenv(EnvRoot), Prefix: "test-" + strings.ToLower(rand.Text())}
	t.Cleanup(func() {
		s, err := blob.Open(context.Background(), blob.Config{URL: c.URL, CredentialsFile: c.CredentialsFile, RootFile: c.RootFile})
		if err == nil {
			err = s.DeletePrefix(context.Background(), c.Prefix)
			_ = s.Close()
		}
		if err != nil {
			t.Errorf("remove the part of the bucket: %v", err)
		}
	})
	return c
}

// Open opens what c says and closes it after the test.
func Open(t testing.TB, c blob.Config) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.Context(), c)
	if err != nil {
		t.Fatalf("open the blob store: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the blob store: %v", err)
		}
	})
	return s
}
