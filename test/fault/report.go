//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// report prints what was tried and what came of it.
func (s *suite) report() error {
	n := s.book.Counts()
	fmt.Printf("\nfault: seed %d\n%-22s %6s %6s %6s %10s %10s %10s %8s\n", s.o.Seed, "case", "tried", "failed", "late", "p50", "p90", "max", "goal")
	tried, failed, late := 0, 0, 0
	for _, c := range s.cases {
		if !c.used() {
			continue
		}
		tried, failed, late = tried+c.tried, failed+c.failed, late+c.late
		goal := "-"
		if c.goal > 0 {
			goal = c.goal.String()
		}
		fmt.Printf("%-22s %6d %6d %6d %10s %10s %10s %8s\n", c.name, c.tried, c.failed, c.late, at(c.took, 50), at(c.took, 90), at(c.took, 100), goal)
	}
	fmt.Printf("fault: %d rounds tried, %d failed, %d later than their goal\n", tried, failed, late)
	fmt.Printf("fault: %d calls: %d acknowledged, %d refused, %d of unknown fate; %d objects and %d events compared: %d violations\n",
		n.Calls, n.Acknowledged, n.Refused, n.Unknown, n.Objects, n.Events, len(s.violations))
	for _, k := range slices.Sorted(maps.Keys(n.Reasons)) {
		fmt.Printf("fault:   not acknowledged: %5d %s\n", n.Reasons[k], k)
	}
	for _, k := range slices.Sorted(maps.Keys(s.ended)) {
		fmt.Printf("fault:   runs: %5d %s\n", s.ended[k], k)
	}
	for _, p := range s.mesh.Processes {
		if n, how := p.Fallen(); n > 0 {
			fmt.Printf("fault:   %s ended by itself %d times and was started again, last: %v\n", p.Name, n, how)
		}
	}
	for _, v := range s.violations {
		fmt.Println("fault: VIOLATION:", v)
	}
	switch {
	case len(s.violations) > 0:
		return fmt.Errorf("%d violations", len(s.violations))
	case failed > 0:
		return errors.New("not everything came back")
	case late > 0:
		return errors.New("not everything answered again in time")
	}
	return nil
}

// at is a percentile.
func at(took []time.Duration, percent int) string {
	if len(took) == 0 {
		return "-"
	}
	sorted := slices.Sorted(slices.Values(took))
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)].Round(time.Millisecond).String()
}
