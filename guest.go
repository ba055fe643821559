package hearth

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
)

// inside is a session as the engine sees a machine: with what any [Machine] can do,
// so that workflows run in those of a Provider's own making too.
type inside struct{ *Session }

func (g inside) Exec(ctx context.Context, c guest.Cmd) (guest.Exit, error) {
	end, err := g.Session.Exec(ctx, Command{Argv: c.Argv, Env: c.Env, Dir: c.Dir, User: c.User, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr,
		Timeout: c.Timeout, NoLearn: true}) // the Executor's run is learned from by its steps
	return guest.Exit{Code: end.Code, TimedOut: end.TimedOut, Cancelled: end.Cancelled, Duration: end.Duration}, err
}

func (g inside) TarIn(ctx context.Context, dir string, r io.Reader, _ string) error {
	return g.Unpack(ctx, dir, r)
}

func (g inside) TarOut(ctx context.Context, dir string, paths []string, w io.Writer) error {
	return g.Pack(ctx, dir, paths, w)
}

// Dial is not asked for: what is run here are commands, and no containers.
func (g inside) Dial(context.Context, string) (net.Conn, error) { return nil, errors.ErrUnsupported }

// ReadFile reads a file of at most so many bytes.
func (g inside) ReadFile(ctx context.Context, name string, most int64) ([]byte, error) {
	var out bytes.Buffer
	if err := g.run(ctx, &bounded{w: &out, left: most, full: fmt.Errorf("%s has more than %d bytes", name, most)}, "cat", "--", name); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (g inside) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode, _ string) error {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Base(name), Mode: int64(mode), Size: int64(len(data))})
	t.Write(data)
	if err := t.Close(); err != nil {
		return err
	}
	return g.Unpack(ctx, path.Dir(name), &b)
}

// Stat tells no more than that there is a file, which is what it is asked for.
func (g inside) Stat(ctx context.Context, name string) (guest.FileInfo, error) {
	return guest.FileInfo{}, g.run(ctx, io.Discard, "test", "-f", name)
}

func (g inside) MkdirAll(ctx context.Context, dir string, _ fs.FileMode, _ string) error {
	return g.run(ctx, io.Discard, "mkdir", "-p", "--", dir)
}

func (g inside) run(ctx context.Context, out io.Writer, argv ...string) error {
	var said tail
	end, err := g.Session.Exec(ctx, Command{Argv: argv, Env: []string{"PATH=" + guest.ToolPath}, Stdout: out, Stderr: &said, Timeout: time.Minute,
		NoLearn: true})
	if err == nil && end.Truncated {
		err = fmt.Errorf("%s says more than can be had at once", argv[0])
	}
	if err == nil && end.Code != 0 {
		err = fmt.Errorf("%s ended with %d: %q", argv[0], end.Code, said.String())
	}
	return err
}
