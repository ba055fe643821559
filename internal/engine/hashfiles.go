package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
)

// maxListing bounds the list of a workspace's files that a guest sends.
const maxListing = 64 << 20

// hashTimeout is how long hashFiles may take, as on GitHub.
const hashTimeout = 120 * time.Second

// hashFiles is the function hashFiles over the workspace in the guest: the list
// of files comes in one exchange, and then the contents of those that matter.
func (r *run) hashFiles(ctx context.Context, args []expr.Value) (expr.Value, error) {
	var patterns []string
	for _, a := range args {
		patterns = append(patterns, a.ToString())
	}
	ctx, cancel := context.WithTimeout(ctx, hashTimeout)
	defer cancel()
	tree, err := r.listWorkspace(ctx)
	sum := ""
	if err == nil {
		sum, err = expr.HashFilesAt(tree, r.layout.Workspace, patterns)
	}
	if err != nil {
		// An expression that fails is the author's; a machine that is gone is not.
		if _, answered := errors.AsType[*guest.Error](err); !answered && errors.Is(err, guest.ErrLost) {
			r.lose(fmt.Errorf("hashFiles: %w", err))
		}
		return expr.Null(), fmt.Errorf("hashFiles(%s): %w", strings.Join(patterns, ", "), err)
	}
	return expr.String(sum), nil
}

// guestTree is a read-only view of the workspace: names and sizes as listed,
// contents read when opened.
type guestTree struct {
	ctx  context.Context
	r    *run
	node map[string]*guestNode
}

type guestNode struct {
	name   string
	mode   fs.FileMode
	size   int64
	to     *guestNode // what a symbolic link is, where that is a file or directory
	inside []string   // names in a directory, sorted
}

// find lists type, type behind a link, size and path, zero-terminated.
const find = `find . -mindepth 1 -printf '%y%Y %s %P\0'`

func (r *run) listWorkspace(ctx context.Context) (*guestTree, error) {
	var out bounded
	out.max = maxListing
	exit, err := r.job.Guest.Exec(ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", find}, Dir: r.layout.Workspace, Stdout: &out})
	switch {
	case out.over:
		return nil, errors.New("the workspace has too many files to list")
	case err != nil:
		return nil, err
	case exit.Cancelled:
		return nil, errors.New("it took too long")
	case !exit.OK() && out.Len() == 0:
		// No list is not an empty one: the hash would be that of nothing.
		return nil, fmt.Errorf("the workspace could not be listed: %v", exit)
	}
	t := &guestTree{ctx: ctx, r: r, node: map[string]*guestNode{".": {name: ".", mode: fs.ModeDir | 0o755}}}
	for rec := range strings.SplitSeq(out.String(), "\x00") {
		head, rest, ok := strings.Cut(rec, " ")
		size, name, ok2 := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(size, 10, 64)
		if !ok || !ok2 || err != nil || len(head) != 2 || !fs.ValidPath(name) || n < 0 {
			continue // no file of the workspace, whatever it is
		}
		node := &guestNode{name: path.Base(name), size: n}
		switch head[0] {
		case 'f':
			node.mode = 0o644
		case 'd':
			node.mode = fs.ModeDir | 0o755
		case 'l':
			node.mode = fs.ModeSymlink | 0o777
			switch head[1] {
			case 'f':
				node.to = &guestNode{name: node.name, mode: 0o644}
			case 'd':
				node.to = &guestNode{name: node.name, mode: fs.ModeDir | 0o755}
			}
		default:
			node.mode = fs.ModeIrregular
		}
		t.node[name] = node
	}
	for name := range t.node {
		if name == "." {
			continue
		}
		if dir := t.node[path.Dir(name)]; dir != nil {
			dir.inside = append(dir.inside, path.Base(name))
		}
	}
	for _, n := range t.node {
		slices.Sort(n.inside)
	}
	return t, nil
}

func (t *guestTree) lookup(op, name string) (*guestNode, error) {
	if n := t.node[name]; n != nil && fs.ValidPath(name) {
		return n, nil
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

func (t *guestTree) Lstat(name string) (fs.FileInfo, error) {
	n, err := t.lookup("lstat", name)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// ReadLink makes a guestTree an fs.ReadLinkFS; where links lead is only known as a type.
func (t *guestTree) ReadLink(name string) (string, error) {
	return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
}

func (t *guestTree) Stat(name string) (fs.FileInfo, error) {
	n, err := t.lookup("stat", name)
	if err != nil {
		return nil, err
	}
	if n.mode&fs.ModeSymlink != 0 {
		if n.to == nil {
			return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
		}
		return n.to, nil
	}
	return n, nil
}

func (t *guestTree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	var out []fs.DirEntry
	for _, c := range n.inside {
		if child := t.node[path.Join(name, c)]; child != nil {
			out = append(out, fs.FileInfoToDirEntry(child))
		}
	}
	return out, nil
}

// Open streams a file's content out of the guest.
func (t *guestTree) Open(name string) (fs.File, error) {
	n, err := t.lookup("open", name)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(t.ctx)
	f := &guestFile{guestNode: n, pipe: pr, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		exit, err := t.r.job.Guest.Exec(ctx, guest.Cmd{
			Argv: []string{"/bin/cat", "--", path.Join(t.r.layout.Workspace, name)}, Dir: "/", Stdout: pw,
		})
		if err == nil && !exit.OK() {
			err = fmt.Errorf("read %s: %v", name, exit)
		}
		pw.CloseWithError(err)
	}()
	return f, nil
}

type guestFile struct {
	*guestNode
	pipe   *io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func (f *guestFile) Stat() (fs.FileInfo, error) { return f.guestNode, nil }

func (f *guestFile) Read(p []byte) (int, error) { return f.pipe.Read(p) }

// Close waits for the guest to have stopped sending.
func (f *guestFile) Close() error {
	f.pipe.Close()
	f.cancel()
	<-f.done
	return nil
}

func (n *guestNode) Name() string       { return n.name }
func (n *guestNode) Size() int64        { return n.size }
func (n *guestNode) Mode() fs.FileMode  { return n.mode }
func (n *guestNode) ModTime() time.Time { return time.Time{} }
func (n *guestNode) IsDir() bool        { return n.mode.IsDir() }
func (n *guestNode) Sys() any           { return nil }

// bounded is a buffer that refuses more than max bytes.
type bounded struct {
	bytes.Buffer
	max  int
	over bool
}

var errBound = errors.New("more than was allowed")

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.max {
		b.over = true
		return 0, errBound
	}
	return b.Buffer.Write(p)
}
