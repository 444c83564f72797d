//go:build !linux

package agent

import "errors"

func terminate(int) error { return errors.New("agent: commands run on Linux only") }
