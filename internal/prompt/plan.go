package prompt

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// plan is what a request asks for, before it is laid out as YAML.
type plan struct {
	request  string
	name     string
	on       triggers
	inputs   []input
	shell    string
	perms    [][2]string
	readOnly bool
	group    *concurrency
	jobs     []*job
	notes    []string
}

type triggers struct {
	events   []string // in order of mention
	branches map[string][]string
	ignored  map[string][]string // branches-ignore
	types    map[string][]string
	tags     []string
	paths    []string
	notPaths []string
	crons    []string
	runs     []string // workflows, of workflow_run
	runOn    []string // its branches
}

type input struct {
	name, kind, deflt, about string
	required                 bool
	options                  []string
	used                     bool
}

type concurrency struct {
	group  string
	cancel bool
}

type job struct {
	id, purpose string
	needs       []*job
	conds       []string
	status      string
	steps       []*step
	os          []string
	container   string
	environment string
	timeout     string
	tolerate    bool
	versions    []*version
	services    []*serviceSpec
	axes        []axis
	excludes    [][2][2]string
	noFailFast  bool
	tolerable   [][2]string // cells that may fail: the matrix's key and value
	maxParallel string
	permissions [][2]string
	needsNames  []string
	needsAll    bool
	needsPrev   bool
	explicit    bool
	checkout    [][2]string
}

type axis struct {
	key    string
	values []string
	env    string // the variable that gets the value
}

type version struct {
	lang   *language
	values []string
}

type serviceSpec struct {
	name, image string
	env         [][2]string
	ports       []string
	health      string
}

// step is one thing to do.
type step struct {
	id, name      string
	command       string
	purpose, tool string // what it is for, where no command is named
	uses          string
	with          [][2]string
	conds         []string
	status        string // "", failure, always
	of            *step  // whose failure it is about
	tolerate      bool
	env           [][2]string
	dir, shell    string
	minutes       int
	seconds       int
	tries         int
	pause         int // seconds between two of them; 0 is the usual ones
	environment   string
	verb          bool // it has a verb of its own
	text          string
	group, branch int
	sentence      int
	job           *job
	afterAll      bool
	notify        bool
	modified      bool // something was said of it behind it
	download      bool
	free          bool // said to run whatever the branch
	titled        bool // a purpose before a colon
}

// occasion is one phrase about when things happen.
type occasion struct {
	t     triggers
	conds []string
	text  string
	steps []*step
	whole bool
	vague bool   // a schedule that names no time
	cond  string // what it is as a condition, where it may be one
}

func (t *triggers) add(event string) {
	if !slices.Contains(t.events, event) {
		t.events = append(t.events, event)
	}
}

func (t *triggers) branch(event string, b ...string) {
	if t.branches == nil {
		t.branches = map[string][]string{}
	}
	for _, x := range b {
		if !slices.Contains(t.branches[event], x) {
			t.branches[event] = append(t.branches[event], x)
		}
	}
}

func (t *triggers) merge(o triggers) {
	for _, e := range o.events {
		had := slices.Contains(t.events, e)
		wide := had && len(t.branches[e]) == 0 && len(t.tags) == 0
		t.add(e)
		switch {
		case wide && e == "push" && len(o.tags) == 0: // all of them already
		case had && len(o.branches[e]) == 0 && len(o.tags) == 0:
			delete(t.branches, e)
		default:
			t.branch(e, o.branches[e]...)
		}
		for _, x := range o.ignored[e] {
			if t.ignored == nil {
				t.ignored = map[string][]string{}
			}
			t.ignored[e] = append(t.ignored[e], x)
		}
		for _, x := range o.types[e] {
			if t.types == nil {
				t.types = map[string][]string{}
			}
			if !slices.Contains(t.types[e], x) {
				t.types[e] = append(t.types[e], x)
			}
		}
		if wide && e == "push" && len(o.tags) > 0 {
			t.branch("push", "**")
		}
		if had && !wide && e == "push" && len(o.tags) == 0 && len(o.branches[e]) == 0 && len(t.tags) > 0 {
			t.branch("push", "**")
		}
	}
	t.tags = append(t.tags, o.tags...)
	t.crons = append(t.crons, o.crons...)
	t.runs = append(t.runs, o.runs...)
	t.runOn = append(t.runOn, o.runOn...)
}

// reader makes a plan of the fragments of a request.
type reader struct {
	c        *chart
	nodes    []*node
	at       int
	p        *plan
	steps    []*step
	problems []Refusal

	sentence, group, branch int
	segment                 int // steps since the last separator begin here
	groupStart              int
	sentenceStart           int
	afterThen               bool
	pending                 []modifier
	parallel                map[int]bool // groups whose steps are side by side
	serial                  map[int]bool // sentences whose steps are jobs in a row
	separate                map[int]bool
	tools                   []*tool
	occasions               []*occasion
	heading                 []*step
	headed                  []*step
	glossed                 bool
	job                     *job
	explicit                []*job
	list                    bool
	listSentence            int
	base                    job // what holds for every job
	paths, notPaths         []string
	approval                bool
	assumed                 map[*step]bool
	cacheNodes              []*node
	pages                   bool
	queued                  []func()
	lastSecret              func(as string)
	claims                  map[string]int // what holds for a job → steps there were when it was said
	passNext                func(*job)
	ordered                 map[int]bool // sentences that name an order
	allFeatures             []*step
}

type modifier struct {
	name     string
	apply    func(*step)
	text     string
	sentence int
	tight    bool // for the next step only, and those joined to it with "and"
	toAll    bool
	o        *occasion
	used     bool
	until    int
}

func (r *reader) fail(n *node, reason, hint string) {
	text := r.c.text(n)
	r.problem(text, reason, hint)
}

func (r *reader) problem(text, reason, hint string) {
	for _, p := range r.problems {
		if p.Clause == text {
			return
		}
	}
	r.problems = append(r.problems, Refusal{Clause: text, Reason: reason, Hint: hint})
}

// word is the only token of a node, as the grammar sees it.
func (r *reader) word(n *node) string {
	if n == nil {
		return ""
	}
	return r.c.ts[n.start].word
}

// plain is what a node stands for: of something quoted, what is between the quotes.
func (r *reader) plain(n *node) string {
	if n == nil {
		return ""
	}
	if n.end == n.start+1 {
		return r.c.ts[n.start].text
	}
	return r.c.text(n)
}

// words are a node's words in lower case, with one space between them.
func (r *reader) words(n *node) string {
	if n == nil {
		return ""
	}
	var out []string
	for _, t := range r.c.ts[n.start:n.end] {
		out = append(out, t.word)
	}
	return strings.Join(out, " ")
}

// commandOf is a command as the shell gets it.
func (r *reader) commandOf(n *node) string {
	first := r.c.ts[n.start]
	if n.end == n.start+1 && first.kind != word {
		return literalCommand(first.text)
	}
	s := r.c.text(n)
	for _, t := range slices.Backward(r.c.ts[n.start:n.end]) {
		if t.fixed {
			at := t.start - first.start
			s = s[:at] + t.word + s[at+len(t.text):]
		}
	}
	if p := r.c.g.lex.programs[strings.ToLower(first.text)]; p != nil && first.text != p.name && r.c.g.lex.programs[first.text] == nil {
		s = p.name + s[len(first.text):]
	}
	s = regexp.MustCompile(`[ \t]+`).ReplaceAllStringFunc(s, func(string) string { return " " })
	if f, rest, _ := strings.Cut(s, " "); script.MatchString(f) && !strings.Contains(f, "/") {
		with := map[string]string{".sh": "bash", ".bash": "bash", ".py": "python", ".rb": "ruby", ".js": "node", ".mjs": "node", ".cjs": "node",
			".pl": "perl", ".php": "php", ".ps1": "pwsh"}
		if w := with[f[strings.LastIndexByte(f, '.'):]]; w != "" {
			s = strings.TrimSpace(w + " " + f + " " + rest)
		} else {
			s = "./" + s
		}
	}
	return literalCommand(s)
}

// ownContext are expressions that every command has as variables, too.
var ownContext = regexp.MustCompile(`\$\{\{\s*github\.(sha|ref|ref_name|run_id|run_number|run_attempt|repository|actor|workflow|event_name|workspace)\s*\}\}`)

// literalCommand keeps what a person writes in a command for the shell:
// expressions in it are not GitHub's.
func literalCommand(s string) string {
	s = ownContext.ReplaceAllStringFunc(s, func(e string) string {
		return "$GITHUB_" + strings.ToUpper(ownContext.FindStringSubmatch(e)[1])
	})
	return strings.ReplaceAll(s, "${{", "${{ '${{' }}")
}

// add puts a step at the end.
func (r *reader) add(s *step, n *node) *step {
	s.group, s.branch, s.sentence, s.job = r.group, r.branch, r.sentence, r.job
	if s.text == "" {
		s.text = r.c.text(n)
	}
	if n := len(r.steps); n > 0 && s.command == "bin/"+r.steps[n-1].command && r.steps[n-1].command != "" {
		r.steps[n-1].command = s.command // "rails test with postgres: bin/rails test" says it twice
		return r.steps[n-1]
	}
	for k := len(r.steps) - 1; k >= 0 && k >= len(r.steps)-6 && s.command != ""; k-- {
		if sameTool(r.steps[k].command, s.command) {
			r.steps[k].command = s.command // "run phpunit, please: vendor/bin/phpunit"
			r.steps[k].group = r.group
			return r.steps[k]
		}
	}
	if n := len(r.steps); n > 0 && r.steps[n-1].modified {
		s.verb = true // what was said behind the step before it ends what they share
	}
	r.steps = append(r.steps, s)
	for i := range r.pending {
		m := &r.pending[i]
		m.apply(s)
		m.used = true
		if m.o != nil {
			m.o.steps = append(m.o.steps, s)
		}
	}
	return s
}

// sameTool says whether a command is a tool's bare name, and another one the tool as
// it is called.
func sameTool(bare, called string) bool {
	if bare == "" || strings.ContainsAny(bare, " /.") || bare == called || bare == "make" || bare == "npm" || bare == "yarn" || bare == "bundle" {
		return false
	}
	f := strings.Fields(called)
	if base := f[0][strings.LastIndexByte(f[0], '/')+1:]; base == bare && base != f[0] {
		return true
	}
	return len(f) > 1 && (f[0] == "npx" && f[1] == bare || len(f) > 2 && (f[0] == "bundle" || f[0] == "poetry" || f[0] == "uv") && f[2] == bare)
}

// isStep says whether a fragment brings a step.
func isStep(name string) bool {
	base, _, _ := strings.Cut(name, ".")
	return slices.Contains([]string{"command", "purpose", "by", "say", "artifact", "notify", "pages", "download", "allow", "surepass",
		"skipstep", "before", "login", "deps", "notallow"}, base) ||
		slices.Contains([]string{"retry.cmd", "timeout.cmd", "env.cmd", "shell.cmd", "service.for"}, name)
}

func isSeparator(name string) bool {
	return slices.Contains([]string{"comma", "stop", "line", "colon", "arrow", "dash", "and", "then", "finally", "first", "bullet"}, name)
}

// follows says what comes behind the current fragment: whether a step is
// reached without a separator, and the first separators if not.
func (r *reader) follows() (direct bool, seps []string, step bool) {
	for _, n := range r.nodes[r.at+1:] {
		base, _, _ := strings.Cut(n.name, ".")
		switch {
		case isStep(n.name):
			return len(seps) == 0, seps, true
		case n.name == "and" && r.words(n) == "also": // "on main also run ./deploy.sh"
		case isSeparator(n.name):
			if (n.name == "stop" || n.name == "line") && !slices.Contains(seps, "colon") && !r.endsWithColon() {
				return false, append(seps, n.name), false
			}
			seps = append(seps, n.name)
		case base == "job" || base == "heading":
			seps = append(seps, "colon")
		case (base == "onfail" || base == "always" || base == "onpass") && len(seps) > 0:
			// Another condition begins: what follows is its.
			return false, append(seps, "then"), false
		}
	}
	return false, seps, false
}

func (r *reader) endsWithColon() bool {
	n := r.nodes[r.at]
	return r.c.ts[n.end-1].text == ":"
}

// before are the steps of this sentence so far.
func (r *reader) before() []*step {
	return r.steps[min(r.sentenceStart, len(r.steps)):]
}

// coordinated are the last steps that share a verb: "run a, b and c".
func (r *reader) coordinated() []*step {
	all := r.before()
	if len(all) == 0 {
		return nil
	}
	i := len(all) - 1
	for i > 0 && !all[i].verb && all[i].group == all[len(all)-1].group && all[i].purpose == "" == (all[i-1].purpose == "") {
		i--
	}
	return all[i:]
}

// attach decides which steps a modifier is about, and applies it.
func (r *reader) attach(m modifier) {
	m.text = r.c.text(r.nodes[r.at])
	m.sentence = r.sentence
	r.leading()
	before := r.before()
	inSegment := r.segment < len(r.steps)
	direct, seps, step := r.follows()
	wide := m.name == "env" || m.name == "dir" || m.name == "shell" || m.name == "timeout" || m.name == "secret"
	switch {
	case inSegment && !(r.endsWithColon() && step):
		r.behind(m, before, wide)
	case step && (direct || r.endsWithColon()):
		r.ahead(m)
	case step && len(before) == 0 && len(seps) > 0 && seps[0] != "then":
		r.ahead(m)
	case len(before) > 0 && step && len(seps) > 0 && (seps[0] == "comma" || seps[0] == "colon") && (r.afterThen || m.tight):
		r.ahead(m)
	case len(before) > 0:
		r.behind(m, before, wide)
	case len(r.steps) > 0 && !r.inList():
		// A sentence of its own, about what was said before.
		if m.tight || m.name == "retry" || m.name == "tolerate" || m.name == "dir" || m.name == "environment" || m.name == "secret" {
			m.apply(r.steps[len(r.steps)-1])
			r.note(m, r.steps[len(r.steps)-1])
			return
		}
		for _, s := range r.steps {
			m.apply(s)
			r.note(m, s)
		}
		m.toAll = true
		if m.o != nil {
			m.o.whole = true
		}
	default:
		// A sentence or an item of its own, before everything else.
		m.toAll = true
		if m.o != nil {
			m.o.whole = true
		}
		for _, s := range r.steps {
			m.apply(s)
		}
		r.pending = append(r.pending, m)
	}
}

// leading ends the segment where a fragment begins with a separator of its own.
func (r *reader) leading() {
	n := r.nodes[r.at]
	switch t := r.c.ts[n.start]; {
	case t.text == ",", t.word == "and", t.word == "but":
		r.segment = len(r.steps)
		r.drop(func(m *modifier) bool { return m.tight && m.used })
		joined := r.afterThen && r.at > 0 && (r.nodes[r.at-1].name == "then" || r.nodes[r.at-1].name == "and")
		r.afterThen = joined || t.word != "," || n.start+1 < n.end && (r.c.ts[n.start+1].word == "and" || r.c.ts[n.start+1].word == "but")
	}
}

func (r *reader) note(m modifier, s *step) {
	if m.o != nil {
		m.o.steps = append(m.o.steps, s)
	}
}

// ahead is a modifier for the steps that follow.
func (r *reader) ahead(m modifier) {
	m.until = r.sentence
	if m.name == "on" || m.name == "cond" {
		r.drop(func(o *modifier) bool { return (o.name == "on" || o.name == "cond") && o.used && !o.toAll })
	}
	r.pending = append(r.pending, m)
}

// behind is a modifier for steps that stand before it.
func (r *reader) behind(m modifier, before []*step, wide bool) {
	if len(before) == 0 {
		return
	}
	if m.o != nil {
		m.o.steps = append(m.o.steps, r.coordinated()...)
	}
	which := before[len(before)-1:]
	if c := r.coordinated(); len(c) > 1 {
		switch {
		case wide && (m.name != "secret" || slices.IndexFunc(c, deploying) != len(c)-1): // the build has no need of what publishes
			which = c
		case m.name == "cond":
			var ok bool
			if which, ok = r.conditioned(m.text); !ok {
				return
			}
		}
	}
	for _, s := range which {
		m.apply(s)
		s.modified = true
	}
}

// conditioned are the steps of the clause that a condition behind it is about: the
// last one, if it deploys and those before it do not. "npm test and make lint
// only on main" may be meant in two ways, and is a problem.
func (r *reader) conditioned(text string) ([]*step, bool) {
	c := r.coordinated()
	last := c[len(c)-1:]
	if len(c) > 1 && slices.IndexFunc(c, deploying) != len(c)-1 {
		r.problem(text, "it is not clear whether this is about all of the commands before it or about the last one",
			"say it in a sentence for each: on main, run "+last[0].text)
		return nil, false
	}
	return last, true
}

// deploying says whether a step brings something out into the world.
func deploying(s *step) bool {
	if s.purpose == "deploy" || s.purpose == "publish" || s.purpose == "release" || s.environment != "" || s.notify {
		return true
	}
	return regexp.MustCompile(`(?i)\b(?:deploy|publish|release|push|apply|upload|rollout|promote|ship|sync|gh-deploy|notify)\b`).MatchString(s.command) &&
		!regexp.MustCompile(`--release|-c Release|build`).MatchString(s.command)
}

func (r *reader) inList() bool { return r.list }

// boundary ends what a separator ends.
func (r *reader) boundary(n *node) {
	if n.name == "first" && r.segment < len(r.steps) && (r.at+1 == len(r.nodes) || isSeparator(r.nodes[r.at+1].name)) {
		r.readAtFirst(n)
	}
	r.segment = len(r.steps)
	switch n.name {
	case "comma", "and":
		r.afterThen = n.name == "and"
		if n.name == "comma" {
			r.drop(func(m *modifier) bool { return m.tight && m.used })
		}
	case "then", "finally":
		r.afterThen = true
		r.newGroup()
		r.drop(func(m *modifier) bool {
			return m.used && (m.tight || m.name == "cond" || m.name == "status" || m.name == "on") && !m.toAll
		})
		r.glossed = false
	case "first":
		r.afterThen = true
	case "stop":
		r.endSentence(false)
	case "line":
		next := ""
		if r.at+1 < len(r.nodes) {
			next = r.nodes[r.at+1].name
		}
		prev := ""
		if r.at > 0 {
			prev = r.nodes[r.at-1].name
		}
		colon := prev == "colon" || r.at > 0 && r.c.ts[r.nodes[r.at-1].end-1].text == ":"
		switch {
		case colon: // the heading of what follows
			r.list = true
			r.listSentence = r.sentence
		case next == "bullet" || r.list:
			r.item()
		default:
			r.endSentence(true)
		}
	case "bullet":
		if r.segment > 0 || r.list {
			r.item()
		}
		if !r.list {
			r.list = true
			r.listSentence = r.sentence
		}
	case "colon", "arrow", "dash":
		r.colon()
	}
}

// item ends an item of a list: like a sentence, but what was said above the list
// goes on.
func (r *reader) item() {
	r.bind()
	r.segment, r.sentenceStart, r.glossed = len(r.steps), len(r.steps), false
	r.afterThen = false
	r.drop(func(m *modifier) bool {
		return m.sentence == r.sentence && m.sentence != r.listSentence && !m.toAll || m.tight && m.used
	})
	r.sentence++
	if r.listSentence == 0 {
		r.listSentence = -1
	}
}

func (r *reader) endSentence(line bool) {
	r.bind()
	r.segment, r.sentenceStart, r.glossed = len(r.steps), len(r.steps), false
	r.drop(func(m *modifier) bool { return !m.toAll && m.used })
	if !line || r.list {
		r.list = false
	}
	r.newGroup()
	r.sentence++
	r.afterThen = false
}

func (r *reader) drop(if_ func(*modifier) bool) {
	r.pending = slices.DeleteFunc(r.pending, func(m modifier) bool { return if_(&m) })
}

func (r *reader) newGroup() {
	if r.groupStart < len(r.steps) {
		r.group++
		r.groupStart = len(r.steps)
	}
}

// colon makes purposes before it the headings of the commands behind it.
func (r *reader) colon() {
	if len(r.heading) > 0 && len(r.headed) > 0 {
		next := r.before() // "install: npm ci, test: npm test"
		last := next[len(next)-1]
		if r.bind(); last.command != "" || last.purpose == "" {
			return
		}
		r.sentenceStart = slices.Index(r.steps, last)
	}
	var open []*step
	for _, s := range r.before() {
		if s.command == "" && s.uses == "" && s.purpose != "" {
			open = append(open, s)
		}
	}
	if len(r.explicit) > 0 && len(open) == 1 && len(r.before()) == 1 && !r.list {
		// "deploy job that needs lint and test: make deploy; lint: make lint; test: make test"
		j := &job{explicit: true, id: jobID(open[0].purpose), purpose: open[0].purpose}
		r.job, open[0].job = j, j
		r.explicit = append(r.explicit, j)
	}
	for _, s := range open {
		s.titled = true
	}
	if len(open) > 0 && r.segmentOpen(open) {
		r.heading, r.headed = open, nil
	}
}

func (r *reader) segmentOpen(open []*step) bool {
	return len(r.steps) > 0 && slices.Contains(open, r.steps[len(r.steps)-1])
}

// bind gives the commands behind a colon to the purposes before it.
func (r *reader) bind() {
	if len(r.heading) == 0 {
		return
	}
	h, c := r.heading, r.headed
	r.heading, r.headed = nil, nil
	switch {
	case len(c) == 0:
		return
	case len(h) == len(c):
		for i := range h {
			r.fuse(h[i], c[i])
		}
	case len(h) == 1:
		for _, s := range c[1:] {
			s.branch = h[0].branch
		}
		b := h[0].branch
		if b == 0 {
			r.branch++
			b = r.branch
			h[0].branch = b
		}
		for _, s := range c {
			s.branch = b
		}
		r.fuse(h[0], c[0])
		for _, s := range c[1:] {
			if h[0].purpose != "" && s.job == nil {
				s.job = h[0].job
			}
		}
	default:
		r.problem(h[0].text, fmt.Sprintf("%d things are named before the colon and %d commands behind it", len(h), len(c)),
			"say for each: lint with `make lint`, then test with `make test`")
	}
	r.segment, r.sentenceStart, r.groupStart = min(r.segment, len(r.steps)), min(r.sentenceStart, len(r.steps)), min(r.groupStart, len(r.steps))
}

// fuse gives a purpose the command of a step, which is no step of its own then.
func (r *reader) fuse(p, c *step) {
	p.command = c.command
	p.conds = append(p.conds, c.conds...)
	p.env = append(p.env, c.env...)
	p.with, p.uses, p.tolerate = c.with, c.uses, p.tolerate || c.tolerate
	if p.status == "" {
		p.status = c.status
	}
	if p.dir == "" {
		p.dir = c.dir
	}
	p.minutes, p.seconds, p.tries = max(p.minutes, c.minutes), max(p.seconds, c.seconds), max(p.tries, c.tries)
	for _, o := range r.occasions {
		for i := range o.steps {
			if o.steps[i] == c {
				o.steps[i] = p
			}
		}
	}
	// It stands where its command stood: other steps may have been put between.
	r.steps[slices.Index(r.steps, c)] = p
	r.steps = slices.Delete(r.steps, slices.Index(r.steps, p), slices.Index(r.steps, p)+1)
}

// run reads all fragments.
func (r *reader) run() {
	for r.at = 0; r.at < len(r.nodes); r.at++ {
		n := r.nodes[r.at]
		base, _, _ := strings.Cut(n.name, ".")
		switch {
		case n.name == "?":
			// reported by unknown
		case isSeparator(n.name):
			r.boundary(n)
		default:
			if f := meanings[base]; f != nil {
				f(r, n)
			}
			if r.c.ts[n.end-1].text == ":" {
				r.colon()
			}
		}
	}
	r.bind()
	for _, f := range r.queued {
		f()
	}
}

// unknown reports the words that no fragment covers, each with what stands
// around it.
func (r *reader) unknown() {
	for i := 0; i < len(r.nodes); i++ {
		if r.nodes[i].name != "?" {
			continue
		}
		from, to := i, i
		// Words between two unknown ones belong to the same trouble.
		for j := i + 1; j < len(r.nodes) && !isSeparator(r.nodes[j].name); j++ {
			if r.nodes[j].name == "?" {
				to = j
			}
		}
		var words []string
		for _, n := range r.nodes[from : to+1] {
			if n.name == "?" {
				words = append(words, r.c.text(n))
			}
		}
		for from > 0 && !isSeparator(r.nodes[from-1].name) {
			from--
		}
		end := to
		for end+1 < len(r.nodes) && !isSeparator(r.nodes[end+1].name) {
			end++
		}
		clause := r.c.src[r.c.ts[r.nodes[from].start].start:r.c.ts[r.nodes[end].end-1].end]
		r.problem(clause, "I do not understand "+quoteAll(words), hintFor(clause, words))
		i = to
	}
}

func quoteAll(words []string) string {
	return strconv.Quote(strings.Join(words, " "))
}

var verbRun = regexp.MustCompile(`(?i)^(?:please\s+)?(?:runs?|executes?|calls?|invokes?|starts?|do|try)\s+(.+)$`)

func hintFor(clause string, words []string) string {
	if m := verbRun.FindStringSubmatch(clause); m != nil {
		return "if " + strconv.Quote(m[1]) + " is a command, put it in backquotes: run `" + m[1] + "`"
	}
	switch {
	case regexp.MustCompile(`(?i)\b(?:deploy|publish|release|ship)\b`).MatchString(clause):
		return "name the command that does it: deploy with `./deploy.sh`"
	case regexp.MustCompile(`(?i)\b(?:notify|email|slack|send|mail|message)\b`).MatchString(clause):
		return "say it like this: if it fails, post to Slack using the secret SLACK_WEBHOOK_URL; or name a command of yours in backquotes"
	case regexp.MustCompile(`(?i)\b(?:every|at|schedule|daily|nightly)\b`).MatchString(clause):
		return "say it like this: every weekday at 07:15 UTC, run `make check`"
	}
	return "put commands in backquotes: run `make check`; say what else there is in words like those of docs/new.md"
}
