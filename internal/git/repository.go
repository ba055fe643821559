package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNoRepository says that a directory is not the top of a repository's working
// tree, or that the repository has no commit yet.
var ErrNoRepository = errors.New("not the top of a git repository with a commit")

// ForeignError is a repository that belongs to somebody else.
type ForeignError struct {
	Dir  string // working tree
	Path string // what belongs to another
	UID  uint32 // its owner
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s belongs to another user (%s is of uid %d), and whose repository it is may say what git runs. If you trust it: git config --global --add safe.directory %s",
		e.Dir, e.Path, e.UID, quote(e.Dir))
}

// quote makes a path an argument in a shell.
func quote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Repository is a user's own repository, read through a view (see the package's
// comment). Close removes the view.
type Repository struct {
	Root   string // top of the working tree, absolute
	Origin string // address of the remote "origin", as its config has it; "" for none
	Head   string // the commit
	Branch string // that HEAD is on; "" for none

	// Partial says that it is a partial clone: it may lack objects.
	Partial bool

	at, common string // its git directory, and the one that it shares with others
	dir        Dir    // the view
	format     string
	ignore     string
}

// Open looks whether root is the top of a working tree, as its .git says. Above
// root it does not look, and a bare repository in its place is none. The error is
// ErrNoRepository, or a [*ForeignError].
func Open(ctx context.Context, root string) (*Repository, error) {
	at, common, ok := locate(root)
	if !ok {
		return nil, ErrNoRepository
	}
	return open(ctx, root, at, common)
}

// Module opens the repository of a submodule, whose working tree is at a path below
// the top. It is ErrNoRepository if there is none, and also if its git directory is
// anywhere but in the tree or below .git/modules: what lies in a tree may point to any
// repository of the user's.
func (r *Repository) Module(ctx context.Context, below string) (*Repository, error) {
	if err := checkName(below); err != nil {
		return nil, ErrNoRepository
	}
	top, err := os.OpenRoot(r.Root)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	if !isReal(top, filepath.FromSlash(below), map[string]bool{".": true}) {
		return nil, ErrNoRepository
	}
	root := filepath.Join(r.Root, filepath.FromSlash(below))
	at, common, ok := locate(root)
	if !ok {
		return nil, ErrNoRepository
	}
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, ErrNoRepository
	}
	for _, dir := range []string{at, common} {
		if dir != filepath.Join(real, ".git") && !strings.HasPrefix(dir, filepath.Join(r.common, "modules")+string(filepath.Separator)) &&
			!strings.HasPrefix(dir, filepath.Join(r.at, "modules")+string(filepath.Separator)) {
			return nil, ErrNoRepository
		}
	}
	return open(ctx, root, at, common)
}

// Large is where the repository keeps files of Git LFS.
func (r *Repository) Large() string { return filepath.Join(r.common, "lfs", "objects") }

func open(ctx context.Context, root, at, common string) (_ *Repository, err error) {
	if err := owned(ctx, root, filepath.Join(root, ".git"), at, common); err != nil {
		return nil, err
	}
	view, err := os.MkdirTemp("", tempPrefix)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(view)
		}
	}()
	r := &Repository{Root: root, at: at, common: common}
	if err := r.view(ctx, view, at, common); err != nil {
		return nil, fmt.Errorf("the repository in %s: %w", root, err)
	}
	r.dir = r.dir.on(root)
	if r.Head, err = r.dir.Run(ctx, "rev-parse", "--verify", "--quiet", "HEAD^{commit}"); err != nil {
		var failed *Error
		if errors.As(err, &failed) && ctx.Err() == nil && failed.Stderr == "" {
			err = ErrNoRepository
		}
		return nil, err
	}
	if b, err := r.dir.Run(ctx, "symbolic-ref", "--quiet", "HEAD"); err == nil {
		r.Branch = strings.TrimPrefix(b, "refs/heads/")
	}
	return r, nil
}

// tempPrefix is what our temporary directories begin with.
const tempPrefix = "hearth-git-"

// Close removes what Open made.
func (r *Repository) Close() error { return os.RemoveAll(r.dir.path) }

// Dir reads the repository's commits.
func (r *Repository) Dir() Dir { return r.dir }

// small reads a regular file of a git directory that is a line or a few.
func small(name string, max int64) ([]byte, bool) {
	// Not of a pipe, which would wait for ever.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() > max {
		return nil, false
	}
	b, err := io.ReadAll(io.LimitReader(f, max))
	return b, err == nil
}

// locate finds the git directory of a working tree and the one that it shares with
// others (of a linked working tree): root/.git as a directory, or as a file that
// says where it is.
func locate(root string) (at, common string, ok bool) {
	at = filepath.Join(root, ".git")
	fi, err := os.Stat(at)
	if err != nil {
		return "", "", false
	}
	if !fi.IsDir() {
		b, _ := small(at, 1<<16)
		to, ok := strings.CutPrefix(strings.TrimRight(string(b), "\r\n"), "gitdir: ")
		if !ok || to == "" {
			return "", "", false
		}
		if at = to; !filepath.IsAbs(at) {
			at = filepath.Join(root, to)
		}
	}
	if at, err = filepath.EvalSymlinks(at); err != nil {
		return "", "", false
	}
	common = at
	if b, ok := small(filepath.Join(at, "commondir"), 1<<16); ok {
		if common = strings.TrimRight(string(b), "\r\n"); !filepath.IsAbs(common) {
			common = filepath.Join(at, common)
		}
		if common, err = filepath.EvalSymlinks(common); err != nil {
			return "", "", false
		}
	}
	_, err = os.Lstat(filepath.Join(at, "HEAD"))
	for _, d := range []string{"objects", "refs"} {
		if fi, serr := os.Stat(filepath.Join(common, d)); serr != nil || !fi.IsDir() {
			return "", "", false
		}
	}
	return at, common, err == nil
}

// Ours says whether a file belongs to who runs us: the user, and for root the one
// who called sudo, as git has it.
func Ours(name string) (uid uint32, ours bool) {
	fi, err := os.Lstat(name)
	if err != nil {
		return 0, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	me := uint32(os.Geteuid())
	if st.Uid == me {
		return st.Uid, true
	}
	sudo, err := strconv.ParseUint(os.Getenv("SUDO_UID"), 10, 32)
	return st.Uid, me == 0 && err == nil && st.Uid == uint32(sudo)
}

// owned is git's own guard: a repository of another user's is none of ours, unless
// the user's safe.directory names it.
func owned(ctx context.Context, root string, names ...string) error {
	for _, name := range append(names, root) {
		uid, ours := Ours(name)
		if ours {
			continue
		}
		if Safe(ctx, root) {
			return nil
		}
		return &ForeignError{Dir: root, Path: name, UID: uid}
	}
	return nil
}

// Safe says whether the safe.directory of the user or the system names dir.
func Safe(ctx context.Context, dir string) bool {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	safe := false
	for _, scope := range []string{"--system", "--global"} {
		for _, v := range personal(ctx, scope, "safe.directory") {
			v = strings.TrimSuffix(v, "\x00")
			below, all := strings.CutSuffix(v, "/*")
			to, err := filepath.EvalSymlinks(v)
			switch {
			case v == "":
				safe = false
			case v == "*", v == dir, v == real, err == nil && to == real, all && strings.HasPrefix(real, below+"/"):
				safe = true
			}
		}
	}
	return safe
}

// personal reads the values of a key of the user's own settings. It is the one
// command that sees them; it knows of no repository, and only prints.
func personal(ctx context.Context, scope, key string, more ...string) []string {
	env := append(environment(), "GIT_DIR=/dev/null")
	env = slices.DeleteFunc(env, func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return k == "HOME" || k == "XDG_CONFIG_HOME" || k == "GIT_CONFIG_GLOBAL" || k == "GIT_CONFIG_NOSYSTEM"
	})
	for _, k := range []string{"HOME", "XDG_CONFIG_HOME"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	args := append([]string{"config", scope, "--includes", "-z", "--get-all"}, more...)
	out, err := run(ctx, program(ctx, "/", env, append(args, key)...), "config")
	if err != nil {
		return nil // no such key, or no such file
	}
	return strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
}

// excludes is the user's own list of what no repository of theirs holds.
func excludes(ctx context.Context) string {
	if v := personal(ctx, "--global", "core.excludesfile", "--type=path"); len(v) > 0 {
		return v[len(v)-1]
	}
	if x := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(x) {
		return filepath.Join(x, "git", "ignore")
	}
	if h := os.Getenv("HOME"); filepath.IsAbs(h) {
		return filepath.Join(h, ".config", "git", "ignore")
	}
	return "/dev/null"
}

// wanted are the keys of a repository's config that are data: how its file system
// is, what its objects are, and where it came from.
var wanted = regexp.MustCompile(`^(core\.(filemode|symlinks|ignorecase|trustctime|checkstat)|extensions\.(objectformat|refstorage|partialclone)|remote\.origin\.url)$`)

// readConfig picks what is data out of a config file, without its includes.
func readConfig(ctx context.Context, file string) (map[string]string, error) {
	b, ok := small(file, 1<<20)
	if !ok {
		return map[string]string{}, nil
	}
	cmd := program(ctx, "/", append(environment(), "GIT_DIR=/dev/null"), "config", "--file", "-", "--no-includes", "-z", "--list")
	cmd.Stdin = strings.NewReader(string(b))
	out, err := run(ctx, cmd, "config")
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, kv := range parts(out) {
		if k, v, _ := strings.Cut(kv, "\n"); wanted.MatchString(k) {
			if _, first := values[k]; k != "remote.origin.url" || !first { // the first address is that which is fetched from
				values[k] = v
			}
		}
	}
	return values, nil
}

var plain = regexp.MustCompile(`^[A-Za-z0-9]{0,20}$`)

// view makes a git directory that is the repository's but for its settings.
func (r *Repository) view(ctx context.Context, view, at, common string) error {
	values, err := readConfig(ctx, filepath.Join(common, "config"))
	if err != nil {
		return err
	}
	r.Origin, r.format = values["remote.origin.url"], values["extensions.objectformat"]
	_, r.Partial = values["extensions.partialclone"]
	for k, v := range values {
		if !plain.MatchString(v) && k != "remote.origin.url" && k != "extensions.partialclone" {
			return fmt.Errorf("its config has no sensible value for %s", k)
		}
	}
	var own strings.Builder
	own.WriteString("[uploadpack]\n\tallowAnySHA1InWant = true\n[core]\n\tuseReplaceRefs = false\n")
	for _, k := range []string{"filemode", "symlinks", "ignorecase", "trustctime", "checkstat"} {
		if v, ok := values["core."+k]; ok && v != "" {
			fmt.Fprintf(&own, "\t%s = %s\n", k, v)
		}
	}
	links := []string{"refs", "packed-refs", "objects", "shallow"}
	if s := values["extensions.refstorage"]; s != "" && s != "files" {
		// In this form a ref of a linked working tree is not among those of all.
		if at != common {
			return fmt.Errorf("its refs are kept as %s, which is not read for linked working trees", s)
		}
		fmt.Fprintf(&own, "[core]\n\trepositoryformatversion = 1\n[extensions]\n\trefstorage = %s\n", s)
		links = append(links, s)
	}
	if r.dir, err = Init(view, r.format, own.String()); err != nil {
		return err
	}
	for _, name := range []string{"refs", "objects"} {
		if err := os.RemoveAll(filepath.Join(view, name)); err != nil {
			return err
		}
	}
	for _, name := range links {
		if _, err := os.Lstat(filepath.Join(common, name)); err == nil {
			if err := os.Symlink(filepath.Join(common, name), filepath.Join(view, name)); err != nil {
				return err
			}
		}
	}
	head, ok := small(filepath.Join(at, "HEAD"), 1<<16)
	if to, err := os.Readlink(filepath.Join(at, "HEAD")); err == nil { // as it was long ago
		head, ok = []byte("ref: "+to+"\n"), true
	}
	if !ok {
		return errors.New("its HEAD cannot be read")
	}
	if err := os.WriteFile(filepath.Join(view, "HEAD"), head, 0o644); err != nil {
		return err
	}
	if b, ok := small(filepath.Join(common, "info", "exclude"), 1<<20); ok {
		if err := os.WriteFile(filepath.Join(view, "info", "exclude"), b, 0o644); err != nil {
			return err
		}
	}
	shared, _ := filepath.Glob(filepath.Join(escape(at), "sharedindex.*"))
	for _, name := range append(shared, filepath.Join(at, "index")) {
		if err := copyFile(name, filepath.Join(view, filepath.Base(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func escape(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
}

// copyFile copies a regular file with its time: git compares that of an index with
// those of the files in it.
func copyFile(from, to string) error {
	in, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", from)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Chtimes(to, fi.ModTime(), fi.ModTime())
}

// Ref is the full ref and the commit that a name means: a branch, a tag, a branch
// of origin, a full ref, a commit's id. ok is false if it means none.
func (r *Repository) Ref(ctx context.Context, name string) (full, sha string, ok bool) {
	for _, try := range []string{"refs/heads/" + name, "refs/tags/" + name, "refs/remotes/origin/" + name, name} {
		if try == name && !strings.HasPrefix(name, "refs/") && !ObjectID(name) && name != "HEAD" {
			continue
		}
		sha, err := r.dir.Run(ctx, "rev-parse", "--verify", "--quiet", try+"^{commit}")
		if err != nil {
			continue
		}
		if b, ok := strings.CutPrefix(try, "refs/remotes/origin/"); ok {
			try = "refs/heads/" + b
		}
		return try, sha, true
	}
	return "", "", false
}

var objectID = regexp.MustCompile(`^(?:[0-9a-fA-F]{40}|[0-9a-fA-F]{64})$`)

// ObjectID says whether s is the whole name of an object.
func ObjectID(s string) bool { return objectID.MatchString(s) }

// Parent is the first parent of HEAD, "" if it has none.
func (r *Repository) Parent(ctx context.Context) string {
	sha, _ := r.dir.Run(ctx, "rev-parse", "--verify", "--quiet", "HEAD^")
	return sha
}

// Commit reads a commit, as it is in its object: git would run iconv with whatever
// encoding a commit says that it has.
func (r *Repository) Commit(ctx context.Context, sha string) Commit {
	c := Commit{SHA: sha}
	out, _ := r.dir.Run(ctx, "cat-file", "commit", sha)
	header, message, _ := strings.Cut(out, "\n\n")
	for line := range strings.SplitSeq(header, "\n") {
		switch key, rest, _ := strings.Cut(line, " "); key {
		case "tree":
			c.Tree = rest
		case "parent":
			c.Parents = append(c.Parents, rest)
		case "author":
			c.Author = person(rest)
		case "committer":
			c.Committer = person(rest)
		}
	}
	c.Message = strings.TrimSpace(strings.ToValidUTF8(message, "\uFFFD"))
	return c
}

// person reads "Name <email> seconds zone".
func person(s string) Person {
	s = strings.ToValidUTF8(s, "\uFFFD")
	name, rest, _ := strings.Cut(s, " <")
	email, when, _ := strings.Cut(rest, "> ")
	p := Person{Name: name, Email: email}
	seconds, zone, _ := strings.Cut(when, " ")
	if n, err := strconv.ParseInt(seconds, 10, 64); err == nil {
		p.When = time.Unix(n, 0).UTC()
		if z, err := time.Parse("-0700", zone); err == nil {
			p.When = p.When.In(z.Location())
		}
	}
	return p
}

// MergeBase is the best common ancestor of two commits, "" if there is none.
func (r *Repository) MergeBase(ctx context.Context, a, b string) string {
	sha, _ := r.dir.Run(ctx, "merge-base", a, b)
	return sha
}

// Remotes says whether there are branches of origin.
func (r *Repository) Remotes(ctx context.Context) bool {
	out, _ := r.dir.Run(ctx, "for-each-ref", "--count=1", "--format=%(refname)", "refs/remotes/origin/")
	return out != ""
}

// Since are the commits that a commit has, newest first and at most so many, and how
// many there are in all: those that since does not have, or, if it is "", no branch
// of origin has.
func (r *Repository) Since(ctx context.Context, since, commit string, most int) (newest []string, all int) {
	not := "--remotes=origin"
	if since != "" {
		not = since
	}
	args := []string{commit, "--not", not}
	out, err := r.dir.Run(ctx, append([]string{"rev-list", fmt.Sprint("--max-count=", most)}, args...)...)
	if err != nil || out == "" {
		return nil, 0
	}
	newest = strings.Split(out, "\n")
	if all = len(newest); all == most {
		count, _ := r.dir.Run(ctx, append([]string{"rev-list", "--count"}, args...)...)
		if n, err := strconv.Atoi(count); err == nil {
			all = n
		}
	}
	return newest, all
}

// Touched are the paths that a commit changes against its first parent, at most so many,
// and how many lines it adds and removes in all.
func (r *Repository) Touched(ctx context.Context, sha string, most int) (files []string, lines int, err error) {
	list, err := r.dir.list(ctx, "diff-tree", "--root", "-r", "-m", "--first-parent", "--no-commit-id", "--no-ext-diff", "--no-textconv",
		"--ignore-submodules=all", "--no-renames", "--numstat", "-z", sha, "--")
	for _, l := range list {
		added, rest, _ := strings.Cut(l, "\t")
		removed, name, ok := strings.Cut(rest, "\t")
		if !ok {
			continue
		}
		for _, n := range [2]string{added, removed} {
			if v, err := strconv.Atoi(n); err == nil { // "-" of what is no text
				lines += min(v, 1<<20)
			}
		}
		if len(files) < most {
			files = append(files, name)
		}
	}
	return files, lines, err
}

// LastTag is the nearest tag that a commit has, "" if it has none.
func (r *Repository) LastTag(ctx context.Context, commit string) string {
	tag, _ := r.dir.Run(ctx, "describe", "--tags", "--abbrev=0", commit)
	return tag
}

// Tag is a tag that HEAD is at, "" if there is none.
func (r *Repository) Tag(ctx context.Context) string {
	tag, _ := r.dir.Run(ctx, "describe", "--tags", "--exact-match")
	return tag
}

// DefaultBranch is the branch that origin's HEAD was on, "" if that is not known.
func (r *Repository) DefaultBranch(ctx context.Context) string {
	ref, _ := r.dir.Run(ctx, "symbolic-ref", "--quiet", "refs/remotes/origin/HEAD")
	b, ok := strings.CutPrefix(ref, "refs/remotes/origin/")
	if !ok {
		return ""
	}
	return b
}

// Changed lists the paths that HEAD has changed since a commit (all of them, if it is
// ""), and those that differ in the working tree now.
func (r *Repository) Changed(ctx context.Context, parent string) ([]string, error) {
	show := []string{"diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all", "--no-renames", "--name-only", "-z"}
	last := []string{"ls-tree", "-r", "-z", "--name-only", "--full-tree", "HEAD"}
	if parent != "" {
		last = append(slices.Clone(show), parent, "HEAD", "--")
	}
	all, err := r.dir.list(ctx, last...)
	if err != nil {
		return nil, err
	}
	now, err := r.dir.list(ctx, append(show, "HEAD", "--")...)
	if err != nil {
		return nil, err
	}
	others, err := r.others(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.Concat(all, now, others)
	slices.Sort(all)
	return slices.Compact(all), nil
}

// others lists the files that are neither tracked nor ignored. Repositories inside
// this one are not looked into.
func (r *Repository) others(ctx context.Context) ([]string, error) {
	if r.ignore == "" {
		r.ignore = excludes(ctx)
	}
	names, err := r.dir.With("core.excludesFile="+r.ignore).list(ctx, "ls-files", "-z", "--others", "--exclude-standard")
	own := ownTemp(r.Root)
	return slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, "/") || own(n) }), err
}

// ownTemp says whether a name below root is in a temporary directory of ours:
// they may lie in the tree that is read.
func ownTemp(root string) func(string) bool {
	temp, err1 := filepath.EvalSymlinks(os.TempDir())
	real, err2 := filepath.EvalSymlinks(root)
	rel, err3 := filepath.Rel(real, temp)
	if err1 != nil || err2 != nil || err3 != nil || !filepath.IsLocal(rel) {
		return func(string) bool { return false }
	}
	prefix := path.Join(filepath.ToSlash(rel), tempPrefix)
	return func(name string) bool { return strings.HasPrefix(name, prefix) }
}
