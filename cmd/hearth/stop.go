package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

// stopper passes signals on. The first one, while a run is driven, is what GitHub's
// cancel button is: what runs is cancelled, and jobs whose condition still holds
// (always(), cancelled()) start. The next one, and any at other times, cancels
// everything in order, with everything cleaned up; one more is for people who cannot
// wait. Machines die with us either way.
type stopper struct {
	say    io.Writer
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	run    chan string // of the run that is driven, nil without one
	asked  error       // why it was asked to end
	ending bool        // everything is cancelled
}

// signal takes a signal, and reports whether there is nothing left but to go.
func (s *stopper) signal(sig os.Signal) (leave bool) {
	why := fmt.Errorf("%w by %v", errInterrupted, sig)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ending:
		return true
	case s.run != nil && s.asked == nil && sig != syscall.SIGHUP:
		s.asked = why
		s.run <- why.Error()
		fmt.Fprintln(s.say, "hearth: cancelling; jobs that run in any case (always(), cancelled()) still do: once more ends them, too")
	default:
		s.ending = true
		s.cancel(why)
	}
	return false
}

// drive is told when a run begins to be driven. It gives back what the run hears of a
// signal, and what to call at the run's end: no other begins after a signal. A nil
// stopper hears of nothing.
func (s *stopper) drive() (soft <-chan string, done func()) {
	if s == nil {
		return nil, func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	run := make(chan string, 1)
	s.run = run
	return run, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.run = nil; s.asked != nil {
			s.cancel(s.asked)
		}
	}
}
