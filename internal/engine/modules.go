package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/guest"
)

// Bounds on submodules of one checkout.
const (
	maxModules     = 1000
	maxModuleDepth = 16
)

// moduleCheckout brings the submodules of a checkout. Each comes from where it is at
// hand: from the run's own working tree, through the mirror if it is on the run's
// server, and else by the machine's own git, over the machine's own network. So what a
// .gitmodules says is never a command or an address for this host.
type moduleCheckout struct {
	x         *execution
	own       bool                   // they are of the run's own repository
	req       action.CheckoutRequest // of the repository that they are in
	recursive bool
	token     string // to be kept for git in each; "" is none
	count     int
}

// bring brings the submodules into a checkout at dir. If ok is false the step ends with
// the outcome.
func (m *moduleCheckout) bring(dir string, found []git.Module) (_ outcome, ok bool) {
	if m.req.Modules == nil {
		return outcome{}, true
	}
	x := m.x
	// A file of somebody else's: its submodules only if they are asked for.
	if m.req.LFS {
		m.req.LFS = false
	}
	msg, err := m.into(dir, nil, found)
	if err == nil && msg == "" && m.count > 0 {
		msg, err = x.git(dir, "submodule", "absorbgitdirs")
	}
	switch {
	case err != nil:
		return x.guestFault("check out submodules", err), false
	case msg != "":
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}, false
	}
	return outcome{}, true
}

// into brings the submodules of what is checked out at dir. within leads there. What
// the author has to know comes back in words.
func (m *moduleCheckout) into(dir string, within, found []git.Module) (msg string, err error) {
	if len(within) >= maxModuleDepth && len(found) > 0 {
		return fmt.Sprintf("Submodules lie in each other more than %d deep.", maxModuleDepth), nil
	}
	for _, s := range found {
		if s.Name == "" {
			return fmt.Sprintf("fatal: no submodule mapping found in .gitmodules for path '%s'", s.Path), nil
		}
		if s.Skip {
			continue
		}
		if m.count++; m.count > maxModules {
			return fmt.Sprintf("There are more than %d submodules.", maxModules), nil
		}
		chain := append(within[:len(within):len(within)], s)
		at := path.Join(dir, s.Path)
		more, from, msg, err := m.one(dir, at, chain)
		if msg != "" || err != nil {
			return msg, err
		}
		m.x.r.system(m.x, fmt.Sprintf("Submodule path '%s': checked out '%s' %s", s.Path, s.SHA, from))
		if m.recursive {
			if msg, err := m.into(at, chain, more); msg != "" || err != nil {
				return msg, err
			}
		}
	}
	return "", nil
}

// one brings one submodule, the last of a chain, to a directory below dir. It returns its
// own submodules, and where it came from.
func (m *moduleCheckout) one(dir, at string, chain []git.Module) (more []git.Module, from, msg string, err error) {
	x, s := m.x, chain[len(chain)-1]
	req := m.req
	req.Within = chain
	req.Modules = func(found []git.Module) { more = found }
	var reasons []string
	if m.own {
		_, err := x.r.stream(x.ctx, at, func(w io.Writer) (string, error) { return x.r.job.Source.Checkout(x.ctx, req, w) })
		if err == nil {
			return m.settled(dir, at, s, more, "from the working tree")
		}
		if !errors.Is(err, action.ErrNotHere) {
			return nil, "", "", err
		}
	}
	if owner, repo, ok := git.OnServer(x.r.server(), s.URL); ok && x.r.job.Actions != nil {
		req.Within, req.Ref, req.Tags = nil, s.SHA, false
		_, err := x.r.stream(x.ctx, at, func(w io.Writer) (string, error) { return x.r.job.Actions.Checkout(x.ctx, owner, repo, req, w) })
		if err == nil {
			return m.settled(dir, at, s, more, "from "+s.URL)
		}
		if !isInput(err) {
			return nil, "", "", err
		}
		reasons = append(reasons, err.Error())
	}
	if msg, err = m.update(dir, "--", s.Path); msg != "" {
		msg = strings.Join(append(reasons, msg), "; ")
		return nil, "", fmt.Sprintf("Submodule path '%s' (%.300s): %s", s.Path, s.URL, msg), nil
	}
	if err == nil {
		err = x.persist(at, m.token)
	}
	return nil, "by the machine's git", "", err
}

// update has the machine's own git bring submodules, as the action itself has it.
func (m *moduleCheckout) update(dir string, more ...string) (msg string, err error) {
	args, err := m.asking()
	if err != nil {
		return "", err
	}
	args = append(args, "submodule", "update", "--init", "--force")
	if m.req.Depth > 0 {
		args = append(args, fmt.Sprintf("--depth=%d", m.req.Depth))
	}
	if m.recursive {
		args = append(args, "--recursive")
	}
	return m.x.git(dir, append(args, more...)...)
}

// asking are the arguments of a git that may ask the server with the token, and asks it
// over HTTPS where an address says SSH.
func (m *moduleCheckout) asking() (args []string, err error) {
	if host, ok := strings.CutPrefix(m.x.r.server(), "https://"); ok {
		args = append(args, "-c", "url.https://"+host+"/.insteadOf=git@"+host+":")
	}
	if m.req.Token != "" {
		config, err := m.x.credentials(m.req.Token)
		if err != nil {
			return nil, err
		}
		args = append(args, "-c", "include.path="+config)
	}
	return args, nil
}

// clone has the machine's git check out another repository with the token: one that
// nobody else may read. What the author has to know comes back in words.
func (m *moduleCheckout) clone(dir, repository string) (sha, msg string, err error) {
	x, ref := m.x, m.req.Ref
	if ref != "" && !action.ValidRef(ref) {
		return "", fmt.Sprintf("'%s' is not the name of a branch, tag or commit", ref), nil
	}
	args, err := m.asking()
	if err != nil {
		return "", "", err
	}
	if msg, err = x.git(dir, "init", "-q", "."); msg != "" || err != nil {
		return "", msg, err
	}
	if msg, err = x.git(dir, "remote", "add", "origin", x.r.server()+"/"+repository); msg != "" || err != nil {
		return "", msg, err
	}
	if ref == "" {
		// The branch that it is on, as far as the server says.
		out, _, err := x.gitSays(dir, append(args[:len(args):len(args)], "ls-remote", "--symref", "--", "origin", "HEAD")...)
		if err != nil {
			return "", "", err
		}
		line, _, _ := strings.Cut(out, "\t")
		if head, ok := strings.CutPrefix(line, "ref: "); ok && action.ValidRef(head) {
			ref = head
		}
	}
	specs := []string{cmp.Or(ref, "HEAD")}
	if ref != "" && !git.ObjectID(ref) && !strings.HasPrefix(ref, "refs/") {
		specs = []string{"refs/heads/" + ref, "refs/tags/" + ref}
	}
	for _, spec := range specs {
		fetch := append(args[:len(args):len(args)], "fetch", "-q")
		branch, isBranch := strings.CutPrefix(spec, "refs/heads/")
		var all []string
		switch {
		case m.req.Depth == 0:
			all = []string{"+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"}
		case m.req.Tags:
			all = []string{"+refs/tags/*:refs/tags/*"}
		default:
			fetch = append(fetch, "--no-tags")
		}
		if m.req.Depth > 0 {
			fetch = append(fetch, fmt.Sprintf("--depth=%d", m.req.Depth))
		}
		if isBranch {
			spec = "+" + spec + ":refs/remotes/origin/" + branch
		}
		fetch = append(fetch, "--", "origin", spec)
		if msg, err = x.git(dir, append(fetch, all...)...); err != nil {
			return "", "", err
		} else if msg != "" {
			continue
		}
		to := []string{"checkout", "-q", "--force", "--detach", "FETCH_HEAD"}
		if isBranch {
			to = []string{"checkout", "-q", "--force", "-B", branch, "refs/remotes/origin/" + branch}
		}
		if msg, err = x.git(dir, to...); msg != "" || err != nil {
			return "", msg, err
		}
		break
	}
	if msg == "" && m.req.LFS {
		if msg, err = x.git(dir, append(args, "lfs", "pull")...); err != nil {
			return "", "", err
		}
	}
	if msg == "" && m.req.Modules != nil {
		msg, err = m.update(dir)
	}
	if msg != "" || err != nil {
		return "", msg, err
	}
	sha, msg, err = x.gitSays(dir, "rev-parse", "--verify", "HEAD")
	if sha = strings.TrimSpace(sha); err == nil && msg == "" && !git.ObjectID(sha) {
		msg = "git rev-parse: there is no commit"
	}
	return sha, msg, err
}

// settled makes a directory that was brought a submodule for git.
func (m *moduleCheckout) settled(dir, at string, s git.Module, more []git.Module, from string) ([]git.Module, string, string, error) {
	if err := m.x.persist(at, m.token); err != nil {
		return nil, "", "", err
	}
	msg, err := m.x.git(dir, "submodule", "init", "--quiet", "--", s.Path)
	return more, from, msg, err
}

// git runs the machine's git in a directory. What it says when it fails comes back.
func (x *execution) git(dir string, args ...string) (msg string, err error) {
	_, msg, err = x.gitSays(dir, args...)
	return msg, err
}

// gitSays is git that also returns what it prints.
func (x *execution) gitSays(dir string, args ...string) (out, msg string, err error) {
	var said, wrong limited
	exit, err := x.r.job.Guest.Exec(x.ctx, guest.Cmd{Argv: append([]string{"git"}, args...), Dir: dir, Stdout: &said, Stderr: &wrong,
		Env: []string{"GIT_TERMINAL_PROMPT=0", "GIT_LITERAL_PATHSPECS=1"}})
	if err == nil && !exit.OK() && context.Cause(x.ctx) == nil {
		msg = fmt.Sprintf("git %v: %s", exit, strings.TrimSpace(wrong.String()))
	}
	return said.String(), msg, err
}

// largeFilter lets git take files of Git LFS for what they are, if the machine has
// git-lfs: else it takes each for changed.
func (x *execution) largeFilter(dir string) error {
	exit, err := x.r.job.Guest.Exec(x.ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", "command -v git-lfs >/dev/null || exit 3; exec git lfs install --local"}, Dir: dir})
	if err == nil && !exit.OK() && context.Cause(x.ctx) == nil {
		x.r.system(x, "Note: git-lfs is not installed in the machine: the files of Git LFS are there, and `git status` shows them as changed.")
	}
	return err
}
