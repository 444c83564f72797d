package blob_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestCheckURL(t *testing.T) {
	for _, url := range []string{
		"s3://bucket?region=eu-west-1", "s3://bucket?endpoint=https://s3.example:9000&region=x", "s3://my-bucket.1?endpoint=https%3A%2F%2F[::1]:9000%2F&region=x&prefix=a/b",
	} {
		if err := blob.CheckURL(url); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{
		"", "bucket", "file:///x", "http://bucket?region=x", "s3://", "s3://bu?region=x", "s3://Bucket?region=x", "s3://bucket", "s3://bucket/path?region=x", "s3://bucket?region=x#f",
		"s3://key:canary@bucket?region=x", "s3://bucket?region=x&secret=canary", "s3://bucket?region=x&region=y", "s3://bucket?region=",
		"s3://bucket?region=x&endpoint=http://127.0.0.1:9000", "s3://bucket?region=x&endpoint=127.0.0.1:9000", "s3://bucket?region=x&endpoint=https://",
		"s3://bucket?region=x&endpoint=https://h/p", "s3://bucket?region=x&endpoint=https://u:canary@h", "s3://bucket?region=x&endpoint=https://h%3Fcanary",
		"s3://bucket?region=x&prefix=../up", "s3://bucket?region=x&prefix=/a", "s3://bucket?region=x&use_path_style=true", "s3://bucket?region=x;y",
	} {
		if err := blob.CheckURL(url); !fault.Is(err, codes.InvalidArgument) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// Credentials come from a file that only its owner reads, and from nowhere else; none stands in an error.
func TestCredentialsFile(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "env")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "env")
	write := func(content string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), "credentials.yaml")
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := "access_key_id: id\nsecret_access_key: canary\n"
	for name, path := range map[string]string{
		"none": "", "not there": filepath.Join(t.TempDir(), "x"), "a folder": t.TempDir(), "for the group": write(good, 0o640), "for all": write(good, 0o604),
		"empty": write("", 0o600), "no key": write("access_key_id: canary\n", 0o600), "more": write(good+"canary: canary\n", 0o600), "no YAML": write("canary", 0o600),
	} {
		_, err := blob.Open(t.Context(), blob.Config{URL: "s3://bucket?region=x&endpoint=https://127.0.0.1:1", CredentialsFile: path})
		if c := fault.Code(err); c != codes.FailedPrecondition && c != codes.InvalidArgument || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
		if path != "" && !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the file is not named: %v", name, err)
		}
	}
	// With a good one the endpoint is dialled, where nobody is.
	_, err := blob.Open(t.Context(), blob.Config{URL: "s3://bucket?region=x&endpoint=https://127.0.0.1:1", CredentialsFile: write(good, 0o600)})
	if !fault.Is(err, codes.Unavailable) || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
	for name, root := range map[string]string{"no root": write("x", 0o600), "not there": filepath.Join(t.TempDir(), "x")} {
		_, err := blob.Open(t.Context(), blob.Config{URL: "s3://bucket?region=x", CredentialsFile: write(good, 0o600), RootFile: root})
		if !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), root) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := blob.Open(t.Context(), blob.Config{URL: "s3://bucket?region=x", Dir: t.TempDir()}); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("both: %v", err)
	}
}
