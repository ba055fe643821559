package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// errTimer is what a machine ends with whose kernel has no usable timer.
var errTimer = errors.New("the kernel's timer does not work: the host was too busy while the kernel measured it; start the machine again")

// checkTimer makes sure that time-outs will fire, and in time.
//
// An emulated machine has one timer, the local APIC's, whose frequency the
// kernel measures at boot against the time stamp counter, within 100 ms. If the host gives the machine no time
// just then, the result is wrong. Seen on a busy host, once in some tens of
// boots: "APIC frequency too slow, disabling apic timer", and the kernel goes on with no timer at
// all. Everything that is driven by devices works, so the machine boots; whatever
// waits for time waits for ever. If the result is too high instead, every wait takes too long by that
// factor, in this machine and in all its clones. Neither can be mended from here, but a
// machine that ends at once can be started again.
func (m *machine) checkTimer() error {
	devices, err := filepath.Glob("/sys/devices/system/clockevents/clockevent[0-9]*/current_device")
	if err != nil {
		return err
	}
	for _, d := range devices {
		b, err := os.ReadFile(d)
		if err != nil {
			return err
		}
		if name := strings.TrimSpace(string(b)); name == "" || strings.Contains(name, "dummy") {
			return fmt.Errorf("%w (%s: %q)", errTimer, d, name)
		}
	}
	// A busy host makes single waits long, never all of them. The wait is long
	// against what an interrupt takes to get here: in an emulated machine's own
	// machine that is more than a millisecond.
	const wait, runs = 10 * time.Millisecond, 20
	shortest := time.Hour
	for range runs {
		start := time.Now()
		ts := syscall.NsecToTimespec(wait.Nanoseconds())
		if err := syscall.Nanosleep(&ts, nil); err != nil { // by a signal of the Go runtime
			continue
		}
		if shortest = min(shortest, time.Since(start)); shortest < wait*3/2 {
			return nil
		}
	}
	return fmt.Errorf("%w (a wait of %v took %v)", errTimer, wait, shortest)
}
