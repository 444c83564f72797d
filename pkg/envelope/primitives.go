//go:build !redoubt_break_encryption

package envelope

import (
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/xaesgcm"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/secretdata"
	"github.com/tink-crypto/tink-go/v2/streamingaead"
	"github.com/tink-crypto/tink-go/v2/streamingaead/aesgcmhkdf"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// saltSize is that of C2SP's XAES-256-GCM, in bytes: with the 12 bytes of the nonce it makes 192 random bits.
const saltSize = 12

func newRecordAEAD(raw []byte) (tink.AEAD, error) {
	parameters, err := xaesgcm.NewParameters(xaesgcm.VariantNoPrefix, saltSize)
	if err != nil {
		return nil, err
	}
	k, err := xaesgcm.NewKey(secretdata.NewBytesFromData(raw, insecuresecretdataaccess.Token{}), 0, parameters)
	if err != nil {
		return nil, err
	}
	handle, err := single(k)
	if err != nil {
		return nil, err
	}
	return aead.New(handle)
}

func newStreamAEAD(raw []byte) (tink.StreamingAEAD, error) {
	parameters, err := aesgcmhkdf.NewParameters(aesgcmhkdf.ParametersOpts{
		KeySizeInBytes:        subkeySize,
		DerivedKeySizeInBytes: 32,
		HKDFHashType:          aesgcmhkdf.SHA256,
		SegmentSizeInBytes:    segmentSize,
	})
	if err != nil {
		return nil, err
	}
	k, err := aesgcmhkdf.NewKey(parameters, secretdata.NewBytesFromData(raw, insecuresecretdataaccess.Token{}))
	if err != nil {
		return nil, err
	}
	handle, err := single(k)
	if err != nil {
		return nil, err
	}
	return streamingaead.New(handle)
}
