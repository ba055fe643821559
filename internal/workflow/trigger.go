package workflow

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
)

// Happening is something that happened and may start workflows: a webhook
// delivery, a tick of the clock, a request to run by hand.
type Happening struct {
	// Event is the name under `on:`. One webhook may be several: see
	// [TriggerEvents].
	Event string `json:"event"`
	// Action is the activity type: opened, synchronize, … For repository_dispatch
	// it is the event_type. Empty means not known.
	Action string `json:"action,omitempty"`
	// Ref is what was pushed, refs/heads/main or refs/tags/v1; for other events
	// the ref that the run is for.
	Ref string `json:"ref,omitempty"`
	// BaseRef and HeadRef are the branches of a pull request, with or without
	// refs/heads/. BaseRef is also the target branch of a merge group. Empty means
	// that the payload says it.
	BaseRef string `json:"base_ref,omitempty"`
	HeadRef string `json:"head_ref,omitempty"`
	SHA     string `json:"sha,omitempty"`
	// Payload is the webhook's payload, github.event. It may be null.
	Payload expr.Value `json:"payload"`
	// ChangedFiles are the changed paths from the root of the repository, if
	// FilesKnown: of a two-dot diff for a push, a three-dot diff for a pull request.
	ChangedFiles []string `json:"changed_files,omitempty"`
	FilesKnown   bool     `json:"files_known,omitempty"`
	// Commits is how many commits a push brought; 0 means as many as the payload
	// lists.
	Commits int `json:"commits,omitempty"`
	// HeadMessage is the message of the head commit, which payloads of pull
	// requests lack. Empty means that the payload says it.
	HeadMessage string `json:"head_message,omitempty"`
	// DefaultBranch is the repository's, main for instance. It may be empty.
	DefaultBranch string `json:"default_branch,omitempty"`
}

// Decision says whether a workflow runs, and why or why not.
type Decision struct {
	Run    bool
	Reason string // a sentence for people, without a full stop
	Pos    Pos    // what in the workflow decided; zero if nothing there did
}

// GitHub's limits on what path filters look at.
const (
	maxPushCommits = 1000 // a push of more runs whatever the paths
	maxDiffFiles   = 300  // only so many changed files are looked at
)

// Decide says whether the workflow runs when h happens. It follows GitHub's
// rules, by the table in trigger_events.go where events differ. The workflow must
// have been read without errors.
//
// What Decide does not know is which file was read: events with
// [Event.OnDefaultBranch] start only workflows of the default branch.
func (w *Workflow) Decide(h *Happening) Decision {
	d := decider{w: w, h: h}
	ok, reason, pos := d.decide()
	return Decision{Run: ok, Reason: reason, Pos: pos}
}

type decider struct {
	w *Workflow
	h *Happening
	t *Trigger
	e Event
}

func (d *decider) decide() (run bool, reason string, pos Pos) {
	h := d.h
	var known bool
	d.e, known = LookupEvent(h.Event)
	d.t = d.w.Trigger(h.Event)
	if d.t == nil {
		return false, d.notListed(known), d.w.onPos
	}
	pos = d.t.Pos
	if h.Event == "workflow_call" {
		return false, "a called workflow runs only when another workflow calls it", pos
	}
	if !known || !d.e.Starts {
		return false, fmt.Sprintf("GitHub has no event %s that starts workflows", h.Event), pos
	}
	for _, check := range []func() (string, Pos){d.activity, d.special, d.skipMarker, d.refs, d.paths} {
		if reason, p := check(); reason != "" {
			if p.IsZero() {
				p = pos
			}
			return false, reason, p
		}
	}
	return true, d.why(), pos
}

// notListed says why an event that the workflow does not name starts nothing.
func (d *decider) notListed(known bool) string {
	var names []string
	for _, t := range d.w.On {
		names = append(names, t.Event)
	}
	on := "the workflow names no event"
	if len(names) > 0 {
		on = "the workflow runs on " + wordList(names, "and")
	}
	switch {
	case known && !d.e.Starts:
		return fmt.Sprintf("%s starts no workflows on GitHub", d.h.Event)
	case !known:
		if best := Closest(d.h.Event, eventNames()); best != "" {
			return fmt.Sprintf("there is no event %s (did you mean %s?); %s", d.h.Event, best, on)
		}
		return fmt.Sprintf("there is no event %s; %s", d.h.Event, on)
	}
	return fmt.Sprintf("%s, not on %s", on, d.h.Event)
}

func eventNames() []string {
	var names []string
	for _, e := range eventTable {
		if e.Starts {
			names = append(names, e.Name)
		}
	}
	return names
}

func wordList(words []string, last string) string {
	switch n := len(words); n {
	case 0:
		return ""
	case 1:
		return words[0]
	default:
		return strings.Join(words[:n-1], ", ") + " " + last + " " + words[n-1]
	}
}

// activity checks the activity type against types or the event's defaults.
func (d *decider) activity() (string, Pos) {
	action := d.action()
	if action == "" {
		return "", Pos{} // not known: as if it were one of those wanted
	}
	if len(d.t.Types) > 0 {
		if slices.Contains(d.t.Types, action) {
			return "", Pos{}
		}
		return fmt.Sprintf("types names %s, not %s", wordList(d.t.Types, "and"), action), d.at("types")
	}
	defaults := d.e.Defaults()
	if defaults == nil || slices.Contains(defaults, action) {
		return "", Pos{}
	}
	if slices.Contains(d.e.Types, action) {
		return fmt.Sprintf("without types, %s means %s, not %s", d.h.Event, wordList(defaults, "and"), action), Pos{}
	}
	return fmt.Sprintf("%s of type %s starts no workflows on GitHub, only %s", d.h.Event, action, wordList(d.e.Types, "and")), Pos{}
}

func (d *decider) action() string {
	if d.h.Action != "" {
		return d.h.Action
	}
	return d.h.Payload.Get("action").AsString()
}

// at is the place of a key of the trigger.
func (d *decider) at(key string) Pos {
	if v := d.t.Value.Get(key); v != nil {
		return v.Pos
	}
	return d.t.Pos
}

// special has the rules that single events have.
func (d *decider) special() (string, Pos) {
	p := d.h.Payload
	switch d.h.Event {
	case "push":
		if p.Get("deleted").AsBool() {
			return fmt.Sprintf("the push deleted %s, and there is nothing to run on", d.refName()), Pos{}
		}
	case "pull_request":
		if m := p.At("pull_request", "mergeable"); m.Kind() == expr.KindBool && !m.AsBool() && p.At("pull_request", "state").AsString() != "closed" {
			return "the pull request has a merge conflict, so there is no merge commit to run on", Pos{}
		}
	case "check_run", "check_suite":
		app := p.At(d.h.Event, "app", "slug")
		if app.IsNull() {
			app = p.At(d.h.Event, "check_suite", "app", "slug")
		}
		if app.AsString() == "github-actions" {
			return "the check suite was made by GitHub Actions, which would start workflows without end", Pos{}
		}
	case "deployment_status":
		if p.At("deployment_status", "state").AsString() == "inactive" {
			return "a deployment status that becomes inactive starts no workflows", Pos{}
		}
	case "release":
		switch action := d.action(); action {
		case "created", "edited", "deleted":
			if p.At("release", "draft").AsBool() {
				return fmt.Sprintf("the release is a draft, and drafts that are %s start no workflows", action), Pos{}
			}
		}
	case "schedule":
		cron := p.Get("schedule").AsString()
		if cron != "" && !slices.ContainsFunc(d.t.Cron, func(s Schedule) bool { return s.Cron == cron }) {
			return fmt.Sprintf("no schedule of the workflow is '%s'", cron), Pos{}
		}
	case "workflow_run":
		return d.workflowRun()
	case "image_version":
		if reason := d.oneOf("names", d.t.Names, "the image", p.At("image_version", "name").AsString()); reason != "" {
			return reason, d.at("names")
		}
		if reason := d.oneOf("versions", d.t.Versions, "the version", p.At("image_version", "version").AsString()); reason != "" {
			return reason, d.at("versions")
		}
	}
	return "", Pos{}
}

func (d *decider) workflowRun() (string, Pos) {
	p := d.h.Payload
	name := p.At("workflow_run", "name").AsString()
	if name == "" {
		name = p.At("workflow", "name").AsString()
	}
	switch {
	case len(d.t.Workflows) == 0:
		return "workflow_run names no workflows to follow", Pos{}
	case name == "", slices.Contains(d.t.Workflows, name):
		return "", Pos{}
	}
	return fmt.Sprintf("workflows names %s, not '%s'", wordList(quoteAll(d.t.Workflows), "and"), name), d.at("workflows")
}

func quoteAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = "'" + s + "'"
	}
	return out
}

// skipMarker looks for [skip ci] and its like where GitHub does.
func (d *decider) skipMarker() (string, Pos) {
	if d.h.Event != "push" && d.h.Event != "pull_request" {
		return "", Pos{}
	}
	msg := d.h.HeadMessage
	if msg == "" {
		msg = d.h.Payload.At("head_commit", "message").AsString()
	}
	if m := SkipMarker(msg); m != "" {
		return fmt.Sprintf("the message of the head commit says %s", m), Pos{}
	}
	return "", Pos{}
}

// SkipMarker finds what in a commit message keeps push and pull_request from
// starting workflows: [skip ci], [ci skip], [no ci], [skip actions], [actions
// skip] anywhere, or skip-checks: true as the last trailer. It is empty if nothing
// does.
func SkipMarker(message string) string {
	for _, m := range [...]string{"[skip ci]", "[ci skip]", "[no ci]", "[skip actions]", "[actions skip]"} {
		if strings.Contains(message, m) {
			return m
		}
	}
	// Trailers are the last paragraph, which two empty lines precede.
	text := strings.TrimRight(strings.ReplaceAll(message, "\r\n", "\n"), " \t\n")
	i := strings.LastIndex(text, "\n\n\n")
	if i < 0 || strings.Contains(text[i+3:], "\n\n") {
		return ""
	}
	last := text[strings.LastIndexByte(text, '\n')+1:]
	if last == "skip-checks: true" || last == "skip-checks:true" {
		return last
	}
	return ""
}

// refs checks the branch and tag filters.
func (d *decider) refs() (string, Pos) {
	t := d.t
	hasBranches := len(t.Branches) > 0 || len(t.BranchesIgnore) > 0
	hasTags := len(t.Tags) > 0 || len(t.TagsIgnore) > 0
	kind, name := d.filteredRef()
	switch {
	case kind == "" || !hasBranches && !hasTags:
		return "", Pos{}
	case kind == "tag" && !hasTags:
		return fmt.Sprintf("only branches are filtered, so pushes of tags like %s start nothing", name), d.at(firstKey(t.Branches, "branches", "branches-ignore"))
	case kind == "branch" && !hasBranches:
		return fmt.Sprintf("only tags are filtered, so pushes to branches like %s start nothing", name), d.at(firstKey(t.Tags, "tags", "tags-ignore"))
	case kind == "tag":
		return d.refFilter("tags", t.Tags, t.TagsIgnore, "the tag", name)
	}
	what := "the branch"
	switch d.h.Event {
	case "pull_request", "pull_request_target":
		what = "the base branch"
	case "merge_group":
		what = "the target branch"
	case "workflow_run":
		what = "the branch of the run"
	}
	return d.refFilter("branches", t.Branches, t.BranchesIgnore, what, name)
}

func firstKey(list []string, key, other string) string {
	if len(list) > 0 {
		return key
	}
	return other
}

// filteredRef is the branch or tag that the filters of the event are about.
func (d *decider) filteredRef() (kind, name string) {
	p := d.h.Payload
	first := func(candidates ...string) string {
		for _, c := range candidates {
			if c != "" {
				return strings.TrimPrefix(c, "refs/heads/")
			}
		}
		return ""
	}
	switch d.h.Event {
	case "push":
		ref := d.h.Ref
		if ref == "" {
			ref = p.Get("ref").AsString()
		}
		if tag, ok := strings.CutPrefix(ref, "refs/tags/"); ok {
			return "tag", tag
		}
		if name = strings.TrimPrefix(ref, "refs/heads/"); name != "" {
			return "branch", name
		}
	case "pull_request", "pull_request_target":
		name = first(d.h.BaseRef, p.At("pull_request", "base", "ref").AsString())
	case "merge_group":
		name = first(d.h.BaseRef, p.At("merge_group", "base_ref").AsString())
	case "workflow_run":
		name = first(d.h.HeadRef, p.At("workflow_run", "head_branch").AsString())
	}
	if name != "" {
		return "branch", name
	}
	return "", ""
}

func (d *decider) refName() string {
	if kind, name := d.filteredRef(); kind != "" {
		return "the " + kind + " " + name
	}
	return "the ref"
}

func (d *decider) refFilter(key string, include, ignore []string, what, name string) (string, Pos) {
	if len(include) > 0 {
		return d.oneOf(key, include, what, name), d.at(key)
	}
	key += "-ignore"
	ps, _ := ParsePatterns(ignore)
	if in, by := ps.Match(name); in {
		return fmt.Sprintf("the pattern '%s' of %s excludes %s %s", by, key, what, name), d.at(key)
	}
	return "", Pos{}
}

// oneOf checks a name against a list in which later patterns overrule earlier
// ones. It says why not, or nothing.
func (d *decider) oneOf(key string, list []string, what, name string) string {
	if len(list) == 0 || name == "" {
		return ""
	}
	ps, errs := ParsePatterns(list)
	in, by := ps.Match(name)
	switch {
	case in:
		return ""
	case by != nil:
		return fmt.Sprintf("the pattern '%s' of %s excludes %s %s", by, key, what, name)
	case len(errs) > 0:
		return fmt.Sprintf("no pattern of %s matches %s %s (%v)", key, what, name, errs[0])
	}
	return fmt.Sprintf("no pattern of %s matches %s %s", key, what, name)
}

// paths checks the path filters against the changed files.
func (d *decider) paths() (string, Pos) {
	t, h := d.t, d.h
	if len(t.Paths) == 0 && len(t.PathsIgnore) == 0 {
		return "", Pos{}
	}
	if kind, _ := d.filteredRef(); kind == "tag" || !h.FilesKnown || d.commits() > maxPushCommits {
		return "", Pos{}
	}
	key := firstKey(t.Paths, "paths", "paths-ignore")
	if len(h.ChangedFiles) == 0 {
		return fmt.Sprintf("no file was changed, and %s wants one", key), d.at(key)
	}
	files := h.ChangedFiles[:min(len(h.ChangedFiles), maxDiffFiles)]
	list := t.Paths
	if len(list) == 0 {
		list = t.PathsIgnore
	}
	ps, _ := ParsePatterns(list)
	for _, f := range files {
		if in, _ := ps.Match(f); in == (len(t.Paths) > 0) {
			return "", Pos{}
		}
	}
	reason := fmt.Sprintf("no changed file matches paths (%s)", fileList(files))
	if len(t.Paths) == 0 {
		reason = fmt.Sprintf("paths-ignore matches every changed file (%s)", fileList(files))
	}
	if more := len(h.ChangedFiles) - len(files); more > 0 {
		reason += fmt.Sprintf("; as on GitHub only the first %d of %d changed files were looked at", maxDiffFiles, len(h.ChangedFiles))
	}
	return reason, d.at(key)
}

func (d *decider) commits() int {
	if d.h.Commits > 0 {
		return d.h.Commits
	}
	return len(d.h.Payload.Get("commits").AsArray())
}

func fileList(files []string) string {
	const most = 3
	if len(files) <= most {
		return strings.Join(files, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(files[:most], ", "), len(files)-most)
}

// why says in what respect everything fits.
func (d *decider) why() string {
	t, h := d.t, d.h
	why := "the workflow runs on " + h.Event
	if a := d.action(); a != "" {
		why += " of type " + a
	}
	if len(t.Branches) > 0 || len(t.BranchesIgnore) > 0 || len(t.Tags) > 0 || len(t.TagsIgnore) > 0 {
		if kind, name := d.filteredRef(); kind != "" {
			why += fmt.Sprintf(", and its filters take the %s %s", kind, name)
		}
	}
	if len(t.Paths) == 0 && len(t.PathsIgnore) == 0 {
		return why
	}
	switch kind, _ := d.filteredRef(); {
	case kind == "tag":
		why += "; paths do not count for tags"
	case !h.FilesKnown:
		why += "; the changed files are not known, so paths do not count"
	case d.commits() > maxPushCommits:
		why += fmt.Sprintf("; the push has more than %d commits, so paths do not count", maxPushCommits)
	default:
		list, want := t.Paths, true
		if len(list) == 0 {
			list, want = t.PathsIgnore, false
		}
		ps, _ := ParsePatterns(list)
		for _, f := range h.ChangedFiles {
			if in, _ := ps.Match(f); in == want {
				return why + ", and " + f + " was changed"
			}
		}
	}
	return why
}
