// Package forge says what the server asks of the service that has the repositories:
// what is at an exact commit, what changed, who may do what, tokens for jobs, and
// checks to show what became of them. forge/github is one; another forge is a package
// beside it. [Forge] and [Repo] have what dispatch calls and nothing else.
//
// What is asked for is a commit, never a branch by its name, but in Resolve. Errors of
// the forge's are [*Error]; what they say of Temporary decides whether an event is tried
// again, and Status, in HTTP's numbers, whether something is not there (404), not allowed
// (403) or not taken (400, 422).
package forge

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Forge is a service with repositories, seen by one registered program: a GitHub App,
// say.
type Forge interface {
	// Installation asks through which installation of ours a repository is seen.
	Installation(ctx context.Context, owner, name string) (int64, error)
	// Repo is a repository of an installation. It makes no request; an error says that
	// no repository can have that name.
	Repo(installation int64, owner, name string) (Repo, error)
	// Delivered asks whether the forge sent this very body, as this event, under this
	// delivery id, since then.
	Delivered(ctx context.Context, id, event string, body []byte, since time.Time) (bool, error)
}

// Repo is a repository. What is read and made for it cannot be of another one.
type Repo interface {
	// Workflows reads the workflow files at a commit. None is no error.
	Workflows(ctx context.Context, sha string) ([]File, error)
	// File reads a file at a commit.
	File(ctx context.Context, name, sha string) ([]byte, error)
	// Commit reads a commit.
	Commit(ctx context.Context, sha string) (Commit, error)
	// Resolve asks which commit a full ref (refs/heads/main, refs/tags/v1) is at.
	Resolve(ctx context.Context, ref string) (sha string, err error)
	// Tarball streams the files at a commit, a gzipped tar with everything below one
	// directory. The caller bounds and closes it.
	Tarball(ctx context.Context, sha string) (io.ReadCloser, error)

	// PullFiles, ChangedFiles and CommitFiles list the paths that a pull request, the way
	// from one commit to another, and a commit change; of what was renamed both names.
	// known is false when there are more than the forge lists.
	PullFiles(ctx context.Context, number int) (files []string, known bool, err error)
	ChangedFiles(ctx context.Context, base, head string) (files []string, known bool, err error)
	CommitFiles(ctx context.Context, sha string) (files []string, known bool, err error)

	// Token makes a token for this repository alone with the permissions (scope, as in a
	// workflow, to read or write), or as much of them as we may give.
	Token(ctx context.Context, permissions map[string]string) (string, error)

	// Visibility asks whether the repository is public, internal or private.
	Visibility(ctx context.Context) (string, error)
	// Shares asks which other repositories may use the workflows of a private one: none,
	// user, organization or enterprise.
	Shares(ctx context.Context) (level string, err error)
	// MayWrite asks whether a user may push.
	MayWrite(ctx context.Context, login string) (bool, error)

	// CreateCheck makes a check and returns its id, which may be known even if not all of
	// it could be sent.
	CreateCheck(ctx context.Context, c Check) (id int64, err error)
	// UpdateCheck changes a check.
	UpdateCheck(ctx context.Context, id int64, c Check) error
	// FindCheck looks for a check of ours by its external id; 0 is none.
	FindCheck(ctx context.Context, sha, name, externalID string) (id int64, err error)
}

// File is a workflow file at a commit.
type File struct {
	Path    string
	Content []byte
}

// Commit is what a commit says of itself.
type Commit struct {
	SHA               string
	Message           string
	Parents           []string
	Tree              string // name of its tree
	Author, Committer Person
	Signature         string // "" if it is not signed
	Payload           string // what was signed: the commit's object without the signature
}

// Person is an author or committer. GitHub leaves out in which time zone they were.
type Person struct {
	Name, Email string
	When        time.Time
}

// Check is what is shown at a commit of one job, or of a workflow that is invalid.
type Check struct {
	Name       string
	SHA        string
	DetailsURL string
	ExternalID string // ours
	Status     ci.Status
	Conclusion ci.Conclusion // with Completed
	Started    time.Time
	Completed  time.Time
	Title      string
	Summary    string // Markdown
	Text       string // Markdown
	// Annotations beyond a thousand are left out.
	Annotations []Annotation
	// Actions are buttons; a forge that has none leaves them out.
	Actions []Action
}

// Action is a button of a check. Which was pressed comes as an event.
type Action struct {
	Label       string // at most 20 characters
	Description string // 40
	Identifier  string // 20
}

// Annotation is a remark at a place in a file.
type Annotation struct {
	Path               string
	StartLine, EndLine int
	StartCol, EndCol   int
	Level              string // notice, warning, error
	Title, Message     string
}

// Error is a call to a forge that failed.
type Error struct {
	Forge      string // its name, for people
	Op         string
	Status     int           // of the answer; 0 when there was none
	Temporary  bool          // later may be different
	RetryAfter time.Duration // when the forge says so
	Hint       string        // what to look at; "" is nothing
	Err        error
}

func (e *Error) Error() string {
	hint := e.Hint
	if hint != "" {
		hint = " (" + hint + ")"
	}
	return fmt.Sprintf("%s: %s: %v%s", e.Forge, e.Op, e.Err, hint)
}

func (e *Error) Unwrap() error { return e.Err }
