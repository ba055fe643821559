// Package api is the HTTP API by which programs get machines and run code in
// them: the bridge that agents and scripts talk to. docs/api.md is its manual.
//
//	GET    /health
//	GET    /api/vms                      POST /api/vms
//	GET    /api/vms/{id}                 DELETE /api/vms/{id}
//	GET    /api/vms/{id}/snapshots       POST /api/vms/{id}/snapshots
//	POST   /api/vms/{id}/rollback
//	POST   /api/llm/execute
//	GET    /api/sessions                 GET /api/stats
//	GET    /api/v1/learn/predict, related, next, similar, lessons, stats
//
// # Who may
//
// Everything but /health wants a bearer token: a JWT signed with HS256, for this
// API, that expires (token.go). A machine belongs to the subject of the token by
// which it was made, and exists for no other: not in lists, not by its id. A token
// is for its subject's machines, for one of them, or for everybody's (admin);
// whoever makes a machine gets one of the second kind with it, so that an agent
// need not hold more than its own machine's. What is held at once is bounded for a
// subject and for all (quota.go), bodies and outputs too, and what a machine may
// reach is never more than the settings say.
//
// # A machine's life
//
// A machine is one session: created, executing, completed or failed, released.
// It is released when it is deleted, when its time is over, and when it dies; a
// goroutine a machine waits for the last two. Close releases the rest. How long
// a machine may live is bounded, so that nothing stays because somebody forgot.
//
// # Answers
//
// Errors are JSON: {"error": what happened, "code": a word for programs, "hint":
// what to do}. A command that fails is not an error but an answer with its exit
// code; an error says that we could not run it, or do not know how it ended.
// What a command printed is bounded and says so where it was cut. All of it is
// the guest's word.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/door"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/session"
)

// Config says what a Server serves. Zero fields take the default named.
type Config struct {
	// Machines is where VMs come from.
	Machines machine.Host
	// Images are those that a request may name, name to what [machine.Request] has.
	Images map[string]string
	// Secret signs and checks tokens. Without one everything but /health is
	// refused; New refuses a short one.
	Secret []byte
	// Issuers and Audiences are whose tokens are taken, signed with the same
	// secret, beside Hearth's own ("hearth", "hearth-api"). With "" among them a
	// token that names none is.
	Issuers, Audiences []string
	// Revoked says whether the token of this id (jti) was taken back; nil says that
	// none was.
	Revoked func(id string) (bool, error)
	// Network is the most that a machine may reach, and what it may where a request
	// does not say.
	Network network.Policy
	// Services says what a machine with a policy finds on its gateway, by port; nil is
	// nothing.
	Services func(network.Policy) (map[uint16]http.Handler, error)
	// TTL is the life of a VM whose request does not say; 1 h. MaxTTL bounds what
	// a request may say; session.MaxTTL.
	TTL, MaxTTL time.Duration
	// Timeout is how long code may run where a request does not say; 5 min. A
	// request may say anything up to MaxTTL.
	Timeout time.Duration
	// MaxBody is the largest request, bytes; 1 MiB.
	MaxBody int64
	// MaxOutput is how many bytes of each output stream an answer holds; 1 MiB.
	MaxOutput int
	// Quotas bounds what is held at once. What the host really has is the pool's
	// to say.
	Quotas Quotas
	// Memory answers questions of what was learned; nil has learned nothing.
	Memory Memory
	// History is where executions are learned from; nil learns nothing.
	History *history.Keeper
	// Version is shown by /health.
	Version string
	// Log hears of machines made and released; nil discards.
	Log *slog.Logger
}

// writeTime is how long a client may take for an answer.
const writeTime = time.Minute

// Server answers. Make it with New; end it with Close, after the HTTP server.
type Server struct {
	cfg   Config
	log   *slog.Logger
	start time.Time
	cors  *http.CrossOriginProtection

	bodies *door.Bodies
	books  books
	output store

	wg sync.WaitGroup // a goroutine a machine

	mu       sync.Mutex
	closed   bool
	vms      map[string]*owned
	gone     []ending // released, newest last; bounded
	executed int
	failed   int // executions with an exit code that is not 0
	broken   int // executions that ended in an error
}

// New returns a server. It makes nothing until it is asked.
func New(cfg Config) *Server {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.MaxTTL, session.MaxTTL)
	def(&cfg.TTL, time.Hour)
	def(&cfg.Timeout, 5*time.Minute)
	cfg.TTL = min(cfg.TTL, cfg.MaxTTL)
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 1 << 20
	}
	if cfg.MaxOutput == 0 {
		cfg.MaxOutput = 1 << 20
	}
	cfg.Quotas.defaults()
	s := &Server{cfg: cfg, log: cfg.Log, start: time.Now(), cors: http.NewCrossOriginProtection(), vms: map[string]*owned{}}
	// In memory alone: a body may hold secrets.
	s.bodies = &door.Bodies{Memory: max(16<<20, 2*cfg.MaxBody)}
	s.books.quotas, s.output.left = cfg.Quotas, cfg.Quotas.AllOutput
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// handler answers a request whose token is good.
type handler func(http.ResponseWriter, *http.Request, grant) error

type route struct {
	pattern string
	handle  handler
}

// Register adds the API's routes to mux.
func (s *Server) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /health", s.health)
	routes := append([]route{
		{"GET /api/vms", s.list},
		{"POST /api/vms", s.create},
		{"GET /api/vms/{id}", s.get},
		{"DELETE /api/vms/{id}", s.remove},
		{"GET /api/vms/{id}/snapshots", s.snapshots},
		{"POST /api/vms/{id}/snapshots", s.snapshot},
		{"POST /api/vms/{id}/rollback", s.rollback},
		{"POST /api/llm/execute", s.execute},
		{"GET /api/sessions", s.sessions},
		{"GET /api/stats", s.stats},
	}, s.questions()...)
	methods := map[string][]string{} // by path, for what is asked for in the wrong way
	for _, r := range routes {
		mux.Handle(r.pattern, s.guard(r.handle))
		method, path, _ := strings.Cut(r.pattern, " ")
		methods[path] = append(methods[path], method)
	}
	for path, may := range methods {
		slices.Sort(may)
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(may, ", "))
			s.fail(w, r, problem(http.StatusMethodNotAllowed, "method_not_allowed", "use "+strings.Join(may, " or "), "%s is not a method of %s", r.Method, path))
		})
	}
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, problem(http.StatusNotFound, "no_such_route", "docs/api.md lists what there is", "there is no %s", r.URL.Path))
	})
}

// guard lets a request through to handle if its token is good.
func (s *Server) guard(handle handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.cors.Check(r); err != nil {
			s.fail(w, r, problem(http.StatusForbidden, "cross_origin", "call the API from a program, not from another site's page", "cross-origin request refused"))
			return
		}
		g, err := s.authorize(r)
		if err != nil {
			if r.ContentLength != 0 {
				w.Header().Set("Connection", "close") // what it carries stays unread
			}
			s.fail(w, r, err)
			return
		}
		body, err := s.bodies.Take(w, r, s.cfg.MaxBody, g.issuer+" "+g.subject, nil)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		defer body.Close()
		r.Body = body
		if err := handle(w, r, g); err != nil {
			s.fail(w, r, err)
		}
	})
}

// Close refuses new machines, releases those there are, and waits for them.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	all := make([]*owned, 0, len(s.vms))
	for _, m := range s.vms {
		all = append(all, m)
	}
	s.mu.Unlock()
	for _, m := range all {
		m.End("the server ended")
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("api: machines are still being released: %w", context.Cause(ctx))
	}
}

// Error is an answer that says what went wrong, why, and what to do.
type Error struct {
	Message string `json:"error"`
	Code    string `json:"code"`
	Hint    string `json:"hint,omitempty"`

	status int
	retry  time.Duration
}

func (e *Error) Error() string { return e.Message }

func problem(status int, code, hint, format string, args ...any) *Error {
	return &Error{Message: fmt.Sprintf(format, args...), Code: code, Hint: hint, status: status}
}

// later is a problem that time may mend.
func (e *Error) later(d time.Duration) *Error { e.retry = d; return e }

// explain turns any error into an answer.
func explain(err error) *Error {
	var e *Error
	var tooLong *http.MaxBytesError
	var theirs *guest.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &tooLong):
		return problem(http.StatusRequestEntityTooLarge, "body_too_large", "put large input into a file of the VM, or send less",
			"the request has more than %d bytes", tooLong.Limit)
	case errors.Is(err, door.ErrFull):
		return problem(http.StatusServiceUnavailable, "busy", "try again in a moment", "too many requests with large bodies at once").later(5 * time.Second)
	case errors.Is(err, door.ErrSlow):
		return problem(http.StatusRequestTimeout, "too_slow", "send it again, faster", "%v", err)
	case errors.Is(err, machine.ErrTooLarge):
		return problem(http.StatusUnprocessableEntity, "too_large", "ask for fewer CPUs or less memory", "%v", err)
	case errors.Is(err, machine.ErrNoContainers):
		return problem(http.StatusUnprocessableEntity, "no_containers", "leave containers out, or have the server's image built anew", "%v", err)
	case errors.Is(err, machine.ErrBusy):
		return problem(http.StatusServiceUnavailable, "busy", "delete VMs that are not needed, or try again later", "this machine holds no more VMs: %v",
			err).later(5 * time.Second)
	case errors.Is(err, machine.ErrClosed):
		return problem(http.StatusServiceUnavailable, "closing", "try again when the server is back", "the server is ending").later(10 * time.Second)
	case errors.As(err, &theirs):
		return problem(http.StatusBadGateway, "vm_error", "look at the VM: is its disk full?", "in the VM: %v", err)
	case errors.Is(err, guest.ErrLost):
		return problem(http.StatusBadGateway, "vm_lost", "the VM is gone or not answering; make a new one", "%v", err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return problem(http.StatusServiceUnavailable, "cancelled", "try again", "the request ended before its answer: %v", err).later(time.Second)
	}
	return problem(http.StatusInternalServerError, "internal", "the server's log says more; `hearth doctor` says whether this machine can run VMs", "%v", err)
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := explain(err)
	if e.status >= 500 {
		s.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "code", e.Code, "err", err)
	}
	if e.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(e.retry/time.Second)))
	}
	if e.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="hearth"`)
	}
	reply(w, e.status, e)
}

func reply(w http.ResponseWriter, status int, v any) {
	head(w, status)
	encode(w, v)
}

func head(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
}

// encode writes a value, for which the client has a while.
func encode(w http.ResponseWriter, v any) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	board.NewEncoder(w).Encode(v) // a client that is gone hears nothing
}

// elsewhere are names that fields have in other APIs of this kind, by which a client
// that was written for one finds ours.
var elsewhere = map[string]string{
	"lang": "language", "command": "code", "script": "code", "source": "code", "vm": "vm_id", "session_id": "vm_id", "agent": "agent_id",
	"timeout": "timeout_seconds", "timeout_ms": "timeout_seconds", "timeout_secs": "timeout_seconds", "cwd": "working_dir", "workdir": "working_dir",
	"working_directory": "working_dir", "environment": "env", "env_vars": "env", "vcpus": "cpus", "vcpu_count": "cpus", "cpu": "cpus",
	"memory": "memory_mib", "memory_mb": "memory_mib", "mem_size_mib": "memory_mib", "ttl": "ttl_seconds", "label": "name", "snapshot": "snapshot_id",
}

// read decodes a request's body. A field that does not exist is an error: a
// misspelt vm_id would otherwise run the code somewhere else. An empty body is
// an empty object if that may be.
func read(r *http.Request, into any, empty bool) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	switch {
	case err == io.EOF && empty:
		return nil
	case err == io.EOF:
		return problem(http.StatusBadRequest, "bad_request", "send a JSON object", "the request has no body")
	case err != nil:
		text := strings.TrimPrefix(err.Error(), "json: ")
		hint := "docs/api.md lists the fields"
		if name, ok := strings.CutPrefix(text, "unknown field "); ok {
			if ours := elsewhere[strings.ToLower(strings.Trim(name, `"`))]; ours != "" {
				hint = "it is called " + ours + " here; " + hint
			}
		}
		return problem(http.StatusBadRequest, "bad_request", hint, "the request's body: %.200s", text)
	}
	if _, err := dec.Token(); err != io.EOF {
		return problem(http.StatusBadRequest, "bad_request", "send one JSON object and nothing after it", "the request's body goes on after its end")
	}
	return nil
}

func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	st := s.cfg.Machines.Stats()
	s.mu.Lock()
	status, code, vms := "ok", http.StatusOK, len(s.vms)
	if s.closed {
		status, code = "closing", http.StatusServiceUnavailable
	}
	s.mu.Unlock()
	reply(w, code, map[string]any{"status": status, "version": s.cfg.Version, "uptime_seconds": int(time.Since(s.start).Seconds()), "vms": vms,
		"machines": st.Leased, "warm": st.Warm})
}

func (s *Server) sessions(w http.ResponseWriter, r *http.Request, g grant) error {
	if err := g.everything(); err != nil {
		return err
	}
	out := []view{}
	for _, x := range s.cfg.Machines.Sessions() {
		if o, ours := s.owner(x.ID); g.admin || ours && g.sees(x.ID, o) {
			out = append(out, describe(x))
		}
	}
	reply(w, http.StatusOK, map[string]any{"sessions": out})
	return nil
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request, g grant) error {
	if err := g.all(); err != nil {
		return err
	}
	p := s.cfg.Machines.Stats()
	states := map[machine.State]int{machine.Created: 0, machine.Executing: 0, machine.Completed: 0, machine.Failed: 0, machine.Released: 0}
	for _, x := range s.cfg.Machines.Sessions() {
		states[x.State]++
	}
	var learned *learn.Counts
	if s.cfg.Memory != nil {
		counts, err := s.cfg.Memory.Count(r.Context(), "")
		if err != nil {
			return err
		}
		if len(counts) > 0 {
			learned = &counts[0]
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reply(w, http.StatusOK, map[string]any{
		"learned": learned, "sessions": states, "vms": len(s.vms),
		"executions": map[string]int{"total": s.executed, "nonzero": s.failed, "errors": s.broken},
		"machines": map[string]any{
			"leased": p.Leased, "waiting": p.Waiting, "warm": p.Warm, "made_ahead": p.Made,
			"claims": p.Claims, "warm_hits": p.WarmHits, "completed": p.Completed, "failed": p.Failed, "lost": p.Lost,
			"cpus_used": p.Used.CPUs, "cpus": p.Means.CPUs, "memory_mib_used": p.Used.MemoryMiB, "memory_mib": p.Means.MemoryMiB,
		},
	})
	return nil
}
