package envelope

import (
	"bytes"
	"errors"
	"io"
)

// SealStream encrypts what is written and passes it on to w, in segments of 64 KiB. Close ends the stream and must be called, and its error
// heeded, for it to open again; it does not close w. Content that is not complete must not be closed: without Close it never opens.
func (k *Key) SealStream(aad AAD, w io.Writer) (io.WriteCloser, error) {
	if err := k.usable(aad); err != nil {
		return nil, err
	}
	header := k.header(formatStream)
	if _, err := w.Write(header); err != nil {
		return nil, err
	}
	sealing, err := k.stream.NewEncryptingWriter(w, bind(aad, header))
	if err != nil {
		return nil, err // w's: writing the rest of the header
	}
	return &sealWriter{key: k, w: sealing}, nil
}

type sealWriter struct {
	key *Key
	w   io.WriteCloser
	err error // the first one; the stream is never ended after it
}

func (s *sealWriter) Write(p []byte) (int, error) {
	if s.err == nil {
		s.err = s.key.alive()
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.w.Write(p)
	s.err = err
	return n, err
}

func (s *sealWriter) Close() error {
	if s.err == nil {
		s.err = s.key.alive()
	}
	if s.err != nil {
		return s.err
	}
	if err := s.w.Close(); err != nil {
		s.err = err
		return err
	}
	s.err = errEnded
	return nil
}

var errEnded = errors.New("envelope: the stream has been closed")

// OpenStream decrypts what SealStream wrote for the same AAD. Each segment is authenticated before any of it is returned, and the end is: a
// reader that has not seen io.EOF does not know that the content is complete. What is damaged, cut short or from elsewhere is DATA_DAMAGED
// from Read, for good; errors of r come back as they are.
func (k *Key) OpenStream(aad AAD, r io.Reader) (io.Reader, error) {
	if err := k.usable(aad); err != nil {
		return nil, err
	}
	source := &sourceReader{r: r}
	header, found := k.header(formatStream), make([]byte, headerSize)
	if _, err := io.ReadFull(source, found); err != nil || !bytes.Equal(found, header) {
		return nil, source.blame()
	}
	opening, err := k.stream.NewDecryptingReader(source, bind(aad, header))
	if err != nil {
		return nil, source.blame()
	}
	return &openReader{key: k, r: opening, source: source}, nil
}

type openReader struct {
	key    *Key
	r      io.Reader
	source *sourceReader
	err    error // kept: the reader below says io.EOF after a segment that did not open
}

func (o *openReader) Read(p []byte) (int, error) {
	if o.err == nil {
		o.err = o.key.alive()
	}
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.r.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF) && o.source.err == nil:
		o.err = io.EOF
	default:
		n, o.err = 0, o.source.blame()
	}
	return n, o.err
}

// sourceReader remembers whether the stored bytes could not be read, which is something else than that they do not open.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *sourceReader) blame() error {
	if s.err != nil {
		return s.err
	}
	return errDamaged()
}
