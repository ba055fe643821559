package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/git/gittest"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// here is a repository with an origin: main with three commits, two of them pushed, and
// a topic branch of two commits that nobody has.
func here(t *testing.T) (dir string, sha func(rev string) string) {
	t.Helper()
	dir = t.TempDir()
	git := func(args ...string) string { return strings.TrimSpace(gittest.Git(t, dir, args...)) }
	commit := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		git("add", ".")
		git("commit", "-q", "-m", "add "+name+"\n\nIts body.")
	}
	git("init", "-q", "-b", "main")
	commit("one")
	git("tag", "v1")
	commit("two")
	origin := filepath.Join(t.TempDir(), "o", "r.git")
	git("init", "-q", "--bare", origin)
	git("remote", "add", "origin", "https://github.com/o/r.git")
	git("update-ref", "refs/remotes/origin/main", "HEAD")
	commit("three")
	commit("four")
	git("checkout", "-q", "-b", "topic", "v1")
	commit("five")
	commit("six")
	return dir, func(rev string) string { return git("rev-parse", rev) }
}

func occasionOf(t *testing.T, dir, event, file string, inputs map[string]string) *occasion {
	t.Helper()
	p, err := findProject(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if file != "" {
		name := filepath.Join(t.TempDir(), "event.json")
		if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		file = name
	}
	o, err := p.occasion(context.Background(), event, file, "ada", inputs)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// heard is what a workflow hears, with values of its payload.
func heard(t *testing.T, o *occasion, on string, paths ...string) string {
	t.Helper()
	w, diags := workflow.Parse(".github/workflows/ci.yml", []byte("on: "+on+"\njobs: {a: {runs-on: x, steps: [{run: a}]}}"), workflow.Options{})
	if workflow.Errors(diags) {
		t.Fatal(diags)
	}
	h, err := o.of(w)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{h.Ref, h.Action, strings.Join(h.ChangedFiles, ",")}
	for _, p := range paths {
		out = append(out, h.Payload.At(strings.Split(p, ".")...).ToString())
	}
	return strings.Join(out, " ")
}

// What happens here is what GitHub would send.
func TestOccasions(t *testing.T) {
	topic, sha := here(t)
	main := t.TempDir()
	gittest.Git(t, topic, "worktree", "add", "-q", filepath.Join(main, "w"), "main")
	gittest.Git(t, topic, "checkout", "-q", "topic")
	main = filepath.Join(main, "w")
	for _, c := range []struct {
		name, dir, event, file, on string
		paths, want                string
	}{
		{"a push of several commits", main, "push", "", "push", "before after created forced head_commit.message compare",
			"refs/heads/main  four,three " + sha("main~2") + " " + sha("main") + " false false add four\n\nIts body. https://github.com/o/r/compare/" +
				sha("main~2")[:12] + "..." + sha("main")[:12]},
		{"a push of a new branch", topic, "push", "", "push", "before created head_commit.author.name repository.full_name sender.login",
			"refs/heads/topic  five,six " + zeroSHA + " true t o/r ada"},
		{"a push of a tag", topic, "push", `{"ref": "refs/tags/v1"}`, "push", "ref after created", "refs/tags/v1  six refs/tags/v1 " + sha("v1") + " true"},
		{"a push with a payload of its own", topic, "push", `{"commits": [], "pusher": {"name": "bot"}}`, "push", "pusher.name pusher.email",
			"refs/heads/topic  five,six bot ada@users.noreply.github.com"},
		{"a pull request", topic, "pull_request", "", "pull_request",
			"number action pull_request.base.ref pull_request.base.sha pull_request.head.ref pull_request.head.sha pull_request.title pull_request.commits",
			"refs/pull/1/merge synchronize five,six 1 synchronize main " + sha("main~2") + " topic " + sha("topic") + " add six 2"},
		{"of the default branch", main, "pull_request", "", "pull_request", "pull_request.base.sha", "refs/pull/1/merge synchronize four,three " + sha("main~2")},
		{"for the base", topic, "pull_request_target", "", "pull_request_target", "pull_request.base.sha pull_request.head.sha",
			"refs/heads/main synchronize five,six " + sha("main~2") + " " + sha("topic")},
		{"with a number inside", topic, "pull_request", `{"pull_request": {"number": 7, "labels": [{"name": "x"}]}}`, "pull_request",
			"number pull_request.number pull_request.base.ref",
			"refs/pull/7/merge synchronize five,six 7 7 main"},
		{"with a number outside", topic, "pull_request", `{"number": 8}`, "pull_request", "pull_request.number", "refs/pull/8/merge synchronize five,six 8"},
		{"of a type", topic, "pull_request", "", "{pull_request: {types: [closed]}}", "action pull_request.merged pull_request.state",
			"refs/pull/1/merge closed five,six closed true closed"},
		{"of another type", topic, "pull_request", `{"action": "opened"}`, "{pull_request: {types: [closed]}}", "action",
			"refs/pull/1/merge opened five,six opened"},
		{"a release", topic, "release", "", "release", "action release.tag_name release.draft", "refs/tags/v1 published six published v1 false"},
		{"a release that is made", topic, "release", `{"release": {"tag_name": "v9", "prerelease": true}}`, "{release: {types: [created]}}",
			"action release.tag_name release.prerelease release.name",
			"refs/tags/v9 created six created v9 true v9"},
		{"a branch is made", topic, "create", "", "create", "ref ref_type master_branch", "refs/heads/topic  six topic branch main"},
		{"a tag is made", topic, "create", `{"ref": "v1"}`, "create", "ref ref_type", "refs/tags/v1  six v1 tag"},
		{"a tag is made, by its full name", topic, "create", `{"ref": "refs/tags/v1"}`, "create", "ref ref_type", "refs/tags/v1  six v1 tag"},
		{"a schedule", topic, "schedule", "", "{schedule: [{cron: '5 4 * * *'}]}", "schedule workflow", "refs/heads/topic  six 5 4 * * * .github/workflows/ci.yml"},
		{"a dispatch", topic, "workflow_dispatch", `{"inputs": {"n": 3, "ok": true, "given": "file"}}`, "workflow_dispatch",
			"inputs.n inputs.ok inputs.given workflow",
			"refs/heads/topic  six 3 true flag .github/workflows/ci.yml"},
		{"an issue", topic, "issues", "", "issues", "action issue.number issue.user.login", "refs/heads/topic opened six opened 1 ada"},
	} {
		inputs := map[string]string{}
		if c.event == "workflow_dispatch" {
			inputs["given"] = "flag"
		}
		o := occasionOf(t, c.dir, c.event, c.file, inputs)
		if got := heard(t, o, c.on, strings.Fields(c.paths)...); got != c.want {
			t.Errorf("%s:\n%q\n%q", c.name, got, c.want)
		}
	}
	if o := occasionOf(t, main, "push", "", nil); o.h.Commits != 2 || len(o.payload["commits"].([]any)) != 2 {
		t.Errorf("%+v", o.h)
	}
	if o := occasionOf(t, topic, "release", "", nil); o.at != "refs/tags/v1" || o.h.SHA != sha("v1") {
		t.Errorf("%+v", o)
	}
	if o := occasionOf(t, topic, "pull_request_target", "", nil); o.at != sha("main~2") || o.h.SHA != o.at {
		t.Errorf("%+v", o)
	}
	inputs := map[string]string{"given": "flag"}
	occasionOf(t, topic, "workflow_dispatch", `{"inputs": {"n": 3, "ok": true, "GIVEN": "file"}}`, inputs)
	if got := fmt.Sprint(inputs); got != "map[given:flag n:3 ok:true]" {
		t.Error(got)
	}
	// What is not committed counts.
	os.WriteFile(filepath.Join(topic, "new"), nil, 0o644)
	if o := occasionOf(t, topic, "pull_request", "", nil); !slices.Equal(o.h.ChangedFiles, []string{"five", "new", "six"}) {
		t.Errorf("%q", o.h.ChangedFiles)
	}
	// Commits that origin has are no push; as if the last one were.
	gittest.Git(t, topic, "update-ref", "refs/remotes/origin/topic", "topic")
	if o := occasionOf(t, topic, "push", "", nil); o.h.Commits != 1 || o.payload["before"] != sha("topic~1") {
		t.Errorf("%+v", o.payload)
	}
	// A branch that was rewritten.
	gittest.Git(t, topic, "update-ref", "refs/remotes/origin/topic", "main")
	if o := occasionOf(t, topic, "push", "", nil); o.payload["forced"] != true || o.payload["before"] != sha("main") || o.h.Commits != 2 {
		t.Errorf("%+v", o.payload)
	}
}
