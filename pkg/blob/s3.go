package blob

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// MaxS3 is the largest blob in a bucket, in bytes: 10,000 parts are what the protocol allows.
	MaxS3 = maxParts * partSize

	partSize = 8 << 20
	maxParts = 10_000

	// s3Attempts is how often one request is tried, s3Pause the longest wait between two tries.
	s3Attempts = 4
	s3Pause    = time.Second
	// s3Stall is how long a connection may stand still before it is cut.
	s3Stall = time.Minute
	// s3Dial bounds reaching the endpoint, and the handshake.
	s3Dial = 5 * time.Second
	// s3Abort bounds throwing an upload away after its caller has gone.
	s3Abort = 10 * time.Second

	staleAfter = 24 * time.Hour
)

// bucketName are names that are the same in a path and in a host's name.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// location is what a URL says.
type location struct {
	bucket, endpoint, host, region, prefix string
}

// CheckURL says whether s is s3://bucket with the parameters endpoint (https://host:port; without it AWS's own), region and prefix.
func CheckURL(s string) error {
	_, err := parseURL(s)
	return err
}

func parseURL(s string) (location, error) {
	bad := func(what string) (location, error) {
		return location{}, fault.InvalidArgument("the URL of the blobs %s; it is of the form s3://bucket?endpoint=https://host:port&region=us-east-1&prefix=name", what)
	}
	u, err := url.Parse(s)
	if err != nil {
		return bad("cannot be read")
	}
	values, err := url.ParseQuery(u.RawQuery)
	switch {
	case err != nil:
		return bad("has parameters that cannot be read")
	case u.Scheme != "s3":
		return bad("does not begin with s3://")
	case u.User != nil:
		return bad("holds credentials, which belong into their file")
	case u.Path != "" && u.Path != "/", u.Fragment != "", u.Opaque != "":
		return bad("has more than a bucket and parameters")
	case !bucketName.MatchString(u.Host):
		return bad("names no bucket of 3 to 63 characters of a-z, 0-9, '.' and '-'")
	}
	for key, v := range values {
		if key != "endpoint" && key != "region" && key != "prefix" {
			return bad("has a parameter that is not endpoint, region or prefix")
		}
		if len(v) != 1 || v[0] == "" {
			return bad("says " + key + " twice, or not what it is")
		}
	}
	l := location{bucket: u.Host, endpoint: values.Get("endpoint"), region: values.Get("region"), prefix: values.Get("prefix")}
	if l.region == "" {
		return bad("has no region")
	}
	if l.prefix != "" && CheckName(l.prefix) != nil {
		return bad("has a prefix that no blob's name may begin with")
	}
	l.host = "AWS"
	if l.endpoint != "" {
		e, err := url.Parse(l.endpoint)
		if err != nil || e.Scheme != "https" {
			return bad("has an endpoint that is not https://host:port; http is refused everywhere")
		}
		if e.Host == "" || e.User != nil || e.Path != "" && e.Path != "/" || e.RawQuery != "" || e.Fragment != "" {
			return bad("has an endpoint that is more or less than https://host:port")
		}
		l.endpoint, l.host = "https://"+e.Host, e.Host
	}
	return l, nil
}

// bucket is the driver behind a Store in S3: s3driver.go has the methods that gocloud wants.
type bucket struct {
	client *s3.Client
	name   string
	host   string // for messages to the operator
	prefix string // of every key; empty or ending with a slash
	http   *http.Transport
}

func openS3(ctx context.Context, c Config) (*bucket, error) {
	l, err := parseURL(c.URL)
	if err != nil {
		return nil, err
	}
	if c.Prefix != "" {
		if err := CheckName(c.Prefix); err != nil {
			return nil, err
		}
	}
	credentials := fileCredentials{c.CredentialsFile}
	if _, err := credentials.Retrieve(ctx); err != nil {
		return nil, err
	}
	transport, err := newTransport(c.RootFile)
	if err != nil {
		return nil, err
	}
	options := s3.Options{
		Region:                     l.region,
		Credentials:                aws.NewCredentialsCache(credentials),
		HTTPClient:                 &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		Retryer:                    newRetryer(),
		APIOptions:                 []func(*middleware.Stack) error{signBody},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired, // the signature has a better one
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired, // wholeness is pkg/envelope's, and TLS's on the way
	}
	if l.endpoint != "" {
		options.BaseEndpoint, options.UsePathStyle = aws.String(l.endpoint), true
	}
	b := &bucket{client: s3.New(options), name: l.bucket, host: l.host, http: transport}
	if p := path.Join(l.prefix, c.Prefix); p != "" {
		b.prefix = p + "/"
	}
	if _, err := b.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.name}); err != nil {
		_ = b.Close()
		return nil, b.openFault(ctx, err)
	}
	if err := b.sweep(ctx, c); err != nil {
		_ = b.Close()
		return nil, b.openFault(ctx, err)
	}
	return b, nil
}

// signBody puts the SHA-256 of what is sent under the signature, which the client leaves out over TLS. Without it a store can take what came
// before a connection broke for all of it, and show that: versitygw 1.8.0 does.
func signBody(stack *middleware.Stack) error {
	sign := &v4.ComputePayloadSHA256{}
	if _, ok := stack.Finalize.Get(sign.ID()); !ok {
		return errors.New("blob: the client of S3 no longer signs as it did")
	}
	_, err := stack.Finalize.Swap(sign.ID(), sign)
	return err
}

// newRetryer tries again what failed on the way or at the store. versitygw says that a name is in the way, too, when it has just removed the
// folder that a deletion left empty.
func newRetryer() aws.Retryer {
	standard := retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = s3Attempts, s3Pause })
	return retry.AddWithErrorCodes(standard, "ExistingObjectIsDirectory", "ObjectParentIsFile")
}

// sweep aborts uploads of nobody: those that are old. Younger ones may be another replica's, under way now.
func (b *bucket) sweep(ctx context.Context, c Config) error {
	now, age := time.Now, c.StaleAfter
	if c.Now != nil {
		now = c.Now
	}
	if age <= 0 {
		age = staleAfter
	}
	in := &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: aws.String(b.prefix)}
	for {
		page, err := b.client.ListMultipartUploads(ctx, in)
		if err != nil {
			return err
		}
		for _, u := range page.Uploads {
			// Some stores give more than was asked for.
			if u.Initiated == nil || u.Key == nil || !strings.HasPrefix(*u.Key, b.prefix) || now().Sub(*u.Initiated) < age {
				continue
			}
			_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: u.Key, UploadId: u.UploadId})
			var gone *types.NoSuchUpload
			if err != nil && !errors.As(err, &gone) && apiCode(err) != "NoSuchUpload" {
				return err
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil
		}
		in.KeyMarker, in.UploadIdMarker = page.NextKeyMarker, page.NextUploadIdMarker
	}
}

// newTransport speaks TLS to the endpoint itself: no proxy of the environment, no HTTP/2, whose one connection would carry all.
func newTransport(rootFile string) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if rootFile != "" {
		text, err := os.ReadFile(rootFile)
		if err != nil {
			return nil, fault.FailedPrecondition("the roots of the blobs' endpoint cannot be read from %s", rootFile)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fault.FailedPrecondition("%s holds no certificate in PEM; it is to hold the roots of the blobs' endpoint", rootFile)
		}
	}
	dialer := &net.Dialer{Timeout: s3Dial}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &moving{c}, nil
		},
		TLSClientConfig: config, TLSHandshakeTimeout: s3Dial, ExpectContinueTimeout: time.Second,
		MaxIdleConns: 32, MaxIdleConnsPerHost: 32, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}, nil
}

// moving is a connection that ends when nothing has moved on it for s3Stall. What is sent gives what is awaited new time.
type moving struct{ net.Conn }

func (m *moving) Read(p []byte) (int, error) {
	if err := m.SetReadDeadline(time.Now().Add(s3Stall)); err != nil {
		return 0, err
	}
	return m.Conn.Read(p)
}

func (m *moving) Write(p []byte) (int, error) {
	if err := m.SetDeadline(time.Now().Add(s3Stall)); err != nil {
		return 0, err
	}
	return m.Conn.Write(p)
}
