package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// An occasion is the event that is asked for, as far as it is the same for all
// workflows: see [occasion.of].
type occasion struct {
	project *project
	event   string
	actor   string
	given   map[string]any // what the user's file says, over what is made here
	payload map[string]any
	h       workflow.Happening
	at      string // the ref whose tree is the run's, where that is not the working tree
}

// object is a part of a payload.
type object = map[string]any

// occasion makes the event that is asked for out of what is here: what GitHub would
// send if it had happened now. What the user's file says goes over it. Inputs that the
// file has are added to those that were given.
func (p *project) occasion(ctx context.Context, event, payloadFile, actor string, inputs map[string]string) (*occasion, error) {
	o := &occasion{project: p, event: event, actor: actor, given: object{}}
	if payloadFile != "" {
		f, err := os.Open(payloadFile)
		if err != nil {
			return nil, usage("--eventpath: %v", err)
		}
		defer f.Close()
		dec := json.NewDecoder(f)
		dec.UseNumber()
		if err := dec.Decode(&o.given); err != nil || o.given == nil {
			return nil, usage("--eventpath %s: it is not a JSON object: %v", payloadFile, err)
		}
	}
	o.h = workflow.Happening{Event: event, Ref: p.ref, SHA: p.sha, DefaultBranch: p.def}
	var r *git.Repository
	if p.git {
		var err error
		if r, err = git.Open(ctx, p.root); err != nil {
			return nil, fmt.Errorf("reading %s: %w", p.root, err)
		}
		defer r.Close()
		o.h.HeadMessage = r.Commit(ctx, p.sha).Message
	}
	o.payload = object{"repository": p.repositoryObject(), "sender": account(actor, p.server)}
	switch event {
	case "push":
		o.push(ctx, r)
	case "pull_request", "pull_request_target":
		o.pullRequest(ctx, r)
	case "create", "delete":
		o.ref(ctx, r)
	case "release":
		o.release(ctx, r)
	case "workflow_dispatch":
		o.payload["ref"], o.payload["inputs"] = p.ref, object{}
		if in, ok := o.given["inputs"].(object); ok {
			for k, v := range in {
				if !slices.ContainsFunc(slices.Collect(maps.Keys(inputs)), func(have string) bool { return strings.EqualFold(have, k) }) {
					inputs[k] = scalar(v)
				}
			}
			delete(o.given, "inputs")
		}
		in := o.payload["inputs"].(object)
		for k, v := range inputs {
			in[k] = v
		}
	case "repository_dispatch":
		o.payload["branch"], o.payload["client_payload"] = p.def, object{}
	case "issues", "issue_comment":
		o.payload["issue"] = object{"number": 1, "id": number("issue", p.repository), "title": "An issue", "body": "", "state": "open", "labels": []any{},
			"assignees": []any{},
			"user":      account(actor, p.server), "author_association": "OWNER", "html_url": p.url() + "/issues/1"}
		if event == "issue_comment" {
			o.payload["comment"] = object{"id": number("comment", p.repository), "body": "", "user": account(actor, p.server), "author_association": "OWNER",
				"html_url": p.url() + "/issues/1#issuecomment-1"}
		}
	case "workflow_run":
		o.payload["workflow_run"] = object{"id": 1, "run_number": 1, "run_attempt": 1, "event": "push", "status": "completed", "conclusion": "success",
			"head_branch": p.branch,
			"head_sha":    p.sha, "head_repository": o.payload["repository"], "repository": o.payload["repository"], "actor": account(actor, p.server),
			"pull_requests": []any{}}
	}
	if r != nil && !o.h.FilesKnown {
		o.changed(ctx, r, r.Parent(ctx))
	}
	merge(o.payload, o.given)
	if action, ok := o.payload["action"].(string); ok {
		o.h.Action = action
	}
	switch event {
	case "push":
		if ref, ok := o.payload["ref"].(string); ok {
			o.h.Ref = ref
		}
	case "pull_request", "pull_request_target":
		pr, _ := o.payload["pull_request"].(object)
		o.h.BaseRef, o.h.HeadRef = text(pr, "base", "ref"), text(pr, "head", "ref")
		// Either of the two numbers will do.
		n := o.payload["number"]
		if o.given["number"] == nil && pr["number"] != nil {
			n = pr["number"]
		}
		o.payload["number"] = n
		if pr != nil {
			pr["number"] = n
		}
		if event == "pull_request" {
			o.h.Ref = "refs/pull/" + scalar(n) + "/merge"
		}
	}
	return o, nil
}

// of is the event as one workflow hears of it. An activity type that nobody named is
// the usual one, or the first that the workflow asks for; schedules are the workflow's.
func (o *occasion) of(w *workflow.Workflow) (*workflow.Happening, error) {
	h := o.h
	payload := maps.Clone(o.payload)
	set := func(key string, v any) {
		if _, given := o.given[key]; !given {
			payload[key] = v
		}
	}
	if t := w.Trigger(o.event); t != nil {
		if h.Action == "" {
			if h.Action = usualAction(o.event, t.Types); h.Action != "" {
				set("action", h.Action)
			}
		}
		if len(t.Cron) > 0 {
			set("schedule", t.Cron[0].Cron)
		}
	}
	pr, _ := payload["pull_request"].(object)
	if given, _ := o.given["pull_request"].(object); pr != nil && h.Action == "closed" && given["state"] == nil {
		pr = maps.Clone(pr)
		pr["state"], pr["closed_at"] = "closed", stamp(time.Now())
		if given["merged"] == nil {
			pr["merged"], pr["merged_at"] = true, stamp(time.Now())
		}
		payload["pull_request"] = pr
	}
	switch o.event {
	case "schedule", "workflow_dispatch":
		set("workflow", w.File)
	}
	b, err := json.Marshal(payload)
	if err != nil {
		return nil, err
	}
	h.Payload, err = expr.ParseJSON(b)
	return &h, err
}

// usualAction is the activity type that is meant when nobody says one.
func usualAction(event string, wanted []string) string {
	e, _ := workflow.LookupEvent(event)
	types := e.Defaults()
	if len(wanted) > 0 {
		types = wanted
	}
	for _, usual := range []string{"synchronize", "opened", "published", "submitted", "completed", "created"} {
		if slices.Contains(types, usual) {
			return usual
		}
	}
	if len(types) > 0 {
		return types[0]
	}
	return ""
}

// push: what origin does not have, or the last commit where that is not known.
func (o *occasion) push(ctx context.Context, r *git.Repository) {
	p := o.project
	before, after := zeroSHA, p.sha
	created, forced := false, false
	ref, _ := o.given["ref"].(string)
	ref = cmp.Or(ref, p.ref)
	list, all := []string{p.sha}, 1
	if r == nil {
		o.h.FilesKnown = false
	} else if tag, ok := strings.CutPrefix(ref, "refs/tags/"); ok {
		created = true
		after = o.tagged(ctx, r, tag)
		list = []string{after}
	} else {
		parent := r.Parent(ctx)
		before = cmp.Or(parent, zeroSHA)
		from := parent // what the push is compared with
		_, remote, known := r.Ref(ctx, "refs/remotes/origin/"+strings.TrimPrefix(ref, "refs/heads/"))
		switch {
		case known && remote != p.sha:
			before, from = remote, remote
			base := r.MergeBase(ctx, remote, p.sha)
			forced = base != remote
			list, all = r.Since(ctx, remote, p.sha, maxCommits)
		case !known && r.Remotes(ctx):
			// A new branch: what no other one has.
			before, created = zeroSHA, true
			if list, all = r.Since(ctx, "", p.sha, maxCommits); len(list) > 0 {
				oldest := r.Commit(ctx, list[len(list)-1])
				if all == len(list) && len(oldest.Parents) > 0 {
					from = oldest.Parents[0]
				}
			}
		}
		if given, ok := o.given["before"].(string); ok && git.ObjectID(given) {
			if _, sha, ok := r.Ref(ctx, given); ok {
				before, from = sha, sha
				list, all = r.Since(ctx, sha, p.sha, maxCommits)
			}
		}
		o.changed(ctx, r, from)
	}
	o.h.Commits = all
	commits := []any{}
	for _, sha := range slices.Backward(list) {
		commits = append(commits, o.commit(ctx, r, sha))
	}
	compare := p.url() + "/compare/" + short(before) + "..." + short(after)
	if before == zeroSHA {
		compare = p.url() + "/commit/" + short(after)
	}
	merge(o.payload, object{"ref": ref, "before": before, "after": after, "created": created, "deleted": false, "forced": forced, "base_ref": nil,
		"compare": compare, "head_commit": o.commit(ctx, r, after), "commits": commits,
		"pusher": object{"name": o.actor, "email": o.actor + "@users.noreply.github.com"}})
}

// maxCommits is how many commits of a push its payload lists.
const maxCommits = 100

// changed takes what HEAD and the working tree have changed since a commit.
func (o *occasion) changed(ctx context.Context, r *git.Repository, since string) {
	files, err := r.Changed(ctx, since)
	o.h.ChangedFiles, o.h.FilesKnown = files, err == nil
}

// pullRequest: the branch, as it would be proposed for the base.
func (o *occasion) pullRequest(ctx context.Context, r *git.Repository) {
	p := o.project
	given, _ := o.given["pull_request"].(object)
	base := cmp.Or(text(given, "base", "ref"), p.def)
	baseSHA, mergeBase, before, commits := zeroSHA, "", zeroSHA, 1
	c := git.Commit{SHA: p.sha}
	if r != nil {
		c = r.Commit(ctx, p.sha)
		parent := r.Parent(ctx)
		before = cmp.Or(parent, zeroSHA)
		// The base is where origin has it, if it is there.
		_, tip, ok := r.Ref(ctx, "refs/remotes/origin/"+base)
		if !ok && base != p.branch {
			_, tip, ok = r.Ref(ctx, "refs/heads/"+base)
		}
		if ok {
			baseSHA, mergeBase = tip, r.MergeBase(ctx, tip, p.sha)
		}
		if o.event == "pull_request_target" {
			// It runs on the base, whatever is proposed: a step asks for the head by name.
			if o.h.Ref = "refs/heads/" + base; ok && base != p.branch {
				o.h.SHA, o.at = tip, tip
			}
		}
		if !ok || mergeBase == p.sha && base == p.branch {
			// Nothing that is proposed: as if it were the last commit.
			baseSHA, mergeBase = before, parent
		}
		o.changed(ctx, r, mergeBase)
		if mergeBase != "" {
			_, commits = r.Since(ctx, mergeBase, p.sha, maxCommits)
		}
	}
	title, body, _ := strings.Cut(c.Message, "\n")
	owner, _, _ := strings.Cut(p.repository, "/")
	repo := o.payload["repository"]
	head := orString(p.branch, "detached")
	side := func(ref, sha string) object {
		return object{"ref": ref, "sha": sha, "label": owner + ":" + ref, "repo": repo, "user": account(owner, p.server)}
	}
	at := stamp(c.Committer.When)
	merge(o.payload, object{"number": 1, "before": before, "after": p.sha, "pull_request": object{
		"number": 1, "id": number("pull", p.repository, head), "state": "open", "title": title, "body": strings.TrimSpace(body), "draft": false, "locked": false,
		"merged": false, "mergeable": nil, "merge_commit_sha": p.sha, "head": side(head, p.sha), "base": side(base, baseSHA), "user": account(o.actor, p.server),
		"author_association": "OWNER", "labels": []any{}, "assignees": []any{}, "requested_reviewers": []any{}, "milestone": nil, "auto_merge": nil,
		"commits": commits, "changed_files": len(o.h.ChangedFiles), "created_at": at, "updated_at": at,
		"html_url": p.url() + "/pull/1", "diff_url": p.url() + "/pull/1.diff", "patch_url": p.url() + "/pull/1.patch",
	}})
}

// ref: a branch or a tag that was made or removed.
func (o *occasion) ref(ctx context.Context, r *git.Repository) {
	p := o.project
	name, kind := p.branch, "branch"
	if p.branch == "" && p.tag != "" {
		name, kind = p.tag, "tag"
	}
	if given, ok := o.given["ref"].(string); ok {
		switch tag, isTag := strings.CutPrefix(given, "refs/tags/"); {
		case isTag:
			kind, o.given["ref"] = "tag", tag
		case strings.HasPrefix(given, "refs/heads/"):
			kind, o.given["ref"] = "branch", strings.TrimPrefix(given, "refs/heads/")
		case r != nil:
			if full, _, ok := r.Ref(ctx, given); ok && strings.HasPrefix(full, "refs/tags/") {
				kind = "tag"
			}
		}
		name = o.given["ref"].(string)
	}
	if given, ok := o.given["ref_type"].(string); ok {
		kind = given
	}
	if o.event == "create" {
		if kind == "tag" {
			o.tagged(ctx, r, name)
		} else if name != "" {
			o.h.Ref = "refs/heads/" + name
		}
	}
	merge(o.payload, object{"ref": name, "ref_type": kind, "master_branch": p.def, "description": nil, "pusher_type": "user"})
}

// release: of the nearest tag.
func (o *occasion) release(ctx context.Context, r *git.Repository) {
	p := o.project
	given, _ := o.given["release"].(object)
	tag := cmp.Or(text(given, "tag_name"), p.tag)
	if tag == "" && r != nil {
		tag = r.LastTag(ctx, p.sha)
	}
	tag = cmp.Or(tag, "v1.0.0")
	o.tagged(ctx, r, tag)
	merge(o.payload, object{"release": object{
		"id": number("release", p.repository, tag), "tag_name": tag, "name": tag, "body": "", "draft": false, "prerelease": strings.Contains(tag, "-"),
		"target_commitish": p.def,
		"author":           account(o.actor, p.server), "created_at": stamp(time.Now()), "published_at": stamp(time.Now()), "assets": []any{},
		"html_url": p.url() + "/releases/tag/" + tag, "tarball_url": p.url() + "/tarball/" + tag, "zipball_url": p.url() + "/zipball/" + tag,
	}})
}

// tagged makes the run one of a tag: ref, commit and tree. A tag that is not there yet
// is one of what is here.
func (o *occasion) tagged(ctx context.Context, r *git.Repository, tag string) (sha string) {
	o.h.Ref, sha = "refs/tags/"+tag, o.project.sha
	if r == nil {
		return sha
	}
	if _, of, ok := r.Ref(ctx, o.h.Ref); ok {
		sha, o.h.SHA = of, of
		// Who stands on the tag runs what lies there, as on a branch.
		if o.project.branch != "" || o.project.tag != tag {
			o.at = o.h.Ref
			o.h.HeadMessage = r.Commit(ctx, of).Message
		}
	}
	return sha
}

// commit is one as payloads have it.
func (o *occasion) commit(ctx context.Context, r *git.Repository, sha string) object {
	p := o.project
	c := git.Commit{SHA: sha}
	if r != nil {
		c = r.Commit(ctx, sha)
	}
	who := func(p git.Person) object { return object{"name": p.Name, "email": p.Email} }
	return object{"id": sha, "tree_id": c.Tree, "distinct": true, "message": c.Message, "timestamp": c.Committer.When.Format(time.RFC3339),
		"url": p.url() + "/commit/" + sha, "author": who(c.Author), "committer": who(c.Committer)}
}

func (p *project) url() string { return p.server + "/" + p.repository }

func (p *project) repositoryObject() object {
	owner, name, _ := strings.Cut(p.repository, "/")
	u := account(owner, p.server)
	u["name"] = owner
	return object{
		"id": number("repository", p.repository), "name": name, "full_name": p.repository, "owner": u, "private": true, "visibility": "private", "fork": false,
		"default_branch": p.def, "master_branch": p.def, "description": nil, "archived": false, "topics": []any{}, "language": nil,
		"html_url": p.url(), "url": p.url(), "clone_url": p.url() + ".git", "git_url": "git:" + strings.TrimPrefix(p.url(), "https:") + ".git",
		"ssh_url": "git@" + strings.TrimPrefix(p.server, "https://") + ":" + p.repository + ".git",
	}
}

func account(login, server string) object {
	return object{"login": login, "id": number("user", login), "type": "User", "site_admin": false, "html_url": server + "/" + login}
}

// number is an id that stays the same for the same thing.
func number(of ...string) int64 {
	h := fnv.New32a()
	h.Write([]byte(strings.ToLower(strings.Join(of, "\x00"))))
	return int64(h.Sum32()>>1) + 1
}

func short(sha string) string { return sha[:min(12, len(sha))] }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// merge puts what over has into a payload, objects one by one.
func merge(into, over object) {
	for k, v := range over {
		to, ok1 := into[k].(object)
		from, ok2 := v.(object)
		if ok1 && ok2 {
			to = maps.Clone(to)
			merge(to, from)
			into[k] = to
			continue
		}
		into[k] = v
	}
}

// text is a text in a payload, "" if it is not there.
func text(o object, path ...string) string {
	for _, key := range path[:len(path)-1] {
		o, _ = o[key].(object)
	}
	s, _ := o[path[len(path)-1]].(string)
	return s
}

// scalar is a value as an input has it.
func scalar(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case nil:
		return ""
	}
	b, _ := json.Marshal(v)
	return string(b)
}
