package engine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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

// errTooLong is that, in GitHub's words.
var errTooLong = fmt.Errorf("it couldn't finish within %d seconds", int(hashTimeout.Seconds()))

// hashFiles is the function hashFiles over the workspace in the guest: the list
// of files comes in one exchange, and the sums of those that matter in another.
func (r *run) hashFiles(ctx context.Context, args []expr.Value) (expr.Value, error) {
	var patterns []string
	for _, a := range args {
		patterns = append(patterns, a.ToString())
	}
	ctx, cancel := context.WithTimeout(ctx, hashTimeout)
	defer cancel()
	tree, err := r.listWorkspace(ctx, expr.Follows(patterns))
	sum := ""
	if err == nil {
		sum, err = expr.HashFiles(tree, r.layout.Workspace, patterns)
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

// guestTree is a view of the workspace: names and sizes as listed, contents as sums.
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

func (r *run) listWorkspace(ctx context.Context, follow bool) (*guestTree, error) {
	var out bounded
	out.max = maxListing
	script := find
	if follow {
		// What links lead to is listed as what it is, except for one that leads back.
		script = strings.Replace(find, "find", "find -L", 1)
	}
	exit, err := r.job.Guest.Exec(ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", script}, Dir: r.layout.Workspace, Stdout: &out})
	switch {
	case out.over:
		return nil, errors.New("the workspace has too many files to list")
	case err != nil:
		return nil, err
	case exit.Cancelled:
		return nil, errTooLong
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

// Open opens nothing: contents are only hashed.
func (t *guestTree) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: errors.ErrUnsupported}
}

// Hash has the guest hash files, all in one pass.
func (t *guestTree) Hash(names []string) ([][]byte, error) {
	var in bytes.Buffer
	for _, n := range names {
		in.WriteString("./" + n + "\x00")
	}
	out := bounded{max: maxListing + 80*len(names)}
	var said limited
	exit, err := t.r.job.Guest.Exec(t.ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", "exec xargs -0 -r sha256sum --"}, Dir: t.r.layout.Workspace, Stdin: &in,
		Stdout: &out, Stderr: &said})
	switch {
	case exit.Cancelled:
		return nil, errTooLong
	case out.over:
		return nil, errors.New("the guest sent more than sums")
	case err != nil:
		return nil, err
	case !exit.OK():
		return nil, fmt.Errorf("a file could not be read: %s", cmp.Or(firstLine(said.String()), exit.String()))
	}
	var sums [][]byte
	for line := range strings.Lines(out.String()) {
		// A line begins with \ where the name has characters that had to be escaped.
		digits, _, _ := strings.Cut(strings.TrimPrefix(line, `\`), " ")
		sum, err := hex.DecodeString(digits)
		if err != nil || len(sum) != sha256.Size {
			return nil, errors.New("the guest sent something that is no sum")
		}
		sums = append(sums, sum)
	}
	return sums, nil
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
