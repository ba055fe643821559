package learn

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/graph"
)

// Signature is what a failure looks like once everything that changes from run
// to run is taken away.
type Signature struct {
	ID     string
	Text   string // the masked template of the strongest line
	Line   string // that line as it was printed
	Class  Class
	Block  []string // the masked lines around it, at most 12
	Sketch Sketch   // of the block and the tail: for "same as"
	Score  float64  // of the strongest line; 0: nothing stood out
}

// Class says what kind of trouble a failure is.
type Class string

// The classes of failures.
const (
	ClassCompile    Class = "compile"
	ClassAssert     Class = "assert"
	ClassLint       Class = "lint"
	ClassNetwork    Class = "network"
	ClassDNS        Class = "dns"
	ClassServer     Class = "5xx"
	ClassRegistry   Class = "registry"
	ClassMemory     Class = "oom"
	ClassDisk       Class = "disk"
	ClassTimeout    Class = "timeout"
	ClassCrash      Class = "crash"
	ClassMissing    Class = "missing"
	ClassPermission Class = "permission"
	ClassRunner     Class = "runner" // the machinery around the step
	ClassOther      Class = "other"
)

// Transient reports whether failures of a class often go away by themselves.
func (c Class) Transient() bool {
	switch c {
	case ClassNetwork, ClassDNS, ClassServer, ClassRegistry, ClassRunner, ClassTimeout:
		return true
	}
	return false
}

// Deterministic reports whether a failure of a class comes again with the same
// commit, so that trying again is waste.
func (c Class) Deterministic() bool {
	return c == ClassCompile || c == ClassAssert || c == ClassLint
}

var (
	ansi      = regexp.MustCompile(`\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])`)
	wrapper   = regexp.MustCompile(`^section_(?:start|end):\d+:[\w.-]+(?:\[[^\]]*\])?|^##\[(?:group|endgroup|command|section)\]`)
	timestamp = regexp.MustCompile(`^\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\]?\s?(?:\d{2}[OE]\s)?`)
)

// Clean is a line of output as a reader would see it: without terminal
// sequences, overwritten progress, time stamps and group wrappers. Of what was
// masked it only takes away at its ends: pieces of a secret must not be joined.
func Clean(line string) string {
	line = strings.TrimRight(line, "\r\n")
	if strings.ContainsRune(line, 0x1b) {
		line = ansi.ReplaceAllString(line, "")
	}
	if i := strings.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	// What is left of a sequence whose escape character somebody has dropped.
	line = strings.TrimPrefix(strings.TrimPrefix(strings.TrimLeft(line, "\ufeff"), "[0K"), "[0;m")
	if len(line) > 20 && (line[0] >= '0' && line[0] <= '9' || line[0] == '[') {
		line = timestamp.ReplaceAllString(line, "")
	}
	if strings.Contains(line, "section_") || strings.HasPrefix(line, "##[") {
		line = wrapper.ReplaceAllString(line, "")
	}
	return strings.TrimRight(line, " \t")
}

// maskers, as one expression: what comes first wins where two begin at one
// place. The first keeps the numbers that mean something.
var masker = regexp.MustCompile(`(?P<keep>(?i:\b(?:exit(?:ed with)? (?:code|status)|status(?: code)?|HTTP(?:/[\d.]+)?|errno|signal|code|returned(?: error:?)?)[ :=]+\d{1,3}\b))` +
	`|(?P<url>\b[a-z][a-z0-9+.-]*://[^\s"'<>)\]]+)` +
	`|(?P<uuid>\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b)` +
	`|(?P<time>\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?|\b\d\d:\d\d:\d\d(?:[.,]\d+)?\b)` +
	`|(?P<ip>\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?::\d+)?\b)` +
	`|(?P<hex>\b0x[0-9a-fA-F]+\b|\b[0-9a-f]*(?:[0-9][a-f]|[a-f][0-9])[0-9a-f]{5,}\b|\b[0-9a-f]{32,}\b)` +
	`|(?P<path>(?:[A-Za-z]:)?(?:[\w.@+~-]*[/\\])+[\w.@+~-]+)` +
	`|(?P<dur>\b\d+(?:\.\d+)?\s?(?:ns|µs|us|ms|s|sec|secs|seconds?|min|mins|minutes?|m\d+(?:\.\d+)?s|h)\b)` +
	`|(?P<size>\b\d+(?:\.\d+)?\s?(?:[KMGT]i?B|[kMG]B|bytes|B)(?:/s)?\b)` +
	`|(?P<num>\b\d+(?:[.,]\d+)*\b%?)`)

var maskNames = masker.SubexpNames()

// Mask replaces what changes from run to run by its kind: <url>, <uuid>, <time>,
// <ip>, <hex>, <dur>, <size>, <num>. Of a path its last element stays. Exit
// codes, HTTP statuses, errnos, signals and the names of tests stay.
func Mask(line string) string {
	if len(line) > 2000 {
		line = strings.ToValidUTF8(line[:2000], "")
	}
	var b strings.Builder
	at := 0
	for _, m := range masker.FindAllStringSubmatchIndex(line, -1) {
		b.WriteString(line[at:m[0]])
		at = m[1]
		for g := 1; g < len(maskNames); g++ {
			if m[2*g] < 0 {
				continue
			}
			text := line[m[0]:m[1]]
			switch maskNames[g] {
			case "keep":
				b.WriteString(text)
			case "path":
				base := text[strings.LastIndexAny(text, `/\`)+1:]
				b.WriteString(numbers.ReplaceAllString(base, "<num>"))
			default:
				b.WriteString("<" + maskNames[g] + ">")
			}
			break
		}
	}
	b.WriteString(line[at:])
	return b.String()
}

var numbers = regexp.MustCompile(`\b\d+\b|[0-9a-f]{12,}`)

// rule is a known shape of failure line.
type rule struct {
	need  []string // literals, lower case; one of them must occur
	re    *regexp.Regexp
	class Class
	prio  float64
	// name: its first group names the thing (a test, a package) and becomes part
	// of the signature.
	name bool
}

func r(prio float64, class Class, expr string, need ...string) rule {
	return rule{need: need, re: regexp.MustCompile(expr), class: class, prio: prio}
}

func named(prio float64, class Class, expr string, need ...string) rule {
	v := r(prio, class, expr, need...)
	v.name = true
	return v
}

// The rules. Each is written from how the tool words its error; none from any
// one project's logs.
var rules = []rule{
	// Tests
	named(9, ClassAssert, `^\s*--- FAIL: (\S+)`, "--- fail"),
	named(9, ClassAssert, `^test (\S+) \.\.\. FAILED`, "... failed"),
	named(8, ClassAssert, `thread '([^']+)' (?:\(\d+\) )?panicked at`, "panicked at"),
	named(9, ClassAssert, `^FAILED (\S+::\S+)`, "failed "),
	named(8, ClassAssert, `^\s*(?:●|✕|×|✗) (.+?)(?: \(\d+.*\))?$`, "●", "✕", "×", "✗"),
	named(8, ClassAssert, `\[(?:ERROR|FAIL)\]\s+(\S+[.#]\S+).*(?:FAILURE|ERROR)!`, "failure!", "error!"),
	named(8, ClassAssert, `^\[\s*FAILED\s*\]\s+(\S+)`, "failed"),
	named(7, ClassAssert, `^\s*\d+/\d+ Test\s+#\d+: (\S+) .*\*\*\*(?:Failed|Exception|Timeout)`, "***"),
	r(7, ClassAssert, `(?i)\bassert(?:ion)?(?:error|ion failed| failed|\s*\x60?left == right)`, "assert"),
	r(5, ClassAssert, `(?i)\bexpected\b.*\b(?:but )?(?:got|received|was|found|actual)\b`, "expected"),
	r(4, ClassAssert, `(?i)^test result: FAILED|\b\d+ (?:tests? )?(?:failed|failures?)\b`, "fail"),
	// Compilers and linters
	named(9, ClassCompile, `^error\[(E\d+)\]`, "error[e"),
	named(8, ClassCompile, `error (TS\d+|CS\d+|C\d{4}|LNK\d+)\b`, "error ts", "error cs", "error c", "error lnk"),
	r(8, ClassCompile, `^\S+?:\d+(?::\d+)?: (?:fatal )?error: `, "error: "),
	r(7, ClassCompile, `^(?:\./)?\S+\.go:\d+:\d+: `, ".go:"),
	r(7, ClassCompile, `(?i)\bundefined reference to\b|cannot find symbol|SyntaxError|cannot find (?:module|name|type|value)`, "undefined reference", "cannot find", "syntaxerror"),
	r(5, ClassCompile, `^error: could not compile`, "could not compile"),
	r(5, ClassCompile, `(?i)compilation (?:failed|error)|\bmake(?:\[\d+\])?: \*\*\*`, "compilation", "***"),
	r(6, ClassLint, `(?i)\bDiff in |would reformat|code style issues|not formatted|gofmt|\bclippy::|\beslint\b.*\berror`, "diff in", "reformat", "style issues", "formatted", "gofmt", "clippy", "eslint"),
	// Network and services
	r(9, ClassDNS, `(?i)could not resolve host|temporary failure in name resolution|name or service not known|no such host|ENOTFOUND|EAI_AGAIN|dns error`, "resolve", "name resolution", "not known", "no such host", "enotfound", "eai_again", "dns error"),
	r(8, ClassNetwork, `(?i)connection (?:was )?(?:refused|reset|timed out|closed)|ECONNRESET|ECONNREFUSED|ETIMEDOUT|network is unreachable|no route to host|i/o timeout|TLS handshake|unexpected EOF|early EOF|broken pipe|RPC failed|remote end hung up|socket hang up|SSL_ERROR|read timed out|operation timed out`,
		"connection", "econn", "etimedout", "unreachable", "no route", "i/o timeout", "tls handshake", "eof", "broken pipe", "rpc failed", "hung up", "hang up", "ssl_error", "timed out"),
	r(8, ClassServer, `(?i)\b(?:HTTP(?:/[\d.]+)?|status(?: code)?|error:?|returned|response)[ :=]*(?:code )?\(?(?:50[0234]|429)\b|internal server error|bad gateway|service unavailable|gateway time-?out|too many requests`,
		"50", "429", "server error", "bad gateway", "unavailable", "gateway", "too many requests"),
	r(8, ClassRegistry, `(?i)failed to (?:pull|push|fetch|download)|toomanyrequests|manifest unknown|error pulling image|failed to get \S+ as a dependency|unable to update registry|npm err! network|hash sum mismatch|unable to fetch some archives`,
		"failed to", "toomanyrequests", "manifest unknown", "error pulling", "unable to", "npm err! network", "hash sum"),
	// Resources
	r(9, ClassMemory, `(?i)out of memory|\bOOM\b|cannot allocate memory|killed process|heap out of memory|std::bad_alloc|signal: 9, SIGKILL|exit(?:ed with)? (?:code|status):? 137`, "memory", "oom", "killed", "bad_alloc", "sigkill", "137"),
	r(9, ClassDisk, `(?i)no space left on device|disk quota exceeded|ENOSPC|disk full`, "no space", "quota", "enospc", "disk full"),
	r(8, ClassTimeout, `(?i)\b(?:job|step|test|execution|command|build)\b.*\b(?:timed out|exceeded the (?:maximum|time))|execution took longer|deadline exceeded|timeout after|context deadline`, "timed out", "exceeded", "longer", "deadline", "timeout"),
	r(9, ClassCrash, `(?i)segmentation fault|SIGSEGV|SIGABRT|SIGILL|SIGBUS|core dumped|internal compiler error|fatal runtime error`, "segmentation", "sigsegv", "sigabrt", "sigill", "sigbus", "core dumped", "internal compiler", "fatal runtime"),
	r(7, ClassCrash, `^panic: |^fatal error: |^Traceback \(most recent|^Exception in thread`, "panic: ", "fatal error", "traceback", "exception in"),
	r(6, ClassMissing, `(?i)no such file or directory|command not found|ModuleNotFoundError|No module named|does not exist|cannot find package|404 not found`, "no such file", "not found", "modulenotfound", "no module", "does not exist", "cannot find"),
	r(6, ClassPermission, `(?i)permission denied|EACCES|access denied|forbidden|unauthorized|authentication failed`, "denied", "eacces", "forbidden", "unauthorized", "authentication"),
	// The machinery
	r(9, ClassRunner, `(?i)runner system failure|system failure\)|cannot connect to the docker daemon|failed to create (?:shim|containerd)|lost communication with the server|no runner|runner has received a shutdown|prepare environment|stuck or timeout`,
		"system failure", "docker daemon", "failed to create", "lost communication", "no runner", "shutdown signal", "prepare environment", "stuck"),
	// Anything that calls itself an error
	r(3, ClassOther, `(?i)^\s*(?:npm ERR!|error|fatal|ERROR)\b[:\]! ]`, "error", "fatal", "err!"),
}

// errorWords mark a line as a candidate without a rule.
var errorWords = []string{"error", "fail", "fatal", "panic", "exception", "cannot", "could not", "unable to", "not found", "denied", "refused",
	"timed out", "timeout", "abort", "invalid", "undefined", "missing", "unexpected", "killed", "✗", "err!"}

// noise are lines that say only that something failed.
var noise = regexp.MustCompile(`(?i)process completed with exit code|^error: process completed|job failed: exit (?:code|status)|command terminated with exit code|cleaning up|^error: test failed, to rerun|^error: aborting due to|npm err! (?:errno|code ELIFECYCLE)|0 (?:errors|failed|failures)|error: 0|failures?: 0|uploading artifacts|no files to upload|for more information about this error`)

var warning = regexp.MustCompile(`^\s*(?i:\[?warn(?:ing)?\b|npm warn|note:|hint:|= note)`)

// Extractor finds signatures. It is immutable, and safe for concurrent use.
type Extractor struct {
	literals *graph.Automaton
	owner    [][]int // literal → rules; none: an error word
}

// NewExtractor compiles the rules.
func NewExtractor() *Extractor {
	x := &Extractor{}
	var terms []string
	index := map[string]int{}
	add := func(lit string, rule int) {
		lit = strings.ToLower(lit)
		i, ok := index[lit]
		if !ok {
			i = len(terms)
			index[lit] = i
			terms = append(terms, lit)
			x.owner = append(x.owner, nil)
		}
		if rule >= 0 {
			x.owner[i] = append(x.owner[i], rule)
		}
	}
	for i, v := range rules {
		for _, lit := range v.need {
			add(lit, i)
		}
	}
	for _, w := range errorWords {
		add(w, -1)
	}
	x.literals = graph.NewAutomaton(terms, true)
	return x
}

// Greens are the templates of lines that green runs of the same step print, with
// how many of those runs print them.
type Greens map[uint64]int

// Add takes in the lines of one green run.
func (g Greens) Add(lines []string) {
	seen := map[uint64]bool{}
	for _, l := range lines {
		if l = Clean(l); l == "" {
			continue
		}
		if h := lineHash(Mask(l)); !seen[h] {
			seen[h] = true
			g[h]++
		}
	}
}

func lineHash(masked string) uint64 { return hash(fnvOffset, strings.TrimSpace(masked)) }

// maxLines is how many of the last lines of a log are looked at, besides those
// before them that hit a literal of a rule.
const maxLines = 4000

// The output is a guest's and may be made to take time. maxWidth is how many
// bytes of a line are looked at; maxCandidates how many lines rules are tried on.
const (
	maxWidth      = 600
	maxCandidates = 1000
)

func clipBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// Extract finds what a failed step's output says about why it failed. lines is
// the output in order; greens may be nil; kind is the step's kind (see
// graph.StepKind).
func (x *Extractor) Extract(lines []string, greens Greens, kind string) Signature {
	if len(lines) > maxLines {
		lines = lines[len(lines)-maxLines:]
	}
	type candidate struct {
		at     int
		text   string
		masked string
		score  float64
		class  Class
		name   string
	}
	var best candidate
	cleaned := make([]string, len(lines))
	matched := map[int]bool{}
	count := map[uint64]int{}
	var cands []candidate
	// From the end, so that what the bound on candidates leaves out is old.
	for i := len(lines) - 1; i >= 0; i-- {
		raw := lines[i]
		if len(raw) > 4*maxWidth { // a progress display, for one
			raw = strings.TrimRight(raw, "\r\n")
			raw = clipBytes(raw[strings.LastIndexByte(raw, '\r')+1:], 4*maxWidth)
		}
		l := Clean(raw)
		if len(l) > maxWidth {
			l = clipBytes(l, maxWidth)
		}
		cleaned[i] = l
		if l == "" || len(cands) == maxCandidates {
			continue
		}
		clear(matched)
		word := false
		x.literals.Find([]byte(l), func(term, _ int) bool {
			if len(x.owner[term]) == 0 {
				word = true
			}
			for _, r := range x.owner[term] {
				matched[r] = true
			}
			return true
		})
		near := len(lines)-i <= 15
		if len(matched) == 0 && !word && !near || noise.MatchString(l) {
			continue
		}
		c := candidate{at: i, text: l, class: ClassOther}
		for ri := range rules { // in order: equal priority goes to the first
			if !matched[ri] {
				continue
			}
			v := &rules[ri]
			if v.prio <= c.score {
				continue
			}
			m := v.re.FindStringSubmatch(l)
			if m == nil {
				continue
			}
			c.score, c.class, c.name = v.prio, v.class, ""
			if v.name && len(m) > 1 {
				c.name = m[1]
			}
		}
		if word {
			c.score += 1.5
		}
		if warning.MatchString(l) {
			c.score -= 5 // what only warns was survived
		}
		cands = append(cands, c)
	}
	slices.Reverse(cands)
	for i := range cands {
		c := &cands[i]
		c.masked = Mask(c.text)
		h := lineHash(c.masked)
		count[h]++
		if n := greens[h]; n > 0 {
			c.score -= 20 // a green run prints it too: it is not why
		} else if len(greens) > 0 {
			c.score += 2
		}
	}
	for _, c := range cands {
		// The first of the strongest lines is nearer to the cause; that it is
		// near the end counts where nothing else tells.
		c.score += 1.5 * float64(c.at+1) / float64(len(lines))
		c.score -= .5 * math.Log2(float64(count[lineHash(c.masked)]))
		if c.score > best.score+1e-9 {
			best = c
		}
	}
	sig := Signature{Class: ClassOther, Score: best.score}
	var block []string
	if best.score > 0 {
		sig.Line, sig.Class = best.text, best.class
		sig.Text = strings.TrimSpace(best.masked)
		for i := max(best.at-1, 0); i < len(cleaned) && len(block) < 12; i++ {
			if cleaned[i] == "" {
				if i > best.at {
					break
				}
				continue
			}
			block = append(block, Mask(cleaned[i]))
		}
	} else {
		sig.Text = "(the output says nothing about the failure)"
	}
	sig.Block = block
	sig.Sketch = sketchOf(append(slices.Clone(block), tail(cleaned, 30)...))
	if len(sig.Text) > 300 {
		sig.Text = strings.ToValidUTF8(sig.Text[:300], "") + "…"
	}
	sig.ID = signatureID(sig.Text, best.name, kind)
	return sig
}

// tail is the masked last n lines that are not empty.
func tail(cleaned []string, n int) []string {
	var out []string
	for _, l := range slices.Backward(cleaned) {
		if l == "" || noise.MatchString(l) {
			continue
		}
		out = append(out, Mask(l))
		if len(out) == n {
			break
		}
	}
	slices.Reverse(out)
	return out
}

func signatureID(template, name, kind string) string {
	h := fnv.New64a()
	h.Write([]byte(template))
	h.Write([]byte{0})
	h.Write([]byte(name))
	h.Write([]byte{0})
	h.Write([]byte(kind))
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], h.Sum64())
	return hex.EncodeToString(b[:6])
}

// Sketch is a MinHash: the share of equal places of two sketches estimates how
// much of their words they have in common.
type Sketch [32]uint32

func sketchOf(lines []string) Sketch {
	var s Sketch
	for i := range s {
		s[i] = math.MaxUint32
	}
	for _, l := range lines {
		prev := uint64(fnvOffset)
		for w := range strings.FieldsSeq(l) {
			h := hash(prev, w)
			prev = hash(fnvOffset, w)
			for i := range s {
				v := h ^ uint64(i+1)*0x9E3779B97F4A7C15
				v ^= v >> 33
				v *= 0xff51afd7ed558ccd
				v ^= v >> 33
				s[i] = min(s[i], uint32(v))
			}
		}
	}
	return s
}

// Like estimates the Jaccard similarity of what two sketches were made of.
func (s Sketch) Like(o Sketch) float64 {
	n := 0
	for i := range s {
		if s[i] == o[i] {
			n++
		}
	}
	return float64(n) / float64(len(s))
}

// String is the sketch in hexadecimal.
func (s Sketch) String() string {
	b := make([]byte, 0, 4*len(s))
	for _, v := range s {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return hex.EncodeToString(b)
}

// ParseSketch reads String's form back; anything else gives the empty sketch.
func ParseSketch(text string) (s Sketch) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 4*len(s) {
		return s
	}
	for i := range s {
		s[i] = binary.BigEndian.Uint32(b[4*i:])
	}
	return s
}

// Templates are Drain trees, one a repository: they find the template a masked
// line belongs to and loosen it where the line differs. A template keeps its id
// while its text loosens. Repositories do not see each other's: a word that
// became <*> would tell of another's line. It is not safe for concurrent use.
type Templates struct {
	groups map[string][]*template
	byID   map[string]*template // under templateKey
	limit  int
	clock  int64
	dirty  map[string]struct{}
	share  share
}

type template struct {
	repo   string
	id     string
	salt   string
	group  string
	tokens []string
	last   int64
}

// recordKey is under which key something of a repository is kept, and stored.
func recordKey(repo, id string) string { return repo + " " + id }

// ofRecordKey takes such a key apart. An id has no spaces.
func ofRecordKey(key string) (repo, id string) {
	i := strings.LastIndexByte(key, ' ')
	if i < 0 {
		return "", key
	}
	return key[:i], key[i+1:]
}

// NewTemplates remembers at most limit templates (0: 5,000).
func NewTemplates(limit int) *Templates {
	if limit <= 0 {
		limit = 5000
	}
	return &Templates{groups: map[string][]*template{}, byID: map[string]*template{}, limit: limit, dirty: map[string]struct{}{}, share: share{}}
}

const (
	drainDepth      = 4 // tokens that must agree to get into a group, with their count
	drainSimilarity = .5
	anything        = "<*>"
)

func drainGroup(tokens []string) string {
	var b strings.Builder
	b.WriteString(strconv.Itoa(len(tokens)))
	for i := 0; i < min(drainDepth-2, len(tokens)); i++ {
		b.WriteByte(' ')
		t := tokens[i]
		if strings.ContainsAny(t, "<0123456789") {
			t = anything
		}
		b.WriteString(t)
	}
	return b.String()
}

func templateGroup(repo, salt string, tokens []string) string {
	return repo + "\x00" + salt + " " + drainGroup(tokens)
}

// Match returns the id and text of a repository's template of a masked line,
// making one where none fits. Lines of different salt have different templates.
func (t *Templates) Match(repo, masked, salt string) (id, text string) {
	tokens := strings.Fields(masked)
	if len(tokens) > 60 {
		tokens = tokens[:60]
	}
	t.clock++
	g := templateGroup(repo, salt, tokens)
	var best *template
	bestSim := -1.0
	for _, c := range t.groups[g] {
		same := 0
		for i, tok := range c.tokens {
			if tok == tokens[i] || tok == anything {
				same++
			}
		}
		sim := 1.0
		if len(tokens) > 0 {
			sim = float64(same) / float64(len(tokens))
		}
		if sim > bestSim {
			best, bestSim = c, sim
		}
	}
	if best == nil || bestSim < drainSimilarity {
		if len(t.byID) >= t.limit {
			t.evict()
		}
		best = &template{repo: repo, id: signatureID(masked, "", salt), salt: salt, group: g, tokens: slices.Clone(tokens)}
		for t.byID[recordKey(repo, best.id)] != nil { // another group's text, or a loosened one
			best.id = signatureID(best.id, masked, salt)
		}
		t.add(best)
		t.dirty[recordKey(repo, best.id)] = struct{}{}
	} else {
		for i, tok := range best.tokens {
			if tok != tokens[i] && tok != anything {
				best.tokens[i] = anything
				t.dirty[recordKey(repo, best.id)] = struct{}{}
			}
		}
	}
	best.last = t.clock
	return best.id, strings.Join(best.tokens, " ")
}

// Len is how many templates a repository has.
func (t *Templates) Len(repo string) int { return t.share[ownerOf(repo)] }

func (t *Templates) add(v *template) {
	t.byID[recordKey(v.repo, v.id)] = v
	t.groups[v.group] = append(t.groups[v.group], v)
	t.share.add(ownerOf(v.repo))
}

func (t *Templates) evict() {
	key := makeRoom(t.byID, t.share, func(_ string, v *template) (uint64, float64) { return ownerOf(v.repo), float64(v.last) })
	victim := t.byID[key]
	delete(t.byID, key)
	t.share.drop(ownerOf(victim.repo))
	t.dirty[key] = struct{}{}
	g := victim.group
	if i := slices.Index(t.groups[g], victim); i >= 0 {
		t.groups[g] = slices.Delete(t.groups[g], i, i+1)
	}
	if len(t.groups[g]) == 0 {
		delete(t.groups, g)
	}
}

// share counts how many entries of a bounded map each repository has.
type share map[uint64]int

// ownerOf is a repository in numbers: 52 bits, which a float64 holds. 0 is
// nobody's, or everybody's.
func ownerOf(repo string) uint64 {
	if repo == "" {
		return 0
	}
	return hash(fnvOffset, repo) >> 12
}

func (s share) add(owner uint64) { s[owner]++ }

func (s share) drop(owner uint64) {
	if s[owner]--; s[owner] <= 0 {
		delete(s, owner)
	}
}

// makeRoom chooses what goes from a map that is full: of some entries taken at
// random, which Go's map iteration does for us, the oldest one of the repository
// that has most. It takes constant time. So a repository that floods the memory
// pushes out its own, and what others know stays.
func makeRoom[K comparable, V any](m map[K]V, s share, of func(K, V) (owner uint64, age float64)) K {
	tries := 8
	if len(s) > 1 {
		tries = 64 // enough to meet one of those that have most
	}
	var victim K
	most, oldest := 0, 0.0
	for k, v := range m {
		owner, age := of(k, v)
		if c := s[owner]; c > most || c == most && age < oldest {
			victim, most, oldest = k, c, age
		}
		if tries--; tries == 0 {
			break
		}
	}
	return victim
}

// byScore sorts anything with a score, the best first.
func byScore[T any](list []T, score func(T) float64) {
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(score(b), score(a)) })
}
