package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/plan"
)

// checkout is actions/checkout, served by the runner: the run's own repository
// from the Source, another one through its mirror. The guest needs no network
// and no token for it; the token is there for the steps after it (see persist).
func (x *execution) checkout(ref action.Ref, with vars) outcome {
	r := x.r
	x.actionHeader(x.def.Uses, with)
	fail := func(format string, args ...any) outcome {
		msg := fmt.Sprintf(format, args...)
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	}
	get := func(name string) string {
		for _, k := range with.keys {
			if strings.EqualFold(k, name) {
				return strings.TrimSpace(with.m[k])
			}
		}
		return ""
	}
	if _, problem := refusedCheckout(get, r.server()); problem != "" {
		return fail("%s", problem)
	}
	for _, k := range with.keys {
		note, known := unusedInput(k, get(k))
		if note != "" {
			r.system(x, "Note: "+note)
		}
		if !known {
			x.say("warning", fmt.Sprintf("Unexpected input(s) '%s'", k))
		}
	}
	depth := 1
	if v := get("fetch-depth"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			n = 0 // as the action does
		}
		depth = n
	}
	dir := path.Join(r.layout.Workspace, get("path"))
	if dir != r.layout.Workspace && !strings.HasPrefix(dir, r.layout.Workspace+"/") {
		return fail("Repository path '%s' is not under '%s'", dir, r.layout.Workspace)
	}
	own := r.job.Run.GitHub.Get("repository").ToString()
	repository := get("repository")
	isOwn := repository == "" || strings.EqualFold(repository, own)
	asked := get("ref")
	given := asked
	if isOwn && r.ownRef(asked) {
		given = "" // which is what the run is of
	}
	req := action.CheckoutRequest{Ref: given, Depth: depth, Tags: strings.EqualFold(get("fetch-tags"), "true"),
		Note: func(text string) { r.system(x, "Note: "+text) }, LFS: strings.EqualFold(get("lfs"), "true"), Token: cmp.Or(get("token"), r.job.Token)}
	recursive := strings.EqualFold(get("submodules"), "recursive")
	var modules []git.Module
	if recursive || strings.EqualFold(get("submodules"), "true") {
		req.Modules = func(found []git.Module) { modules = found }
	}
	var from func(w io.Writer) (string, error)
	switch {
	case isOwn && r.job.Source == nil:
		return fail("%s: this run has no repository to check out", x.def.Uses)
	case isOwn:
		from = func(w io.Writer) (string, error) { return r.job.Source.Checkout(x.ctx, req, w) }
	default:
		other, err := action.ParseRef(repository + "@HEAD")
		if err != nil || other.Kind != action.Remote || other.Path != "" {
			return fail("Invalid repository '%s'. Expected format {owner}/{repo}.", repository)
		}
		from = func(w io.Writer) (string, error) {
			return r.job.Actions.Checkout(x.ctx, other.Owner, other.Repo, req, w)
		}
	}
	if !strings.EqualFold(get("clean"), "false") {
		if err := x.empty(dir); err != nil {
			return x.guestFault("empty "+dir, err)
		}
	}
	sha, err := r.stream(x.ctx, dir, from)
	m := moduleCheckout{x: x, own: isOwn, req: req, recursive: recursive}
	if isInput(err) && !isOwn && req.Token != "" {
		// The mirror is everybody's: what only a token may read stays out of it.
		r.system(x, fmt.Sprintf("Note: %v. The machine's git asks with the token.", err))
		var msg string
		if sha, msg, err = m.clone(dir, repository); msg != "" {
			return fail("%s", msg)
		}
	}
	if err != nil {
		if ie, ok := errors.AsType[*action.InputError](err); ok {
			return fail("%s", ie.Msg)
		}
		return x.guestFault("check out the repository", err)
	}
	name := repository
	if isOwn {
		name = own
		r.mu.Lock()
		r.checkouts = append(r.checkouts, dir)
		r.mu.Unlock()
	}
	r.system(x, fmt.Sprintf("Checked out %s at %s into %s", name, sha, dir))
	if patterns := get("sparse-checkout"); patterns != "" {
		if msg, err := x.sparse(dir, patterns, !strings.EqualFold(get("sparse-checkout-cone-mode"), "false")); err != nil {
			return x.guestFault("leave out what sparse-checkout does not name", err)
		} else if msg != "" {
			return fail("%s", msg)
		}
	}
	if !strings.EqualFold(get("persist-credentials"), "false") {
		m.token = req.Token
		if err := x.persist(dir, m.token); err != nil {
			return x.guestFault("keep the token for git", err)
		}
	}
	if req.LFS {
		if err := x.largeFilter(dir); err != nil {
			return x.guestFault("set up git-lfs", err)
		}
	}
	if out, ok := m.bring(dir, modules); !ok {
		return out
	}
	if err := x.handOver(dir); err != nil {
		return x.guestFault("give the files to the container's user", err)
	}
	x.setOutput("commit", sha)
	switch {
	case asked != "":
		x.setOutput("ref", asked)
	case isOwn:
		x.setOutput("ref", r.job.Run.GitHub.Get("ref").ToString())
	}
	return outcome{c: ci.Success}
}

// handOver gives a checkout to whom the steps are in the job's container: the action
// would run there.
func (x *execution) handOver(dir string) error {
	r := x.r
	owner := r.inContainer(x.ctx)
	if owner == "" {
		return nil
	}
	// With what git may use the token by.
	const script = `owner=$1 dir=$2; set -- "$3"/git-credentials-*.config; [ -e "$1" ] || shift; exec chown -hR -- "$owner" "$dir" "$@"`
	exit, err := r.job.Guest.Exec(x.ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", script, "sh", owner, dir, r.layout.Temp}, Dir: "/", User: "root"})
	if err == nil && !exit.OK() && context.Cause(x.ctx) == nil {
		r.system(x, "Note: not all of the files could be given to the container's user "+owner+".")
	}
	return err
}

// unusedInput says of an input of actions/checkout that it changes nothing here, and
// why; and whether there is one of the name.
func unusedInput(name, value string) (note string, known bool) {
	switch strings.ToLower(name) {
	case "ref", "repository", "path", "fetch-depth", "fetch-tags", "clean", "token", "persist-credentials", "set-safe-directory", "show-progress", "lfs",
		"submodules", "github-server-url", "allow-unsafe-pr-checkout",
		"sparse-checkout", "sparse-checkout-cone-mode":
	case "ssh-key", "ssh-known-hosts", "ssh-strict", "ssh-user":
		if value != "" {
			return name + " is not used: the runner brings the repository itself.", true
		}
	case "filter":
		if value != "" {
			return name + " is not used: the objects that it would leave out are there.", true
		}
	default:
		return "", false
	}
	return "", true
}

// refusedCheckout names an input of actions/checkout that cannot be followed, and what
// to do. get returns an input's value, "" where it is not known yet; server is where the
// run's repositories are.
func refusedCheckout(get func(string) string, server string) (input, problem string) {
	if v := strings.TrimRight(get("github-server-url"), "/"); v != "" && !strings.EqualFold(v, server) {
		return "github-server-url", fmt.Sprintf("actions/checkout: github-server-url %s is another server than this run's, %s: clone from it in a step of your own.", v, server)
	}
	return "", ""
}

// server is where the run's repositories are.
func (r *run) server() string { return serverOf(r.job.Run) }

func serverOf(run *plan.Run) string {
	return strings.TrimRight(cmp.Or(run.GitHub.Get("server_url").ToString(), "https://github.com"), "/")
}

// ownRef reports whether a ref is the one that the run is of: that it was pushed, or
// the pull request's, of which there is no ref here.
func (r *run) ownRef(ref string) bool {
	gh := r.job.Run.GitHub
	own := gh.Get("ref").ToString()
	if n := gh.At("event", "number"); strings.HasPrefix(own, "refs/pull/") && ref == "refs/pull/"+n.ToString()+"/head" {
		return true
	}
	return ref != "" && ref == own
}

// sparse has git leave out of a checkout what patterns do not name. What git says
// against them comes back in words.
func (x *execution) sparse(dir, patterns string, cone bool) (msg string, err error) {
	mode := "--cone"
	if !cone {
		mode = "--no-cone"
	}
	// What git has not looked at it takes for changed, and leaves.
	argv := []string{"/bin/sh", "-c", "git update-index -q --refresh; exec git sparse-checkout set " + mode + " --stdin"}
	var said limited
	exit, err := x.r.job.Guest.Exec(x.ctx, guest.Cmd{Argv: argv, Dir: dir, Stdin: strings.NewReader(patterns + "\n"), Stdout: &said, Stderr: &said})
	if err == nil && !exit.OK() && context.Cause(x.ctx) == nil {
		msg = fmt.Sprintf("sparse-checkout: git %v: %s", exit, strings.TrimSpace(said.String()))
	}
	return msg, err
}

// empty removes what is in a directory of the guest, but not the directory: it
// may be somebody's working directory.
func (x *execution) empty(dir string) error {
	g := x.r.job.Guest
	if err := g.MkdirAll(x.ctx, dir, 0o755, ""); err != nil {
		return err
	}
	exit, err := g.Exec(x.ctx, guest.Cmd{
		Argv: []string{"/bin/sh", "-c", "find . -mindepth 1 -maxdepth 1 -exec rm -rf -- {} +"}, Dir: dir, User: "root",
	})
	if err == nil && !exit.OK() && context.Cause(x.ctx) == nil {
		// Something is mounted there, or will not go: unpacking over it is what is left.
		x.say("warning", fmt.Sprintf("%s could not be emptied (%v)", dir, exit))
	}
	return err
}
