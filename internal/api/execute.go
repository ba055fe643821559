package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
)

// maxCode is the largest program a request may carry, in bytes, so far as
// Config.MaxBody lets it come.
const maxCode = 8 << 20

const (
	maxEnv      = 1000     // variables
	maxTogether = 16 << 20 // bytes of output of several machines in one answer
)

// language is how code of one language is run: from a file of its own, since an
// argument has at most 128 KiB and standard input belongs to the code.
type language struct {
	names  []string
	argv   []string
	suffix string
	kind   string // as package history names it
}

func languages() []language {
	return []language{
		{[]string{"bash"}, []string{"bash"}, ".sh", "sh"},
		{[]string{"sh", "shell"}, []string{"sh"}, ".sh", "sh"},
		{[]string{"python", "python3"}, []string{"python3"}, ".py", "python3"},
		{[]string{"javascript", "node", "js"}, []string{"node"}, ".js", "node"},
	}
}

// execution is a request to run code.
type execution struct {
	Agent      string            `json:"agent_id"`
	Language   string            `json:"language"`
	Code       string            `json:"code"`
	VM         string            `json:"vm_id"`
	VMs        []string          `json:"vm_ids"` // the same on several
	Count      int               `json:"count"`  // the same on several new ones
	Timeout    float64           `json:"timeout_seconds"`
	WorkingDir string            `json:"working_dir"`
	Env        map[string]string `json:"env"`
	Secrets    map[string]string `json:"secrets"` // environment, too; never remembered
	Learn      *bool             `json:"learn"`   // false: not from this one
	order                        // of the new VMs; name, cpus, memory_mib, containers, network
}

// Execution is how one run of the code ended.
type Execution struct {
	ID         string    `json:"execution_id"`
	VM         string    `json:"vm_id"`
	ExitCode   int       `json:"exit_code"`
	Stdout     string    `json:"stdout"`
	Stderr     string    `json:"stderr"`
	DurationMS int64     `json:"duration_ms"`
	Started    time.Time `json:"started_at"`
	Completed  time.Time `json:"completed_at"`
	Signal     string    `json:"signal,omitempty"`    // that ended it
	TimedOut   bool      `json:"timed_out,omitempty"` // after timeout_seconds
	Truncated  bool      `json:"truncated,omitempty"` // the output is not all there
	// Prediction is what was expected before it ran; Explanation what is known of its
	// failure. Not there where nothing is learned.
	Prediction  *history.Expectation `json:"prediction,omitempty"`
	Explanation *ci.Explanation      `json:"explanation,omitempty"`

	room int // that its output takes
}

// outcome is one of several: an Execution or an Error.
type outcome struct {
	*Execution
	VM     string `json:"vm_id,omitempty"` // hides that of Execution
	Failed *Error `json:"failure,omitempty"`
}

func (s *Server) execute(w http.ResponseWriter, r *http.Request, g grant) error {
	var e execution
	if err := read(r, &e, false); err != nil {
		return err
	}
	lang, timeout, err := s.check(&e)
	if err != nil {
		return err
	}
	unhurried(w)
	ctx := r.Context()
	if e.VM == "" {
		if err := g.everything(); err != nil && len(e.VMs) == 0 {
			return err // it would take a new machine
		}
	}
	switch {
	case len(e.VMs) > 0 || e.Count > 0:
		all, err := s.several(ctx, g, &e, timeout)
		if err != nil {
			return err
		}
		most := min(s.cfg.MaxOutput, maxTogether/2/len(all))
		results := make([]outcome, len(all))
		var wg sync.WaitGroup
		for i, m := range all {
			wg.Go(func() {
				results[i].VM = m.ID()
				x, err := s.run(ctx, m, &e, lang, timeout, most)
				if err != nil {
					results[i].Failed = explain(err)
					return
				}
				results[i].Execution = x
			})
		}
		wg.Wait()
		if e.Count > 0 {
			s.throwAway(all)
		}
		s.replyEach(w, results)
		return nil
	case e.VM != "":
		m, err := s.find(g, e.VM)
		if err != nil {
			return err
		}
		x, err := s.run(ctx, m, &e, lang, timeout, s.cfg.MaxOutput)
		if err != nil {
			return err
		}
		defer s.output.give(x.room)
		reply(w, http.StatusOK, x)
		return nil
	}
	fresh, err := s.fresh(ctx, g, &e, 1, timeout)
	if err != nil {
		return err
	}
	x, err := s.run(ctx, fresh[0], &e, lang, timeout, s.cfg.MaxOutput)
	s.throwAway(fresh)
	if err != nil {
		return err
	}
	defer s.output.give(x.room)
	reply(w, http.StatusOK, x)
	return nil
}

// replyEach answers with one result after the other: as one piece, escaped, they
// might be many times what they are now.
func (s *Server) replyEach(w http.ResponseWriter, results []outcome) {
	head(w, http.StatusOK)
	fmt.Fprint(w, `{"results":[`)
	for i := range results {
		if i > 0 {
			fmt.Fprint(w, ",")
		}
		encode(w, results[i])
		if x := results[i].Execution; x != nil {
			s.output.give(x.room)
		}
		results[i] = outcome{}
	}
	fmt.Fprintln(w, "]}")
}

// check says what is wrong with a request before any machine is touched.
func (s *Server) check(e *execution) (language, time.Duration, error) {
	bad := func(hint, format string, args ...any) (language, time.Duration, error) {
		return language{}, 0, problem(http.StatusBadRequest, "bad_request", hint, format, args...)
	}
	var lang language
	var known []string
	for _, l := range languages() {
		if slices.Contains(l.names, strings.ToLower(e.Language)) {
			lang = l
		}
		known = append(known, l.names...)
	}
	ways := 0
	for _, given := range []bool{e.VM != "", len(e.VMs) > 0, e.Count != 0} {
		if given {
			ways++
		}
	}
	most := s.cfg.MaxTTL
	switch {
	case e.Language == "":
		return bad("want one of "+strings.Join(known, ", "), "language is missing")
	case lang.argv == nil:
		return bad("want one of "+strings.Join(known, ", "), "language %q is not known", e.Language)
	case e.Code == "":
		return bad("put the program into code", "code is empty")
	case len(e.Code) > maxCode:
		return bad("put it into a file of the VM", "code has %d bytes, more than %d", len(e.Code), maxCode)
	case ways > 1:
		return bad("give vm_id, vm_ids or count; none of them makes a fresh VM and throws it away", "more than one of vm_id, vm_ids and count is given")
	case e.Timeout < 0 || e.Timeout > most.Seconds():
		return bad(fmt.Sprintf("want 0 (for %.0f) to %.0f", s.cfg.Timeout.Seconds(), most.Seconds()), "timeout_seconds is %v", e.Timeout)
	case e.WorkingDir != "" && (!strings.HasPrefix(e.WorkingDir, "/") || strings.ContainsRune(e.WorkingDir, 0)):
		return bad("give an absolute path inside the VM, or leave it out for /home/runner", "working_dir %q is not an absolute path", e.WorkingDir)
	case e.Count < 0 || e.Count > s.cfg.Quotas.VMs || len(e.VMs) > s.cfg.Quotas.AllVMs:
		return bad(fmt.Sprintf("want at most %d", s.cfg.Quotas.VMs), "too many VMs at once: %d", max(e.Count, len(e.VMs)))
	case (e.VM != "" || len(e.VMs) > 0) && e.order != (order{}):
		return bad("leave them out, or leave vm_id out", "name, vm_type, image, cpus, memory_mib, containers, network and ttl_seconds are for a new VM")
	}
	if len(e.Env)+len(e.Secrets) > maxEnv {
		return bad(fmt.Sprintf("want at most %d", maxEnv), "env and secrets have %d entries", len(e.Env)+len(e.Secrets))
	}
	for of, m := range map[string]map[string]string{"env": e.Env, "secrets": e.Secrets} {
		for k, v := range m {
			if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
				return bad("names without '=', no NUL bytes", "%s has an unusable entry %q", of, k)
			}
			if _, twice := e.Env[k]; twice && of == "secrets" {
				return bad("give it once", "%q is both in env and in secrets", k)
			}
		}
	}
	for i, id := range e.VMs {
		if slices.Contains(e.VMs[:i], id) {
			return bad("name each VM once", "vm_ids names %q twice", id)
		}
	}
	timeout := s.cfg.Timeout
	if e.Timeout > 0 {
		timeout = time.Duration(e.Timeout * float64(time.Second))
	}
	return lang, timeout, nil
}

// several finds the machines that are asked for, or makes them: all or none.
func (s *Server) several(ctx context.Context, g grant, e *execution, timeout time.Duration) ([]*owned, error) {
	if e.Count > 0 {
		return s.fresh(ctx, g, e, e.Count, timeout)
	}
	var all []*owned
	for _, id := range e.VMs {
		m, err := s.find(g, id)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// fresh makes n machines that live as long as the code may run.
func (s *Server) fresh(ctx context.Context, g grant, e *execution, n int, timeout time.Duration) ([]*owned, error) {
	o := e.order
	if o.TTLSeconds == 0 {
		o.TTLSeconds = min(timeout+time.Minute, s.cfg.MaxTTL).Seconds()
	}
	req, err := s.request(o)
	if err != nil {
		return nil, err
	}
	all, errs := make([]*owned, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { all[i], errs[i] = s.make(ctx, g.owner, o, req) })
	}
	wg.Wait()
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if i < 0 {
		return all, nil
	}
	made := slices.DeleteFunc(all, func(m *owned) bool { return m == nil })
	s.throwAway(made)
	x := explain(errs[i])
	if n > 1 {
		x.Message = fmt.Sprintf("%d of %d VMs could be made, so none was kept: %s", len(made), n, x.Message)
	}
	return nil, x
}

// throwAway releases machines that were made for one execution. Nobody waits for
// it longer than it takes, not even a client that is gone.
func (s *Server) throwAway(all []*owned) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseLimit)
	defer cancel()
	for _, m := range all {
		m.End("its execution has ended")
	}
	for _, m := range all {
		m.Release(ctx, "")
	}
}

// run runs the code in one machine. What its output takes of s.output is the
// caller's to give back.
func (s *Server) run(ctx context.Context, m *owned, e *execution, lang language, timeout time.Duration, most int) (x *Execution, err error) {
	if err := s.books.take(m.owner, use{runs: 1}); err != nil {
		return nil, err
	}
	defer s.books.give(m.owner, use{runs: 1})
	client, leave, err := m.Enter()
	if err != nil {
		return nil, m.refused(err)
	}
	defer func() {
		leave()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.executed++
		switch {
		case err != nil:
			s.broken++
		case x.ExitCode != 0:
			s.failed++
		}
	}()
	m.Begin()
	id := "e" + strings.ToLower(rand.Text()[:16])
	file := "/tmp/hearth-" + id + lang.suffix
	if err := client.WriteFile(ctx, file, []byte(e.Code), 0o600, ""); err != nil {
		return nil, m.lost(fmt.Errorf("putting the code into the VM %s: %w", m.ID(), err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		client.Remove(ctx, file)
	}()
	if e.WorkingDir != "" {
		if err := makeDir(ctx, client, e.WorkingDir); err != nil {
			return nil, m.lost(fmt.Errorf("making the working_dir in the VM %s: %w", m.ID(), err))
		}
	}
	stdout, stderr := newClip(most, &s.output), newClip(most, &s.output)
	defer func() {
		if err != nil {
			s.output.give(stdout.taken + stderr.taken)
		}
	}()
	var own []string
	for _, given := range []map[string]string{e.Env, e.Secrets} {
		for k, v := range given {
			own = append(own, k+"="+v)
		}
	}
	slices.Sort(own)
	env := append([]string{"PATH=" + guest.ToolPath, "LANG=C.UTF-8"}, own...)
	var taught *history.Execution
	if e.Learn == nil || *e.Learn {
		taught = m.history.Begin(ctx, history.Command{Repository: m.owner.memory(), Door: "api", Language: lang.kind, Code: e.Code, Env: own,
			Secrets: slices.Collect(maps.Values(e.Secrets))})
	}
	teeOut, teeErr := taught.Tee(stdout, stderr)
	x = &Execution{ID: id, VM: m.ID(), Started: time.Now().UTC()}
	end, err := client.Exec(ctx, guest.Cmd{Argv: append(slices.Clone(lang.argv), file), Env: env, Dir: e.WorkingDir, Stdout: teeOut, Stderr: teeErr,
		Timeout: timeout})
	if err != nil {
		if guest.StartFailed(err) {
			return nil, problem(http.StatusUnprocessableEntity, "cannot_start", "is there such a working_dir in the VM?", "%s could not be started in the VM %s: %v",
				lang.argv[0], m.ID(), err)
		}
		return nil, m.lost(fmt.Errorf("execution in the VM %s: %w", m.ID(), err))
	}
	if end.Cancelled {
		return nil, fmt.Errorf("execution in the VM %s: %w", m.ID(), context.Cause(ctx))
	}
	x.Completed = time.Now().UTC()
	x.DurationMS = x.Completed.Sub(x.Started).Milliseconds()
	x.ExitCode, x.Signal, x.TimedOut = end.Code, end.Signal, end.TimedOut
	x.Stdout, x.Stderr = stdout.String(), stderr.String()
	x.Truncated, x.room = stdout.cut() || stderr.cut(), stdout.taken+stderr.taken
	m.Ran(end)
	if taught != nil {
		x.Prediction, x.Explanation = &taught.Expected, taught.End(ctx, end)
	}
	s.log.Debug("executed", "vm", x.VM, "execution", x.ID, "agent", e.Agent, "language", lang.names[0], "exit", x.ExitCode, "took", end.Duration)
	return x, nil
}

// makeDir makes a working directory that is not there, as a client expects that
// names one: what is missing of it is the user's, also below the root. Where that
// cannot be, running the code says why.
func makeDir(ctx context.Context, client *guest.Client, dir string) error {
	if _, err := client.Stat(ctx, dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return nil // what is wrong with it the code finds out
	}
	const script = `umask 022; set -e; d=$1; top=; while [ ! -e "$d" ]; do top=$d; d=$(dirname "$d"); done; [ -n "$top" ] || exit 0
mkdir -p "$1"; chown -R "$(stat -c %u:%g "$2")" "$top"`
	_, err := client.Exec(ctx, guest.Cmd{Argv: []string{"sh", "-c", script, "sh", dir, guest.Home}, Env: []string{"PATH=" + guest.ToolPath}, Dir: "/",
		User:    "root",
		Timeout: 10 * time.Second})
	return err
}

// lost adds why the machine is gone, where that is why.
func (m *owned) lost(err error) error {
	if reason, over := m.Over(); over {
		return problem(http.StatusGone, "vm_gone", "make another one: POST /api/vms", "the VM %s was released meanwhile: %s", m.ID(), reason)
	}
	if why := m.Err(); why != nil && errors.Is(err, guest.ErrLost) {
		return problem(http.StatusBadGateway, "vm_lost", "make another one: POST /api/vms", "%v", errors.Join(err, why))
	}
	return err
}
