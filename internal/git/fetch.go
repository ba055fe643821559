package git

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// MaxFetch bounds what one fetch may bring, in bytes on disk: a repository is as
// large as whoever pushed to it wanted.
const MaxFetch = 8 << 30

// ErrTooLarge says that a fetch was ended since it brought more than MaxFetch.
var ErrTooLarge = fmt.Errorf("the repository is larger than %d GiB", MaxFetch>>30)

// Remote is a repository on a server.
type Remote struct {
	URL   string // https://github.com/octo/hello; no other transport is used than the one it names
	Token string // "" asks as nobody
}

// Fetch brings objects and refs. flags and specs are git fetch's own.
func (d Dir) Fetch(ctx context.Context, r Remote, flags []string, specs ...string) error {
	d, err := d.asking(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return d.fetch(ctx, cancel, r.URL, MaxFetch, flags, specs)
}

// HeadOf is the full ref of the branch that a remote's HEAD is on, "" if it is on none.
func (d Dir) HeadOf(ctx context.Context, r Remote) (string, error) {
	d, err := d.asking(r)
	if err != nil {
		return "", err
	}
	out, err := d.Run(ctx, "ls-remote", "--symref", "--", r.URL, "HEAD")
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(out, "\n")
	ref, is := strings.CutPrefix(line, "ref: ")
	ref, _, _ = strings.Cut(ref, "\t")
	if !is || !strings.HasPrefix(ref, "refs/heads/") {
		return "", nil
	}
	return ref, nil
}

// asking is d with what it takes to ask a remote.
func (d Dir) asking(r Remote) (Dir, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "file" {
		return d, fmt.Errorf("%.200q is no address to fetch from: want https://…", r.URL)
	}
	d = d.Over(u.Scheme)
	if r.Token != "" {
		auth := base64.StdEncoding.EncodeToString([]byte("x-access-token:" + r.Token))
		d = d.With(fmt.Sprintf("http.%s://%s/.extraHeader=Authorization: Basic %s", u.Scheme, u.Host, auth))
	}
	return d, nil
}

func (d Dir) fetch(ctx context.Context, cancel context.CancelCauseFunc, from string, max int64, flags, specs []string) error {
	done := make(chan struct{})
	watched := make(chan struct{})
	most := d.size() + max
	go func() {
		defer close(watched)
		d.watch(cancel, most, done)
	}()
	args := slices.Concat([]string{"fetch", "--quiet", "--update-shallow", "--no-write-fetch-head", "--no-recurse-submodules"}, flags, []string{"--", from},
		specs)
	_, err := d.Run(ctx, args...)
	close(done)
	<-watched
	if err != nil && errors.Is(context.Cause(ctx), ErrTooLarge) {
		return ErrTooLarge
	}
	return err
}

// watch ends a fetch when the directory has more than most bytes.
func (d Dir) watch(cancel context.CancelCauseFunc, most int64, done chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if d.size() > most {
				cancel(ErrTooLarge)
				return
			}
		}
	}
}

// size is how many bytes the directory has on disk.
func (d Dir) size() (n int64) {
	filepath.WalkDir(d.path, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if fi, err := e.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	})
	return n
}

// History says what to fetch so that a commit comes with depth commits of history; 0
// is all of it, with all branches and tags.
func History(sha string, depth int, tags bool) (flags, specs []string) {
	specs = []string{sha}
	if depth > 0 {
		flags = []string{fmt.Sprintf("--depth=%d", depth)}
		if !tags {
			flags = append(flags, "--no-tags")
		}
	} else {
		specs = append(specs, "+refs/heads/*:refs/remotes/origin/*")
	}
	if depth == 0 || tags {
		specs = append(specs, "+refs/tags/*:refs/tags/*")
	}
	return flags, specs
}

// Missing reports whether a fetch failed since there is no such ref.
func Missing(err error) bool {
	return said(err, "couldn't find remote ref", "not our ref", "no such remote ref")
}

// Denied reports whether a fetch failed since a repository is not there, or not for
// us: GitHub does not say which.
func Denied(err error) bool {
	return said(err, "Repository not found", "could not read Username", "Authentication failed", "terminal prompts disabled", "error: 401", "error: 403",
		"error: 404", "' not found", "does not appear to be a git repository", "does not exist")
}

func said(err error, words ...string) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && slices.ContainsFunc(words, func(w string) bool { return strings.Contains(e.Stderr, w) })
}
