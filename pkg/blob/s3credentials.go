package blob

import (
	"bytes"
	"context"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// credentialsLife is how long credentials are used before their file is read again.
const credentialsLife = time.Minute

// fileCredentials gives what a file says, and nothing of the environment.
type fileCredentials struct{ path string }

// Retrieve implements aws.CredentialsProvider.
func (f fileCredentials) Retrieve(context.Context) (aws.Credentials, error) {
	id, key, session, err := readCredentials(f.path)
	if err != nil {
		return aws.Credentials{}, err
	}
	return aws.Credentials{
		AccessKeyID: id, SecretAccessKey: key.RevealString(), SessionToken: session.RevealString(),
		Source: "file", CanExpire: true, Expires: time.Now().Add(credentialsLife),
	}, nil
}

// readCredentials reads a file that only its owner may read. Errors name the file and nothing of what it holds.
func readCredentials(path string) (id string, key, session redact.Secret, err error) {
	refuse := func(format string) (string, redact.Secret, redact.Secret, error) {
		return "", redact.Secret{}, redact.Secret{}, fault.FailedPrecondition(format, path)
	}
	if path == "" {
		return "", key, session, fault.InvalidArgument("the file with the credentials for the blobs' bucket is missing in the configuration")
	}
	file, err := os.Open(path)
	if err != nil {
		return refuse("the credentials for the blobs' bucket cannot be read from %s")
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > 64<<10 {
		return refuse("%s is not a file with the credentials for the blobs' bucket")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return refuse("%s can be read by others: chmod 600 it")
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(file); err != nil {
		return refuse("the credentials for the blobs' bucket cannot be read from %s")
	}
	var c struct {
		ID      string `yaml:"access_key_id"`
		Key     string `yaml:"secret_access_key"`
		Session string `yaml:"session_token"`
	}
	d := yaml.NewDecoder(&text)
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil || c.ID == "" || c.Key == "" { // the decoder's text can hold the key
		return refuse("%s does not hold access_key_id and secret_access_key, each on a line of its own, and at most session_token besides")
	}
	return c.ID, redact.FromString(c.Key), redact.FromString(c.Session), nil
}
