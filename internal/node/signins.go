package node

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-ml/redoubt/pkg/authn/password"
)

// instances says how many instances of this service there are.
func (n *Node) instances() int { return int(n.count.Load()) }

// countInstances keeps that number as etcd knows it. While etcd does not answer, it stays.
func (n *Node) countInstances(m *mesh) {
	n.background("the number of instances", func(ctx context.Context) error {
		for all := range m.registry.Watch(ctx) {
			n.count.Store(max(1, int64(len(all[n.name]))))
		}
		return nil
	})
}

// countPasswords shows what becomes of password hashes.
func (n *Node) countPasswords() error {
	of := func(f func(password.Stats) int64) func() float64 {
		return func() float64 { return float64(f(n.identity.Passwords())) }
	}
	return errors.Join(
		n.metrics.Registerer().Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "redoubt_password_hashes_pending", Help: "Password hashes that are computed or wait for it.",
		}, of(func(s password.Stats) int64 { return s.Pending }))),
		n.metrics.Registerer().Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "redoubt_password_workers_started_total", Help: "Processes started to compute password hashes.",
		}, of(func(s password.Stats) int64 { return s.Started }))),
		n.metrics.Registerer().Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "redoubt_password_worker_failures_total", Help: "Password hashes that failed because their process could not start, died or was silent.",
		}, of(func(s password.Stats) int64 { return s.Failed }))),
	)
}
