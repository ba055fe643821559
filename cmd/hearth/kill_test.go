package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// What happens when something is killed, stopped or cancelled, in the middle.

// place is a HEARTH_HOME and a repository of a test's own.
type place struct {
	t    *testing.T
	home string
	repo string
}

func newPlace(t *testing.T, workflow string) *place {
	t.Helper()
	if missing := missingForVM(); missing != "" {
		t.Skip(missing)
	}
	home, err := newHome()
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t, home, t.TempDir()}
	t.Cleanup(func() {
		left := leftovers(home)
		os.RemoveAll(home)
		if len(left) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
	})
	dir := filepath.Join(p.repo, ".github", "workflows")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ci.yml"), []byte(workflow), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// process is a `hearth` that runs in the background.
type process struct {
	t       *testing.T
	cmd     *exec.Cmd
	stderr  bytes.Buffer
	mu      sync.Mutex
	out     bytes.Buffer
	records []ci.Record
	wake    chan struct{} // gets a token after each record
	read    sync.WaitGroup
	code    int
	waited  bool
}

func (p *place) command(args ...string) *exec.Cmd {
	cmd := exec.Command("hearth", args...)
	cmd.Dir = p.repo
	cmd.Env = append(os.Environ(), "HEARTH_HOME="+p.home, "TERM=dumb")
	return cmd
}

// start starts `hearth ARGS` and reads its records.
func (p *place) start(args ...string) *process {
	p.t.Helper()
	x := &process{t: p.t, cmd: p.command(args...), wake: make(chan struct{}, 1), code: -1}
	x.cmd.Stderr = &x.stderr
	stdout, err := x.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := x.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	x.read.Go(func() {
		lines := bufio.NewReader(stdout)
		for {
			line, err := lines.ReadBytes('\n')
			var r ci.Record
			ok := json.Unmarshal(line, &r) == nil
			x.mu.Lock()
			x.out.Write(line)
			if ok {
				x.records = append(x.records, r)
			}
			x.mu.Unlock()
			select {
			case x.wake <- struct{}{}:
			default:
			}
			if err != nil {
				close(x.wake)
				return
			}
		}
	})
	p.t.Cleanup(func() {
		if !x.waited {
			x.cmd.Process.Kill()
			x.wait()
		}
	})
	return x
}

// until waits for a record.
func (x *process) until(what string, match func(ci.Record) bool) ci.Record {
	x.t.Helper()
	late := time.After(2 * time.Minute)
	for open := true; ; {
		x.mu.Lock()
		for _, r := range x.records {
			if match(r) {
				x.mu.Unlock()
				return r
			}
		}
		x.mu.Unlock()
		if !open {
			x.wait()
			x.t.Fatalf("hearth ended (exit code %d) without %s:\n%s%s", x.code, what, x.stderr.String(), x.out.String())
		}
		select {
		case _, open = <-x.wake:
		case <-late:
			x.t.Fatalf("no %s after two minutes:\n%s", what, x.out.String())
		}
	}
}

func (x *process) untilLog(text string) ci.Record {
	x.t.Helper()
	return x.until("the line "+text, func(r ci.Record) bool { return r.Type == ci.LogLine && r.Stream != "system" && r.Text == text })
}

func (x *process) signal(s os.Signal) {
	x.t.Helper()
	if err := x.cmd.Process.Signal(s); err != nil {
		x.t.Fatal(err)
	}
}

// wait returns the exit code; -1 after a signal that was not caught.
func (x *process) wait() int {
	if x.waited {
		return x.code
	}
	x.waited = true
	timer := time.AfterFunc(2*time.Minute, func() {
		x.t.Errorf("hearth does not end:\n%s", x.stderr.String())
		x.cmd.Process.Kill()
	})
	defer timer.Stop()
	x.read.Wait()
	x.cmd.Wait()
	x.code = x.cmd.ProcessState.ExitCode()
	return x.code
}

// check holds all that was printed against the schema.
func (x *process) check() []ci.Record {
	x.t.Helper()
	rs, problems := checkRecords(x.out.Bytes())
	if len(problems) > 0 {
		x.t.Errorf("records:\n  %s", strings.Join(problems, "\n  "))
	}
	return rs
}

func (p *place) hearth(args ...string) (string, int) {
	p.t.Helper()
	cmd := p.command(args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	timer := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, _ := cmd.Output()
	if errs.Len() > 0 {
		p.t.Logf("hearth %s: %s", strings.Join(args, " "), errs.String())
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// onRecord reads back the newest run.
func (p *place) onRecord() ci.Run {
	p.t.Helper()
	out, code := p.hearth("runs", "--json", "-n", "1")
	var r ci.Run
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
		p.t.Fatalf("hearth runs: exit code %d, %v: %s", code, err, out)
	}
	return r
}

// machineProcess is the process of the machine that runs a job, by the id in its
// command line.
func (p *place) machineProcess(x *process, job string) int {
	p.t.Helper()
	r := x.until("the machine of "+job, func(r ci.Record) bool {
		return r.Type == ci.MachineRec && r.JobKey == job && r.Machine.Action != "closed"
	})
	for pid, line := range processesOf(p.home) {
		if strings.Contains(line, r.Machine.ID) && strings.Contains(line, "hearth") && strings.Contains(line, "qemu") {
			return pid
		}
	}
	p.t.Fatalf("no process names machine %s and hearth in its command line: %v", r.Machine.ID, processesOf(p.home))
	return 0
}

func last(rs []ci.Record, t ci.RecordType) ci.Record {
	var out ci.Record
	for _, r := range rs {
		if r.Type == t {
			out = r
		}
	}
	return out
}

const sleeper = `
on: push
jobs:
  first:
    runs-on: ubuntu-latest
    steps:
      - name: sleeps
        run: |
          trap 'echo terminated; exit 1' TERM INT
          echo asleep
          sleep 600 & wait
      - name: later
        run: echo later
  after:
    needs: first
    runs-on: ubuntu-latest
    steps:
      - run: echo after
`

const quick = `
on: push
jobs:
  first:
    runs-on: ubuntu-latest
    steps:
      - run: echo quick
`

// TestMachineDies: the VMM is killed in mid-step. That is not the step's failure,
// and not green.
func TestMachineDies(t *testing.T) {
	t.Parallel()
	p := newPlace(t, sleeper)
	x := p.start("run", "--json")
	x.untilLog("asleep")
	pid := p.machineProcess(x, "first")
	// The doctor speaks of the machines that there are: /dev/kvm may be there and
	// good for nothing.
	if out, _ := p.hearth("doctor"); strings.Contains(processesOf(p.home)[pid], "kvm") == strings.Contains(out, "emulat") {
		t.Errorf("the doctor says\n%s\nbut the machine is\n%s", out, processesOf(p.home)[pid])
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := x.wait(); code != exitInfrastructure {
		t.Errorf("exit code %d, want %d: %s", code, exitInfrastructure, x.stderr.String())
	}
	rs := x.check()
	for _, r := range rs {
		if r.Type == ci.JobFinished && r.Job == "first" && (r.Conclusion != ci.Failure || !r.Infrastructure || r.Reason == "") {
			t.Errorf("the job: %+v", r)
		}
		if r.Type == ci.StepFinished && r.Job == "first" && r.Conclusion == ci.Success {
			t.Errorf("a step is green: %+v", r)
		}
	}
	if r := last(rs, ci.RunFinished); r.Conclusion != ci.Failure {
		t.Errorf("the run: %+v", r)
	}
	if run := p.onRecord(); run.Status != ci.Completed || run.Conclusion != ci.Failure {
		t.Errorf("on record: %+v", run)
	}
}

// TestMachineHangs: the VMM is stopped in mid-step. The step's own timeout ends
// it even though nothing in the machine answers any more.
func TestMachineHangs(t *testing.T) {
	t.Parallel()
	p := newPlace(t, strings.Replace(sleeper, "name: sleeps", "name: sleeps\n        timeout-minutes: 0.1", 1))
	x := p.start("run", "--json")
	x.untilLog("asleep")
	pid := p.machineProcess(x, "first")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if code := x.wait(); code != exitInfrastructure {
		t.Errorf("exit code %d, want %d: %s", code, exitInfrastructure, x.stderr.String())
	}
	rs := x.check()
	for _, r := range rs {
		if r.Type == ci.JobFinished && r.Job == "first" && (r.Conclusion.Green() || !r.Infrastructure || r.Reason == "") {
			t.Errorf("the job: %+v", r)
		}
	}
}

// TestInterrupt: Ctrl-C and SIGTERM at several moments. Whatever was under way,
// it ends in order: exit code 130, cancelled on record, nothing left, and the
// next run works.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	p := newPlace(t, sleeper)
	for _, c := range []struct {
		name   string
		signal os.Signal
		when   func(*process)
		runs   bool // the run is on record by then
	}{
		{"SIGTERM in a step", syscall.SIGTERM, func(x *process) { x.untilLog("asleep") }, true},
		{"Ctrl-C while the machine is made", os.Interrupt, func(x *process) {
			x.until("run.started", func(r ci.Record) bool { return r.Type == ci.RunStarted })
		}, true},
		{"Ctrl-C before anything", os.Interrupt, func(x *process) {
			waitFor(x.t, "the record's database", func() bool { _, err := os.Stat(filepath.Join(p.home, "state", "hearth.db")); return err == nil })
		}, false},
	} {
		if c.name == "Ctrl-C before anything" {
			os.RemoveAll(filepath.Join(p.home, "state"))
		}
		x := p.start("run", "--json")
		c.when(x)
		x.signal(c.signal)
		if code := x.wait(); code != exitCancelled {
			t.Errorf("%s: exit code %d, want %d: %s%s", c.name, code, exitCancelled, x.stderr.String(), x.out.String())
		}
		rs := x.check()
		if left := leftovers(p.home); len(left) > 0 {
			t.Errorf("%s: left behind:\n  %s", c.name, strings.Join(left, "\n  "))
		}
		if !c.runs {
			continue
		}
		if r := last(rs, ci.RunFinished); r.Conclusion != ci.Cancelled {
			t.Errorf("%s: %+v", c.name, r)
		}
		for _, r := range rs {
			if r.Type == ci.JobFinished && r.Conclusion != ci.Cancelled && r.Conclusion != ci.Skipped {
				t.Errorf("%s: a job is %+v", c.name, r)
			}
		}
		if run := p.onRecord(); run.Conclusion != ci.Cancelled {
			t.Errorf("%s: on record: %+v", c.name, run)
		}
	}
}

// TestCancelButton: the first signal is GitHub's cancel button, after which jobs that ask
// for it still run; the second one ends them, too.
func TestCancelButton(t *testing.T) {
	t.Parallel()
	p := newPlace(t, strings.TrimRight(sleeper, "\n")+`
  cleanup:
    needs: first
    if: cancelled()
    runs-on: ubuntu-latest
    steps:
      - run: echo cleaning
      - run: test -z "$LINGER" || sleep 600
  never:
    needs: first
    if: failure()
    runs-on: ubuntu-latest
    steps:
      - run: echo no
`)
	for _, twice := range []bool{false, true} {
		args := []string{"run", "--json"}
		if twice {
			args = append(args, "--env", "LINGER=1")
		}
		x := p.start(args...)
		x.untilLog("asleep")
		x.signal(os.Interrupt)
		x.untilLog("cleaning")
		if twice {
			x.signal(os.Interrupt)
		}
		if code := x.wait(); code != exitCancelled {
			t.Errorf("exit code %d, want %d: %s%s", code, exitCancelled, x.stderr.String(), x.out.String())
		}
		want := map[string]ci.Conclusion{"first": ci.Cancelled, "after": ci.Skipped, "cleanup": ci.Success, "never": ci.Skipped}
		if twice {
			want["cleanup"] = ci.Cancelled
		}
		for _, r := range x.check() {
			if r.Type == ci.JobFinished && r.Conclusion != want[r.Job] {
				t.Errorf("%s is %s, want %s (twice: %v)", r.Job, r.Conclusion, want[r.Job], twice)
			}
			if r.Type == ci.RunFinished && (r.Conclusion != ci.Cancelled || !strings.Contains(r.Reason, "interrupted")) {
				t.Errorf("%+v", r)
			}
		}
		if left := leftovers(p.home); len(left) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
	}
}

// TestKilled: hearth itself is killed with SIGKILL. Its machines die with it, and
// whoever looks next finds the run lost, not under way for ever.
func TestKilled(t *testing.T) {
	t.Parallel()
	p := newPlace(t, sleeper)
	for _, c := range []struct {
		name string
		when func(*process)
	}{
		{"in a step", func(x *process) { x.untilLog("asleep") }},
		{"while the machine is made", func(x *process) {
			x.until("run.started", func(r ci.Record) bool { return r.Type == ci.RunStarted })
		}},
	} {
		x := p.start("run", "--json")
		c.when(x)
		x.signal(syscall.SIGKILL)
		x.wait()
		waitFor(t, c.name+": the machines' end", func() bool { return len(processesOf(p.home)) == 0 })
		run := p.onRecord()
		if run.Status != ci.Completed || run.Conclusion != ci.Failure {
			t.Errorf("%s: on record: %+v", c.name, run)
		}
		out, code := p.hearth("show", run.ID)
		if code != 0 || !strings.Contains(out, "lost: hearth was killed") || strings.Contains(out, "in progress") || strings.Contains(out, "queued") {
			t.Errorf("%s: hearth show, exit code %d:\n%s", c.name, code, out)
		}
		out, _ = p.hearth("show", run.ID, "--json")
		if _, problems := checkRecords([]byte(out)); len(problems) > 0 && !onlyGaps(problems) {
			t.Errorf("%s: records:\n  %s", c.name, strings.Join(problems, "\n  "))
		}
	}
	// The next run works, and clears up what is left of machines.
	if err := os.WriteFile(filepath.Join(p.repo, ".github", "workflows", "ci.yml"), []byte(quick), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := p.hearth("run", "--plain"); code != 0 {
		t.Errorf("the next run: exit code %d\n%s", code, out)
	}
}

func onlyGaps(problems []string) bool {
	for _, p := range problems {
		if !strings.Contains(p, "): seq ") {
			return false
		}
	}
	return true
}

// TestUnread: standard output loses its reader. The run is cancelled in order.
func TestUnread(t *testing.T) {
	t.Parallel()
	p := newPlace(t, strings.Replace(sleeper, "echo asleep", "echo asleep; while sleep .1; do echo more; done", 1))
	cmd := p.command("run", "--plain")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	var said strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasSuffix(lines.Text(), "  asleep") {
		said.WriteString(lines.Text() + "\n")
	}
	out.Close()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitCancelled {
		t.Errorf("exit code %d, want %d:\n%s", code, exitCancelled, said.String())
	}
	if left := leftovers(p.home); len(left) > 0 {
		t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	if run := p.onRecord(); run.Conclusion != ci.Cancelled {
		t.Errorf("on record: %+v", run)
	}
}

// TestTwoAtOnce: two hearths on one record and one cache. Both succeed, their
// runs have different numbers, and neither takes the other's for a dead one's.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	p := newPlace(t, quick)
	a, b := p.start("run", "--json"), p.start("run", "--json")
	a.until("run.started", func(r ci.Record) bool { return r.Type == ci.RunStarted })
	p.hearth("runs")
	for _, x := range []*process{a, b} {
		if code := x.wait(); code != 0 {
			t.Errorf("exit code %d: %s%s", code, x.stderr.String(), x.out.String())
		}
		x.check()
	}
	out, _ := p.hearth("runs", "--json")
	numbers := map[int64]bool{}
	dec := json.NewDecoder(strings.NewReader(out))
	for {
		var r ci.Run
		if err := dec.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		numbers[r.Number] = true
		if r.Conclusion != ci.Success {
			t.Errorf("on record: %+v", r)
		}
	}
	if len(numbers) != 2 {
		t.Errorf("the runs' numbers: %v", numbers)
	}
}

// TestHugeLine: a hundred megabytes on one line, and many short ones, with no
// end to the last. hearth's memory stays bounded and the job green.
func TestHugeLine(t *testing.T) {
	t.Parallel()
	p := newPlace(t, `
on: push
jobs:
  first:
    runs-on: ubuntu-latest
    steps:
      - name: one line
        run: head -c 100000000 /dev/zero | tr '\0' x
      - name: after it
        run: printf 'still here'
`)
	cmd := p.command("run", "--json")
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = f, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	// Its own: what wait4 says of it has its monitors in it, with the machines' memory.
	most, ended, watched := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if _, rest, ok := strings.Cut(string(b), "VmHWM:"); ok {
				kib, _ := strconv.Atoi(strings.Fields(rest)[0])
				most = max(most, kib>>10)
			}
			select {
			case <-ended:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	err = cmd.Wait()
	close(ended)
	<-watched
	if err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	t.Logf("hearth: at most %d MiB resident, %v of CPU", most, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	if most == 0 || most > 300 {
		t.Errorf("hearth took %d MiB", most)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	rs, problems := checkRecords(b)
	if len(problems) > 0 {
		t.Errorf("records:\n  %s", strings.Join(problems, "\n  "))
	}
	var bytes, lines, longest int
	for _, r := range rs {
		if r.Type == ci.LogLine && r.Step == 1 && r.Stream == "stdout" {
			bytes += len(r.Text)
			lines++
			longest = max(longest, len(r.Text))
		}
	}
	t.Logf("the line came as %d records of at most %d bytes, %d in all", lines, longest, bytes)
	if bytes == 0 || longest > 1<<20 {
		t.Errorf("%d records, the longest of %d bytes", lines, longest)
	}
	if r := last(rs, ci.LogLine); r.Text != "still here" {
		t.Errorf("the last line is %.100q", r.Text)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}
