// Package gittest builds repositories and trees that would run a program on the
// host, were a git to read them the usual way.
package gittest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Trap is a program that leaves a mark when it is run.
type Trap struct {
	t       testing.TB
	marks   string
	Program string // its path, without spaces
}

// New sets a trap; when the test ends, that it has been run is an error.
func New(t testing.TB) *Trap {
	t.Helper()
	dir := t.TempDir()
	p := &Trap{t: t, marks: filepath.Join(dir, "marks"), Program: filepath.Join(dir, "trap")}
	if err := os.Mkdir(p.marks, 0o777); err != nil {
		t.Fatal(err)
	}
	// Who called it tells what let it in.
	script := fmt.Sprintf("#!/bin/sh\necho \"$0 $*\" > %s/$$\ncat /proc/$PPID/cmdline 2>/dev/null | tr '\\0' ' ' >> %s/$$\n", p.marks, p.marks)
	Write(t, p.Program, script)
	if err := os.Chmod(p.Program, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, run := range p.Runs() {
			t.Errorf("a tree made the host run: %s", run)
		}
	})
	return p
}

// Runs are the times that the trap was run, and forgets them.
func (p *Trap) Runs() (all []string) {
	list, _ := filepath.Glob(p.marks + "/*")
	for _, f := range list {
		b, _ := os.ReadFile(f)
		all = append(all, strings.TrimSpace(string(b)))
		os.Remove(f)
	}
	return all
}

// Config is a repository's config in which every key that names a program names
// the trap. more comes before it.
func (p *Trap) Config(more string) string {
	return more + strings.ReplaceAll(`[core]
	fsmonitor = TRAP
	sshCommand = TRAP
	pager = TRAP
	editor = TRAP
	askPass = TRAP
	gitProxy = TRAP
	alternateRefsCommand = TRAP
	hooksPath = hooks
[filter "x"]
	clean = TRAP
	smudge = TRAP
	process = TRAP
	required = true
[diff]
	external = TRAP
[diff "x"]
	textconv = TRAP
	command = TRAP
[merge "x"]
	driver = TRAP
[alias]
	rev-parse = !TRAP
	ls-files = !TRAP
	diff = !TRAP
[credential]
	helper = !TRAP
[gpg]
	program = TRAP
[log]
	showSignature = true
[uploadpack]
	packObjectsHook = TRAP
[remote "origin"]
	url = ext::TRAP
	promisor = true
	partialclonefilter = blob:none
	uploadpack = TRAP
[url "ext::TRAP "]
	insteadOf = https://
	insteadOf = file://
	insteadOf = /
[protocol]
	allow = always
[protocol "ext"]
	allow = always
[submodule]
	recurse = true
[fetch]
	recurseSubmodules = true
[gc]
	auto = 1
[include]
	path = more.inc
`, "TRAP", p.Program)
}

// Arm makes a git directory hostile: its config, its hooks, what it includes.
func (p *Trap) Arm(gitDir, more string) {
	p.t.Helper()
	b, _ := os.ReadFile(filepath.Join(gitDir, "config"))
	Write(p.t, filepath.Join(gitDir, "config"), string(b)+p.Config(more))
	Write(p.t, filepath.Join(gitDir, "more.inc"), "[core]\n\tfsmonitor = "+p.Program+"\n")
	for _, h := range []string{"post-checkout", "post-index-change", "reference-transaction", "pre-commit", "post-commit", "pre-auto-gc", "fsmonitor-watchman",
		"update", "pre-receive", "post-merge"} {
		os.MkdirAll(filepath.Join(gitDir, "hooks"), 0o755)
		os.Remove(filepath.Join(gitDir, "hooks", h))
		if err := os.Symlink(p.Program, filepath.Join(gitDir, "hooks", h)); err != nil {
			p.t.Fatal(err)
		}
	}
}

// Files are those of Repository, and their content.
var Files = map[string]string{
	"a.txt":                    "text\n",
	"sub/b.txt":                "more\n",
	"pointer.bin":              "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("0", 64) + "\nsize 7\n",
	".gitattributes":           "* filter=x diff=x merge=x\n*.bin filter=x -text\n*.txt working-tree-encoding=ISO-2022-CN-EXT ident export-ignore\n",
	".github/workflows/ci.yml": "on: push\njobs: {a: {runs-on: ubuntu-latest, steps: [{run: echo hi}]}}\n",
}

// Repository makes an honest repository of Files on main, with a tag v1 and a
// branch side. Its .git is to be armed.
func Repository(t testing.TB, dir string) {
	t.Helper()
	Git(t, "", "init", "-q", "-b", "main", dir)
	for name, text := range Files {
		Write(t, filepath.Join(dir, name), text)
	}
	// Attributes are not to change what is committed.
	Write(t, filepath.Join(dir, ".git/info/attributes"), "* !filter !diff !merge !ident !working-tree-encoding !export-ignore\n")
	Git(t, dir, "add", "-A")
	Git(t, dir, "commit", "-q", "-m", "first")
	Git(t, dir, "tag", "v1")
	Git(t, dir, "branch", "side")
	Git(t, dir, "commit", "-q", "--allow-empty", "-m", "second")
	os.Remove(filepath.Join(dir, ".git/info/attributes"))
	// As if they had been changed: git would ask the filter what they are now.
	for name, text := range Files {
		Write(t, filepath.Join(dir, name), text)
	}
}

// Bare makes a directory what git takes for a repository: files of a commit beside
// HEAD, objects, refs, index and an armed config.
func (p *Trap) Bare(dir string) {
	p.t.Helper()
	Repository(p.t, dir)
	at := filepath.Join(dir, ".git")
	entries, err := os.ReadDir(at)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(at, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			p.t.Fatal(err)
		}
	}
	os.Remove(at)
	p.Arm(dir, "[core]\n\tworktree = "+dir+"\n")
}

// Git runs git for the test, as it is installed, with no settings of the user's.
func Git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GIT_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@x", "GIT_COMMITTER_NAME=t",
		"GIT_COMMITTER_EMAIL=t@x")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Write makes a file and its directories.
func Write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Tree reads the regular files below a directory, but those of its .git.
func Tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == ".git" {
			return filepath.SkipDir
		}
		if e.Type().IsRegular() {
			b, err := os.ReadFile(p)
			out[rel] = string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// T is the test that the trap is set in.
func (p *Trap) T() testing.TB { return p.t }
