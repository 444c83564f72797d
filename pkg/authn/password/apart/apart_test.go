package apart

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func small(pw string) Job {
	return Job{Cost: Cost{Memory: 64, Passes: 1, Lanes: 1}, KeyBytes: 32, Password: []byte(pw), Salt: []byte("0123456789abcdef")}
}

// RFC 9106, section 5.3 has a secret and associated data, which no password here has: the vector below is that of the reference's own test.c
// (argon2id, t=2, m=2^16, p=1, "password", "somesalt").
func TestVector(t *testing.T) {
	j := Job{Cost: Cost{Memory: 1 << 16, Passes: 2, Lanes: 1}, KeyBytes: 32, Password: []byte("password"), Salt: []byte("somesalt")}
	if got := hex.EncodeToString(j.Compute()); got != "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7" {
		t.Error(got)
	}
}

func TestJobOnTheWire(t *testing.T) {
	var buf [jobHeader + MaxSalt + MaxPassword]byte
	good := small("correct horse")
	good.Lanes, good.Memory = 3, 96
	got, err := readJob(bytes.NewReader(good.appendTo(nil)), &buf)
	if err != nil || got.Cost != good.Cost || got.KeyBytes != good.KeyBytes || !bytes.Equal(got.Password, good.Password) || !bytes.Equal(got.Salt, good.Salt) {
		t.Fatalf("%+v, %v", got, err)
	}
	longest := small("")
	longest.Password, longest.Salt = bytes.Repeat([]byte("p"), MaxPassword), bytes.Repeat([]byte("s"), MaxSalt)
	if got, err := readJob(bytes.NewReader(longest.appendTo(nil)), &buf); err != nil || !bytes.Equal(got.Password, longest.Password) {
		t.Errorf("the longest: %v", err)
	}
	for name, change := range map[string]func(*Job){
		"memory": func(j *Job) { j.Memory = MaxMemory + 1 }, "passes": func(j *Job) { j.Passes = MaxPasses + 1 }, "no passes": func(j *Job) { j.Passes = 0 },
		"lanes": func(j *Job) { j.Lanes = MaxLanes + 1 }, "no lanes": func(j *Job) { j.Lanes = 0 }, "key": func(j *Job) { j.KeyBytes = MaxKey + 1 },
		"no key": func(j *Job) { j.KeyBytes = 0 }, "password": func(j *Job) { j.Password = make([]byte, MaxPassword+1) }, "salt": func(j *Job) { j.Salt = make([]byte, MaxSalt+1) },
	} {
		j := small("pw")
		change(&j)
		if _, err := readJob(bytes.NewReader(j.appendTo(nil)), &buf); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	whole := good.appendTo(nil)
	for n := range whole {
		if _, err := readJob(bytes.NewReader(whole[:n]), &buf); err == nil {
			t.Errorf("%d bytes of %d: taken", n, len(whole))
		}
	}
}
