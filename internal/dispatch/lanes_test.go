package dispatch

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

// takeover is how long it may take until another server goes on with what a dead one
// drove, with the leases of a real server; those of the tests are shorter.
const takeover = 30 * time.Second

// peer is a server in a process of its own.
type peer struct {
	cmd     *exec.Cmd
	address string
}

func (s *site) peer(f access) *peer {
	s.t.Helper()
	given, err := json.Marshal(f)
	if err != nil {
		s.t.Fatal(err)
	}
	p := &peer{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), "HEARTH_TEST_SERVER="+string(given))
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	p.address = strings.TrimSpace(line)
	return p
}

// driver is which of the peers drives a repository.
func (s *site) driver(peers []*peer, repository string) *peer {
	s.t.Helper()
	leases, err := s.store.Leases(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, l := range leases {
		for _, p := range peers {
			if l.Repository == strings.ToLower(repository) && strings.HasPrefix(l.Owner, strconv.Itoa(p.cmd.Process.Pid)+"-") {
				return p
			}
		}
	}
	return nil
}

// Two servers share a database. The one that drives a run is killed, or suspended and
// woken later: the other one goes on with the run, jobs that had ended are not run
// again, what the woken one still says counts for nothing, and each check ends once.
func TestTwoServers(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "suspended": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			s := newForge(t)
			dir, marks := t.TempDir(), t.TempDir()
			go1 := filepath.Join(marks, "go")
			s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": fmt.Sprintf(waiting, marks)})
			t.Cleanup(func() { os.WriteFile(go1, nil, 0o600) }) // frees the shells of the dead
			f := s.forge(dir)
			f.Database = storetest.PostgreSQL(t)
			db, err := store.Open(t.Context(), f.Database, store.WithLogs(filepath.Join(dir, "logs")))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			s.live = &live{dir: dir, store: db}
			peers := []*peer{s.peer(f), s.peer(f)}
			deliver(t, peers[0].address, s.push(nil))
			slow := filepath.Join(marks, "slow")
			s.until("the job runs", func() bool { return lines(t, slow) == 1 })
			first := s.driver(peers, hello)
			if first == nil {
				t.Fatal("nobody drives the run")
			}
			first.cmd.Process.Signal(sig)
			began := time.Now()
			s.patience = takeover
			s.until("another server runs the job again", func() bool { return lines(t, slow) == 2 })
			t.Logf("taken over after %v", time.Since(began).Round(10*time.Millisecond))
			if now := s.driver(peers, hello); now == nil || now == first {
				t.Errorf("the run is driven by %v", now)
			}
			if sig == syscall.SIGSTOP {
				first.cmd.Process.Signal(syscall.SIGCONT)
			}
			if err := os.WriteFile(go1, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for name, c := range s.ended(3) {
				if c.Conclusion != "success" || strings.Count(strings.Join(c.History, " "), "completed") != 1 {
					t.Errorf("%s: %v", name, c.History)
				}
			}
			s.settled()
			s.until("the run is over", func() bool { return s.runs()[0].Status == ci.Completed })
			if got := s.runs()[0]; got.Conclusion != ci.Success {
				t.Errorf("the run: %+v", got)
			}
			if n := lines(t, filepath.Join(marks, "quick")); n != 1 {
				t.Errorf("a job that had ended ran %d times", n)
			}
			ends := map[string]int{}
			if err := s.store.EachRunRecord(t.Context(), s.runs()[0].ID, func(r ci.Record) {
				if r.Type == ci.JobFinished || r.Type == ci.RunFinished {
					ends[r.JobKey]++
				}
			}); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(ends) != "map[:1 after:1 quick:1 slow:1]" {
				t.Errorf("ends on record: %v", ends)
			}
			s.until("nobody holds what is over", func() bool {
				leases, err := s.store.Leases(context.Background())
				return err == nil && len(leases) == 0
			})
		})
	}
}

// A server that has lost a repository says nothing more about its runs, and goes on
// with them if it gets it back.
func TestLeaseLost(t *testing.T) {
	marks := t.TempDir()
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": fmt.Sprintf(waiting, marks)})
	t.Cleanup(func() { os.WriteFile(filepath.Join(marks, "go"), nil, 0o600) })
	s.deliver("push", s.push(nil))
	s.until("the job runs", func() bool { return lines(t, filepath.Join(marks, "slow")) == 1 })
	ctx := t.Context()
	var other store.Lease
	s.until("another server has the repository", func() bool {
		if _, err := s.store.RenewLeases(ctx, s.d.repos.owner, 0); err != nil {
			t.Fatal(err)
		}
		l, got, err := s.store.TakeLease(ctx, hello, "other", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		other = l
		return got
	})
	s.until("the server has let go", func() bool {
		s.d.mu.Lock()
		defer s.d.mu.Unlock()
		return len(s.d.runs) == 0
	})
	if f := s.d.Figures(); f.LeasesLost == 0 || f.Events["done"] != 1 {
		t.Errorf("%+v", f)
	}
	if run := s.runs()[0]; run.Status != ci.InProgress {
		t.Errorf("it ended another server's run: %+v", run)
	}
	for _, c := range s.gh.Checks() {
		if c.Name == "Slow / slow" && c.Status == "completed" {
			t.Errorf("it ended a check: %+v", c)
		}
	}
	// Events of the repository are the other one's.
	id := ci.NewID()
	body := s.push(map[string]any{"after": head2, "head_commit.id": head2})
	s.gh.Send(id, "push", body)
	_, answer := s.post("push", id, body, "")
	time.Sleep(300 * time.Millisecond)
	if e, err := s.store.Event(ctx, answer["id"]); err != nil || e.State != store.EventPending {
		t.Errorf("%+v %v", e.State, err)
	}
	if err := s.store.ReleaseLease(ctx, other, "other"); err != nil {
		t.Fatal(err)
	}
	s.until("the job runs again", func() bool { return lines(t, filepath.Join(marks, "slow")) == 2 })
	if err := os.WriteFile(filepath.Join(marks, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range s.ended(3) {
		if c.Conclusion != "success" {
			t.Errorf("%s: %v", name, c.History)
		}
	}
}

// A run that somebody wants to end, wherever he says so, ends.
func TestCancelRun(t *testing.T) {
	marks := t.TempDir()
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": fmt.Sprintf(waiting, marks)})
	t.Cleanup(func() { os.WriteFile(filepath.Join(marks, "go"), nil, 0o600) })
	s.deliver("push", s.push(nil))
	s.until("the job runs", func() bool { return lines(t, filepath.Join(marks, "slow")) == 1 })
	if under, err := s.store.CancelRun(t.Context(), s.runs()[0].ID, "somebody said so"); err != nil || !under {
		t.Fatal(under, err)
	}
	s.until("the run is over", func() bool { return s.runs()[0].Status == ci.Completed })
	if run := s.runs()[0]; run.Conclusion != ci.Cancelled {
		t.Errorf("%+v", run)
	}
	if under, err := s.store.CancelRun(t.Context(), s.runs()[0].ID, "once more"); err != nil || under {
		t.Error(under, err)
	}
	s.settled()
}
