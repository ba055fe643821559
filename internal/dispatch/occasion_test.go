package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
)

// Commits, by a letter.
func sha(letter string) string { return strings.Repeat(letter, 40) }

// known is a repository whose refs, commits and changes are known; what else is asked
// of it is not there.
type known struct {
	forge.Repo
	refs    map[string]string   // to commits
	parents map[string][]string // of commits
	fails   error               // of everything
}

func (k *known) Resolve(_ context.Context, ref string) (string, error) {
	if s, ok := k.refs[ref]; ok {
		return s, k.fails
	}
	return "", &forge.Error{Status: 404}
}

func (k *known) Commit(_ context.Context, sha string) (forge.Commit, error) {
	if p, ok := k.parents[sha]; ok {
		return forge.Commit{SHA: sha, Message: "message of " + sha[:1], Parents: p}, k.fails
	}
	return forge.Commit{}, &forge.Error{Status: 404}
}

func (k *known) PullFiles(_ context.Context, n int) ([]string, bool, error) {
	return []string{fmt.Sprint("pull ", n)}, true, nil
}

func (k *known) ChangedFiles(_ context.Context, base, head string) ([]string, bool, error) {
	if base == sha("9") {
		return nil, false, &forge.Error{Status: 404}
	}
	return []string{base[:1] + ".." + head[:1]}, true, nil
}

func (k *known) CommitFiles(_ context.Context, sha string) ([]string, bool, error) {
	return []string{"commit " + sha[:1]}, true, nil
}

func event(name, body string) ci.Event { return ci.Event{Name: name, Payload: []byte(body)} }

const ofRepository = `"repository": {"full_name": "o/r", "default_branch": "main"}, "sender": {"login": "ada"}`

func pullBody(head, merge, association string) string {
	return fmt.Sprintf(`{"action": "opened", "number": 8, "pull_request": {"number": 7, "merge_commit_sha": %q, "author_association": %q, "user": {"login": "ada"},
		"head": {"ref": "topic", "sha": %q, "repo": %s}, "base": {"ref": "main", "sha": %q, "repo": {"full_name": "o/r"}}}, %s}`, merge, association, sha("b"), head,
		sha("a"), ofRepository)
}

// TestOccasions: what each delivery may start, at which ref and commit, for whom, with
// which changed files; and that package webhook reads the same from the body alone.
func TestOccasions(t *testing.T) {
	repo := &known{refs: map[string]string{"refs/heads/main": sha("a"), "refs/heads/topic": sha("b"), "refs/tags/v1": sha("c")},
		parents: map[string][]string{sha("a"): nil, sha("b"): {sha("a")}, sha("d"): {sha("a"), sha("b")}, sha("e"): {sha("a")}}}
	approval := config.ApprovalFirstTime
	d := &Dispatcher{cfg: Config{Policy: func(string) (config.Policy, bool) { return config.Policy{Approval: approval}, true }}}
	const mine, theirs = `{"full_name": "O/R"}`, `{"full_name": "eve/r"}`
	push := func(ref, before, after, more string) string {
		return fmt.Sprintf(`{"ref": %q, "before": %q, "after": %q, "created": false, "deleted": false, "forced": false, "commits": [], "pusher": {}%s, %s}`, ref, before,
			after, more, ofRepository)
	}
	for _, c := range []struct {
		name, event, body string
		want              []string // event ref commit trust waits files
	}{
		{"a push", "push", push("refs/heads/main", sha("b"), sha("a"), ""), []string{"push refs/heads/main a  false b..a"}},
		{"of Dependabot", "push", strings.Replace(push("refs/heads/main", sha("b"), sha("a"), ""), "ada", "dependabot[bot]", 1),
			[]string{"push refs/heads/main a dependabot false b..a"}},
		{"whose past is gone", "push", push("refs/heads/main", sha("9"), sha("a"), ""), []string{"push refs/heads/main a  false unknown"}},
		{"of a new branch", "push", push("refs/heads/new", sha("0"), sha("b"), ""), []string{"push refs/heads/new b  false commit b"}},
		{"of a new branch with two commits", "push", strings.Replace(push("refs/heads/new", sha("0"), sha("b"), ""), `"commits": []`,
			`"commits": [{"added": ["y"], "modified": ["x"]}, {"removed": ["z", "x"]}]`, 1), []string{"push refs/heads/new b  false x y z"}},
		{"of a tag", "push", push("refs/tags/v1", sha("0"), sha("c"), ""), []string{"push refs/tags/v1 c  false unknown"}},
		{"a pull request at its merge commit", "pull_request", pullBody(mine, sha("d"), ""),
			[]string{"pull_request refs/pull/7/merge d  false pull 7", "pull_request_target refs/heads/main a  false pull 7"}},
		{"that has its number beside it", "pull_request", strings.Replace(pullBody(mine, "", ""), `"number": 7, `, "", 1),
			[]string{"pull_request refs/pull/8/merge b  false pull 8", "pull_request_target refs/heads/main a  false pull 8"}},
		{"at another's merge commit", "pull_request", pullBody(mine, sha("e"), ""),
			[]string{"pull_request refs/pull/7/merge b  false pull 7", "pull_request_target refs/heads/main a  false pull 7"}},
		{"at a merge commit that is gone", "pull_request", pullBody(mine, sha("8"), ""),
			[]string{"pull_request refs/pull/7/merge b  false pull 7", "pull_request_target refs/heads/main a  false pull 7"}},
		{"of a fork, for the first time", "pull_request", pullBody(theirs, "", "FIRST_TIME_CONTRIBUTOR"),
			[]string{"pull_request refs/pull/7/merge b fork true pull 7", "pull_request_target refs/heads/main a  false pull 7"}},
		{"of a fork, by somebody known", "pull_request", pullBody(theirs, "", "CONTRIBUTOR"),
			[]string{"pull_request refs/pull/7/merge b fork false pull 7", "pull_request_target refs/heads/main a  false pull 7"}},
		{"of a fork that is gone", "pull_request", pullBody("null", "", "NONE"),
			[]string{"pull_request refs/pull/7/merge b fork true pull 7", "pull_request_target refs/heads/main a  false pull 7"}},
		{"of Dependabot's", "pull_request", strings.ReplaceAll(pullBody(mine, "", ""), "ada", "dependabot[bot]"),
			[]string{"pull_request refs/pull/7/merge b dependabot false pull 7", "pull_request_target refs/heads/main a dependabot false pull 7"}},
		{"a dispatch of a branch", "workflow_dispatch", `{"ref": "topic", "workflow": "w.yml", "inputs": null, ` + ofRepository + `}`,
			[]string{"workflow_dispatch refs/heads/topic b  false -"}},
		{"of a full ref", "workflow_dispatch", `{"ref": "refs/tags/v1", "workflow": "w.yml", "inputs": null, ` + ofRepository + `}`,
			[]string{"workflow_dispatch refs/tags/v1 c  false -"}},
		{"a new tag", "create", `{"ref": "v1", "ref_type": "tag", "master_branch": "main", "pusher_type": "user", ` + ofRepository + `}`,
			[]string{"create refs/tags/v1 c  false -"}},
		{"a new branch", "create", `{"ref": "topic", "ref_type": "branch", "master_branch": "main", "pusher_type": "user", ` + ofRepository + `}`,
			[]string{"create refs/heads/topic b  false -"}},
		{"a release", "release", `{"action": "published", "release": {"tag_name": "v1"}, ` + ofRepository + `}`, []string{"release refs/tags/v1 c  false -"}},
		{"a merge group", "merge_group", `{"action": "checks_requested", "merge_group": {"head_sha": "` + sha("d") + `", "head_ref": "refs/heads/queue/main", "base_ref": "m"}, ` +
			ofRepository + `}`, []string{"merge_group refs/heads/queue/main d  false -"}},
		{"an issue", "issues", `{"action": "opened", "issue": {}, ` + ofRepository + `}`, []string{"issues refs/heads/main a  false -"}},
	} {
		p, whole, err := decode(store.StoredEvent{Event: event(c.event, c.body)})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		all, reason, err := d.occasions(t.Context(), repo, c.event, p, whole)
		if err != nil || reason != "" {
			t.Errorf("%s: %q %v", c.name, reason, err)
		}
		var got []string
		for _, o := range all {
			files := "-"
			if o.Changed != nil {
				list, sure, err := o.Changed(t.Context())
				if files = strings.Join(list, " "); !sure {
					files = "unknown"
				}
				if err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
			got = append(got, fmt.Sprintf("%s %s %.1s %s %v %s", o.Event, o.Ref, o.SHA, o.Trust, o.Waits, files))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
		h, err := webhook.Read(c.event, []byte(c.body))
		if err != nil || len(all) == 0 {
			t.Errorf("%s: from the body alone: %v", c.name, err)
			continue
		}
		o := all[0]
		if h.Repository != "o/r" || h.Ref != o.Ref || h.Fork != (o.Trust == ofFork) || h.Actor != p.Sender.Login {
			t.Errorf("%s: from the body alone %+v, from the forge %s %s", c.name, h, o.Ref, o.SHA)
		}
		if merged := strings.HasPrefix(o.Ref, "refs/pull/"); h.SHA != "" && h.SHA != o.SHA && !merged || merged && h.SHA != sha("b") {
			t.Errorf("%s: the body alone names the commit %s, the forge %s", c.name, h.SHA, o.SHA)
		}
	}
	approval = config.ApprovalNone
	p, whole, _ := decode(store.StoredEvent{Event: event("pull_request", pullBody(theirs, "", "NONE"))})
	if all, _, err := d.occasions(t.Context(), repo, "pull_request", p, whole); err != nil || all[0].Waits || all[0].Trust != ofFork {
		t.Errorf("nobody has to approve: %+v %v", all, err)
	}
}

// TestNoOccasion: what starts nothing, says why, and is refused for good; what the forge
// cannot say now is tried again.
func TestNoOccasion(t *testing.T) {
	repo := &known{refs: map[string]string{"refs/heads/main": sha("a")}, parents: map[string][]string{sha("b"): nil}}
	d := &Dispatcher{}
	for _, c := range []struct{ event, body, reason, refusal string }{
		{"push", fmt.Sprintf(`{"ref": "refs/heads/x", "before": %q, "after": %q, "created": false, "deleted": true, "forced": false, "commits": [], "pusher": {}, %s}`,
			sha("a"), sha("0"), ofRepository), "deletes refs/heads/x", ""},
		{"push", fmt.Sprintf(`{"ref": "main", "before": %q, "after": %q, "created": false, "deleted": false, "forced": false, "commits": [], "pusher": {}, %s}`,
			sha("a"), sha("b"), ofRepository), "", "no branch or tag"},
		{"push", fmt.Sprintf(`{"ref": "refs/heads/", "before": %q, "after": %q, "created": false, "deleted": false, "forced": false, "commits": [], "pusher": {}, %s}`,
			sha("a"), sha("b"), ofRepository), "", "no branch or tag"},
		{"push", fmt.Sprintf(`{"ref": "refs/heads/x", "before": %q, "after": "HEAD", "created": false, "deleted": false, "forced": false, "commits": [], "pusher": {}, %s}`,
			sha("a"), ofRepository), "", "names no commit"},
		{"pull_request", strings.Replace(pullBody(`{"full_name": "o/r"}`, "", ""), sha("b"), "x", 1), "", "no pull request with a head and a base"},
		{"pull_request", strings.Replace(pullBody(`{"full_name": "o/r"}`, "", ""), `"sha": "`+sha("a"), `"sha": "y`, 1), "",
			"no pull request with a head and a base"},
		{"pull_request", strings.Replace(pullBody(`{"full_name": "o/r"}`, "", ""), `"repo": {"full_name": "o/r"}}}`,
			`"repo": {"full_name": "eve/r"}}}`, 1), "", "not of o/r"},
		{"create", `{"ref": "x", "ref_type": "wiki", "master_branch": "main", "pusher_type": "user", ` + ofRepository + `}`, "", "neither a branch nor a tag"},
		{"issues", `{"action": "opened", "issue": {}, "repository": {"full_name": "o/r"}, "sender": {"login": "ada"}}`, "", "no default branch"},
	} {
		p, whole, err := decode(store.StoredEvent{Event: event(c.event, c.body)})
		if err != nil {
			t.Errorf("%.80s: %v", c.body, err)
			continue
		}
		all, reason, err := d.occasions(t.Context(), repo, c.event, p, whole)
		var r *refusal
		if len(all) != 0 || !strings.Contains(reason, c.reason) || (c.reason == "") != (reason == "") || errors.As(err, &r) != (c.refusal != "") ||
			c.refusal != "" && !strings.Contains(err.Error(), c.refusal) {
			t.Errorf("%.80s: %v %q %v", c.body, all, reason, err)
		}
	}
	repo.fails = &forge.Error{Status: 502}
	for name, body := range map[string]string{"pull_request": pullBody(`{"full_name": "o/r"}`, "", ""),
		"issues": `{"action": "opened", "issue": {}, ` + ofRepository + `}`} {
		p, whole, err := decode(store.StoredEvent{Event: event(name, body)})
		if err != nil {
			t.Fatal(err)
		}
		var r *refusal
		if _, _, err := d.occasions(t.Context(), repo, name, p, whole); err == nil || errors.As(err, &r) {
			t.Errorf("%s, while the forge has trouble: %v", name, err)
		}
	}
	if _, _, err := decode(store.StoredEvent{Event: event("push", `{"ref": 1}`)}); err == nil {
		t.Error("a push without a shape")
	}
}

// TestMustWait: which pull requests of forks somebody has to approve of first.
func TestMustWait(t *testing.T) {
	for _, c := range []struct {
		approval, association string
		want                  bool
	}{
		{config.ApprovalNone, "NONE", false}, {config.ApprovalFirstTime, "OWNER", false}, {config.ApprovalFirstTime, "MEMBER", false},
		{config.ApprovalFirstTime, "COLLABORATOR", false}, {config.ApprovalFirstTime, "CONTRIBUTOR", false}, {config.ApprovalFirstTime, "FIRST_TIMER", true},
		{config.ApprovalFirstTime, "FIRST_TIME_CONTRIBUTOR", true}, {config.ApprovalFirstTime, "MANNEQUIN", true}, {config.ApprovalFirstTime, "", true},
		{config.ApprovalFirstTime, "owner", true}, {"", "OWNER", true}, {"all", "OWNER", true},
	} {
		if got := mustWait(config.Policy{Approval: c.approval}, &pull{Association: c.association}); got != c.want {
			t.Errorf("%q, %q: waits %v", c.approval, c.association, got)
		}
	}
}

// TestRefNames: refs that a dispatch names, commits that are none, names in short.
func TestRefNames(t *testing.T) {
	for s, want := range map[string]bool{sha("0"): true, "": true, sha("0")[:39] + "1": false} {
		if zeroSHA(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
	for in, want := range map[string]string{"": "refs/heads/d", "x": "refs/heads/x", "refs/tags/x": "refs/tags/x", "refs": "refs/heads/refs"} {
		if got := fullRef(in, "d"); got != want {
			t.Errorf("%q is %q", in, got)
		}
	}
	if short(sha("a")) != "aaaaaaaa" || short("ab") != "ab" || short("") != "" {
		t.Error(short(sha("a")))
	}
}
