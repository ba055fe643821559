// Package ci holds the words every other package speaks: runs, jobs and steps,
// what state they are in, how they ended, and the records that tell about it.
//
// It is the bottom of the module: it imports nothing of ours and nothing from
// outside the standard library. Values are plain data; state transitions are
// pure functions (state.go). Two rules hold everywhere:
//
//   - A Conclusion is written once. A terminal status never changes again.
//   - What could not be run is not a failure of the user's and never a success:
//     infrastructure faults travel as Go errors and end as [Failure] with
//     Record.Infrastructure set, so that no front end can show them green.
//
// Record (record.go) is one line of the event stream. The terminal, the web
// pages, the NDJSON output and the learner all read this one schema.
package ci

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"strings"
	"sync"
	"time"
)

// Status says where a run, a job or a step is in its life.
type Status string

// The statuses, in the order in which they can be reached.
const (
	Queued     Status = "queued"
	InProgress Status = "in_progress"
	Completed  Status = "completed"
)

// Conclusion says how something that is [Completed] ended. The empty
// conclusion means that it has not ended.
type Conclusion string

// The conclusions, in GitHub's spelling, and one of our own.
const (
	Success   Conclusion = "success"
	Failure   Conclusion = "failure"
	Cancelled Conclusion = "cancelled"
	Skipped   Conclusion = "skipped"
	TimedOut  Conclusion = "timed_out"
	// Neutral is how a run ends of which all that ran succeeded, and a job is NotRun.
	Neutral Conclusion = "neutral"
	// NotRun is how a job ends that asks for what there is not here: another system, a
	// label that nobody has, a feature. It neither failed nor succeeded; GitHub
	// would have run it.
	NotRun Conclusion = "not_run"
)

// Valid reports whether c is one of the conclusions.
func (c Conclusion) Valid() bool {
	switch c {
	case Success, Failure, Cancelled, Skipped, TimedOut, Neutral, NotRun:
		return true
	}
	return false
}

// Green reports whether c lets dependants run and leaves a run successful.
func (c Conclusion) Green() bool { return c == Success || c == Skipped || c == Neutral }

// Result is the word that workflows see in needs.<job>.result and
// steps.<id>.conclusion: a step's timeout is a failure there, and what did not run here
// was skipped. That a job's timeout is a cancellation there is package plan's.
func (c Conclusion) Result() string {
	switch c {
	case TimedOut:
		return string(Failure)
	case NotRun:
		return string(Skipped)
	case Neutral:
		return string(Success)
	}
	return string(c)
}

// Bounds on the outputs of jobs, in bytes: GitHub's, but for the middle one, which
// is one there as well.
const (
	MaxOutput     = 1 << 20  // of one output
	MaxJobOutputs = 8 << 20  // of all outputs of one job
	MaxRunOutputs = 50 << 20 // of all jobs of a run
)

// MaxSummary is the most that a step's summary may hold, in bytes: GitHub's.
const MaxSummary = 1 << 20

// Event is something that happened on a forge, or that a user asked for, as it
// is stored: one delivery of a webhook, or one `hearth run`.
type Event struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`               // X-GitHub-Event: push, pull_request, …
	Action     string    `json:"action,omitempty"`   // activity type: opened, synchronize, …
	Delivery   string    `json:"delivery,omitempty"` // X-GitHub-Delivery; unique where present
	Repository string    `json:"repository"`         // owner/name
	Payload    []byte    `json:"-"`                  // raw JSON body
	Received   time.Time `json:"received"`
}

// RewindEvent is the Event of a run that began in the midst of another's job, where
// its machine was kept: a person's doing, from which nothing is learned.
const RewindEvent = "rewind"

// Run is one workflow executed for one event.
type Run struct {
	ID         string     `json:"id"`
	Number     int64      `json:"number"` // counts up per repository and workflow, from 1
	Attempt    int        `json:"attempt"`
	EventID    string     `json:"event_id"`
	Event      string     `json:"event"`
	Repository string     `json:"repository"`
	Workflow   string     `json:"workflow"` // its name, or its path where it has none
	File       string     `json:"file"`     // path in the repository
	Name       string     `json:"name"`     // run-name, evaluated
	Ref        string     `json:"ref"`      // refs/heads/main
	SHA        string     `json:"sha"`
	Actor      string     `json:"actor,omitempty"`
	Status     Status     `json:"status"`
	Conclusion Conclusion `json:"conclusion,omitempty"`
	// Infrastructure says that the run, or a job of it, could not be run.
	Infrastructure bool      `json:"infrastructure,omitempty"`
	Created        time.Time `json:"created"`
	Started        time.Time `json:"started,omitzero"`
	Finished       time.Time `json:"finished,omitzero"`
}

// Job is one planned job of a run: one cell of a matrix where there is one.
type Job struct {
	ID         string     `json:"id"`
	RunID      string     `json:"run_id"`
	Key        string     `json:"key"`  // unique in the run: job id, and the matrix cell
	Job        string     `json:"job"`  // id in the workflow file
	Name       string     `json:"name"` // as GitHub shows it
	Attempt    int        `json:"attempt"`
	Labels     []string   `json:"labels,omitempty"`
	Status     Status     `json:"status"`
	Conclusion Conclusion `json:"conclusion,omitempty"`
	Reason     string     `json:"reason,omitempty"` // why skipped, lost, cancelled
	Created    time.Time  `json:"created"`
	Started    time.Time  `json:"started,omitzero"`
	Finished   time.Time  `json:"finished,omitzero"`
}

// Step is one step of a job.
type Step struct {
	JobID      string     `json:"job_id"`
	Number     int        `json:"number"` // from 1
	StepID     string     `json:"step_id"`
	Name       string     `json:"name"`
	Command    string     `json:"command,omitempty"` // the script or action, unexpanded: never holds a secret's value
	Status     Status     `json:"status"`
	Outcome    Conclusion `json:"outcome,omitempty"`    // before continue-on-error
	Conclusion Conclusion `json:"conclusion,omitempty"` // after it
	ExitCode   int        `json:"exit_code"`
	Started    time.Time  `json:"started,omitzero"`
	Finished   time.Time  `json:"finished,omitzero"`
}

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// last is the newest id that NewID gave out.
var last struct {
	sync.Mutex
	id [16]byte
}

// NewID returns a new identifier: 26 characters of [0-9a-z], the first ten of
// which are the time in ms. Ids sort by age; those that one process makes do so
// within a millisecond, too: the jobs of a run keep the order in which they were
// written down.
func NewID() string {
	id := newID(time.Now())
	last.Lock()
	defer last.Unlock()
	if bytes.Compare(id[:], last.id[:]) <= 0 {
		// The next one is a random distance on, so that it cannot be guessed.
		var step [8]byte
		rand.Read(step[:])
		tail := binary.BigEndian.Uint64(last.id[8:])
		next := tail + binary.BigEndian.Uint64(step[:])>>20 + 1
		id = last.id
		binary.BigEndian.PutUint64(id[8:], next)
		if next < tail {
			binary.BigEndian.PutUint64(id[:8], binary.BigEndian.Uint64(id[:8])+1)
		}
	}
	last.id = id
	return idEncoding.EncodeToString(id[:])
}

// NewIDAt is an id of a given moment.
func NewIDAt(t time.Time) string {
	id := newID(t)
	return idEncoding.EncodeToString(id[:])
}

func newID(t time.Time) (id [16]byte) {
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli()))
	copy(id[:6], ms[2:])
	rand.Read(id[6:])
	return id
}

// ValidID reports whether s has the form of an identifier, and so is safe as a
// path element.
func ValidID(s string) bool {
	return len(s) == 26 && strings.Trim(s, "0123456789abcdefghjkmnpqrstvwxyz") == ""
}
