package blob

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// apiCode is the word that a store gives for an error, or empty.
func apiCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func statusOf(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

// s3Fault is the fault of an error of the client, in words for a caller of ours; nil for nil, and a context's own error where that has ended.
func s3Fault(ctx context.Context, err error) error {
	var known *fault.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &known): // the credentials' file
		return refused(err)
	}
	if f := codeFault(apiCode(err), err); f != nil {
		return f
	}
	switch status := statusOf(err); {
	case status == http.StatusNotFound:
		return notThere(err)
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return refused(err)
	case status == http.StatusInsufficientStorage:
		return storeFull(err)
	case status == http.StatusConflict:
		return inTheWay(err)
	case status == 0, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		return storeAway(err)
	}
	return storeBroken(err)
}

// codeFault is the fault of a store's word for an error, or nil where the word is not known. Beside Amazon's there are those of Ceph, MinIO and versitygw.
func codeFault(code string, err error) error {
	switch code {
	case "NoSuchKey", "NotFound":
		return notThere(err)
	case "NoSuchBucket":
		return bucketGone(err)
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "InsufficientCapacity":
		return storeFull(err)
	case "ExistingObjectIsDirectory", "ObjectParentIsFile", "XMinioParentIsObject", "XMinioObjectExistsAsDirectory":
		return inTheWay(err)
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AllAccessDisabled", "AccountProblem", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed":
		return refused(err)
	}
	return nil
}

func wrapped(err error, code codes.Code, reason faultv1.Reason, message string) error {
	return fault.Wrap(err, code, reason, "%s", message)
}

func notThere(err error) error {
	return wrapped(err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND, "there is no such content")
}

func storeFull(err error) error {
	return wrapped(err, codes.ResourceExhausted, faultv1.Reason_STORAGE_FULL, "the blob store is full; nothing was stored; repeat the call when there is space")
}

func inTheWay(err error) error {
	return wrapped(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "the name is that of a folder, or lies below other content")
}

func refused(err error) error {
	return wrapped(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the blob store refuses this service; its operator must look at the credentials and what they may do")
}

func bucketGone(err error) error {
	return wrapped(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the blob store has lost its bucket; its operator must bring it back")
}

func storeAway(err error) error {
	return wrapped(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the blob store does not answer; repeat the call")
}

func replaced(err error) error {
	return wrapped(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the content was replaced or deleted while it was read; repeat the call")
}

func storeBroken(err error) error {
	return wrapped(err, codes.Internal, faultv1.Reason_INTERNAL_FAULT, "the blob store gives answers that are not understood")
}

// openFault says to the operator what keeps the bucket from being opened.
func (b *bucket) openFault(ctx context.Context, err error) error {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var certificate *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	code, status := apiCode(err), statusOf(err)
	say := func(c codes.Code, reason faultv1.Reason, why string) error {
		return fault.Wrap(err, c, reason, "the bucket %s at %s cannot be opened: %s", b.name, b.host, why)
	}
	wrong := func(why string) error {
		return say(codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, why)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &authority):
		return wrong("its certificate is not from a root that is believed; name the right one in blob_root_file")
	case errors.As(err, &host):
		return wrong("its certificate is for another host; use the name that the certificate has")
	case errors.As(err, &invalid), errors.As(err, &certificate):
		return wrong("its certificate is not valid now, or not for a server")
	case errors.As(err, &plain):
		return wrong("it does not speak TLS")
	case code == "RequestTimeTooSkewed":
		return wrong("its clock and this machine's differ too much")
	case code == "NoSuchBucket", status == http.StatusNotFound:
		return wrong("it is not there, so make it first; or the store does not know the credentials")
	case status == http.StatusMovedPermanently, status == http.StatusBadRequest, status == http.StatusTemporaryRedirect:
		return wrong("it is of another region, or the endpoint is another kind of server")
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return wrong("the credentials are not right, or may not list the bucket and its uploads")
	}
	return say(codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "it does not answer")
}
