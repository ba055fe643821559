package bench

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/dispatch"
	"github.com/hearth-ci/hearth/internal/forge/github"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// ServeOptions say what to measure a server with.
type ServeOptions struct {
	Dir string // for the database: on the disk that counts
	// Pool gives the machines for the figure from the signature to the check; nil
	// leaves it out.
	Pool            *pool.Pool
	CPUs, MemoryMiB int
	Seconds         int // of each load; 5
	Rounds          int // pushes to their checks; 10
	Progress        func(what string)
}

// The targets: deliveries a second, and ms to the answer.
const (
	targetDeliveries = 500.0
	targetDelivery   = 10.0
)

const benchSecret = "a secret for the bench"

// Serve measures the webhook with its database on disk, over HTTP on this
// host's own network: how many deliveries it takes in a second from eight senders
// that wait for each answer, and how long an answer takes while 500 a second
// come. With a pool, it measures the time from a signed push to its check being
// in progress, that is to the first machine at work, against a GitHub in this
// process that answers at once.
func Serve(ctx context.Context, o ServeOptions) (*Report, error) {
	if o.Seconds <= 0 {
		o.Seconds = 5
	}
	if o.Rounds <= 0 {
		o.Rounds = 10
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	r := NewReport()
	if err := deliveries(ctx, o, r); err != nil {
		return nil, err
	}
	if o.Pool != nil {
		if err := checks(ctx, o, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// push is a delivery of a usual size, 8 kB.
func push(installation int64, repository, sha string) ([]byte, error) {
	_, name, _ := strings.Cut(repository, "/")
	return json.Marshal(map[string]any{
		"ref": "refs/heads/main", "before": strings.Repeat("0", 40), "after": sha, "created": true, "deleted": false, "forced": false,
		"base_ref": nil, "compare": "", "commits": []any{}, "pusher": map[string]any{"name": "octocat"},
		"repository":   map[string]any{"full_name": repository, "name": name, "default_branch": "main", "description": strings.Repeat("a repository ", 500)},
		"installation": map[string]any{"id": installation}, "sender": map[string]any{"login": "octocat"},
		"head_commit": map[string]any{"id": sha, "message": "A change"},
	})
}

// sender posts signed deliveries.
type sender struct {
	url    string
	client *http.Client
}

func (s *sender) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-GitHub-Delivery", ci.NewID())
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(webhook.Sign(benchSecret, body)))
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("a delivery was answered with %s", resp.Status)
	}
	return nil
}

func hook(s *store.Store, stored func()) *webhook.Handler {
	return &webhook.Handler{Secret: benchSecret, MaxBody: 25 << 20, Recorder: dispatch.Deliveries{Store: s}, Stored: stored, Log: slog.New(slog.DiscardHandler),
		Starts: func(event string) bool { return len(workflow.TriggerEvents(event)) > 0 }}
}

// deliveries measures the webhook alone.
func deliveries(ctx context.Context, o ServeOptions, r *Report) error {
	s, err := store.Open(ctx, filepath.Join(o.Dir, "deliveries.db"))
	if err != nil {
		return err
	}
	defer s.Close()
	server := httptest.NewServer(hook(s, nil))
	defer server.Close()
	const senders = 8
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	defer transport.CloseIdleConnections()
	to := &sender{server.URL, &http.Client{Transport: transport, Timeout: 10 * time.Second}}
	sha := strings.Repeat("a", 40)
	template, err := push(1, "owner/repository", sha)
	if err != nil {
		return err
	}
	// No two are alike: of a body that comes again GitHub would be asked.
	var sent atomic.Int64
	body := func() []byte { return bytes.ReplaceAll(template, []byte(sha), fmt.Appendf(nil, "%040x", sent.Add(1))) }
	var failed atomic.Pointer[error]
	note := func(err error) {
		if err != nil {
			failed.CompareAndSwap(nil, &err)
		}
	}

	o.Progress("deliveries, as many as go")
	var rates []float64
	for range o.Seconds {
		var wg sync.WaitGroup
		var n atomic.Int64
		began := time.Now()
		for range senders {
			wg.Go(func() {
				for time.Since(began) < time.Second && ctx.Err() == nil && failed.Load() == nil {
					note(to.post(ctx, body()))
					n.Add(1)
				}
			})
		}
		wg.Wait()
		rates = append(rates, float64(n.Load())/time.Since(began).Seconds())
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	r.AddRate("deliveries accepted", "1/s", targetDeliveries, rates)

	o.Progress("deliveries, 500 a second")
	took := make([]float64, o.Seconds*int(targetDeliveries))
	var wg sync.WaitGroup
	began := time.Now()
	for i := range took {
		due := began.Add(time.Duration(float64(i) / targetDeliveries * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
		if ctx.Err() != nil || failed.Load() != nil {
			break
		}
		wg.Go(func() {
			note(to.post(ctx, body()))
			// From when it was due: a queue in front of us counts.
			took[i] = float64(time.Since(due).Microseconds()) / 1000
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	r.AddP99("delivery to answer at 500/s, p99", "ms", targetDelivery, took)
	return nil
}

// checks measures a push on its way to a check in progress.
func checks(ctx context.Context, o ServeOptions, r *Report) (err error) {
	s, err := store.Open(ctx, filepath.Join(o.Dir, "checks.db"))
	if err != nil {
		return err
	}
	defer s.Close()
	gh := githubtest.New()
	defer gh.Close()
	app, err := github.New(github.Config{BaseURL: gh.URL, AppID: gh.AppID, Key: gh.Key()})
	if err != nil {
		return err
	}
	learner, err := learn.Open(ctx, s, learn.Options{})
	if err != nil {
		return err
	}
	d, err := dispatch.New(dispatch.Config{Store: s, Queue: queue.New(s, queue.Config{}), Forge: app, AppID: gh.AppID, Pool: o.Pool, Labels: []string{"ubuntu-latest"},
		Machines: 1, Learn: learner, Policy: config.Config{CPUs: o.CPUs, MemoryMiB: o.MemoryMiB, Repositories: config.Repositories{"owner/*": {}}}.Policy})
	if err != nil {
		return err
	}
	serving, stop := context.WithCancelCause(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(serving) }()
	defer func() {
		stop(worker.ErrStopping)
		if e := <-ended; err == nil {
			err = e
		}
	}()
	server := httptest.NewServer(hook(s, d.Wake))
	defer server.Close()
	to := &sender{server.URL, &http.Client{Timeout: 10 * time.Second}}
	const repository = "owner/repository"
	var queued, started, over []float64
	for i := range o.Rounds {
		o.Progress(fmt.Sprintf("push %d of %d to its check", i+1, o.Rounds))
		sha := githubtest.SHA(fmt.Sprintf("%04d", i))
		gh.Commit(repository, sha, map[string]string{".github/workflows/ci.yml": "on: push\njobs:\n  one:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo hello\n"})
		body, err := push(gh.Installation, repository, sha)
		if err != nil {
			return err
		}
		// A machine ready, as a server has it between two pushes.
		for until := time.Now().Add(20 * time.Second); o.Pool.Stats().Warm == 0 && time.Now().Before(until) && ctx.Err() == nil; {
			time.Sleep(20 * time.Millisecond)
		}
		began := time.Now()
		if err := to.post(ctx, body); err != nil {
			return err
		}
		seen := 0 // how much of the check's history was timed
		for seen < 3 {
			select {
			case <-gh.Changed():
			case <-time.After(2 * time.Minute):
				return fmt.Errorf("no check after two minutes: %+v", gh.Checks())
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			all := gh.Checks()
			if len(all) <= i {
				continue
			}
			ms := float64(time.Since(began).Microseconds()) / 1000
			c := all[i]
			if seen < 1 {
				queued, seen = append(queued, ms), 1
			}
			if seen < 2 && c.Status != "queued" {
				started, seen = append(started, ms), 2
			}
			if seen < 3 && c.Status == "completed" {
				over, seen = append(over, ms), 3
				if c.Conclusion != "success" {
					return fmt.Errorf("the job ended as %s: %s", c.Conclusion, c.Output.Summary)
				}
			}
		}
	}
	if v := gh.Violations(); len(v) > 0 {
		return fmt.Errorf("GitHub would not have it: %s", strings.Join(v, "; "))
	}
	r.Add("signature to check queued", "ms", 0, queued)
	r.Add("signature to check in progress", "ms", 0, started)
	r.Add("signature to check completed", "ms", 0, over)
	return nil
}
