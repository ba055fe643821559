package bench

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/front"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// ServeOptions say what to measure a server with.
type ServeOptions struct {
	Dir      string // for the database: on the disk that counts
	Seconds  int    // of each load; 5
	Progress func(what string)
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
// come. The way from a push to its check takes a GitHub: `go test -bench` of
// package dispatch measures it, against its faithful fake.
func Serve(ctx context.Context, o ServeOptions) (*Report, error) {
	if o.Seconds <= 0 {
		o.Seconds = 5
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	r := NewReport()
	if err := deliveries(ctx, o, r); err != nil {
		return nil, err
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

func hook(s *store.Store) *webhook.Handler {
	return &webhook.Handler{Secret: benchSecret, MaxBody: 25 << 20, Recorder: front.Deliveries{Store: s}, Log: slog.New(slog.DiscardHandler),
		Starts: func(event string) bool { return len(workflow.TriggerEvents(event)) > 0 }}
}

// deliveries measures the webhook alone.
func deliveries(ctx context.Context, o ServeOptions, r *Report) error {
	s, err := store.Open(ctx, filepath.Join(o.Dir, "deliveries.db"))
	if err != nil {
		return err
	}
	defer s.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: hook(s)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() { server.Close(); <-served }()
	const senders = 8
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	defer transport.CloseIdleConnections()
	to := &sender{"http://" + listener.Addr().String(), &http.Client{Transport: transport, Timeout: 10 * time.Second}}
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
