package action

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/git"
)

// Config says where remote actions come from.
type Config struct {
	// Dir holds the mirrors: bare repositories, one a repository. It is made if
	// need be, and may be shared by processes.
	Dir string
	// Overrides stand in for remote repositories: "owner/repo@ref" or
	// "owner/repo" (any ref) → a directory of this host.
	Overrides map[string]string
	// Offline uses what the mirrors hold and asks nobody.
	Offline bool
	// Token is used when a repository cannot be had without one.
	Token string
	// Server is where repositories are; "" is https://github.com.
	Server string
	// Fresh is how long a branch or tag that was fetched is not asked for again;
	// 0 is five minutes. A full commit id never changes.
	Fresh time.Duration
	// MaxBytes bounds the mirrors together; the least recently used go first. 0 is 4 GiB.
	MaxBytes int64
	// From brings everything, if it is set: then there are no mirrors here.
	From From
	Log  *slog.Logger // nil discards
}

// From brings actions and other repositories from where they are resolved: a [Resolver]
// elsewhere, say.
type From interface {
	Resolve(ctx context.Context, ref Ref) (*Tree, error)
	Checkout(ctx context.Context, owner, repo string, req CheckoutRequest, w io.Writer) (string, error)
}

// Resolver brings remote actions. It is safe for concurrent use.
type Resolver struct {
	cfg  Config
	mu   sync.Mutex
	busy map[string]*sync.Mutex // by mirror
}

// NewResolver returns a resolver.
func NewResolver(cfg Config) *Resolver {
	cfg.Server = strings.TrimSuffix(cmp.Or(cfg.Server, "https://github.com"), "/")
	cfg.Fresh = cmp.Or(cfg.Fresh, 5*time.Minute)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 4<<30)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Resolver{cfg: cfg, busy: map[string]*sync.Mutex{}}
}

// Tree is the content of a repository at one commit, or a directory that stands
// in for it.
type Tree struct {
	Repository string // owner/repo
	Ref        string // as asked for
	SHA        string // "" for a directory
	// Note is something to tell: an old copy was used, a directory stands in.
	Note string
	dir  string        // a bare repository, or the directory
	pack io.ReadSeeker // the whole tree as a tar archive, in place of dir
	head string        // the branch that it is of, if none was asked for; refs/heads/main

	mu sync.Mutex // of pack
}

// Packed is a tree that somebody else has resolved, as [Tree.Tar] wrote it. Nothing is
// unpacked on this host.
func Packed(repository, ref, sha, note string, pack io.ReadSeeker) *Tree {
	return &Tree{Repository: repository, Ref: ref, SHA: sha, Note: note, pack: pack}
}

// unpack reads one file of a packed tree.
func (t *Tree) unpack(name string, max int64) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.pack.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	for in := tar.NewReader(t.pack); ; {
		h, err := in.Next()
		if err == io.EOF {
			return nil, os.ErrNotExist
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Repository, err)
		}
		if h.Typeflag != tar.TypeReg || path.Clean(h.Name) != path.Clean(name) {
			continue
		}
		if h.Size > max {
			return nil, fmt.Errorf("%s is larger than %d bytes", name, max)
		}
		return io.ReadAll(io.LimitReader(in, max))
	}
}

// Resolve finds the tree of a remote action. That there is no such repository or
// ref, or that nobody can be asked, is an *InputError in words for the author.
func (r *Resolver) Resolve(ctx context.Context, ref Ref) (*Tree, error) {
	if r == nil {
		return nil, inputError("remote actions are switched off")
	}
	if r.cfg.From != nil {
		return r.cfg.From.Resolve(ctx, ref)
	}
	name := ref.Repository()
	for key, dir := range r.cfg.Overrides {
		repo, at, hasRef := strings.Cut(key, "@")
		if !strings.EqualFold(repo, name) || hasRef && at != ref.Ref {
			continue
		}
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			return nil, inputError("--local-repository %s=%s: there is no such directory", key, dir)
		}
		return &Tree{Repository: name, Ref: ref.Ref, dir: dir, Note: fmt.Sprintf("%s@%s is taken from %s", name, ref.Ref, dir)}, nil
	}
	t, err := r.mirror(ctx, ref.Owner, ref.Repo, want{ref: cmp.Or(ref.Commit, ref.Ref), depth: 1})
	if err == nil {
		t.Ref = ref.Ref
	}
	return t, err
}

// want is what of a repository its mirror is to have.
type want struct {
	ref   string // branch, tag, commit or full ref; "" is HEAD
	depth int    // of its history; 0 is all of it, with all branches
	tags  bool
}

// String is the same for the same wants.
func (w want) String() string {
	s := fmt.Sprintf("%s %d", w.kept(), w.depth)
	if w.tags {
		s += " tags"
	}
	return s
}

// kept is the mirror's own ref for a ref: encoded, since of the refs a and a/b git can
// keep only one.
func (w want) kept() string {
	return "refs/hearth/r-" + base64.RawURLEncoding.EncodeToString([]byte(cmp.Or(w.ref, "HEAD")))
}

// mirror makes sure that the mirror has what is wanted.
func (r *Resolver) mirror(ctx context.Context, owner, repo string, w want) (*Tree, error) {
	name, ref := owner+"/"+repo, cmp.Or(w.ref, "HEAD")
	dir := filepath.Join(r.cfg.Dir, strings.ToLower(owner), strings.ToLower(repo)+".git")
	unlock, err := r.lock(dir)
	if err != nil {
		return nil, fmt.Errorf("mirror of %s: %w", name, err)
	}
	defer unlock()
	g := git.At(dir)
	if _, err := os.Stat(filepath.Join(dir, "HEAD")); err != nil {
		if r.cfg.Offline {
			return nil, inputError("Unable to resolve action `%s@%s`: it was never fetched, and this is offline mode. Give --local-repository %s@%s=DIR, or run once with the network.", name, ref, name, ref)
		}
		if _, err := git.Init(dir, "", "[uploadpack]\n\tallowAnySHA1InWant = true\n"); err != nil {
			return nil, fmt.Errorf("mirror of %s: %w", name, err)
		}
	}
	t := &Tree{Repository: name, Ref: ref, dir: dir}
	have, stamp := r.kept(ctx, g, w)
	immutable := git.ObjectID(ref)
	if have != "" && (r.cfg.Offline || immutable || time.Since(stamp) < r.cfg.Fresh) {
		t.SHA, t.head = have, head(g, w)
		r.touch(dir)
		return t, nil
	}
	if r.cfg.Offline {
		return nil, inputError("Unable to resolve action `%s@%s`: that version was never fetched, and this is offline mode", name, ref)
	}
	err = r.fetch(ctx, g, name, w)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if _, gone := errors.AsType[*InputError](err); !gone && have != "" {
			t.SHA, t.head, t.Note = have, head(g, w), fmt.Sprintf("%s could not be asked for news of %s (%v): the copy of %s is used", r.cfg.Server, ref, err, stamp.Format(time.DateTime))
			return t, nil
		}
		if _, ok := errors.AsType[*InputError](err); ok {
			return nil, err
		}
		return nil, inputError("Unable to resolve action `%s@%s`: %v", name, ref, err)
	}
	if t.SHA, err = g.Run(ctx, "rev-parse", "--verify", "--quiet", w.kept()+"^{commit}"); err != nil {
		return nil, inputError("Unable to resolve action `%s@%s`: it is no commit", name, ref)
	}
	t.head = head(g, w)
	r.touch(dir)
	r.trim(ctx)
	return t, nil
}

// kept is the commit that the mirror has for a ref, and when it was fetched.
func (r *Resolver) kept(ctx context.Context, g git.Dir, w want) (string, time.Time) {
	sha, err := g.Run(ctx, "rev-parse", "--verify", "--quiet", w.kept()+"^{commit}")
	if err != nil {
		return "", time.Time{}
	}
	fi, err := os.Stat(stamp(g, w))
	if err != nil {
		return "", time.Time{}
	}
	return sha, fi.ModTime()
}

func stamp(g git.Dir, w want) string {
	return filepath.Join(g.Path(), "hearth-"+base64.RawURLEncoding.EncodeToString([]byte(w.String())))
}

// head is the branch that HEAD was on when what is wanted was fetched.
func head(g git.Dir, w want) string {
	b, err := os.ReadFile(stamp(g, w))
	if err != nil || w.ref != "" || !ValidRef(string(b)) {
		return ""
	}
	return string(b)
}

// fetch gets one ref, without a token first.
func (r *Resolver) fetch(ctx context.Context, g git.Dir, name string, w want) error {
	flags := []string{"--no-tags", "--force"}
	specs := []string{cmp.Or(w.ref, "HEAD") + ":" + w.kept()}
	if w.tags {
		specs = append(specs, "+refs/tags/*:refs/tags/*")
	}
	if w.depth > 0 {
		flags = append(flags, fmt.Sprintf("--depth=%d", w.depth))
	} else if _, err := os.Stat(filepath.Join(g.Path(), "shallow")); err == nil {
		flags = append(flags, "--unshallow")
	}
	if w.depth == 0 {
		specs = append(specs, "+refs/heads/*:refs/heads/*")
	}
	from := git.Remote{URL: r.cfg.Server + "/" + name}
	err := g.Fetch(ctx, from, flags, specs...)
	if err != nil && r.cfg.Token != "" && git.Denied(err) {
		from.Token = r.cfg.Token
		err = g.Fetch(ctx, from, flags, specs...)
	}
	switch {
	case err == nil:
		// Beside the stamp stands which branch HEAD is; that it is not known is no fault.
		head := ""
		if w.ref == "" {
			head, _ = g.HeadOf(ctx, from)
		}
		return os.WriteFile(stamp(g, w), []byte(head), 0o644)
	case git.Missing(err):
		return inputError("Unable to resolve action `%s@%s`, unable to find version `%s`", name, w.ref, w.ref)
	case git.Denied(err):
		return inputError("Unable to resolve action. Repository not found: %s", name)
	}
	return err
}

// lock keeps other users of a mirror out, in this process and in others.
func (r *Resolver) lock(dir string) (unlock func(), err error) {
	r.mu.Lock()
	m := r.busy[dir]
	if m == nil {
		m = &sync.Mutex{}
		r.busy[dir] = m
	}
	r.mu.Unlock()
	m.Lock()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		m.Unlock()
		return nil, err
	}
	f, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err == nil {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
		}
	}
	if err != nil {
		m.Unlock()
		return nil, err
	}
	return func() { f.Close(); m.Unlock() }, nil
}

func (r *Resolver) touch(dir string) {
	now := time.Now()
	os.Chtimes(dir, now, now)
}

// trim keeps the mirrors within MaxBytes.
func (r *Resolver) trim(ctx context.Context) {
	gone, err := Trim(ctx, r.cfg.Dir, Limits{Bytes: r.cfg.MaxBytes})
	for _, m := range gone {
		r.cfg.Log.Info("removed the mirror of an action", "mirror", m.Name, "bytes", m.Bytes, "reason", m.Why)
	}
	if err != nil && ctx.Err() == nil {
		r.cfg.Log.Warn("cannot remove the mirror of an action", "err", err)
	}
}

// Limits say which mirrors to keep. A zero of either sets no limit.
type Limits struct {
	Unused time.Duration // since one was last asked for
	Bytes  int64         // all together; the least recently used go first
	DryRun bool          // say what would be removed, and remove nothing
}

// Removed is a mirror that was removed.
type Removed struct {
	Name  string // owner/repo
	Bytes int64
	Why   string
}

// inUse is for how long after it was asked for a mirror may be read from.
const inUse = time.Hour

// Trim removes mirrors below dir that are beyond the limits, and what a process
// that died while it removed one has left. One that is in use stays. It returns
// what it removed, also with an error.
func Trim(ctx context.Context, dir string, l Limits) (removed []Removed, err error) {
	type mirror struct {
		dir  string
		used time.Time
		size int64
	}
	var all []mirror
	var total int64
	dirs, err := filepath.Glob(filepath.Join(dir, "*", "*.git*"))
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if ctx.Err() != nil {
			return removed, context.Cause(ctx)
		}
		fi, err := os.Stat(d)
		if err != nil || !fi.IsDir() {
			continue
		}
		m := mirror{dir: d, used: fi.ModTime()}
		filepath.WalkDir(d, func(_ string, e os.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				if fi, err := e.Info(); err == nil {
					m.size += fi.Size()
				}
			}
			return nil
		})
		if !strings.HasSuffix(d, ".git") {
			if !strings.Contains(filepath.Base(d), ".git.gone-") {
				continue
			}
			// Half removed. Its process may be at it still: then both do the same.
			if !l.DryRun {
				err = os.RemoveAll(d)
			}
			if err != nil {
				return removed, err
			}
			removed = append(removed, Removed{mirrorName(d), m.size, "left over when it was removed"})
			continue
		}
		total += m.size
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b mirror) int { return a.used.Compare(b.used) })
	for _, m := range all {
		why := ""
		switch {
		case time.Since(m.used) < inUse:
		case l.Unused > 0 && time.Since(m.used) > l.Unused:
			why = fmt.Sprintf("not used since %s", m.used.Format(time.DateOnly))
		case l.Bytes > 0 && total > l.Bytes:
			why = fmt.Sprintf("all together take more than %d MiB", l.Bytes>>20)
		}
		if why == "" || ctx.Err() != nil {
			continue
		}
		if !l.DryRun {
			ok, err := drop(m.dir)
			if err != nil {
				return removed, err
			}
			if !ok {
				continue
			}
		}
		total -= m.size
		removed = append(removed, Removed{mirrorName(m.dir), m.size, why})
	}
	return removed, context.Cause(ctx)
}

// drop removes a mirror, unless somebody has it locked.
func drop(dir string) (bool, error) {
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return false, nil
	}
	// Moved first: nobody sees half a mirror.
	gone := fmt.Sprintf("%s.gone-%d", dir, os.Getpid())
	if err := os.Rename(dir, gone); err != nil {
		return false, err
	}
	return true, os.RemoveAll(gone)
}

// mirrorName is the repository of a mirror's directory.
func mirrorName(dir string) string {
	name, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(dir), ".git"), ".git.gone-")
	return filepath.Base(filepath.Dir(dir)) + "/" + name
}

// ReadFile returns a file of the tree; name is relative to its root. The error
// is os.ErrNotExist if there is none.
func (t *Tree) ReadFile(ctx context.Context, name string, max int64) ([]byte, error) {
	if t.pack != nil {
		return t.unpack(name, max)
	}
	if t.SHA == "" {
		root, err := os.OpenRoot(t.dir)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		f, err := root.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
			return nil, os.ErrNotExist
		}
		b, err := io.ReadAll(io.LimitReader(f, max+1))
		if err == nil && int64(len(b)) > max {
			err = fmt.Errorf("%s is larger than %d bytes", name, max)
		}
		return b, err
	}
	return git.At(t.dir).Blob(ctx, t.SHA, name, max)
}

// Tar writes the whole tree as a tar archive.
func (t *Tree) Tar(ctx context.Context, w io.Writer) error {
	if t.pack != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		_, err := t.pack.Seek(0, io.SeekStart)
		if err == nil {
			_, err = io.Copy(w, t.pack)
		}
		return err
	}
	if t.SHA == "" {
		return tarDir(ctx, t.dir, w, func(name string) bool { return name == ".git" })
	}
	return git.At(t.dir).Tar(ctx, t.SHA, w)
}

// Load reads the file that describes the action at dir (within the tree). That
// there is none is an *InputError; what is wrong with it are diagnostics.
func (t *Tree) Load(ctx context.Context, dir string) (file string, src []byte, err error) {
	for _, n := range Names() {
		src, err := t.ReadFile(ctx, path.Join(dir, n), MaxFile)
		if err == nil {
			return path.Join(dir, n), src, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", nil, fmt.Errorf("read %s of %s: %w", path.Join(dir, n), t.Repository, err)
		}
	}
	where := t.Repository
	if dir != "" {
		where += "/" + dir
	}
	for _, n := range Dockerfiles() {
		if _, err := t.ReadFile(ctx, path.Join(dir, n), MaxFile); err == nil {
			return path.Join(dir, n), FromDockerfile(n), nil
		}
	}
	return "", nil, inputError("Can't find 'action.yml', 'action.yaml' or 'Dockerfile' for action '%s@%s'.", where, t.Ref)
}
