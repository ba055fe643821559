package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// gitTimeout bounds one run of git; fetching is the longest.
const gitTimeout = 10 * time.Minute

// gitError is a git command that failed.
type gitError struct {
	args   string
	stderr string
	err    error
}

func (e *gitError) Error() string {
	text := strings.TrimSpace(e.stderr)
	if text == "" {
		text = e.err.Error()
	}
	return "git " + e.args + ": " + text
}

func (e *gitError) Unwrap() error { return e.err }

// git runs git in dir with no prompt, no hook, no credential helper and none of
// the user's own settings; config are further settings "key=value", which do not
// show in the list of processes.
type git struct {
	dir    string
	config []string
}

func (g git) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = g.dir
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GIT_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	config := append([]string{
		"core.hooksPath=/dev/null", "credential.helper=", "safe.directory=*", "gc.auto=0", "maintenance.auto=false",
		"protocol.ext.allow=never", "advice.detachedHead=false", "init.defaultBranch=main", "core.autocrlf=false",
		"core.symlinks=true", "filter.lfs.smudge=", "filter.lfs.required=false", "fetch.recurseSubmodules=false",
		"transfer.fsckObjects=false", "protocol.version=2",
	}, g.config...)
	cmd.Env = append(cmd.Env, "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ASKPASS=/bin/false", "LC_ALL=C",
		fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(config)))
	for i, kv := range config {
		k, v, _ := strings.Cut(kv, "=")
		cmd.Env = append(cmd.Env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, k), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, v))
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run returns what git printed, without the last line end.
func (g git) run(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := g.stream(ctx, &out, args...)
	return strings.TrimSuffix(out.String(), "\n"), err
}

// stream passes what git prints to w.
func (g git) stream(ctx context.Context, w io.Writer, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	cmd := g.command(ctx, args...)
	var stderr tail
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("git is not installed on this host; install it (apt-get install git)")
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return &gitError{args: args[0], stderr: string(stderr), err: err}
	}
	return nil
}

// tail keeps the last few kB that are written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	if n := len(*t) - 4096; n > 0 {
		*t = (*t)[n:]
	}
	return len(p), nil
}
