package dispatch

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
	"github.com/hearth-ci/hearth/internal/webhook"
)

const tenJobs = `name: Ten
on: push
jobs:
  job:
    runs-on: ubuntu-latest
    strategy:
      fail-fast: false
      matrix:
        n: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    steps:
      - run: sleep 0.2
`

// Two servers share a PostgreSQL, and are killed and suspended at random while they run
// 300 jobs: each job ends once, its check says what is on record, and nothing is left.
func TestChaos(t *testing.T) {
	if os.Getenv("HEARTH_SLOW") == "" {
		t.Skip("minutes: set HEARTH_SLOW=1; TestTwoServers kills and suspends one server")
	}
	s := newForge(t)
	s.patience = 8 * time.Minute
	dir := t.TempDir()
	f := s.forge(dir)
	f.Database = storetest.PostgreSQL(t)
	db, err := store.Open(t.Context(), f.Database, store.WithLogs(filepath.Join(dir, "logs")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s.live = &live{dir: dir, store: db}
	peers := []*peer{s.peer(f), s.peer(f)}
	const pushes = 30
	over := func() bool {
		runs, err := s.store.Runs(context.Background(), store.RunFilter{Status: ci.Completed, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		return len(runs) == pushes
	}
	sent, kills, stops := 0, 0, 0
	for deadline := time.Now().Add(s.patience); !over(); {
		if time.Now().After(deadline) {
			t.Fatal("the runs do not end")
		}
		for range 2 {
			if sent == pushes {
				break
			}
			full := fmt.Sprintf("Codertocat/R%d", sent%6)
			sha := githubtest.SHA(fmt.Sprint("push ", sent))
			s.gh.Commit(full, sha, map[string]string{".github/workflows/ci.yml": tenJobs})
			body := s.push(map[string]any{"repository.full_name": full, "repository.name": full[len("Codertocat/"):], "after": sha, "head_commit.id": sha})
			insist(t, peers, fmt.Sprintf("delivery-%d", sent), body)
			sent++
		}
		i := rand.N(len(peers))
		switch rand.N(3) {
		case 0:
			peers[i].cmd.Process.Kill()
			peers[i].cmd.Wait()
			peers[i] = s.peer(f)
			kills++
		case 1: // for longer than a lease
			p := peers[i].cmd.Process
			p.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(1000+rand.N(4000)) * time.Millisecond)
			p.Signal(syscall.SIGCONT)
			stops++
		}
		time.Sleep(time.Duration(rand.N(2500)) * time.Millisecond)
	}
	t.Logf("%d kills, %d suspensions", kills, stops)
	s.settled()
	conclusions := map[string]ci.Conclusion{} // by job id
	count := map[ci.Conclusion]int{}
	for _, run := range func() []ci.Run {
		runs, err := s.store.Runs(t.Context(), store.RunFilter{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		return runs
	}() {
		ends := map[string]int{}
		if err := s.store.EachRunRecord(t.Context(), run.ID, func(r ci.Record) {
			if r.Type == ci.JobFinished || r.Type == ci.RunFinished {
				ends[r.JobKey]++
			}
		}); err != nil {
			t.Fatal(err)
		}
		jobs, err := s.store.Jobs(t.Context(), run.ID)
		if err != nil || len(jobs) != 10 || len(ends) != 11 {
			t.Fatalf("run %s: %d jobs, ends %v, %v", run.ID, len(jobs), ends, err)
		}
		for key, n := range ends {
			if n != 1 {
				t.Errorf("run %s: %q ended %d times", run.ID, key, n)
			}
		}
		for _, j := range jobs {
			conclusions[j.ID] = j.Conclusion
			count[j.Conclusion]++
			if j.Conclusion != ci.Success && !j.Infrastructure {
				t.Errorf("job %s: %s: %s", j.ID, j.Conclusion, j.Reason)
			}
		}
	}
	t.Logf("jobs: %v", count)
	checks := s.gh.Checks()
	if len(conclusions) != 10*pushes || len(checks) != 10*pushes {
		t.Errorf("%d jobs, %d checks", len(conclusions), len(checks))
	}
	for _, c := range checks {
		if c.Conclusion != string(conclusions[c.ExternalID]) || strings.Count(strings.Join(c.History, " "), "completed") != 1 {
			t.Errorf("check of job %s, which is %s: %v", c.ExternalID, conclusions[c.ExternalID], c.History)
		}
	}
	s.until("nothing is left in the queue, and no lease", func() bool {
		depth, err1 := s.store.QueueDepths(context.Background())
		leases, err2 := s.store.Leases(context.Background())
		return err1 == nil && err2 == nil && len(depth)+len(leases) == 0
	})
}

// insist delivers as GitHub does that delivers again: until a server has taken it.
func insist(t *testing.T, peers []*peer, id string, body []byte) {
	t.Helper()
	client := &http.Client{Timeout: 2 * time.Second}
	for try := range 60 {
		r, err := http.NewRequest(http.MethodPost, peers[try%len(peers)].address+"/webhooks/github", strings.NewReader(string(body)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-GitHub-Event", "push")
		r.Header.Set("X-GitHub-Delivery", id)
		r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(webhook.Sign(secret, body)))
		if resp, err := client.Do(r); err == nil {
			if resp.Body.Close(); resp.StatusCode == http.StatusAccepted {
				return
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("nobody takes the delivery")
}
