package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hpke"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/worker"
)

// ClientConfig is what a [Client] works with.
type ClientConfig struct {
	Server string        // its URL
	Token  func() string // asked for every request: it may be another one by now
	Slots  int           // jobs that the worker runs at once, for people
	Name   string        // of the worker's host, for people
	// Run runs a job. What of the Runner belongs to this host (Host, Image, Registry,
	// Package, Log) is Run's to fill in.
	Run func(ctx context.Context, r *worker.Runner, t conduct.Task) conduct.Outcome
	// Patience is how long a job goes on while no server answers; 0 is [Patience].
	Patience time.Duration
	Log      *slog.Logger
}

// Client is the counter of a worker on another host than the server's. Safe for
// concurrent use.
type Client struct {
	cfg      ClientConfig
	base     *url.URL
	instance string
	http     *http.Client

	mu   sync.Mutex
	live map[fence]*job
}

var _ desk.Counter = (*Client)(nil)

// NewClient returns the client of a new worker: nobody has its name.
func NewClient(cfg ClientConfig) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(cfg.Server, "/"))
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("%q is no address of a server: want https://HOST", cfg.Server)
	}
	if ip := net.ParseIP(base.Hostname()); base.Scheme == "http" && base.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s: without TLS anybody on the way reads the token: want https://", cfg.Server)
	}
	if cfg.Patience == 0 {
		cfg.Patience = Patience
	}
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_", r) {
			return r
		}
		return '-'
	}, cfg.Name)
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 2 * time.Minute
	t.MaxIdleConnsPerHost = 16
	t.ExpectContinueTimeout = 10 * time.Second
	return &Client{cfg: cfg, base: base, instance: name[:min(len(name), 40)] + "." + strings.ToLower(rand.Text()[:16]),
		// A redirect would take the token to somewhere else.
		http: &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, live: map[fence]*job{}}, nil
}

// request asks the server once. Whoever gets an answer closes its body.
func (c *Client) request(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base.String()+Root+path, body)
	if err != nil {
		return nil, err
	}
	c.sign(r.Header)
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNoContent {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	told := &refusal{}
	if json.Unmarshal(b, told) != nil || told.Message == "" {
		told.Message = fmt.Sprintf("%s answered %s: is it a server of Hearth's?", c.base.Host, resp.Status)
	}
	told.Status = resp.StatusCode
	return nil, told
}

func (c *Client) sign(h http.Header) {
	h.Set("Authorization", "Bearer "+c.cfg.Token())
	h.Set(protocolHeader, fmt.Sprint(Protocol))
	h.Set(workerHeader, c.instance)
	h.Set("Content-Type", "application/json")
}

func decode(resp *http.Response, out any) error {
	defer resp.Body.Close()
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(out)
}

// Hello asks the server who it is, and who we are.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	var h Hello
	resp, err := c.request(ctx, http.MethodGet, "hello", nil)
	if err != nil {
		return h, err
	}
	err = decode(resp, &h)
	return h, err
}

// Take implements [desk.Counter].
func (c *Client) Take(ctx context.Context, o queue.Offer) (desk.Job, error) {
	for {
		j, err := c.take(ctx, o)
		if err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if j != nil {
			return j, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (c *Client) take(ctx context.Context, o queue.Offer) (*job, error) {
	key, err := kem.GenerateKey()
	if err != nil {
		return nil, err
	}
	q := claimRequest{Time: time.Now().UTC(), Key: key.PublicKey().Bytes(), Labels: o.Labels, CPUs: o.CPUs, MemoryMiB: o.MemoryMiB, Slots: c.cfg.Slots,
		WaitMS: claimWait.Milliseconds(), Holding: []fence{}}
	c.mu.Lock()
	for f := range c.live {
		q.Holding = append(q.Holding, f)
	}
	c.mu.Unlock()
	resp, err := c.request(ctx, http.MethodPost, "claim", q)
	if err != nil || resp.StatusCode == http.StatusNoContent {
		if err == nil {
			resp.Body.Close()
		}
		return nil, err
	}
	var a claimAnswer
	if err := decode(resp, &a); err != nil {
		return nil, err
	}
	return c.begin(key, a)
}

func (c *Client) begin(key hpke.PrivateKey, a claimAnswer) (*job, error) {
	b, err := open(key, a.fence, a.Sealed)
	if err != nil {
		return nil, err // the next claim gives it back
	}
	if b.Run == nil || b.Run.Job(b.Job) == nil {
		return nil, fmt.Errorf("what came with job %s has no such job", a.Job)
	}
	j := &job{c: c, fence: a.fence, brief: b, lease: time.Duration(a.LeaseMS) * time.Millisecond}
	j.ctx, j.lost = context.WithCancelCause(context.Background())
	j.spool = newSpool(j)
	c.mu.Lock()
	c.live[a.fence] = j
	c.mu.Unlock()
	return j, nil
}

// job is one attempt in this worker's hands. It is a [desk.Job].
type job struct {
	c     *Client
	fence fence
	brief *brief
	lease time.Duration
	spool *spool
	ended atomic.Bool     // job.finished was emitted
	ctx   context.Context // ends when the attempt is ours no more
	lost  context.CancelCauseFunc
}

// Waits between tries to reach the server.
const (
	firstWait = 200 * time.Millisecond
	lastWait  = 5 * time.Second
)

// final says that the server has answered, and will answer so again.
func final(err error) bool {
	if _, ok := errors.AsType[*unsent](err); ok {
		return true
	}
	told, ok := errors.AsType[*refusal](err)
	if !ok {
		return false
	}
	switch told.Status {
	case http.StatusUnauthorized, http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusMisdirectedRequest, http.StatusUpgradeRequired:
		return false // until somebody has mended it
	}
	return told.Status < 500
}

// gone turns the answer to who does not hold the attempt into queue.ErrLost.
func (j *job) gone(err error) error {
	if told, ok := errors.AsType[*refusal](err); ok && told.Status == http.StatusGone && !told.Over {
		j.lost(queue.ErrLost)
		return queue.ErrLost
	}
	return err
}

// over says that the server knows the job's end.
func over(err error) bool {
	told, ok := errors.AsType[*refusal](err)
	return ok && told.Over
}

// again asks until there is an answer, or ctx or the attempt ends.
func (j *job) again(ctx context.Context, what string, fn func(ctx context.Context) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(j.ctx, func() { stop(context.Cause(j.ctx)) })()
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := fn(ctx)
		if err == nil || final(err) {
			return j.gone(err)
		}
		j.c.cfg.Log.Debug("the server does not answer", "job", j.fence.Job, "reason", what, "err", err)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
	}
}

func (j *job) path(what string) string { return "jobs/" + j.fence.String() + "/" + what }

func (j *job) once(ctx context.Context, what string, in, out any) error {
	resp, err := j.c.request(ctx, http.MethodPost, j.path(what), in)
	if err != nil {
		return err
	}
	return decode(resp, out)
}

func (j *job) call(ctx context.Context, what string, in, out any) error {
	return j.again(ctx, what, func(ctx context.Context) error { return j.once(ctx, what, in, out) })
}

// Fence implements [desk.Job].
func (j *job) Fence() (string, int) { return j.fence.Job, j.fence.Attempt }

// cancelled is why a job is to end, in the words of who wants it.
type cancelled struct{ reason string }

func (e *cancelled) Error() string { return e.reason }
func (e *cancelled) Cause() error  { return e }

// Hold implements [desk.Job].
func (j *job) Hold(ctx context.Context, fn func(context.Context) error) error {
	defer func() { // it has ended, or is given back: whoever asks about it is late
		j.lost(queue.ErrLost)
		j.c.mu.Lock()
		delete(j.c.live, j.fence)
		j.c.mu.Unlock()
		j.spool.wait()
	}()
	known, heard := false, time.Now()
	k := queue.Keeper{Job: j.fence.Job, Answer: j.lease, Patience: j.c.cfg.Patience, Log: j.c.cfg.Log, Renew: func(ctx context.Context) error {
		var a beatAnswer
		if err := j.gone(j.once(ctx, "beat", beatRequest{Known: known}, &a)); err != nil {
			if over(err) {
				return nil // its end is being told
			}
			if told, ok := errors.AsType[*refusal](err); ok && told.Status == http.StatusUnauthorized && time.Since(heard) > 2*j.lease {
				j.lost(queue.ErrLost) // the token was taken back: by now others have the job
				return queue.ErrLost
			}
			return err
		}
		heard = time.Now()
		if a.Cancel != "" && !known {
			known = true
			return &cancelled{a.Cancel}
		}
		return nil
	}}
	return k.Hold(ctx, func(held context.Context) error {
		defer context.AfterFunc(held, func() {
			if errors.Is(context.Cause(held), queue.ErrLost) {
				j.lost(queue.ErrLost)
			}
		})()
		return fn(held)
	})
}

// Run implements [desk.Job].
func (j *job) Run(ctx context.Context, sink ci.Sink) conduct.Outcome {
	b := j.brief
	return j.c.cfg.Run(ctx, j.runner(sink), conduct.Task{Run: b.Run, Job: b.Run.Job(b.Job), Needs: b.Needs, Part: b.Run,
		Handed: &plan.Allowance{Ask: func(n int) bool {
			var ok bool
			return j.call(context.WithoutCancel(ctx), "hand", n, &ok) == nil && ok
		}}})
}

// runner is what the server's Runner is here.
func (j *job) runner(sink ci.Sink) *worker.Runner {
	b := j.brief
	r := &worker.Runner{RunID: b.RunID, Repository: b.Repository, File: b.File, Ref: b.Ref, SHA: b.SHA, Attempt: b.Attempt, Sink: sink, Env: b.Env,
		Tests: b.Tests, TakesImage: b.TakesImage, Points: b.Points, Network: b.Network, CPUs: b.CPUs, MemoryMiB: b.MemoryMiB,
		Given: &worker.Given{Run: b.Run, Secrets: b.Secrets, Token: b.Token}, Learn: memory{j}, Uploads: uploads{j}, Services: j.services,
		Risk: func(key string, step int) float64 { return b.Risk[step] }, Tree: func() string { return b.Tree }, Log: j.c.cfg.Log}
	if b.Source {
		r.Source = j
	}
	if b.Actions {
		r.Actions = action.NewResolver(action.Config{From: from{j}, Log: j.c.cfg.Log})
	}
	return r
}

// Emit implements [desk.Job].
func (j *job) Emit(r ci.Record) {
	if r.Type == ci.JobFinished {
		j.ended.Store(true)
	}
	if err := j.spool.put(r); err != nil && j.ctx.Err() == nil {
		j.c.cfg.Log.Error("a record could not be kept", "job", j.fence.Job, "err", err)
	}
}

// patient bounds what is told of the end of a job.
func (j *job) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, j.c.cfg.Patience)
}

// Finish implements [desk.Job].
func (j *job) Finish(ctx context.Context, out conduct.Outcome) error {
	ctx, cancel := j.patient(ctx)
	defer cancel()
	err := j.spool.drain(ctx)
	if err != nil && final(err) {
		out = conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: err.Error()}
		err = nil
	}
	if err == nil {
		err = j.call(ctx, "finish", finishRequest{Conclusion: out.Conclusion, Outputs: out.Outputs, Reason: out.Reason, Infrastructure: out.Infrastructure}, nil)
	}
	if over(err) || errors.Is(err, queue.ErrLost) {
		return nil
	}
	return err
}

// Release implements [desk.Job].
func (j *job) Release(ctx context.Context, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second) // after that its lease ends
	defer cancel()
	err := j.call(ctx, "release", releaseRequest{Reason: reason}, nil)
	if over(err) || errors.Is(err, queue.ErrLost) {
		return nil
	}
	return err
}

// Ended implements [desk.Job]: what this attempt has told counts, or nothing does.
func (j *job) Ended(context.Context) (bool, error) { return j.ended.Load(), nil }

// services passes what the job's machine asks of its services to the server.
func (j *job) services(*plan.Run, *plan.Job, time.Time) (*worker.Served, error) {
	ticket, err := json.Marshal(j.brief.Ticket)
	if err != nil {
		return nil, err
	}
	s := &worker.Served{Results: j.brief.Results, IDToken: j.brief.IDToken}
	prefix := strings.TrimRight(j.c.base.Path, "/") + Root + j.path("service")
	s.Handle("/", &httputil.ReverseProxy{Transport: untilThere{j}, FlushInterval: -1, ErrorLog: slog.NewLogLogger(j.c.cfg.Log.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			own := r.In.Header.Get("Authorization")
			for _, h := range []string{innerAuth, ticketHeader, workerHeader, protocolHeader} {
				r.Out.Header.Del(h)
			}
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = j.c.base.Scheme, j.c.base.Host, j.c.base.Host
			r.Out.URL.Path, r.Out.URL.RawPath = prefix+r.In.URL.Path, ""
			kind := r.Out.Header.Get("Content-Type")
			j.c.sign(r.Out.Header)
			r.Out.Header.Set("Content-Type", kind)
			r.Out.Header.Set(ticketHeader, base64.StdEncoding.EncodeToString(ticket))
			if own != "" {
				r.Out.Header.Set(innerAuth, own)
			}
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			j.c.cfg.Log.Warn("a job's request could not be passed on", "job", j.fence.Job, "err", err)
			http.Error(w, "the server does not answer: try again", http.StatusServiceUnavailable)
		}})
	return s, nil
}

// untilThere sends requests, and again those that nobody has taken, until there is a
// server that does, or whoever asks is gone.
type untilThere struct{ j *job }

func (u untilThere) RoundTrip(r *http.Request) (*http.Response, error) {
	body := &unread{Reader: r.Body}
	// Not the request's own context: what is said on the way (100 Continue) is for us.
	own, stop := context.WithCancel(context.Background())
	context.AfterFunc(r.Context(), stop)
	if r.Body != nil {
		defer r.Body.Close()
	}
	var resp *http.Response
	err := u.j.again(r.Context(), "service", func(ctx context.Context) error {
		try := r.Clone(own)
		if r.Body != nil && r.Body != http.NoBody {
			try.Body = io.NopCloser(body)
			try.Header.Set("Expect", "100-continue") // who does not take it has none of it
		}
		var err error
		resp, err = u.j.c.http.Transport.RoundTrip(try)
		switch dial, ok := errors.AsType[*net.OpError](err); {
		case ok && dial.Op == "dial" && !body.begun.Load():
			return err
		case err != nil:
			return &unsent{err}
		case resp.Header.Get(againHeader) != "" && !body.begun.Load():
			resp.Body.Close()
			return refuse(resp.StatusCode, "the server does not take it yet")
		}
		return nil
	})
	if failed, ok := errors.AsType[*unsent](err); ok {
		err = failed.err
	}
	return resp, err
}

// unread is a request's body, and whether anything of it is gone.
type unread struct {
	io.Reader
	begun atomic.Bool
}

func (b *unread) Read(p []byte) (int, error) {
	b.begun.Store(true)
	return b.Reader.Read(p)
}

// unsent is a request that was cut: it cannot be sent again.
type unsent struct{ err error }

func (u *unsent) Error() string { return u.err.Error() }

// memory is the server's learner.
type memory struct{ j *job }

func (m memory) ModeOf(string) learn.Mode { return m.j.brief.Mode }

// memoryTime is how long a job waits for what is known: learning is never in its way.
const memoryTime = 30 * time.Second

func (m memory) ask(ctx context.Context, what string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, memoryTime)
	defer cancel()
	return m.j.call(ctx, what, in, out)
}

func wire(f learn.Failure) failure {
	return failure{Step: f.Step, Name: f.Name, Command: f.Command, Attempt: f.Attempt, ExitCode: f.ExitCode, NoRetry: f.NoRetry,
		Image: f.Image, Host: f.Host, Lines: f.Lines}
}

func (m memory) Explain(ctx context.Context, f learn.Failure) (e ci.Explanation, err error) {
	err = m.ask(ctx, "explain", wire(f), &e)
	return e, err
}

func (m memory) Retry(ctx context.Context, f learn.Failure, e ci.Explanation) (d learn.Decision) {
	q := retryRequest{Failure: wire(f), Explanation: e}
	q.Failure.Lines = nil // they were explained
	if err := m.ask(ctx, "retry", q, &d); err != nil {
		m.j.c.cfg.Log.Error("retry decision", "job", m.j.fence.Job, "err", err)
		return learn.Decision{Reason: "no retry: the server could not be asked"}
	}
	return d
}

func (m memory) TestsRan(ctx context.Context, r learn.TestRun) (notes []ci.TestNote, err error) {
	err = m.ask(ctx, "tests", testRun{Name: r.Name, Command: r.Command, Signature: r.Signature, Green: r.Green, Results: r.Results}, &notes)
	return notes, err
}

// uploads are the job's own on the server.
type uploads struct{ j *job }

func (u uploads) Artifacts(string, string) (list []results.Artifact, err error) {
	err = memory(u).ask(u.j.ctx, "uploads", struct{}{}, &list)
	return list, err
}

func (u uploads) OpenArtifact(_ string, a results.Artifact) (*os.File, error) {
	ctx, cancel := context.WithTimeout(u.j.ctx, memoryTime)
	defer cancel()
	f, _, err := u.j.pull(ctx, "upload", a.ID)
	return f, err
}

// pull fetches a stream into a file without a name, from its beginning after each cut.
func (j *job) pull(ctx context.Context, what string, in any) (f *os.File, end *pulled, err error) {
	f, err = os.CreateTemp("", "hearth-pull-")
	if err != nil {
		return nil, nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		err = j.again(ctx, what, func(ctx context.Context) error {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			if err := f.Truncate(0); err != nil {
				return err
			}
			resp, err := j.c.request(ctx, http.MethodPost, j.path(what), in)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			end, err = unframe(f, resp.Body)
			return err
		})
	}
	if err == nil {
		err = end.err()
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, end, err
	}
	return f, end, nil
}

// unframe reads a stream to its end.
func unframe(w io.Writer, r io.Reader) (*pulled, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	for sum := int64(0); ; {
		var head [5]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return nil, fmt.Errorf("the stream was cut: %w", err)
		}
		n := int64(binary.BigEndian.Uint32(head[1:]))
		switch {
		case head[0] == frameData && n <= maxFrame:
			if sum += n; sum > maxPulled {
				return nil, refuse(http.StatusRequestEntityTooLarge, "the server sends more than %d GiB", maxPulled>>30)
			}
			if _, err := io.CopyN(w, in, n); err != nil {
				return nil, fmt.Errorf("the stream was cut: %w", err)
			}
		case head[0] == frameEnd && n <= maxBody:
			b := make([]byte, n)
			if _, err := io.ReadFull(in, b); err != nil {
				return nil, fmt.Errorf("the stream was cut: %w", err)
			}
			end := &pulled{}
			return end, json.Unmarshal(b, end)
		default:
			return nil, refuse(http.StatusBadGateway, "the server sends what is no stream")
		}
	}
}

// Checkout implements engine.Source.
func (j *job) Checkout(ctx context.Context, req action.CheckoutRequest, w io.Writer) (string, error) {
	return j.checkout(ctx, checkoutRequest{}, req, w)
}

func (j *job) checkout(ctx context.Context, q checkoutRequest, req action.CheckoutRequest, w io.Writer) (string, error) {
	q.Ref, q.Depth, q.Tags, q.Modules, q.Within, q.LFS, q.Token = req.Ref, req.Depth, req.Tags, req.Modules != nil, req.Within, req.LFS, req.Token
	if !q.LFS {
		q.Token = "" // nothing else wants it
	}
	f, end, err := j.pull(ctx, "checkout", q)
	if end != nil {
		for _, n := range end.Notes {
			req.Say("%s", n)
		}
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if end.HasModules && req.Modules != nil {
		req.Modules(end.Modules)
	}
	_, err = io.Copy(w, f)
	return end.SHA, err
}

// from is the server's resolver.
type from struct{ j *job }

func (x from) Resolve(ctx context.Context, ref action.Ref) (*action.Tree, error) {
	f, end, err := x.j.pull(ctx, "action", ref)
	if err != nil {
		return nil, err
	}
	note := ""
	if len(end.Notes) > 0 {
		note = end.Notes[0]
	}
	return action.Packed(end.Repository, ref.Ref, end.SHA, note, f), nil // the file goes when nobody has it any more
}

func (x from) Checkout(ctx context.Context, owner, repo string, req action.CheckoutRequest, w io.Writer) (string, error) {
	return x.j.checkout(ctx, checkoutRequest{Owner: owner, Repo: repo}, req, w)
}
