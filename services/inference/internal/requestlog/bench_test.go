package requestlog_test

import (
	"testing"
)

func BenchmarkAppend(b *testing.B) {
	l := newSpool(b, nil)
	log := l.open()
	b.ReportAllocs()
	for b.Loop() {
		log.Append(record(1))
	}
	b.StopTimer()
	if n := log.Dropped(); n != 0 {
		b.Fatalf("%d were dropped", n)
	}
}

func BenchmarkAppendParallel(b *testing.B) {
	l := newSpool(b, nil)
	log := l.open()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			log.Append(record(1))
		}
	})
	b.StopTimer()
	if n := log.Dropped(); n != 0 {
		b.Fatalf("%d were dropped", n)
	}
}
