// Package engine runs one planned job in a machine.
//
// It decides what GitHub's runner decides: the order of steps and which of them
// run, what they see (contexts, environment, files), how their output is read,
// what their results are and what becomes of the job when something fails, takes
// too long or is cancelled. It sees a [Guest], which runs commands and moves
// files, and never a machine; it sees a [ci.Sink], and never who watches.
//
// # One job, from start to end
//
//	Run
//	 ├─ prepare      learn the machine's PATH, make the directories, write event.json
//	 ├─ steps        for each step: env → condition → run | action | wait → results
//	 │    └─ output  bytes → lines → commands, matchers → mask → records
//	 ├─ post         what actions left to be done, the last one first
//	 └─ finish       outputs, conclusion, job.finished
//
// One goroutine, that of Run, walks the steps. A step marked background, and the
// members of parallel, have a goroutine each, which Run waits for; what steps
// share is in run, under its lock. A goroutine of its own watches for the end
// of the context and for the job's timeout.
//
// # Containers
//
// A job's container and services, Docker actions and docker:// steps are GitHub's, run
// by the container engine inside the machine. We speak to it from here, over a
// stream of the guest's ([docker.Client]), because each of its own program's starts
// costs half a second; only `docker create`, whose options users write, and `docker
// build` are that program.
//
//	Initialize containers   network → pull, create, start each → wait for health
//	step                    exec in the job's container, with paths translated (mapping)
//	Docker action           create → attach → start → wait → remove, beside it
//	Stop containers         logs of the services, removal
//
// Directories of the machine are in containers where GitHub has them (jobMounts,
// actionMounts). As there, variables whose value is such a directory are translated
// and expressions are not: github.workspace is the machine's path, GITHUB_WORKSPACE
// the container's. What a cancelled step started in a container is ended by its
// process's number in the machine, where all of them can be seen. Which job needs a
// machine with an engine that runs, [Containers] says. Node in a container is the
// machine's; where the container's C library is musl, the machine's glibc is there, too.
//
// # Three kinds of failure
//
// A step that fails is data: a conclusion with an exit code. What the author
// wrote and cannot be run is a diagnostic of [Check], before anything runs. And
// when the machine is lost, or does what no machine should, Run returns an error
// beside a Result whose conclusion is never green: the step that ran is failed
// and marked as infrastructure.
//
// # Cancellation
//
// When the context given to Run is done, or the job's timeout passes, the job is
// cancelled, not abandoned: running steps whose condition no longer holds get
// SIGINT and a grace; steps whose condition still holds (always(), cancelled())
// run, and so do post steps, until the job's cancel-timeout-minutes have passed.
//
// # Secrets
//
// Everything that leaves the package in a record has been through one
// [mask.Set]: lines, names, annotations, outputs and their names, reasons; and with
// that it is clean, so that nobody has to join what control characters kept apart.
// The set holds the job's secrets and its token, and what steps add.
//
// # Bounds
//
// What a step prints, leaves in its command files and sets for others is bounded,
// each and in sum, with GitHub's limits where there are some. Whoever goes beyond
// them fails with a sentence that says so: it is the author's failure, and never
// that the machine was lost.
package engine

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
)

// Guest is what the engine needs of a machine; *guest.Client is one.
type Guest interface {
	Exec(ctx context.Context, cmd guest.Cmd) (guest.Exit, error)
	ReadFile(ctx context.Context, path string, max int64) ([]byte, error)
	WriteFile(ctx context.Context, path string, data []byte, mode fs.FileMode, user string) error
	MkdirAll(ctx context.Context, path string, mode fs.FileMode, user string) error
	Stat(ctx context.Context, path string) (guest.FileInfo, error)
	TarIn(ctx context.Context, dir string, r io.Reader, user string) error
	TarOut(ctx context.Context, dir string, paths []string, w io.Writer) error
	Dial(ctx context.Context, socket string) (net.Conn, error)
}

// Layout says where things are in the guest: absolute paths.
type Layout struct {
	Workspace string // GITHUB_WORKSPACE
	Temp      string // RUNNER_TEMP
	Actions   string // where remote actions are unpacked
	ToolCache string // RUNNER_TOOL_CACHE
	Tools     string // node20, node24, bin
	Glibc     string // a C library for Node in containers that have another
}

// DefaultLayout is the layout of our images for a repository (owner/name).
func DefaultLayout(repository string) Layout {
	name := safeName(repository)
	return Layout{
		Workspace: guest.Home + "/work/" + name + "/" + name,
		Temp:      guest.Home + "/work/_temp",
		Actions:   guest.Home + "/work/_actions",
		ToolCache: guest.ToolCache,
		Tools:     guest.Tools,
		Glibc:     guest.Glibc,
	}
}

// Source hands out the run's own repository, for actions/checkout.
type Source interface {
	// Checkout writes to w a tar archive of a working tree with its .git
	// directory, and returns the commit that HEAD is at. An error that the
	// author caused (no such ref) is an *action.InputError.
	Checkout(ctx context.Context, req action.CheckoutRequest, w io.Writer) (sha string, err error)
}

// Runner is what the runner context says.
type Runner struct {
	Name        string // RUNNER_NAME; "" is "hearth"
	OS          string // "" is Linux
	Arch        string // X64, ARM64; "" is X64
	Environment string // "" is self-hosted
	Debug       bool   // print ::debug:: lines
}

// defaults fills in what is not given.
func (r *Runner) defaults() {
	r.Name = cmp.Or(r.Name, "hearth")
	r.OS = cmp.Or(r.OS, "Linux")
	r.Arch = cmp.Or(r.Arch, "X64")
	r.Environment = cmp.Or(r.Environment, "self-hosted")
}

// known is what of the runner context holds for every machine.
func (r *Runner) known() *expr.Map {
	m := expr.NewMap()
	for _, kv := range [][2]string{{"os", r.OS}, {"arch", r.Arch}, {"environment", r.Environment}} {
		m.Set(kv[0], expr.String(kv[1]))
	}
	return m
}

// Results is the artifact and cache service that JavaScript actions see. The
// zero value is none: actions that need it are refused by [Check].
type Results struct {
	URL   string // ACTIONS_RESULTS_URL
	Token string // ACTIONS_RUNTIME_TOKEN
	// CacheMode is ACTIONS_CACHE_MODE: read, write, write-only or none; "" says nothing.
	CacheMode string
}

// add gives an action, JavaScript or Docker, what it needs to speak to the service; a run step is not told.
func (r Results) add(to *vars) {
	if r.URL == "" {
		return
	}
	to.set("ACTIONS_RESULTS_URL", r.URL)
	to.set("ACTIONS_RUNTIME_TOKEN", r.Token)
	to.set("ACTIONS_RUNTIME_URL", r.URL)
	to.set("ACTIONS_CACHE_URL", r.URL)
	to.set("ACTIONS_CACHE_SERVICE_V2", "true")
	if r.CacheMode != "" {
		to.set("ACTIONS_CACHE_MODE", r.CacheMode)
	}
}

// IDToken is where steps ask for tokens that say which job they belong to. The zero
// value is nowhere.
type IDToken struct {
	URL   string // ACTIONS_ID_TOKEN_REQUEST_URL
	Token string // ACTIONS_ID_TOKEN_REQUEST_TOKEN
}

// add gives a step what it needs to ask.
func (t IDToken) add(to *vars) {
	if t.URL != "" {
		to.set("ACTIONS_ID_TOKEN_REQUEST_URL", t.URL)
		to.set("ACTIONS_ID_TOKEN_REQUEST_TOKEN", t.Token)
	}
}

// StepInfo names a step to hooks.
type StepInfo struct {
	Number  int // from 1
	ID      string
	Name    string // as shown, masked
	Command string // as written, masked
	Attempt int    // from 1
	// Place is where the step's last process stood; nil before there was one.
	Place *Place
	// State is the job as it is before the step; it is to be asked for in BeforeStep of
	// the first attempt. The error is an ErrNoState.
	State func() (*State, error)
}

// Place is where a process of a step stood, for a shell that is to stand there. It
// holds the job's secrets: it is for memory alone.
type Place struct {
	Dir     string
	Environ []string // NAME=value
}

// StepResult is how a step ended.
type StepResult struct {
	Number         int
	ID             string
	Name           string
	Outcome        ci.Conclusion // before continue-on-error
	Conclusion     ci.Conclusion // after it
	ExitCode       int
	Duration       time.Duration
	Reason         string // masked
	Infrastructure bool
	Attempts       int
	Assisted       bool // a person had it run again, or had the job begin in its midst
}

// Retry asks for a failed step to be run once more.
type Retry struct {
	Delay  time.Duration
	Reason string // for the log; never empty
	// Run is what a run step is to run instead of its script from now on; "" is as
	// it was.
	Run string
	// Asked says that a person wants it, whom [MaxAttempts] does not bind.
	Asked bool
}

// Hooks are called around each step that runs, in its goroutine. An error of
// theirs is something that we could not do: nothing of the job is run after it.
type Hooks interface {
	BeforeStep(ctx context.Context, s StepInfo) error
	// AfterStep may ask for another attempt of a step that failed by its own
	// doing; what the attempt before left in its command files is dropped.
	AfterStep(ctx context.Context, s StepInfo, r StepResult) (*Retry, error)
}

// TimeoutError, as the cause of the context given to [Run], ends the job as one
// whose own timeout has passed: for whoever keeps the time of it.
type TimeoutError struct{ Text string }

func (e *TimeoutError) Error() string { return e.Text }

// MaxAttempts bounds what [Hooks] can ask for.
const MaxAttempts = 5

// Job is one job to run: what was planned, and what it meets.
type Job struct {
	Run   *plan.Run
	Plan  *plan.Job
	Needs expr.Value // the needs context

	RunID   string            // ci.Run.ID, of every record
	Secrets map[string]string // as the job sees them
	Token   string            // github.token; "" is none
	Env     map[string]string // beneath the workflow's own env, as act's --env

	// From is where the job begins, in a Guest that is as it was then; nil is at its
	// beginning. The steps before are told of as skipped, those after as assisted.
	// Script is run in place of the first one's, which then is a run step, "" is its own;
	// with OneStep nothing is run after that, what actions left to be done neither.
	From    *State
	Script  string
	OneStep bool

	Guest  Guest
	Layout Layout // zero: DefaultLayout
	Runner Runner

	Source  Source           // nil: actions/checkout of the run's repository is refused
	Actions *action.Resolver // nil: remote actions are refused
	Results Results
	IDToken IDToken
	// Images is where the machine gets the container images from that the workflow
	// names; nil is from their registries.
	Images Images

	Emit   ci.Sink
	Hooks  Hooks            // nil is none
	OnStep func(number int) // says to which step what follows (connections) belongs; may be nil
	Log    *slog.Logger     // nil discards

	// Mask takes the secrets; nil makes a set of the job's own.
	Mask *mask.Set
	// Handed counts the outputs of all jobs of the run; nil counts those of this
	// job alone.
	Handed *plan.Allowance
}

// Result is how a job ended.
type Result struct {
	Conclusion ci.Conclusion
	Reason     string
	// Outputs of the job, none of which holds a secret.
	Outputs map[string]string
	Steps   []StepResult
	// Summary is what steps wrote to GITHUB_STEP_SUMMARY, masked, by step number.
	Summary map[int]string
	// EnvironmentURL is the evaluated environment.url, "" without one.
	EnvironmentURL string
}

var (
	errTimeout     = errors.New("the step's timeout has passed")
	errCancelled   = errors.New("the job was cancelled")
	errStepCancel  = errors.New("the step was cancelled by another")
	errUnmasked    = errors.New("the step asked for a mask that cannot be")
	errHardTimeout = errors.New("the time for cleaning up has passed")
)
