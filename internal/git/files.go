package git

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Mode is what a name in a tree is, as git writes it.
type Mode string

// The modes.
const (
	Regular    Mode = "100644"
	Executable Mode = "100755"
	Symlink    Mode = "120000"
	Submodule  Mode = "160000" // a commit of another repository: an empty directory
)

// File is one file of a tree.
type File struct {
	Name    string // below the tree's top, with slashes
	Mode    Mode
	Object  string // its content as git has it; "" for what is only on disk
	Tracked bool   // in the index, or in a commit
	absent  bool   // not on disk by the user's wish (a sparse checkout)
}

// checkName refuses a name that no tree may hold: it would be another file on disk than
// in the tree, or one of the repository itself.
func checkName(name string) error {
	if name == "" || len(name) > 4096 || strings.ContainsRune(name, 0) {
		return fmt.Errorf("the name %.80q is not one of a file", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || strings.EqualFold(part, ".git") {
			return fmt.Errorf("the name %.80q is not one of a commit", name)
		}
	}
	return nil
}

// Tree lists the files of a commit or tree.
func (d Dir) Tree(ctx context.Context, treeish string) ([]File, error) {
	lines, err := d.list(ctx, "ls-tree", "-r", "-z", "--full-tree", treeish)
	if err != nil {
		return nil, err
	}
	files := make([]File, 0, len(lines))
	for _, line := range lines {
		meta, name, _ := strings.Cut(line, "\t")
		m := strings.Fields(meta)
		if len(m) != 3 {
			return nil, fmt.Errorf("git ls-tree: %.80q", line)
		}
		if err := checkName(name); err != nil {
			return nil, err
		}
		mode := Mode(m[0])
		switch mode {
		case Executable, Symlink, Submodule:
		default: // 100664 of old repositories
			mode = Regular
		}
		files = append(files, File{Name: name, Mode: mode, Object: m[2], Tracked: true})
	}
	return files, nil
}

// Files lists what is in the working tree: files that are tracked, and those that
// are not ignored, as git would say. Whether they are still there shows when they
// are read.
func (r *Repository) Files(ctx context.Context) ([]File, error) {
	lines, err := r.dir.list(ctx, "ls-files", "-z", "--cached", "--stage", "-t")
	if err != nil {
		return nil, err
	}
	var files []File
	for _, line := range lines {
		meta, name, _ := strings.Cut(line, "\t")
		m := strings.Fields(meta)
		if len(m) != 4 {
			return nil, fmt.Errorf("git ls-files: %.80q", line)
		}
		if err := checkName(name); err != nil {
			return nil, err
		}
		files = append(files, File{Name: name, Mode: Mode(m[1]), Object: m[2], Tracked: true, absent: m[0] == "S"})
	}
	others, err := r.others(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range others {
		files = append(files, File{Name: n})
	}
	slices.SortStableFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	// A file in conflict is in the index up to three times.
	return slices.CompactFunc(files, func(a, b File) bool { return a.Name == b.Name }), nil
}

// Plain lists the files of a directory that is no repository, as far as the
// .gitignore files in it do not ignore them. What lies above it does not count, and
// a repository inside is a directory like any other, without its .git.
func Plain(ctx context.Context, root string) ([]File, error) {
	d, err := Temp()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(d.path)
	own := ownTemp(root)
	var files []File
	var walk func(below string, depth int) error
	walk = func(below string, depth int) error {
		if depth > 100 {
			return fmt.Errorf("%s: repositories lie in each other more than 100 deep", below)
		}
		names, err := d.on(filepath.Join(root, filepath.FromSlash(below))).list(ctx, "ls-files", "-z", "--others", "--exclude-standard")
		if err != nil {
			return err
		}
		for _, n := range names {
			n = path.Join(below, n) + strings.Repeat("/", len(n)-len(strings.TrimSuffix(n, "/")))
			dir, isDir := strings.CutSuffix(n, "/")
			switch {
			case own(n):
			case !isDir:
				files = append(files, File{Name: n})
			case dir != below:
				if err := walk(dir, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk("", 0); err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files, nil
}

// Content is a file as it is read. Reader is valid until the next file.
type Content struct {
	File
	Size   int64
	Link   string // of a symbolic link
	Reader io.Reader
}

// Read calls fn with each of the files as git has it, in their order.
func (d Dir) Read(ctx context.Context, files []File, fn func(Content) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in, ids := io.Pipe()
	out, printed := io.Pipe()
	done := make(chan error, 2)
	go func() {
		w := bufio.NewWriter(ids)
		for _, f := range files {
			if f.Mode != Submodule {
				fmt.Fprintln(w, f.Object)
			}
		}
		ids.CloseWithError(errors.Join(w.Flush()))
		done <- nil
	}()
	go func() {
		err := d.stream(ctx, in, printed, "cat-file", "--batch", "--buffer")
		in.CloseWithError(io.ErrClosedPipe)
		printed.CloseWithError(err)
		done <- err
	}()
	err := read(bufio.NewReaderSize(out, 64<<10), files, fn)
	if err != nil {
		cancel(err)
	}
	out.CloseWithError(io.ErrClosedPipe)
	return errors.Join(err, ignore(err, <-done, <-done))
}

// ignore leaves out what failed only because of err.
func ignore(err error, later ...error) error {
	if err != nil {
		return nil
	}
	return errors.Join(later...)
}

func read(r *bufio.Reader, files []File, fn func(Content) error) error {
	for _, f := range files {
		c := Content{File: f}
		if f.Mode == Submodule {
			if err := fn(c); err != nil {
				return err
			}
			continue
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		m := strings.Fields(line)
		if len(m) != 3 || m[1] != "blob" {
			return fmt.Errorf("%s: the repository has no object %s", f.Name, f.Object)
		}
		if c.Size, err = strconv.ParseInt(m[2], 10, 64); err != nil {
			return fmt.Errorf("git cat-file: %.80q", line)
		}
		body := &io.LimitedReader{R: r, N: c.Size}
		c.Reader = body
		if f.Mode == Symlink {
			if c.Size > 4096 {
				return fmt.Errorf("%s: a link to a name of %d bytes", f.Name, c.Size)
			}
			to, err := io.ReadAll(body)
			if err != nil {
				return err
			}
			c.Link, c.Size = string(to), 0
		}
		if err := fn(c); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return err
		}
		if _, err := r.Discard(1); err != nil {
			return err
		}
	}
	return nil
}

// Blob is the content of the file at name in a tree, os.ErrNotExist if there is none.
func (d Dir) Blob(ctx context.Context, treeish, name string, max int64) ([]byte, error) {
	id, err := d.Run(ctx, "rev-parse", "--verify", "--quiet", treeish+":"+name)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fs.ErrNotExist
	}
	if kind, err := d.Run(ctx, "cat-file", "-t", id); err != nil || kind != "blob" {
		return nil, fs.ErrNotExist
	}
	b := limitedBuffer{max: max}
	if err := d.stream(ctx, nil, &b, "cat-file", "blob", id); err != nil {
		return nil, errors.Join(b.err, err)
	}
	return b.data, nil
}

// limitedBuffer is a buffer that refuses more than max bytes.
type limitedBuffer struct {
	data []byte
	max  int64
	err  error
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if int64(len(b.data)+len(p)) > b.max {
		b.err = fmt.Errorf("larger than %d bytes", b.max)
		return 0, b.err
	}
	b.data = append(b.data, p...)
	return len(p), nil
}

// ReadDisk calls fn with each of the files as it lies below root; those that are
// gone, or behind a link now, are left out. Of a sparse checkout, what is not on
// disk comes from d.
func (d Dir) ReadDisk(ctx context.Context, root string, files []File, fn func(Content) error) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	var absent []File
	real := map[string]bool{".": true}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		there, err := disk(r, f, real, fn)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		if !there && f.absent {
			absent = append(absent, f)
		}
	}
	if len(absent) == 0 {
		return nil
	}
	return d.Read(ctx, absent, fn)
}

func disk(r *os.Root, f File, real map[string]bool, fn func(Content) error) (there bool, err error) {
	name := filepath.FromSlash(f.Name)
	if !isReal(r, filepath.Dir(name), real) {
		return false, nil
	}
	fi, err := r.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && fi.IsDir() && f.Mode != Submodule {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c := Content{File: f}
	switch {
	case f.Mode == Submodule && fi.IsDir():
		return true, fn(c)
	case fi.Mode()&fs.ModeSymlink != 0:
		c.Mode = Symlink
		if c.Link, err = r.Readlink(name); err != nil {
			return false, err
		}
		return true, fn(c)
	case !fi.Mode().IsRegular():
		return false, nil // sockets and the like are no content
	}
	in, err := r.Open(name)
	if err != nil {
		return false, err
	}
	defer in.Close()
	c.Mode, c.Size = Regular, fi.Size()
	if fi.Mode()&0o111 != 0 {
		c.Mode = Executable
	}
	// The file may grow or shrink while it is read.
	c.Reader = io.LimitReader(io.MultiReader(in, zeros{}), c.Size)
	return true, fn(c)
}

// isReal says whether a directory is one all the way: behind a link lies what has
// another name in the tree, if it is in the tree at all.
func isReal(r *os.Root, dir string, known map[string]bool) bool {
	if is, ok := known[dir]; ok {
		return is
	}
	is := isReal(r, filepath.Dir(dir), known)
	if is {
		fi, err := r.Lstat(dir)
		is = err == nil && fi.IsDir()
	}
	known[dir] = is
	return is
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
