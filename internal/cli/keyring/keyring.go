// Package keyring is the operating system's own keyring: the secret service of a Linux desktop, the keychain of macOS, the credential
// manager of Windows.
//
// It owns the question whether there is one, and a bound on how long it may take.
//
// Trust boundary: whatever the user's session lets speak to the keyring can read what he keeps there, as it can read his files.
//
// Invariants: nothing is started to find out: where no bus of a session is there already, there is no keyring. A call ends with its
// context, also while the keyring waits for somebody to unlock it.
//
// Failure: every error comes as it came; the caller falls back to a file.
package keyring

import (
	"context"
	"errors"

	"github.com/zalando/go-keyring"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// OS is the keyring of the system.
type OS struct{}

// Open gives the system's keyring, and false where there is none.
func Open(env func(string) string) (OS, bool) { return OS{}, present(env) }

// Get implements settings.Keyring.
func (OS) Get(ctx context.Context, service, account string) (redact.Secret, bool, error) {
	v, err := bounded(ctx, func() (string, error) { return keyring.Get(service, account) })
	if errors.Is(err, keyring.ErrNotFound) {
		return redact.Secret{}, false, nil
	}
	return redact.FromString(v), err == nil, err
}

// Set implements settings.Keyring.
func (OS) Set(ctx context.Context, service, account string, value redact.Secret) error {
	_, err := bounded(ctx, func() (string, error) { return "", keyring.Set(service, account, value.RevealString()) })
	return err
}

// Delete implements settings.Keyring.
func (OS) Delete(ctx context.Context, service, account string) error {
	_, err := bounded(ctx, func() (string, error) { return "", keyring.Delete(service, account) })
	if errors.Is(err, keyring.ErrNotFound) {
		return nil
	}
	return err
}

// bounded leaves a call that takes longer than its context to itself: the process is a command, and ends soon.
func bounded(ctx context.Context, call func() (string, error)) (string, error) {
	type answer struct {
		value string
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		v, err := call()
		got <- answer{v, err}
	}()
	select {
	case a := <-got:
		return a.value, a.err
	case <-ctx.Done():
		return "", errors.New("it did not answer in time")
	}
}
