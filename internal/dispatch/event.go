package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// payload is what of a delivery decides where it leads; all of it is handed on
// to workflows as github.event.
type payload struct {
	Action   string `json:"action"`
	Ref      string `json:"ref"`
	RefType  string `json:"ref_type"`
	Before   string `json:"before"`
	After    string `json:"after"`
	Created  bool   `json:"created"`
	Deleted  bool   `json:"deleted"`
	Number   int    `json:"number"`
	Workflow string `json:"workflow"` // path; of workflow_dispatch
	Commits  []struct {
		Added    []string `json:"added"`
		Removed  []string `json:"removed"`
		Modified []string `json:"modified"`
	} `json:"commits"`
	PullRequest *pull          `json:"pull_request"`
	Inputs      map[string]any `json:"inputs"`
	Release     *struct {
		TagName string `json:"tag_name"`
	} `json:"release"`
	MergeGroup *struct {
		HeadSHA string `json:"head_sha"`
		HeadRef string `json:"head_ref"`
		BaseRef string `json:"base_ref"`
	} `json:"merge_group"`
	Deployment *struct {
		SHA string `json:"sha"`
		Ref string `json:"ref"`
	} `json:"deployment"`
	CheckRun *struct {
		ExternalID string `json:"external_id"`
		App        struct {
			ID int64 `json:"id"`
		} `json:"app"`
	} `json:"check_run"`
	RequestedAction struct {
		Identifier string `json:"identifier"`
	} `json:"requested_action"`
	CheckSuite *struct {
		App struct {
			ID int64 `json:"id"`
		} `json:"app"`
	} `json:"check_suite"`
	Repository struct {
		FullName      string `json:"full_name"`
		DefaultBranch string `json:"default_branch"`
		Private       bool   `json:"private"` // internal ones are private, too
		Visibility    string `json:"visibility"`
	} `json:"repository"`
	Installation struct {
		ID int64 `json:"id"`
	} `json:"installation"`
	Sender struct {
		Login string `json:"login"`
	} `json:"sender"`

	again string // who asked for it once more; not of the payload
}

type pull struct {
	Number         int    `json:"number"`
	MergeCommitSHA string `json:"merge_commit_sha"`
	Head           side   `json:"head"`
	Base           side   `json:"base"`
	Association    string `json:"author_association"` // of its author with the repository
	User           struct {
		Login string `json:"login"`
	} `json:"user"`
}

type side struct {
	Ref  string `json:"ref"`
	SHA  string `json:"sha"`
	Repo *struct {
		FullName string `json:"full_name"`
	} `json:"repo"`
}

// fork reports whether the head is in another repository than the base; a head
// whose repository is gone counts as one.
func (p *pull) fork(repository string) bool {
	return p.Head.Repo == nil || !strings.EqualFold(p.Head.Repo.FullName, repository)
}

// occasion is one event under `on:` that a delivery is. pull_request deliveries
// are two.
type occasion struct {
	workflow.Happening
	Trust trust
	Waits bool   // for approval
	By    string // who has approved of it already
	Only  string // path of the one workflow file that may run; "" is all
	Note  string // about the commit, for the event's detail
	// Changed lists the changed paths; nil where paths do not count.
	Changed func(ctx context.Context) (files []string, known bool, err error)
}

// validSHA reports whether s is a commit's full name.
func validSHA(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

func zeroSHA(s string) bool { return strings.Trim(s, "0") == "" }

// decode reads a stored payload. What it is decides its shape, once more: an event
// may have been stored by an older version.
func decode(e store.StoredEvent) (payload, expr.Value, error) {
	var p payload
	if err := webhook.Shape(e.Name, e.Payload); err != nil {
		return p, expr.Value{}, bar("%v", err)
	}
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		return p, expr.Value{}, refuse("the payload is not what GitHub sends for %s: %v", e.Name, err)
	}
	whole, err := expr.ParseJSON(e.Payload)
	if err != nil {
		return p, whole, refuse("the payload cannot be read: %v", err)
	}
	return p, whole, nil
}

// occasions finds out what a delivery may start and at which commits. None, with
// a reason, is no error.
func (d *Dispatcher) occasions(ctx context.Context, repo forge.Repo, name string, p payload, whole expr.Value) (out []occasion, reason string, err error) {
	actor := ofOwn
	if isDependabot(p.Sender.Login) {
		actor = ofDependabot
	}
	base := workflow.Happening{Event: name, Action: p.Action, Payload: whole, DefaultBranch: p.Repository.DefaultBranch}
	switch name {
	case "push":
		o := occasion{Happening: base, Trust: actor}
		o.Ref, o.SHA = p.Ref, p.After
		if name := strings.TrimPrefix(strings.TrimPrefix(p.Ref, "refs/heads/"), "refs/tags/"); name == p.Ref || name == "" {
			return nil, "", refuse("the push names no branch or tag: %q", p.Ref)
		}
		if p.Deleted || zeroSHA(p.After) {
			return nil, fmt.Sprintf("the push deletes %s", p.Ref), nil
		}
		if !validSHA(p.After) {
			return nil, "", refuse("the push names no commit: %q", p.After)
		}
		o.Changed = func(ctx context.Context) ([]string, bool, error) { return pushed(ctx, repo, p) }
		return []occasion{o}, "", nil
	case "pull_request", "pull_request_review", "pull_request_review_comment":
		pr := p.PullRequest
		if pr == nil || !validSHA(pr.Head.SHA) || !validSHA(pr.Base.SHA) {
			return nil, "", refuse("the payload names no pull request with a head and a base")
		}
		if pr.Base.Repo == nil || !strings.EqualFold(pr.Base.Repo.FullName, p.Repository.FullName) {
			return nil, "", refuse("the pull request is not of %s", p.Repository.FullName)
		}
		number := pr.Number
		if number == 0 {
			number = p.Number
		}
		head, err := repo.Commit(ctx, pr.Head.SHA)
		if err != nil {
			return nil, "", err
		}
		base.BaseRef, base.HeadRef, base.HeadMessage = pr.Base.Ref, pr.Head.Ref, head.Message
		changed := func(ctx context.Context) ([]string, bool, error) { return repo.PullFiles(ctx, number) }
		for _, event := range workflow.TriggerEvents(name) {
			o := occasion{Happening: base, Changed: changed, Trust: actor}
			o.Event = event
			if event == "pull_request_target" {
				// What the default branch says, with its secrets: nothing of the head's is
				// run, and nothing of the base's, which an old branch may be.
				o.Trust = ofOwn
				if isDependabot(pr.User.Login) {
					o.Trust = ofDependabot
				}
				if o.Ref, o.SHA, err = onDefault(ctx, repo, p); err != nil {
					return nil, "", err
				}
				out = append(out, o)
				continue
			}
			if pr.fork(p.Repository.FullName) {
				policy, _ := d.policy(p.Repository.FullName)
				o.Trust, o.Waits = ofFork, mustWait(policy, pr)
			}
			o.Ref, o.SHA = fmt.Sprintf("refs/pull/%d/merge", number), pr.Head.SHA
			o.Note = "at the head " + short(pr.Head.SHA) + ": GitHub names no merge commit yet"
			if validSHA(pr.MergeCommitSHA) {
				merge, err := repo.Commit(ctx, pr.MergeCommitSHA)
				switch {
				case err == nil && slices.Contains(merge.Parents, pr.Head.SHA):
					o.SHA, o.Note = pr.MergeCommitSHA, "at the merge commit "+short(pr.MergeCommitSHA)
				case err == nil || status(err) == 404 || status(err) == 422:
					o.Note = "at the head " + short(pr.Head.SHA) + ": the merge commit that the payload names is not of it"
				default:
					return nil, "", err
				}
			}
			out = append(out, o)
		}
		return out, "", nil
	case "workflow_dispatch":
		o := occasion{Happening: base, Only: p.Workflow}
		o.Ref = fullRef(p.Ref, p.Repository.DefaultBranch)
		if o.SHA, err = repo.Resolve(ctx, o.Ref); err != nil {
			return nil, "", err
		}
		return []occasion{o}, "", nil
	case "create", "release", "merge_group", "deployment", "deployment_status":
		o := occasion{Happening: base, Trust: actor}
		switch {
		case name == "create" && p.RefType == "tag":
			o.Ref = "refs/tags/" + p.Ref
		case name == "create" && p.RefType == "branch":
			o.Ref = "refs/heads/" + p.Ref
		case name == "create":
			return nil, "", refuse("it creates neither a branch nor a tag: %q", p.RefType)
		case p.Release != nil:
			o.Ref = "refs/tags/" + p.Release.TagName
		case p.MergeGroup != nil:
			o.Ref, o.SHA, o.BaseRef = p.MergeGroup.HeadRef, p.MergeGroup.HeadSHA, p.MergeGroup.BaseRef
		case p.Deployment != nil:
			o.Ref, o.SHA = p.Deployment.Ref, p.Deployment.SHA
		}
		if !validSHA(o.SHA) {
			if o.SHA, err = repo.Resolve(ctx, o.Ref); err != nil {
				return nil, "", err
			}
		}
		return []occasion{o}, "", nil
	}
	for _, event := range workflow.TriggerEvents(name) {
		o := occasion{Happening: base}
		o.Event = event
		if event == "repository_dispatch" {
			o.Action = p.Action // the event_type
		}
		if o.Ref, o.SHA, err = onDefault(ctx, repo, p); err != nil {
			return nil, "", err
		}
		out = append(out, o)
	}
	if len(out) == 0 {
		reason = fmt.Sprintf("%s starts no workflows", name)
	}
	return out, reason, nil
}

// onDefault is the default branch and its commit.
func onDefault(ctx context.Context, repo forge.Repo, p payload) (ref, sha string, err error) {
	if p.Repository.DefaultBranch == "" {
		return "", "", refuse("the payload names no default branch")
	}
	ref = "refs/heads/" + p.Repository.DefaultBranch
	sha, err = repo.Resolve(ctx, ref)
	return ref, sha, err
}

// pushed lists the paths that a push changed.
func pushed(ctx context.Context, repo forge.Repo, p payload) ([]string, bool, error) {
	if strings.HasPrefix(p.Ref, "refs/tags/") {
		return nil, false, nil // paths do not count for tags
	}
	if !zeroSHA(p.Before) && validSHA(p.Before) {
		files, known, err := repo.ChangedFiles(ctx, p.Before, p.After)
		if status(err) == 404 {
			// What was there before is gone: a forced push, since collected.
			return nil, false, nil
		}
		return files, known, err
	}
	// A new branch: what its own commits change.
	if len(p.Commits) > 1 {
		var files []string
		for _, c := range p.Commits {
			files = slices.Concat(files, c.Added, c.Removed, c.Modified)
		}
		slices.Sort(files)
		return slices.Compact(files), true, nil
	}
	return repo.CommitFiles(ctx, p.After)
}

func fullRef(ref, def string) string {
	switch {
	case ref == "":
		return "refs/heads/" + def
	case strings.HasPrefix(ref, "refs/"):
		return ref
	}
	return "refs/heads/" + ref
}

func short(sha string) string { return sha[:min(len(sha), 8)] }
