package git

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Source hands out files, one after the other.
type Source func(ctx context.Context, fn func(Content) error) error

// Import makes a commit of files, with no parent, by Hearth at a fixed time: the
// same files and message are the same commit. It returns the names of the commit
// and of its tree.
func (d Dir) Import(ctx context.Context, message string, from Source) (commit, tree string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in, stream := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := d.stream(ctx, in, io.Discard, "fast-import", "--quiet", "--done", "--date-format=raw", "--depth=0")
		in.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		done <- err
	}()
	w := bufio.NewWriterSize(stream, 64<<10)
	fmt.Fprintf(w, "commit refs/hearth/import\ncommitter hearth <hearth@localhost> 978307200 +0000\ndata %d\n%s\n", len(message), message)
	if err = from(ctx, func(c Content) error { return put(w, c) }); err == nil {
		io.WriteString(w, "done\n")
		err = w.Flush()
	}
	if err != nil {
		cancel(err)
	}
	stream.CloseWithError(err)
	if ended := <-done; err == nil || errors.Is(err, io.ErrClosedPipe) {
		err = ended
	}
	if err != nil {
		return "", "", err
	}
	out, err := d.Run(ctx, "rev-parse", "refs/hearth/import", "refs/hearth/import^{tree}")
	if err != nil {
		return "", "", err
	}
	if err := os.RemoveAll(filepath.Join(d.path, "refs", "hearth")); err != nil {
		return "", "", err
	}
	commit, tree, _ = strings.Cut(out, "\n")
	return commit, tree, nil
}

// put writes a file for fast-import.
func put(w *bufio.Writer, c Content) error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	body, size := c.Reader, c.Size
	switch c.Mode {
	case Submodule:
		return nil
	case Symlink:
		body, size = strings.NewReader(c.Link), int64(len(c.Link))
	}
	// In quotes every byte of a name but these three is itself.
	name := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(c.Name)
	fmt.Fprintf(w, "M %s inline \"%s\"\ndata %d\n", c.Mode, name, size)
	if _, err := io.CopyN(w, body, size); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return w.WriteByte('\n')
}
