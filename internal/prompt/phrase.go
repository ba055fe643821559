package prompt

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Phrase writes the workflow that a request in plain phrasing asks for, or
// returns a [*Refusal] that names the clause it does not understand.
//
// A request is a list of clauses in the order in which they are to happen.
// Words between them say how they hang together: "then", "and if it passes",
// commas (the next step, which runs only if all before it succeeded), "if it
// fails" (failure()), "always", "in any case" (always()), "in parallel" (jobs of
// their own). Some clauses set the scene: when it runs ("on every pull
// request", "every night at 3"), with what ("with node 20 and 22": a matrix),
// how long at most. The rest are commands: named outright ("run make check",
// or anything in backquotes), or said as a purpose ("build the project") whose
// command follows from the tool chain that the request names elsewhere.
func Phrase(request string) (string, error) {
	if strings.ContainsFunc(request, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) }) {
		return "", &Refusal{Reason: "the request holds control characters"}
	}
	p := &phrasing{request: request, branches: nil}
	if err := p.read(); err != nil {
		return "", err
	}
	yaml := p.write()
	if problem := check(yaml); problem != "" {
		return "", &Refusal{Reason: "what came of it is no valid workflow: " + firstLine(problem), Hint: "put commands in backquotes: run `cargo test`"}
	}
	return yaml, nil
}

type phrasing struct {
	request  string
	literals []string // what stood in backquotes or quotes

	on       []string // YAML lines under "on:"
	branches []string
	matrix   map[string][]string // tool → versions
	tools    []string            // tool chains, in order of mention
	timeout  int
	env      [][2]string
	runsOn   []string
	parallel bool
	steps    []step
}

type step struct {
	name, command, purpose string
	uses                   string
	with                   [][2]string
	cond                   string // "", failure, always
	allow                  bool   // continue-on-error
	clause                 string
	dir                    string
}

// chain says how a tool chain does what people ask for by purpose.
type chain struct {
	setup, key string // action, and the input that takes a version
	words      []string
	does       map[string]string
}

func chains() map[string]chain {
	return map[string]chain{
		"cargo": {words: []string{"cargo", "rust", "crate"}, does: map[string]string{
			"build": "cargo build", "test": "cargo test", "lint": "cargo clippy -- -D warnings", "format": "cargo fmt --check", "bench": "cargo bench", "check": "cargo check", "docs": "cargo doc --no-deps", "release": "cargo build --release"}},
		"go": {setup: "actions/setup-go@v5", key: "go-version", words: []string{"go", "golang"}, does: map[string]string{
			"build": "go build ./...", "test": "go test ./...", "lint": "go vet ./...", "format": `test -z "$(gofmt -l .)"`, "bench": "go test -run '^$' -bench . ./...", "check": "go vet ./...", "deps": "go mod download"}},
		"npm": {setup: "actions/setup-node@v4", key: "node-version", words: []string{"npm", "node", "nodejs", "node.js", "javascript", "typescript"}, does: map[string]string{
			"build": "npm run build", "test": "npm test", "lint": "npm run lint", "format": "npm run format", "check": "npm run check", "deps": "npm ci", "audit": "npm audit"}},
		"yarn": {setup: "actions/setup-node@v4", key: "node-version", words: []string{"yarn"}, does: map[string]string{
			"build": "yarn build", "test": "yarn test", "lint": "yarn lint", "deps": "yarn install --immutable"}},
		"pnpm": {setup: "actions/setup-node@v4", key: "node-version", words: []string{"pnpm"}, does: map[string]string{
			"build": "pnpm build", "test": "pnpm test", "lint": "pnpm lint", "deps": "pnpm install --frozen-lockfile"}},
		"python": {setup: "actions/setup-python@v5", key: "python-version", words: []string{"python", "pytest", "pip", "ruff", "mypy", "tox"}, does: map[string]string{
			"build": "python -m build", "test": "pytest", "lint": "ruff check .", "format": "ruff format --check .", "check": "mypy .", "deps": "pip install -r requirements.txt"}},
		"make": {words: []string{"make", "makefile"}, does: map[string]string{
			"build": "make", "test": "make test", "lint": "make lint", "format": "make format", "check": "make check", "bench": "make bench", "docs": "make docs", "install": "make install", "clean": "make clean"}},
		"cmake": {words: []string{"cmake", "ctest"}, does: map[string]string{
			"build": "cmake -B build && cmake --build build", "test": "ctest --test-dir build --output-on-failure", "install": "cmake --install build"}},
		"maven": {setup: "actions/setup-java@v4", key: "java-version", words: []string{"maven", "mvn"}, does: map[string]string{
			"build": "mvn -B package -DskipTests", "test": "mvn -B test", "check": "mvn -B verify", "deps": "mvn -B dependency:go-offline"}},
		"gradle": {setup: "actions/setup-java@v4", key: "java-version", words: []string{"gradle", "gradlew"}, does: map[string]string{
			"build": "./gradlew assemble", "test": "./gradlew test", "check": "./gradlew check", "lint": "./gradlew check"}},
		"dotnet": {setup: "actions/setup-dotnet@v4", key: "dotnet-version", words: []string{"dotnet", ".net"}, does: map[string]string{
			"build": "dotnet build", "test": "dotnet test", "deps": "dotnet restore", "format": "dotnet format --verify-no-changes"}},
		"bundle": {words: []string{"ruby", "bundle", "rake", "rspec"}, does: map[string]string{
			"test": "bundle exec rake test", "deps": "bundle install", "lint": "bundle exec rubocop"}},
	}
}

// programs are names that begin a command when they begin a clause.
var programs = strings.Fields(`cargo go npm npx yarn pnpm make cmake ctest pytest python python3 pip pip3 poetry tox uv mvn gradle ./gradlew bash sh zsh
 docker podman terraform tofu kubectl helm ansible-playbook node deno bun rake bundle rspec rubocop composer php phpunit dotnet swift mix zig ninja meson bazel
 eslint prettier ruff black mypy flake8 pylint golangci-lint staticcheck gofmt shellcheck hadolint tsc jest vitest playwright echo ls cat cp mv rm mkdir
 git tar gzip zip unzip curl wget jq sed awk grep find diff rsync scp ssh rustc rustup gcc g++ clang java javac perl ruby rails lua julia stack cabal ghc
 pre-commit actionlint yamllint markdownlint hugo mkdocs sphinx-build psql sqlite3 env time timeout true false test exit sleep date hostname uname nproc df free`)

var (
	quoted    = regexp.MustCompile("`([^`\n]+)`|\"([^\"\n]+)\"|“([^”\n]+)”")
	literal   = regexp.MustCompile("\x00(\\d+)\x00")
	spaces    = regexp.MustCompile(`\s+`)
	splitter  = regexp.MustCompile(`(?i)\s*(?:[;\n]+|,?\s*\b(?:and\s+)?(?:then|afterwards|after\s+that|next|subsequently)\b,?|,?\s*\b(?:and\s+)?(?:finally|lastly)\b,?|,)\s*`)
	sentence  = regexp.MustCompile("([A-Za-z0-9\x00)])\\.(?:\\s+|$)")
	onSuccess = regexp.MustCompile(`(?i),?\s*\b(?:and|but)?\s*(?:only\s+)?(?:if|when|once|as soon as|after|provided)\s+(?:that\s+|it\s+|they\s+|this\s+|all\s+of\s+(?:that|it)\s+|all\s+|everything\s+|the\s+(?:tests?|build|linter|lint|checks?|previous\s+steps?|last\s+step)\s+)*(?:all\s+)?(?:pass(?:es|ed)?|succeeds?|succeeded|(?:is|are|was|were|goes|went)\s+(?:green|ok|okay|fine|well|successful|done|good)|works?|worked)\b,?\s*(?:then\b,?\s*)?|,?\s*\b(?:and\s+)?on\s+success\b,?\s*`)
	onFailure = regexp.MustCompile(`(?i)^(?:and\s+|but\s+)?(?:(?:if|when|should|in\s+case)\s+(?:that\s+|it\s+|they\s+|this\s+|any\s+of\s+(?:that|it|them)\s+|any(?:thing)?\s+|something\s+|the\s+(?:tests?|build|checks?|lint)\s+)*(?:fails?|failed|breaks?|goes\s+wrong|is\s+red)|on\s+(?:a\s+)?failure|otherwise|or\s+else|else)\b,?\s*`)
	failSplit = regexp.MustCompile(`(?i),?\s*\b(?:and\s+|but\s+)?((?:if|when|should|in\s+case)\s+(?:that\s+|it\s+|they\s+|this\s+|any\s+of\s+(?:that|it|them)\s+|any(?:thing)?\s+|something\s+|the\s+(?:tests?|build|checks?|lint)\s+)*(?:fails?|failed|breaks?|goes\s+wrong|is\s+red)|on\s+(?:a\s+)?failure|otherwise)\b`)
	always    = regexp.MustCompile(`(?i)\b(?:always|in\s+(?:any|every)\s+case|no\s+matter\s+what|whatever\s+happens|regardless(?:\s+of\s+(?:the\s+)?(?:result|outcome))?|even\s+if\s+(?:it|they|something|anything|that|the\s+\w+)\s+fails?(?:ed)?)\b,?\s*`)
	tolerate  = regexp.MustCompile(`(?i),?\s*\b(?:(?:and\s+|but\s+)?(?:ignore|ignoring|allow|allowing|tolerate|tolerating)\s+(?:its\s+|their\s+|any\s+|all\s+|it\s+to\s+|them\s+to\s+|that\s+to\s+)?(?:failures?|errors?|fail)|(?:which|that|it|this)\s+(?:may|can|is\s+allowed\s+to)\s+fail|(?:but\s+)?(?:continue|go\s+on|carry\s+on)\s+(?:even\s+)?(?:on\s+(?:failure|errors?)|if\s+(?:it|that|they)\s+fails?)|without\s+failing(?:\s+the\s+(?:build|job|run))?|as\s+(?:a\s+)?best\s+effort)\b`)
	tolerant2 = regexp.MustCompile(`(?i)^(?:allow|let)\s+(.+?)\s+(?:to\s+)?fail$`)
	parallel  = regexp.MustCompile(`(?i),?\s*\b(?:(?:all\s+)?in\s+parallel|at\s+the\s+same\s+time|concurrently|side\s+by\s+side|simultaneously)\b`)
	timeout   = regexp.MustCompile(`(?i),?\s*\b(?:(?:with|and|within|in|use|set)\s+)?(?:a\s+)?(?:time\s?-?out\s+(?:of|after|is|to)?|at\s+most|no\s+(?:more|longer)\s+than|within|stop(?:ping)?\s+after|give\s+up\s+after)\s+(?:a\s+maximum\s+of\s+)?(\d+|an|one|half\s+an)\s*(minutes?|mins?|hours?|h|m)\b(?:\s+at\s+most)?`)
	directory = regexp.MustCompile(`(?i),?\s+(?:in|inside|from)\s+(?:the\s+)?(?:(?:directory|folder|subdirectory|dir)\s+([A-Za-z0-9_./-]+)|([A-Za-z0-9_./-]+)\s+(?:directory|folder|subdirectory|dir))\b`)
	setting   = regexp.MustCompile(`\b([A-Z][A-Z0-9_]*)=(\S+)`)
	settings  = regexp.MustCompile(`(?i),?\s*\bwith\s+(?:the\s+)?(?:env(?:ironment)?(?:\s+variables?)?\s+)?((?:[A-Z][A-Z0-9_]*=\S+(?:\s*(?:,|and|,\s*and)\s*)?)+)`)
	versions  = regexp.MustCompile(`(?i),?\s*\b(?:with|on|using|for|against|across|under)\s+(?:both\s+|all\s+of\s+)?(rust|go|golang|node(?:\.?js)?|python|java|jdk|\.net|dotnet)\s+(?:versions?\s+)?(v?\d+(?:\.\d+|\.x)*(?:(?:\s*,\s*(?:and\s+|or\s+)?|\s+and\s+|\s+or\s+)v?\d+(?:\.\d+|\.x)*)*)`)
	oneVer    = regexp.MustCompile(`\d+(?:\.\d+|\.x)*`)
	runner    = regexp.MustCompile(`(?i),?\s*\b(?:on|under|using)\s+(?:an?\s+|the\s+)?(ubuntu(?:-latest|-\d\d\.\d\d|\s+\d\d\.\d\d)?|debian(?:-\d\d)?|linux)(?:\s+(?:runner|machine|host|image|vm))?\b`)
	otherOS   = regexp.MustCompile(`(?i)\b(?:on|under|using|for)\s+(?:an?\s+)?(windows|mac\s?os|macos|osx|ios|android|freebsd)\b`)
	verbRun   = regexp.MustCompile(`(?i)^(?:(?:please|first|also|second|third|just|now|again|we|i|you|should|must|to|want|would like|it|both|and|let'?s|lets|can|could|make sure (?:to|that you)|that)\s+)*(?:(?:runs?|executes?|calls?|invokes?|starts?|does|do|uses?|try|performs?)\s+)(?:the\s+command\s+|the\s+script\s+|a\s+command\s+)?`)
	filler    = regexp.MustCompile(`(?i)^(?:(?:please|first|also|second|third|just|now|again|we|i|you|should|must|to|want|would like|both|and|let'?s|lets|can|could|make sure (?:to|that you)|that|a workflow (?:that|which|to)|create|write|make|generate|give me|set up|i need)\s+)*?`)
	opener    = regexp.MustCompile(`(?i)^(?:please\s+)?(?:(?:create|write|make|generate|give\s+me|set\s+up|build|i\s+(?:need|want)|i'd\s+like)\s+)?(?:me\s+)?(?:a|an|the)\s+(?:new\s+|small\s+|simple\s+|github\s+|actions\s+|ci\s+)*(?:workflow|pipeline|job|ci)\s+(?:that|which|to|for)\s+(?:will\s+|should\s+)?`)
)

func (p *phrasing) read() error {
	text := quoted.ReplaceAllStringFunc(p.request, func(m string) string {
		sub := quoted.FindStringSubmatch(m)
		p.literals = append(p.literals, sub[1]+sub[2]+sub[3])
		return fmt.Sprintf("\x00%d\x00", len(p.literals)-1)
	})
	if strings.Contains(text, "`") {
		return &Refusal{Reason: "a backquote has no partner", Hint: "put a command between two backquotes: `make check`"}
	}
	text = strings.TrimSpace(strings.Trim(strings.TrimSpace(text), "!"))
	text = opener.ReplaceAllString(text, "")
	if m := otherOS.FindString(text); m != "" {
		return &Refusal{Clause: m, Reason: "machines here run Linux", Hint: "leave the system out, or say on ubuntu"}
	}
	var err error
	if text, err = p.scene(text); err != nil {
		return err
	}
	if parallel.MatchString(text) {
		p.parallel = true
		text = parallel.ReplaceAllString(text, "")
	}
	text = sentence.ReplaceAllString(text, "$1; ")
	text = onSuccess.ReplaceAllString(text, "; ")
	text = failSplit.ReplaceAllString(text, "; $1")
	p.chainsOf(text)
	clauses := splitter.Split(text, -1)
	var todo []string
	for _, c := range clauses {
		todo = append(todo, p.conjuncts(c)...)
	}
	cond, only := "", false // only: the clause before was a condition and nothing else
	for _, c := range todo {
		c = strings.TrimSpace(c)
		if m := onFailure.FindString(c); m != "" {
			cond = "failure"
			c = strings.TrimSpace(c[len(m):])
			if c == "" {
				only = true
				continue
			}
		} else if !only {
			cond = ""
		}
		only = false
		c = strings.TrimSpace(regexp.MustCompile(`(?i)^(?:and|but)\s+|\s+(?:and|but)$`).ReplaceAllString(c, ""))
		if c == "" || strings.EqualFold(c, "and") || strings.EqualFold(c, "first") {
			continue
		}
		if err := p.clause(c, cond); err != nil {
			return err
		}
	}
	if len(p.steps) == 0 {
		return &Refusal{Clause: strings.TrimSpace(p.request), Reason: "nothing in it is something to run", Hint: `name a command ("run make check"), or a purpose and a tool ("build and test with cargo")`}
	}
	return nil
}

// conjuncts splits "lint and test the code" where both halves can stand alone,
// and leaves "echo salt and pepper" whole.
func (p *phrasing) conjuncts(c string) []string {
	parts := regexp.MustCompile(`(?i)\s+and\s+(?:also\s+)?|\s*&&\s*|\s+but\s+`).Split(c, -1)
	if len(parts) == 1 {
		return parts
	}
	out := []string{parts[0]}
	for _, part := range parts[1:] {
		if p.standsAlone(part) {
			out = append(out, part)
		} else {
			out[len(out)-1] += " and " + part
		}
	}
	return out
}

func (p *phrasing) standsAlone(c string) bool {
	c = strings.TrimSpace(c)
	if onFailure.MatchString(c) || verbRun.MatchString(c) || always.MatchString(c) || literal.MatchString(c) && strings.HasPrefix(c, "\x00") {
		return true
	}
	if isCommand(c) {
		return true
	}
	_, _, ok := purposeOf(c)
	return ok || artifact.MatchString(c)
}

// scene takes out of the text what says when, where and with what.
func (p *phrasing) scene(text string) (string, error) {
	var err error
	if text, err = p.triggers(text); err != nil {
		return "", err
	}
	for _, m := range versions.FindAllStringSubmatch(text, -1) {
		tool := map[string]string{"golang": "go", "go": "go", "node": "npm", "nodejs": "npm", "node.js": "npm", "python": "python", "java": "maven", "jdk": "maven", "dotnet": "dotnet", ".net": "dotnet", "rust": "cargo"}[strings.ToLower(m[1])]
		if tool == "cargo" {
			return "", &Refusal{Clause: strings.TrimSpace(m[0]), Reason: "there is no setup action for Rust versions that I would pick for you", Hint: "say: run `rustup default 1.80`, then …"}
		}
		if p.matrix == nil {
			p.matrix = map[string][]string{}
		}
		p.matrix[tool] = oneVer.FindAllString(m[2], -1)
		if !slices.Contains(p.tools, tool) {
			p.tools = append(p.tools, tool)
		}
	}
	text = versions.ReplaceAllString(text, "")
	if m := runner.FindStringSubmatch(text); m != nil {
		label := strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")
		switch label {
		case "ubuntu", "linux":
			label = "ubuntu-latest"
		case "debian":
			label = "debian-12"
		}
		p.runsOn = []string{label}
		text = runner.ReplaceAllString(text, "")
	}
	if m := timeout.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[1])
		hours := strings.HasPrefix(strings.ToLower(m[2]), "h")
		switch {
		case strings.HasPrefix(strings.ToLower(m[1]), "half"):
			n = 30
		case n == 0 && hours:
			n = 60
		case hours:
			n *= 60
		case n == 0:
			n = 1
		}
		if n < 1 || n > 4320 {
			return "", &Refusal{Clause: strings.TrimSpace(m[0]), Reason: "a time limit is between a minute and three days"}
		}
		p.timeout = n
		text = timeout.ReplaceAllString(text, "")
	}
	for _, m := range settings.FindAllStringSubmatch(text, -1) {
		for _, kv := range setting.FindAllStringSubmatch(m[1], -1) {
			p.env = append(p.env, [2]string{kv[1], strings.TrimRight(kv[2], ",;.")})
		}
	}
	return settings.ReplaceAllString(text, ""), nil
}

var (
	trigAny    = `(?i),?\s*\b(?:(?:and|or|run|runs|it\s+runs|triggered|do\s+(?:this|that|it|so))\s+)*`
	trigPR     = regexp.MustCompile(trigAny + `(?:on|for|at|with|upon|whenever|when)\s+(?:there\s+is\s+|someone\s+opens\s+)?(?:all|every|each|any|an?|new)?\s*(?:new\s+)?(?:pull[\s_-]?requests?|prs?|merge\s+requests?)(?:\s+(?:is\s+opened|(?:in)?to\s+` + branchWord + `))?\b`)
	trigPush   = regexp.MustCompile(trigAny + `(?:on|for|at|with|upon|after|whenever\s+there\s+is|when\s+there\s+is|when|whenever)\s+(?:all|every|each|any|an?|i|someone|somebody|we)?\s*(?:push(?:es)?|commits?)(?:\s+(?:to|on|of)\s+(?:the\s+)?` + branchWord + `(?:\s+branch)?)?\b`)
	trigBoth   = regexp.MustCompile(trigAny + `(?:on|for)\s+(?:all|every|each|any)?\s*push(?:es)?\s+and\s+(?:all|every|each|any)?\s*(?:pull[\s_-]?requests?|prs?)\b`)
	trigBoth2  = regexp.MustCompile(trigAny + `(?:on|for)\s+(?:all|every|each|any)?\s*(?:pull[\s_-]?requests?|prs?)\s+and\s+(?:all|every|each|any)?\s*push(?:es)?\b`)
	trigTag    = regexp.MustCompile(trigAny + `(?:on|for|at|when|whenever)\s+(?:there\s+is\s+)?(?:all|every|each|any|an?|new)?\s*(?:new\s+)?(?:version\s+)?tags?(?:\s+(?:is\s+pushed|(?:like|matching|named|starting\s+with)\s+(\S+)|(v[\d.*]*\*)))?(?:[\s,]|$)`)
	trigRel    = regexp.MustCompile(trigAny + `(?:on|for|at|when|whenever)\s+(?:there\s+is\s+)?(?:all|every|each|any|an?|new)?\s*(?:new\s+)?releases?(?:\s+is\s+(?:published|made))?\b`)
	trigManual = regexp.MustCompile(trigAny + `(?:manually|by\s+hand|on\s+demand|when\s+(?:i|we|somebody|someone)\s+asks?(?:\s+for\s+it)?)\b`)
	trigTime   = regexp.MustCompile(trigAny + `(?:(?:on|at)\s+)?(?:(?:every|each)\s+(night|day|morning|evening|hour|week|month|weekday|working\s+day|monday|tuesday|wednesday|thursday|friday|saturday|sunday|(\d+)\s+(?:minutes?|hours?))|(nightly|daily|hourly|weekly|monthly))(?:\s+(?:at|around)\s+(midnight|noon|\d{1,2}(?::\d\d)?\s*(?:am|pm|o'?clock|h|utc)?))?(?:\s+utc)?\b`)
)

const branchWord = `([A-Za-z0-9_./*-]*[A-Za-z0-9_*])`

func (p *phrasing) triggers(text string) (string, error) {
	push, pr := false, false
	var pushTo, prTo, tags, crons []string
	cut := func(re *regexp.Regexp, each func(m []string) error) error {
		for _, m := range re.FindAllStringSubmatch(text, -1) {
			if err := each(m); err != nil {
				return err
			}
		}
		text = re.ReplaceAllString(text, " ")
		return nil
	}
	both := func([]string) error { push, pr = true, true; return nil }
	_ = cut(trigBoth, both)
	_ = cut(trigBoth2, both)
	_ = cut(trigTag, func(m []string) error {
		pattern := strings.Trim(literalOr(p, m[1]+m[2]), ",;'")
		if pattern == "" {
			pattern = "v*"
		} else if !strings.ContainsAny(pattern, "*?") {
			pattern += "*"
		}
		tags = append(tags, pattern)
		return nil
	})
	_ = cut(trigPR, func(m []string) error {
		pr = true
		if m[1] != "" {
			prTo = append(prTo, m[1])
		}
		return nil
	})
	_ = cut(trigPush, func(m []string) error {
		push = true
		if m[1] != "" {
			pushTo = append(pushTo, m[1])
		}
		return nil
	})
	release := false
	_ = cut(trigRel, func([]string) error { release = true; return nil })
	manual := false
	_ = cut(trigManual, func([]string) error { manual = true; return nil })
	if err := cut(trigTime, func(m []string) error {
		c, err := cron(strings.ToLower(m[1]+m[3]), m[2], strings.ToLower(m[4]))
		if err != nil {
			return &Refusal{Clause: strings.TrimSpace(m[0]), Reason: err.Error(), Hint: "say: every day at 03:30"}
		}
		crons = append(crons, c)
		return nil
	}); err != nil {
		return "", err
	}
	if !push && !pr && !release && !manual && len(tags) == 0 && len(crons) == 0 {
		push, pr = true, true
	}
	list := func(key string, values []string) {
		p.on = append(p.on, "    "+key+":")
		for _, v := range values {
			p.on = append(p.on, "      - "+scalar(v))
		}
	}
	if push || len(tags) > 0 {
		p.on = append(p.on, "  push:")
		if len(pushTo) > 0 {
			list("branches", pushTo)
		} else if push && len(tags) > 0 {
			list("branches", []string{"**"})
		}
		if len(tags) > 0 {
			list("tags", tags)
		}
	}
	if pr {
		p.on = append(p.on, "  pull_request:")
		if len(prTo) > 0 {
			list("branches", prTo)
		}
	}
	if release {
		p.on = append(p.on, "  release:")
		list("types", []string{"published"})
	}
	if manual {
		p.on = append(p.on, "  workflow_dispatch:")
	}
	if len(crons) > 0 {
		p.on = append(p.on, "  schedule:")
		for _, c := range crons {
			p.on = append(p.on, "    - cron: "+scalar(c))
		}
	}
	return strings.TrimLeft(text, " ,;:"), nil
}

func literalOr(p *phrasing, s string) string {
	if m := literal.FindStringSubmatch(s); m != nil {
		if i, err := strconv.Atoi(m[1]); err == nil && i < len(p.literals) {
			return p.literals[i]
		}
	}
	return s
}

// cron writes a schedule; times are UTC as GitHub reads them.
func cron(every, count, at string) (string, error) {
	hour, minute := 3, 0
	if every == "morning" {
		hour = 6
	} else if every == "evening" {
		hour = 18
	}
	if at != "" {
		var err error
		if hour, minute, err = clock(at); err != nil {
			return "", err
		}
	}
	day := func(n int) (string, error) { return fmt.Sprintf("%d %d * * %d", minute, hour, n), nil }
	if count != "" {
		n, _ := strconv.Atoi(count)
		if strings.Contains(every, "minute") {
			if n < 5 || n > 59 {
				return "", fmt.Errorf("GitHub runs schedules every 5 to 59 minutes")
			}
			return fmt.Sprintf("*/%d * * * *", n), nil
		}
		if n < 1 || n > 23 {
			return "", fmt.Errorf("every %d hours cannot be said in cron", n)
		}
		return fmt.Sprintf("%d */%d * * *", minute, n), nil
	}
	switch spaces.ReplaceAllString(every, " ") {
	case "night", "nightly", "day", "daily", "morning", "evening":
		return fmt.Sprintf("%d %d * * *", minute, hour), nil
	case "hour", "hourly":
		return fmt.Sprintf("%d * * * *", minute), nil
	case "week", "weekly", "monday":
		return day(1)
	case "month", "monthly":
		return fmt.Sprintf("%d %d 1 * *", minute, hour), nil
	case "weekday", "working day":
		return fmt.Sprintf("%d %d * * 1-5", minute, hour), nil
	case "tuesday":
		return day(2)
	case "wednesday":
		return day(3)
	case "thursday":
		return day(4)
	case "friday":
		return day(5)
	case "saturday":
		return day(6)
	case "sunday":
		return day(0)
	}
	return "", fmt.Errorf("it is not clear when that is")
}

func clock(at string) (hour, minute int, err error) {
	switch at {
	case "midnight":
		return 0, 0, nil
	case "noon":
		return 12, 0, nil
	}
	m := regexp.MustCompile(`^(\d{1,2})(?::(\d\d))?\s*(am|pm)?`).FindStringSubmatch(at)
	if m == nil {
		return 0, 0, fmt.Errorf("%q is no time of day", at)
	}
	hour, _ = strconv.Atoi(m[1])
	minute, _ = strconv.Atoi(m[2])
	if m[3] == "pm" && hour < 12 {
		hour += 12
	} else if m[3] == "am" && hour == 12 {
		hour = 0
	}
	if hour > 23 || minute > 59 {
		return 0, 0, fmt.Errorf("%q is no time of day", at)
	}
	return hour, minute, nil
}

// chainsOf notes the tool chains that the text speaks of, in order.
func (p *phrasing) chainsOf(text string) {
	var all strings.Builder
	all.WriteString(text)
	for _, l := range p.literals {
		all.WriteString(" " + l)
	}
	type hit struct {
		at   int
		name string
	}
	var hits []hit
	for name, c := range chains() {
		for _, w := range c.words {
			if i := wordAt(all.String(), w); i >= 0 {
				hits = append(hits, hit{i, name})
			}
		}
	}
	slices.SortFunc(hits, func(a, b hit) int {
		if a.at != b.at {
			return a.at - b.at
		}
		return strings.Compare(a.name, b.name)
	})
	for _, h := range hits {
		if !slices.Contains(p.tools, h.name) {
			p.tools = append(p.tools, h.name)
		}
	}
}

func wordAt(text, word string) int {
	lower := strings.ToLower(text)
	for from := 0; ; {
		i := strings.Index(lower[from:], word)
		if i < 0 {
			return -1
		}
		i += from
		end := i + len(word)
		if (i == 0 || !isWord(lower[i-1])) && (end == len(lower) || !isWord(lower[end])) {
			// "go on" and "make sure" are English, not tools.
			rest := strings.TrimSpace(lower[end:])
			if !(word == "go" && (strings.HasPrefix(rest, "on") || strings.HasPrefix(rest, "ahead"))) &&
				!(word == "make" && regexp.MustCompile(`^(?:sure|a|an|the|it|me|certain)\b`).MatchString(rest)) {
				return i
			}
		}
		from = end
	}
}

func isWord(c byte) bool {
	return c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z'
}

var (
	artifact = regexp.MustCompile(`(?i)^(?:also\s+)?(?:upload|save|keep|store|archive|publish)\s+(?:the\s+)?(?:(?:contents?\s+of|files?\s+in|directory|folder|file|build\s+output\s+in|output\s+in|artifacts?\s+(?:in|from))\s+)*(?:the\s+)?(\S+)(?:\s+(?:directory|folder|file))?\s+as\s+(?:an?\s+|the\s+)?(?:artifacts?|build\s+artifacts?)(?:\s+(?:named|called)\s+(\S+))?$`)
	prose    = regexp.MustCompile(`(?i)\s(?:and|but|or|if|when|unless|then)\s+(.+)$`)
	checkout = regexp.MustCompile(`(?i)^(?:check(?:s|ing)?\s*-?out|clone|fetch|get)\s+(?:the\s+|this\s+|our\s+)?(?:code|source|sources|repository|repo|project)(?:\s+code)?$`)
	saying   = regexp.MustCompile(`(?i)^(?:say|print|echo|show)\s+(.+)$`)
	using    = regexp.MustCompile(`(?i)\s+(?:with|using|via|by)\s+([a-z.]+)$`)
)

// purposes are what people ask for without naming a command. The order counts:
// "run the linter and tests" is read word by word.
var purposes = []struct{ what, re string }{
	{"deps", `install(?:ing|s)?\s+(?:all\s+)?(?:the\s+|its\s+|our\s+)?(?:project(?:'s)?\s+)?(?:dependenc(?:y|ies)|deps|requirements|packages|modules)|(?:fetch|download|restore)\s+(?:the\s+)?(?:dependencies|deps|packages|modules)`},
	{"format", `(?:check\s+(?:the\s+)?(?:code\s+)?format(?:ting)?|(?:the\s+)?format(?:ting)?\s+check|verify\s+(?:the\s+)?format(?:ting)?|check\s+(?:that\s+)?(?:the\s+|all\s+)?(?:code|sources?|it)\s+is\s+formatted)`},
	{"lint", `(?:lint(?:s|ing)?(?:\s+(?:the\s+|our\s+|all\s+)?(?:code|project|sources?|everything|it|files|codebase))?|(?:the\s+|a\s+)?linters?|check\s+(?:the\s+)?(?:code\s+)?style)`},
	{"bench", `(?:(?:the\s+)?bench(?:es|marks?)?|benchmark(?:s|ing)?(?:\s+(?:the\s+)?(?:code|project|it))?)`},
	{"release", `(?:build|make)\s+(?:a\s+|the\s+)?(?:release(?:\s+(?:build|binary|version))?|(?:optimi[sz]ed|production)\s+build)`},
	{"docs", `(?:build|make|generate|create)\s+(?:the\s+|its\s+)?(?:docs|documentation|manual)`},
	{"audit", `(?:audit\s+(?:the\s+)?(?:dependencies|packages)|(?:the\s+)?security\s+audit)`},
	{"check", `(?:type\s*-?check(?:s|ing)?(?:\s+(?:the\s+)?(?:code|project|it|everything))?|(?:the\s+)?(?:static\s+)?(?:checks|analysis)|check\s+(?:the\s+)?types)`},
	{"test", `(?:(?:all\s+)?(?:of\s+)?(?:the\s+|its\s+|our\s+|my\s+)?(?:unit\s+|whole\s+|full\s+|entire\s+|integration\s+)?(?:tests?|test\s+suite|suite|specs)|test(?:s|ing)?\s+(?:the\s+|our\s+|my\s+|all\s+)?(?:code|project|it|everything|app|application|program|library|crate|package|module|sources?))`},
	{"build", `(?:(?:re)?build(?:s|ing)?|compil(?:e|es|ing))(?:\s+(?:of\s+)?(?:the\s+|our\s+|my\s+|all\s+|an?\s+)?(?:code|project|it|everything|app|application|program|library|crate|package|binary|binaries|module|sources?|software|website|site|frontend|backend|whole\s+project))?|(?:the\s+|a\s+)build`},
	{"install", `install\s+(?:it|the\s+(?:project|program|result))`},
	{"clean", `clean(?:\s+up)?(?:\s+(?:the\s+)?(?:build|project|workspace|everything|it))?`},
}

// purposeOf finds what a clause is for: "build", and the tool it names.
func purposeOf(c string) (what, tool string, ok bool) {
	c = strings.TrimSpace(verbRun.ReplaceAllString(c, ""))
	c = strings.TrimSpace(regexp.MustCompile(`(?i)^(?:(?:please|first|also|just|now|we|you|should|must|both|and|can|make\s+sure\s+to|to)\s+)+`).ReplaceAllString(c, ""))
	if m := using.FindStringSubmatch(c); m != nil {
		for name, ch := range chains() {
			if slices.Contains(ch.words, strings.ToLower(m[1])) {
				tool = name
			}
		}
		if tool == "" {
			return "", "", false
		}
		c = using.ReplaceAllString(c, "")
	}
	// "the cargo tests", "python unit tests"
	words := strings.Fields(c)
	for i, w := range words {
		for name, ch := range chains() {
			if len(words) > 1 && slices.Contains(ch.words, strings.ToLower(w)) {
				tool = name
				c = strings.Join(slices.Delete(slices.Clone(words), i, i+1), " ")
			}
		}
	}
	for _, p := range purposes {
		if regexp.MustCompile(`(?i)^(?:` + p.re + `)$`).MatchString(c) {
			return p.what, tool, true
		}
	}
	return "", "", false
}

func isCommand(c string) bool {
	first, rest, _ := strings.Cut(strings.TrimSpace(c), " ")
	if first == "" {
		return false
	}
	if strings.HasPrefix(first, "./") || strings.HasPrefix(first, "/") || strings.HasSuffix(first, ".sh") || strings.HasSuffix(first, ".py") {
		return true
	}
	if !slices.Contains(programs, first) {
		return false
	}
	switch first { // these are English words too
	case "make":
		return !regexp.MustCompile(`^(?:sure|a|an|the|it|me|certain)\b`).MatchString(rest)
	case "go":
		return regexp.MustCompile(`^(?:build|test|vet|run|generate|mod|fmt|install|get|list|tool|work|version|env|clean|doc)\b`).MatchString(rest)
	case "find", "test", "time", "date", "sleep", "exit", "stack", "java", "node", "ruby", "python", "echo", "diff", "git":
		// "test the project", "find out": prose has an article behind the word.
		return rest != "" && !regexp.MustCompile(`(?i)^(?:the|a|an|our|my|it|its|all|everything|out|code|tests?|project|with|using|version)\b`).MatchString(rest) || first == "date"
	}
	return true
}

// clause turns one clause into a step.
func (p *phrasing) clause(c, cond string) error {
	original := p.plain(c)
	s := step{cond: cond, clause: original}
	if always.MatchString(c) {
		s.cond = "always"
		c = always.ReplaceAllString(c, "")
	}
	if tolerate.MatchString(c) {
		s.allow = true
		c = tolerate.ReplaceAllString(c, "")
	}
	if m := tolerant2.FindStringSubmatch(strings.TrimSpace(c)); m != nil {
		s.allow, c = true, m[1]
	}
	c = strings.TrimSpace(strings.Trim(strings.TrimSpace(c), ",:!"))
	if c == "" {
		if s.allow && len(p.steps) > 0 { // "run ruff, ignoring failures"
			p.steps[len(p.steps)-1].allow = true
			return nil
		}
		return nil
	}
	if m := directory.FindStringSubmatch(c); m != nil {
		s.dir = m[1] + m[2]
		c = strings.TrimSpace(directory.ReplaceAllString(c, ""))
	}
	if m := artifact.FindStringSubmatch(c); m != nil {
		path := strings.Trim(literalOr(p, m[1]), "'")
		name := literalOr(p, m[2])
		if name == "" {
			name = strings.Trim(regexp.MustCompile(`[^A-Za-z0-9_.-]+`).ReplaceAllString(path, "-"), "-.")
		}
		s.name, s.uses, s.with = "Upload "+path, "actions/upload-artifact@v4", [][2]string{{"name", name}, {"path", path}}
		p.steps = append(p.steps, s)
		return nil
	}
	if checkout.MatchString(filler.ReplaceAllString(c, "")) {
		return nil // every job does that first
	}
	if m := literal.FindStringSubmatch(c); m != nil {
		i, _ := strconv.Atoi(m[1])
		rest := strings.TrimSpace(literal.ReplaceAllString(verbRun.ReplaceAllString(c, ""), ""))
		if sm := saying.FindStringSubmatch(c); sm != nil && strings.HasPrefix(sm[1], "\x00") {
			s.command = "echo " + shellQuote(p.literals[i])
			p.steps = append(p.steps, s)
			return nil
		}
		if strings.Count(c, "\x00") == 2 && (rest == "" || regexp.MustCompile(`(?i)^(?:the\s+)?(?:command|script)$`).MatchString(rest)) {
			s.command = p.literals[i]
			p.steps = append(p.steps, s)
			return nil
		}
	}
	said := verbRun.MatchString(c)
	body := strings.TrimSpace(verbRun.ReplaceAllString(c, ""))
	if what, tool, ok := purposeOf(c); ok && !isCommand(body) {
		return p.purpose(s, what, tool)
	}
	body = strings.TrimSpace(regexp.MustCompile(`(?i)^(?:(?:please|first|also|just|now|always|we|you|should)\s+)+`).ReplaceAllString(body, ""))
	if isCommand(body) {
		if m := prose.FindStringSubmatch(body); m != nil && !strings.HasPrefix(body, "echo ") {
			return &Refusal{Clause: p.plain(m[1]), Reason: "I do not understand this", Hint: "if it is part of the command, put the whole command in backquotes: run `" + p.plain(body) + "`"}
		}
		s.command = p.restore(body)
		p.steps = append(p.steps, s)
		return nil
	}
	if m := saying.FindStringSubmatch(body); m != nil {
		s.command = "echo " + shellQuote(p.plain(m[1]))
		p.steps = append(p.steps, s)
		return nil
	}
	if what, tool, ok := purposeOf(body); ok {
		return p.purpose(s, what, tool)
	}
	hint := "name the command in backquotes: run `…`"
	if said {
		hint = "if " + strconv.Quote(p.plain(body)) + " is a command, put it in backquotes: run `" + p.plain(body) + "`"
	} else if regexp.MustCompile(`(?i)\b(?:deploy|publish|release|ship|notify|email|slack|send)\b`).MatchString(body) {
		hint = "that needs a command of yours: say run `./deploy.sh`, for instance"
	}
	return &Refusal{Clause: original, Reason: "I do not understand this", Hint: hint}
}

func (p *phrasing) purpose(s step, what, tool string) error {
	all := chains()
	candidates := p.tools
	if tool != "" {
		candidates = []string{tool}
	}
	for _, t := range candidates {
		if command := all[t].does[what]; command != "" {
			s.command, s.purpose = command, what
			p.steps = append(p.steps, s)
			return nil
		}
	}
	if len(candidates) == 0 {
		return &Refusal{Clause: s.clause, Reason: "no tool is named that would do it", Hint: "say which: " + s.clause + " with cargo (or go, npm, make, python, cmake, maven, gradle, …)"}
	}
	return &Refusal{Clause: s.clause, Reason: "I know no way to do that with " + strings.Join(candidates, " or "), Hint: "name the command in backquotes: run `…`"}
}

// plain puts what stood in quotes back, as text.
func (p *phrasing) plain(s string) string {
	return strings.TrimSpace(literal.ReplaceAllStringFunc(s, func(m string) string { return literalOr(p, m) }))
}

// restore puts what stood in quotes back into a command, quoted.
func (p *phrasing) restore(s string) string {
	return literal.ReplaceAllStringFunc(s, func(m string) string { return shellQuote(literalOr(p, m)) })
}

func shellQuote(s string) string {
	if regexp.MustCompile(`^[A-Za-z0-9_./:=@%+-]+$`).MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
