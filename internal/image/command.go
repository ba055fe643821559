package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// toolPackages says which Debian package brings a program.
var toolPackages = map[string]string{
	"apt-get":     "apt",
	"apt-cache":   "apt",
	"dpkg-deb":    "dpkg",
	"depmod":      "kmod",
	"mmdebstrap":  "mmdebstrap",
	"mkfs.erofs":  "erofs-utils",
	"mkfs.ext4":   "e2fsprogs",
	"unshare":     "util-linux",
	"newuidmap":   "uidmap",
	"tar":         "tar",
	"debian-keys": "debian-archive-keyring",
}

// A MissingToolError says that a program of the distribution is not installed.
type MissingToolError struct {
	Tool    string // program
	Package string // Debian package
}

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("%s is not installed: run `apt-get install %s`", e.Tool, e.Package)
}

// lookTool finds a program. mkfs and friends live in /usr/sbin, which is not on
// an ordinary user's PATH in Debian.
func lookTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", &MissingToolError{Tool: name, Package: toolPackages[name]}
}

// Missing returns the programs that a build needs and this machine lacks.
func Missing() []*MissingToolError {
	tools := []string{"apt-get", "dpkg-deb", "depmod", "mmdebstrap", "mkfs.erofs", "mkfs.ext4", "unshare"}
	if os.Geteuid() != 0 {
		tools = append(tools, "newuidmap")
	}
	var missing []*MissingToolError
	for _, t := range tools {
		if _, err := lookTool(t); err != nil {
			if e, ok := errors.AsType[*MissingToolError](err); ok {
				missing = append(missing, e)
			}
		}
	}
	return missing
}

// tool is one run of a program of the distribution.
type tool struct {
	argv []string
	dir  string
	env  []string          // added to the environment
	line func(line string) // called for each line of output, if set
	// leash gives the program a standard input that ends when this process
	// does, however it ends; see namespaced.
	leash bool
}

// run runs the program and returns its standard output. Its errors end with
// the last lines the program wrote. The program dies with this process, and
// with ctx it is first asked and then made to stop.
func (t tool) run(ctx context.Context) (stdout []byte, err error) {
	path, err := lookTool(t.argv[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, t.argv[1:]...)
	cmd.Dir = t.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "LANGUAGE=", "DEBIAN_FRONTEND=noninteractive",
		"PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.Env = append(cmd.Env, t.env...)
	out := &tail{max: 8 << 20, line: t.line}
	errs := &tail{max: 16 << 10, line: t.line}
	cmd.Stdout, cmd.Stderr = out, errs
	if t.leash {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		defer r.Close()
		cmd.Stdin = r
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second // then SIGKILL, and stop reading its pipes
	err = cmd.Run()
	if ctx.Err() != nil {
		if cmd.Process != nil { // nil: cancelled before it was started
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
		return nil, fmt.Errorf("%s: %w", t.argv[0], context.Cause(ctx))
	}
	if err != nil {
		said := complaint(append(out.data, errs.data...))
		err = fmt.Errorf("%s: %w: %s", t.argv[0], err, said)
		if strings.Contains(said, "No space left on device") {
			err = fmt.Errorf("%w: %w", err, syscall.ENOSPC)
		}
		return nil, err
	}
	return out.data, nil
}

// tail keeps the last bytes of a stream and hands out its lines.
type tail struct {
	max     int
	data    []byte
	line    func(string)
	partial []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if len(t.data) > 2*t.max {
		t.data = append(t.data[:0], t.data[len(t.data)-t.max:]...)
	}
	if t.line != nil {
		t.partial = append(t.partial, p...)
		for {
			i := bytes.IndexAny(t.partial, "\n\r")
			if i < 0 {
				break
			}
			t.line(string(t.partial[:i]))
			t.partial = t.partial[i+1:]
		}
		if len(t.partial) > 64<<10 {
			t.partial = nil
		}
	}
	return len(p), nil
}

// complaint is what a program that failed had to say: the lines that apt,
// dpkg and mmdebstrap mark as errors if there are any near the end, else the
// last ones.
func complaint(output []byte) string {
	var marked []string
	for line := range strings.Lines(lastLines(output, 60)) {
		if strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "dpkg: error") || strings.Contains(line, "No space left on device") {
			marked = append(marked, strings.TrimSpace(line))
		}
	}
	if len(marked) > 0 {
		return strings.Join(marked[max(0, len(marked)-12):], "\n")
	}
	return lastLines(output, 12)
}

func lastLines(data []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// namespaced returns a run of a shell script that has mounts and processes of
// its own, as root of a user namespace when we are not root. Whatever it
// mounts is gone when it ends, however it ends: nothing can be left that a
// later clean-up would descend into (the host's /dev, say).
//
// The shell is the first process of its namespace, so that everything in it
// dies with it. It holds the end of a pipe from us and kills everything when
// that closes: the kernel's signal at the death of a parent would do, but is
// lost when unshare changes its user.
func namespaced(script string, args ...string) tool {
	const leash = `exec 3<&0 </dev/null; { cat <&3 >/dev/null; kill -KILL -1; } & exec 3<&-;`
	argv := []string{"unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"}
	if os.Geteuid() != 0 {
		argv = append(argv, "--user", "--map-root-user", "--map-auto")
	}
	argv = append(argv, "--", "sh", "-eu", "-c", leash+script, "hearth-image")
	return tool{argv: append(argv, args...), leash: true}
}

// removeTree removes a directory, also one whose files belong to the subordinate
// users of an unprivileged build.
func removeTree(ctx context.Context, dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || os.Geteuid() == 0 {
		return err
	}
	if _, nsErr := namespaced(`rm -rf -- "$1"`, dir).run(ctx); nsErr != nil {
		return fmt.Errorf("%w (and in a user namespace: %w)", err, nsErr)
	}
	return nil
}
