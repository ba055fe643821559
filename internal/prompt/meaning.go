package prompt

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// meanings has what each kind of fragment adds to the plan, by the part of the
// rule's name before the dot.
var meanings map[string]func(*reader, *node)

func init() { // they call each other
	meanings = map[string]func(*reader, *node){
		"aside":   (*reader).readAside,
		"isdraft": (*reader).readIsDraft, "skipstep": (*reader).readSkipStep,
		"command": (*reader).readCommand, "purpose": (*reader).readPurpose, "by": (*reader).readBy, "gloss": (*reader).readGloss, "say": (*reader).readSay,
		"surepass": (*reader).readSurePass, "allow": (*reader).readAllow, "tool": (*reader).readTool, "title": (*reader).readTitle,
		"title2": (*reader).readTitle,
		"lead":   (*reader).readLead, "named": (*reader).readLead, "checkout": (*reader).readCheckout,
		"onpush": (*reader).readOn, "on": (*reader).readOn, "merged": (*reader).readMerged, "otherrun": (*reader).readOtherRun,
		"sched": (*reader).readSchedule,
		"zone":  (*reader).readZone, "paths": (*reader).readPaths, "ignore": (*reader).readPaths,
		"onlyon": (*reader).readOnlyOn, "other": (*reader).readOtherBranches, "noton": (*reader).readNotOn,
		"onlyev": (*reader).readOnlyEvent, "notev": (*reader).readNotEvent,
		"draft":   (*reader).readDraft,
		"message": (*reader).readMessage, "label": (*reader).readLabel, "actor": (*reader).readActor, "fork": (*reader).readFork,
		"ifinput": (*reader).readIfInput,
		"exists":  (*reader).readExists, "onlyos": (*reader).readOnlyOS, "onlyver": (*reader).readOnlyVersion,
		"onfail": (*reader).readOnFail, "onpass": (*reader).readOnPass, "always": (*reader).readAlways, "tolerate": (*reader).readTolerate,
		"timeout": (*reader).readTimeout, "retry": (*reader).readRetry, "dir": (*reader).readDir, "env": (*reader).readEnv, "secret": (*reader).readSecret,
		"assecret": (*reader).readAsSecret, "service": (*reader).readService, "version": (*reader).readVersion, "os": (*reader).readOS,
		"selfhosted": (*reader).readSelfHosted,
		"exclude":    (*reader).readExclude, "failfast": func(r *reader, _ *node) { r.base.noFailFast = true }, "maxparallel": func(r *reader,
			n *node) {
			r.base.maxParallel = strconv.Itoa(r.number(n.get("n")))
		},
		"heading": (*reader).readHeading, "flaky": (*reader).readFlaky, "atfirst": (*reader).readAtFirst, "mode": (*reader).readMode,
		"svcmatrix": (*reader).readServiceMatrix, "features": (*reader).readFeatures, "login": (*reader).readLogin, "before": (*reader).readBefore,
		"parens":   (*reader).readParens,
		"notallow": (*reader).readNotAllow, "deps": (*reader).readDepsFile, "does": (*reader).readDoes,
		"inputopt": (*reader).readInputOpt, "nowhere": (*reader).readNowhere,
		"passes": (*reader).readPasses, "dirs": (*reader).readDirs,
		"values": (*reader).readValues, "container": (*reader).readContainer, "shell": (*reader).readShell, "artifact": (*reader).readArtifact,
		"keep":     (*reader).readKeep,
		"download": (*reader).readDownload, "cache": func(r *reader, n *node) { r.cacheNodes = append(r.cacheNodes, n) },
		"parallel": (*reader).readParallel, "serial": (*reader).readSerial,
		"separate": (*reader).readSeparate, "job": (*reader).readJob, "needs": (*reader).readNeeds, "afterboth": (*reader).readAfterBoth,
		"concurrency": (*reader).readConcurrency, "environment": (*reader).readEnvironment, "approval": (*reader).readApproval,
		"to":    (*reader).readDestination,
		"input": (*reader).readInput, "useinput": (*reader).readUseInput, "permission": (*reader).readPermission, "notify": (*reader).readNotify,
		"pages": (*reader).readPages,
	}
}

// ---- steps ----

func (r *reader) readCommand(n *node) {
	s := &step{command: r.commandOf(n.get("c")), verb: n.has("v"), text: r.c.text(n.get("c"))}
	r.add(s, n)
	if len(r.heading) > 0 {
		r.headed = append(r.headed, s)
	}
}

// readAside is what a request tells besides: nothing depends on it, and whoever asks is told that it was left out.
func (r *reader) readAside(n *node) {
	if n.has("t") {
		for _, k := range n.all("t") {
			if t := r.c.g.lex.toolNamed(r.word(k)); t != nil {
				r.tools = append(r.tools, t)
			}
		}
		return
	}
	r.p.notes = append(r.p.notes, "nothing was made of “"+r.c.text(n)+"”")
}

var purposes = []string{"test", "build", "lint", "format", "deps", "bench", "release", "docs", "check", "verify", "typecheck", "deploy",
	"publish", "clean", "install", "audit", "coverage", "migrate", "plan"}

// purposeOf is what a Purpose is for, and the tool that it names.
func (r *reader) purposeOf(n *node) (what, tool string) {
	if n == nil {
		return "", ""
	}
	for _, k := range n.kids {
		if slices.Contains(purposes, k.name) {
			what = k.name
			if t := k.get("t"); t != nil {
				tool = r.word(t)
			}
			if what == "build" {
				if w := r.words(k); strings.Contains(w, "docker image") || strings.Contains(w, "container image") || strings.HasSuffix(w, "the image") ||
					strings.Contains(w, "docker container") {
					tool = "docker"
				}
			}
		}
	}
	return what, tool
}

func (r *reader) readPurpose(n *node) {
	what, tool := r.purposeOf(n.get("p"))
	if tl := n.get("tl"); n.name == "purpose.bare" && r.c.g.lex.programs[r.word(tl)] == nil { // "clippy": its one command
		for _, does := range r.c.g.lex.toolNamed(r.word(tl)).does {
			r.add(&step{command: does, text: r.c.text(tl)}, n)
			return
		}
	}
	if tl := n.get("tl"); tl != nil { // "run cypress with npx cypress run"
		r.add(&step{purpose: "tool", tool: r.word(tl), text: r.c.text(tl), verb: true}, n)
		return
	}
	if r.glossed && r.segment == len(r.steps) && len(r.before()) > 0 {
		if direct, _, step := r.follows(); !direct || !step {
			return // "run make all to build and test"
		}
	}
	s := &step{purpose: what, tool: tool, verb: true, text: r.c.text(n.get("p"))}
	if f := strings.Fields(s.text); len(f) == 2 && programNamed(r, f[0], f[1]) && purposeWord[f[1]] != "" && f[1] != "tests" {
		s.command, s.purpose, s.tool = s.text, "", ""
	}
	// "build, lint and test" share their verb, if they are one word each.
	if p := n.get("p"); p.end-p.start <= 2 && !n.has("v") {
		s.verb = false
	}
	r.add(s, n)
}

// programNamed says whether two words are a command as it is written.
func programNamed(r *reader, program, sub string) bool {
	p := r.c.g.lex.programs[program]
	return p != nil && (program == "rails" || program == "gradle" || p.subs[sub])
}

func (r *reader) readBy(n *node) {
	c := n.get("c")
	if b := r.before(); c.end == c.start+1 && r.c.ts[c.start].kind == word && len(b) > 0 && b[len(b)-1].command == "" {
		// "with make" names a tool rather than a command.
		if t := r.c.g.lex.toolNamed(r.word(c)); t != nil && t.does[b[len(b)-1].purpose] != "" {
			r.useTool(t)
			return
		}
	}
	if b := r.before(); len(b) > 0 {
		last := b[len(b)-1]
		if words := strings.Fields(r.commandOf(c)); len(words) > 1 && slices.Contains(words[1:], last.command) {
			last.command = r.commandOf(c) // "run eslint via npx eslint src"
			return
		}
		if last.command == "" && last.uses == "" && last.purpose != "" {
			last.command = r.commandOf(c)
			last.tool = ""
			return
		}
		if strings.HasPrefix(r.c.text(n), "(") && last.command == r.commandOf(c) {
			return
		}
	}
	s := &step{command: r.commandOf(c), text: r.c.text(c)}
	r.add(s, n)
	if len(r.heading) > 0 {
		r.headed = append(r.headed, s)
	}
}

// readGloss is what a command is said to be good for: it adds nothing.
func (r *reader) readGloss(n *node) {
	if n.name == "gloss.how" {
		return
	}
	if r.segment == len(r.steps) {
		if _, _, more := r.follows(); !more {
			if what, tool := r.purposeOf(n.get("p")); what != "" { // "I want to test my crate"
				r.add(&step{purpose: what, tool: tool, text: r.c.text(n.get("p"))}, n)
				return
			}
		}
		if what, tool := r.purposeOf(n.get("p")); what != "" {
			// "to deploy, run ./deploy.sh" names its command; "to test and then run x" does not
			if direct, seps, _ := r.follows(); direct || len(seps) == 1 && seps[0] == "comma" {
				if r.at == 0 || r.glossPrefix() {
					return
				}
			}
			r.add(&step{purpose: what, tool: tool, text: r.c.text(n.get("p"))}, n)
		}
		return
	}
	r.glossed = true
}

func (r *reader) glossPrefix() bool {
	prev := r.nodes[r.at-1].name
	return isSeparator(prev)
}

func (r *reader) readSay(n *node) {
	r.add(&step{command: "echo " + shellQuote(literalCommand(r.plain(n.get("t")))), verb: true}, n)
}

func (r *reader) stepOf(n *node) *step {
	if c := n.get("c"); c != nil {
		return &step{command: r.commandOf(c), text: r.c.text(c), verb: true}
	}
	what, tool := r.purposeOf(n.get("p"))
	return &step{purpose: what, tool: tool, text: r.c.text(n.get("p")), verb: true}
}

func (r *reader) readSurePass(n *node) {
	if n.has("b") {
		r.add(&step{purpose: "build", tool: r.word(n.get("t")), text: r.c.text(n), verb: true}, n)
		return
	}
	r.add(r.stepOf(n.get("s")), n)
}

// readPasses is "after a successful make test".
func (r *reader) readPasses(n *node) {
	r.subject(n, true)
	r.newGroup()
	r.afterThen = true
}

func (r *reader) readAllow(n *node) {
	s := r.stepOf(n.get("s"))
	if next := r.at + 1; next < len(r.nodes) && r.nodes[next].name == "colon" { // "mypy may fail: mypy src"
		r.pending = append(r.pending, modifier{name: "tolerate", tight: true, sentence: r.sentence, apply: func(s *step) { s.tolerate = true }})
		return
	}
	for _, old := range r.steps {
		if old.command != "" && old.command == s.command || s.command == "" && old.purpose == s.purpose && s.purpose != "" {
			old.tolerate = true
			return
		}
	}
	s.tolerate = true
	if b := r.before(); len(b) == 1 && !b[0].verb && b[0].command != "" && r.at > 0 && r.nodes[r.at-1].name == "and" {
		b[0].tolerate = true // "make lint and make fmt can fail"
	}
	r.add(s, n)
}

func (r *reader) readTool(n *node) {
	t := r.c.g.lex.toolNamed(r.word(n.get("t")))
	if t == nil {
		return
	}
	if strings.HasPrefix(n.name, "tool.") {
		r.tools = append(r.tools, t)
		return
	}
	r.useTool(t)
}

// useTool gives the purposes of this sentence their tool.
func (r *reader) useTool(t *tool) {
	r.tools = append(r.tools, t)
	unset := slices.ContainsFunc(r.before(), func(s *step) bool { return s.command == "" && s.uses == "" && s.tool == "" })
	for _, s := range r.before() {
		// "linted with flake8 and tested with pytest": each has its own
		if s.command == "" && s.uses == "" && (s.tool == "" || !unset && t.does[s.purpose] != "") {
			s.tool = t.words[0]
		}
	}
}

func (r *reader) readTitle(n *node) {
	if t := n.get("t"); t != nil {
		if tool := r.c.g.lex.toolNamed(r.word(t)); tool != nil {
			r.tools = append(r.tools, tool)
		}
	}
}

func (r *reader) readLead(n *node) {
	if name := n.get("name"); name != nil {
		r.p.name = r.plain(name)
	}
}

func (r *reader) readCheckout(n *node) {
	o := n.get("opt")
	if o == nil {
		return
	}
	switch w := r.words(o); {
	case strings.Contains(w, "submodules") || w == "recursively":
		r.base.checkout = append(r.base.checkout, [2]string{"submodules", "recursive"})
	case strings.Contains(w, "lfs"):
		r.base.checkout = append(r.base.checkout, [2]string{"lfs", "true"})
	default:
		r.base.checkout = append(r.base.checkout, [2]string{"fetch-depth", "0"})
	}
}

// ---- triggers ----

// branchesOf are the branches of a Branches node; "" is the default branch.
func (r *reader) branchesOf(n *node) []string {
	var out []string
	if n == nil {
		return nil
	}
	for _, k := range n.kids {
		switch k.name {
		case "b":
			out = append(out, r.plain(k))
		case "pb":
			b := strings.TrimRight(r.plain(k), "*")
			out = append(out, b+"**")
		case "default":
			out = append(out, "")
		case "rel":
			out = append(out, "release/**")
			r.p.notes = append(r.p.notes, "release branches are taken to be called release/…")
		case "feat":
			out = append(out, "feature/**")
			r.p.notes = append(r.p.notes, "feature branches are taken to be called feature/…")
		}
	}
	return out
}

// named are branches as triggers have them: "" becomes main.
func (r *reader) named(b []string) []string {
	for i := range b {
		if b[i] == "" {
			b[i] = "main"
			r.p.notes = append(r.p.notes, "the default branch is taken to be main")
		}
	}
	return b
}

// event adds what an Ev node says to t.
func (r *reader) event(t *triggers, n *node) {
	for _, k := range n.kids {
		switch k.name {
		case "push":
			t.add("push")
			t.branch("push", r.named(r.branchesOf(k.get("to")))...)
			for _, x := range r.branchesOf(k.get("not")) {
				r.ignoreBranch(t, x)
			}
		case "other":
			t.add("push")
			for _, x := range r.named(r.branchesOf(k.get("not"))) {
				r.ignoreBranch(t, x)
			}
		case "pull":
			t.add("pull_request")
			t.branch("pull_request", r.named(r.branchesOf(k.get("to")))...)
			for _, x := range k.all("t") {
				r.prType(t, r.word(x))
			}
		case "tag":
			t.add("push")
			pattern := k.get("p")
			if v := k.get("v"); v != nil && r.c.isClass("vtags", v.start) { // "v-tags"
				t.tags = append(t.tags, "v*")
				break
			}
			if pattern == nil {
				pattern = k.get("v")
			}
			switch {
			case pattern != nil:
				g := r.plain(pattern)
				if m := exampleTag.FindStringSubmatch(g); m != nil && tagsLike.MatchString(r.words(k)) {
					g = m[1] + "*" + strings.Repeat(".*", strings.Count(m[2], ".")) // one that stands for all of its kind
				}
				if !strings.ContainsAny(g, "*?") && !regexp.MustCompile(`\d\.\d`).MatchString(g) {
					g += "*"
				}
				t.tags = append(t.tags, g)
			case strings.Contains(r.words(k), "version"):
				t.tags = append(t.tags, "v*")
			default:
				t.tags = append(t.tags, "*")
			}
		case "labelled":
			r.labelled(t, k)
		case "issueby":
			t.add("issues")
			for _, x := range k.all("it") {
				r.addType(t, "issues", issueType[strings.TrimSuffix(r.word(x), "s")])
			}
		case "release":
			t.add("release")
			typ := "published"
			if k.has("pre") {
				typ = "prereleased"
			}
			switch r.word(k.get("t")) {
			case "created":
				typ = "created"
			case "edited":
				typ = "edited"
			case "prereleased":
				typ = "prereleased"
			case "released":
				typ = "released"
			}
			r.addType(t, "release", typ)
		case "manual":
			t.add("workflow_dispatch")
		case "merge":
			t.add("merge_group")
		case "issue":
			t.add("issues")
			if it := k.get("it"); it != nil {
				r.addType(t, "issues", r.word(it))
			} else {
				r.addType(t, "issues", "opened")
			}
		case "comment":
			t.add("issue_comment")
			r.addType(t, "issue_comment", "created")
		case "call":
			t.add("workflow_call")
		case "dispatch":
			t.add("repository_dispatch")
			if typ := k.get("type"); typ != nil {
				r.addType(t, "repository_dispatch", r.plain(typ))
			}
		case "sched":
			r.schedule(t, k)
		}
	}
}

// issueType is what GitHub calls what people do with issues.
var issueType = map[string]string{"open": "opened", "create": "opened", "file": "opened", "raise": "opened", "label": "labeled", "close": "closed",
	"edit": "edited", "reopen": "reopened", "assign": "assigned"}

// labelled is that a label is put on an issue or a pull request.
func (r *reader) labelled(t *triggers, n *node) {
	event := "issues"
	if n.has("is") || n.has("on") {
		event = "pull_request"
	}
	t.add(event)
	r.addType(t, event, "labeled")
}

var (
	exampleTag = regexp.MustCompile(`^(v?|[\w-]+[-/@]v?)(\d+(?:\.\d+)+)$`)
	tagsLike   = regexp.MustCompile(`\b(?:like|such as|of the form|matching|that match|matches)\b`)
)

func (r *reader) ignoreBranch(t *triggers, b string) {
	if t.ignored == nil {
		t.ignored = map[string][]string{}
	}
	t.ignored["push"] = append(t.ignored["push"], b)
}

func (r *reader) addType(t *triggers, event, typ string) {
	if t.types == nil {
		t.types = map[string][]string{}
	}
	if !slices.Contains(t.types[event], typ) {
		t.types[event] = append(t.types[event], typ)
	}
}

func (r *reader) prType(t *triggers, w string) {
	switch w {
	case "labelled":
		w = "labeled"
	case "updated", "synchronised", "synchronized":
		w = "synchronize"
	case "merged":
		w = "closed"
	}
	r.addType(t, "pull_request", w)
}

// occasion records when something is to happen, and what.
func (r *reader) occasion(n *node, o *occasion) {
	o.text = r.c.text(n)
	r.occasions = append(r.occasions, o)
	r.leading()
	before := r.before()
	inSegment := r.segment < len(r.steps)
	m := modifier{name: "on", o: o, apply: func(*step) {}}
	direct, seps, step := r.follows()
	only := strings.HasPrefix(n.name, "on.only")
	switch {
	case inSegment && !(r.endsWithColon() && step) && only && len(r.steps) > 1:
		which, ok := r.conditioned(r.c.text(n))
		if !ok {
			return
		}
		o.steps = append(o.steps, which...)
		for _, s := range which {
			s.modified = true
		}
	case inSegment && !(r.endsWithColon() && step):
		if len(r.steps) == len(r.coordinated()) || r.sentenceStart == 0 && len(r.occasions) == 1 {
			o.whole = true
		}
		for _, s := range r.coordinated() {
			o.steps = append(o.steps, s)
			s.modified = true
		}
	case step && len(before) == 0 && len(r.steps) == 0 && !(r.list && r.itemHasStep()):
		// It comes first, so that it holds for all, unless others have occasions of their own.
		r.ahead(m)
		if !step || r.endsWithColon() {
			r.pending[len(r.pending)-1].until = -1
		}
		o.whole = true
	case step && (direct || r.endsWithColon() || len(before) == 0 || r.afterThen && len(seps) > 0 && seps[0] == "comma" || seps[0] == "comma" ||
		seps[0] == "colon"):
		r.ahead(m)
	default:
		o.whole = true
	}
}

// itemHasStep says whether the current item of a list has a step of its own.
func (r *reader) itemHasStep() bool {
	for _, n := range r.nodes[r.at+1:] {
		if n.name == "line" || n.name == "bullet" {
			return false
		}
		if isStep(n.name) {
			return true
		}
	}
	return false
}

func (r *reader) readOn(n *node) {
	o := &occasion{}
	if n.name == "on.not" {
		if n.has("pull") {
			r.queued = append(r.queued, func() { r.without("pull_request") })
		} else {
			r.queued = append(r.queued, func() { r.without("push") })
		}
		return
	}
	timed := slices.ContainsFunc(n.all("e"), func(e *node) bool { return e.has("sched") && r.timed(e.get("sched")) })
	for _, e := range n.all("e") {
		if timed && e.has("sched") && !r.timed(e.get("sched")) {
			continue // "monthly, on the 1st, at 06:30"
		}
		r.event(&o.t, e)
		if l := e.get("labelled"); l != nil {
			o.conds = append(o.conds, "github.event.label.name == "+exprString(r.plain(l.get("l"))))
		}
		if sc := e.get("sched"); sc != nil && len(o.t.events) == 1 {
			o.vague = !r.timed(sc)
		}
		if c := e.get("comment"); c != nil {
			if says := c.get("says"); says != nil {
				o.conds = append(o.conds, "contains(github.event.comment.body, "+exprString(r.plain(says))+")")
			}
			if strings.Contains(r.words(c), "pr") && !strings.Contains(r.words(c), "issue") {
				o.conds = append(o.conds, "github.event.issue.pull_request")
			}
		}
	}
	direct := &node{}
	for _, k := range n.kids {
		if slices.Contains([]string{"pull", "tag", "release", "manual", "issueby", "labelled"}, k.name) {
			direct.kids = append(direct.kids, k)
		}
		if k.name == "labelled" {
			o.conds = append(o.conds, "github.event.label.name == "+exprString(r.plain(k.get("l"))))
		}
	}
	r.event(&o.t, direct)
	if strings.HasPrefix(n.name, "on.only") && len(o.t.events) == 1 && o.t.events[0] == "push" {
		o.cond = strings.Join(o.expr(), " || ")
	}
	if to := n.get("to"); to != nil || len(o.t.events) == 0 {
		o.t.add("push")
		o.t.branch("push", r.named(r.branchesOf(to))...)
	}
	r.occasion(n, o)
}

// without takes an event out of the default ones.
func (r *reader) without(event string) {
	others := []string{"push", "pull_request"}
	o := &occasion{whole: true}
	for _, e := range others {
		if e != event {
			o.t.add(e)
		}
	}
	for _, x := range r.occasions {
		if slices.Contains(x.t.events, event) {
			r.problem(x.text, "it is asked for, and ruled out elsewhere", "name the events once: on pushes, run `make check`")
			return
		}
	}
	if len(r.occasions) == 0 {
		r.occasions = append(r.occasions, o)
	}
}

func (r *reader) readMerged(n *node) {
	o := &occasion{conds: []string{"github.event.pull_request.merged == true"}}
	o.t.add("pull_request")
	r.addType(&o.t, "pull_request", "closed")
	o.t.branch("pull_request", r.named(r.branchesOf(n.get("to")))...)
	r.occasion(n, o)
}

func (r *reader) readOtherRun(n *node) {
	if n.name == "otherrun.ok" {
		return // the subject is the other workflow, or the step before: both are what happens anyway
	}
	o := &occasion{}
	o.t.add("workflow_run")
	for _, w := range n.all("w") {
		o.t.runs = append(o.t.runs, r.plain(w))
	}
	switch {
	case n.has("b"):
		o.t.runOn = []string{r.plain(n.get("b"))}
	case n.has("default"):
		o.t.runOn = r.named([]string{""})
	}
	s := n.get("s")
	if n.name == "otherrun.of" {
		s = n
	}
	ok := s.get("ok") != nil
	if next := r.at + 1; next < len(r.nodes) && r.nodes[next].name == "otherrun.ok" {
		ok = true
	}
	switch {
	case s.has("bad"):
		o.conds = []string{"github.event.workflow_run.conclusion == 'failure'"}
	case ok:
		o.conds = []string{"github.event.workflow_run.conclusion == 'success'"}
	}
	r.occasion(n, o)
}

func (r *reader) readSchedule(n *node) {
	o := &occasion{}
	if n.name == "sched.hours" { // nothing of it is named
		r.schedule(&o.t, n)
		r.occasion(n, o)
		return
	}
	r.schedule(&o.t, n.get("s"))
	o.vague = !r.timed(n.get("s"))
	r.occasion(n, o)
}

// timed says whether a schedule names a time, or how often within the day.
func (r *reader) timed(n *node) bool {
	for _, k := range n.kids {
		switch k.name {
		case "c", "h", "noon", "midnight", "tw", "qw", "cron5", "u", "hourly", "half", "per", "times", "past":
			return true
		}
	}
	return false
}

func (r *reader) schedule(t *triggers, n *node) {
	crons, note, err := r.crons(n)
	if err != nil {
		r.fail(n, err.Error(), "say it like this: every weekday at 07:15 UTC; or give the cron line: on the schedule \"15 7 * * 1-5\"")
		return
	}
	if note != "" {
		r.p.notes = append(r.p.notes, note)
	}
	t.add("schedule")
	t.crons = append(t.crons, crons...)
}

func (r *reader) readZone(n *node) {
	shift, note, err := r.zone(n)
	if err != nil {
		r.fail(n, err.Error(), "give times in UTC")
		return
	}
	for _, o := range r.occasions {
		for i, c := range o.t.crons {
			if s, err := shiftCron(c, shift); err == nil {
				o.t.crons[i] = s
			} else {
				r.fail(n, err.Error(), "give times in UTC")
			}
		}
	}
	if note != "" {
		r.p.notes = append(r.p.notes, note)
	}
}

var sourceGlobs = map[string][]string{
	"markdown": {"**/*.md"}, "go": {"**/*.go"}, "python": {"**/*.py"}, "rust": {"**/*.rs"}, "java": {"**/*.java"}, "javascript": {"**/*.js"},
	"typescript": {"**/*.ts"},
	"yaml":       {"**/*.yml", "**/*.yaml"}, "json": {"**/*.json"}, "ruby": {"**/*.rb"}, "php": {"**/*.php"}, "c": {"**/*.c", "**/*.h"},
	"shell": {"**/*.sh"}, "css": {"**/*.css"},
	"html": {"**/*.html"}, "toml": {"**/*.toml"}, "proto": {"**/*.proto"}, "sql": {"**/*.sql"}, "terraform": {"**/*.tf"},
}

// glob is what a Path node matches, as `paths:` has it.
func (r *reader) glob(n *node) []string {
	switch {
	case n.has("there"):
		for _, s := range slices.Backward(r.steps) {
			if s.dir != "" {
				return []string{s.dir + "/**"}
			}
		}
		for _, m := range r.pending {
			s := &step{}
			if m.apply(s); s.dir != "" {
				return []string{s.dir + "/**"}
			}
		}
	case n.has("lang"):
		return sourceGlobs[r.word(n.get("lang"))]
	case n.has("md"):
		return sourceGlobs["markdown"]
	case n.has("rd"):
		return []string{"**/README*"}
	case n.has("x"):
		return []string{"**/*" + strings.TrimPrefix(r.plain(n.get("x")), "*")}
	case n.has("docs"):
		return []string{"docs/**"}
	case n.has("d"):
		return []string{strings.Trim(r.plain(n.get("d")), "/") + "/**"}
	case n.has("f"):
		f := strings.TrimPrefix(r.plain(n.get("f")), "./")
		base := path.Base(f)
		words := r.words(n)
		switch {
		case extension.MatchString(f) && f[0] == '.' && strings.Contains(words, "file"):
			return []string{"**/*" + f}
		case strings.HasSuffix(f, "/"):
			return []string{f + "**"}
		case strings.HasPrefix(f, "*.") && !strings.Contains(f, "/"):
			return []string{"**/" + f}
		case strings.ContainsAny(f, "*?["):
			return []string{f}
		case strings.Contains(words, "directory") || strings.Contains(words, "folder"):
			return []string{f + "/**"}
		case regexp.MustCompile(`^(?:Dockerfile|Makefile|LICENSE|Gemfile|Pipfile|Jenkinsfile)$|.\.[A-Za-z0-9]+$`).MatchString(base):
			return []string{f}
		}
		return []string{f + "/**"}
	}
	return nil
}

func (r *reader) readPaths(n *node) {
	var globs []string
	for _, p := range n.all("p") {
		globs = append(globs, r.glob(p)...)
	}
	if len(globs) == 0 {
		r.fail(n, "it is not clear which files are meant", "name a directory or a pattern: when files in src/ change")
		return
	}
	if n.has("pull") || n.has("push") {
		o := &occasion{whole: true}
		if n.has("push") {
			o.t.add("push")
		}
		if n.has("pull") {
			o.t.add("pull_request")
		}
		r.occasion(n, o)
	}
	if strings.HasPrefix(n.name, "ignore") {
		r.notPaths = append(r.notPaths, globs...)
	} else {
		r.paths = append(r.paths, globs...)
	}
	// What changes there is pushed: it holds for the whole workflow, and only that.
	if len(r.steps) > 0 && r.segment < len(r.steps) && len(r.before()) < len(r.steps) && len(r.coordinated()) < len(r.steps) {
		r.fail(n, "which files change decides about whole workflows, not about single steps", "write two workflows")
	}
}

// ---- conditions ----

func exprString(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// onBranches is the expression that is true on these branches.
func onBranches(b []string, not bool) string {
	var out []string
	for _, x := range b {
		switch {
		case x == "" && not:
			out = append(out, "github.ref != format('refs/heads/{0}', github.event.repository.default_branch)")
		case x == "":
			out = append(out, "github.ref == format('refs/heads/{0}', github.event.repository.default_branch)")
		case strings.ContainsAny(x, "*?"):
			e := "startsWith(github.ref, " + exprString("refs/heads/"+strings.TrimRight(x, "*")) + ")"
			if not {
				e = "!" + e
			}
			out = append(out, e)
		case not:
			out = append(out, "github.ref != "+exprString("refs/heads/"+x))
		default:
			out = append(out, "github.ref == "+exprString("refs/heads/"+x))
		}
	}
	if not {
		return strings.Join(out, " && ")
	}
	if len(out) == 1 {
		return out[0]
	}
	return "(" + strings.Join(out, " || ") + ")"
}

func (r *reader) cond(expr string) func(*step) {
	return func(s *step) {
		if !slices.Contains(s.conds, expr) {
			s.conds = append(s.conds, expr)
		}
	}
}

func (r *reader) readOnlyOn(n *node) {
	b := r.branchesOf(n)
	for _, x := range b {
		if strings.ContainsAny(strings.TrimRight(x, "*"), "*?") {
			r.fail(n, "a condition cannot match this pattern", "name the branches, or a pattern that ends with *")
			return
		}
	}
	// "on main, run make": when to run rather than a condition, unless it says "only".
	r.leading()
	_, _, step := r.follows()
	first := len(r.steps) == 0 || r.segment == len(r.steps) && step && slices.ContainsFunc(r.occasions,
		func(o *occasion) bool { return len(o.t.branches["push"]) > 0 })
	if !n.has("o") && first {
		o := &occasion{cond: onBranches(slices.Clone(b), false)}
		o.t.add("push")
		o.t.branch("push", r.named(b)...)
		r.occasion(n, o)
		return
	}
	r.attach(modifier{name: "cond", apply: r.cond(onBranches(b, false))})
}

// readOtherBranches is about all branches that were not named so far: "on main run
// a; on other branches run b".
func (r *reader) readOtherBranches(n *node) {
	var named []string
	for _, o := range r.occasions {
		if len(o.t.branches["push"]) == 0 || len(o.t.events) > 1 || len(o.t.tags) > 0 {
			r.fail(n, "which branches are named before that is not clear", "say: on main, run `make deploy`; not on main, run `make preview`")
			return
		}
		named = append(named, o.t.branches["push"]...)
	}
	for _, s := range r.steps {
		for _, c := range s.conds {
			for _, m := range refIs.FindAllStringSubmatch(c, -1) {
				named = append(named, m[1])
			}
		}
	}
	if len(named) == 0 {
		r.fail(n, "other than which branches is not said", "say: not on main, run `make preview`")
		return
	}
	if len(r.occasions) > 0 {
		o := &occasion{}
		o.t.add("push")
		r.occasion(n, o)
	}
	r.attach(modifier{name: "other", apply: r.cond(onBranches(named, true))})
}

func (r *reader) readNotOn(n *node) {
	r.attach(modifier{name: "cond", apply: r.cond(onBranches(r.branchesOf(n), true))})
}

// eventCond is the expression of an E node.
func (r *reader) eventCond(n *node) string {
	for _, k := range n.kids {
		switch k.name {
		case "pull":
			return "github.event_name == 'pull_request'"
		case "push":
			return "github.event_name == 'push'"
		case "tag":
			if p := k.get("p"); p != nil {
				g := r.plain(p)
				return "startsWith(github.ref, " + exprString("refs/tags/"+strings.TrimRight(g, "*")) + ")"
			}
			if strings.Contains(r.words(k), "version") || strings.Contains(r.words(k), "release") {
				return "startsWith(github.ref, 'refs/tags/v')"
			}
			return "startsWith(github.ref, 'refs/tags/')"
		case "release":
			return "github.event_name == 'release'"
		case "schedule":
			return "github.event_name == 'schedule'"
		case "manual":
			return "github.event_name == 'workflow_dispatch'"
		}
	}
	return ""
}

func (r *reader) readOnlyEvent(n *node) {
	if tg := n.get("tg"); tg != nil {
		r.attach(modifier{name: "cond", apply: r.cond("startsWith(github.ref, " + exprString("refs/tags/"+strings.TrimRight(r.plain(tg), "*")) + ")")})
		return
	}
	e := r.eventCond(n)
	if e == "" {
		r.fail(n, "it is not clear when that is", "say: only on pushes to main")
		return
	}
	r.attach(modifier{name: "cond", apply: r.cond(e)})
}

func (r *reader) readNotEvent(n *node) {
	e := r.eventCond(n)
	switch {
	case strings.HasPrefix(e, "startsWith"):
		e = "!" + e
	default:
		e = strings.Replace(e, "==", "!=", 1)
	}
	r.attach(modifier{name: "cond", apply: r.cond(e)})
}

func (r *reader) readDraft(n *node) {
	r.attach(modifier{name: "cond", toAll: false, apply: r.cond("github.event.pull_request.draft != true")})
}

func (r *reader) readIsDraft(n *node) {
	r.attach(modifier{name: "cond", apply: r.cond("github.event.pull_request.draft == true")})
}

// readSkipStep is a step whose condition says when not to run it.
func (r *reader) readSkipStep(n *node) {
	s := r.stepOf(n.get("s"))
	r.add(s, n)
	if n.name == "skipstep.fork" {
		e := "github.event.repository.fork != true"
		if strings.Contains(r.words(n), "pr from") {
			e = "github.event.pull_request.head.repo.fork != true"
		}
		r.cond(e)(s)
		return
	}
	if b := r.branchesOf(n); len(b) > 0 {
		r.cond(onBranches(b, true))(s)
		return
	}
	if e := r.eventCond(n); e != "" {
		r.cond(negated(e))(s)
		return
	}
	before := len(s.conds)
	r.queued = append(r.queued, func() {
		if len(s.conds) != before+1 {
			r.fail(n, "when it is to be skipped is not clear", "say: run `make slow` unless the pull request is a draft")
			return
		}
		s.conds[before] = negated(s.conds[before])
	})
}

// negated is the expression that is true when e is false.
func negated(e string) string {
	switch {
	case strings.HasPrefix(e, "!"):
		return e[1:]
	case strings.Contains(e, "&&") || strings.Contains(e, "||"):
		return "!(" + e + ")"
	case strings.Contains(e, " == "):
		return strings.Replace(e, " == ", " != ", 1)
	case strings.Contains(e, " != "):
		return strings.Replace(e, " != ", " == ", 1)
	}
	return "!" + e
}

func (r *reader) readMessage(n *node) {
	says := n.get("says")
	e := "contains(github.event.head_commit.message, " + exprString(r.plain(says)) + ")"
	if n.has("neg") {
		e = "!" + e
	}
	r.attach(modifier{name: "cond", apply: r.cond(e)})
}

func (r *reader) readLabel(n *node) {
	e := "contains(github.event.pull_request.labels.*.name, " + exprString(r.plain(n.get("l"))) + ")"
	if n.has("neg") {
		e = "!" + e
	}
	r.attach(modifier{name: "cond", apply: r.cond(e)})
}

func (r *reader) readActor(n *node) {
	who := r.plain(n.get("who"))
	if w := strings.ToLower(who); w == "dependabot" || w == "renovate" {
		who = w + "[bot]"
	}
	op := "=="
	if n.has("neg") {
		op = "!="
	}
	r.attach(modifier{name: "cond", apply: r.cond("github.actor " + op + " " + exprString(who))})
}

func (r *reader) readFork(n *node) {
	e := "github.event.repository.fork != true"
	if repo := n.get("r"); repo != nil {
		e = "github.repository == " + exprString(r.plain(repo))
	} else if strings.Contains(r.words(n), "pr ") || strings.Contains(r.words(n), "from") {
		e = "github.event.pull_request.head.repo.fork != true"
	}
	r.attach(modifier{name: "cond", apply: r.cond(e)})
}

func (r *reader) readIfInput(n *node) {
	i := r.inputNamed(r.plain(n.get("i")))
	if i == nil {
		return
	}
	i.used = true
	e := "inputs." + i.name
	switch v := strings.ToLower(r.plain(n.get("v"))); {
	case n.has("neg"):
		e = "!" + e
	case slices.Contains([]string{"true", "checked", "set", "enabled", "on", "yes", "ticked", "selected"}, v):
		if i.kind == "" && i.deflt != "" && i.deflt != "true" && i.deflt != "false" {
			e += " == " + exprString(v)
		} else if i.kind == "" && v != "set" {
			i.kind = "boolean"
		}
	case slices.Contains([]string{"false", "no", "off"}, v):
		e = "!" + e
	default:
		e += " == " + exprString(r.plain(n.get("v")))
	}
	r.attach(modifier{name: "cond", apply: r.cond(e)})
}

// readMode is how a build is to be made, where no command says it.
func (r *reader) readMode(n *node) {
	if !n.has("m") {
		return
	}
	for _, s := range r.before() {
		if s.purpose == "build" && s.command == "" {
			s.purpose = "release"
		}
	}
}

// readFeatures turns all features of a crate on.
func (r *reader) readFeatures(n *node) {
	before := r.before()
	r.queued = append(r.queued, func() { r.allFeatures = append(r.allFeatures, before...) })
	if len(before) == 0 {
		r.fail(n, "of what is not said", "say: cargo test with all features")
	}
}

func (r *reader) readExists(n *node) {
	r.attach(modifier{name: "cond", apply: r.cond("hashFiles(" + exprString(r.plain(n.get("f"))) + ") != ''")})
}

func (r *reader) readOnlyOS(n *node) {
	name := map[string]string{"ubuntu": "Linux", "linux": "Linux", "debian": "Linux", "macos": "macOS", "mac": "macOS", "osx": "macOS",
		"macosx": "macOS", "windows": "Windows"}[r.word(n.get("s"))]
	if name == "" {
		r.fail(n, "it is not clear which machines are meant", "say: only on windows")
		return
	}
	op := "=="
	if n.has("not") {
		op = "!="
	} else if len(r.base.os) == 0 {
		r.base.os = append(r.base.os, runnerLabel(r.word(n.get("s")), r.plain(n.get("v"))))
		return
	}
	r.queued = append(r.queued, func() {
		if op == "==" && len(r.base.os) == 0 {
			r.problem(r.c.text(n), "there is one machine, and no other is named",
				"say: on ubuntu and windows run `make test`, and `make dist` only on ubuntu")
		}
	})
	r.attach(modifier{name: "cond", apply: r.cond("runner.os " + op + " " + exprString(name))})
}

func (r *reader) readOnlyVersion(n *node) {
	l := r.c.g.lex.languageNamed(r.word(n.get("l")))
	if l == nil {
		return
	}
	r.attach(modifier{name: "cond", apply: r.cond("matrix." + l.key + " == " + exprString(r.plain(n.get("v"))))})
}

// ---- success and failure ----

// subject is the step that a condition speaks of, made if its command is named
// and it is no step yet; nil is "it", "anything", all that came before.
func (r *reader) subject(n *node, make_ bool) *step {
	c, p := n.get("c"), n.get("s")
	if c != nil {
		cmd := r.commandOf(c)
		for _, s := range r.steps {
			if s.command == cmd {
				return s
			}
		}
		if p != nil {
			what, _ := r.purposeOf(p)
			for _, s := range r.steps {
				if s.purpose == what && s.command == "" {
					s.command = cmd
					return s
				}
			}
		}
		if make_ {
			return r.insert(&step{command: cmd, text: r.c.text(n), verb: true})
		}
		return nil
	}
	if p != nil {
		what, tool := r.purposeOf(p)
		var found []*step
		for _, s := range r.steps {
			if s.purpose == what || purposeOfCommand(s.command) == what {
				found = append(found, s)
			}
		}
		switch {
		case len(found) > 0:
			return found[len(found)-1]
		case make_:
			s := &step{purpose: what, tool: tool, text: r.c.text(p), verb: true}
			if r.assumed == nil {
				r.assumed = map[*step]bool{}
			}
			r.assumed[s] = true
			return r.insert(s)
		}
	}
	return nil
}

// insert puts a step before those of the clause that is being read.
func (r *reader) insert(s *step) *step {
	at := len(r.steps)
	if r.segment < at {
		at = r.segment
	} else if _, _, more := r.follows(); !more && len(r.before()) > 0 {
		at -= len(r.coordinated()) // ", after make test"
	} else if !more && at > 0 && strings.Contains(r.words(r.nodes[r.at]), "only") {
		at-- // "./deploy.sh; only after make test"
	}
	s.group, s.sentence, s.job = r.group, r.sentence, r.job
	if at < len(r.steps) {
		s.group = r.steps[at].group
	}
	r.steps = slices.Insert(r.steps, at, s)
	if at < len(r.steps)-1 {
		r.segment++
	} else {
		r.segment = len(r.steps)
	}
	return s
}

// purposeOfCommand guesses what a command is for by its words.
func purposeOfCommand(c string) string {
	words := strings.Fields(c)
	for i := len(words) - 1; i > 0; i-- {
		if strings.Contains(words[i], ".") {
			words = slices.Delete(words, i, i+1) // "cat build.log" builds nothing
		}
	}
	c = strings.Join(words, " ")
	for _, f := range regexp.MustCompile(`[^a-z]+`).Split(strings.ToLower(c), -1) {
		switch {
		case purposeWord[f] != "" && f != "run" && f != "start":
			return purposeWord[f]
		case strings.Contains(f, "test") || f == "rspec" || f == "phpunit" || f == "jest" || f == "mocha" || f == "tox" || f == "ctest":
			return "test"
		case f == "clippy" || f == "eslint" || f == "ruff" || f == "rubocop" || f == "vet" || f == "flake" || f == "pylint" || f == "golangci":
			return "lint"
		case f == "fmt" || f == "prettier" || f == "black":
			return "format"
		case f == "assemble":
			return "build"
		}
	}
	return ""
}

var elsewise = regexp.MustCompile(`^(?:, )?(?:and |but |or )?(?:otherwise|or else|else|if not)(?: ,)?$`)

// conditional are fragments that an "otherwise" may be the opposite of, without being
// about success.
var conditional = set("onlyon noton onlyev notev paths ignore label draft isdraft actor fork ifinput exists onlyos onlyver message skipstep")

func (r *reader) readOnFail(n *node) {
	if o := r.otherRun(n); o != nil {
		o.conds = []string{"github.event.workflow_run.conclusion == 'failure'"}
		return
	}
	of := r.subject(n, true)
	w := r.words(n)
	if elsewise.MatchString(w) {
		_, _, step := r.follows()
		other := slices.ContainsFunc(r.nodes[:r.at], func(x *node) bool {
			base, _, _ := strings.Cut(x.name, ".")
			return conditional[base]
		})
		if !step || other || len(r.before()) == 0 && r.segment == len(r.steps) && len(r.steps) == 0 {
			r.fail(n, "what that is the opposite of is not clear", "say: if it fails, run `./report.sh`; or name the branches for each step")
			return
		}
	}
	for f := range strings.FieldsSeq(w) {
		if what := map[string]string{"test": "test", "tests": "test", "suite": "test", "specs": "test", "lint": "lint", "linter": "lint",
			"linting": "lint"}[f]; what != "" && of == nil {
			for _, s := range r.steps {
				if s.purpose == what || s.purpose == "" && purposeOfCommand(s.command) == what {
					of = s
				}
			}
		}
	}
	whole := regexp.MustCompile(`\b(?:any|anything|something|one|either|some|workflow|pipeline|build|run|job|all)\b`).MatchString(w)
	apply := func(s *step) {
		s.status = "failure"
		s.of = of
		s.afterAll = s.afterAll || whole
	}
	if _, _, step := r.follows(); !step && r.segment == len(r.steps) && len(r.before()) == 0 {
		r.fail(n, "what is to happen then is not said", "say: if it fails, run `./report.sh`")
		return
	}
	r.attach(modifier{name: "status", tight: true, apply: apply})
}

func (r *reader) readOnPass(n *node) {
	if o := r.otherRun(n); o != nil {
		o.conds = []string{"github.event.workflow_run.conclusion == 'success'"}
		return
	}
	r.subject(n, true)
	all := regexp.MustCompile(`\b(?:both|all|jobs|everything)\b`).MatchString(r.words(n))
	if r.job != nil {
		// What waits is the job that is spoken of, or the one that comes.
		j := r.job
		empty := !slices.ContainsFunc(r.steps, func(s *step) bool { return s.job == j })
		if r.segment == len(r.steps) && !empty {
			r.passNext = func(next *job) { next.needsPrev, next.needsAll = !all, all }
		} else {
			j.needsPrev, j.needsAll = !all, all
			if what, _ := r.purposeOf(n.get("s")); what != "" {
				j.needsPrev, j.needsNames = false, append(j.needsNames, what)
			}
		}
	}
	if all {
		r.newGroupHere()
	} else if r.segment == len(r.steps) {
		r.newGroup()
	}
	r.afterThen = true
	r.drop(func(m *modifier) bool { return m.used && m.tight })
}

// itEnded is said of a run that something else waits for.
var itEnded = regexp.MustCompile(`^(?:, )?(?:and |but )?(?:only )?(?:if|when|provided|in case) (?:it|that|this|the run|the workflow|that run|that workflow)\b`)

// otherRun is the occasion that is another workflow's end, where "if it succeeded"
// behind the only steps speaks of that.
func (r *reader) otherRun(n *node) *occasion {
	for _, o := range r.occasions {
		if len(o.t.runs) > 0 && len(o.conds) == 0 && itEnded.MatchString(r.words(n)) && len(r.steps) == len(r.coordinated()) {
			return o
		}
	}
	return nil
}

func (r *reader) newGroupHere() {
	if r.segment == len(r.steps) {
		r.newGroup()
		return
	}
	// "run ./deploy.sh once both pass": what stands in this clause comes after.
	r.group++
	for _, s := range r.steps[r.segment:] {
		s.group = r.group
	}
	r.groupStart = r.segment
}

// inEveryCase may speak of branches as well as of failures.
var inEveryCase = regexp.MustCompile(`^(?:, )?(?:and |but )?(?:always|in any case|in every case|in all cases|at all times)(?: ,)?$`)

func (r *reader) readAlways(n *node) {
	r.subject(n, n.has("c")) // "even if make e2e fails" names what may fail
	everyCase := inEveryCase.MatchString(r.words(n))
	r.attach(modifier{name: "status", tight: true, apply: func(s *step) {
		s.free = s.free || everyCase
		if s.status == "" {
			s.status = "always"
		}
	}})
}

func (r *reader) readTolerate(n *node) {
	if v := n.get("v"); v != nil { // "nightly may fail"
		value := strings.TrimPrefix(r.plain(v), "v")
		r.queued = append(r.queued, func() {
			for _, x := range r.base.versions {
				if slices.Contains(x.values, value) {
					r.base.tolerable = append(r.base.tolerable, [2]string{x.lang.key, value})
					return
				}
			}
			r.fail(n, "no such version is tested", "say: run cargo test on stable and nightly; nightly may fail")
		})
		return
	}
	if n.has("c") || n.has("s") {
		if s := r.subject(n, true); s != nil { // "keep going when npm run lint fails"
			s.tolerate = true
			return
		}
	}
	r.attach2(n, modifier{name: "tolerate", apply: func(s *step) { s.tolerate = true }})
}

// attach2 is for what speaks of the step before it, wherever a comma stands.
func (r *reader) attach2(n *node, m modifier) {
	if before := r.before(); len(before) > 0 {
		m.apply(before[len(before)-1])
		return
	}
	if _, _, step := r.follows(); len(r.steps) > 0 && !step {
		m.apply(r.steps[len(r.steps)-1])
		return
	}
	r.attach(m)
}

// ---- how ----

var numbers = map[string]int{"one": 1, "an": 1, "a": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
	"nine": 9, "ten": 10, "eleven": 11, "twelve": 12,
	"fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "forty-five": 45, "fifty": 50, "sixty": 60, "ninety": 90, "twice": 2, "thrice": 3, "once": 1,
	"third": 3, "fourth": 4, "sixth": 6}

func (r *reader) number(n *node) int {
	w := r.word(n)
	if v, ok := numbers[w]; ok {
		return v
	}
	if dayWord.MatchString(w) {
		w = strings.TrimRight(w, "stndrh")
	}
	v, err := strconv.Atoi(strings.TrimSuffix(w, "x"))
	if err != nil {
		return -1
	}
	return v
}

func unitSeconds(u string) int {
	switch {
	case strings.HasPrefix(u, "s"):
		return 1
	case strings.HasPrefix(u, "h"):
		return 3600
	case strings.HasPrefix(u, "d"):
		return 86400
	case strings.HasPrefix(u, "w"), strings.HasPrefix(u, "mo"):
		return 0
	}
	return 60
}

// seconds are how long a Dur node lasts.
func (r *reader) seconds(n *node) int {
	seconds := 0
	switch {
	case n.has("half") && n.has("n"):
		seconds = r.number(n.get("n"))*3600 + 1800
	case n.has("half") && n.has("one"):
		seconds = 5400
	case n.has("half"):
		seconds = 1800
	case n.has("one"):
		seconds = unitSeconds(r.word(n.get("u")))
	case n.has("d"):
		for _, d := range n.all("d") {
			m := duration.FindStringSubmatch(r.word(d))
			v, _ := strconv.Atoi(m[1])
			seconds += v * unitSeconds(m[2])
		}
	default:
		seconds = r.number(n.get("n")) * unitSeconds(r.word(n.get("u")))
		if m := n.get("m"); m != nil {
			seconds += r.number(m) * 60
		}
	}
	return seconds
}

func (r *reader) readTimeout(n *node) {
	seconds := r.seconds(n)
	if seconds < 1 || seconds > 3*86400 {
		r.fail(n, "a time limit is between a second and three days", "say: with a timeout of 20 minutes")
		return
	}
	if c := n.get("c"); c != nil {
		r.add(&step{command: r.commandOf(c), text: r.c.text(c), verb: true}, n)
	}
	r.attach(modifier{name: "timeout", apply: func(s *step) {
		if seconds%60 == 0 {
			s.minutes = seconds / 60
		} else {
			s.seconds = seconds
		}
	}})
}

func (r *reader) readRetry(n *node) {
	wait := -1
	if w := n.get("w"); w != nil {
		if wait = r.seconds(w); wait < 0 || wait > 3600 {
			r.fail(n, "the pause between two tries is an hour at most", "say: retry it up to 3 times, waiting 10 seconds in between")
			return
		}
		r.attach2(n, modifier{name: "retry", apply: func(s *step) { s.pause = wait }})
	}
	if n.name == "retry.wait" {
		r.queued = append(r.queued, func() {
			if !slices.ContainsFunc(r.steps, func(s *step) bool { return s.tries > 1 }) {
				r.fail(n, "between what is not said", "say: retry it up to 3 times, waiting 10 seconds in between")
			}
		})
		return
	}
	times := 2
	if c := n.get("c"); c != nil && n.name == "retry.cmd" {
		s := r.add(&step{command: r.commandOf(c), text: r.c.text(c), verb: true}, n)
		defer func() {
			if len(r.problems) == 0 {
				s.tries = times
			}
		}()
	}
	switch {
	case n.name == "retry.any":
		times = 2
		if !strings.Contains(r.words(n), "once") && !strings.Contains(r.words(n), "again") {
			r.fail(n, "how often is not said", "say: retry it up to 3 times")
			return
		}
	default:
		times = r.number(n.get("n"))
		if times < 0 && strings.Contains(r.words(n.get("n")), "once") || strings.Contains(r.words(n.get("n")), "one more") {
			times = 1
		}
		// To retry three times is to try four times.
		total := regexp.MustCompile(`\b(?:up to|at most|maximum|max|in total|no more than|altogether)\b`).MatchString(r.words(n))
		if n.has("r") && r.word(n.get("r")) != "try" && !total || strings.Contains(r.words(n), " more ") {
			times++
		}
	}
	if times < 1 || times > 20 {
		r.fail(n, "a command is tried between once and 20 times", "say: retry it up to 3 times")
		return
	}
	if n.name == "retry.cmd" {
		return
	}
	r.attach2(n, modifier{name: "retry", apply: func(s *step) { s.tries = times }})
}

func (r *reader) readDir(n *node) {
	p := n.all("p")
	d := strings.TrimSuffix(strings.TrimPrefix(r.plain(p[len(p)-1]), "./"), "/")
	if strings.ContainsAny(d, "*?") {
		r.fail(n, "a step runs in one directory, not in what a pattern matches", "name the directory")
		return
	}
	if w := r.words(n); strings.HasPrefix(w, "cd") || strings.HasPrefix(w, "change") || strings.HasPrefix(w, "go") || strings.HasPrefix(w,
		"switch") || strings.HasPrefix(w, "move") {
		// It stays there.
		r.pending = append(r.pending, modifier{name: "dir", toAll: true, apply: func(s *step) { s.dir = d }})
		return
	}
	r.attach(modifier{name: "dir", apply: func(s *step) { s.dir = d }})
}

// readDirs is several directories, in each of which the same is to be done.
func (r *reader) readDirs(n *node) {
	a := axis{key: "directory"}
	for _, p := range n.all("p") {
		a.values = append(a.values, strings.TrimSuffix(strings.TrimPrefix(r.plain(p), "./"), "/"))
	}
	for _, b := range r.base.axes {
		if b.key == a.key {
			r.fail(n, "there are two lists of directories", "write a workflow for each")
			return
		}
	}
	r.base.axes = append(r.base.axes, a)
	r.attach(modifier{name: "dir", apply: func(s *step) { s.dir = "${{ matrix.directory }}" }})
	r.queued = append(r.queued, func() {
		for _, s := range r.steps {
			if s.dir == "" && s.uses == "" {
				r.problem(s.text, "it is not clear whether it is to be done in each of the directories", "write a sentence for each directory")
			}
		}
	})
}

func (r *reader) readEnv(n *node) {
	var add [][2]string
	var only *step
	if c := n.get("c"); c != nil {
		if only = r.subject(n, false); only == nil {
			only = r.add(&step{command: r.commandOf(c), text: r.c.text(c), verb: true}, n)
		}
	}
	names, values := n.all("n"), n.all("v")
	for _, a := range n.all("a") {
		k, v, _ := strings.Cut(r.plain(a), "=")
		add = append(add, [2]string{k, unquote(v)})
	}
	for i := range min(len(names), len(values)) {
		add = append(add, [2]string{r.plain(names[i]), r.plain(values[i])})
	}
	if only != nil {
		for _, kv := range add {
			setPair(&only.env, kv[0], literalCommand(kv[1]))
		}
		return
	}
	r.attach(modifier{name: "env", apply: func(s *step) {
		for _, kv := range add {
			setPair(&s.env, kv[0], literalCommand(kv[1]))
		}
	}})
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

func setPair(list *[][2]string, k, v string) {
	for i := range *list {
		if (*list)[i][0] == k {
			(*list)[i][1] = v
			return
		}
	}
	*list = append(*list, [2]string{k, v})
}

var secretName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// secrets are the names of the Secret captures of a node.
func (r *reader) secrets(n *node) (names, as []string) {
	for _, k := range n.kids {
		switch k.name {
		case "n", "r":
			name := r.plain(k)
			if m := secretRef.FindStringSubmatch(name); m != nil {
				name = m[1]
			}
			if !secretName.MatchString(name) {
				r.fail(n, strconv.Quote(name)+" is no name of a secret", "a secret's name is like DEPLOY_KEY")
				return nil, nil
			}
			names = append(names, name)
			as = append(as, name)
		case "as":
			if len(as) > 0 {
				as[len(as)-1] = r.plain(k)
			}
		case "s":
			in, _ := r.secrets(k)
			names = append(names, in...)
			for range in {
				as = append(as, r.plain(n.get("x")))
			}
		}
	}
	return names, as
}

func (r *reader) readSecret(n *node) {
	if c := n.get("c"); c != nil {
		s := r.subject(n, false)
		if s == nil {
			s = r.add(&step{command: r.commandOf(c), text: r.c.text(c), verb: true}, n)
		}
		names, as := r.secrets(n)
		if k := n.get("as"); k != nil && len(as) == 1 {
			as[0] = r.plain(k)
		}
		for i := range names {
			setPair(&s.env, as[i], "${{ secrets."+names[i]+" }}")
		}
		return
	}
	names, as := r.secrets(n)
	if len(names) == 0 {
		r.fail(n, "which secret is not said", "say: using the secret DEPLOY_KEY")
		return
	}
	variables := slices.Clone(as)
	r.lastSecret = func(v string) {
		if len(variables) > 0 {
			old := variables[len(variables)-1]
			variables[len(variables)-1] = v
			for _, s := range r.steps {
				for i := range s.env {
					if s.env[i][0] == old && s.env[i][1] == "${{ secrets."+names[len(names)-1]+" }}" {
						s.env[i][0] = v
					}
				}
			}
		}
	}
	// A message that still looks for its address takes it.
	if len(names) == 1 {
		for _, s := range slices.Backward(r.before()) {
			if s.notify && len(s.env) == 0 {
				s.env = [][2]string{{variables[0], "${{ secrets." + names[0] + " }}"}}
				s.command = strings.ReplaceAll(s.command, "$WEBHOOK", "$"+variables[0])
				return
			}
		}
	}
	r.attach(modifier{name: "secret", apply: func(s *step) {
		for i := range names {
			setPair(&s.env, variables[i], "${{ secrets."+names[i]+" }}")
		}
	}})
}

func (r *reader) readAsSecret(n *node) {
	if r.lastSecret == nil {
		r.fail(n, "what is to be there is not said", "say: with the secret NPM_TOKEN as NODE_AUTH_TOKEN")
		return
	}
	r.lastSecret(r.plain(n.get("as")))
}

// readServiceMatrix runs everything once for each version of a service.
func (r *reader) readServiceMatrix(n *node) {
	name := r.word(n.get("s"))
	if name == "mongodb" {
		name = "mongo"
	}
	a := axis{key: name}
	for _, v := range n.all("v") {
		a.values = append(a.values, strings.TrimPrefix(r.plain(v), "v"))
	}
	for _, b := range r.base.axes {
		if b.key == name {
			r.fail(n, "the versions of "+name+" are named twice", "name them once")
			return
		}
	}
	r.base.axes = append(r.base.axes, a)
	r.service(&serviceSpec{name: name, image: name + ":${{ matrix." + name + " }}"}, &node{})
}

func (r *reader) readService(n *node) {
	if c := n.get("c"); c != nil { // "postgres must be up for make test"
		defer r.add(&step{command: r.commandOf(c), text: r.c.text(c), verb: true}, n)
	} else if what, tool := r.purposeOf(n.get("s")); what != "" {
		defer r.add(&step{purpose: what, tool: tool, text: r.c.text(n.get("s")), verb: true}, n)
	}
	if n.name == "service.bare" {
		n = n.get("s1")
	}
	for _, sv := range n.all("sv") {
		spec := &serviceSpec{}
		switch {
		case sv.has("s"):
			spec.name = r.word(sv.get("s"))
			if spec.name == "mongodb" {
				spec.name = "mongo"
			}
			spec.image = spec.name
			if v := sv.get("v"); v != nil {
				spec.image += ":" + strings.TrimPrefix(r.plain(v), "v")
			}
		case sv.has("i"):
			spec.image = r.plain(sv.get("i"))
			spec.name = path.Base(spec.image)
			spec.name, _, _ = strings.Cut(spec.name, ":")
			spec.name, _, _ = strings.Cut(spec.name, "@")
			if w := r.words(sv); strings.Contains(w, "container") && !strings.Contains(w, "service") && (r.c.g.lex.is("image", spec.name) ||
				spec.name == "golang" || r.c.g.lex.languageNamed(spec.name) != nil) {
				r.base.container = spec.image // what runs in it, not beside it
				continue
			}
		}
		r.service(spec, sv)
	}
}

// service completes what is known of a service and adds it.
func (r *reader) service(spec *serviceSpec, sv *node) {
	pw, user, db := r.plain(sv.get("pw")), r.plain(sv.get("user")), r.plain(sv.get("db"))
	set := func(k, v string) {
		if v != "" {
			spec.env = append(spec.env, [2]string{k, literalCommand(v)})
		}
	}
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	switch spec.name {
	case "postgres", "postgis", "pgvector", "timescaledb":
		set("POSTGRES_USER", user)
		set("POSTGRES_PASSWORD", or(pw, "postgres"))
		set("POSTGRES_DB", db)
		spec.ports = []string{"5432:5432"}
		spec.health = "pg_isready"
	case "mysql":
		set("MYSQL_ROOT_PASSWORD", or(pw, "mysql"))
		set("MYSQL_DATABASE", db)
		spec.ports = []string{"3306:3306"}
		spec.health = "mysqladmin ping"
	case "mariadb":
		set("MARIADB_ROOT_PASSWORD", or(pw, "mariadb"))
		set("MARIADB_DATABASE", db)
		spec.ports = []string{"3306:3306"}
		spec.health = "healthcheck.sh --connect"
	case "redis", "valkey":
		spec.ports = []string{"6379:6379"}
		spec.health = spec.name + "-cli ping"
	case "mongo":
		set("MONGO_INITDB_ROOT_USERNAME", user)
		set("MONGO_INITDB_ROOT_PASSWORD", pw)
		set("MONGO_INITDB_DATABASE", db)
		spec.ports = []string{"27017:27017"}
	case "rabbitmq":
		set("RABBITMQ_DEFAULT_USER", user)
		set("RABBITMQ_DEFAULT_PASS", pw)
		spec.ports = []string{"5672:5672"}
		spec.health = "rabbitmq-diagnostics -q ping"
	case "elasticsearch":
		set("discovery.type", "single-node")
		spec.ports = []string{"9200:9200"}
	case "memcached":
		spec.ports = []string{"11211:11211"}
	case "minio":
		spec.ports = []string{"9000:9000"}
	case "nats":
		spec.ports = []string{"4222:4222"}
	}
	if p := sv.get("port"); p != nil {
		spec.ports = []string{r.plain(p) + ":" + r.plain(p)}
	}
	r.base.services = append(r.base.services, spec)
}

func (r *reader) readVersion(n *node) {
	if n.name != "version" {
		r.readBareVersion(n)
		return
	}
	lex := r.c.g.lex
	var lang *language
	var values []string
	flush := func() {
		if lang != nil && len(values) > 0 {
			r.addVersion(n, lang, values)
		}
		values = nil
	}
	for _, k := range n.kids {
		switch k.name {
		case "l", "l2":
			l := lex.languageNamed(r.word(k))
			if lang != nil && l != lang {
				flush()
			}
			lang = l
		case "lv":
			t := r.plain(k)
			m := langVersion.FindStringSubmatch(t)
			name := strings.ToLower(strings.TrimRight(t[:len(t)-len(m[1])], "-@"))
			if a, ok := abbreviations[name]; ok {
				name = a
			}
			if l := lex.languageNamed(name); lang != nil && l != lang {
				flush()
				lang = l
			} else {
				lang = l
			}
			values = append(values, m[1])
		}
		if k.name == "v" {
			values = append(values, strings.TrimPrefix(strings.ToLower(r.plain(k)), "v"))
		}
		if k.name == "to" && len(values) > 0 {
			all, ok := between(values[len(values)-1], strings.TrimPrefix(r.plain(k), "v"), lang)
			if !ok {
				r.fail(n, "it is not clear which versions lie between", "name all of them: python 3.11, 3.12 and 3.13")
				return
			}
			values = append(values[:len(values)-1], all...)
		}
	}
	// "versions 3.11 and 3.12 of python" has the language last.
	flush()
}

// between are the versions from a to b.
func between(a, b string, lang *language) ([]string, bool) {
	pa, na, _ := cutLast(a)
	pb, nb, _ := cutLast(b)
	x, err1 := strconv.Atoi(na)
	y, err2 := strconv.Atoi(nb)
	if pa != pb || err1 != nil || err2 != nil || y <= x || y-x > 12 {
		return nil, false
	}
	stepBy := 1
	if lang != nil && (lang.name == "node" || lang.name == "java") && pa == "" {
		if lang.name == "java" || x%2 != 0 || y%2 != 0 {
			return nil, false
		}
		stepBy = 2 // the even ones are those that last
	}
	var out []string
	for ; x <= y; x += stepBy {
		out = append(out, pa+strconv.Itoa(x))
	}
	return out, true
}

func cutLast(s string) (prefix, last string, ok bool) {
	i := strings.LastIndexByte(s, '.')
	return s[:i+1], s[i+1:], i >= 0
}

func (r *reader) addVersion(n *node, lang *language, values []string) {
	for i, v := range values {
		switch v {
		case "latest", "stable", "lts", "lts/*", "tip", "nightly", "beta", "head":
			if x := latestOf(lang.name, v); x != "" {
				values[i] = x
			} else {
				r.fail(n, "which version that is is not clear", "name a number")
				return
			}
		}
	}
	r.claim("set of versions of "+lang.name, n)
	if r.job != nil {
		base := r.base.versions
		r.base.versions = nil
		defer func(j *job) { j.versions, r.base.versions = append(j.versions, r.base.versions...), base }(r.job)
	}
	for _, v := range r.base.versions {
		if v.lang == lang {
			for _, x := range values {
				if !slices.Contains(v.values, x) {
					v.values = append(v.values, x)
				}
			}
			return
		}
	}
	r.base.versions = append(r.base.versions, &version{lang, slices.Clone(values)})
	for _, t := range r.c.g.lex.tools {
		if t.language == lang.name && slices.Contains(lang.words, t.words[0]) || t.name == lang.name {
			r.tools = append(r.tools, t)
			break
		}
	}
	if lang.name == "java" || lang.name == "node" || lang.name == "ruby" || lang.name == "php" {
		if t := r.c.g.lex.toolNamed(map[string]string{"node": "npm", "ruby": "ruby", "php": "php"}[lang.name]); t != nil {
			r.tools = append(r.tools, t)
		}
	}
}

// readNotAllow is a step that may not fail, where another one may.
func (r *reader) readNotAllow(n *node) {
	if s := r.subject(n, false); s != nil {
		s.tolerate = false
		return
	}
	r.add(&step{command: r.commandOf(n.get("c")), text: r.c.text(n.get("c")), verb: true}, n)
}

// readDepsFile installs what a file lists.
func (r *reader) readDepsFile(n *node) {
	f := r.plain(n.get("f"))
	if !strings.HasSuffix(f, ".txt") || !strings.Contains(f, "require") {
		r.fail(n, "how that is installed is not clear", "name the command: run `pip install -r "+f+"`")
		return
	}
	r.add(&step{command: "pip install -r " + f, text: r.c.text(n), verb: true}, n)
}

// readDoes is what a command is for, in words that nobody has to know: the command
// has to follow.
func (r *reader) readDoes(n *node) {
	if next := r.at + 1; next >= len(r.nodes) || r.nodes[next].name != "by" {
		r.fail(n, "no command is named that does it", "say: "+r.c.text(n)+" with `./a-script.sh`")
	}
}

// readFlaky is why something is tried again; what may fail without that is tolerated.
func (r *reader) readFlaky(n *node) {
	if n.name != "flaky.fail" {
		return
	}
	for _, next := range r.nodes[r.at+1:] {
		if strings.HasPrefix(next.name, "retry") {
			return
		}
		if !isSeparator(next.name) {
			break
		}
	}
	r.readTolerate(n)
}

// readParens is the commands of the purposes before it, in brackets.
func (r *reader) readParens(n *node) {
	var open []*step
	for _, s := range r.before() {
		if s.command == "" && s.uses == "" && s.purpose != "" {
			open = append(open, s)
		}
	}
	c := n.all("c")
	if len(open) != len(c) {
		r.fail(n, fmt.Sprintf("there are %d things to do and %d commands", len(open), len(c)), "say for each: lint with `make lint`, then test with `make test`")
		return
	}
	for i := range c {
		open[i].command, open[i].tool = r.commandOf(c[i]), ""
	}
}

// readBareVersion is versions of what the commands are of: "pytest on 3.12 and 3.13".
func (r *reader) readBareVersion(n *node) {
	r.queued = append(r.queued, func() {
		for _, s := range r.steps {
			if t := r.c.g.lex.toolOf(s.command); t != nil && r.c.g.lex.languageNamed(t.language) != nil && (n.name == "version.bare" || t.language == "rust") {
				var values []string
				for _, v := range n.all("v") {
					values = append(values, strings.TrimPrefix(r.plain(v), "v"))
				}
				lang := r.c.g.lex.languageNamed(t.language)
				if to := n.get("to"); to != nil {
					all, ok := between(values[len(values)-1], strings.TrimPrefix(r.plain(to), "v"), lang)
					if !ok {
						break
					}
					values = append(values[:len(values)-1], all...)
				}
				r.addVersion(n, lang, values)
				return
			}
		}
		r.fail(n, "of what these are versions is not said", "say: on python 3.12 and 3.13")
	})
}

// readBefore is a step that comes after what its clause names, or the rest of the
// sentence does.
func (r *reader) readBefore(n *node) {
	if r.segment < len(r.steps) || len(r.before()) > 0 {
		r.newGroup()
		r.add(r.stepOf(n.get("s")), n)
		return
	}
	s := r.add(r.stepOf(n.get("s")), n)
	r.segment = len(r.steps)
	r.queued = append(r.queued, func() {
		at := slices.Index(r.steps, s)
		last := at
		for last+1 < len(r.steps) && r.steps[last+1].sentence == s.sentence {
			last++
		}
		if last == at && len(r.cacheNodes) > 0 && len(r.steps) == 1 {
			return // "restore a cache of ~/.m2 before mvn verify"
		}
		if last == at {
			r.fail(n, "what is to be done before that is not said", "say: before `make deploy`, run `make test`")
			return
		}
		copy(r.steps[at:last], r.steps[at+1:last+1])
		r.steps[last] = s
	})
}

func (r *reader) readInputOpt(n *node) {
	if i := r.inputNamed(r.plain(n.get("i"))); i != nil {
		i.required = n.has("req")
	}
}

// readNowhere is what a condition on branches says anyway; there has to be one.
func (r *reader) readNowhere(n *node) {
	r.queued = append(r.queued, func() {
		bound := slices.ContainsFunc(r.steps, func(s *step) bool { return slices.ContainsFunc(s.conds, refOnly.MatchString) })
		for _, o := range r.occasions {
			bound = bound || len(o.t.branches["push"]) > 0
		}
		if !bound {
			r.fail(n, "on which branches is not said", "say: only on main")
		}
	})
}

func latestOf(lang, v string) string {
	switch {
	case lang == "go" && (v == "latest" || v == "stable"):
		return "stable"
	case lang == "node" && (v == "lts" || v == "lts/*" || v == "stable"):
		return "lts/*"
	case lang == "node" && v == "latest":
		return "latest"
	case lang == "ruby" && v == "head":
		return v
	case lang == "python" && (v == "latest" || v == "stable"):
		return "3.x"
	case lang == "rust" && v != "latest":
		return v
	case lang == "rust":
		return "stable"
	case lang == "bun", lang == "php":
		return "latest"
	case lang == "deno" && v == "latest":
		return "v2.x"
	case lang == "java" && (v == "latest" || v == "lts"):
		return ""
	case lang == "zig" && v != "lts", lang == "dart", lang == "flutter":
		return v
	case lang == "terraform":
		return "latest"
	}
	return ""
}

// runnerLabel is the runs-on of a system.
func runnerLabel(os, version string) string {
	switch os {
	case "ubuntu", "linux":
		if version != "" && os == "ubuntu" {
			if len(version) == 2 {
				version += ".04"
			}
			return "ubuntu-" + version
		}
		return "ubuntu-latest"
	case "debian":
		if version == "" {
			version = "12"
		}
		return "debian-" + version
	case "macos", "mac", "osx", "macosx":
		if version != "" {
			return "macos-" + version
		}
		return "macos-latest"
	case "windows":
		if version != "" {
			return "windows-" + version
		}
		return "windows-latest"
	}
	return ""
}

// claim notes that something was said which holds for a whole job; to say it again
// after another step would be to speak of another job.
func (r *reader) claim(what string, n *node) {
	if r.claims == nil {
		r.claims = map[string]int{}
	}
	if was, ok := r.claims[what]; ok && was != len(r.steps) && r.job == nil {
		r.fail(n, "one job has one "+what+", and another was named before",
			"say it job by job: a job that runs `make test` on ubuntu, and a job that runs `make check` on windows")
	}
	r.claims[what] = len(r.steps)
}

// readLogin logs the docker client in to a registry.
// pushed finds where an image goes.
var pushed = regexp.MustCompile(`\bdocker push (?:-\S+ )*([\w./:@$-]+)`)

func (r *reader) readLogin(n *node) {
	host, user, secret := "", `"$GITHUB_ACTOR"`, "GITHUB_TOKEN"
	reg := n.get("reg")
	switch {
	case n.name == "login.any":
		m := pushed.FindStringSubmatch(r.c.src)
		if m == nil {
			r.fail(n, "where is not said", "say: log in to docker hub with the secrets DOCKER_USER and DOCKER_PASSWORD")
			return
		}
		if first, _, ok := strings.Cut(m[1], "/"); ok && strings.ContainsAny(first, ".:") {
			host = " " + first
		}
	case reg == nil, reg.has("hub"):
	case reg.has("host") && r.plain(reg.get("host")) != "ghcr.io":
		host = " " + r.plain(reg.get("host"))
	default:
		host = " ghcr.io"
		r.p.perms = append(r.p.perms, [2]string{"contents", "read"}, [2]string{"packages", "write"})
	}
	var env [][2]string
	switch {
	case n.has("u"):
		u := r.plain(n.get("u"))
		secret = r.plain(n.get("p"))
		user = `"$` + u + `"`
		env = append(env, [2]string{u, "${{ secrets." + u + " }}"})
		if host == " ghcr.io" {
			r.p.perms = nil
		}
	case host != " ghcr.io":
		r.fail(n, "with which secrets is not said", "say: log in to docker hub with the secrets DOCKER_USER and DOCKER_PASSWORD")
		return
	}
	env = append(env, [2]string{secret, "${{ secrets." + secret + " }}"})
	r.add(&step{command: `echo "$` + secret + `" | docker login` + host + ` -u ` + user + ` --password-stdin`, env: env, verb: true, text: r.c.text(n)}, n)
}

func (r *reader) readOS(n *node) {
	r.claim("system", n)
	if w := r.words(n); (strings.HasSuffix(w, " too") || strings.HasSuffix(w, " as well")) && len(r.base.os) == 0 && r.job == nil && len(n.all("s")) == 1 {
		r.base.os = append(r.base.os, "ubuntu-latest") // beside where it runs anyway
	}
	if r.job != nil {
		base := r.base.os
		r.base.os = nil
		defer func(j *job) { j.os, r.base.os = append(j.os, r.base.os...), base }(r.job)
	}
	if n.has("all") {
		r.base.os = append(r.base.os, "ubuntu-latest", "macos-latest", "windows-latest")
		return
	}
	last, versioned := "", false
	for _, k := range n.kids {
		switch k.name {
		case "s":
			last, versioned = r.word(k), false
			r.base.os = append(r.base.os, runnerLabel(last, ""))
		case "v":
			switch {
			case r.word(k) == "latest":
			case versioned:
				r.base.os = append(r.base.os, runnerLabel(last, r.plain(k)))
			default:
				r.base.os[len(r.base.os)-1] = runnerLabel(last, r.plain(k))
				versioned = true
			}
		case "x86":
			r.base.os = append(r.base.os, "ubuntu-latest")
		case "arm":
			r.base.os = append(r.base.os, "ubuntu-24.04-arm")
		case "label":
			r.base.os = append(r.base.os, r.plain(k))
		}
	}
}

func (r *reader) readSelfHosted(n *node) {
	labels := []string{"self-hosted"}
	for _, l := range n.all("l") {
		labels = append(labels, r.plain(l))
	}
	if !strings.Contains(r.words(n), "self") && len(labels) == 2 {
		r.base.os = append(r.base.os, labels[1])
		return
	}
	r.base.os = append(r.base.os, "["+strings.Join(labels, ", ")+"]")
}

func (r *reader) readExclude(n *node) {
	l := r.c.g.lex.languageNamed(r.word(n.get("l")))
	if l == nil && len(r.base.versions) == 1 {
		l = r.base.versions[0].lang
	}
	if l == nil {
		r.fail(n, "of what that is a version is not clear", "say: except node 18 on windows")
		return
	}
	os := runnerLabel(r.word(n.get("s")), "")
	r.base.excludes = append(r.base.excludes, [2][2]string{{"os", os}, {l.key, strings.TrimPrefix(r.plain(n.get("v")), "v")}})
}

func (r *reader) readValues(n *node) {
	a := axis{}
	if as := n.all("a"); len(as) == 2 {
		k1, v1, _ := strings.Cut(r.plain(as[0]), "=")
		k2, v2, _ := strings.Cut(r.plain(as[1]), "=")
		if k1 != k2 {
			r.fail(n, "these are two variables", "say: with A=1 and B=2")
			return
		}
		a.env, a.values = k1, []string{v1, v2}
	} else {
		a.env = r.plain(n.get("k"))
		for _, v := range n.all("v") {
			a.values = append(a.values, r.plain(v))
		}
	}
	a.key = strings.ToLower(a.env)
	r.base.axes = append(r.base.axes, a)
}

func (r *reader) readContainer(n *node) {
	r.claim("container", n)
	image := r.plain(n.get("i"))
	if image == "" {
		image = r.word(n.get("ci"))
		switch image {
		case "go":
			image = "golang"
		case "java", "jdk":
			image = "eclipse-temurin"
		}
		if v := n.get("v"); v != nil {
			image += ":" + r.plain(v)
		}
	}
	if r.job != nil {
		r.job.container = image
		return
	}
	r.base.container = image
}

func (r *reader) readShell(n *node) {
	if c := n.get("c"); c != nil {
		r.add(&step{command: r.commandOf(c), text: r.c.text(c), verb: true}, n)
	}
	sh := r.word(n.get("s"))
	if sh == "zsh" || sh == "dash" || sh == "fish" {
		sh += " -e {0}"
	}
	if w := r.words(n); strings.Contains(w, "default") || strings.Contains(w, "all") || strings.Contains(w, "every") {
		r.p.shell = sh
		return
	}
	r.attach(modifier{name: "shell", apply: func(s *step) { s.shell = sh }})
}

// ---- artifacts, caches ----

var notName = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

func (r *reader) readArtifact(n *node) {
	var paths []string
	for _, p := range n.all("p") {
		paths = append(paths, r.plain(p))
	}
	if len(paths) == 0 {
		r.fail(n, "which file is not said", "say: upload dist/ as an artifact")
		return
	}
	name := ""
	if k := n.get("n"); k != nil {
		name = r.plain(k)
	} else {
		name = strings.Trim(notName.ReplaceAllString(paths[0], "-"), "-.")
		if len(paths) > 1 || name == "" {
			name = "artifact"
		}
	}
	s := &step{name: "Upload " + strings.Join(paths, ", "), uses: "actions/upload-artifact@v4", verb: true, text: r.c.text(n),
		with: [][2]string{{"name", name}, {"path", strings.Join(paths, "\n")}}}
	r.add(s, n)
	r.keep(s, n)
}

func (r *reader) readKeep(n *node) {
	for _, s := range slices.Backward(r.steps) {
		if strings.HasPrefix(s.uses, "actions/upload-artifact") {
			r.keep(s, n)
			return
		}
	}
	r.fail(n, "what is to be kept is not said", "say: upload dist/ as an artifact and keep it for 7 days")
}

func (r *reader) keep(s *step, n *node) {
	days := 0
	if d := n.get("d"); d != nil {
		days = r.number(d)
	}
	if n.has("week") {
		days = 7
		if w := n.get("w"); w != nil {
			days = 7 * r.number(w)
		}
	}
	if days < 0 || days > 400 {
		r.fail(n, "artifacts are kept between 1 and 400 days", "say: keep it for 7 days")
		return
	}
	if days > 0 {
		setPair(&s.with, "retention-days", strconv.Itoa(days))
	}
	if n.has("missing") {
		setPair(&s.with, "if-no-files-found", "error")
	}
	if n.has("quiet") {
		setPair(&s.with, "if-no-files-found", "ignore")
	}
}

func (r *reader) readDownload(n *node) {
	with := [][2]string{}
	if k := n.get("n"); k != nil {
		with = append(with, [2]string{"name", r.plain(k)})
	}
	if p := n.get("p"); p != nil {
		with = append(with, [2]string{"path", r.plain(p)})
	}
	if n.has("last") {
		for _, s := range slices.Backward(r.steps) {
			if strings.HasPrefix(s.uses, "actions/upload-artifact") {
				with = append([][2]string{s.with[0]}, with...)
				break
			}
		}
		if len(with) == 0 {
			r.fail(n, "what is to be downloaded is not said", "say: download the artifact app")
			return
		}
	}
	r.add(&step{name: "Download artifacts", uses: "actions/download-artifact@v4", with: with, download: true, verb: true}, n)
}

// cacheable says where things that people cache lie, and what they hang on.
var cacheable = map[string][3]string{ // path, key's files, name
	"pip": {"~/.cache/pip", "**/requirements*.txt", "pip"}, "python": {"~/.cache/pip", "**/requirements*.txt", "pip"}, "npm": {"~/.npm",
		"**/package-lock.json", "npm"},
	"node": {"~/.npm", "**/package-lock.json", "npm"}, "yarn": {"~/.cache/yarn", "**/yarn.lock", "yarn"}, "pnpm": {"~/.local/share/pnpm/store",
		"**/pnpm-lock.yaml", "pnpm"},
	"node_modules": {"node_modules", "**/package-lock.json", "node-modules"},
	"cargo":        {"~/.cargo/registry\n~/.cargo/git\ntarget", "**/Cargo.lock", "cargo"}, "rust": {"~/.cargo/registry\n~/.cargo/git\ntarget",
		"**/Cargo.lock", "cargo"},
	"target": {"target", "**/Cargo.lock", "target"}, "go": {"~/.cache/go-build\n~/go/pkg/mod", "**/go.sum", "go"},
	"gradle": {"~/.gradle/caches\n~/.gradle/wrapper", "**/*.gradle*\n**/gradle-wrapper.properties", "gradle"},
	"maven":  {"~/.m2/repository", "**/pom.xml", "maven"}, "java": {"~/.m2/repository", "**/pom.xml", "maven"},
	"composer": {"~/.cache/composer", "**/composer.lock", "composer"},
	"php":      {"~/.cache/composer", "**/composer.lock", "composer"}, "bundler": {"vendor/bundle", "**/Gemfile.lock", "gems"},
	"gem":  {"vendor/bundle", "**/Gemfile.lock", "gems"},
	"ruby": {"vendor/bundle", "**/Gemfile.lock", "gems"}, "poetry": {"~/.cache/pypoetry", "**/poetry.lock", "poetry"}, "uv": {"~/.cache/uv",
		"**/uv.lock", "uv"},
	"nuget": {"~/.nuget/packages", "**/*.csproj", "nuget"}, "dotnet": {"~/.nuget/packages", "**/*.csproj", "nuget"}, "hex": {"deps\n_build",
		"**/mix.lock", "mix"},
	"mix": {"deps\n_build", "**/mix.lock", "mix"}, "elixir": {"deps\n_build", "**/mix.lock", "mix"}, "bun": {"~/.bun/install/cache", "**/bun.lock*", "bun"},
	"ccache": {"~/.cache/ccache", "", "ccache"}, "sbt": {"~/.sbt\n~/.ivy2/cache\n~/.cache/coursier", "**/build.sbt", "sbt"},
	"deno":       {"~/.cache/deno", "**/deno.lock", "deno"},
	"pre-commit": {"~/.cache/pre-commit", "**/.pre-commit-config.yaml", "pre-commit"}, "playwright": {"~/.cache/ms-playwright",
		"**/package-lock.json", "playwright"},
}

// caches makes the steps of what is to be cached; they come first in every job.
func (r *reader) caches() []*step {
	var out []*step
	for _, n := range r.cacheNodes {
		var files []string
		for _, k := range n.all("k") {
			f := r.plain(k)
			if !strings.ContainsAny(f, "/*") {
				f = "**/" + f
			}
			files = append(files, f)
		}
		var whats []*node
		whats = append(whats, n.all("w")...)
		if n.has("deps") || n.has("any") {
			c := r.cacheOfTools()
			if c == "" {
				r.fail(n, "what is to be cached is not clear", "say: cache the npm downloads; or a path: cache ~/.cache/foo keyed on foo.lock")
				continue
			}
			out = append(out, cacheStep(cacheable[c], files))
			continue
		}
		seen := map[string]bool{}
		for _, w := range whats {
			c, ok := cacheable[r.word(w)]
			if !ok {
				r.fail(n, "I do not know where that lies", "give a path: cache ~/.cache/foo keyed on foo.lock")
				continue
			}
			if !seen[c[0]] {
				seen[c[0]] = true
				out = append(out, cacheStep(c, files))
			}
		}
		if ps := n.all("p"); len(ps) > 0 {
			var paths []string
			for _, p := range ps {
				if len(whats) > 0 && r.plain(p) == "build" && p.end < len(r.c.ts) && strings.HasPrefix(r.c.ts[p.end].word, "cache") {
					continue // "the module and build caches"
				}
				paths = append(paths, r.plain(p))
			}
			if len(paths) == 0 {
				continue
			}
			c := [3]string{strings.Join(paths, "\n"), "", strings.Trim(notName.ReplaceAllString(path.Base(strings.TrimRight(paths[0], "/")), "-"), "-.")}
			for _, name := range slices.Sorted(maps.Keys(cacheable)) { // in an order, so that what comes out is the same each time
				known := cacheable[name]
				if slices.Contains(strings.Split(known[0], "\n"), strings.TrimRight(paths[0], "/")) || strings.TrimRight(paths[0], "/") == "~/.cargo" &&
					known[2] == "cargo" || strings.TrimRight(paths[0], "/") == "~/.m2" && known[2] == "maven" {
					c[1], c[2] = known[1], known[2]
				}
			}
			out = append(out, cacheStep(c, files))
		}
	}
	return slices.CompactFunc(out, func(a, b *step) bool { return slices.Equal(a.with, b.with) })
}

func (r *reader) cacheOfTools() string {
	for _, s := range r.steps {
		if t := r.c.g.lex.toolOf(s.command); t != nil {
			for _, w := range append([]string{t.name}, t.words...) {
				if w == "bundle" {
					w = "bundler"
				}
				if _, ok := cacheable[w]; ok {
					return w
				}
			}
		}
	}
	for _, v := range r.base.versions {
		if _, ok := cacheable[v.lang.name]; ok {
			return v.lang.name
		}
	}
	return ""
}

func cacheStep(c [3]string, files []string) *step {
	if len(files) == 0 && c[1] != "" {
		files = strings.Split(c[1], "\n")
	}
	key := "${{ runner.os }}-" + c[2]
	with := [][2]string{{"path", c[0]}}
	if len(files) > 0 {
		var quoted []string
		for _, f := range files {
			quoted = append(quoted, exprString(f))
		}
		with = append(with, [2]string{"key", key + "-${{ hashFiles(" + strings.Join(quoted, ", ") + ") }}"}, [2]string{"restore-keys", key + "-"})
	} else {
		with = append(with, [2]string{"key", key + "-${{ github.sha }}"}, [2]string{"restore-keys", key + "-"})
	}
	return &step{name: "Cache " + c[2], uses: "actions/cache@v4", with: with}
}

// ---- jobs ----

func (r *reader) readParallel(n *node) {
	_, _, follows := r.follows()
	switch {
	case r.segment < len(r.steps) && !(r.endsWithColon() && follows):
		r.parallel[r.group] = true
		if w := r.words(n); strings.Contains(w, "each") || strings.Contains(w, "own") {
			r.parallel[r.group] = true
		}
	case follows && (r.endsWithColon() || len(r.before()) == 0 || r.afterThen):
		r.newGroup()
		r.parallel[r.group] = true
	case len(r.before()) > 0:
		r.parallel[r.group] = true
	case len(r.steps) > 0:
		// A sentence of its own: all that was named.
		g := r.steps[len(r.steps)-1].group
		if w := r.words(n); strings.Contains(w, "both") || strings.Contains(w, "all") || strings.Contains(w, "them") || strings.Contains(w,
			"those") || strings.Contains(w, "these") || strings.Contains(w, "everything") {
			for _, s := range r.steps {
				if s.group != g && s.sentence != r.steps[len(r.steps)-1].sentence {
					continue
				}
				s.group = g
			}
		}
		r.parallel[g] = true
	default:
		r.parallel[r.group] = true
	}
}

func (r *reader) readSerial(n *node) {
	_, _, follows := r.follows()
	if len(r.before()) == 0 && !follows && len(r.steps) > 0 {
		for _, s := range r.steps {
			r.serial[s.sentence] = true
		}
		return
	}
	r.serial[r.sentence] = true
	if r.endsWithColon() {
		r.colon()
	}
	if r.endsWithColon() || follows {
		r.serial[r.sentence+1] = r.serial[r.sentence+1] || r.listFollows()
	}
}

func (r *reader) listFollows() bool {
	return r.at+1 < len(r.nodes) && r.nodes[r.at+1].name == "line"
}

func (r *reader) readSeparate(n *node) {
	_, _, follows := r.follows()
	if len(r.before()) == 0 && !follows {
		for _, s := range r.steps {
			r.separate[s.sentence] = true
		}
		return
	}
	if r.words(n) == "in a separate job" || r.words(n) == "in its own job" || strings.HasPrefix(r.words(n), "as a ") ||
		strings.HasPrefix(r.words(n), "as its ") {
		// One step of its own.
		j := &job{explicit: true, needsPrev: true}
		if r.segment < len(r.steps) {
			r.steps[len(r.steps)-1].job = j
			r.explicit = append(r.explicit, j)
			r.job = &job{explicit: true, needsPrev: true}
		} else {
			r.job = j
		}
		return
	}
	r.separate[r.sentence] = true
	if r.ordered[r.sentence] {
		r.serial[r.sentence] = true
	}
	if r.endsWithColon() {
		r.colon()
		r.listSeparate()
	}
}

func (r *reader) listSeparate() {
	if r.listFollows() {
		for i := 1; i < 40; i++ {
			r.separate[r.sentence+i] = true
		}
	}
}

// readAtFirst brings what was named last to the beginning: "deploy with ./deploy.sh;
// run make test first".
func (r *reader) readAtFirst(n *node) {
	if r.segment == len(r.steps) {
		return
	}
	moved := slices.Clone(r.steps[r.segment:])
	for _, s := range moved {
		if s.status == "always" {
			s.status = "" // nothing comes before it that could fail
		}
	}
	r.steps = slices.Concat(moved, r.steps[:r.segment])
}

// readHeading may say that there is an order.
func (r *reader) readHeading(n *node) {
	w := r.words(n)
	if strings.Contains(w, "one at a time") && r.segment < len(r.steps) && len(r.steps) == 1 && r.p.group == nil {
		r.p.group = &concurrency{group: "${{ github.workflow }}"} // one step has no other to wait for: it is about runs
		if deploying(r.steps[0]) {
			r.p.group.group = "deploy"
		}
		return
	}
	if strings.Contains(w, "order") || strings.Contains(w, "after") || strings.Contains(w, "sequence") || strings.Contains(w, "turn") ||
		strings.Contains(w, "time") {
		r.ordered[r.sentence] = true
		if r.separate[r.sentence] {
			r.serial[r.sentence] = true
		}
	}
}

func (r *reader) readJob(n *node) {
	if direct, _, _ := r.follows(); n.name == "job.post" || strings.HasPrefix(r.words(n), "in ") && !direct && r.segment < len(r.steps) {
		if r.segment < len(r.steps) || !r.endsWithColon() && len(r.before()) > 0 {
			// "run a in one job and b in another"
			j := &job{explicit: true}
			c := r.coordinated()
			for _, s := range c {
				if s.job == nil || s.job == r.job {
					s.job = j
				}
			}
			r.explicit = append(r.explicit, j)
			r.job = nil
			return
		}
		j := &job{explicit: true}
		r.job = j
		r.explicit = append(r.explicit, j)
		return
	}
	j := &job{explicit: true, needsPrev: n.has("then")}
	if r.afterThen && len(r.explicit) > 0 && r.at > 0 && (r.nodes[r.at-1].name == "then" || r.nodes[r.at-1].name == "finally") {
		j.needsPrev = true
	}
	if k := n.get("id"); k != nil {
		j.id = "job-" + r.plain(k)
	}
	if k := n.get("j"); k != nil {
		j.id = jobID(r.plain(k))
		if w := r.words(k); purposeWord[w] != "" {
			j.purpose = purposeWord[w]
		}
	}
	if r.passNext != nil {
		r.passNext(j)
		r.passNext = nil
	}
	r.needsOf(n, j)
	r.job = j
	r.explicit = append(r.explicit, j)
	r.segment = len(r.steps)
	r.drop(func(m *modifier) bool { return m.used && !m.toAll && m.name != "dir" })
}

func (r *reader) needsOf(n *node, j *job) {
	for _, k := range n.all("n") {
		j.needsNames = append(j.needsNames, strings.TrimPrefix(strings.TrimPrefix(r.words(k), "the "), "a "))
	}
	if n.has("all") {
		j.needsAll = true
	}
	if n.has("prev") {
		j.needsPrev = true
	}
}

func (r *reader) readNeeds(n *node) {
	if who := n.get("who"); who != nil { // "deploy needs lint and test", of jobs that are named before
		name := r.words(who)
		r.queued = append(r.queued, func() {
			for _, j := range r.explicit {
				if j.id == jobID(r.plain(who)) || j.purpose != "" && j.purpose == purposeWord[name] {
					r.needsOf(n, j)
					return
				}
			}
			r.fail(n, "no such job is named", "name the jobs: a job called build that runs `make`, and a job called test that needs build and runs `make test`")
		})
		return
	}
	if k := len(r.explicit); r.job == nil && k > 0 && r.at > 0 && strings.HasPrefix(r.nodes[r.at-1].name, "job") {
		j := r.explicit[k-1] // "make b in a second job which waits for the first"
		r.needsOf(n, j)
		return
	}
	if r.job != nil {
		r.needsOf(n, r.job)
		return
	}
	if r.segment == len(r.steps) {
		if _, _, step := r.follows(); step {
			r.newGroup()
			return
		}
	}
	if len(r.before()) > 1 {
		last := r.steps[len(r.steps)-1]
		r.group++
		last.group = r.group
		r.groupStart = len(r.steps) - 1
	}
}

func (r *reader) readAfterBoth(n *node) {
	if r.job != nil && r.segment == len(r.steps) && r.at > 0 {
		// "once both are done, a job …": the next job needs all.
		r.queued = append(r.queued, func() {})
	}
	r.newGroupHere()
	r.afterThen = true
	if r.job != nil {
		if r.segment < len(r.steps) || r.steps == nil {
			r.job.needsAll = true
		} else {
			j := &job{explicit: true, needsAll: true}
			r.job = j
			r.explicit = append(r.explicit, j)
		}
	}
	r.drop(func(m *modifier) bool { return m.used && m.tight })
}

// ---- the workflow around it ----

func (r *reader) readConcurrency(n *node) {
	g := &concurrency{group: "${{ github.workflow }}-${{ github.ref }}", cancel: true}
	if n.name == "concurrency.per" {
		g.cancel = strings.Contains(r.words(n), "cancels")
	} else if n.has("only") || n.has("g") || n.has("nocancel") {
		g.cancel = false
	}
	if k := n.get("g"); k != nil {
		g.group = r.plain(k)
	} else if n.has("only") && !n.has("per") {
		g.group = "${{ github.workflow }}"
		if w := r.words(n.get("what")); strings.HasPrefix(w, "deploy") {
			g.group = "deploy"
		}
	} else if n.has("nocancel") && strings.Contains(r.words(n), "deploy") {
		g.group = "deploy"
	}
	if !n.has("only") && !n.has("g") && n.has("nocancel") && r.p.group != nil {
		r.p.group.cancel = false
		return
	}
	if r.p.group != nil && n.has("only") != !r.p.group.cancel {
		// "only one at a time; cancel the older"
		r.p.group.cancel = r.p.group.cancel || g.cancel
		return
	}
	r.p.group = g
}

func (r *reader) readEnvironment(n *node) {
	e := r.plain(n.get("e"))
	if prod := strings.ToLower(e); prod == "prod" || prod == "dev" {
		e = prod
	}
	r.attach(modifier{name: "environment", apply: func(s *step) { s.environment = e }})
	if strings.Contains(r.words(n), "appro") || strings.Contains(r.words(n), "sign") {
		r.approvalNote(e)
	}
}

func (r *reader) approvalNote(e string) {
	r.p.notes = append(r.p.notes, fmt.Sprintf("who must approve is a setting of the environment %s, not of the workflow: give it required reviewers", e))
}

func (r *reader) readApproval(n *node) {
	r.approval = true
	if e := n.get("e"); e != nil {
		r.attach(modifier{name: "environment", apply: func(s *step) { s.environment = r.plain(e) }})
		r.approvalNote(r.plain(e))
		return
	}
	r.attach(modifier{name: "environment", apply: func(s *step) {
		if s.environment == "" {
			s.environment = "?approval"
		}
	}})
}

// readDestination is the place that something is deployed to.
func (r *reader) readDestination(n *node) {
	b := r.before()
	if len(b) == 0 || !deploying(b[len(b)-1]) {
		e := r.plain(n.get("e"))
		r.queued = append(r.queued, func() {
			if !slices.ContainsFunc(r.steps, func(s *step) bool { return s.environment == e }) {
				r.fail(n, "I do not understand where that is", "say: in the environment "+e+"; or in the directory …")
			}
		})
		return
	}
	b[len(b)-1].name = ""
}

func (r *reader) inputNamed(name string) *input {
	for i := range r.p.inputs {
		if r.p.inputs[i].name == name {
			return &r.p.inputs[i]
		}
	}
	return nil
}

func (r *reader) readInput(n *node) {
	if n.name == "input.choice" || n.name == "input.pick" {
		r.oneInput(n, n)
	} else {
		for _, in := range n.all("in") {
			r.oneInput(n, in)
		}
	}
	r.job = nil
	has := false
	for _, o := range r.occasions {
		has = has || slices.Contains(o.t.events, "workflow_dispatch") || slices.Contains(o.t.events, "workflow_call")
	}
	if !has {
		o := &occasion{whole: true, text: r.c.text(n)}
		o.t.add("workflow_dispatch")
		r.queued = append(r.queued, func() {
			for _, x := range r.occasions {
				if slices.Contains(x.t.events, "workflow_dispatch") || slices.Contains(x.t.events, "workflow_call") {
					return
				}
			}
			r.occasions = append(r.occasions, o)
		})
	}
	if r.endsWithColon() {
		r.segment = len(r.steps)
	}
}

func (r *reader) oneInput(n, in *node) {
	if in == nil {
		return
	}
	i := input{name: r.plain(in.get("n"))}
	if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`).MatchString(i.name) {
		r.fail(n, strconv.Quote(i.name)+" is no name of an input", "an input's name is like version or dry-run")
		return
	}
	opts := &node{kids: slices.Concat(n.kids, in.kids)}
	if n == in {
		opts = n
	}
	if strings.HasPrefix(r.words(in), "more") {
		opts = in
	}
	for _, o := range opts.kids {
		switch o.name {
		case "req":
			i.required = true
		case "bool":
			i.kind = "boolean"
		case "num":
			i.kind = "number"
		case "str":
			i.kind = "string"
		case "def":
			i.deflt = r.plain(o.get("dv"))
		case "desc":
			i.about = r.plain(o)
		case "c":
			i.options = append(i.options, r.plain(o))
		case "k":
			switch r.word(o) {
			case "required", "mandatory":
				i.required = true
			case "boolean", "checkbox", "bool":
				i.kind = "boolean"
			case "number", "numeric":
				i.kind = "number"
			case "string", "text":
				i.kind = "string"
			}
		}
	}
	if len(i.options) > 0 {
		i.kind = "choice"
		if i.deflt != "" && !slices.Contains(i.options, i.deflt) {
			r.fail(n, "the default "+i.deflt+" is none of its choices", "name it among them")
		}
	}
	if r.inputNamed(i.name) != nil {
		r.fail(n, "there are two inputs of that name", "give each a name of its own")
		return
	}
	r.p.inputs = append(r.p.inputs, i)
	if more := in.get("more"); more != nil {
		r.oneInput(more, more)
	}
}

// readUseInput gives inputs to the command before it.
func (r *reader) readUseInput(n *node) {
	var names []string
	for _, i := range n.all("i") {
		names = append(names, r.plain(i))
	}
	if len(names) == 0 {
		for _, i := range r.p.inputs {
			names = append(names, i.name)
		}
	}
	if len(names) == 0 {
		r.fail(n, "there is no such input", "say first: manually, with an input version")
		return
	}
	as := r.plain(n.get("as"))
	envOnly := as != "" || strings.Contains(r.words(n), "environment") || strings.Contains(r.words(n), "variable")
	b := r.before()
	if len(b) == 0 {
		b = r.steps
	}
	if len(b) == 0 {
		r.fail(n, "what is to get it is not said", "say: run `./release.sh` with that version")
		return
	}
	s := b[len(b)-1]
	for _, name := range names {
		i := r.inputNamed(name)
		if i == nil {
			r.fail(n, "there is no input "+name, "say first: manually, with an input "+name)
			return
		}
		i.used = true
		v := as
		if v == "" {
			v = variableOf(name)
		}
		setPair(&s.env, v, "${{ inputs."+name+" }}")
		if !envOnly {
			s.command += ` "$` + v + `"`
		}
	}
}

func variableOf(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

func (r *reader) readPermission(n *node) {
	if n.has("ro") || n.has("no") {
		r.p.readOnly = n.has("ro")
		if n.has("no") {
			r.p.perms = append(r.p.perms, [2]string{"", "none"})
		}
		return
	}
	ps, as := n.all("p"), n.all("a")
	for i, p := range ps {
		a := "read"
		if i < len(as) {
			a = r.word(as[i])
		}
		if a == "read-only" {
			a = "read"
		}
		setPair(&r.p.perms, r.word(p), a)
	}
}

func (r *reader) readNotify(n *node) {
	chat := r.words(n.get("ch"))
	field := "text"
	what := "Slack"
	switch {
	case strings.Contains(chat, "discord"):
		field, what = "content", "Discord"
	case strings.Contains(chat, "teams"):
		what = "Teams"
	case strings.Contains(chat, "slack"):
	default:
		what = "webhook"
	}
	s := &step{name: "Notify " + what, notify: true, verb: true, text: r.c.text(n)}
	message := r.plain(n.get("m"))
	s.with = [][2]string{{"field", field}, {"message", message}}
	variable := "WEBHOOK"
	if sec := n.get("s"); sec != nil {
		names, _ := r.secrets(&node{kids: append(sec.kids, asSecret(sec)...)})
		if len(names) > 0 {
			variable = names[0]
			s.env = [][2]string{{variable, "${{ secrets." + names[0] + " }}"}}
		}
	}
	s.command = "$" + variable
	r.add(s, n)
	if n.has("fl") {
		s.status = "failure"
	}
}

// asSecret is a Secret that was captured as a whole.
func asSecret(n *node) []*node {
	if len(n.kids) > 0 {
		return nil
	}
	return []*node{{name: "n", start: n.start, end: n.end}}
}

func (r *reader) readPages(n *node) {
	dir := ""
	if p := n.get("p"); p != nil {
		dir = r.plain(p)
	} else {
		for _, s := range slices.Backward(r.steps) {
			if strings.HasPrefix(s.uses, "actions/upload-artifact") {
				for _, kv := range s.with {
					if kv[0] == "path" {
						dir = kv[1]
					}
				}
				break
			}
			if d := siteOf(s); d != "" {
				dir = d
				break
			}
		}
	}
	if dir == "" {
		r.fail(n, "which directory holds the site is not said", "say: deploy the folder public to GitHub Pages")
		return
	}
	r.pages = true
	r.add(&step{name: "Upload the site", uses: "actions/upload-pages-artifact@v3", with: [][2]string{{"path", dir}}, verb: true,
		purpose: "pages", text: r.c.text(n)}, n)
	r.add(&step{id: "deployment", name: "Deploy to GitHub Pages", uses: "actions/deploy-pages@v4", verb: true, purpose: "pages"}, n)
}

// siteOf is where a command that builds a site puts it.
func siteOf(s *step) string {
	switch c := s.command; {
	case strings.HasPrefix(c, "hugo"), strings.HasPrefix(c, "gatsby"), strings.HasPrefix(c, "zola"):
		return "public"
	case strings.Contains(c, "jekyll build"):
		return "_site"
	case strings.HasPrefix(c, "mkdocs"):
		return "site"
	case strings.HasPrefix(c, "mdbook"):
		return "book"
	case strings.Contains(c, "eleventy"):
		return "_site"
	}
	return ""
}
