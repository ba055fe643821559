package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// suite is the tests of a package, and what each of them runs of it.
type suite struct {
	dir   string
	pkg   string
	skip  string
	tests []*test // the quick ones first

	ids      map[string]int    // of the changes that are built together
	together map[string]string // binaries with all of them, by the tests' package
}

// test is one test function, alone.
type test struct {
	pkg    string // where it is
	name   string
	took   time.Duration
	blocks []block // of the package under test, that it runs
}

// block is a stretch of statements that run together, as the coverage has them.
type block struct {
	file       string // its base name
	start, end place
}

// place is a line and a column.
type place struct{ line, column int }

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.line, q.line), cmp.Compare(p.column, q.column))
}

// newSuite runs every test of the packages once.
func newSuite(dir, pkg string, packages []string, slow time.Duration, skip string) (*suite, error) {
	s := &suite{dir: dir, pkg: pkg, skip: skip}
	for _, of := range packages {
		binary := filepath.Join(dir, "covered.test")
		if out, err := run(10*time.Minute, ".", "go", "test", "-c", "-vet=off", "-cover", "-coverpkg="+pkg, "-o", binary, of); err != nil {
			return nil, fmt.Errorf("%s: its tests do not build: %w\n%s", of, err, out)
		}
		list, err := run(time.Minute, of, binary, "-test.list=.")
		if err != nil {
			return nil, fmt.Errorf("%s: its tests: %w\n%s", of, err, list)
		}
		for name := range strings.FieldsSeq(string(list)) {
			if !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") && !strings.HasPrefix(name, "Example") {
				continue // a benchmark, or a word about coverage
			}
			t := &test{pkg: of, name: name}
			profile := filepath.Join(dir, "profile")
			start := time.Now()
			out, err := run(slow, of, binary, "-test.skip="+skip, "-test.run=^"+name+"$", "-test.coverprofile="+profile)
			t.took = time.Since(start)
			if err != nil {
				why := "fails as it is"
				if errors.Is(err, context.DeadlineExceeded) {
					why = fmt.Sprintf("takes longer than %s", slow)
				}
				fmt.Printf("%s: left out: %s %s\n", of, name, why)
				if why == "fails as it is" {
					fmt.Printf("%s", tail(out, 5))
				}
				continue
			}
			if t.blocks, err = blocks(profile); err != nil {
				return nil, err
			}
			s.tests = append(s.tests, t)
		}
	}
	slices.SortStableFunc(s.tests, func(a, b *test) int { return cmp.Compare(a.took, b.took) })
	return s, nil
}

var profileLine = regexp.MustCompile(`^(.+):(\d+)\.(\d+),(\d+)\.(\d+) \d+ (\d+)$`)

// blocks are those of a profile that ran.
func blocks(profile string) ([]block, error) {
	text, err := os.ReadFile(profile)
	if err != nil {
		return nil, err
	}
	var all []block
	for line := range strings.SplitSeq(string(text), "\n") {
		m := profileLine.FindStringSubmatch(line)
		if m == nil || m[6] == "0" {
			continue
		}
		n := make([]int, 4)
		for i := range n {
			n[i], _ = strconv.Atoi(m[2+i])
		}
		all = append(all, block{file: filepath.Base(m[1]), start: place{n[0], n[1]}, end: place{n[2], n[3]}})
	}
	return all, nil
}

// of are the tests that run the place of a change. What lies between two blocks,
// like the expression of a case, counts with its function; what is outside of
// functions is run by all.
func (s *suite) of(m mutant) []*test {
	within := func(from, to place) []*test {
		return slices.DeleteFunc(slices.Clone(s.tests), func(t *test) bool {
			return !slices.ContainsFunc(t.blocks, func(b block) bool {
				return b.file == filepath.Base(m.file) && b.start.compare(to) <= 0 && from.compare(b.end) <= 0
			})
		})
	}
	if m.function == nil {
		return s.tests
	}
	if m.between {
		return within(m.function[0], m.function[1])
	}
	return within(m.place, m.place)
}

var errBuild = errors.New("it does not compile")

// timedOut is what noticed when no test said so.
const timedOut = "took too long"

// try runs tests on a change, and says which of them noticed: none is "".
func (s *suite) try(m mutant) (by string, err error) {
	tests := s.of(m)
	if len(tests) == 0 {
		return "", nil
	}
	var built map[string]string
	id, together := s.ids[m.key()]
	if together {
		built = s.together
	} else {
		built = map[string]string{}
	}
	for len(tests) > 0 {
		// Those of one package together, until they have taken a second.
		pkg, names, took := tests[0].pkg, []string{}, time.Duration(0)
		for len(tests) > 0 && tests[0].pkg == pkg && took < time.Second {
			names, took, tests = append(names, tests[0].name), took+tests[0].took, tests[1:]
		}
		if built[pkg] == "" {
			binary := filepath.Join(s.dir, "changed.test")
			if out, err := s.build(pkg, binary, map[string][]byte{m.file: m.text}); err != nil {
				if len(out) > 0 {
					return "", errBuild
				}
				return "", err
			}
			built[pkg] = binary
		}
		limit := 10*time.Second + 4*took
		out, err := run(limit, pkg, "env", fmt.Sprint("MUTANT=", id), built[pkg], "-test.failfast", "-test.skip="+s.skip, "-test.run=^("+strings.Join(names, "|")+
			")$")
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return timedOut, nil
		case err != nil:
			if m := failed.FindSubmatch(out); m != nil {
				return string(m[1]), nil
			}
			return strings.Join(names, " or "), nil
		}
	}
	return "", nil
}

// build builds a package's tests with files of other text.
func (s *suite) build(pkg, binary string, files map[string][]byte, flags ...string) ([]byte, error) {
	replace := map[string]string{}
	for name, text := range files {
		replace[name] = filepath.Join(s.dir, filepath.Base(name))
		if err := os.WriteFile(replace[name], text, 0o600); err != nil {
			return nil, err
		}
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return nil, err
	}
	list := filepath.Join(s.dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return nil, err
	}
	args := append([]string{"go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay=" + list, "-o", binary}, flags...)
	return run(10*time.Minute, ".", append(args, pkg)...)
}

var failed = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

// run runs a command; one that takes longer than limit is ended with everything
// that it started.
func run(limit time.Duration, dir string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	out := &head{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.Bytes(), err
}

// head is the beginning of an output: a change may print without an end.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if room := 1<<20 - h.Len(); room > 0 {
		h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func tail(out []byte, n int) string {
	lines := strings.SplitAfter(string(out), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
