package prompt

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// This file makes jobs of steps: purposes become commands, occasions triggers,
// and what is to run side by side or elsewhere gets a job of its own.

func (r *reader) resolve() {
	r.unknown()
	if len(r.steps) == 0 {
		if len(r.problems) == 0 {
			r.problem(strings.TrimSpace(r.p.request), "nothing in it is something to run",
				`name a command ("run make check"), or a purpose and a tool ("build and test with cargo")`)
		}
		return
	}
	r.purposes()
	if len(r.steps) == 0 {
		return
	}
	r.freed()
	r.buildFirst()
	for _, s := range r.allFeatures {
		if !strings.HasPrefix(s.command, "cargo ") {
			r.problem(s.text, "only crates have features that are turned on like that", "name the command in backquotes")
			continue
		}
		head, rest, dashes := strings.Cut(s.command, " -- ")
		if s.command = head + " --all-features"; dashes {
			s.command += " -- " + rest
		}
	}
	r.messages()
	r.quotedSecrets()
	r.unusedInputs()
	r.triggers()
	r.joinDirs()
	r.arrange()
	if r.p.group != nil && strings.HasPrefix(r.p.group.group, "deploy") && len(r.p.jobs) > 1 {
		r.p.group.group = "deploy"
	}
}

var (
	imagePushed = regexp.MustCompile(`^docker push (?:-\S+ )*(\S+)$`)
	imageBuilt  = regexp.MustCompile(`^docker (?:buildx )?build .*(?:-t|--tag)[ =](\S+)`)
)

// cleaning is what commands do that come last.
var cleaning = regexp.MustCompile(`(?i)clean|teardown|tear-down|down|report|collect|upload|destroy|stop|prune|notify|logs`)

// buildFirst builds images before they are pushed, in whichever order the request
// speaks of it, and takes "always" off what nothing comes before.
func (r *reader) buildFirst() {
swap:
	for i, s := range r.steps {
		m := imagePushed.FindStringSubmatch(s.command)
		if m == nil {
			continue
		}
		for k := i + 1; k < len(r.steps); k++ {
			b := imageBuilt.FindStringSubmatch(r.steps[k].command)
			if b == nil {
				continue
			}
			if name, _, _ := strings.Cut(b[1], ":"); name == m[1] || strings.HasPrefix(m[1], name+":") {
				built := r.steps[k]
				r.steps = slices.Insert(slices.Delete(r.steps, k, k+1), i, built)
				break swap
			}
		}
	}
	for i, s := range r.steps { // who pushes is logged in
		k := slices.IndexFunc(r.steps[:i], func(x *step) bool { return imagePushed.MatchString(x.command) && x.job == s.job })
		if k >= 0 && strings.Contains(s.command, "| docker login") {
			r.steps = slices.Insert(slices.Delete(r.steps, i, i+1), k, s)
			s.group, s.conds = r.steps[k+1].group, slices.Clone(r.steps[k+1].conds)
			break
		}
	}
	if s := r.steps[0]; len(r.steps) > 1 && strings.HasPrefix(s.uses, "actions/upload-artifact") && s.status == "" && len(s.conds) == 0 &&
		s.job == r.steps[1].job {
		k := 1
		for k < len(r.steps) && r.steps[k].job == s.job && r.steps[k].status == "" {
			k++
		}
		r.steps = slices.Insert(r.steps[1:], k-1, s) // there is nothing to upload before something ran
	}
	for range r.steps { // what failed, or is cleaned up, comes first
		s := r.steps[0]
		if len(r.steps) < 2 || s.job != r.steps[1].job || s.of != nil || s.status == "" || s.status == "always" && !cleaning.MatchString(s.command) {
			break
		}
		r.steps = append(r.steps[1:], s)
	}
	if s := r.steps[0]; s.status == "always" && len(r.explicit) == 0 && (len(r.steps) > 1 || s.free) {
		s.status = ""
	}
}

// freed takes steps out of the branches that others are bound to: "on main run
// ./release.sh; in any case make test". What cleans up afterwards stays with them.
func (r *reader) freed() {
	bound := func(s *step) bool { return len(s.conds) > 0 }
	for _, s := range r.steps {
		if !s.free || !slices.Contains([]string{"test", "build", "lint", "format", "check", "typecheck"}, purposeOfCommand(s.command)) {
			continue
		}
		for i, o := range r.occasions {
			if o.cond == "" || slices.Contains(o.steps, s) {
				continue
			}
			for _, x := range r.steps {
				if slices.Contains(o.steps, x) || len(o.steps) == 0 && !x.free {
					r.cond(o.cond)(x)
				}
			}
			r.occasions = slices.Delete(r.occasions, i, i+1)
			break
		}
		if slices.ContainsFunc(r.steps, bound) && !bound(s) {
			s.status = ""
		}
	}
}

// purposes finds the commands of steps that only say what they are for.
func (r *reader) purposes() {
	lex := r.c.g.lex
	tools := slices.Clone(r.tools)
	for _, s := range r.steps {
		if t := lex.toolOf(s.command); t != nil {
			tools = append(tools, t)
		}
	}
	for _, s := range r.steps {
		if t := lex.toolNamed(s.tool); t != nil {
			tools = append(tools, t)
		}
	}
	var gone []*step
	named := map[int]map[string]bool{} // purposes of the commands of each sentence
	for _, s := range r.steps {
		if s.command != "" && s.purpose == "" {
			if named[s.sentence] == nil {
				named[s.sentence] = map[string]bool{}
			}
			named[s.sentence][purposeOfCommand(s.command)] = true
		}
	}
	titles := map[int]bool{} // "Build and test:" above a list of commands
	title := func(s *step) bool { return s.titled && s.command == "" && s.uses == "" && s.tool == "" }
	for _, s := range r.steps {
		if title(s) && slices.ContainsFunc(r.steps, func(x *step) bool {
			return x.sentence > s.sentence && x.purpose == "" && x.command != "" && (s.purpose == "check" || purposeOfCommand(x.command) == s.purpose)
		}) {
			titles[s.sentence] = true
		}
	}
	r.steps = slices.DeleteFunc(r.steps, func(s *step) bool { return title(s) && titles[s.sentence] })
	for _, s := range r.steps {
		if s.command != "" || s.uses != "" {
			continue
		}
		if s.tool == "" && !r.assumed[s] && slices.ContainsFunc(r.steps, func(x *step) bool {
			return x.sentence == s.sentence+1 && x.purpose == "" && purposeOfCommand(x.command) == s.purpose
		}) {
			r.problem(s.text, "it is not clear whether that is the command named after it or one more", "say: "+s.text+" with `a command`")
			gone = append(gone, s)
			continue
		}
		if f := strings.Fields(s.text); s.purpose == "publish" && len(f) > 0 && strings.HasPrefix(f[len(f)-1], "push") {
			r.problem(s.text, "what is to be pushed is not said", "say: push the image with `docker push acme/app`; or when: on pushes to main, …")
			gone = append(gone, s)
			continue
		}
		if s.tool == "" && named[s.sentence][s.purpose] {
			r.problem(s.text, "it is not clear whether that is the command named beside it or one more", "say: "+s.text+" with `a command`")
			continue
		}
		candidates := tools
		if s.tool != "" {
			if t := lex.toolNamed(s.tool); t != nil {
				candidates = []*tool{t}
				if base := lex.languageNamed(t.language); base != nil {
					for _, other := range tools {
						if other.language == t.language && other.name != t.name {
							candidates = append(candidates, other)
						}
					}
				}
			}
		}
		what := s.purpose
		for _, t := range candidates {
			for _, w := range alternatives[what] {
				if c := t.does[w]; c != "" && s.command == "" {
					s.command = c
				}
			}
			if c := t.does[what]; c != "" && s.command == "" {
				s.command = c
			}
			if s.command != "" {
				break
			}
		}
		if s.command != "" {
			continue
		}
		var names []string
		for _, t := range candidates {
			if !slices.Contains(names, t.name) {
				names = append(names, t.name)
			}
		}
		switch {
		case r.assumed[s]:
			r.problem(s.text, "no step does that", "name its command: after `make test` passes, run `./deploy.sh`")
		case len(candidates) == 0 && what != "deploy" && what != "migrate" && what != "publish" && what != "clean" && what != "release":
			r.problem(s.text, "no tool is named that would do it",
				"say which: "+s.text+" with cargo (or go, npm, make, python, cmake, maven, gradle, …), or with `a command`")
		case len(candidates) == 0:
			r.problem(s.text, "no command is named that does it", "say: "+s.text+" with `./"+what+".sh`")
		default:
			r.problem(s.text, "I know no way to do that with "+strings.Join(names, " or "), "name the command in backquotes: "+s.text+" with `…`")
		}
		gone = append(gone, s)
	}
	r.steps = slices.DeleteFunc(r.steps, func(s *step) bool { return slices.Contains(gone, s) })
}

// alternatives are purposes that do as well.
var alternatives = map[string][]string{"verify": {"verify"}, "release": {"release"}}

func init() {
	alternatives["typecheck"] = []string{"typecheck", "check"}
	alternatives["verify"] = []string{"verify", "check", "test"}
	alternatives["check"] = []string{"check", "lint"}
}

// messages writes the commands that post to a chat.
func (r *reader) messages() {
	for _, s := range r.steps {
		if !s.notify {
			continue
		}
		if len(s.env) == 0 {
			r.problem(s.text, "which secret holds the webhook's address is not said", "say: post to Slack using the secret SLACK_WEBHOOK_URL")
			continue
		}
		variable := s.env[len(s.env)-1][0]
		field, message := s.with[0][1], s.with[1][1]
		s.with = nil
		if message == "" {
			switch s.status {
			case "failure":
				message = "failed"
			case "always":
				message = "ended"
			default:
				message = "succeeded"
			}
			message = "$GITHUB_WORKFLOW of $GITHUB_REPOSITORY has " + message + ": $GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID"
		} else {
			message = strings.NewReplacer(`\`, `\\\\`, `"`, `\\\"`, "$", `\$`, "`", "\\`", "${{", "").Replace(message)
		}
		s.command = `curl -fsS -X POST -H 'Content-Type: application/json' -d "{\"` + field + `\": \"` + message + `\"}" "$` + variable + `"`
	}
}

// quotedSecrets gives commands the secrets that stand in them, in variables.
func (r *reader) quotedSecrets() {
	for _, s := range r.steps {
		if s.uses != "" || s.notify {
			continue
		}
		s.command = quotedSecret.ReplaceAllStringFunc(s.command, func(e string) string {
			name := quotedSecret.FindStringSubmatch(e)[1]
			setPair(&s.env, name, "${{ secrets."+name+" }}")
			return "$" + name
		})
	}
}

var quotedSecret = regexp.MustCompile(`\$\{\{ '\$\{\{' \}\} *secrets\.(\w+) *\}\}`)

// unusedInputs gives inputs that nothing speaks of to all steps.
func (r *reader) unusedInputs() {
	for k := range r.p.inputs {
		i := &r.p.inputs[k]
		for _, s := range r.steps {
			for _, form := range []string{"<" + i.name + ">", "${" + i.name + "}", "$" + i.name, "{{" + i.name + "}}", "{" + i.name + "}",
				"${{ '${{' }} inputs." + i.name + " }}", "${{ '${{' }} github.event.inputs." + i.name + " }}"} {
				if strings.Contains(s.command, form) && s.uses == "" {
					v := variableOf(i.name)
					s.command = strings.ReplaceAll(s.command, form, `"$`+v+`"`)
					setPair(&s.env, v, "${{ inputs."+i.name+" }}")
					i.used = true
				}
			}
			if v := variableOf(i.name); strings.Contains(s.command, "$"+v) && !i.used {
				setPair(&s.env, v, "${{ inputs."+i.name+" }}")
				i.used = true
			}
		}
		if !i.used {
			for _, s := range r.steps {
				if s.uses == "" && !s.notify {
					setPair(&s.env, variableOf(i.name), "${{ inputs."+i.name+" }}")
				}
			}
		}
	}
}

// triggers makes `on:` of the occasions, and conditions of those that hold for
// some steps only.
func (r *reader) triggers() {
	t := &r.p.on
	r.sharpen()
	var partial bool
	covers := func(o *occasion) bool {
		for _, s := range r.steps {
			if !slices.Contains(o.steps, s) && s.status == "" {
				return false
			}
		}
		return true
	}
	if len(r.occasions) > 1 {
		for _, o := range r.occasions {
			if len(o.steps) > 0 && !covers(o) {
				partial = true
			}
		}
		// One that stands before everything and one for a part.
		n := 0
		for _, o := range r.occasions {
			if len(o.steps) > 0 {
				n++
			}
		}
		if n < 2 {
			partial = partial && n == 1 && !r.onlyOneHasSteps()
		}
	} else if len(r.occasions) == 1 {
		o := r.occasions[0]
		partial = !o.whole && len(o.steps) > 0 && !covers(o)
		if partial {
			t.add("push")
			t.add("pull_request")
		}
	}
	for _, o := range r.occasions {
		t.merge(o.t)
	}
	if partial {
		r.partial()
	}
	for _, o := range r.occasions {
		for _, e := range o.conds {
			for _, s := range r.steps {
				if !partial || slices.Contains(o.steps, s) || len(o.steps) == 0 {
					r.cond(e)(s)
				}
			}
		}
	}
	r.conditions(len(r.occasions) > 0)
	if len(t.events) == 0 {
		t.add("push")
		t.add("pull_request")
	}
	if len(r.paths) > 0 || len(r.notPaths) > 0 {
		t.paths, t.notPaths = r.paths, r.notPaths
		if !slices.Contains(t.events, "push") && !slices.Contains(t.events, "pull_request") {
			r.problem(strings.Join(append(slices.Clone(r.paths), r.notPaths...), ", "), "only pushes and pull requests change files",
				"say: on pushes to main when files in src/ change")
		}
		if len(t.paths) > 0 {
			for _, p := range t.notPaths {
				t.paths = append(t.paths, "!"+p)
			}
			t.notPaths = nil
		}
	}
	if len(t.ignored["push"]) > 0 {
		if len(t.branches["push"]) > 0 {
			r.problem("push", "it is said both on which branches and on which not", "name the branches once")
		}
	}
	if len(r.p.inputs) > 0 {
		t.add("workflow_dispatch")
		if slices.Contains(t.events, "workflow_call") {
			t.events = slices.DeleteFunc(t.events, func(e string) bool { return e == "workflow_dispatch" })
		}
	}
}

// sharpen drops schedules that name no time where another one does: "nightly:
// every day at 01:00" is one schedule. And it asks back where a word may be a time
// or a target.
func (r *reader) sharpen() {
	sharp := slices.ContainsFunc(r.occasions, func(o *occasion) bool { return len(o.t.crons) > 0 && !o.vague })
	vague := 0
	r.occasions = slices.DeleteFunc(r.occasions, func(o *occasion) bool {
		if !o.vague {
			return false
		}
		vague++
		return sharp && len(o.steps) == 0 || sharp && o.whole
	})
	if len(r.occasions) == 0 {
		for _, s := range r.steps {
			f := strings.Fields(s.command)
			if len(f) > 0 && timely[f[len(f)-1]] && s.text == s.command && !strings.Contains(r.p.request, "`"+s.command+"`") &&
				!strings.Contains(r.p.request, "\""+s.command+"\"") {
				r.problem(s.text, f[len(f)-1]+" may be a time or a part of the command",
					"put the command in backquotes: run `"+s.command+"`; or say every day at 03:00, run `"+strings.Join(f[:len(f)-1], " ")+"`")
			}
		}
	}
}

func (r *reader) onlyOneHasSteps() bool {
	for _, o := range r.occasions {
		if len(o.steps) > 0 && o.whole {
			return true
		}
	}
	return false
}

// partial gives steps the events of their own occasion as a condition.
func (r *reader) partial() {
	for _, s := range r.steps {
		if s.status != "" && s.of == nil {
			continue
		}
		var exprs []string
		for _, o := range r.occasions {
			if slices.Contains(o.steps, s) {
				exprs = append(exprs, o.expr()...)
			}
		}
		switch {
		case len(exprs) == 0:
		case len(exprs) == 1:
			r.cond(exprs[0])(s)
		default:
			for i, e := range exprs {
				if strings.Contains(e, "&&") {
					exprs[i] = "(" + e + ")"
				}
			}
			r.cond("(" + strings.Join(exprs, " || ") + ")")(s)
		}
	}
}

// expr are expressions of which one is true on an occasion.
func (o *occasion) expr() []string {
	var out []string
	for _, e := range o.t.events {
		x := "github.event_name == '" + e + "'"
		switch {
		case e == "push" && len(o.t.tags) > 0:
			for _, g := range o.t.tags {
				out = append(out, "startsWith(github.ref, "+exprString("refs/tags/"+strings.TrimRight(g, "*"))+")")
			}
			if len(o.t.branches["push"]) == 0 {
				continue
			}
			fallthrough
		case e == "push" && len(o.t.branches["push"]) > 0:
			x += " && " + onBranches(o.t.branches["push"], false)
		case e == "push" && len(o.t.ignored["push"]) > 0:
			x += " && " + onBranches(o.t.ignored["push"], true)
		case e == "pull_request" && len(o.t.branches[e]) == 1:
			x += " && github.base_ref == " + exprString(o.t.branches[e][0])
		case e == "schedule" && len(o.t.crons) == 1:
			x += " && github.event.schedule == " + exprString(o.t.crons[0])
		}
		out = append(out, x)
	}
	return out
}

var (
	refIs   = regexp.MustCompile(`github\.ref == 'refs/heads/([^']+)'`)
	refLike = regexp.MustCompile(`startsWith\(github\.ref, 'refs/heads/([^']+)'\)`)
	refOnly = regexp.MustCompile(`^\(?(?:(?:github\.ref == 'refs/heads/[^']+'|startsWith\(github\.ref, 'refs/heads/[^']+'\))(?: \|\| )?)+\)?$`)
	tagOnly = regexp.MustCompile(`^startsWith\(github\.ref, 'refs/tags/([^']*)'\)$`)
	eventIs = regexp.MustCompile(`^github\.event_name == '(\w+)'$`)
	eventNo = regexp.MustCompile(`^github\.event_name != '(\w+)'$`)
)

// conditions turns a condition that all steps share into a trigger, where there
// is one that says the same and none was asked for, and adds the events that
// conditions speak of.
func (r *reader) conditions(asked bool) {
	t := &r.p.on
	shared := slices.Clone(r.steps[0].conds)
	for _, s := range r.steps {
		if s.status != "" && len(s.conds) == 0 {
			continue
		}
		shared = slices.DeleteFunc(shared, func(c string) bool { return !slices.Contains(s.conds, c) })
	}
	drop := func(c string) {
		for _, s := range r.steps {
			s.conds = slices.DeleteFunc(s.conds, func(x string) bool { return x == c })
		}
	}
	for _, c := range shared {
		only := !asked && len(t.events) == 0
		switch {
		case refOnly.MatchString(c) && (only || len(t.events) == 1 && t.events[0] == "push" && len(t.branches["push"]) == 0 && len(t.tags) == 0 &&
			len(t.ignored["push"]) == 0):
			t.add("push")
			for _, m := range refIs.FindAllStringSubmatch(c, -1) {
				t.branch("push", m[1])
			}
			for _, m := range refLike.FindAllStringSubmatch(c, -1) {
				t.branch("push", m[1]+"**")
			}
			drop(c)
		case tagOnly.MatchString(c) && (only || len(t.events) == 1 && t.events[0] == "push" && len(t.branches["push"]) == 0 && len(t.tags) == 0):
			t.add("push")
			t.tags = append(t.tags, tagOnly.FindStringSubmatch(c)[1]+"*")
			drop(c)
		case eventIs.MatchString(c) && only:
			e := eventIs.FindStringSubmatch(c)[1]
			if e == "schedule" {
				r.problem("schedule", "when is not said", "say: every night at 03:00 UTC")
				continue
			}
			t.add(e)
			if e == "release" {
				r.addType(t, "release", "published")
			}
			drop(c)
		case eventNo.MatchString(c) && only:
			e := eventNo.FindStringSubmatch(c)[1]
			for _, x := range []string{"push", "pull_request"} {
				if x != e {
					t.add(x)
				}
			}
			drop(c)
		}
	}
	for _, s := range r.steps {
		for _, c := range s.conds {
			if m := eventIs.FindStringSubmatch(c); m != nil && !slices.Contains(t.events, m[1]) {
				if len(t.events) == 0 {
					if m[1] == "push" || m[1] == "pull_request" {
						continue
					}
					t.add("push")
					t.add("pull_request")
				}
				if m[1] == "schedule" {
					r.problem(s.text, "it is to run on a schedule, and none is given", "say: every night at 03:00 UTC")
					continue
				}
				t.add(m[1])
				if m[1] == "release" {
					r.addType(t, "release", "published")
				}
			}
			if (refOnly.MatchString(c) || strings.HasPrefix(c, "github.ref == format")) && len(t.events) > 0 && !slices.ContainsFunc(t.events,
				func(e string) bool { return e != "pull_request" && e != "release" }) {
				r.problem(s.text, "on pull requests and releases the branch is never that one", "say: on pushes to main, …")
			}
			if tagOnly.MatchString(c) && len(t.events) > 0 && !slices.Contains(t.events, "push") && !slices.Contains(t.events, "release") &&
				!slices.Contains(t.events, "workflow_dispatch") {
				t.add("push")
				t.tags = append(t.tags, tagOnly.FindStringSubmatch(c)[1]+"*")
			} else if tagOnly.MatchString(c) && slices.Contains(t.events, "push") && len(t.branches["push"]) > 0 && len(t.tags) == 0 {
				t.tags = append(t.tags, tagOnly.FindStringSubmatch(c)[1]+"*")
			}
			if strings.Contains(c, "event.pull_request.") && len(t.events) > 0 && !slices.Contains(t.events, "pull_request") {
				r.problem(s.text, "its condition is about pull requests, and the workflow does not run on any", "say: on pull requests, …")
			}
		}
	}
}

// joinDirs moves paths of artifacts below the directory that their clause names.
func (r *reader) joinDirs() {
	for _, s := range r.steps {
		if s.uses == "" || s.dir == "" {
			continue
		}
		for i, kv := range s.with {
			if kv[0] != "path" {
				continue
			}
			var out []string
			for p := range strings.SplitSeq(kv[1], "\n") {
				if !strings.HasPrefix(p, s.dir+"/") && !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "~") && p != s.dir {
					p = s.dir + "/" + p
				}
				out = append(out, p)
			}
			s.with[i][1] = strings.Join(out, "\n")
		}
		s.dir = ""
	}
}

// several says whether a job's steps run more than once, side by side.
func (j *job) several() bool {
	for _, v := range j.versions {
		if len(v.values) > 1 {
			return true
		}
	}
	return len(j.os) > 1 || len(j.axes) > 0
}

// arrange makes jobs of the steps.
func (r *reader) arrange() {
	var jobs []*job
	switch {
	case len(r.explicit) > 0:
		jobs = r.explicitJobs()
	default:
		jobs = r.stages()
	}
	jobs = r.split(jobs)
	jobs = r.reports(jobs)
	if len(jobs) == 0 {
		return
	}
	caches := r.caches()
	taken := map[string]bool{}
	for _, j := range jobs {
		if j.id == "" {
			j.id = "build"
			if len(jobs) > 1 {
				j.id = idOf(j)
			}
		}
		id := j.id
		for n := 2; taken[j.id]; n++ {
			j.id = id + "-" + strconv.Itoa(n)
		}
		taken[j.id] = true
		r.dress(j, jobs, caches)
	}
	for _, j := range jobs {
		if j.environment == "?approval" {
			j.environment = "production"
			r.p.notes = append(r.p.notes, "the environment that has to be approved is taken to be production")
			r.approvalNote("production")
		}
	}
	r.p.jobs = jobs
}

// idOf names a job by what it does.
func idOf(j *job) string {
	for _, s := range j.steps {
		if s.notify {
			return "notify"
		}
		if s.purpose != "" {
			return s.purpose
		}
		if p := purposeOfCommand(s.command); p != "" && len(j.steps) == 1 {
			return p
		}
	}
	return jobID(j.steps[0].command + j.steps[0].name)
}

// explicitJobs are the jobs that the request speaks of as jobs.
func (r *reader) explicitJobs() []*job {
	var jobs []*job
	var head *job
	for _, s := range r.steps {
		if s.job == nil {
			if head == nil {
				head = &job{}
				jobs = append(jobs, head)
			}
			head.steps = append(head.steps, s)
			continue
		}
		s.job.steps = append(s.job.steps, s)
		if !slices.Contains(jobs, s.job) {
			jobs = append(jobs, s.job)
		}
	}
	for i, j := range jobs {
		if j.needsPrev && i > 0 {
			j.needs = append(j.needs, jobs[i-1])
		}
		if j.needsAll {
			for _, k := range jobs[:i] {
				if !slices.Contains(j.needs, k) {
					j.needs = append(j.needs, k)
				}
			}
		}
		for _, name := range j.needsNames {
			var found *job
			for _, k := range jobs {
				if k == j {
					continue
				}
				if k.id == jobID(name) || k.id == "" && (idOf(k) == name || purposeWord[name] != "" && idOf(k) == purposeWord[name]) ||
					purposeWord[name] != "" && k.purpose == purposeWord[name] {
					found = k
					break
				}
			}
			if found == nil {
				for _, k := range jobs {
					if k != j && slices.ContainsFunc(k.steps, func(s *step) bool {
						return purposeWord[name] != "" && (s.purpose == purposeWord[name] || purposeOfCommand(s.command) == purposeWord[name])
					}) {
						found = k
					}
				}
			}
			if found == nil {
				r.problem(name, "there is no such job",
					"name the jobs: a job called build that runs `make`, and a job called test that needs build and runs `make test`")
				continue
			}
			if !slices.Contains(j.needs, found) {
				j.needs = append(j.needs, found)
			}
		}
		if j.explicit && len(j.steps) == 0 {
			r.problem(j.id, "the job does nothing", "say what it runs")
		}
		// What was no job of its own comes first.
		if head != nil && j != head && len(j.needs) == 0 && head.steps[0] == r.steps[0] {
			j.needs = append(j.needs, head)
		}
	}
	return jobs
}

// stages makes jobs of groups of steps: a group whose steps run side by side has a
// job for each, and what comes after waits for all of them.
func (r *reader) stages() []*job {
	var jobs, last []*job
	var linear *job
	chain := func(s *step) {
		j := &job{steps: []*step{s}, needs: last}
		jobs, last, linear = append(jobs, j), []*job{j}, nil
	}
	for i := 0; i < len(r.steps); {
		g := r.steps[i].group
		k := i
		for k < len(r.steps) && r.steps[k].group == g {
			k++
		}
		members := r.steps[i:k]
		i = k
		sentence := members[0].sentence
		serial := r.serial[sentence]
		parallel := r.parallel[g]
		if r.separate[sentence] && !serial {
			groups := map[int]bool{}
			for _, s := range r.steps {
				if s.sentence == sentence {
					groups[s.group] = true
				}
			}
			if serial = len(groups) > 1; !serial {
				parallel = true
			}
		}
		switch {
		case serial && !r.parallel[g]:
			for _, s := range members {
				if b := s.branch; b != 0 && len(jobs) > 0 && jobs[len(jobs)-1].steps[0].branch == b {
					jobs[len(jobs)-1].steps = append(jobs[len(jobs)-1].steps, s)
					continue
				}
				if s.status != "" && s.of == nil && len(jobs) > 0 && s.status == "failure" && !s.afterAll {
					jobs[len(jobs)-1].steps = append(jobs[len(jobs)-1].steps, s)
					continue
				}
				chain(s)
			}
		case parallel && len(members) > 1:
			before := last
			var now []*job
			dirs := map[string]bool{}
			for _, s := range members {
				dirs[s.dir] = true
			}
			places := len(dirs) // what is done in one directory stays together, if there are others
			for _, s := range members {
				if s.status == "failure" && len(now) > 0 && !s.afterAll {
					now[len(now)-1].steps = append(now[len(now)-1].steps, s)
					continue
				}
				if b := s.branch; b != 0 && len(now) > 0 && now[len(now)-1].steps[0].branch == b || places > 1 && len(now) > 0 && s.dir != "" &&
					now[len(now)-1].steps[0].dir == s.dir {
					now[len(now)-1].steps = append(now[len(now)-1].steps, s)
					continue
				}
				now = append(now, &job{steps: []*step{s}, needs: before})
			}
			jobs, last, linear = append(jobs, now...), now, nil
		default:
			if linear == nil {
				linear = &job{needs: last}
				jobs = append(jobs, linear)
				last = []*job{linear}
			}
			linear.steps = append(linear.steps, members...)
		}
	}
	return jobs
}

// split gives steps that deploy to an environment, or that must not run once for
// every cell of a matrix, a job of their own.
func (r *reader) split(jobs []*job) []*job {
	many := r.base.several()
	var out []*job
	after := map[*job]*job{}
	for _, j := range jobs {
		for i, n := range j.needs {
			if a := after[n]; a != nil {
				j.needs = slices.Clone(j.needs)
				j.needs[i] = a
			}
		}
		cur := &job{}
		*cur = *j
		cur.steps = nil
		out = append(out, cur)
		for i, s := range j.steps {
			apart := false
			switch {
			case len(cur.steps) == 0:
			case s.environment != "" && s.environment != cur.environment:
				apart = true
			case many && !cur.explicit && cur.environment == "" && deploying(s) && s.status != "always" && !(s.notify && s.status == "failure") &&
				!slices.ContainsFunc(cur.steps, deploying) && i > 0 && !onlyCell(s):
				apart = true
			}
			if apart {
				next := &job{needs: []*job{cur}}
				if s.download || strings.HasPrefix(s.uses, "actions/download") {
					next.needs = []*job{cur}
				}
				// A download just before belongs to what it is downloaded for.
				if n := len(cur.steps); n > 1 && cur.steps[n-1].download {
					next.steps = append(next.steps, cur.steps[n-1])
					cur.steps = cur.steps[:n-1]
				}
				cur = next
				out = append(out, cur)
				cur.tolerate = false
				if many {
					cur.maxParallel = "-"
				}
			}
			if s.environment != "" {
				cur.environment = s.environment
			}
			cur.steps = append(cur.steps, s)
		}
		if cur != out[len(out)-1] {
			continue
		}
		after[j] = cur
	}
	// needs still name the jobs as they were.
	was := map[*job]*job{}
	k := 0
	for _, j := range jobs {
		for k < len(out) && (len(out[k].steps) == 0 || !slices.Contains(j.steps, out[k].steps[0])) {
			k++
		}
		if k < len(out) {
			was[j] = out[k]
		}
	}
	for _, j := range out {
		j.needs = slices.Clone(j.needs)
		for i, n := range j.needs {
			if a := after[n]; a != nil {
				j.needs[i] = a
			} else if w := was[n]; w != nil {
				j.needs[i] = w
			}
		}
	}
	return out
}

// onlyCell says whether a step is bound to one cell of a matrix already.
func onlyCell(s *step) bool {
	return slices.ContainsFunc(s.conds, func(c string) bool {
		return strings.HasPrefix(c, "runner.os ==") || strings.HasPrefix(c, "matrix.")
	})
}

// reports moves steps that watch the whole workflow behind all jobs.
func (r *reader) reports(jobs []*job) []*job {
	if len(jobs) < 2 {
		return jobs
	}
	var moved []*step
	for _, j := range jobs {
		j.steps = slices.DeleteFunc(j.steps, func(s *step) bool {
			m := s.status != "" && (s.afterAll && s.of == nil || s.notify && s.of == nil && len(j.steps) == 1)
			if m {
				moved = append(moved, s)
			}
			return m
		})
	}
	var gone []*job
	jobs = slices.DeleteFunc(jobs, func(j *job) bool {
		if len(j.steps) == 0 {
			gone = append(gone, j)
		}
		return len(j.steps) == 0
	})
	for _, j := range jobs {
		j.needs = slices.DeleteFunc(j.needs, func(n *job) bool { return slices.Contains(gone, n) })
	}
	if len(moved) > 0 {
		jobs = append(jobs, &job{steps: moved, needs: slices.Clone(jobs)})
	}
	return jobs
}

// dress gives a job what holds for all jobs, and takes up from its steps what they share.
func (r *reader) dress(j *job, jobs []*job, caches []*step) {
	plainJob := j.maxParallel == "-" || !j.several() && len(jobs) > 1 && slices.IndexFunc(j.steps, func(s *step) bool { return !s.notify }) < 0
	j.maxParallel = ""
	if !plainJob {
		if len(j.os) == 0 {
			j.os = r.base.os
		}
		j.axes = r.base.axes
		j.excludes = r.base.excludes
		j.noFailFast = r.base.noFailFast
		j.maxParallel = r.base.maxParallel
		j.tolerable = r.base.tolerable
		j.versions = append(j.versions, r.base.versions...)
		j.services = r.base.services
		if j.container == "" {
			j.container = r.base.container
		}
	} else {
		// It needs the tools of its own commands, in one version.
		for _, v := range r.base.versions {
			for _, s := range j.steps {
				if t := r.c.g.lex.toolOf(s.command); t != nil && t.language == v.lang.name {
					j.versions = append(j.versions, &version{v.lang, v.values[len(v.values)-1:]})
					break
				}
			}
		}
	}
	j.checkout = r.base.checkout
	runs := 0
	for _, s := range j.steps {
		if s.uses == "" && !s.notify {
			runs++
		}
	}
	// Steps whose failure others speak of have an id.
	for _, s := range j.steps {
		if s.of == nil || s.status != "failure" {
			continue
		}
		if !slices.Contains(j.steps, s.of) {
			s.of = nil
			continue
		}
		others := 0
		for _, x := range j.steps {
			if x == s {
				break
			}
			if x != s.of && x.status == "" {
				others++
			}
		}
		if others > 0 {
			if s.of.id == "" {
				s.of.id = stepID(j, s.of)
			}
			s.conds = append([]string{"steps." + s.of.id + ".outcome == 'failure'"}, s.conds...)
		}
		s.of = nil
	}
	r.hoist(j)
	r.jobTimeout(j, runs)
	if runs > 0 && len(caches) > 0 && !plainJob {
		for _, c := range caches {
			clone := *c
			j.steps = append([]*step{&clone}, j.steps...)
		}
	}
	if slices.ContainsFunc(j.steps, func(s *step) bool { return strings.HasPrefix(s.uses, "actions/deploy-pages") }) {
		j.permissions = [][2]string{{"contents", "read"}, {"pages", "write"}, {"id-token", "write"}}
		j.environment = "github-pages"
	}
}

func stepID(j *job, s *step) string {
	id := s.purpose
	if id == "" {
		id = purposeOfCommand(s.command)
	}
	if id == "" {
		id = jobID(s.command)
	}
	for n := 2; slices.ContainsFunc(j.steps, func(x *step) bool { return x.id == id }); n++ {
		id = fmt.Sprintf("%s-%d", strings.TrimRight(id, "-0123456789"), n)
	}
	return id
}

// hoist makes conditions of all of a job's steps the job's.
func (r *reader) hoist(j *job) {
	shared := slices.Clone(j.steps[0].conds)
	status := j.steps[0].status
	for _, s := range j.steps {
		shared = slices.DeleteFunc(shared, func(c string) bool { return !slices.Contains(s.conds, c) })
		if s.status != status || s.of != nil {
			status = ""
		}
	}
	// What a step's condition reads of the machine or the matrix a job's cannot.
	shared = slices.DeleteFunc(shared, func(c string) bool {
		return strings.HasPrefix(c, "runner.") || strings.HasPrefix(c, "matrix.") || strings.HasPrefix(c, "hashFiles") || strings.HasPrefix(c, "steps.")
	})
	lonely := len(j.needs) > 0 || j.environment != "" || len(j.steps) > 1
	if len(shared) > 0 && (lonely || len(r.p.jobs) == 0) {
		j.conds = shared
		for _, s := range j.steps {
			s.conds = slices.DeleteFunc(s.conds, func(c string) bool { return slices.Contains(shared, c) })
		}
	}
	if status != "" && len(j.needs) > 0 {
		j.status = status
		for _, s := range j.steps {
			s.status = ""
		}
	}
}

func (r *reader) jobTimeout(j *job, runs int) {
	minutes, all := 0, true
	for _, s := range j.steps {
		if s.uses != "" || s.status != "" {
			continue
		}
		if s.minutes == 0 || minutes != 0 && s.minutes != minutes {
			all = false
		}
		minutes = max(minutes, s.minutes)
	}
	if all && minutes > 0 {
		j.timeout = strconv.Itoa(minutes)
		for _, s := range j.steps {
			s.minutes = 0
		}
	}
}
