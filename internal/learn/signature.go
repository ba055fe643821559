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
	ID    string
	Text  string // the masked template of the strongest line
	Line  string // that line as it was printed
	Class Class
	Block []string // the masked lines of the block it belongs to, at most 12
	// From and To are where that block is among the lines that were given: the first
	// and the line after the last. What is shown of the failure.
	From, To int
	Head     int     // where Line is
	Sketch   Sketch  // of the block and the tail: for "same as"
	Score    float64 // of the strongest line; 0: nothing stood out
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
	extent
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
	// What a test runner says of one failure
	named(9, ClassAssert, `^\s*--- FAIL: (\S+)`, "--- fail").over(inside),
	named(9, ClassAssert, `^test (\S+) \.\.\. FAILED`, "... failed").over(just),
	named(9.2, ClassAssert, `^---- (\S+) stdout ----`, " stdout ----"),
	named(9.1, ClassAssert, `thread '([^']+)' (?:\(\d+\) )?panicked at`, "panicked at").over(few),
	named(9, ClassAssert, `^FAILED (?:\[[^\]]*\] )?(\S+::\S+)`, "failed ").over(just),
	named(9.3, ClassAssert, `^_{4,} (?:ERROR (?:at setup of|collecting) )?(\S+) _{4,}$`, "____").over(pytest),
	named(8.5, ClassAssert, `^(?:ERROR|FAIL): (\w+ \([\w.]+\).*)`, "error: ", "fail: ").over(pytest),
	named(8, ClassAssert, `^\s*(?:●|✕|×|✗|✖) (.+?)(?: \(\d+.*\))?$`, "●", "✕", "×", "✗", "✖").over(bullet),
	named(8.2, ClassAssert, `\[(?:ERROR|FAIL)\]\s+(\S+[.#:]\S+).*(?:FAILURE|ERROR)!`, "failure!", "error!").over(few),
	named(8.2, ClassAssert, `^(\S+)\([\w.$]+\)\s+Time elapsed: .*<<< (?:FAILURE|ERROR)!`, "<<< ").over(extent{most: 8}),
	r(7.5, ClassAssert, `^(?:\[ERROR\] )?(?:Failed tests|Tests in error):`, "failed tests", "tests in error").over(listed),
	named(8, ClassAssert, `^\[\s*FAILED\s*\]\s+(\S+)`, "failed").over(just),
	r(8.1, ClassAssert, `^\S+?:\d+: Failure$`, ": failure").over(extent{most: 7}),
	named(7, ClassAssert, `^\s*\d+/\d+ Test\s+#\d+: (\S+) .*\*\*\*(?:Failed|Exception|Timeout)`, "***").over(just),
	named(8, ClassAssert, `^\s*1\) (.+)$`, "1) ").over(numbered),
	r(7.9, ClassAssert, `^There (?:was|were) \d+ (?:failure|error)s?:`, "there was", "there were").over(numbered),
	named(7.5, ClassAssert, `^not ok \d+(?: - (.*))?$`, "not ok").over(extent{most: 15, stop: stopAt(`^(?:not )?ok `), blanks: true}),
	named(9.4, ClassAssert, `^FAILED CONSISTENTLY: (\S+)`, "failed consistently").over(just),
	named(6.5, ClassAssert, `^\s*(\S+(?: \d+/\d+)?) failed!`, " failed!").over(just),
	named(8.6, ClassAssert, `^!{5,} (.+?) !{5,}$`, "!!!!").over(few),
	r(6.5, ClassAssert, `\bFAIL(?:ED)?:\s`, "fail").over(few),
	r(7, ClassAssert, `(?i)\bassert(?:ion)?(?:error|ion failed| failed|\s*\x60?left == right)`, "assert").over(few),
	r(5.5, ClassAssert, `(?i)\bexpected\b.*\b(?:but )?(?:got|received|was|found|actual)\b`, "expected").over(few),
	r(4, ClassAssert, `(?i)^test result: FAILED|\b[1-9]\d* (?:tests? )?(?:failed|failures?)\b`, "fail").over(just),
	// Compilers, linters, builds
	named(9, ClassCompile, `^error\[(E\d+)\]`, "error[e").over(rustc),
	named(8, ClassCompile, `error (TS\d+|CS\d+|C\d{4}|LNK\d+)\b`, "error ts", "error cs", "error c", "error lnk").over(few),
	r(8, ClassCompile, `^\S+?:\d+(?::\d+)?: (?:fatal )?error: `, "error: ").over(compiler),
	r(8, ClassCompile, `^(?:\[ERROR\] |\[error\] )?\S+\.(?:java|scala|kt|groovy):(?:\[?\d+[,:]?\d*\]?:?) `, ".java:", ".scala:", ".kt:",
		".groovy:").over(compiler),
	r(8, ClassCompile, `^e: \S+\.kts?:`, ".kt").over(few),
	r(7.5, ClassCompile, `^\S+\.hs:\d+:\d+: (?:error|warning: .*-Werror)`, ".hs:").over(extent{most: 15}),
	r(7.5, ClassCompile, `^File "\S+\.ml[iy]?", lines? \d+`, ".ml").over(few),
	r(7.5, ClassCompile, `^CMake Error\b`, "cmake error").over(extent{most: 10, blanks: true, stop: stopAt(`^\S`)}),
	r(7, ClassCompile, `^(?:\./)?\S+\.go:\d+:\d+: `, ".go:").over(few),
	r(7.2, ClassCompile,
		`(?i)\bundefined reference to\b|cannot find symbol|\bSyntaxError\b|cannot find (?:module|name|type|value)|^PHP (?:Parse|Fatal) error|^Parse error:`,
		"undefined reference", "cannot find", "syntaxerror", "parse error", "php fatal").over(few),
	r(7, ClassCompile, `^(?:ERROR|Error) in \.?/?\S+`, "error in").over(extent{most: 10}),
	r(7.4, ClassCompile, `^\* What went wrong:`, "what went wrong").over(asked),
	r(6, ClassCompile, `^FAILED: `, "failed: ").over(few),
	r(5, ClassCompile, `^error: could not compile`, "could not compile").over(just),
	r(4.5, ClassCompile, `(?i)compilation (?:failed|error)|\bmake(?:\[\d+\])?: \*\*\*|^ninja: build stopped`, "compilation", "***",
		"build stopped").over(few),
	r(6.5, ClassLint, `(?i)\bDiff in |would reformat|code style issues|not formatted|gofmt|\bclippy::|\beslint\b.*\berror|>>> Lint for`,
		"diff in", "reformat",
		"style issues", "formatted", "gofmt", "clippy", "eslint", "lint for").over(extent{most: 10, blanks: true, stop: stopAt(`>>> Lint for`)}),
	r(7, ClassLint, `^\s*\d+:\d+\s+error\s+\S`, "error").over(extent{before: 3, most: 10}),
	r(7, ClassLint, `^\S+\.\w+:\d+:\d+: (?:[EFWC]\d{3,4}|[CWEF]: [\w/]+:)`, ": e", ": w", ": f", ": c").over(few),
	r(6.5, ClassLint, `^\s*(?:✖|×) \d+ problems?`, "problem").over(extent{before: 10, most: 2}),
	r(6, ClassLint, `\bError\b.{0,12} \(\w+\) `, "error").over(few),
	// Network and services
	r(9, ClassDNS,
		`(?i)could not resolve host|temporary failure in name resolution|name or service not known|no such host|\bENOTFOUND\b|EAI_AGAIN|dns error`,
		"resolve", "name resolution", "not known", "no such host", "enotfound", "eai_again", "dns error").over(few),
	r(8, ClassNetwork,
		`(?i)connection (?:was )?(?:refused|reset|timed out|closed)|ECONNRESET|ECONNREFUSED|ETIMEDOUT|network is unreachable|no route to host|i/o timeout|TLS handshake|unexpected EOF|early EOF|broken pipe|RPC failed|remote end hung up|socket hang up|SSL_ERROR|read timed out|operation timed out`,
		"connection", "econn", "etimedout", "unreachable", "no route", "i/o timeout", "tls handshake", "eof", "broken pipe", "rpc failed",
		"hung up", "hang up",
		"ssl_error", "timed out").over(few),
	r(8, ClassServer,
		`(?i)\b(?:HTTP(?:/[\d.]+)?|status(?: code)?|error:?|returned|response)[ :=]*(?:code )?\(?(?:50[0234]|429)\b|internal server error|bad gateway|service unavailable|gateway time-?out|too many requests|rate limit exceeded`,
		"50", "429", "server error", "bad gateway", "unavailable", "gateway", "too many requests", "rate limit").over(few),
	r(8, ClassRegistry,
		`(?i)failed to (?:pull|push|fetch|download)|toomanyrequests|manifest unknown|error pulling image|failed to get \S+ as a dependency|unable to update registry|npm err! network|hash sum mismatch|unable to fetch some archives|unable to download artifact|error while fetching`,
		"failed to", "toomanyrequests", "manifest unknown", "error pulling", "unable to", "npm err! network", "hash sum", "error while fetching").over(few),
	r(8, ClassRegistry,
		`(?i)could not find (?:a version|gem|artifact|package)|no matching (?:distribution|package|version)|could not be resolved to an installable|^E: (?:unable to|failed)|unmet dependencies|version solving failed|failed building wheel|unresolved dependenc|could not resolve dependencies`,
		"could not find", "no matching", "installable", "e: unable", "e: failed", "unmet", "solving failed", "failed building", "unresolved",
		"could not resolve").over(extent{most: 8}),
	// Resources
	r(9, ClassMemory,
		`(?i)out of memory|\bOOM\b|cannot allocate memory|killed process|heap out of memory|std::bad_alloc|signal: 9, SIGKILL|exit(?:ed with)? (?:code|status):? 137`, "memory", "oom", "killed", "bad_alloc", "sigkill", "137").over(few),
	r(9, ClassDisk, `(?i)no space left on device|disk quota exceeded|ENOSPC|disk full`, "no space", "quota", "enospc", "disk full").over(few),
	r(8.5, ClassTimeout,
		`(?i)\b(?:job|step|test|execution|command|build|action)\b.*\b(?:timed out|exceeded the (?:maximum|time))|execution took longer|deadline exceeded|timeout after|context deadline|no output has been received in the last|command took >|maximum (?:time|log) limit`,
		"timed out", "exceeded", "longer", "deadline", "timeout", "no output", "took >", "limit").over(few),
	r(9, ClassCrash, `(?i)segmentation fault|\bSIG(?:SEGV|ABRT|ILL|BUS|FPE)\b|core dumped|internal compiler error|fatal runtime error`,
		"segmentation", "sigsegv", "sigabrt", "sigill", "sigbus", "sigfpe",
		"core dumped", "internal compiler", "fatal runtime").over(few),
	r(7.5, ClassCrash, `^panic: |^fatal error: `, "panic: ", "fatal error").over(extent{most: 15, blanks: true}),
	r(7.6, ClassCrash, `Traceback \(most recent`, "traceback").over(traceback),
	r(7.5, ClassCrash, `^Exception in thread|^Caused by: |^Uncaught |^Unhandled `, "exception in", "caused by", "uncaught",
		"unhandled").over(extent{most: 12}),
	r(7.3, ClassCrash, exception.String(), "error", "exception", "interrupt", "failure", "exit", "timeout", "expired", "notfound", "invalid").over(few),
	r(6.4, ClassMissing,
		`(?i)no such file or directory|command not found|ModuleNotFoundError|No module named|does not exist|cannot find package|404 not found|couldn't find remote ref|could not be loaded`, "no such file", "not found", "modulenotfound", "no module", "does not exist", "cannot find", "couldn't find", "could not be").over(few),
	r(6.4, ClassPermission, `(?i)permission denied|EACCES|access denied|forbidden|unauthorized|authentication failed|not authorized`, "denied", "eacces",
		"forbidden", "authori", "authentication").over(few),
	// The machinery
	r(9, ClassRunner,
		`(?i)runner system failure|system failure\)|cannot connect to the docker daemon|failed to create (?:shim|containerd)|lost communication with the server|no runner|runner has received a shutdown|prepare environment|stuck or timeout|pod failed to come online`,
		"system failure", "docker daemon", "failed to create", "lost communication", "no runner", "shutdown signal", "prepare environment", "stuck",
		"pod failed").over(few),
	r(6, ClassOther, `^Error response from `, "error response").over(few),
	r(4, ClassOther, `(?i)^\s*(?:npm ERR!|error|fatal|ERROR)\b[:\]! ]|^\[error\]`, "error", "fatal", "err!").over(extent{most: 8}),
}

// errorWords mark a line as a candidate without a rule.
var errorWords = []string{"error", "fail", "fatal", "panic", "exception", "cannot", "could not", "unable to", "not found", "denied", "refused",
	"timed out", "timeout", "abort", "invalid", "undefined", "missing", "unexpected", "killed", "✗", "err!"}

// noise are lines that say only that something failed.
var noise = regexp.MustCompile(`(?i)process completed with exit code|^error: process completed|job failed: exit (?:code|status)|command terminated with exit code|cleaning up|^error: test failed, to rerun|^error: aborting due to|npm err! (?:errno|code ELIFECYCLE)|0 (?:errors|failed|failures)|error: 0|failures?: 0|uploading artifacts|no files to upload|^##\[error\](?:the process .* failed with exit code|bash exited|error: process completed)|exit(?:ed with)? (?:code|status):? 0\b|for more information about this error`)

var (
	told = regexp.MustCompile(`^(?:##\[error\]|::error(?: [^:]*)?::)`)
	// exitOnly says no more than that something failed.
	exitOnly = regexp.MustCompile(`(?i)\bexit(?:ed)?(?: with)?(?: exit)?(?: code| status)?:? \d+|\bfailed with (?:code|status)|executing the custom container implementation failed|a task was canceled`)
)

// lastWord is how a program of Unix says why it ends: its name, what it was about, and
// the system's word for what was wrong. Where that is the last thing that was said, it
// is why, whatever was survived before it.
var lastWord = regexp.MustCompile(`^[\w./+-]+: (?:.*\D: )?(?:.*: )?(?:no such file or directory|permission denied|command not found|file exists|is a directory|not a directory|no such device(?: or address)?|directory not empty|read-only file system|operation not permitted|text file busy|too many levels of symbolic links|argument list too long|exec format error|bad interpreter|invalid argument|invalid option.*|unrecognized option.*|missing (?:\w+ )*operand.*|not found)\.?$`)

// usage is what programs say after that.
var usage = regexp.MustCompile(`(?i)^(?:try .*--help|usage: |for more (?:details|information))|is not recoverable: exiting now`)

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
	skipped := max(len(lines)-maxLines, 0)
	lines = lines[skipped:]
	type candidate struct {
		at     int
		text   string
		masked string
		hash   uint64 // of masked
		score  float64
		class  Class
		name   string
		extent extent
		ruled  bool // by more than a word
		told   bool // an action or a tool reports it as its error
	}
	var best candidate
	cleaned := make([]string, len(lines))
	matched := map[int]bool{}
	count := map[uint64]int{}
	var cands []candidate
	end := len(lines) // of what failed; what comes after it cleans up
	for i, l := range lines {
		if strings.Contains(l, "##[error]") {
			if l = Clean(clipBytes(l, 4*maxWidth)); strings.HasPrefix(l, "##[error]") && exitOnly.MatchString(l) {
				end = i + 1
				break
			}
		}
	}
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
		word := x.hits(l, matched)
		near := len(lines)-i <= 15 || i < end && end-i <= 15
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
			c.score, c.class, c.name, c.extent, c.ruled = v.prio, v.class, "", v.extent, v.prio > 4
			if v.name && len(m) > 1 {
				c.name = m[1]
			}
		}
		if told.MatchString(l) {
			c.told = true
			if c.extent, c.ruled = few, true; exitOnly.MatchString(l) {
				c.score = 1 // somebody below has said more
			} else {
				c.score = 8.5
			}
		}
		if word && c.score < 3 {
			c.score += 1.5
		}
		if warning.MatchString(l) {
			c.score -= 5 // what only warns was survived
		}
		cands = append(cands, c)
	}
	slices.Reverse(cands)
	final := end - 1 // the last line that says anything
	for final >= 0 && (cleaned[final] == "" || noise.MatchString(cleaned[final]) || told.MatchString(cleaned[final]) || usage.MatchString(cleaned[final])) {
		final--
	}
	// What stands in a traceback is a part of it, and it is as strong as its last
	// exception.
	covered := -1
	for i := range cands {
		c := &cands[i]
		if c.at < covered {
			c.score, c.ruled = -20, true
			continue
		}
		if c.extent.trace {
			_, to, head := blockOf(cleaned, c.at, c.extent)
			covered = to
			if head != c.at {
				x.hits(cleaned[head], matched)
				c.class, c.score = strongest(cleaned[head], matched, c.class, c.score)
			}
		}
		if c.at == final && c.score < 9.5 && lastWord.MatchString(strings.ToLower(c.text)) {
			c.score, c.ruled = 9.5, true
		}
		c.masked = Mask(c.text)
		c.hash = lineHash(c.masked)
		count[c.hash]++
		if n := greens[c.hash]; n > 0 {
			c.score -= 20 // a green run prints it too: it is not why
		} else if len(greens) > 0 {
			c.score += 2
		}
	}
	for _, c := range cands {
		// The first of the strongest lines is nearest to the cause; that it is near the
		// end counts where nothing else tells.
		if !c.ruled {
			if c.extent == (extent{}) {
				c.extent = around
			}
			if c.at < end {
				c.score += 1.5 * float64(c.at+1) / float64(end)
			}
			c.score -= .5 * math.Log2(float64(count[c.hash]))
		}
		// What an action reports in several lines, it says in the last.
		if c.score > best.score+1e-9 || c.told && best.told && c.score >= best.score && c.at-best.at < 3 {
			best = c
		}
	}
	// Where something was tried again and failed alike, the last time ended the step.
	for _, c := range slices.Backward(cands) {
		if c.ruled && c.masked == best.masked && c.class == best.class {
			best.at, best.text = c.at, c.text
			break
		}
	}
	sig := Signature{Class: ClassOther, Score: best.score}
	var block []string
	if best.score > 0 {
		if up := causedBy(cleaned, best.at); up != best.at {
			best.at, best.extent = up, inside
		}
		from, to, head := blockOf(cleaned, best.at, best.extent)
		sig.From, sig.To, sig.Head = skipped+from, skipped+to, skipped+head
		sig.Line, sig.Class, sig.Text = cleaned[head], best.class, strings.TrimSpace(Mask(cleaned[head]))
		for i := from; i < to && len(block) < 12; i++ {
			if cleaned[i] != "" {
				block = append(block, Mask(cleaned[i]))
			}
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

// hits has matched be the rules that a line may meet, by their literals, and says
// whether it has a word of errors.
func (x *Extractor) hits(line string, matched map[int]bool) (word bool) {
	clear(matched)
	x.literals.Find([]byte(line), func(term, _ int) bool {
		word = word || len(x.owner[term]) == 0
		for _, r := range x.owner[term] {
			matched[r] = true
		}
		return true
	})
	return word
}

// strongest is what the strongest of the rules that may meet a line takes it for that
// says more than that something crashed, and how strong what there is becomes with it.
func strongest(line string, matched map[int]bool, class Class, score float64) (Class, float64) {
	most := 0.0
	for i := range rules {
		if v := &rules[i]; matched[i] && v.prio > most && v.class != ClassOther && v.class != ClassCrash && v.re.MatchString(line) {
			most, class = v.prio, v.class
		}
	}
	return class, max(score, most)
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
	// version is that of the extractor that found a line of it last; fresh, that it was
	// made for the line that was matched last.
	version int
	fresh   bool
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
		best = &template{repo: repo, id: signatureID(masked, "", salt), salt: salt, group: g, tokens: slices.Clone(tokens),
			version: extractorVersion, fresh: true}
		for t.byID[recordKey(repo, best.id)] != nil { // another group's text, or a loosened one
			best.id = signatureID(best.id, masked, salt)
		}
		t.add(best)
		t.dirty[recordKey(repo, best.id)] = struct{}{}
	} else {
		best.fresh = false
		if best.version != extractorVersion {
			best.version = extractorVersion
			t.dirty[recordKey(repo, best.id)] = struct{}{}
		}
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
	t.remove(key)
}

// remove takes a template out, and notes that it has gone.
func (t *Templates) remove(key string) {
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
// random, which Go's map iteration does for us, the one of the least value, among
// those of repositories that have at least half as many as the one with most. It
// takes constant time. So a repository that floods the memory pushes out its own, what
// others know stays, and of what may go the least valuable goes.
func makeRoom[K comparable, V any](m map[K]V, s share, of func(K, V) (owner uint64, value float64)) K {
	tries := 8
	if len(s) > 1 {
		tries = 64 // enough to meet one of those that have most
	}
	type pick struct {
		key   K
		has   int
		value float64
	}
	var picks [64]pick
	n, most := 0, 0
	for k, v := range m {
		owner, value := of(k, v)
		picks[n] = pick{k, s[owner], value}
		most = max(most, s[owner])
		if n++; n == tries {
			break
		}
	}
	victim := -1
	for i, p := range picks[:n] {
		if 2*p.has >= most && (victim < 0 || p.value < picks[victim].value) {
			victim = i
		}
	}
	if victim < 0 {
		var none K
		return none
	}
	return picks[victim].key
}

// worth is the value of a counter to [makeRoom]: it halves in thirty days without an
// event, doubles with how often there was one, and a failure is worth as much as four
// passes: what never fails is foretold as well by what is above it.
func worth(seen, fails int64, last float64) float64 {
	return last + 30*86400*math.Log2(float64(1+max(seen, 0)+4*max(fails, 0)))
}

// byScore sorts anything with a score, the best first.
func byScore[T any](list []T, score func(T) float64) {
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(score(b), score(a)) })
}
