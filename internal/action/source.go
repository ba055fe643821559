package action

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
)

// CheckoutRequest is what actions/checkout asks for.
type CheckoutRequest struct {
	Ref   string // branch, tag, commit or full ref; "" is the run's own
	Depth int    // commits of history; 0 is all of it, with all branches and tags
	Tags  bool   // tags, too
}

// Repository is the run's own repository: a directory of this host with a .git,
// or a bare mirror.
type Repository struct {
	Dir string
	// Name is owner/repo, and Server where it is, for the remote that the
	// checkout names origin.
	Name, Server string
	// SHA and Ref (refs/heads/main) are the run's own commit and ref.
	SHA, Ref string
	// WorkTree makes the run's own commit come with what is changed and new in
	// the working tree of Dir, as far as git would not ignore it.
	WorkTree bool
	// Temp is where checkouts are prepared; "" is the system's.
	Temp string
}

// Checkout writes a working tree with its .git directory to w, as a tar archive.
func (r *Repository) Checkout(ctx context.Context, req CheckoutRequest, w io.Writer) (string, error) {
	ref, sha := req.Ref, ""
	own := ref == "" || ref == r.SHA || ref == r.Ref
	if own {
		ref, sha = r.Ref, r.SHA
	}
	g := git{dir: r.Dir}
	if sha == "" {
		var err error
		if ref, sha, err = r.find(ctx, g, ref); err != nil {
			if own {
				return "", inputError("The repository in %s has no commit yet: there is nothing to check out", r.Dir)
			}
			return "", err
		}
	}
	// A commit that was asked for by its id is checked out detached.
	if fullSHA.MatchString(req.Ref) {
		ref = ""
	}
	c := clone{from: r.Dir, sha: sha, ref: ref, depth: req.Depth, tags: req.Tags, temp: r.Temp}
	if r.Name != "" {
		c.origin = cmp.Or(strings.TrimSuffix(r.Server, "/"), "https://github.com") + "/" + r.Name
	}
	if own && r.WorkTree {
		c.overlay = r.Dir
	}
	if err := c.write(ctx, w); err != nil {
		return "", fmt.Errorf("check out %s of %s: %w", sha, r.Dir, err)
	}
	return sha, nil
}

// find is the full ref and the commit that a name means.
func (r *Repository) find(ctx context.Context, g git, ref string) (full, sha string, err error) {
	if !validRef(ref) {
		return "", "", inputError("'%s' is not the name of a branch, tag or commit", ref)
	}
	for _, try := range []string{"refs/heads/" + ref, "refs/tags/" + ref, "refs/remotes/origin/" + ref, ref} {
		if try == ref && !strings.HasPrefix(ref, "refs/") && !fullSHA.MatchString(ref) && ref != "HEAD" {
			continue
		}
		if sha, err := g.run(ctx, "rev-parse", "--verify", "--quiet", try+"^{commit}"); err == nil {
			full = try
			if b, ok := strings.CutPrefix(try, "refs/remotes/origin/"); ok {
				full = "refs/heads/" + b
			}
			return full, sha, nil
		}
	}
	return "", "", inputError("A branch or tag with the name '%s' could not be found", ref)
}

// ReadFile returns a file of the run's own commit (of the working tree with
// WorkTree), os.ErrNotExist if there is none.
func (r *Repository) ReadFile(ctx context.Context, name string, max int64) ([]byte, error) {
	t := Tree{dir: r.Dir, SHA: r.SHA}
	if r.WorkTree {
		t.SHA = ""
	}
	return t.ReadFile(ctx, name, max)
}

// Checkout is [Repository.Checkout] for another repository, through its mirror.
func (r *Resolver) Checkout(ctx context.Context, owner, repo string, req CheckoutRequest, w io.Writer) (string, error) {
	if r == nil {
		return "", inputError("checking out other repositories is switched off")
	}
	t, err := r.mirror(ctx, owner, repo, req.Ref, req.Depth)
	if err != nil {
		return "", err
	}
	ref := ""
	if req.Ref != "" && !fullSHA.MatchString(req.Ref) {
		ref = "refs/heads/" + strings.TrimPrefix(req.Ref, "refs/heads/")
	}
	c := clone{from: t.dir, sha: t.SHA, ref: ref, depth: max(req.Depth, 1), tags: false, origin: r.cfg.Server + "/" + owner + "/" + repo}
	if req.Depth == 0 {
		c.depth = 0
	}
	return t.SHA, c.write(ctx, w)
}

// clone is a working tree to be made.
type clone struct {
	from    string // a repository of this host
	sha     string
	ref     string // what HEAD is on; "" is detached
	depth   int
	tags    bool
	origin  string
	overlay string // a working tree whose changes come on top; "" is none
	temp    string
}

func (c clone) write(ctx context.Context, w io.Writer) (err error) {
	tmp, err := os.MkdirTemp(c.temp, "hearth-checkout-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	g := git{dir: tmp}
	// c.from may be a directory below the top, or a worktree of another.
	from, err := git{dir: c.from}.run(ctx, "rev-parse", "--path-format=absolute", "--git-common-dir")
	if err != nil {
		return err
	}
	if _, err := g.run(ctx, "init", "--quiet", "--template=", tmp); err != nil {
		return err
	}
	// The other end is a git of ours, too: it may be asked for any commit, and
	// for those of a repository that belongs to someone else.
	fetch := []string{"fetch", "--quiet", "--update-shallow", "--no-write-fetch-head",
		"--upload-pack=git -c uploadpack.allowAnySHA1InWant=true -c safe.directory='*' upload-pack"}
	if c.depth > 0 {
		fetch = append(fetch, fmt.Sprintf("--depth=%d", c.depth))
	}
	if !c.tags && c.depth > 0 {
		fetch = append(fetch, "--no-tags")
	}
	fetch = append(fetch, "--", "file://"+from, c.sha)
	if c.depth == 0 {
		fetch = append(fetch, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
	} else if c.tags {
		fetch = append(fetch, "+refs/tags/*:refs/tags/*")
	}
	if _, err := g.run(ctx, fetch...); err != nil {
		return err
	}
	checkout := []string{"checkout", "--quiet", "--force", "--detach", c.sha}
	if branch, ok := strings.CutPrefix(c.ref, "refs/heads/"); ok {
		checkout = []string{"checkout", "--quiet", "--force", "-B", branch, c.sha}
		if _, err := g.run(ctx, "update-ref", "refs/remotes/origin/"+branch, c.sha); err != nil {
			return err
		}
	} else if tag, ok := strings.CutPrefix(c.ref, "refs/tags/"); ok {
		g.run(ctx, "update-ref", "refs/tags/"+tag, c.sha)
	}
	if _, err := g.run(ctx, checkout...); err != nil {
		return err
	}
	if c.origin != "" {
		if _, err := g.run(ctx, "remote", "add", "origin", c.origin); err != nil {
			return err
		}
	}
	if c.overlay != "" {
		if err := c.changes(ctx, tmp); err != nil {
			return fmt.Errorf("the changes of the working tree: %w", err)
		}
	}
	return tarDir(ctx, tmp, w, nil)
}

// changes brings what differs in the working tree from its HEAD.
func (c clone) changes(ctx context.Context, tmp string) error {
	g := git{dir: c.overlay}
	top, err := g.run(ctx, "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	g.dir = top
	var list bytes.Buffer
	if err := g.stream(ctx, &list, "diff", "--name-only", "--no-renames", "--ignore-submodules", "-z", c.sha, "--"); err != nil {
		return err
	}
	if err := g.stream(ctx, &list, "ls-files", "--others", "--exclude-standard", "-z"); err != nil {
		return err
	}
	src, err := os.OpenRoot(top)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer dst.Close()
	for name := range strings.SplitSeq(list.String(), "\x00") {
		if name == "" || !filepath.IsLocal(name) || name == ".git" || strings.HasPrefix(name, ".git/") {
			continue
		}
		name = strings.TrimSuffix(name, "/")
		if err := copyInto(dst, src, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// copyInto makes name in dst what it is in src.
func copyInto(dst, src *os.Root, name string) error {
	fi, err := src.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && fi.IsDir() {
		// Removed, or a repository inside this one.
		return dst.RemoveAll(name)
	}
	if err != nil {
		return err
	}
	if err := dst.RemoveAll(name); err != nil {
		return err
	}
	if dir := filepath.Dir(name); dir != "." {
		if err := dst.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		to, err := src.Readlink(name)
		if err != nil {
			return err
		}
		return dst.Symlink(to, name)
	case !fi.Mode().IsRegular():
		return nil // sockets and the like are no content
	}
	in, err := src.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := dst.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, fi.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// tarDir writes a directory as a tar archive. skip leaves out entries of its top.
func tarDir(ctx context.Context, dir string, w io.Writer, skip func(name string) bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if name == "." {
			return nil
		}
		if skip != nil && skip(name) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		link := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			if link, err = root.Readlink(name); err != nil {
				return err
			}
		} else if !fi.IsDir() && !fi.Mode().IsRegular() {
			return nil
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name = name
		if fi.IsDir() {
			h.Name += "/"
		}
		// Whose it is here means nothing there.
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return nil
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		// A file that grows meanwhile is cut, one that shrinks is an error.
		_, err = io.CopyN(t, f, h.Size)
		return err
	})
	if err != nil {
		return err
	}
	return t.Close()
}

// limitedBuffer is a buffer that refuses more than max bytes.
type limitedBuffer struct {
	bytes.Buffer
	max int64
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if int64(b.Len()+len(p)) > b.max {
		return 0, fmt.Errorf("larger than %d bytes", b.max)
	}
	return b.Buffer.Write(p)
}
