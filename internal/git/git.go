// Package git is the one place where Hearth runs git.
//
// Repositories are hostile by assumption: a tree that somebody pushed may hold
// whatever git takes for a repository's own settings (HEAD, objects, refs and a
// config with core.fsmonitor, filters, hooks, sshCommand, includes, alternates),
// and git obeys the first of those that it finds. So:
//
//   - git never looks for a repository. Every command names its git directory, and
//     that is one whose config Hearth wrote ([Init]).
//   - A repository of the user's ([Open]) is found by looking for root/.git, and
//     nowhere else: a directory that only looks like a repository (HEAD, objects,
//     refs) is none, and what lies above root never counts. It must belong to the
//     user, or be named in their safe.directory, as git wants it too. It is read
//     through a view: a git directory of ours whose objects and refs are links to
//     the repository's. Its config, hooks, filters and attributes are never read by
//     a git; what is data in its config is picked out of the file ([readConfig]).
//   - Trees of others (an archive from GitHub) become commits by fast-import,
//     which knows no working tree, no filter and no attribute ([Dir.Import]), and
//     come out by ls-tree and cat-file, which know none either ([Dir.Files]).
//   - Files of the user's working tree are taken as they lie there, by [os.Root],
//     never through a filter: a Git LFS pointer stays one.
//   - The environment is made anew: no GIT_*, no HOME, no system or global
//     configuration, no transport but the one that a call names.
//
// What a repository's own config could define for a command is thus nothing; the
// settings below are there so that a default of git's, of now or to come, is none
// either.
package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// timeout bounds one run of git that nobody else holds up; fetching is the longest.
const timeout = 10 * time.Minute

// settings are in force in every command, above those of the git directory.
var settings = []string{
	"core.hooksPath=/dev/null", "core.fsmonitor=false", "core.attributesFile=/dev/null", "core.useReplaceRefs=false",
	"core.sshCommand=false", "core.askPass=false", "core.editor=false", "core.pager=cat", "core.autocrlf=false",
	"credential.helper=", "credential.interactive=never", "safe.bareRepository=explicit",
	"diff.external=false", "diff.ignoreSubmodules=all", "submodule.recurse=false", "fetch.recurseSubmodules=false", "transfer.bundleURI=false",
	"gc.auto=0", "maintenance.auto=false", "commit.gpgSign=false", "tag.gpgSign=false", "gpg.program=false", "log.showSignature=false",
	"protocol.allow=never", "protocol.ext.allow=never", "protocol.version=2", "core.compression=1", "pack.compression=1", "core.bigFileThreshold=4m",
}

// passed are the variables of our environment that git gets: where programs and
// temporary files are, and how to reach the network.
var passed = []string{
	"PATH", "TMPDIR", "LD_LIBRARY_PATH", "http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE",
}

// Dir is a git directory whose config file Hearth wrote.
type Dir struct {
	path      string
	format    string   // of its hash, "" for sha1
	work      string   // working tree, "" for none
	config    []string // further settings, "key=value"; they do not show in the list of processes
	protocols string   // that may be fetched over, separated by colons
}

// At is a git directory that [Init] made.
func At(path string) Dir { return Dir{path: path} }

// Path is where the directory is.
func (d Dir) Path() string { return d.path }

// With is d with further settings, "key=value".
func (d Dir) With(config ...string) Dir {
	d.config = append(slices.Clip(d.config), config...)
	return d
}

// Over is d with transports that may be fetched over: "https", "file".
func (d Dir) Over(protocols string) Dir {
	d.protocols = protocols
	return d
}

// on is d with a working tree.
func (d Dir) on(work string) Dir {
	d.work = work
	return d
}

// attributes are those of our git directories; they stand above every other. A
// tree's own may not name a filter, a diff driver, or an encoding (iconv would run
// on the host with whatever the tree asks for).
const attributes = "* !filter !diff !merge !ident !working-tree-encoding !export-ignore !export-subst\n"

// Init makes a bare git directory at path, which need not be there yet. format is
// the name of its hash; "" is sha1. What is in config has the form of a config file.
func Init(path, format, config string) (Dir, error) {
	for _, d := range []string{"objects", "refs/heads", "refs/tags", "info"} {
		if err := os.MkdirAll(filepath.Join(path, d), 0o755); err != nil {
			return Dir{}, err
		}
	}
	for _, f := range []struct{ name, text string }{
		{"info/attributes", attributes}, {"config", header(format, true) + config}, {"HEAD", "ref: refs/heads/main\n"}, // HEAD last: it makes the repository
	} {
		if err := os.WriteFile(filepath.Join(path, f.name), []byte(f.text), 0o644); err != nil {
			return Dir{}, err
		}
	}
	return Dir{path: path, format: format}, nil
}

// Temp makes a git directory in the system's temporary directory.
func Temp() (Dir, error) {
	path, err := os.MkdirTemp("", tempPrefix)
	if err != nil {
		return Dir{}, err
	}
	d, err := Init(path, "", "")
	if err != nil {
		os.RemoveAll(path)
	}
	return d, err
}

// header is the beginning of a config file.
func header(format string, bare bool) string {
	version, extension := 0, ""
	if format != "" && format != "sha1" {
		version, extension = 1, "[extensions]\n\tobjectformat = "+format+"\n"
	}
	return fmt.Sprintf("[core]\n\trepositoryformatversion = %d\n\tfilemode = true\n\tbare = %v\n%s", version, bare, extension)
}

// environment is all that a git of ours knows of the world.
func environment() []string {
	env := []string{
		"HOME=/nonexistent", "XDG_CONFIG_HOME=/nonexistent", "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_NO_REPLACE_OBJECTS=1", "GIT_NO_LAZY_FETCH=1",
		"GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=false", "SSH_ASKPASS=false", "GIT_SSH_COMMAND=false", "GIT_PAGER=cat", "GIT_EDITOR=false",
		"GIT_LITERAL_PATHSPECS=1", "GIT_ADVICE=0",
	}
	for _, name := range passed {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// command builds every command line of git that Hearth runs on a repository.
func (d Dir) command(ctx context.Context, args ...string) *exec.Cmd {
	flags := []string{"--no-pager", "--git-dir=" + d.path}
	dir := "/"
	if d.work != "" {
		flags, dir = append(flags, "--work-tree="+d.work), d.work
	}
	protocols := d.protocols
	if protocols == "" {
		protocols = "none"
	}
	config := slices.Concat(settings, d.config)
	env := append(environment(), "GIT_ALLOW_PROTOCOL="+protocols, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(config)))
	for i, kv := range config {
		k, v, _ := strings.Cut(kv, "=")
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, k), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, v))
	}
	return program(ctx, dir, env, append(flags, args...)...)
}

// program is a git, made to go when its context does.
func program(ctx context.Context, dir string, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env = dir, env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Version is what the git of this host says it is.
func Version(ctx context.Context) (string, error) {
	out, err := run(ctx, program(ctx, "/", environment(), "--version"), "--version")
	return strings.TrimPrefix(out, "git "), err
}

// Run returns what git printed, without the last line end. Its error is an
// [*Error] if git ran and failed.
func (d Dir) Run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return run(ctx, d.command(ctx, args...), args[0])
}

func run(ctx context.Context, cmd *exec.Cmd, name string) (string, error) {
	var out bytes.Buffer
	cmd.Stdout = &out
	err := wait(ctx, cmd, name)
	return strings.TrimSuffix(out.String(), "\n"), err
}

// list is Run for output whose parts end with NUL.
func (d Dir) list(ctx context.Context, args ...string) ([]string, error) {
	out, err := d.Run(ctx, args...)
	return parts(out), err
}

func parts(out string) []string {
	if out = strings.TrimSuffix(out, "\x00"); out == "" {
		return nil
	}
	return strings.Split(out, "\x00")
}

// stream passes in to git and what it prints to w. It lasts as long as the other
// ends of both do: an archive that comes in, a machine that unpacks.
func (d Dir) stream(ctx context.Context, in io.Reader, w io.Writer, args ...string) error {
	cmd := d.command(ctx, args...)
	cmd.Stdin, cmd.Stdout = in, w
	return wait(ctx, cmd, args[0])
}

func wait(ctx context.Context, cmd *exec.Cmd, name string) error {
	var stderr tail
	cmd.Stderr = &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("git is not installed on this host; install it (apt-get install git)")
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return &Error{Command: name, Stderr: string(stderr), Err: err}
	}
	return nil
}

// Error is a git command that failed.
type Error struct {
	Command string // fetch
	Stderr  string // the end of it
	Err     error
}

func (e *Error) Error() string {
	text := strings.TrimSpace(e.Stderr)
	if text == "" {
		text = e.Err.Error()
	}
	return "git " + e.Command + ": " + text
}

func (e *Error) Unwrap() error { return e.Err }

// tail keeps the last few kB that are written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	if n := len(*t) - 4096; n > 0 {
		*t = (*t)[n:]
	}
	return len(p), nil
}
