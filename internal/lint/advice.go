package lint

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// The rules of advice.
const (
	ruleUnpinned   = "unpinned-action"
	ruleInjection  = "script-injection"
	rulePermission = "wide-permission"
	ruleCondition  = "constant-condition"
	ruleUnknown    = "unknown-reference"
	ruleDeprecated = "deprecated-command"
)

// adviser walks one workflow without errors.
type adviser struct {
	w     *workflow.Workflow
	src   []byte
	diags []workflow.Diagnostic
}

func advise(w *workflow.Workflow, src []byte) []workflow.Diagnostic {
	a := &adviser{w: w, src: src}
	a.tokenOfAll(w.Permissions, nil)
	for _, j := range w.Jobs {
		a.job(j)
	}
	return a.diags
}

func (a *adviser) add(pos, near workflow.Pos, rule, hint, format string, args ...any) {
	if near.IsZero() {
		near = pos
	}
	if len(a.diags) >= maxAdvice {
		return
	}
	a.diags = append(a.diags, workflow.Diagnostic{
		File: a.w.File, Pos: pos, Near: near, Severity: workflow.Advice,
		Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...),
	})
}

func (a *adviser) job(j *workflow.Job) {
	a.tokenOfAll(j.Permissions, j)
	a.condition(j.If, j.IfSource, j.IfPos)
	if j.Uses != "" {
		a.pinned(j.Uses, j.UsesPos)
	}
	needs := map[string]bool{}
	for _, n := range j.Needs {
		needs[strings.ToLower(n.ID)] = true
	}
	ids := map[string]bool{}
	for s := range workflow.EachStep(j.Steps) {
		ids[strings.ToLower(s.ID)] = true
	}
	values(j, func(v *workflow.Value) {
		v.Expr.Uses(func(context string, path []string) {
			if len(path) == 0 || path[0] == "*" {
				return
			}
			name := strings.ToLower(path[0])
			switch {
			case strings.EqualFold(context, "needs") && !needs[name]:
				hint := "Add it to `needs:`; without that the value is empty."
				if a.w.Job(path[0]) == nil {
					hint = "There is no such job; the value is empty."
				}
				a.add(v.Pos, a.find(v.Pos, "needs."+path[0]), ruleUnknown, hint, "Job '%s' reads needs.%s, which it does not need", j.ID, path[0])
			case strings.EqualFold(context, "steps") && !ids[name]:
				a.add(v.Pos, a.find(v.Pos, "steps."+path[0]), ruleUnknown, "No step of the job has this id; the value is empty.",
					"Job '%s' reads steps.%s, which does not exist", j.ID, path[0])
			}
		})
	})
	for s := range workflow.EachStep(j.Steps) {
		a.step(s)
	}
	a.tokenOfJob(j)
}

// values calls fn for every expression of a job.
func values(j *workflow.Job, fn func(*workflow.Value)) {
	var walk func(*workflow.Value)
	walk = func(v *workflow.Value) {
		if v == nil {
			return
		}
		if v.Kind == workflow.Expression && v.Expr != nil {
			fn(v)
		}
		for _, it := range v.Items {
			walk(it)
		}
		for _, p := range v.Pairs {
			walk(p.Key)
			walk(p.Value)
		}
	}
	condition := func(e *expr.Expr, pos workflow.Pos) {
		if e != nil {
			fn(&workflow.Value{Kind: workflow.Expression, Pos: pos, Expr: e})
		}
	}
	condition(j.If, j.IfPos)
	for _, v := range []*workflow.Value{j.Name, j.RunsOn, j.Env, j.Outputs, j.Environment, j.Container, j.Services,
		j.ContinueOnError, j.TimeoutMinutes, j.CancelTimeoutMinutes, j.Snapshot, j.With, j.Secrets} {
		walk(v)
	}
	if j.Strategy != nil {
		walk(j.Strategy.Value)
	}
	if j.Concurrency != nil {
		walk(j.Concurrency.Value)
	}
	if j.Defaults != nil {
		walk(j.Defaults.Value)
	}
	for s := range workflow.EachStep(j.Steps) {
		condition(s.If, s.IfPos)
		for _, v := range []*workflow.Value{s.Name, s.Run, s.Shell, s.WorkingDirectory, s.With, s.Env, s.ContinueOnError, s.TimeoutMinutes} {
			walk(v)
		}
	}
}

func (a *adviser) step(s *workflow.Step) {
	a.condition(s.If, s.IfSource, s.IfPos)
	if s.Uses != "" {
		a.pinned(s.Uses, s.UsesPos)
		if owner, repo, ok := splitUses(s.Uses); ok && strings.EqualFold(owner+"/"+repo, "actions/github-script") {
			a.injection(s.With.Get("script"), "`script`")
		}
	}
	if s.Run != nil {
		a.injection(s.Run, "`run`")
		a.deprecated(s.Run)
	}
}

var fullSHA = regexp.MustCompile(`^[0-9a-fA-F]{40}([0-9a-fA-F]{24})?$`)

// pinned advises to pin what strangers may change. GitHub's own actions are left
// alone.
func (a *adviser) pinned(uses string, pos workflow.Pos) {
	if image, ok := strings.CutPrefix(uses, "docker://"); ok {
		if !strings.Contains(image, "@sha256:") {
			a.add(pos, workflow.Pos{}, ruleUnpinned, "Write image@sha256:… so that the image cannot change under you.", "The image %s is not pinned to a digest", image)
		}
		return
	}
	owner, repo, ok := splitUses(uses)
	if !ok || strings.EqualFold(owner, "actions") || strings.EqualFold(owner, "github") {
		return
	}
	if strings.EqualFold(owner+"/"+repo, "slsa-framework/slsa-github-generator") {
		return // verifies itself by its tag, and refuses to run by commit
	}
	_, ref, _ := strings.Cut(uses, "@")
	if !fullSHA.MatchString(ref) {
		a.add(pos, workflow.Pos{}, ruleUnpinned,
			fmt.Sprintf("Whoever controls %s/%s can change what '%s' means; use the full commit id and keep the name in a comment.", owner, repo, ref),
			"The third-party action %s/%s is not pinned to a commit", owner, repo)
	}
}

func splitUses(uses string) (owner, repo string, ok bool) {
	path, ref, found := strings.Cut(uses, "@")
	parts := strings.Split(path, "/")
	if !found || ref == "" || len(parts) < 2 || strings.HasPrefix(path, ".") || strings.HasPrefix(path, "$") {
		return "", "", false
	}
	return parts[0], parts[1], true
}

// untrusted lists what outsiders can write freely, by path below github; * is any
// one name.
func untrusted() [][]string {
	var out [][]string
	for _, p := range []string{
		"head_ref",
		"event.issue.title", "event.issue.body",
		"event.pull_request.title", "event.pull_request.body",
		"event.pull_request.head.ref", "event.pull_request.head.label", "event.pull_request.head.repo.default_branch",
		"event.comment.body", "event.review.body", "event.review_comment.body",
		"event.discussion.title", "event.discussion.body",
		"event.pages.*.page_name",
		"event.commits.*.message", "event.commits.*.author.email", "event.commits.*.author.name",
		"event.head_commit.message", "event.head_commit.author.email", "event.head_commit.author.name",
		"event.workflow_run.head_branch", "event.workflow_run.head_commit.message",
		"event.workflow_run.head_commit.author.email", "event.workflow_run.head_commit.author.name",
		"event.workflow_run.display_title",
	} {
		out = append(out, strings.Split(p, "."))
	}
	return out
}

func untrustedPath(context string, path []string) bool {
	if !strings.EqualFold(context, "github") {
		return false
	}
	return slices.ContainsFunc(untrusted(), func(u []string) bool {
		return slices.EqualFunc(u, path, func(u, p string) bool { return u == "*" || strings.EqualFold(u, p) })
	})
}

// injection looks for untrusted text that becomes part of a script's source.
func (a *adviser) injection(v *workflow.Value, where string) {
	if v == nil || v.Kind != workflow.Expression || v.Expr == nil {
		return
	}
	seen := map[string]bool{}
	v.Expr.Uses(func(context string, path []string) {
		name := strings.Join(append([]string{context}, path...), ".")
		if seen[name] || !untrustedPath(context, path) {
			return
		}
		seen[name] = true
		a.add(v.Pos, a.find(v.Pos, context+"."+path[0]), ruleInjection,
			fmt.Sprintf("Put it into `env:` and read the variable: env: {VALUE: \"${{ %s }}\"}, then \"$VALUE\".", name),
			"%s is written by outsiders and becomes part of the script in %s", name, where)
	})
}

var oldCommand = regexp.MustCompile(`::(set-output|save-state|set-env|add-path)\b`)

func (a *adviser) deprecated(v *workflow.Value) {
	for _, m := range oldCommand.FindAllString(v.Str, 1) {
		name := strings.TrimPrefix(m, "::")
		file := map[string]string{"set-output": "GITHUB_OUTPUT", "save-state": "GITHUB_STATE", "set-env": "GITHUB_ENV", "add-path": "GITHUB_PATH"}[name]
		a.add(v.Pos, a.find(v.Pos, m), ruleDeprecated, fmt.Sprintf("Write to the file \"$%s\" instead.", file), "The command %s is deprecated", name)
	}
}

// condition looks for conditions that do not depend on anything.
func (a *adviser) condition(e *expr.Expr, src string, pos workflow.Pos) {
	if src == "" || e == nil {
		return
	}
	own, err := expr.Parse(src, nil)
	if err != nil {
		return
	}
	if strings.HasPrefix(src, "format('") && !own.Constant() {
		a.add(pos, workflow.Pos{}, ruleCondition, "Put the whole condition into one ${{ }}, or leave ${{ }} out.",
			"The condition is always true: text around ${{ }} makes it a text that is not empty")
		return
	}
	if own.Constant() {
		v, err := own.Eval(&expr.Env{Contexts: expr.NewMap()})
		switch {
		case err != nil:
		case !v.Truthy():
			a.add(pos, workflow.Pos{}, ruleCondition, "", "The condition is never true")
		case v.Kind() == expr.KindString:
			a.add(pos, workflow.Pos{}, ruleCondition, "A text that is not empty is true.", "The condition is always true")
		}
		return
	}
	// A call takes the event of its caller.
	if a.w.Trigger("workflow_call") != nil || strings.Contains(src, "||") {
		return
	}
	for part := range strings.SplitSeq(src, "&&") {
		m := eventTest.FindStringSubmatch(strings.TrimSpace(part))
		if m == nil || a.w.Trigger(strings.ToLower(m[1])) != nil {
			continue
		}
		a.add(pos, a.find(pos, "event_name"), ruleCondition, fmt.Sprintf("Add `%s` to `on:`, or remove what never runs.", m[1]),
			"The condition is never true: '%s' does not start this workflow", m[1])
	}
}

var eventTest = regexp.MustCompile(`^github\.event_name\s*==\s*'([A-Za-z_]+)'$`)

// tokenOfAll advises against tokens that may do everything.
func (a *adviser) tokenOfAll(p *workflow.Permissions, j *workflow.Job) {
	if p == nil || p.All != "write-all" {
		return
	}
	who := "Every job's token"
	if j != nil {
		who = fmt.Sprintf("The token of job '%s'", j.ID)
	}
	a.add(p.Pos, workflow.Pos{}, rulePermission, "Name the scopes that are needed: `permissions: {contents: read, …}`.", "%s may write everything", who)
}

// actionNeeds says which scopes GitHub's own actions write with their token. An
// action that is not listed may do anything.
func actionNeeds(name string) (scopes []string, known bool) {
	switch strings.ToLower(name) {
	case "actions/checkout", "actions/cache", "actions/cache/restore", "actions/cache/save", "actions/upload-artifact",
		"actions/download-artifact", "actions/setup-go", "actions/setup-node", "actions/setup-python", "actions/setup-java",
		"actions/setup-dotnet", "actions/configure-pages", "actions/upload-pages-artifact", "actions/dependency-review-action",
		"dtolnay/rust-toolchain", "ruby/setup-ruby":
		return nil, true
	case "actions/deploy-pages":
		return []string{"pages", "id-token"}, true
	case "actions/labeler":
		return []string{"pull-requests", "issues"}, true
	case "actions/stale":
		return []string{"issues", "pull-requests", "contents", "actions"}, true
	case "actions/attest", "actions/attest-build-provenance", "actions/attest-sbom":
		return []string{"id-token", "attestations", "packages", "artifact-metadata"}, true
	case "github/codeql-action/init", "github/codeql-action/analyze", "github/codeql-action/autobuild", "github/codeql-action/upload-sarif":
		return []string{"security-events", "actions", "packages"}, true
	}
	return nil, false
}

// tokenOfJob compares what the token may write with what the steps do, when all
// steps are known not to use it otherwise.
func (a *adviser) tokenOfJob(j *workflow.Job) {
	p := j.Permissions
	if p == nil {
		if len(a.w.Jobs) != 1 {
			return // the workflow's permissions serve several jobs
		}
		p = a.w.Permissions
	}
	if p == nil || p.All != "" || j.Uses != "" {
		return
	}
	used := map[string]bool{}
	known := true
	for s := range workflow.EachStep(j.Steps) {
		if s.Uses != "" {
			path, _, _ := strings.Cut(s.Uses, "@")
			scopes, ok := actionNeeds(path)
			known = known && ok
			for _, sc := range scopes {
				used[sc] = true
			}
		}
		if s.Run != nil && scriptWrites.MatchString(s.Run.Str) {
			known = false
		}
	}
	token := func(v *workflow.Value) {
		v.Expr.Uses(func(context string, path []string) {
			switch {
			case strings.EqualFold(context, "secrets"), strings.EqualFold(context, "github") && (len(path) == 0 || strings.EqualFold(path[0], "token")):
				known = false
			}
		})
	}
	values(j, token)
	values(&workflow.Job{Env: a.w.Env}, token)
	if !known || len(j.Steps) == 0 {
		return
	}
	for _, scope := range workflow.Scopes() {
		if p.Scopes[scope] == "write" && !used[scope] {
			a.add(p.ScopePos[scope], workflow.Pos{}, rulePermission, fmt.Sprintf("Use `%s: read`, or leave it out.", scope),
				"Nothing in job '%s' writes with the scope '%s'", j.ID, scope)
		}
	}
}

// scriptWrites finds scripts that may use the token that checkout leaves behind,
// or run what we cannot see.
var scriptWrites = regexp.MustCompile(`\bgit\s+(push|send)|\bgit\b.*\bpush\b|\bgh\s|\bhub\s|GITHUB_TOKEN|GH_TOKEN|ACTIONS_ID_TOKEN|deploy|publish|release|upload|(^|[\s;&|])(\./|bash\s|sh\s|make\b|npm\b|yarn\b|pnpm\b|npx\b|goreleaser|docker\b|twine|python|node\b|cargo\b|task\b|just\b|curl\b|wget\b)`)

// maxAdvice bounds the advice about one file.
const maxAdvice = 1000

// find returns where text stands in the source from p on, within what a value may
// be long; p itself when it is not there.
func (a *adviser) find(p workflow.Pos, text string) workflow.Pos {
	if len(a.diags) >= maxAdvice {
		return p
	}
	off := offset(a.src, p)
	if off < 0 {
		return p
	}
	end := min(len(a.src), off+64<<10)
	i := bytes.Index(a.src[off:end], []byte(text))
	if i < 0 {
		return p
	}
	before := a.src[:off+i]
	line := 1 + bytes.Count(before, []byte("\n"))
	before = before[bytes.LastIndexByte(before, '\n')+1:]
	return workflow.Pos{Line: line, Col: 1 + utf8.RuneCount(before)}
}

func offset(src []byte, p workflow.Pos) int {
	off := 0
	for line := 1; line < p.Line; line++ {
		i := bytes.IndexByte(src[off:], '\n')
		if i < 0 {
			return -1
		}
		off += i + 1
	}
	for col := 1; col < p.Col && off < len(src); col++ {
		_, n := utf8.DecodeRune(src[off:])
		off += n
	}
	return off
}
