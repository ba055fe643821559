package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/source"
)

// project is the repository that `hearth run` stands in.
type project struct {
	root       string
	git        bool // root is the top of a git repository with a commit
	repository string
	server     string
	branch     string // "" when HEAD is on none
	tag        string // that HEAD is at, then
	ref        string
	sha        string
	def        string // default branch
}

const zeroSHA = "0000000000000000000000000000000000000000"

// findProject looks for the project of a directory: the nearest directory up
// that has .github/workflows, else the top of the git repository.
func findProject(ctx context.Context, dir string) (*project, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(abs); err != nil || !info.IsDir() {
		return nil, usage("-C %s: there is no such directory", dir)
	}
	p := &project{root: abs, server: "https://github.com", def: "main", sha: zeroSHA}
	for d := abs; ; d = filepath.Dir(d) {
		// Above where the user stands counts what is theirs, as with git: anybody may
		// make a /tmp/.github or a /tmp/.git.
		if isProject(filepath.Join(d, ".github", "workflows"), true) && (d == abs || theirs(ctx, d, ".github", ".github/workflows")) {
			p.root = d
			break
		}
		if isProject(filepath.Join(d, ".git"), false) && (d == abs || theirs(ctx, d, ".git")) {
			p.root = d
			break
		}
		if filepath.Dir(d) == d {
			break
		}
	}
	p.branch = "main"
	r, err := git.Open(ctx, p.root)
	switch foreign, isForeign := errors.AsType[*git.ForeignError](err); {
	case err == nil:
		defer r.Close()
		if err := p.read(ctx, r); err != nil {
			return nil, fmt.Errorf("reading %s: %w", p.root, err)
		}
	case errors.Is(err, git.ErrNoRepository):
		d := source.Dir{Root: p.root, Branch: "main"}
		if p.sha, err = d.Commit(ctx); err != nil {
			return nil, fmt.Errorf("reading %s: %w", p.root, err)
		}
	case isForeign:
		return nil, usage("%v", foreign)
	default:
		return nil, fmt.Errorf("reading %s: %w", p.root, err)
	}
	if p.repository == "" {
		p.repository = "local/" + safeName(filepath.Base(p.root))
	}
	switch {
	case p.branch != "":
		p.ref = "refs/heads/" + p.branch
	case p.tag != "":
		p.ref = "refs/tags/" + p.tag
	default:
		p.ref = p.sha
	}
	return p, nil
}

// isProject says whether there is something that makes a directory a project.
func isProject(name string, dir bool) bool {
	info, err := os.Stat(name)
	return err == nil && (!dir || info.IsDir())
}

// theirs says whether files of a directory belong to the user.
func theirs(ctx context.Context, dir string, names ...string) bool {
	for _, n := range names {
		if _, ours := git.Ours(filepath.Join(dir, filepath.FromSlash(n))); !ours {
			return git.Safe(ctx, dir)
		}
	}
	return true
}

// read takes from a repository what an event is made of.
func (p *project) read(ctx context.Context, r *git.Repository) error {
	p.git, p.sha, p.branch = true, r.Head, r.Branch
	p.repository, p.server = repositoryAt(r.Origin, p.server)
	if d := r.DefaultBranch(ctx); d != "" {
		p.def = d
	} else if p.branch == "master" {
		p.def = "master"
	}
	if p.branch == "" {
		p.tag = r.Tag(ctx)
	}
	return ctx.Err()
}

var scpLike = regexp.MustCompile(`^(?:[\w.-]+@)?([\w.-]+):(.+)$`)

// repositoryAt takes owner/name and the server out of a remote's address.
func repositoryAt(address, server string) (string, string) {
	host, path := "", ""
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		host, path = u.Hostname(), u.Path
	} else if m := scpLike.FindStringSubmatch(address); m != nil {
		host, path = m[1], m[2]
	}
	parts := strings.Split(strings.Trim(strings.TrimSuffix(path, ".git"), "/"), "/")
	if host == "" || len(parts) < 2 {
		return "", server
	}
	owner, name := parts[len(parts)-2], parts[len(parts)-1]
	if safeName(owner) != owner || safeName(name) != name {
		return "", server
	}
	return owner + "/" + name, "https://" + host
}

func safeName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '-'
	}, s)
	if s = strings.Trim(s, "."); s == "" {
		return "project"
	}
	return s
}

func orString(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// secretSettings is settings for a file that holds secrets; it says so if others may
// read it, too.
func (a *app) secretSettings(file string, must bool, into map[string]string) error {
	if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		fmt.Fprintf(a.err, "hearth: warning: %s holds secrets, and others may read or write it (mode %04o): chmod 600 %s\n", file, info.Mode().Perm(), file)
	}
	return settings(file, must, into)
}

// settings reads NAME=value lines, as .secrets, .vars, .env and .input hold
// them: comments, optional "export", quotes around a value, values of several
// lines in double quotes.
func settings(file string, must bool, into map[string]string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		if !must && os.IsNotExist(err) {
			return nil
		}
		return usage("%v", err)
	}
	err = config.ParseLines(b, func(_ int, name, value string) { into[name] = value })
	if wrong, ok := errors.AsType[*config.LineError](err); ok {
		return usage("%s:%d: %s", file, wrong.Line, wrong.Text)
	}
	return err
}
