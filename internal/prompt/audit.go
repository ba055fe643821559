package prompt

import (
	"regexp"
	"slices"
	"strings"
)

// This file holds a workflow against the request that it was made of, without
// asking the grammar. The grammar says what each word may mean, and a fragment may
// cover a word and its meaning forget it: the command in "even if make e2e fails",
// an "only" that restricts nothing. What comes out then is a workflow that looks
// right and is not. So whatever in a request is plain to see (commands, paths, what
// is quoted, numbers, assignments, names) has to be found again in the
// workflow, and whatever it speaks of (caches, secrets, systems, …) has to be there.

// audit reports what of the request is not in the workflow.
func (r *reader) audit(yaml string) {
	a := &auditor{reader: r, have: haystack(yaml)}
	a.commandsKept()
	for _, n := range r.nodes {
		a.fragment = n
		a.kept(n)
	}
	a.commandsMissed()
	a.prose()
	a.subjects()
	a.order()
	a.jobsCounted()
	a.unasked()
	a.idle()
}

type auditor struct {
	*reader
	have     string
	fragment *node  // the one that is looked at
	running  []bool // tokens that belong to a command that is run
}

// haystack is a workflow without the parts that repeat the request, with single spaces.
func haystack(yaml string) string {
	var b strings.Builder
	for line := range strings.Lines(yaml) {
		t := strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "name:") || strings.HasPrefix(t, "- name:") {
			continue
		}
		b.WriteString(line)
	}
	return spaced(strings.ReplaceAll(b.String(), "''", "'"))
}

func spaced(s string) string { return strings.Join(strings.Fields(s), " ") }

func (a *auditor) lost(n *node, what string) {
	a.fail(n, "the workflow would be without "+what, "say it in a sentence of its own; commands stand in backquotes: run `make check`")
}

func (a *auditor) has(s string) bool { return s == "" || strings.Contains(a.have, spaced(s)) }

// command says whether a command is run, line by line.
func (a *auditor) command(c string) bool {
	for line := range strings.Lines(c) {
		line = strings.TrimSuffix(spaced(line), `\`)
		if !a.has(line) && !slices.ContainsFunc(a.p.inputs, func(i input) bool { return strings.Contains(line, i.name) }) {
			return false
		}
	}
	return true
}

// isCommand says whether a node was read as a command.
func (a *auditor) isCommand(n *node) bool {
	return n.name == "c" && slices.ContainsFunc(a.c.commands(n.start), func(s span) bool { return s.end == n.end })
}

// commandsKept looks for the commands that the grammar found.
func (a *auditor) commandsKept() {
	var walk func(n, k *node)
	walk = func(n, k *node) {
		if a.isCommand(k) && !a.command(a.commandOf(k)) {
			a.lost(n, "`"+a.c.text(k)+"`")
		}
		for _, kid := range k.kids {
			walk(n, kid)
		}
	}
	for _, n := range a.nodes {
		walk(n, n)
	}
}

// inexact are fragments whose numbers are written in another way in a workflow, or
// not at all.
var inexact = set("sched onpush on onlyev otherrun zone timeout retry keep artifact job separate parallel serial failfast first bullet then needs afterboth onpass onfail")

// unbound are fragments that only say what the request is about.
var unbound = set("title title2 title3 title4 lead lead2 named gloss zone heading draft message")

// kept looks for what is plain to see in a fragment, and for the names it took.
func (a *auditor) kept(n *node) {
	base, _, _ := strings.Cut(n.name, ".")
	if unbound[base] {
		return
	}
	for i := n.start; i < n.end; i++ {
		if n.name == "purpose.path" || (n.name == "command.by" || n.name == "command.label") && n.get("c").start > i {
			continue // what the command that is named does it to
		}
		t := a.c.ts[i]
		switch {
		case t.kind == word && abbreviations[strings.ToLower(t.text)] != "":
			continue
		case t.kind == literal, t.kind == code, t.kind == word && assignment.MatchString(t.text), t.kind == word && envName.MatchString(t.text) &&
			strings.Contains(t.text, "_"), t.kind == word && pathLike.MatchString(t.text) && strings.ContainsAny(t.text, "/.*"):
		case t.kind == word && number.MatchString(t.text) && !inexact[base]:
		default:
			continue
		}
		if !a.kind(t) && !a.inCommand(i) {
			a.lost(n, t.text)
		}
	}
	for _, k := range n.kids {
		a.named(n, k)
	}
}

// named looks for names of the request's own that the grammar captured.
func (a *auditor) named(n, k *node) {
	for _, kid := range k.kids {
		a.named(n, kid)
	}
	if len(k.kids) > 0 || k.end != k.start+1 {
		return
	}
	if t := a.c.ts[k.start]; t.kind == word && plainName.MatchString(t.text) && !a.c.g.lex.knows(t.word) && a.c.g.lex.programs[t.text] == nil &&
		!t.mended && !a.kind(t) {
		a.lost(n, t.text)
	}
}

// kind says whether a token is in the workflow in one of the ways in which it may be written there.
func (a *auditor) kind(t token) bool {
	s := t.text
	if t.kind == word && assignment.MatchString(s) {
		k, v, _ := strings.Cut(s, "=")
		return a.has(k) && a.has(unquote(v))
	}
	for _, form := range []string{s, strings.TrimPrefix(s, "./"), strings.TrimSuffix(s, "/"), strings.Trim(strings.TrimPrefix(s, "./"), "/*"),
		strings.TrimPrefix(strings.ToLower(s), "v"), strings.ToLower(s), jobID(s), "**/" + s, strings.ReplaceAll(s, "'", "''"),
		strings.TrimPrefix(s, "*")} {
		if form != "" && a.has(form) {
			return true
		}
	}
	if m := secretRef.FindStringSubmatch(s); m != nil {
		return a.has("secrets." + m[1])
	}
	if m := langVersion.FindStringSubmatch(s); m != nil {
		return a.has(m[1])
	}
	// Text is escaped where it goes into a message or a variable.
	if t.kind == literal || t.kind == code {
		plain := regexp.MustCompile(`[A-Za-z0-9_.-]+`).FindAllString(s, -1)
		return !slices.ContainsFunc(plain, func(w string) bool { return !a.has(w) })
	}
	return strings.HasPrefix(s, "#") || a.isTagExample(s) || s == "v-tags" || s == "v-tag" || zoneWord.MatchString(t.word)
}

// isTagExample says whether a token is one tag that stands for all of its kind.
func (a *auditor) isTagExample(s string) bool { return number.MatchString(s) && a.has("*.*") }

// inCommand says whether a token belongs to a command that is run.
func (a *auditor) inCommand(at int) bool {
	if a.running == nil {
		a.running = make([]bool, len(a.c.ts))
		for i := range a.c.ts {
			for _, s := range a.c.commands(i) {
				if a.command(a.commandOf(&node{start: i, end: s.end})) {
					for k := i; k < s.end; k++ {
						a.running[k] = true
					}
				}
			}
		}
	}
	return a.running[at]
}

// onSteps are fragments about steps that they name.
var onSteps = set("onpass onfail always tolerate allow surepass passes")

// commandsMissed looks for commands that no fragment took as such and that lie
// across fragments, so that none explains them.
func (a *auditor) commandsMissed() {
	owner := make([]int, len(a.c.ts))
	for k, n := range a.nodes {
		for i := n.start; i < n.end; i++ {
			owner[i] = k
		}
	}
	taken := make([]bool, len(a.c.ts))
	var walk func(*node)
	walk = func(n *node) {
		if a.isCommand(n) {
			for i := n.start; i < n.end; i++ {
				taken[i] = true
			}
		}
		for _, k := range n.kids {
			walk(k)
		}
	}
	for _, n := range a.nodes {
		walk(n)
	}
	for i := range a.c.ts {
		if taken[i] || a.c.ts[i].kind == literal {
			continue
		}
		for _, s := range a.c.commands(i) {
			base, _, _ := strings.Cut(a.nodes[owner[i]].name, ".")
			if s.end < i+2 || owner[i] == owner[s.end-1] && !empty[base] && !onSteps[base] || s.cost > 2 {
				continue
			}
			n := &node{start: i, end: s.end}
			if !a.command(a.commandOf(n)) {
				a.lost(n, "`"+a.c.text(n)+"`")
			}
		}
	}
}

// proseWords never are arguments.
var proseWords = set("the and only unless when please should which otherwise even both after before every passes fails following because whenever instead if then")

// prose looks for words of the sentence in commands that were not quoted.
func (a *auditor) prose() {
	var walk func(n, k *node)
	walk = func(n, k *node) {
		if a.isCommand(k) && a.c.ts[k.start].kind == word && a.c.ts[k.start].word != "echo" {
			for i := k.start + 1; i < k.end; i++ {
				if t := a.c.ts[i]; t.kind == word && proseWords[t.text] {
					a.fail(n, "“"+t.text+"” stands in the command", "put the command in backquotes: run `make check`")
				}
			}
		}
		for _, kid := range k.kids {
			walk(n, kid)
		}
	}
	for _, n := range a.nodes {
		walk(n, n)
	}
}

// jobsCounted holds the number of jobs against what is said of it.
func (a *auditor) jobsCounted() {
	for i, t := range a.c.ts {
		if t.word != "jobs" || i == 0 || a.inCommand(i) {
			continue
		}
		from := i - 1
		for from > 0 && a.c.g.lex.english(a.c.ts[from].word) && !a.c.isClass("num", from) && i-from < 3 {
			from--
		}
		if n := a.number(&node{start: from, end: from + 1}); a.c.isClass("num", from) && n > len(a.p.jobs) && n < 20 && a.c.ts[from].word != "one" {
			a.lost(&node{start: from, end: i + 1}, a.c.src[a.c.ts[from].start:t.end])
		}
	}
}

// order looks for what is said to come after a command: "./deploy.sh, after make test".
func (a *auditor) order() {
	command := func(i int) string {
		if i < 0 || i >= len(a.nodes) {
			return ""
		}
		if c := a.nodes[i].get("c"); c != nil && (strings.HasPrefix(a.nodes[i].name, "command") || a.nodes[i].name == "by") {
			return a.commandOf(c)
		}
		return ""
	}
	for i, n := range a.nodes {
		c := n.get("c")
		if n.name != "onpass" && n.name != "passes" {
			continue
		}
		if what, _ := a.purposeOf(n.get("s")); what != "" && c == nil { // "after build"
			a.jobWaits(n, what)
			continue
		}
		if c == nil || !a.isCommand(c) {
			continue
		}
		what := command(i + 1)
		if what == "" && i+1 < len(a.nodes) && a.nodes[i+1].name == "colon" {
			what = command(i + 2)
		}
		for k := i - 1; k >= 0 && what == ""; k-- {
			what = command(k)
		}
		if x, y := a.jobOf(a.commandOf(c)), a.jobOf(what); x != nil && y != nil && x != y {
			if !waits(y, x, 0) {
				a.fail(n, "nothing would wait for it", "say which jobs need which: job test runs `make test` and needs build")
			}
			continue
		}
		first, then := strings.Index(a.have, spaced(a.commandOf(c))), strings.Index(a.have, spaced(what))
		if what != "" && first >= 0 && then >= 0 && then < first && what != a.commandOf(c) {
			a.fail(n, "it is not clear what comes first", "name the steps in their order: run `make test`, then `./deploy.sh`")
		}
	}
}

// jobWaits looks for the wait of a job for another one that is named by its purpose.
func (a *auditor) jobWaits(n *node, what string) {
	if len(a.explicit) < 2 {
		return
	}
	var first, own *job
	for _, j := range a.p.jobs {
		if j.purpose == what || j.id == what {
			first = j
		}
	}
	for i := n.end; i < len(a.c.ts) && own == nil; i++ {
		for _, s := range a.c.commands(i) {
			if j := a.jobOf(a.commandOf(&node{start: i, end: s.end})); j != nil {
				own = j
			}
		}
		if a.c.ts[i].text == "." || a.c.ts[i].text == ";" || a.c.ts[i].text == "\n" {
			break
		}
	}
	if first != nil && own != nil && !waits(own, first, 0) {
		a.fail(n, "nothing would wait for it", "say which jobs need which: job test runs `make test` and needs build")
	}
}

// jobOf is the job that runs a command; nil if none or several do.
func (a *auditor) jobOf(command string) *job {
	var found *job
	for _, j := range a.p.jobs {
		if command != "" && slices.ContainsFunc(j.steps, func(s *step) bool { return s.command == command }) {
			if found != nil {
				return nil
			}
			found = j
		}
	}
	return found
}

// waits says whether a job runs after another one, by way of others too.
func waits(j, other *job, depth int) bool {
	return j == other || depth < len(j.steps)+64 && slices.ContainsFunc(j.needs, func(k *job) bool { return waits(k, other, depth+1) })
}

// subjects are words that speak of something which is then to be seen in a
// workflow, unless they stand in a command or in a name.
var subjectsOf = []struct {
	words map[string]bool
	sign  *regexp.Regexp
	what  string
}{
	{set("cron daily weekly monthly hourly weekday weekdays midnight"), regexp.MustCompile(`cron: `), "a schedule"},
	{set("pr"), regexp.MustCompile(`pull_request|merge_group|issue|!startsWith|: push|on: push:`), "pull requests"},
	{set("cache cached caching caches"), regexp.MustCompile(`actions/cache|cache: `), "a cache"},
	{set("artifact artifacts"), regexp.MustCompile(`-artifact@`), "an artifact"},
	{set("secret secrets"), regexp.MustCompile(`secrets\.|PASSWORD`), "a secret"},
	{set("windows"), regexp.MustCompile(`(?i)windows`), "windows"},
	{set("macos mac osx"), regexp.MustCompile(`(?i)macos`), "macos"},
	{set("retry retries retrying attempts"), regexp.MustCompile(`for attempt in`), "another try"},
	{set("timeout"), regexp.MustCompile(`timeout`), "a time limit"},
	{set("parallel concurrently simultaneously"), regexp.MustCompile(`strategy:|concurrency:|jobs:.* steps:.* steps:`), "anything side by side"},
	{set("manually workflow_dispatch"), regexp.MustCompile(`workflow_dispatch|workflow_call`), "a start by hand"},
	{set("merge_group"), regexp.MustCompile(`merge_group`), "the merge queue"},
	{set("approval approve approved approves approvers"), regexp.MustCompile(`environment: `), "an approval"},
	{set("unless only except solely exclusively"), regexp.MustCompile(
		` if: |branches|tags:|paths|schedule:|dispatch:|types:|exclude:|release:|only|concurrency:|on: (?:push|pull_request): jobs|windows|macos|permissions:`), "a condition"},
	{set("fails failure fail failing broken breaks"),
		regexp.MustCompile(`failure|always\(\)|continue-on-error|!cancelled|fail-fast|if-no-files|needs:|for attempt`), "what depends on a failure"},
	{set("slack discord teams webhook"), regexp.MustCompile(`curl|slack|discord`), "a message"},
	{set("container"), regexp.MustCompile(`container: |services:|docker|podman`), "a container"},
	{set("input inputs"), regexp.MustCompile(`inputs`), "an input"},
	{set("draft drafts"), regexp.MustCompile(`draft`), "a draft"},
	{set("concurrency"), regexp.MustCompile(`concurrency`), "a concurrency group"},
}

// subjects looks for what the request speaks of.
func (a *auditor) subjects() {
	for _, n := range a.nodes {
		if base, _, _ := strings.Cut(n.name, "."); base == "named" || base == "title3" || n.name == "env.cmd" || base == "onpass" || base == "onfail" {
			continue // "only if it succeeded" is what happens anyway
		}
		for i := n.start; i < n.end; i++ {
			t := a.c.ts[i]
			if t.kind != word || a.inCommand(i) {
				continue
			}
			for _, s := range subjectsOf {
				have := a.have
				if s.what == "a condition" {
					have = strings.NewReplacer(" if: always()", "", " if: failure()", "").Replace(have)
				}
				if s.words[t.word] && !s.sign.MatchString(have) {
					a.lost(n, s.what)
				}
			}
		}
	}
}

// unasked are parts of a workflow that only words like these ask for.
var unaskedFor = []struct {
	sign  string
	words *regexp.Regexp
	what  string
}{
	{"concurrency:", regexp.MustCompile(`cancel|concurren|at a time|at once|at the same time|queue|overlap|parallel|supersed|newest|latest|wait|simultaneous|abort|stop|kill|one after|single|only one|just one|one run|one at`), "a concurrency group"},
	{"continue-on-error:",
		regexp.MustCompile(`fail|ignor|optional|allow|block|tolera|stop|error|effort|advis|break|abort|go on|going|carry on|continue|matter`),
		"to go on after a failure"},
	{"if: failure()", regexp.MustCompile(`fail|error|break|broke|wrong|red|otherwise|else|crash|if not|doesn't|does not|green|pass|succeed|blow|fall`),
		"a condition on failure"},
	{"if: always()", regexp.MustCompile(`always|any case|every case|all cases|either way|no matter|whatever|regardless|even|whether|come what|success or|pass or|irrespective|outcome|result|unconditionally|all times|circumstances|worse|also if|including`), "that it always runs"},
	{"container:", regexp.MustCompile(`container|docker|image|:|inside`), "a container"},
	{"timeout-minutes:", regexp.MustCompile(`minute|min\b|mins|hour|\d ?[mhs]\b|second|limit|timeout|time-out|\bhr`), "a time limit"},
}

// unasked looks for what the request does not speak of.
func (a *auditor) unasked() {
	said := strings.ToLower(a.c.src)
	for _, u := range unaskedFor {
		if strings.Contains(a.have, u.sign) && !u.words.MatchString(said) {
			a.problem(strings.TrimSpace(a.p.request), "the workflow would have "+u.what+", which is not asked for", "say it in sentences of their own")
		}
	}
}

// effectless are fragments that may change nothing: what they say happens anyway.
var effectless = set("aside onpass passes useinput afterboth done onpush on os sched retry lead3 tolerate mustpass by checkout tool purpose open close job dash command deps does always concurrency parallel separate approval environment to mode parens each nowhere")

// idle looks for fragments without which the workflow would be the same: what
// they say was forgotten.
func (a *auditor) idle() {
	if len(a.problems) > 0 {
		return
	}
	for i, n := range a.nodes {
		base, _, _ := strings.Cut(n.name, ".")
		if isSeparator(n.name) || empty[n.name] || empty[base] || effectless[base] || base == "needs" && a.has("needs:") {
			continue
		}
		without := read(a.c, slices.Delete(slices.Clone(a.nodes), i, i+1))
		if len(without.problems) == 0 && haystack(without.p.write()) == a.have {
			a.fail(n, "it would change nothing", "say it in a sentence of its own; commands stand in backquotes: run `make check`")
		}
	}
}
