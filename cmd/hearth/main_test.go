package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hearth-ci/hearth/internal/image"
)

// The tests of the command line are scripts (testdata/script) and, where
// processes are killed or stopped, Go. Both run the test binary as `hearth`.
//
// Images are kept between tests and shared with other packages' tests; the
// record, sockets and machines are each test's own, and after each test nothing
// of it may be left: no process, no machine, no socket.

func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"hearth": func() { os.Exit(Main()) }})
}

// tests builds the guest agent before the first test.
type tests struct{ m *testing.M }

func (t tests) Run() int {
	dir, err := os.MkdirTemp("", "hearth-agent-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	agent := filepath.Join(dir, "hearth-guest")
	// As package imagetest builds it, so that one image serves all.
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", agent, "github.com/hearth-ci/hearth/cmd/hearth-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the guest agent: %v\n%s", err, out)
		return 1
	}
	os.Setenv("HEARTH_GUEST", agent)
	return t.m.Run()
}

// testCache is the cache directory that tests share: package imagetest keeps
// its images in the same place.
func testCache() (string, error) {
	if dir := os.Getenv("HEARTH_TEST_IMAGES"); dir != "" {
		return filepath.Dir(dir), nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory (set HEARTH_TEST_IMAGES): %w", err)
	}
	return filepath.Join(cache, "hearth-test"), nil
}

// newHome makes a HEARTH_HOME with the shared cache in it. Its path is short,
// since sockets live below it.
func newHome() (string, error) {
	cache, err := testCache()
	if err != nil {
		return "", err
	}
	home, err := os.MkdirTemp("", "hh")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	return home, os.Symlink(cache, filepath.Join(home, "cache"))
}

// toolkit is an action of GitHub's packages in one file: see scripts/toolkit.
func toolkit() string {
	dir := os.Getenv("HEARTH_TOOLKIT")
	if cache, err := os.UserCacheDir(); dir == "" && err == nil {
		dir = filepath.Join(cache, "hearth", "toolkit")
	}
	return filepath.Join(dir, "action", "index.mjs")
}

// built reports whether there is an image of a name.
func built(dir, name string) bool {
	all, err := image.List(dir)
	return err == nil && slices.ContainsFunc(all, func(i image.Info) bool { return i.Name == name })
}

// missingForVM says why no machine can run here; "" when one can.
func missingForVM() string {
	for program, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs"} {
		if _, err := exec.LookPath(program); err != nil {
			return "SKIPPED, NOT TESTED: " + program + " is missing (apt-get install " + pkg + ")"
		}
	}
	return ""
}

// processesOf lists the processes whose command line names text, but for
// ourselves.
func processesOf(text string) map[int]string {
	out := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		b, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil || pid == os.Getpid() || !bytes.Contains(b, []byte(text)) && !monitorOf(d, b, text) {
			continue
		}
		out[pid] = strings.ReplaceAll(string(b), "\x00", " ")
	}
	return out
}

// monitorOf reports whether a process is the monitor of a machine below a
// directory. It does not know itself where its files are; what it has open tells.
func monitorOf(proc string, cmdline []byte, dir string) bool {
	if !bytes.Contains(cmdline, []byte("\x00hearth-")) {
		return false
	}
	files, _ := filepath.Glob(filepath.Join(proc, "fd", "*"))
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && strings.Contains(to, dir) {
			return true
		}
	}
	return false
}

// leftovers says what of a home's machines is left, waiting a moment for
// processes that have been killed to be gone.
func leftovers(home string) []string {
	var left []string
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left = nil
		for pid, line := range processesOf(home) {
			left = append(left, fmt.Sprintf("process %d: %s", pid, line))
		}
		filepath.WalkDir(filepath.Join(home, "run"), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				left = append(left, path)
			}
			return nil
		})
		if dirs, _ := filepath.Glob(filepath.Join(home, "run", "machines", "*")); len(dirs) > 0 {
			left = append(left, dirs...)
		}
		held, _ := filepath.Glob(filepath.Join(home, "state", "running", "*"))
		left = append(left, held...)
		if len(left) == 0 || time.Now().After(until) {
			return left
		}
	}
}

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: false,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "vm":
				missing := missingForVM()
				if missing != "" {
					fmt.Fprintln(os.Stderr, missing)
				}
				return missing == "", nil
			case "toolkit":
				if _, err := os.Stat(toolkit()); err != nil {
					fmt.Fprintln(os.Stderr, "SKIPPED, NOT TESTED: GitHub's own packages are not there: run scripts/toolkit")
					return false, nil
				}
				return true, nil
			case "ubuntu":
				if cache, err := testCache(); err == nil && built(filepath.Join(cache, "images"), image.Ubuntu2404) || image.UbuntuAnswers(context.Background()) {
					return true, nil
				}
				fmt.Fprintln(os.Stderr, "SKIPPED, NOT TESTED: Ubuntu's archive does not answer, and no image of it is here")
				return false, nil
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(e *testscript.Env) error {
			home, err := newHome()
			if err != nil {
				return err
			}
			e.Setenv("HEARTH_HOME", home)
			e.Setenv("HEARTH_GUEST", os.Getenv("HEARTH_GUEST"))
			e.Setenv("HEARTH_IMAGE", image.Debian12) // whatever answers from here
			e.Setenv("TOOLKIT", toolkit())
			module, err := filepath.Abs("../..")
			if err != nil {
				return err
			}
			e.Setenv("MODULE", module)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("TERM", "dumb")
			for _, kv := range []string{"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com",
				"GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com", "USER=ada"} {
				k, v, _ := strings.Cut(kv, "=")
				e.Setenv(k, v)
			}
			for _, k := range []string{"GOPATH", "GOMODCACHE", "GOCACHE"} {
				if out, err := exec.Command("go", "env", k).Output(); err == nil {
					e.Setenv(k, strings.TrimSpace(string(out)))
				}
			}
			e.Defer(func() {
				left := leftovers(home)
				for pid := range processesOf(home) {
					syscall.Kill(pid, syscall.SIGKILL) // a holder of a script that failed
				}
				os.RemoveAll(home)
				if len(left) > 0 {
					e.T().Fatal("left behind:\n  " + strings.Join(left, "\n  "))
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":      scriptCode,
			"repo":      scriptRepo,
			"records":   scriptRecords,
			"clean":     scriptClean,
			"registry":  scriptRegistry,
			"container": scriptContainer,
		},
	})
}

// code N COMMAND…: the command ends with this exit code.
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var e *exec.ExitError
		if !errors.As(err, &e) {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// repo [DIR]: makes DIR (default: here) a git repository with one commit on
// main of all there is.
func scriptRepo(ts *testscript.TestScript, neg bool, args []string) {
	dir := "."
	if len(args) > 0 {
		dir = args[0]
	}
	for _, c := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "--allow-empty", "-m", "first commit"}} {
		ts.Check(ts.Exec("git", append([]string{"-C", dir}, c...)...))
	}
}

// clean TEXT…: none of the texts, nor their base64, stands in what was printed
// last or in the record.
func scriptClean(ts *testscript.TestScript, neg bool, args []string) {
	for _, where := range []string{"stdout", "stderr"} {
		if found := exposed([]byte(ts.ReadFile(where)), args); found != "" {
			ts.Fatalf("%s has %s", where, found)
		}
	}
	ts.Check(exposedBelow(filepath.Join(ts.Getenv("HEARTH_HOME"), "state"), args))
}

// records [KIND…]: standard output is nothing but well-formed records, with each
// of these types among them. With -planned first, nothing has to have ended; with
// -part, records may be left out.
func scriptRecords(ts *testscript.TestScript, neg bool, args []string) {
	rs, problems := checkRecords([]byte(ts.ReadFile("stdout")))
	if len(args) > 0 && args[0] == "-part" {
		args = args[1:]
		problems = slices.DeleteFunc(problems, func(p string) bool { return strings.Contains(p, "): seq ") })
	}
	if len(args) > 0 && args[0] == "-planned" {
		args = args[1:]
		problems = slices.DeleteFunc(problems, func(p string) bool { return strings.HasSuffix(p, "began and has no end") })
	}
	if len(problems) > 0 {
		ts.Fatalf("records:\n  %s", strings.Join(problems, "\n  "))
	}
	for _, want := range args {
		found := false
		for _, r := range rs {
			found = found || string(r.Type) == want
		}
		if found == neg {
			ts.Fatalf("%s: found is %v", want, found)
		}
	}
}
