// Package history has the commands that run in machines outside of workflows teach
// as steps do: those of the HTTP API, of `hearth vm`, of the library's sessions. There
// is one way for all of them:
//
//	Keeper.Open ─▶ Machine.Begin ─▶ Execution: Expected, Tee … End ─▶ explanation
//
// Before a command runs it is predicted; after it has ended it is learned from,
// with its exit, its duration, and which commands ran before it in its machine; a
// failure is explained: seen before? what ended it? What ended it are the commands
// between it and the next time that it passed in the same machine.
//
// Nothing here is ever in the way: what cannot be learned is logged and forgotten,
// and a nil [Machine] or [Execution], a [Keeper] without a learner, and code of more
// than 64 KiB learn nothing. There are no runs, no records and no logs of these
// commands: what is kept is what follows.
//
// # What is kept
//
// Counters, an edge from one command to the next, and of a failure its signature:
// one masked line, and a sketch of hashes. A command is kept as words (words.go):
// without comments, the bodies of here-documents, leading assignments and long
// quoted texts; of a program in another language than the shell's only what it
// imports, and a hash. Of output the last 64 KiB of each stream are looked at in
// memory once a command has failed, and not kept. Whose memory it is the door says:
// over the API the machine's owner, whom nobody else's questions reach but an
// administrator's.
//
// # Secrets
//
// Nobody names the secrets of these commands, so before anything is kept or told
// they are looked for, and what is found becomes ***, in every encoding that package
// mask knows, in the command and in the output alike:
//
//   - what was declared ([Command.Secrets]), whatever it looks like;
//   - environment variables whose names are a credential's (mask.GuessEnv);
//   - in code, arguments and other variables: what stands at a secret's place (behind
//     a credential's name or flag, in an Authorization header, in a URL before its @),
//     has a token maker's form, is a private key's block, or looks drawn by chance
//     (mask.Guess);
//   - in output, the same again (mask.Redact), for what a command fetched itself.
//
// What cannot be masked, since there is too much of it, is not learned from. A
// secret that looks like a word, stands nowhere and is declared nowhere gets through
// this net: declare it.
package history

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/mask"
)

// Limits.
const (
	maxText     = 64 << 10 // of code, arguments and environment that are learned from, bytes
	keepOutput  = 64 << 10 // of each stream of one command
	maxFailing  = 64       // commands of a machine of which it is known that they failed
	learningEnd = 10 * time.Second
)

// Keeper is where commands are learned from. A nil one learns nothing.
type Keeper struct {
	Learn *learn.Learner
	Log   *slog.Logger
}

// Open begins the history of a machine; nil if nothing is learned.
func (k *Keeper) Open(machine string) *Machine {
	if k == nil || !k.Learn.On() {
		return nil
	}
	return &Machine{keeper: k, id: machine, failing: map[string]failing{}}
}

// Machine is the history of one machine. It is safe for concurrent use.
type Machine struct {
	keeper *Keeper
	id     string

	mu      sync.Mutex
	before  []string // as learn.Remember keeps them
	ended   []event  // the last ones
	seq     int
	failing map[string]failing
}

// event is something that happened in the machine: a command ended, or files came.
type event struct {
	seq  int
	what string
}

// failing is a command that has failed and not passed since.
type failing struct {
	hash    [32]byte // of the command as it was given
	seq     int
	attempt int
}

// Command is what is run.
type Command struct {
	Repository string // whose memory it is
	Door       string // by which it came: api, vm, library
	// Code is a program in a language: sh for any shell, python3, node. Without code
	// it is Argv that is run.
	Language, Code string
	Argv           []string
	Env            []string // NAME=value, the caller's own
	Secrets        []string // values that the caller declared
}

// Expectation is what is expected of a command.
type Expectation struct {
	Command string `json:"command"` // as it is told apart from others
	ci.Prediction
}

// Execution is a command that runs.
type Execution struct {
	Expected Expectation

	machine *Machine
	run     learn.CommandRun
	hash    [32]byte
	secrets *mask.Set
	outputs [2]tail
}

// Begin says what is expected of a command that is about to run; nil if nothing is
// learned of it. End must be called once it has ended.
func (m *Machine) Begin(ctx context.Context, c Command) *Execution {
	if m == nil {
		return nil
	}
	size := len(c.Code)
	for _, s := range slices.Concat(c.Argv, c.Env) {
		size += len(s)
	}
	if size > maxText {
		return nil
	}
	x := &Execution{machine: m, hash: c.hash()}
	var err error
	if x.secrets, err = c.secrets(); err != nil {
		m.keeper.log().Debug("a command is not learned from", "machine", m.id, "err", err)
		return nil
	}
	words, job := c.words(x.secrets)
	if words == "" {
		return nil
	}
	x.run = learn.CommandRun{ID: ci.NewID(), Repository: c.Repository, Workflow: c.Door, Job: job, Machine: m.id, Command: words, Attempt: 1, Began: time.Now()}
	m.stand(x)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), learningEnd)
	defer cancel()
	p, err := m.keeper.Learn.ExpectCommand(ctx, x.run)
	if err != nil {
		m.keeper.log().Error("no prediction", "machine", m.id, "err", err)
		return nil
	}
	x.Expected = Expectation{words, p}
	x.run.Began = time.Now() // what it takes to expect something is not the command's
	return x
}

// stand says where in the machine's history an execution is.
func (m *Machine) stand(x *Execution) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x.run.Before = slices.Clone(m.before)
	f, ok := m.failing[x.run.Command]
	if !ok {
		return
	}
	for _, e := range m.ended {
		if e.seq > f.seq && e.what != x.run.Command {
			x.run.Since = append(x.run.Since, e.what)
		}
	}
	switch {
	case len(x.run.Since) > 0:
	case f.hash == x.hash:
		x.run.Attempt = f.attempt + 1
	default:
		x.run.Since = []string{"a change of the command itself"}
	}
}

// Changed notes that something other than a command changed the machine: files came,
// it was put back to a snapshot.
func (m *Machine) Changed(what string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.happened(what)
}

func (m *Machine) happened(what string) {
	m.seq++
	m.ended = append(m.ended, event{m.seq, what})
	m.ended = m.ended[max(len(m.ended)-8, 0):]
}

// Tee returns writers that pass on what they get, as the command's output.
func (x *Execution) Tee(stdout, stderr io.Writer) (io.Writer, io.Writer) {
	if x == nil {
		return stdout, stderr
	}
	return x.outputs[0].tee(stdout), x.outputs[1].tee(stderr)
}

// End learns from how the command ended, and explains a failure; nil if there is
// nothing to say. One that was cancelled says nothing about itself.
func (x *Execution) End(ctx context.Context, end guest.Exit) *ci.Explanation {
	if x == nil || end.Cancelled {
		return nil
	}
	at := x.run.Began.Add(end.Duration)
	if end.Duration <= 0 {
		at = time.Now()
	}
	e := learn.CommandEnd{Conclusion: ci.Success, ExitCode: end.Code, At: at}
	switch {
	case end.TimedOut:
		e.Conclusion = ci.TimedOut
	case !end.OK():
		e.Conclusion = ci.Failure
	}
	if e.Conclusion != ci.Success {
		e.Lines = x.lines()
	}
	m := x.machine
	m.mu.Lock()
	m.before = learn.Remember(m.before, x.run.Command)
	m.happened(x.run.Command)
	if e.Conclusion == ci.Success {
		delete(m.failing, x.run.Command)
	} else {
		if len(m.failing) >= maxFailing {
			for k := range m.failing {
				delete(m.failing, k)
				break
			}
		}
		m.failing[x.run.Command] = failing{x.hash, m.seq, x.run.Attempt}
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), learningEnd)
	defer cancel()
	explained, err := m.keeper.Learn.CommandEnded(ctx, x.run, x.Expected.Prediction, e)
	if err != nil {
		m.keeper.log().Error("nothing was learned", "machine", m.id, "err", err)
		return nil
	}
	return explained
}

func (k *Keeper) log() *slog.Logger {
	if k.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return k.Log
}

// lines are the command's output, standard error last, without secrets.
func (x *Execution) lines() []string {
	var out []string
	for i := range x.outputs {
		if text := x.clean(x.outputs[i].text()); text != "" {
			out = append(out, strings.Split(strings.TrimSuffix(text, "\n"), "\n")...)
		}
	}
	return out
}

func (x *Execution) clean(text string) string { return mask.Redact(x.secrets.String(text)) }

// secrets are the values that must not be seen of the command.
func (c *Command) secrets() (*mask.Set, error) {
	found := slices.Clone(c.Secrets)
	for _, e := range c.Env {
		name, value, _ := strings.Cut(e, "=")
		found = append(found, mask.GuessEnv(name, value)...)
	}
	found = append(found, mask.Guess(c.Code)...)
	found = append(found, mask.Guess(Quote(c.Argv))...)
	for _, a := range c.Argv { // also as they are, without a shell's quotes
		found = append(found, mask.Guess(a)...)
	}
	set, err := mask.NewSet(found...)
	if err != nil {
		return nil, fmt.Errorf("its secrets: %w", err)
	}
	return set, nil
}

// hash tells the command as it was given from others.
func (c *Command) hash() (sum [32]byte) {
	h := sha256.New()
	for _, s := range slices.Concat([]string{c.Language, c.Code}, c.Argv, []string{""}, c.Env) {
		fmt.Fprintf(h, "%d %s", len(s), s)
	}
	h.Sum(sum[:0])
	return sum
}

// tail keeps the end of a stream, from the beginning of a line on.
type tail struct {
	mu  sync.Mutex
	to  io.Writer
	b   []byte
	cut bool
}

func (t *tail) tee(to io.Writer) io.Writer {
	t.to = to
	return t
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	n := len(p)
	keep := p
	if len(keep) > keepOutput {
		keep, t.cut = keep[len(keep)-keepOutput:], true
	}
	if t.b = append(t.b, keep...); len(t.b) > 2*keepOutput {
		t.b, t.cut = append(t.b[:0], t.b[len(t.b)-keepOutput:]...), true
	}
	t.mu.Unlock()
	if t.to == nil {
		return n, nil
	}
	return t.to.Write(p)
}

// text is what was kept. The first line of what was cut is not whole: a secret might
// not be either.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.b
	if len(b) > keepOutput {
		b, t.cut = b[len(b)-keepOutput:], true
	}
	if !t.cut {
		return string(b)
	}
	_, rest, _ := strings.Cut(string(b), "\n")
	return rest
}
