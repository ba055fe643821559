// Package hold keeps a machine between commands. `hearth vm create` leaves a
// process behind, the holder, that owns one lease of a pool and answers on a Unix
// socket, readable by its owner only; `hearth vm exec` and its siblings talk to it.
//
//	hearth vm exec ──HTTP over vms/ID.sock──▶ holder ──lease──▶ machine ──▶ agent
//
// The holder is all there is: no daemon, no registry. The sockets in the directory
// are the list of machines. A socket that nobody answers on is what a killed
// holder left; its machine has died with it, and List removes the socket.
//
// The holder ends when its machine is removed (DELETE /), when the machine dies or
// its time is over, and on a signal; each time the machine is released first.
//
// # A job's machine
//
// A job that has failed may leave its machine for a while to whoever wants to look
// (`hearth run --pause-on-failure`, `hearth debug`). Its runner serves the same
// socket for that time (Server.Paused): commands can be run where the failed step
// stood, files looked at and changed. The machine stays the runner's: what ends is
// the pause, by an [Answer], by DELETE, or when its time is over.
//
// # Protocol
//
// Both ends are the same program on the same machine, so it promises nothing to
// others. Plain HTTP: GET / (Status), DELETE /, POST /answer, POST /snapshots, POST /rollback, GET
// /stat, PUT /tar (an archive in), GET /tar (an archive out; how it ended is in a
// trailer, since a cut archive would look like a short one), POST /exec.
//
// An exec turns its connection into frames both ways (stream.go). Input is sent
// against credit, so the holder reads the connection at all times: signals overtake
// input that nobody takes, and a client that is gone is noticed, and its command
// ended. An exec without a final frame has no result.
package hold

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/session"
	"github.com/hearth-ci/hearth/internal/vm"
)

// Status describes a held machine.
type Status struct {
	ID        string    `json:"id"`
	State     string    `json:"state"` // a machine.State; "dead" if its holder is gone
	Driver    string    `json:"driver,omitempty"`
	Image     string    `json:"image,omitempty"`
	CPUs      int       `json:"cpus,omitempty"`
	MemoryMiB int       `json:"memory_mib,omitempty"`
	Network   string    `json:"network,omitempty"`
	Holder    int       `json:"holder,omitempty"` // process id
	Running   int       `json:"running"`          // commands
	Snapshots []string  `json:"snapshots,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	DeleteBy  time.Time `json:"delete_by,omitzero"`
	Said      string    `json:"said,omitempty"` // a dead holder's last words
	Paused    *Paused   `json:"paused,omitempty"`
}

// Paused says which step of which job left its machine to be looked at.
type Paused struct {
	Run      string    `json:"run"`
	Job      string    `json:"job"` // its key
	Step     int       `json:"step"`
	Name     string    `json:"name"`              // of the step, masked
	Command  string    `json:"command,omitempty"` // as written, masked
	ExitCode int       `json:"exit_code"`
	Reason   string    `json:"reason,omitempty"` // masked
	Attempt  int       `json:"attempt"`
	Rewinds  bool      `json:"rewinds"` // the machine can be put back to before the step
	Edits    bool      `json:"edits"`   // the step is a script: another one can run in its place
	Until    time.Time `json:"until"`

	// Where the step stood: for commands that want to stand there. The environment
	// holds the job's secrets and goes to the machine only.
	Dir     string   `json:"dir,omitempty"`
	Environ []string `json:"-"`
}

// Answer says how a paused job goes on. The zero Answer has it go on as a job does
// whose step has failed.
type Answer struct {
	Retry  bool   `json:"retry"`            // the step once more
	Rewind bool   `json:"rewind,omitempty"` // after the machine was put back to before it
	Run    string `json:"run,omitempty"`    // with this script in place of its own
}

// Dead is the state of a machine whose holder is gone.
const Dead = "dead"

// MaxScript is how long a script in a step's place may be, in bytes as JSON.
const MaxScript = 1 << 20

const (
	suffix       = ".sock"
	releaseLimit = time.Minute
)

// Socket is where the holder of a machine answers.
func Socket(dir, id string) string { return filepath.Join(dir, id+suffix) }

// Server is the holder's side.
type Server struct {
	VM      machine.Machine
	Network string // the policy, for Status
	Log     *slog.Logger
	// Paused says that the machine is a job's, which keeps it: Serve releases
	// nothing, and Answered says how it ended.
	Paused *Paused
	// Keeper, if set, is asked once, when the first command comes that is to be learned
	// from; nil says that none is.
	Keeper func() *history.Keeper

	answered Answer
	history  func() *history.Machine
	learning atomic.Bool // a command was to be learned from
	session  *session.Session
	answers  chan Answer // one
	remove   chan struct{}
	released chan struct{}
	err      error
}

// Serve answers on Socket(dir, id) until the machine is removed, lost or out of
// time, or ctx is done, and releases it. ready is called when the socket answers.
// The error says what could not be released, or why the machine is lost.
func (s *Server) Serve(ctx context.Context, dir string, ready func() error) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.remove, s.released = make(chan struct{}, 1), make(chan struct{})
	s.answers = make(chan Answer, 1)
	path := Socket(dir, s.VM.ID())
	m := s.VM
	if s.Paused != nil {
		m = borrowed{m}
	}
	s.session = session.Open(m, nil)
	s.history = sync.OnceValue(func() *history.Machine {
		if s.Keeper == nil {
			return nil
		}
		return s.Keeper().Open(s.VM.ID())
	})
	release := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
		defer cancel()
		lost := s.session.Err()
		return errors.Join(lost, s.session.Release(ctx, "it was removed"))
	}
	l, err := vm.ListenUnix(path)
	if err != nil {
		return errors.Join(fmt.Errorf("hold: %w", err), release())
	}
	defer os.Remove(path)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return errors.Join(fmt.Errorf("hold: %w", err), release())
	}
	// Hijacked connections are not the HTTP server's any more; they end with this.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var work sync.WaitGroup // execs
	h := &http.Server{Handler: s.routes(ctx, &work), BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)}
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	if err = ready(); err == nil {
		select {
		case <-ctx.Done():
		case <-s.remove:
		case s.answered = <-s.answers:
		case <-s.VM.Lost():
		case err = <-served:
			served <- err
		}
	}
	os.Remove(path) // nobody new
	err = errors.Join(err, release())
	s.err = err
	close(s.released)
	cancel(errors.New("the VM was released"))
	work.Wait()
	stop, cancelStop := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancelStop()
	if h.Shutdown(stop) != nil {
		h.Close()
	}
	<-served
	return err
}

// borrowed is a machine that stays its owner's: a session of it ends nothing.
type borrowed struct{ machine.Machine }

func (borrowed) Begin()                            {}
func (borrowed) End(context.Context, bool, string) {}
func (borrowed) Release(context.Context) error     { return nil }

// Answered is how a pause ended, once Serve has returned.
func (s *Server) Answered() Answer { return s.answered }

// answer takes the first answer to a pause. DELETE is one: to go on.
func (s *Server) answer(a Answer) error {
	p := s.Paused
	switch {
	case p == nil:
		return &Fault{Kind: faultUsage, Text: "no job waits in it"}
	case a.Rewind && !p.Rewinds:
		return &Fault{Kind: faultUsage, Text: "the machine was not kept as it was before the step (hearth run --points each keeps it)"}
	case a.Run != "" && !p.Edits:
		return &Fault{Kind: faultUsage, Text: "the step is an action: it has no script that another could take the place of"}
	case (a.Rewind || a.Run != "") && !a.Retry:
		return &Fault{Kind: faultUsage, Text: "a step that is not run again is neither rewound nor edited"}
	}
	select {
	case s.answers <- a:
		return nil
	default:
		return &Fault{Kind: faultBusy, Text: "it has been answered already"}
	}
}

func (s *Server) routes(ctx context.Context, work *sync.WaitGroup) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { answer(w, s.status(), nil) })
	mux.HandleFunc("DELETE /{$}", func(w http.ResponseWriter, r *http.Request) {
		select {
		case s.remove <- struct{}{}:
		default:
		}
		<-s.released
		answer(w, struct{}{}, s.err)
	})
	mux.HandleFunc("POST /answer", func(w http.ResponseWriter, r *http.Request) {
		var a Answer
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxScript+1<<10)).Decode(&a); err != nil {
			answer(w, nil, &Fault{Kind: faultUsage, Text: err.Error()})
			return
		}
		answer(w, struct{}{}, s.answer(a))
	})
	mux.HandleFunc("GET /stat", func(w http.ResponseWriter, r *http.Request) {
		st, err := s.session.Client().Stat(r.Context(), r.FormValue("path"))
		answer(w, st, err)
	})
	mux.HandleFunc("PUT /tar", func(w http.ResponseWriter, r *http.Request) {
		c, leave, err := s.session.Enter()
		if err != nil {
			answer(w, nil, err)
			return
		}
		defer leave()
		q := r.URL.Query()
		err = c.TarIn(r.Context(), q.Get("dir"), r.Body, q.Get("user"))
		s.changed("files copied into the machine")
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("GET /tar", func(w http.ResponseWriter, r *http.Request) {
		c, leave, err := s.session.Enter()
		if err != nil {
			answer(w, nil, err)
			return
		}
		defer leave()
		q := r.URL.Query()
		w.Header().Set("Trailer", ended)
		w.WriteHeader(http.StatusOK)
		err = c.TarOut(r.Context(), q.Get("dir"), q["path"], w)
		how, _ := json.Marshal(wrap(err))
		w.Header().Set(ended, string(how))
	})
	mux.HandleFunc("POST /snapshots", s.snapshot)
	mux.HandleFunc("POST /rollback", s.rollback)
	mux.HandleFunc("POST /exec", func(w http.ResponseWriter, r *http.Request) {
		work.Add(1)
		defer work.Done()
		s.exec(ctx, w, r)
	})
	return mux
}

func (s *Server) status() Status {
	x := s.session.Record()
	st := Status{ID: s.VM.ID(), State: string(x.State), Driver: x.Driver, Image: x.Image, CPUs: x.CPUs, MemoryMiB: x.MemoryMiB, Network: s.Network,
		Holder: os.Getpid(), Running: s.session.Running(), Created: x.Leased, DeleteBy: x.DeleteBy, Paused: s.Paused}
	for _, p := range s.session.Snapshots() {
		st.Snapshots = append(st.Snapshots, p.Name)
	}
	return st
}

func (s *Server) snapshot(w http.ResponseWriter, r *http.Request) {
	x, err := s.session.Snapshot(r.Context(), r.FormValue("name"))
	answer(w, x.Name, err)
}

// changed tells the history, if there is one already: without commands there is
// nothing that a change could end.
func (s *Server) changed(what string) {
	if s.learning.Load() {
		s.history().Changed(what)
	}
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) {
	_, err := s.session.Rollback(r.Context(), r.FormValue("name"))
	var none *session.Error
	if errors.As(err, &none) && none.Kind == session.NoSuch && len(s.session.Snapshots()) == 0 {
		err = &Fault{Kind: faultUsage, Text: none.Text + ": hearth vm snapshot makes one"}
	}
	s.changed("a rollback")
	answer(w, struct{}{}, err)
}

// exec runs a command; its connection becomes the command's streams.
func (s *Server) exec(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	var req request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, guest.MaxRequest)).Decode(&req); err != nil {
		answer(w, nil, &Fault{Kind: faultUsage, Text: err.Error()})
		return
	}
	io.Copy(io.Discard, r.Body)
	agent, leave, err := s.session.Enter()
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer leave()
	s.session.Begin()
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer conn.Close()
	fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	if buf.Flush() != nil {
		return
	}
	// A client that does not read holds up its own command, at its pipe, and
	// nothing else.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &frames{w: conn}
	cmd := guest.Cmd{Argv: req.Argv, Env: req.Env, Dir: req.Dir, User: req.User, Timeout: req.Timeout, TTY: req.TTY,
		Stdout: out.writer(frameStdout), Stderr: out.writer(frameStderr)}
	if p := s.Paused; p != nil && req.InStep {
		cmd.Env = append(slices.Clone(p.Environ), cmd.Env...)
		cmd.Dir = cmp.Or(cmd.Dir, p.Dir)
	}
	var in *input
	if req.Stdin {
		in = newInput(out)
		cmd.Stdin = in
	}
	var taught *history.Execution
	if req.Learn != "" && req.TTY == nil {
		s.learning.Store(true)
		taught = s.history().Begin(ctx, history.Command{Repository: req.Learn, Door: "vm", Argv: req.Argv, Env: req.Env, Secrets: req.Secrets})
		cmd.Stdout, cmd.Stderr = taught.Tee(cmd.Stdout, cmd.Stderr)
	}
	if taught != nil {
		b, _ := json.Marshal(taught.Expected)
		out.send(frameExpect, b) // a client that is gone is noticed below
	}
	p, err := agent.Start(ctx, cmd)
	if err != nil {
		out.result(guest.Exit{}, err, nil)
		return
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		err := receive(buf.Reader, in, p)
		if err != nil {
			cancel(err) // the client is gone: so is its command
		}
		if in != nil {
			in.close(err)
		}
	})
	end, err := p.Wait()
	if err == nil {
		s.session.Ran(end)
	}
	if err == nil && end.Cancelled {
		err = context.Cause(ctx)
	}
	if in != nil {
		in.close(net.ErrClosed)
	}
	leave() // before the client hears of it: it may want a snapshot next
	var explained *ci.Explanation
	if err == nil {
		explained = taught.End(ctx, end)
	}
	out.result(end, err, explained)
	conn.SetReadDeadline(time.Now()) // wakes receive
	reading.Wait()
}

// The kinds of Fault.
const (
	faultUsage = "usage" // what was asked for makes no sense
	faultBusy  = "busy"
	faultGuest = "guest" // the agent says no: there is no such file
	faultStart = "start" // a command could not be started
	faultOther = "other" // we could not do it
)

// Fault is an error that came over the socket.
type Fault struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
	None bool   `json:"not_exist,omitempty"`
}

func (f *Fault) Error() string { return f.Text }

// Is tells fs.ErrNotExist.
func (f *Fault) Is(target error) bool { return f.None && target == os.ErrNotExist }

// Usage says that what was asked for makes no sense, and Start that a command
// could not be started.
func (f *Fault) Usage() bool { return f.Kind == faultUsage || f.Kind == faultBusy }
func (f *Fault) Start() bool { return f.Kind == faultStart }

// wrap turns an error into what goes over the socket; nil stays nil.
func wrap(err error) *Fault {
	var f *Fault
	var g *guest.Error
	var x *session.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &x):
		switch x.Kind {
		case session.Changing, session.Running, session.Full:
			return &Fault{Kind: faultBusy, Text: x.Text}
		case session.Ended:
			return &Fault{Kind: faultOther, Text: x.Text}
		}
		return &Fault{Kind: faultUsage, Text: x.Text}
	case errors.As(err, &f):
		return f
	case guest.StartFailed(err):
		return &Fault{Kind: faultStart, Text: err.Error()}
	case errors.As(err, &g):
		return &Fault{Kind: faultGuest, Text: err.Error(), None: errors.Is(err, os.ErrNotExist)}
	}
	return &Fault{Kind: faultOther, Text: err.Error()}
}

const ended = "Hearth-Ended"

type envelope struct {
	Fault *Fault          `json:"fault,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

func answer(w http.ResponseWriter, v any, err error) {
	e := envelope{Fault: wrap(err)}
	if err == nil {
		e.Value, _ = json.Marshal(v)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(e)
}
