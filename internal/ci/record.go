package ci

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// RecordVersion is the version of the record schema: Record.V of every line.
// Fields are only ever added within a version.
const RecordVersion = 1

// RecordType names what a record tells.
type RecordType string

// The record types.
const (
	RunPlanned    RecordType = "run.planned"
	RunStarted    RecordType = "run.started"
	RunFinished   RecordType = "run.finished"
	JobQueued     RecordType = "job.queued"
	JobStarted    RecordType = "job.started"
	JobFinished   RecordType = "job.finished"
	StepStarted   RecordType = "step.started"
	StepFinished  RecordType = "step.finished"
	LogLine       RecordType = "log"
	Group         RecordType = "group"
	AnnotationRec RecordType = "annotation"
	PredictionRec RecordType = "prediction"
	DiagnosticRec RecordType = "diagnostic"
	MachineRec    RecordType = "machine"
	ConnectionRec RecordType = "connection"
	SummaryRec    RecordType = "summary"
)

// Record is one line of the event stream of a run: what NDJSON output prints,
// what the store keeps, what pages and terminals follow. Text in it has been
// masked already. Only the fields of its type are set.
type Record struct {
	V    int        `json:"v"`
	Seq  int64      `json:"seq"` // from 1, without gaps within a run
	Time time.Time  `json:"time"`
	Type RecordType `json:"type"`
	Run  string     `json:"run"` // run id; "" in a diagnostic before there is a run

	// run.planned, run.started, run.finished
	Workflow string `json:"workflow,omitempty"`
	File     string `json:"file,omitempty"` // also diagnostic and annotation
	Event    string `json:"event,omitempty"`
	SHA      string `json:"sha,omitempty"`
	Ref      string `json:"ref,omitempty"`
	Jobs     int    `json:"jobs,omitempty"` // run.planned, run.started: how many; run.finished: of which Ran did
	Ran      int    `json:"ran,omitempty"`  // run.finished of a run of which a job is [NotRun]

	// Everything about a job
	Job    string   `json:"job,omitempty"`     // id in the workflow
	JobKey string   `json:"job_key,omitempty"` // unique in the run: tells matrix cells apart
	Name   string   `json:"name,omitempty"`    // as GitHub shows it, matrix included
	Matrix any      `json:"matrix,omitempty"`
	Needs  []string `json:"needs,omitempty"`

	// Everything about a step
	Step    int    `json:"step,omitempty"` // from 1
	StepID  string `json:"step_id,omitempty"`
	Command string `json:"command,omitempty"` // step.started: script or action as written

	// *.finished
	Conclusion Conclusion `json:"conclusion,omitempty"`
	Outcome    Conclusion `json:"outcome,omitempty"`
	ExitCode   *int       `json:"exit_code,omitempty"`
	DurationMS *int64     `json:"duration_ms,omitempty"`
	Reason     string     `json:"reason,omitempty"` // why skipped, cancelled, timed out, lost; why a connection was refused
	// Infrastructure: it did not end by its own doing; we could not run it.
	Infrastructure bool `json:"infrastructure,omitempty"`

	// log, group, summary
	Stream string `json:"stream,omitempty"` // stdout, stderr, system; group: start, end
	Text   string `json:"text,omitempty"`   // one line, no line end; valid UTF-8; summary: Markdown, at most MaxSummary bytes

	// annotation, diagnostic; of a job that is [NotRun] the place and the hint
	Level   string `json:"level,omitempty"` // notice, warning, error; diagnostic: error, advice; log: of what the runner says is wrong
	Title   string `json:"title,omitempty"`
	Line    int    `json:"line,omitempty"`
	EndLine int    `json:"end_line,omitempty"`
	Column  int    `json:"column,omitempty"`
	EndCol  int    `json:"end_column,omitempty"`
	Message string `json:"message,omitempty"`
	Hint    string `json:"hint,omitempty"`

	// prediction
	Prediction  *Prediction  `json:"prediction,omitempty"`
	Explanation *Explanation `json:"explanation,omitempty"`

	// machine
	Machine *MachineEvent `json:"machine,omitempty"`

	// connection
	Connection *ConnectionEvent `json:"connection,omitempty"`

	// job.finished of a job with outputs; step.finished with outputs. Masked. Where
	// a job's end is recorded they are whole; what is kept of the record and shown
	// is [Brief].
	Outputs map[string]string `json:"outputs,omitempty"`
	// EnvironmentURL, of job.finished, is where a job with an environment deployed to.
	EnvironmentURL string `json:"environment_url,omitempty"`
	// Attempt of a retried step or job, from 1; 0 and 1 are the first.
	Attempt int `json:"attempt,omitempty"`
	// Assisted, of step.finished and job.finished: a person had the step run again,
	// with the machine or the script changed, perhaps. What came of it says nothing of
	// the step as it is.
	Assisted bool `json:"assisted,omitempty"`
	// Sent is the number under which a worker on another host sent the record, so that
	// it is kept once: 2^40 times the attempt at the job, and the record's place in it.
	Sent int64 `json:"sent,omitempty"`
}

// SentBy is the Sent of the nth record, from 1, of an attempt at a job.
func SentBy(attempt int, n int64) int64 { return int64(attempt)<<40 + n }

// Prediction is what the learner expects before something starts.
type Prediction struct {
	PFail      float64  `json:"p_fail"`
	Low        float64  `json:"low"` // 90 % interval
	High       float64  `json:"high"`
	ExpectedMS int64    `json:"expected_ms,omitempty"` // 0: nothing known
	Seen       int64    `json:"seen"`                  // how many finished executions it rests on
	Reasons    []string `json:"reasons,omitempty"`     // the strongest first, at most three
}

// MaxExplained and MaxExplainedLine bound the lines of an Explanation: how many, and
// bytes of one.
const (
	MaxExplained     = 12
	MaxExplainedLine = 300
)

// Explanation is what the learner has to say after a failure.
type Explanation struct {
	Signature string `json:"signature"` // id
	Text      string `json:"text"`      // the masked template of the strongest line
	// Lines are those of the output that say what went wrong, as they were printed, at
	// most MaxExplained of them.
	Lines   []string `json:"lines,omitempty"`
	Seen    int      `json:"seen"`               // times before this one
	FixedBy string   `json:"fixed_by,omitempty"` // commit that ended it last time
	Fix     string   `json:"fix,omitempty"`      // its subject, or what changed
	Flaky   bool     `json:"flaky,omitempty"`
	Lesson  string   `json:"lesson,omitempty"`
	Advice  string   `json:"advice,omitempty"` // what was or would be done, with its reason
	// Suspects are what may be to blame, of what has changed since Since, the commit at
	// which the step passed last: the most likely first, at most MaxSuspects.
	Since    string    `json:"since,omitempty"`
	Suspects []Suspect `json:"suspects,omitempty"`
	// Tests are the tests that failed, at most MaxExplainedTests of them.
	Tests []TestNote `json:"tests,omitempty"`
}

// MaxSuspects bounds the suspects of an Explanation.
const MaxSuspects = 5

// Suspect is what may be to blame for a failure.
type Suspect struct {
	Kind string  `json:"kind"` // commit, image, action, lock file, host, chance
	Name string  `json:"name"`
	P    float64 `json:"p"` // how likely
	Why  string  `json:"why,omitempty"`
}

// MaxExplainedTests bounds the tests of an Explanation.
const MaxExplainedTests = 10

// TestNote is a test that failed, with what is known of it.
type TestNote struct {
	Name    string `json:"name"`
	Message string `json:"message,omitempty"` // the first line of what it said
	Flaky   bool   `json:"flaky,omitempty"`
	Note    string `json:"note,omitempty"` // how often it failed before, and what speaks for flaky
}

// MachineEvent tells of a job's microVM.
type MachineEvent struct {
	ID     string `json:"id"`
	Action string `json:"action"` // created, restored, snapshotted, closed
	Driver string `json:"driver,omitempty"`
	Image  string `json:"image,omitempty"`
	Host   string `json:"host,omitempty"` // on which it runs
	TookMS int64  `json:"took_ms,omitempty"`
}

// ConnectionEvent tells of one connection that a step opened, or was refused.
type ConnectionEvent struct {
	Host     string `json:"host,omitempty"` // the name asked for, where known
	IP       string `json:"ip,omitempty"`
	Port     int    `json:"port,omitempty"`
	Proto    string `json:"proto"` // tcp, udp, dns
	Refused  bool   `json:"refused,omitempty"`
	BytesOut int64  `json:"bytes_out,omitempty"`
	BytesIn  int64  `json:"bytes_in,omitempty"`
}

// Bounds on the outputs that a record shows.
const (
	maxShownName   = 200
	maxShownOutput = 64 << 10
	maxShownSum    = 256 << 10
)

// Brief returns outputs as a record shows them: the first by name, shortened. What
// is handed to other jobs is never taken from there.
func Brief(outputs map[string]string) map[string]string {
	if len(outputs) == 0 {
		return nil
	}
	cut := func(s string, n int) string {
		if len(s) <= n {
			return s
		}
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	out, room := map[string]string{}, maxShownSum
	for _, k := range slices.Sorted(maps.Keys(outputs)) {
		name, value := cut(k, maxShownName), cut(outputs[k], maxShownOutput)
		if room -= len(name) + len(value); room < 0 {
			break
		}
		out[name] = value
	}
	return out
}

// Sink takes the records of a run. Emit fills in V, Seq and Time where they are
// zero, may block (that is back-pressure), and is safe for concurrent use.
type Sink interface {
	Emit(Record)
}

// SinkFunc makes a function a [Sink].
type SinkFunc func(Record)

// Emit calls f.
func (f SinkFunc) Emit(r Record) { f(r) }
