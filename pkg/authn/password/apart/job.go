package apart

import (
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/crypto/argon2"
)

// Bounds of a Job. A worker refuses what is beyond them.
const (
	MaxPassword = 1024
	MaxSalt     = 64
	MaxKey      = 64
	MaxPasses   = 16
	MaxMemory   = 1 << 20 // KiB
	MaxLanes    = 16
)

// Cost is what one hash takes.
type Cost struct {
	// Memory in KiB, at least 8 a lane.
	Memory, Passes uint32
	Lanes          uint8
}

// OK says whether the cost is within the bounds.
func (c Cost) OK() bool {
	return c.Passes >= 1 && c.Passes <= MaxPasses && c.Lanes >= 1 && c.Lanes <= MaxLanes && c.Memory >= 8*uint32(c.Lanes) && c.Memory <= MaxMemory
}

// Job is one hash to compute.
type Job struct {
	Cost
	// KeyBytes is the length of the result.
	KeyBytes       uint32
	Password, Salt []byte
}

func (j Job) ok() bool {
	return j.OK() && j.KeyBytes >= 1 && j.KeyBytes <= MaxKey && len(j.Password) <= MaxPassword && len(j.Salt) <= MaxSalt
}

// Compute computes the hash in this process.
func (j Job) Compute() []byte {
	return argon2.IDKey(j.Password, j.Salt, j.Passes, j.Memory, j.Lanes, j.KeyBytes)
}

var errJob = errors.New("apart: the job is out of bounds")

// A job on the socket: six numbers of 32 bits (memory, passes, lanes, length of the key, of the salt, of the password), the salt, the password.
const jobHeader = 6 * 4

// appendTo gives the job as it is sent. The caller clears it.
func (j Job) appendTo(b []byte) []byte {
	for _, n := range []uint32{j.Memory, j.Passes, uint32(j.Lanes), j.KeyBytes, uint32(len(j.Salt)), uint32(len(j.Password))} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return append(append(b, j.Salt...), j.Password...)
}

// readJob reads a job into buf, which has room for the longest.
func readJob(r io.Reader, buf *[jobHeader + MaxSalt + MaxPassword]byte) (Job, error) {
	if _, err := io.ReadFull(r, buf[:jobHeader]); err != nil {
		return Job{}, err
	}
	n := func(i int) uint32 { return binary.BigEndian.Uint32(buf[4*i:]) }
	if n(2) > MaxLanes || n(4) > MaxSalt || n(5) > MaxPassword {
		return Job{}, errJob
	}
	j := Job{Cost: Cost{Memory: n(0), Passes: n(1), Lanes: uint8(n(2))}, KeyBytes: n(3)}
	rest := buf[jobHeader : jobHeader+n(4)+n(5)]
	if _, err := io.ReadFull(r, rest); err != nil {
		return Job{}, err
	}
	j.Salt, j.Password = rest[:n(4)], rest[n(4):]
	if !j.ok() {
		return Job{}, errJob
	}
	return j, nil
}

// What a worker says: a byte for the kind, one for the length, and so many bytes.
const (
	saidReady   = 'r' // it is confined; nothing follows
	saidProblem = 'p' // it ends; why
	saidKey     = 'k' // the result
)

func say(w io.Writer, kind byte, text []byte) error {
	text = text[:min(len(text), 255)]
	_, err := w.Write(append([]byte{kind, byte(len(text))}, text...))
	return err
}

func hear(r io.Reader) (kind byte, text []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	text = make([]byte, head[1])
	_, err = io.ReadFull(r, text)
	return head[0], text, err
}
