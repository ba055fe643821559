// Package github speaks to GitHub as an App: what a push changed, the workflow
// files and the tree at an exact commit, check runs, tokens for jobs.
//
// Every call is made with a token of the installation that the repository belongs
// to (ghinstallation renews it), which is good for that repository alone, against
// a base URL that can be set for GitHub Enterprise Server. Every answer is bounded. What is asked for is an
// exact sha; there is no falling back to a branch.
//
// Errors are [*forge.Error]. Its Temporary says whether asking again later can help:
// 5xx, timeouts and rate limits can, 401, 404 and 422 cannot. Short waits are
// made here (bounded, with jitter); a rate limit that ends in half an hour is
// handed up, so that the event is put back and not a goroutine kept asleep.
package github

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bradleyfalzon/ghinstallation/v2"
	gh "github.com/google/go-github/v88/github"

	"github.com/hearth-ci/hearth/internal/forge"
)

// Limits on what is read from GitHub.
const (
	MaxWorkflowFile  = 1 << 20 // bytes of one workflow file
	MaxWorkflowFiles = 200     // files under .github/workflows
	MaxChangedFiles  = 3000    // changed paths of one event
	maxTries         = 4       // of one call
	longestWait      = time.Minute
)

// Config says which App we are.
type Config struct {
	BaseURL   string // https://api.github.com, or https://HOST/api/v3
	AppID     int64
	Key       []byte            // the App's private key, PEM
	Transport http.RoundTripper // nil is http.DefaultTransport
	// Sleep waits between tries; nil is a timer. Tests set it.
	Sleep func(ctx context.Context, d time.Duration) error
}

// APIOf is the API's address on a server: of https://github.com one of its own, of
// any other (GitHub Enterprise Server) one below the server's.
func APIOf(server string) string {
	if server == "https://github.com" {
		return "https://api.github.com"
	}
	return server + "/api/v3"
}

// ServerOf is the address of the pages that belongs to an API's.
func ServerOf(api string) string {
	api = strings.TrimRight(api, "/")
	if api == "https://api.github.com" {
		return "https://github.com"
	}
	return strings.TrimSuffix(api, "/api/v3")
}

// App is a GitHub App.
type App struct {
	config Config
	base   *url.URL
	apps   *ghinstallation.AppsTransport
	meter  *meter
}

// New returns the App. It makes no request.
func New(c Config) (*App, error) {
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
	}
	if c.Sleep == nil {
		c.Sleep = func(ctx context.Context, d time.Duration) error {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-t.C:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	base, err := url.Parse(strings.TrimRight(c.BaseURL, "/") + "/")
	if err != nil || base.Host == "" {
		return nil, fmt.Errorf("GitHub's base URL %q: want https://api.github.com or https://HOST/api/v3", c.BaseURL)
	}
	key, err := parseKey(c.Key)
	if err != nil {
		return nil, err
	}
	m := &meter{next: c.Transport}
	c.Transport = m
	apps := ghinstallation.NewAppsTransportFromPrivateKey(c.Transport, c.AppID, key)
	apps.BaseURL = strings.TrimRight(base.String(), "/")
	return &App{config: c, base: base, apps: apps, meter: m}, nil
}

func parseKey(b []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("the App's private key is not in PEM form: use the .pem file that GitHub gave out")
	}
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if rk, ok := k.(*rsa.PrivateKey); err == nil && ok {
		return rk, nil
	}
	return nil, errors.New("the App's private key is not an RSA key: use the .pem file that GitHub gave out")
}

// hint says what to look at after an error.
func hint(e *forge.Error) string {
	switch {
	case e.Status == http.StatusUnauthorized:
		return "check app_id, app_key_file and this machine's clock"
	case e.Status == http.StatusForbidden && e.RetryAfter > 0, e.Status == http.StatusTooManyRequests:
		return fmt.Sprintf("rate limit; asking again in %v", e.RetryAfter.Round(time.Second))
	case e.Status == http.StatusForbidden:
		return "does the App have the permission? contents: read, checks: write, pull requests: read"
	case e.Status == http.StatusNotFound:
		return "is the App installed on this repository?"
	}
	return ""
}

// classify makes a [*forge.Error] of whatever the client returned.
func classify(op string, err error) *forge.Error {
	e := &forge.Error{Forge: "GitHub", Op: op, Err: err}
	var limit *gh.RateLimitError
	var abuse *gh.AbuseRateLimitError
	var resp *gh.ErrorResponse
	var token *ghinstallation.HTTPError
	switch {
	case errors.As(err, &limit):
		e.Status, e.Temporary = http.StatusForbidden, true
		e.RetryAfter = max(time.Until(limit.Rate.Reset.Time), time.Second)
		e.Err = errors.New("403 rate limit exceeded")
	case errors.As(err, &abuse):
		e.Status, e.Temporary = http.StatusForbidden, true
		e.RetryAfter = max(abuse.GetRetryAfter(), time.Minute/2)
		e.Err = errors.New("403 secondary rate limit")
	case errors.As(err, &resp) && resp.Response != nil:
		e.Status = resp.Response.StatusCode
		e.Err = fmt.Errorf("%d %s", e.Status, bounded(resp.Message))
		for _, detail := range resp.Errors {
			e.Err = fmt.Errorf("%w; %s", e.Err, bounded(detail.Error()))
		}
	case errors.As(err, &token) && token.Response != nil:
		// Its text may quote headers; only the status goes on.
		e.Status = token.Response.StatusCode
		e.Err = fmt.Errorf("no installation token: %d", e.Status)
		if e.Status == http.StatusUnprocessableEntity {
			// So GitHub says that the repository is not among the installation's.
			e.Status = http.StatusNotFound
		}
		limited(e, token.Response.Header)
	default:
		var u *url.Error
		if errors.As(err, &u) {
			e.Err = u.Err
		}
		e.Temporary = !errors.Is(err, context.Canceled)
	}
	if e.Status >= 500 || e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout {
		e.Temporary = true
	}
	e.Hint = hint(e)
	return e
}

// limited takes a rate limit out of an answer's headers, where the client has
// not: answers to requests for tokens do not pass through it.
func limited(e *forge.Error, h http.Header) {
	if e.Status != http.StatusForbidden && e.Status != http.StatusTooManyRequests {
		return
	}
	if after, err := strconv.Atoi(h.Get("Retry-After")); err == nil {
		e.Temporary, e.RetryAfter = true, max(time.Duration(after)*time.Second, time.Second)
	} else if reset, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64); err == nil && h.Get("X-RateLimit-Remaining") == "0" {
		e.Temporary, e.RetryAfter = true, max(time.Until(time.Unix(reset, 0)), time.Second)
	}
	if e.Temporary {
		e.Err = fmt.Errorf("%w: rate limit exceeded", e.Err)
	}
}

func bounded(s string) string {
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Repo is one repository seen through its installation.
type Repo struct {
	app         *App
	owner, name string
	client      *gh.Client
	transport   *ghinstallation.Transport
}

// Repo returns a repository of an installation. It makes no request.
func (a *App) Repo(installation int64, owner, name string) (forge.Repo, error) {
	if !validName(owner) || !validName(name) {
		return nil, fmt.Errorf("GitHub: %q is no repository", bounded(owner+"/"+name))
	}
	tr := ghinstallation.NewFromAppsTransport(a.apps, installation)
	tr.BaseURL = a.apps.BaseURL
	// What is read for one repository cannot come out of another one.
	tr.InstallationTokenOptions = &gh.InstallationTokenOptions{Repositories: []string{name}}
	c, err := a.client(tr)
	if err != nil {
		return nil, err
	}
	return &Repo{app: a, owner: owner, name: name, client: c, transport: tr}, nil
}

func (a *App) client(tr http.RoundTripper) (*gh.Client, error) {
	base := a.base.String()
	return gh.NewClient(gh.WithHTTPClient(&http.Client{Transport: tr, Timeout: 30 * time.Second}), gh.WithURLs(&base, &base), gh.WithUserAgent("hearth"))
}

// Installation asks which installation a repository belongs to.
func (a *App) Installation(ctx context.Context, owner, name string) (int64, error) {
	c, err := a.client(a.apps)
	if err != nil {
		return 0, err
	}
	var id int64
	err = a.try(ctx, "installation of "+owner+"/"+name, func() error {
		in, _, err := c.Apps.GetRepositoryInstallation(ctx, owner, name)
		id = in.GetID()
		return err
	})
	return id, err
}

func validName(s string) bool {
	return s != "" && len(s) <= 100 && s != "." && s != ".." && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// try makes a call, and makes it again where that can help.
func (a *App) try(ctx context.Context, op string, call func() error) error {
	for try := 1; ; try++ {
		err := call()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e := classify(op, err)
		if !e.Temporary || try == maxTries || e.RetryAfter > longestWait {
			return e
		}
		wait := e.RetryAfter
		if wait == 0 {
			wait = rand.N(time.Duration(1<<try) * 250 * time.Millisecond)
		}
		if err := a.config.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// Workflows reads .github/workflows/*.yml|*.yaml at a commit. A commit without
// that directory has none.
func (r *Repo) Workflows(ctx context.Context, sha string) ([]forge.File, error) {
	const dir = ".github/workflows"
	var entries []*gh.RepositoryContent
	err := r.app.try(ctx, "list "+dir+" at "+sha, func() error {
		file, list, _, err := r.client.Repositories.GetContents(ctx, r.owner, r.name, dir, &gh.RepositoryContentGetOptions{Ref: sha})
		if file != nil {
			list = nil // a file of that name: there are no workflows
		}
		entries = list
		return err
	})
	var e *forge.Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound {
		// Ambiguous: no such directory, or no such repository for us. The commit
		// tells them apart.
		return nil, r.app.try(ctx, "commit "+sha, func() error {
			_, _, err := r.client.Repositories.GetCommit(ctx, r.owner, r.name, sha, &gh.ListOptions{PerPage: 1})
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	var out []forge.File
	for _, entry := range entries {
		name := entry.GetName()
		if entry.GetType() != "file" || strings.Contains(name, "/") || path.Ext(name) != ".yml" && path.Ext(name) != ".yaml" {
			continue
		}
		if len(out) == MaxWorkflowFiles {
			return nil, &forge.Error{Forge: "GitHub", Op: "workflows at " + sha, Err: fmt.Errorf("more than %d workflow files", MaxWorkflowFiles)}
		}
		b, err := r.File(ctx, dir+"/"+name, sha)
		if err != nil {
			return nil, err
		}
		out = append(out, forge.File{Path: dir + "/" + name, Content: b})
	}
	slices.SortFunc(out, func(a, b forge.File) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// File reads one file at a commit.
func (r *Repo) File(ctx context.Context, name, sha string) ([]byte, error) {
	var text string
	err := r.app.try(ctx, name+" at "+sha, func() error {
		file, _, _, err := r.client.Repositories.GetContents(ctx, r.owner, r.name, name, &gh.RepositoryContentGetOptions{Ref: sha})
		if err != nil {
			return err
		}
		if file == nil {
			return &gh.ErrorResponse{Response: &http.Response{StatusCode: http.StatusNotFound, Request: &http.Request{}}, Message: "it is a directory"}
		}
		if file.GetSize() > MaxWorkflowFile {
			return &gh.ErrorResponse{Response: &http.Response{StatusCode: http.StatusUnprocessableEntity, Request: &http.Request{}},
				Message: fmt.Sprintf("it has %d bytes, the most is %d", file.GetSize(), MaxWorkflowFile)}
		}
		text, err = file.GetContent()
		return err
	})
	return []byte(text), err
}

// PullFiles lists the paths that a pull request changes. known is false when
// there are more than GitHub lists.
func (r *Repo) PullFiles(ctx context.Context, number int) (files []string, known bool, err error) {
	for page := 1; page != 0; {
		err := r.app.try(ctx, fmt.Sprintf("files of pull request %d", number), func() error {
			list, resp, err := r.client.PullRequests.ListFiles(ctx, r.owner, r.name, number, &gh.ListOptions{Page: page, PerPage: 100})
			if err != nil {
				return err
			}
			files = appendPaths(files, list)
			page = resp.NextPage
			return nil
		})
		if err != nil {
			return nil, false, err
		}
		if len(files) >= MaxChangedFiles {
			return files, false, nil
		}
	}
	return files, true, nil
}

// ChangedFiles lists the paths that differ between two commits. known is false
// when there are more than GitHub lists (300).
func (r *Repo) ChangedFiles(ctx context.Context, base, head string) (files []string, known bool, err error) {
	err = r.app.try(ctx, "compare "+base+"..."+head, func() error {
		cmp, _, err := r.client.Repositories.CompareCommits(ctx, r.owner, r.name, base, head, &gh.ListOptions{Page: 1, PerPage: 100})
		if err == nil {
			files = appendPaths(nil, cmp.Files)
		}
		return err
	})
	return files, err == nil && len(files) < 300, err
}

// CommitFiles lists the paths that one commit changes, for a branch that is new.
func (r *Repo) CommitFiles(ctx context.Context, sha string) (files []string, known bool, err error) {
	err = r.app.try(ctx, "commit "+sha, func() error {
		c, _, err := r.client.Repositories.GetCommit(ctx, r.owner, r.name, sha, &gh.ListOptions{Page: 1, PerPage: 300})
		if err == nil {
			files = appendPaths(nil, c.Files)
		}
		return err
	})
	return files, err == nil && len(files) < 300, err
}

func appendPaths(files []string, list []*gh.CommitFile) []string {
	for _, f := range list {
		files = append(files, f.GetFilename())
		if p := f.GetPreviousFilename(); p != "" {
			files = append(files, p)
		}
	}
	return files
}

// Tarball streams the tree at a commit as GitHub packs it: gzip, everything
// under one directory. The caller bounds and closes it.
func (r *Repo) Tarball(ctx context.Context, sha string) (io.ReadCloser, error) {
	var link *url.URL
	err := r.app.try(ctx, "archive of "+sha, func() error {
		u, _, err := r.client.Repositories.GetArchiveLink(ctx, r.owner, r.name, gh.Tarball, &gh.RepositoryContentGetOptions{Ref: sha}, 3)
		link = u
		return err
	})
	if err != nil {
		return nil, err
	}
	var body io.ReadCloser
	err = r.app.try(ctx, "archive of "+sha, func() error {
		// The link carries its own authority: our token stays here.
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, link.String(), nil)
		if err != nil {
			return err
		}
		resp, err := (&http.Client{Transport: r.app.config.Transport}).Do(req)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			return &gh.ErrorResponse{Response: resp, Message: "download of the archive"}
		}
		body = resp.Body
		return nil
	})
	return body, err
}

func person(a *gh.CommitAuthor) forge.Person {
	return forge.Person{Name: a.GetName(), Email: a.GetEmail(), When: a.GetDate().Time}
}

// Commit reads one commit, by its exact sha.
func (r *Repo) Commit(ctx context.Context, sha string) (forge.Commit, error) {
	var out forge.Commit
	err := r.app.try(ctx, "commit "+sha, func() error {
		c, _, err := r.client.Repositories.GetCommit(ctx, r.owner, r.name, sha, &gh.ListOptions{Page: 1, PerPage: 1})
		if err != nil {
			return err
		}
		o := c.GetCommit()
		out = forge.Commit{
			SHA: c.GetSHA(), Message: o.GetMessage(), Tree: o.GetTree().GetSHA(), Author: person(o.GetAuthor()), Committer: person(o.GetCommitter()),
			Signature: o.GetVerification().GetSignature(), Payload: o.GetVerification().GetPayload(),
		}
		for _, p := range c.Parents {
			out.Parents = append(out.Parents, p.GetSHA())
		}
		return nil
	})
	return out, err
}

// Resolve asks which commit a full ref (refs/heads/main, refs/tags/v1) is at.
func (r *Repo) Resolve(ctx context.Context, ref string) (sha string, err error) {
	err = r.app.try(ctx, "ref "+ref, func() error {
		found, _, err := r.client.Git.GetRef(ctx, r.owner, r.name, strings.TrimPrefix(ref, "refs/"))
		if err != nil {
			return err
		}
		sha = found.GetObject().GetSHA()
		if found.GetObject().GetType() != "tag" {
			return nil
		}
		tag, _, err := r.client.Git.GetTag(ctx, r.owner, r.name, sha)
		sha = tag.GetObject().GetSHA()
		return err
	})
	return sha, err
}

// Token makes a token for one job: this repository only, the permissions given
// (scope, as in a workflow: contents, pull-requests, …; read or write) and no
// more, valid for an hour. GitHub makes no token at all if it is asked for more
// than the App was granted: then it is asked for what of it was granted.
func (r *Repo) Token(ctx context.Context, permissions map[string]string) (string, error) {
	token, err := r.token(ctx, permissions)
	var e *forge.Error
	if !errors.As(err, &e) || e.Status != http.StatusUnprocessableEntity {
		return token, err
	}
	granted, err := r.granted(ctx)
	if err != nil {
		return "", err
	}
	less := map[string]string{}
	for scope, access := range permissions {
		switch g := granted[strings.ReplaceAll(scope, "-", "_")]; {
		case g == "":
		case g == "read":
			less[scope] = "read"
		default:
			less[scope] = access
		}
	}
	return r.token(ctx, less)
}

// granted reads what the installation may do: scope, with underscores, to read,
// write or admin.
func (r *Repo) granted(ctx context.Context) (map[string]string, error) {
	c, err := r.app.client(r.app.apps)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	err = r.app.try(ctx, "permissions of the installation", func() error {
		in, _, err := c.Apps.GetInstallation(ctx, r.transport.InstallationID())
		if err != nil {
			return err
		}
		b, err := json.Marshal(in.GetPermissions())
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &out)
	})
	return out, err
}

func (r *Repo) token(ctx context.Context, permissions map[string]string) (string, error) {
	p := &gh.InstallationPermissions{Metadata: new("read")}
	for scope, access := range permissions {
		if access != "read" && access != "write" {
			continue
		}
		switch scope {
		case "actions":
			p.Actions = &access
		case "checks":
			p.Checks = &access
		case "contents":
			p.Contents = &access
		case "deployments":
			p.Deployments = &access
		case "issues":
			p.Issues = &access
		case "packages":
			p.Packages = &access
		case "pages":
			p.Pages = &access
		case "pull-requests":
			p.PullRequests = &access
		case "security-events":
			p.SecurityEvents = &access
		case "statuses":
			p.Statuses = &access
		}
	}
	c, err := r.app.client(r.app.apps)
	if err != nil {
		return "", err
	}
	var token string
	err = r.app.try(ctx, "token for "+r.owner+"/"+r.name, func() error {
		t, _, err := c.Apps.CreateInstallationToken(ctx, r.transport.InstallationID(), &gh.InstallationTokenOptions{Repositories: []string{r.name}, Permissions: p})
		token = t.GetToken()
		return err
	})
	return token, err
}
