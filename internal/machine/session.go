package machine

import (
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
)

// State is where a session is in its life.
type State string

// The states of a session, in the order in which they are reached.
const (
	Created   State = "created"   // claimed; nothing has run yet
	Executing State = "executing" // Begin was called
	Completed State = "completed" // End, with success
	Failed    State = "failed"    // End, without; or the machine was lost
	Released  State = "released"  // the machine is gone
)

// Session is the record of one machine from its claim to its release. Begin, End
// and Release are the only way through its states; whoever implements a [Machine]
// keeps one, under a lock of its own.
type Session struct {
	ID        string        `json:"id"` // the machine's as well
	State     State         `json:"state"`
	Outcome   State         `json:"outcome,omitempty"` // Completed or Failed, once released
	Reason    string        `json:"reason,omitempty"`  // of a failure
	Driver    string        `json:"driver"`
	Image     string        `json:"image"`
	Labels    []string      `json:"labels,omitempty"`
	CPUs      int           `json:"cpus"`
	MemoryMiB int           `json:"memory_mib"`
	Warm      bool          `json:"warm"`   // it was ready before it was asked for
	Waited    time.Duration `json:"waited"` // for means, ns
	Ready     time.Duration `json:"ready"`  // from the claim to the machine, ns
	Leased    time.Time     `json:"leased"`
	Started   time.Time     `json:"started,omitzero"`
	Ended     time.Time     `json:"ended,omitzero"`
	Released  time.Time     `json:"released,omitzero"`
	DeleteBy  time.Time     `json:"delete_by"`
	Usage     guest.Usage   `json:"usage,omitzero"` // of the machine, when the work ended
}

// Begin records that work starts.
func (s *Session) Begin() {
	if s.State == Created {
		s.State, s.Started = Executing, time.Now()
	}
}

// End records how the work ended; the first call counts.
func (s *Session) End(ok bool, reason string, used guest.Usage) {
	if s.State != Created && s.State != Executing {
		return
	}
	s.Ended, s.State, s.Reason, s.Usage = time.Now(), Completed, reason, used
	if !ok {
		s.State = Failed
	}
}

// Release records that the machine is gone; lost is why, if nobody asked for it.
func (s *Session) Release(lost error) {
	if s.State == Released {
		return
	}
	s.Outcome = s.State
	if s.State == Created || s.State == Executing {
		s.Outcome = Failed
		if s.Reason == "" {
			s.Reason = "released before its work had ended"
		}
	}
	if lost != nil {
		s.Outcome, s.Reason = Failed, lost.Error()
	}
	s.State, s.Released = Released, time.Now()
}
