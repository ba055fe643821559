package remote_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

// holder waits for the worker that has a job of the run.
func (s *site) holder(key string) string {
	s.t.Helper()
	var name string
	s.until(key+" is under way", 20*time.Second, func() bool {
		lines, job := s.lines(key, "n=")
		if job.ID == "" || len(lines) < 2 {
			return false
		}
		state, _, worker, _, err := s.store.QueueState(context.Background(), job.ID)
		name = worker
		return err == nil && state == "claimed"
	})
	return name
}

const counts = `
  count:
    runs-on: ubuntu-latest
    steps:
      - run: for i in $(seq 1 60); do echo n=$i; sleep 0.1; done
`

// A worker that is killed loses its job to another, and the check ends well, once.
func TestKilledWorker(t *testing.T) {
	for _, name := range []string{"sqlite", "postgresql"} {
		t.Run(name, func(t *testing.T) {
			database := ""
			if name == "postgresql" {
				database = storetest.PostgreSQL(t)
			}
			s := newSite(t, database)
			workers := map[string]*proc{"w1": s.worker("w1", nil), "w2": s.worker("w2", nil)}
			s.push(counts)
			held := s.holder("count")
			killed := time.Now()
			for name, w := range workers {
				if strings.Contains(held, "/"+name+".") {
					w.kill()
				}
			}
			// As much again as the job takes, and what it takes to notice.
			got := s.checks(1, 45*time.Second)
			lines, job := s.lines("count", "n=")
			if got["CI / count"].Conclusion != "success" || job.Attempt != 2 || len(lines) < 60 {
				t.Errorf("%+v\n%+v", got, job)
			}
			counted(t, lines[max(0, len(lines)-60):], 60)
			t.Logf("elsewhere and ended %v after the kill", time.Since(killed).Round(100*time.Millisecond))
		})
	}
}

// A server that is killed, and away for longer than a lease, costs no job, and no line
// of it.
func TestServerAway(t *testing.T) {
	s := newSite(t, "")
	s.worker("w1", nil)
	s.push(counts)
	s.holder("count")
	s.server.kill()
	time.Sleep(5 * time.Second)
	s.restart()
	got := s.checks(1, 30*time.Second)
	lines, job := s.lines("count", "n=")
	if got["CI / count"].Conclusion != "success" || job.Attempt != 1 {
		t.Errorf("%+v\n%+v", got, job)
	}
	counted(t, lines, 60)
}

// A server that stops in order leaves the jobs of its workers alone, and the next one
// goes on with them.
func TestServerStops(t *testing.T) {
	s := newSite(t, "")
	s.worker("w1", nil)
	s.push(counts)
	s.holder("count")
	s.server.signal(syscall.SIGTERM)
	s.server.read.Wait()
	s.server.cmd.Wait()
	s.restart()
	got := s.checks(1, 30*time.Second)
	lines, job := s.lines("count", "n=")
	if got["CI / count"].Conclusion != "success" || job.Attempt != 1 {
		t.Errorf("%+v\n%+v", got, job)
	}
	counted(t, lines, 60)
}

// link is what a worker's connections go through: it can be cut.
type link struct {
	l    net.Listener
	to   string
	mu   sync.Mutex
	cut  bool
	open map[net.Conn]bool
}

func newLink(t *testing.T, to string) *link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &link{l: l, to: to, open: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); x.set(true) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go x.pass(c)
		}
	}()
	return x
}

func (x *link) pass(c net.Conn) {
	x.mu.Lock()
	cut := x.cut
	x.mu.Unlock()
	d, err := net.Dial("tcp", x.to)
	if err != nil || cut {
		c.Close()
		return
	}
	x.mu.Lock()
	x.open[c], x.open[d] = true, true
	x.mu.Unlock()
	go func() { io.Copy(d, c); d.Close() }()
	io.Copy(c, d)
	c.Close()
}

func (x *link) set(cut bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.cut = cut
	for c := range x.open {
		c.Close()
	}
	x.open = map[net.Conn]bool{}
}

// A link that is cut again and again, for less than a lease each time, loses no line and
// doubles none.
func TestCutLink(t *testing.T) {
	s := newSiteWith(t, "", func(f *serverSettings) { f.LeaseMS = 15_000 })
	x := newLink(t, s.settings.Listen)
	s.worker("w1", func(f *workerSettings) { f.Server = "http://" + x.l.Addr().String() })
	s.push(counts)
	s.holder("count")
	for i := range 12 {
		x.set(true)
		time.Sleep(time.Duration(50+100*(i%3)) * time.Millisecond)
		x.set(false)
		time.Sleep(150 * time.Millisecond)
	}
	got := s.checks(1, 30*time.Second)
	lines, job := s.lines("count", "n=")
	if got["CI / count"].Conclusion != "success" || job.Attempt != 1 {
		t.Errorf("%+v\n%+v", got, job)
	}
	counted(t, lines, 60)
}

// A worker that was suspended for longer than a lease wakes up to a job that is another's:
// nothing that it says is taken, and what it runs is ended.
func TestZombie(t *testing.T) {
	s := newSite(t, "")
	first := s.worker("w1", nil)
	mark := filepath.Join(s.dir, "mark")
	s.push(`
  count:
    runs-on: ubuntu-latest
    steps:
      - run: |
          echo n=1; echo n=2
          for i in $(seq 1 100); do echo $PPID $i >> ` + mark + `.$$; sleep 0.1; done
          echo n=3
`)
	s.holder("count")
	s.worker("w2", nil)
	first.signal(syscall.SIGSTOP)
	s.until("another has the job", 20*time.Second, func() bool {
		_, job := s.lines("count", "")
		return job.Attempt == 2
	})
	first.signal(syscall.SIGCONT)
	got := s.checks(1, 30*time.Second)
	lines, job := s.lines("count", "n=")
	if got["CI / count"].Conclusion != "success" || job.Attempt != 2 {
		t.Errorf("%+v\n%+v", got, job)
	}
	if text := strings.Join(lines, " "); text != "1 2 1 2 3" {
		t.Errorf("lines: %s", text)
	}
	files, _ := filepath.Glob(mark + ".*")
	if len(files) != 2 {
		t.Fatalf("it ran %d times", len(files))
	}
	ended := 0
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if strings.Contains(string(b), " 100\n") {
			ended++
		}
	}
	if ended != 1 || !strings.Contains(first.text(), "was given up") {
		t.Errorf("%d of the two attempts ran to their end; the first worker said:\n%s", ended, first.text())
	}
}

// A cancellation reaches the worker at once, whatever the lease.
func TestCancelled(t *testing.T) {
	s := newSiteWith(t, "", func(f *serverSettings) { f.LeaseMS = 60_000 })
	s.worker("w1", func(f *workerSettings) { f.Slots = 2 })
	s.push(`
  m:
    runs-on: ubuntu-latest
    strategy: {matrix: {v: [1, 2]}}
    steps:
      - run: |
          echo n=1; echo n=2
          sleep 1
          test ${{ matrix.v }} = 1 || sleep 60
          exit 1
`)
	got := s.checks(2, 30*time.Second)
	_, one := s.lines("m (1)", "")
	_, two := s.lines("m (2)", "")
	if one.Conclusion != ci.Failure || two.Conclusion != ci.Cancelled {
		t.Errorf("%+v", got)
	}
	if d := two.Finished.Sub(one.Finished); d > 10*time.Second {
		t.Errorf("the cancellation took %v", d)
	} else {
		t.Logf("cancelled and ended %v after the other had failed", d)
	}
}

// A worker that is told to stop takes no more jobs, and lets the one it has end.
func TestDrain(t *testing.T) {
	s := newSite(t, "")
	w := s.worker("w1", nil)
	s.push(counts + "  next:\n    needs: count\n    runs-on: ubuntu-latest\n    steps: [{run: echo next}]\n")
	s.holder("count")
	w.signal(syscall.SIGTERM)
	w.read.Wait()
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	lines, job := s.lines("count", "n=")
	counted(t, lines, 60)
	if job.Conclusion != ci.Success || job.Attempt != 1 {
		t.Errorf("%+v", job)
	}
	if _, next := s.lines("next", ""); next.Status == ci.Completed {
		t.Errorf("it took another: %+v", next)
	}
	s.worker("w2", nil)
	s.checks(2, 20*time.Second)
}

// A server that starts again knows what it had: records that come again are kept once,
// and a worker that held a job before has time to say that it lives.
func TestRestartedServer(t *testing.T) {
	s := newSiteWith(t, "", func(f *serverSettings) { f.LeaseMS = 6000 })
	s.push(one)
	r := s.rogue("mine")
	at := r.claim()
	line := func(text string) map[string]any {
		return map[string]any{"type": "log", "stream": "stdout", "step": 1, "text": text, "time": time.Now()}
	}
	if code, a := r.ask(at+"records", records(1, line("a"), line("b"))); code != 200 {
		t.Fatalf("%d %v", code, a)
	}
	s.server.kill()
	time.Sleep(7 * time.Second) // longer than its lease
	s.restart()
	time.Sleep(3 * time.Second) // in which the run is taken up, and leases that have ended are looked for
	s.until("the server has the run", 20*time.Second, func() bool {
		code, a := r.ask(at+"records", records(1, line("a"), line("b"), line("c")))
		if code == 410 {
			t.Fatalf("the job was lost: %v", a)
		}
		return code == 200
	})
	if code, a := r.ask(at+"finish", map[string]any{"conclusion": "success"}); code != 200 {
		t.Errorf("%d %v", code, a)
	}
	if lines, job := s.lines("one", ""); strings.Join(lines, "") != "abc" || job.Attempt != 1 {
		t.Errorf("%q, %+v", lines, job)
	}
}
