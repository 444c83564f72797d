//go:build redoubt_break_encryption

package envelope

import (
	"bytes"
	"io"

	"github.com/tink-crypto/tink-go/v2/tink"
)

// clearText keeps the framing and encrypts nothing: every search for plaintext in stored files must find it with this.
type clearText struct{}

func newRecordAEAD([]byte) (tink.AEAD, error)          { return clearText{}, nil }
func newStreamAEAD([]byte) (tink.StreamingAEAD, error) { return clearText{}, nil }

func (clearText) Encrypt(plain, _ []byte) ([]byte, error)  { return bytes.Clone(plain), nil }
func (clearText) Decrypt(stored, _ []byte) ([]byte, error) { return bytes.Clone(stored), nil }

func (clearText) NewDecryptingReader(r io.Reader, _ []byte) (io.Reader, error) { return r, nil }
func (clearText) NewEncryptingWriter(w io.Writer, _ []byte) (io.WriteCloser, error) {
	return unclosed{w}, nil
}

type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }
