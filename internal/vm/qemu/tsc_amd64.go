package qemu

import "time"

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// tscKHz measures the frequency of the time stamp counter against the clock, in
// less than a tenth of a second. An emulated guest sees the host's counter; told its
// frequency (tsc_early_khz), its kernel need not find out by timing loops that
// go wrong, and hang the boot, when the host is busy. The guest's
// clock goes by the figure from then on: over 25 ms it is good to a few parts in
// a million. 0 means that the
// counter makes no sense here and the guest has to find out by itself.
func tscKHz() int64 {
	var best int64
	var least time.Duration
	for range 3 {
		t0 := time.Now()
		c0 := rdtsc()
		e0 := time.Since(t0)
		time.Sleep(25 * time.Millisecond)
		t1 := time.Now()
		c1 := rdtsc()
		e1 := time.Since(t1)
		// The reading with the least time between clock and counter is the one
		// that nothing interrupted.
		if e := e0 + e1; best == 0 || e < least {
			least = e
			if ns := t1.Sub(t0).Nanoseconds(); ns > 0 && c1 > c0 {
				best = int64(float64(c1-c0) * 1e6 / float64(ns))
			}
		}
	}
	if best < 100_000 || best > 20_000_000 { // 0.1–20 GHz
		return 0
	}
	return best
}
