package git

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Checkout is a working tree and its .git directory to be written: the directory is
// made anew, with just the history that is asked for, and nothing of the settings,
// hooks, stashes or credentials of where it comes from.
type Checkout struct {
	From   Dir    // has the commit
	SHA    string // the commit
	Ref    string // full ref that HEAD is on; anything but a branch is detached
	Depth  int    // commits of history; 0 is all of it, with all branches and tags
	Tags   bool   // tags, too
	Origin string // address of the remote "origin"; "" is none
	// Ours says that From was made for this checkout and holds all that goes into
	// it: it becomes the .git directory itself. Shallow says then that the commit's
	// parents are not there.
	Ours    bool
	Shallow bool
	// Files hands out the working tree; nil is the commit's files.
	Files Source
	// Note takes sentences for the log of who asked; it may be nil.
	Note func(string)
	// Modules takes the submodules of what was written, whose directories are empty. nil
	// is nobody who asks.
	Modules func([]Module)
	// LFS brings the files that pointers stand for; nil leaves the pointers.
	LFS *LFS
}

// LFSError is a file of Git LFS that could not be had.
type LFSError struct {
	Name string
	Err  error
}

func (e *LFSError) Error() string { return fmt.Sprintf("Git LFS: %.200q: %v", e.Name, e.Err) }

func (e *LFSError) Unwrap() error { return e.Err }

// Write writes the checkout as a tar archive.
func (c Checkout) Write(ctx context.Context, w io.Writer) (err error) {
	to := c.From
	if !c.Ours {
		temp, err := os.MkdirTemp("", tempPrefix)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
		if to, err = Init(temp, c.From.format, ""); err != nil {
			return err
		}
		if err := c.fetch(ctx, to); err != nil {
			return err
		}
	}
	if err := c.finish(ctx, to); err != nil {
		return err
	}
	t := &tarball{ctx: ctx, w: tar.NewWriter(w), now: time.Now().Truncate(time.Second), lfs: c.LFS, left: MaxFetch}
	files := c.Files
	if files == nil {
		files = func(ctx context.Context, fn func(Content) error) error {
			list, err := to.Tree(ctx, c.SHA)
			if err != nil {
				return err
			}
			return to.Read(ctx, list, fn)
		}
	}
	if err := files(ctx, t.add); err != nil {
		return err
	}
	if c.Note != nil && t.pointers > 0 {
		c.Note(fmt.Sprintf("Git LFS: %s, for instance %.200q, came as pointers: files are taken as they are in the repository. `lfs: true` at the checkout brings the files.", count(t.pointers, "file"), t.pointer))
	}
	if c.Modules != nil {
		found, err := modules(ctx, t.gitmodules, c.Origin, t.links)
		if err != nil {
			return fmt.Errorf(".gitmodules: %w", err)
		}
		c.Modules(found)
	}
	if err := t.git(ctx, to.path); err != nil {
		return err
	}
	return t.w.Close()
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// fetch brings the history, from a directory of this host.
func (c Checkout) fetch(ctx context.Context, to Dir) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	flags, specs := History(c.SHA, c.Depth, c.Tags)
	return to.Over("file").fetch(ctx, cancel, c.From.path, MaxFetch, flags, specs)
}

// finish makes a git directory that of a working tree: refs, HEAD, index, config.
func (c Checkout) finish(ctx context.Context, to Dir) error {
	branch, onBranch := strings.CutPrefix(c.Ref, "refs/heads/")
	// update-ref refuses what is no name of a ref.
	head, refs := c.SHA, ""
	switch {
	case onBranch:
		head = "ref: " + c.Ref
		refs = fmt.Sprintf("update %s\x00%s\x00\x00update refs/remotes/origin/%s\x00%[2]s\x00\x00", c.Ref, c.SHA, branch)
	case strings.HasPrefix(c.Ref, "refs/tags/") && c.Depth > 0 && !c.Tags: // else it was fetched, with what it says
		refs = fmt.Sprintf("update %s\x00%s\x00\x00", c.Ref, c.SHA)
	}
	if refs != "" {
		if err := to.stream(ctx, strings.NewReader(refs), io.Discard, "update-ref", "-z", "--stdin"); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(to.path, "HEAD"), []byte(head+"\n"), 0o644); err != nil {
		return err
	}
	if c.Shallow {
		if err := os.WriteFile(filepath.Join(to.path, "shallow"), []byte(c.SHA+"\n"), 0o644); err != nil {
			return err
		}
	}
	if _, err := to.Run(ctx, "read-tree", c.SHA); err != nil {
		return err
	}
	config := header(to.format, false) + "[core]\n\tlogallrefupdates = true\n"
	if c.Origin != "" {
		config += fmt.Sprintf("[remote \"origin\"]\n\turl = %s\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n", value(c.Origin))
		if onBranch {
			config += fmt.Sprintf("[branch %s]\n\tremote = origin\n\tmerge = %s\n", value(branch), value(c.Ref))
		}
	}
	if err := os.Remove(filepath.Join(to.path, "info", "attributes")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to.path, "config"), []byte(config), 0o644)
}

// value is a string in a config file.
func value(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// tarball writes files.
type tarball struct {
	ctx      context.Context
	w        *tar.Writer
	now      time.Time
	pointers int // that stayed
	pointer  string

	lfs  *LFS
	left int64 // bytes of Git LFS that may still come

	links      []Module // the submodules' paths and commits
	gitmodules []byte
}

// lfs is how a file begins that stands for one in Git LFS.
const lfs = "version https://git-lfs.github.com/spec/"

func (t *tarball) add(c Content) error {
	h := &tar.Header{Name: c.Name, ModTime: t.now, Mode: 0o644}
	switch c.Mode {
	case Submodule:
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, c.Name+"/", 0o755
		t.links = append(t.links, Module{Path: c.Name, SHA: c.Object})
	case Symlink:
		h.Typeflag, h.Mode, h.Linkname = tar.TypeSymlink, 0o777, c.Link
	default:
		h.Typeflag, h.Size = tar.TypeReg, c.Size
		if c.Mode == Executable {
			h.Mode = 0o755
		}
	}
	return t.write(h, c.Reader)
}

func (t *tarball) write(h *tar.Header, body io.Reader) error {
	h.Format = tar.FormatPAX
	if strings.ToValidUTF8(h.Name, "") != h.Name || strings.ToValidUTF8(h.Linkname, "") != h.Linkname {
		h.Format = tar.FormatGNU // the other one has UTF-8 only
	}
	if h.Typeflag == tar.TypeReg && (h.Size < pointerSize || h.Name == ".gitmodules" && h.Size <= maxModules) {
		b, err := io.ReadAll(io.LimitReader(body, h.Size))
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		body = bytes.NewReader(b)
		if h.Name == ".gitmodules" {
			t.gitmodules = b
		}
		if oid, size, is := pointer(b); is && t.lfs != nil {
			return t.large(h, oid, size)
		} else if is {
			t.pointers++
			t.pointer = h.Name
		}
	}
	if err := t.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	if _, err := io.CopyN(t.w, body, h.Size); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// large writes the file that a pointer stands for.
func (t *tarball) large(h *tar.Header, oid string, size int64) error {
	if t.left -= size; t.left < 0 {
		return &LFSError{h.Name, fmt.Errorf("the files are larger than %d GiB together", MaxFetch>>30)}
	}
	h.Size = size
	if err := t.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	// Who reads the archive may have gone: that is not the file's fault.
	to := &writes{w: t.w}
	if err := t.lfs.copyObject(t.ctx, to, oid, size); to.err != nil {
		return fmt.Errorf("%s: %w", h.Name, to.err)
	} else if err != nil {
		return &LFSError{h.Name, err}
	}
	return nil
}

// writes keeps the error of a writer.
type writes struct {
	w   io.Writer
	err error
}

func (w *writes) Write(p []byte) (n int, err error) {
	n, err = w.w.Write(p)
	w.err = cmp.Or(w.err, err)
	return n, err
}

// git adds a git directory as .git.
func (t *tarball) git(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name := ".git/" + p
		if e.IsDir() {
			if p == "." {
				name = ".git"
			}
			return t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: t.now})
		}
		if !e.Type().IsRegular() {
			return nil
		}
		f, err := root.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		return t.write(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: fi.Size(), ModTime: t.now}, f)
	})
}

// Tar writes the files of a commit as a tar archive, without a .git.
func (d Dir) Tar(ctx context.Context, treeish string, w io.Writer) error {
	t := &tarball{ctx: ctx, w: tar.NewWriter(w), now: time.Now().Truncate(time.Second)}
	files, err := d.Tree(ctx, treeish)
	if err != nil {
		return err
	}
	if err := d.Read(ctx, files, t.add); err != nil {
		return err
	}
	return t.w.Close()
}
