package prompt

import (
	"regexp"
	"slices"
	"strings"
)

// This file knows where a command that stands in a sentence ends. It begins with
// a program's name or a path and goes on for as long as tokens look like
// arguments: flags, paths, patterns, assignments, what is quoted, known
// subcommands, names that are no English words. A word of the sentence ("only",
// "when", "nightly", "please") never belongs to it unless it is quoted. Where a word
// may be either ("make test deploy"), the command may end before it or behind it,
// and the grammar finds out which of the two makes sense.

// span is a command that may end at end; its cost says how unlikely that is.
type span struct{ end, cost int }

// alone are programs that make a command without any argument.
var alone = set(`make swiftlint pytest tox nox rake ninja hugo tsc eslint mocha jest phpunit rspec rubocop yarn black mypy goreleaser golangci-lint
 staticcheck webpack vitest flake8 pylint behave busted luacheck typos codespell lychee semantic-release latexmk bats prove psalm phpstan
 pest pint ctest doxygen cppcheck uname date hostname nproc df ls env gotestsum ginkgo sbt bazel jekyll mkdocs markdownlint-cli2 htmlproofer yamllint
 actionlint ansible-lint tflint tfsec govulncheck scons npm bundle gradle cibuildwheel slither forge standard just ant mvn gulp grunt ava pre-commit`)

// english are programs whose names are English words as well: they begin a
// command only before something that no sentence has there.
var english = set(`just task time test find cut sort kill head tail true set false free date source env export touch exit sleep next kind act dev
 fly hub standard cross trunk cap pod air mill stack forge anchor migrate cat watch surge pest pint rush ant earthly flux atlas railway invoke echo
 ab fab inv goose typos reuse storybook snyk codecov serverless turbo nx cypress playwright jest cross crystal gleam dune locust artillery tar zip
 flask rails django ansible vagrant docker expo gatsby astro hugo black standard diff split tilt wait coverage behave hatch rye celery dredd hearth`)

// named are programs that are languages as well: "node 20" is no command.
var named = set(`node python python3 java ruby php perl R julia lua elixir swift dart zig bun deno crystal nim go rustc ghc terraform dotnet flutter`)

// nesting are words behind which another program's name comes.
var nesting = set(`exec run npx uvx bunx sudo xargs dlx x artisan bin/console env time timeout nohup`)

// twoWords are programs whose subcommands have two words: "gh release upload".
var twoWords = set("gh glab aws az gcloud doctl wrangler")

// makes are words behind which "make" is the English verb.
var makes = set("it me us sure a an the this that them these those our my your you certain")

// hosting are subcommands behind which a name of the project's own comes.
var hosting = map[string]map[string]bool{
	"npm": set("run exec"), "yarn": set("run workspace"), "pnpm": set("run"), "bun": set("run"), "docker": set("compose"),
	"composer": set("run run-script"),
	"deno":     set("task"), "poetry": set("run"), "bundle": set("exec"), "nx": set("run"), "turbo": set("run"), "rush": set("run"),
	"pre-commit": set("run"),
}

// scripts are programs that run scripts of package.json.
var scripts = set("npm pnpm yarn bun")

func set(words string) map[string]bool {
	out := map[string]bool{}
	for w := range strings.FieldsSeq(words) {
		out[w] = true
	}
	return out
}

var (
	option     = regexp.MustCompile(`^(?:-{1,2}[A-Za-z0-9?@][^\s]*|--)$`)
	argument   = regexp.MustCompile(`[/*$~=@%{}<>\[\]\\]|^\.{1,3}$|[A-Za-z0-9_-]\.[A-Za-z]|^\.[A-Za-z]|[A-Za-z]:[A-Za-z/@:-]`)
	operator   = regexp.MustCompile(`^(?:\|\|?|&&|\d?>>?|<<?|\d?>&\d|&>)$`)
	number     = regexp.MustCompile(`^v?\d+(?:[.:]\d+)*(?:\.x)?$`)
	assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)
	script     = regexp.MustCompile(`^[\w./\\~-]+\.(?:sh|bash|zsh|py|rb|pl|js|mjs|cjs|ts|ps1|php|lua|R|jl|bat|cmd|exe)$`)
	execPath   = regexp.MustCompile(`^(?:\.{1,2}/|~/|/)[\w.@+-]+(?:/[\w.@+-]+)*$`)
	binPath    = regexp.MustCompile(`^(?:[\w.@+-]+/)*(?:s?bin|scripts?|\.bin|hack|tools|ci)/[\w.@+-]+$`)
	anyPath    = regexp.MustCompile(`^[\w.@+-]+(?:/[\w.@+-]+)+$`)
	quantity   = regexp.MustCompile(`^\d+(?:x|s|m|h|d|sec|secs|min|mins|hrs?|am|pm)$`)
	constant   = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
)

// behindImage says whether what is quoted is called an image.
func (c *chart) behindImage(t token) bool {
	for i := range c.ts {
		if c.ts[i].start == t.start && i > 0 {
			return c.ts[i-1].word == "image" || i+1 < len(c.ts) && (c.ts[i+1].word == "image" || c.ts[i+1].word == "container") || c.ts[i-1].word == "container"
		}
	}
	return false
}

// commands are the ways in which a command can begin at a token.
func (c *chart) commands(at int) []span {
	if s, ok := c.cmds[at]; ok {
		return s
	}
	s := c.commandsAt(at)
	c.cmds[at] = s
	return s
}

func (c *chart) commandsAt(at int) []span {
	if at >= len(c.ts) {
		return nil
	}
	t := c.ts[at]
	switch t.kind {
	case code:
		if strings.ContainsAny(t.text, " ./") || c.g.lex.programs[t.text] != nil || at > 0 && c.g.lex.is("run", c.ts[at-1].word) {
			return []span{{at + 1, 0}}
		}
		return []span{{at + 1, 4}}
	case literal:
		inner := tokenize(t.text)
		if len(inner) > 0 && inner[0].start == 0 {
			sub := &chart{g: c.g, src: t.text, ts: inner, looks: map[classAt]bool{}, cmds: map[int][]span{}}
			if len(sub.commands(0)) > 0 {
				return []span{{at + 1, 1}}
			}
		}
		return nil
	case punct, bullet:
		return nil
	}
	if at > 0 && (c.ts[at-1].word == "a" || c.ts[at-1].word == "an") {
		return nil // "use a gradle cache"
	}
	start := at
	for at < len(c.ts) && c.ts[at].kind == word && assignment.MatchString(c.ts[at].text) {
		at++
	}
	if at >= len(c.ts) || c.ts[at].kind != word {
		return nil
	}
	prog, cost := c.program(at, start)
	if prog == nil {
		return nil
	}
	return c.arguments(at, prog, cost)
}

// program is what begins a command at a token, or nil.
func (c *chart) program(at, start int) (*program, int) {
	t, lex := c.ts[at], c.g.lex
	said := start > 0 && lex.is("run", c.ts[start-1].word) || start > 1 && lex.is("det", c.ts[start-1].word) && lex.is("run", c.ts[start-2].word)
	name := t.written()
	if p := lex.programs[strings.ToLower(name)]; p != nil && (name == strings.ToLower(name) || c.begins(at)) {
		name = p.name
	}
	if name == "gh" && at+1 < len(c.ts) && strings.HasPrefix(c.ts[at+1].word, "action") {
		return nil, 0 // GitHub, in short
	}
	p := lex.programs[name]
	switch {
	case script.MatchString(name) && !strings.ContainsAny(name, "*$"):
		return &program{name: name}, 0
	case execPath.MatchString(name):
		base := lex.programs[name[strings.LastIndexByte(name, '/')+1:]]
		if base != nil {
			return &program{name: name, subs: base.subs}, 0
		}
		return &program{name: name}, 0
	case binPath.MatchString(name) && (said || c.begins(at) || c.behind(at, "with", "using", "via", "by", "(")):
		if base := lex.programs[name[strings.LastIndexByte(name, '/')+1:]]; base != nil {
			return &program{name: name, subs: base.subs}, 0
		}
		return &program{name: name}, 0
	case anyPath.MatchString(name) && said && !number.MatchString(name):
		return &program{name: name}, 2
	case p == nil:
		// A program that nobody has heard of, but with flags behind it.
		if (said || c.behind(start, "with", "using", "via")) && !lex.knows(t.word) && !t.mended && plainName.MatchString(name) && c.flagged(at+1) {
			return &program{name: name, subs: map[string]bool{"*": true}}, 3
		}
		return nil, 0
	}
	var next token
	if at+1 < len(c.ts) && c.ts[at+1].kind == word {
		next = c.ts[at+1]
		next.text = next.written()
	}
	evidence := next.text != "" && (option.MatchString(next.text) || argument.MatchString(next.text) && !number.MatchString(next.text))
	switch {
	case name == "make" && lex.is("nontarget", next.word):
		return nil, 0
	case name == "make":
		if makes[next.word] {
			return nil, 0 // "make it so"
		}
		if next.text == "" || lex.is("stop", next.word) && next.word != "all" || lex.is("run", next.word) && next.word != "run" {
			return p, 2 // alone
		}
		return p, 0
	case named[name]:
		if evidence || p.subs[next.word] && next.text == next.word {
			return p, 0
		}
		return nil, 0
	case english[name]:
		if evidence || p.subs[next.text] && !p.subs["*"] || p.subs["*"] && said && next.text != "" && !lex.knows(next.word) ||
			(name == "sleep" || name == "exit") && number.MatchString(next.text) ||
			name == "echo" && at+1 < len(c.ts) && (c.ts[at+1].kind == literal || next.text != "" && !lex.is("stop", next.word) || said) {
			return p, 0
		}
		if alone[name] && said && (next.text == "" || lex.is("stop", next.word)) {
			return p, 3
		}
		if name == "rails" && purposeWord[next.text] != "" && next.text != "tests" && c.begins(at) {
			return p, 0
		}
		if (name == "docker" || name == "rails" || name == "jest" || name == "cypress" || name == "playwright" || name == "hugo" ||
			name == "black") && (p.subs["*"] && next.text != "" && (purposeWord[next.word] != "" && next.word != "tests" || !lex.knows(next.word)) || alone[name]) {
			return p, 3
		}
		return nil, 0
	case evidence, p.subs[next.text], lex.is("dirname", next.word) && (purposeWord[next.word] == "" || len(p.subs) == 0), p.subs["*"] &&
		next.text != "" && !lex.is("stop", next.word),
		next.text != "" && !lex.knows(next.word),
		at+1 < len(c.ts) && c.ts[at+1].kind == literal:
		return p, 0
	case alone[name], lone(p) && (said || c.begins(at) || c.behind(at, "with", "using", "via", "by")):
		return p, 2
	}
	return nil, 0
}

// flagged says whether a flag stands at a token, or behind a subcommand there.
func (c *chart) flagged(at int) bool {
	for i := at; i < min(at+2, len(c.ts)) && c.ts[i].kind == word; i++ {
		if option.MatchString(c.ts[i].text) {
			return true
		}
		if c.g.lex.knows(c.ts[i].word) || c.ts[i].mended || !plainName.MatchString(c.ts[i].text) {
			return false
		}
	}
	return false
}

// lone says whether a program may do its work without arguments: one that somebody
// installs for it and that has no subcommands, a linter mostly.
func lone(p *program) bool {
	return alone[p.name] || len(p.subs) == 0 && p.pkg != "" && !english[p.name] && !named[p.name] && !needy[p.name]
}

// needy are programs that do nothing without being told what.
var needy = set("prettier ssh scp sftp rsync zsh pwsh powershell psql mysql sqlite3 redis-cli mongosh javac gcc clang rustc ghc nvcc openssl gpg jq yq ffmpeg tsx ts-node pandoc ansible-playbook syft dive kaniko nmap ab wrk hyperfine")

// begins says whether a token is the first of a clause.
func (c *chart) begins(at int) bool {
	if at == 0 {
		return true
	}
	p := c.ts[at-1]
	return p.kind == punct || p.kind == bullet || p.word == "and" || p.word == "then" || c.g.lex.is("run", p.word)
}

func (c *chart) behind(at int, words ...string) bool {
	return at > 0 && slices.Contains(words, c.ts[at-1].word)
}

// arguments finds where a command that begins at a token may end.
func (c *chart) arguments(at int, prog *program, cost int) []span {
	lex := c.g.lex
	var out []span
	soft := func(end int) { out = append(out, span{end, cost + 3}) }
	if prog.name == "echo" {
		return c.echoed(at, cost)
	}
	bare, flagged, anything := 0, false, prog.subs["*"]
	isScript := script.MatchString(prog.name) || strings.Contains(prog.name, "/")
	j := at + 1
	nested := nesting[prog.name]
	scripted := false   // a script of package.json is named: words behind it are no arguments
	installing := false // what follows are names of packages
loop:
	for ; j < len(c.ts); j++ {
		t := c.ts[j]
		switch t.kind {
		case punct:
			break loop
		case bullet:
			break loop
		case literal:
			if j > at+1 || !anything || prog.name == "echo" || prog.name == "just" {
				flagged = false
				continue
			}
			break loop
		case code:
			break loop
		}
		x := t.written()
		switch {
		case lex.is("number", t.word) && j+1 < len(c.ts) && (c.ts[j+1].word == "times" || lex.is("unit", c.ts[j+1].word)):
			break loop
		case x == "+":
			break loop
		case operator.MatchString(x):
			if j+1 >= len(c.ts) || c.ts[j+1].kind != word && c.ts[j+1].kind != literal || lex.is("stop", c.ts[j+1].word) && c.ts[j+1].text != "exit" {
				break loop
			}
			bare, flagged = 0, false
			j++
			if p := lex.programs[c.ts[j].text]; p != nil && strings.ContainsAny(x, "|&") {
				anything, nested = p.subs["*"], nesting[p.name]
				prog = p
			}
			continue
		case x == "-" || x == "->" || quantity.MatchString(x) && !flagged:
			break loop
		case option.MatchString(x):
			flagged = !strings.Contains(x, "=") && x != "--"
			nested = nested || x == "-m"
			continue
		case number.MatchString(x):
			if flagged || slices.Contains([]string{"sleep", "exit", "seq", "timeout"}, prog.name) {
				flagged = false
				continue
			}
			break loop
		case argument.MatchString(x) && !lex.is("stop", t.word):
			if script.MatchString(x) {
				isScript = true
			}
			flagged = false
			bare = max(bare, 1)
			continue
		case lex.is("stop", t.word):
			last := j+1 >= len(c.ts) || c.ts[j+1].kind != word || operator.MatchString(c.ts[j+1].text) || lex.is("stop", c.ts[j+1].word) ||
				lex.is("then", c.ts[j+1].word)
			if prog.subs[x] && bare == 0 || x == "all" && anything && last && (bare == 0 || prog.name == "npm" || prog.name == "cabal") ||
				x == "up" && (prog.subs["up"] || anything) && bare <= 1 {
				if x == "up" {
					soft(j)
				}
				bare++
				continue
			}
			if timely[t.word] && bare == 0 && anything && !t.mended {
				soft(j) // a target of that name, or a time
				bare++
				continue
			}
			break loop
		case constant.MatchString(x) && len(x) > 1 && !flagged:
			break loop
		case unlikely.MatchString(t.word) && len(t.word) > 4 && !flagged && !installing && !prog.subs[x] && !(bare == 0 && anything &&
			!strings.HasSuffix(t.word, "ly")) && (!lex.knows(t.word) || t.mended):
			break loop
		}
		if installing {
			flagged = false
			continue
		}
		if lex.programs[x] != nil && !english[x] && !nested && !flagged && !prog.subs[x] && bare > 0 && !(bare == 1 && twoWords[prog.name]) {
			break loop // another command begins
		}
		english := lex.english(t.word) || t.mended && !t.fixed
		switch {
		case nested && !flagged:
			nested = false
			bare = 0
			if p := lex.programs[x]; p != nil {
				prog, anything = p, p.subs["*"]
			} else {
				anything = true
			}
			continue
		case nested: // python -m pytest
			nested, flagged, bare = false, false, 0
			anything = true
			if p := lex.programs[x]; p != nil {
				prog, anything = p, p.subs["*"]
			}
			continue
		case flagged:
			if flagged = false; lex.is("run", t.word) && len(c.commands(j+1)) > 0 {
				break loop // "with bash -e run ./install.sh"
			}
			if english {
				soft(j)
			}
		case bare == 0 && prog.subs[x]:
			bare++
			scripted = scripts[prog.name] && c.ts[j-1].word == "run"
			installing = x == "install" && prog.name != "go" && prog.name != "make" || x == "add" || x == "i"
			if hosting[prog.name][x] {
				bare, anything = 0, true // what is run has a name of its own
			}
			nested = nesting[x] && !(prog.name == "npm" || prog.name == "cargo" || prog.name == "go" || prog.name == "yarn" || prog.name == "pnpm" ||
				prog.name == "dotnet")
		case bare == 0 && anything:
			if english && prog.name != "npm" && prog.name != "make" {
				soft(j)
			}
			bare++
			scripted = scripts[prog.name] && c.ts[j-1].word == "run"
			installing = prog.name == "gem" && x == "install" || prog.name == "composer" && x == "require" || x == "add"
			nested = x == "exec" || x == "run" && slices.Contains([]string{"poetry", "uv", "pdm", "hatch", "pipenv", "rye", "conda", "mamba"}, prog.name)
			if hosting[prog.name][x] {
				bare = 0
			}
		case !english:
			bare++
		case prog.subs[x] && bare <= 1, prog.name == "java" && properName.MatchString(x): // a class
			bare++
		case bare == 1 && twoWords[prog.name]:
			bare++
		case !scripted && c.mayName(t, prog, bare, anything, isScript):
			soft(j)
			bare++
		default:
			break loop
		}
	}
	if lex.is("shell", prog.name) && !slices.ContainsFunc(c.ts[at+1:j], func(t token) bool { return !option.MatchString(t.text) }) {
		return nil // it runs nothing
	}
	if j == at+1 && !lone(prog) && !isScript || j == at+2 && hosting[prog.name][c.ts[at+1].text] && prog.name != "pre-commit" {
		return nil
	}
	return append(out, span{j, cost})
}

// echoed finds where an echo ends: it takes words of all kinds, as many as make
// sense to leave to it.
func (c *chart) echoed(at, cost int) []span {
	var out []span
	j := at + 1
	for ; j < len(c.ts) && (c.ts[j].kind == word || c.ts[j].kind == literal) && !c.g.lex.is("then", c.ts[j].word); j++ {
		if j > at+1 && c.g.lex.is("stop", c.ts[j].word) {
			out = append(out, span{j, cost + 1})
		}
		if c.ts[j].word == "and" && j+1 < len(c.ts) && (c.g.lex.is("run", c.ts[j+1].word) || len(c.commands(j+1)) > 0) {
			return out
		}
	}
	if j == at+1 {
		return nil
	}
	return append(out, span{j, cost + 2})
}

// timely are words that say when, and that are names of targets as well.
var timely = set("nightly daily weekly hourly monthly")

// mayName says whether an English word may be an argument here.
func (c *chart) mayName(t token, prog *program, bare int, anything, isScript bool) bool {
	lex := c.g.lex
	if lex.is("run", t.word) && t.word != "run" {
		return false
	}
	switch {
	case t.word == "all" && prog.name == "cabal":
		return bare <= 1
	case isScript:
		return lex.is("envname", t.word) || lex.is("dirname", t.word) || pathLike.MatchString(t.text) || bare > 0 && purposeWord[t.word] != "" || t.text == t.word &&
			purposeWord[t.word] != ""
	case anything:
		return pathLike.MatchString(t.text) || lex.is("envname", t.word) || lex.is("dirname", t.word) || purposeWord[t.word] != "" ||
			lex.is("object", t.word) || lex.is("adjective", t.word)
	case len(prog.subs) > 0:
		return pathLike.MatchString(t.text) || lex.is("dirname", t.word) && (bare > 0 || purposeWord[t.word] == "") || lex.is("object", t.word) ||
			lex.is("envname", t.word) || lex.is("service", t.word)
	default:
		return lex.is("dirname", t.word) || pathLike.MatchString(t.text)
	}
}

// purposeWord are words that are targets of build tools as well.
var purposeWord = map[string]string{
	"build": "build", "test": "test", "tests": "test", "lint": "lint", "format": "format", "check": "check", "deploy": "deploy", "install": "install",
	"clean": "clean", "docs": "docs", "release": "release", "publish": "publish", "coverage": "coverage", "verify": "verify", "package": "build",
	"compile": "build", "serve": "start", "start": "start", "typecheck": "typecheck", "bench": "bench", "benchmark": "bench", "audit": "audit",
	"upgrade":     "upgrade",
	"integration": "test", "unit": "test", "e2e": "test", "images": "build", "image": "build", "smoke": "test", "push": "push",
	"report": "report", "validate": "check", "migrate": "migrate",
}

var (
	versionWord   = regexp.MustCompile(`^v?\d+(?:\.\d+)*(?:\.x|\.\*|\+)?(?:-[a-z0-9.]+)?$`)
	branchLike    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./*-]*$`)
	pathLike      = regexp.MustCompile(`^[\w.*@{}!,~$?\[\]+-]*(?:/[\w.*@{},~$?\[\]+-]*)+$|^[\w*-]*\*[\w.*-]*$|^[\w-]+(?:\.[\w-]+)*\.[A-Za-z][A-Za-z0-9]{0,9}$|^(?:Dockerfile|Makefile|Cargo\.lock|LICENSE|Gemfile|Pipfile|Jenkinsfile|_\w+|node_modules|coverage|dist|target|out|build|public)$`)
	extension     = regexp.MustCompile(`^\*?\.[A-Za-z][A-Za-z0-9]{0,9}$`)
	envName       = regexp.MustCompile(`^[A-Z][A-Z0-9_]+$`)
	duration      = regexp.MustCompile(`^(\d+)(s|secs?|m|mins?|h|hrs?|d)$`)
	clockWord     = regexp.MustCompile(`^(\d{1,2})(?:[:.h](\d\d))?(am|pm|h|z|utc)?$`)
	imageWord     = regexp.MustCompile(`^(?:[a-z0-9.-]+(?::\d+)?/)*[a-z0-9._-]+(?::[\w][\w.-]*)?(?:@sha256:[0-9a-f]+)?$`)
	zoneWord      = regexp.MustCompile(`^(?:(?:utc|gmt)[+-]\d{1,2}(?::\d\d)?|(?:europe|america|asia|africa|australia|pacific|atlantic|etc)/[a-z_]+)$`)
	plainName     = regexp.MustCompile(`^[A-Za-z_][\w.-]*$`)
	cronLine      = regexp.MustCompile(`^[0-9*/,-]+ +[0-9*/,-]+ +[0-9*/,L-]+ +[0-9A-Za-z*/,-]+ +[0-9A-Za-z*/,-]+$`)
	langVersion   = regexp.MustCompile(`^(?i:go|node|python|py|java|jdk|php|ruby|rust|dotnet|\.net|elixir)[-@]?(\d[\w.]*)$`)
	secretRef     = regexp.MustCompile(`^(?:\$\{\{\s*)?secrets\.(\w+)(?:\s*\}\})?$`)
	repoName      = regexp.MustCompile(`^[\w.-]+/[\w.-]+$`)
	knownPrefix   = regexp.MustCompile(`^(?:release|releases|feature|features|hotfix|bugfix|fix|support|v\d[\w.]*)[/-]`)
	properName    = regexp.MustCompile(`^[A-Z][\w-]*$`)
	unlikely      = regexp.MustCompile(`(?:ly|ing|ed|est|ful|ous|ness|ment|tion|able|wards?|ish|ism)$`)
	cronField     = regexp.MustCompile(`^(?:[\d*]+(?:[-/,]\d+)*(?:/\d+)?|(?i:mon|tue|wed|thu|fri|sat|sun)(?:-(?i:mon|tue|wed|thu|fri|sat|sun))?)$`)
	hiddenName    = regexp.MustCompile(`^\.[a-z][\w.-]{2,}$`)
	dayWord       = regexp.MustCompile(`^\d{1,2}(?:st|nd|rd|th)$`)
	osLabel       = regexp.MustCompile(`^(?:ubuntu|macos|windows)-[\w.-]+$`)
	hostName      = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+)+(?::\d+)?$`)
	versionTags   = regexp.MustCompile(`^v\*?-tags?$`)
	dottedVersion = regexp.MustCompile(`^v?\d+\.\d+(?:\.\d+)?$`)
	slashWord     = regexp.MustCompile(`^/[a-z][a-z-]*$`)
	tagLike       = regexp.MustCompile(`^[\w.\[\]+-]*[*\[][\w.*\[\]+/-]*$|^v$|^v?\d[\d.x]*$|^[\w-]+[-/@]v?\*?$`)
)

// inflected says whether what was taken for a slip is a form of the word it was taken for.
func inflected(t token) bool {
	end, ok := strings.CutPrefix(strings.ToLower(t.text), strings.TrimSuffix(t.word, "e"))
	return ok && (end == "ed" || end == "s" || end == "ing" || end == "es")
}

// classes are the #names of the grammar: tokens that are known by how they look.
var classes = map[string]func(c *chart, t token) bool{
	"num": func(c *chart, t token) bool {
		return t.kind == word && (allDigits(t.text) || c.g.lex.is("number", t.word))
	},
	"version": func(c *chart, t token) bool {
		return t.kind != punct && (versionWord.MatchString(strings.ToLower(t.text)) || slices.Contains([]string{"latest", "lts", "lts/*",
			"nightly", "beta", "tip", "stable", "head"}, t.word))
	},
	"branch": func(c *chart, t token) bool {
		if t.kind == literal || t.kind == code {
			return branchLike.MatchString(t.text)
		}
		return t.kind == word && branchLike.MatchString(t.text) && !option.MatchString(t.text) &&
			(c.g.lex.is("branchname", t.word) || strings.ContainsAny(t.text, "/*") || !c.g.lex.knows(t.word) && !allDigits(t.text) &&
				c.g.lex.programs[t.text] == nil && !t.mended)
	},
	"known": func(c *chart, t token) bool {
		if t.kind == literal || t.kind == code {
			return branchLike.MatchString(t.text)
		}
		return t.kind == word && branchLike.MatchString(t.text) && !option.MatchString(t.text) && (c.g.lex.is("branchname", t.word) ||
			strings.HasSuffix(t.text, "*") || knownPrefix.MatchString(t.text))
	},
	"bullet": func(c *chart, t token) bool { return t.kind == bullet },
	"proper": func(c *chart, t token) bool { return t.kind == word && properName.MatchString(t.text) },
	"glob": func(c *chart, t token) bool {
		return (t.kind == literal || t.kind == code || t.kind == word) && tagLike.MatchString(t.text) || (t.kind == literal || t.kind == code) &&
			branchLike.MatchString(t.text)
	},
	"path": func(c *chart, t token) bool {
		if t.kind == literal || t.kind == code {
			return !strings.ContainsAny(t.text, " \n") || strings.Contains(t.text, "/")
		}
		return t.kind == word && (pathLike.MatchString(t.text) || hiddenName.MatchString(t.text)) && !option.MatchString(t.text) &&
			!strings.Contains(t.text, "://") && !(number.MatchString(t.text))
	},
	"ext": func(c *chart, t token) bool { return t.kind != punct && extension.MatchString(t.text) },
	"lit": func(c *chart, t token) bool { return t.kind == literal || t.kind == code },
	"name": func(c *chart, t token) bool {
		if t.kind == literal || t.kind == code {
			return true
		}
		return t.kind == word && plainName.MatchString(t.text) && !c.g.lex.is("stop", t.word) && !c.g.lex.is("run", t.word)
	},
	"new": func(c *chart, t token) bool { // a name that is no English word
		return t.kind == word && plainName.MatchString(t.text) && (!c.g.lex.knows(t.word) && !t.mended || strings.ContainsAny(t.text, "-_")) &&
			!strings.HasSuffix(t.word, "ly") || t.kind == code
	},
	"env1":   func(c *chart, t token) bool { return t.kind == word && constant.MatchString(t.text) },
	"env":    func(c *chart, t token) bool { return (t.kind == word || t.kind == code) && envName.MatchString(t.text) },
	"assign": func(c *chart, t token) bool { return t.kind != punct && assignment.MatchString(t.text) },
	"value": func(c *chart, t token) bool {
		return t.kind == literal || t.kind == code || t.kind == word && !c.g.lex.is("stop", t.word) && !c.g.lex.is("run", t.word)
	},
	"dur": func(c *chart, t token) bool { return t.kind == word && duration.MatchString(t.word) },
	"times": func(c *chart, t token) bool {
		return t.kind == word && regexp.MustCompile(`^\d+x$`).MatchString(t.word)
	},
	"clock": func(c *chart, t token) bool {
		return t.kind == word && clockWord.MatchString(t.word) && strings.ContainsAny(t.word, ":.hap")
	},
	"hour": func(c *chart, t token) bool { return t.kind == word && allDigits(t.text) && len(t.text) <= 2 },
	"image": func(c *chart, t token) bool {
		return t.kind != punct && imageWord.MatchString(t.text) && (strings.ContainsAny(t.text, ":/") || t.kind != word && (c.g.lex.is("service",
			t.word) || c.g.lex.is("image", t.word) ||
			c.g.lex.is("language", t.word) || c.behindImage(t))) &&
			!number.MatchString(t.text) && !strings.HasPrefix(t.text, ".") && !binPath.MatchString(t.text) && !script.MatchString(t.text)
	},
	"tagged": func(c *chart, t token) bool {
		return t.kind != punct && imageWord.MatchString(t.text) && strings.Contains(t.text, ":") && !number.MatchString(t.text)
	},
	"zone": func(c *chart, t token) bool { return t.kind == word && zoneWord.MatchString(t.word) },
	"cron": func(c *chart, t token) bool {
		return (t.kind == literal || t.kind == code) && cronLine.MatchString(t.text)
	},
	"langver":   func(c *chart, t token) bool { return t.kind == word && langVersion.MatchString(t.text) },
	"secretref": func(c *chart, t token) bool { return t.kind != punct && secretRef.MatchString(t.text) },
	"input":     func(c *chart, t token) bool { return c.inputs[t.text] },
	"repo":      func(c *chart, t token) bool { return t.kind != punct && repoName.MatchString(t.text) },
	"day": func(c *chart, t token) bool {
		return t.kind == word && dayWord.MatchString(t.word)
	},
	"oslabel": func(c *chart, t token) bool { return t.kind != punct && osLabel.MatchString(t.text) },
	"cf":      func(c *chart, t token) bool { return t.kind == word && cronField.MatchString(t.text) },
	"host": func(c *chart, t token) bool {
		return (t.kind == word || t.kind == literal || t.kind == code) && hostName.MatchString(t.text)
	},
	// a tool that does one thing only, named where a command may stand
	"soletool": func(c *chart, t token) bool {
		if t.kind != word {
			return false
		}
		x := c.g.lex.toolNamed(t.word)
		if x == nil || x.name != t.word {
			return false
		}
		one := map[string]bool{}
		for _, does := range x.does {
			one[does] = true
		}
		return len(one) == 1
	},
	// a word on which nothing depends: of the idle ones, or one that nobody has a meaning for
	"idle": func(c *chart, t token) bool {
		unknown := t.mended && inflected(t) || !t.mended && !c.g.lex.knows(t.word)
		return t.kind == word && (c.g.lex.is("idle", t.word) || plainName.MatchString(t.text) && unknown &&
			!c.g.lex.subs[t.word] && c.g.lex.programs[t.text] == nil && !(envName.MatchString(t.text) && strings.Contains(t.text, "_")) &&
			!pathLike.MatchString(t.text) && !execPath.MatchString(t.text))
	},
	"vtags": func(c *chart, t token) bool {
		return t.kind == word && versionTags.MatchString(t.word)
	},
	"bot":    func(c *chart, t token) bool { return t.kind == word && strings.HasSuffix(t.text, "[bot]") },
	"dotted": func(c *chart, t token) bool { return t.kind == word && dottedVersion.MatchString(t.text) },
	"slash":  func(c *chart, t token) bool { return t.kind == word && slashWord.MatchString(t.text) },
	"ciname": func(c *chart, t token) bool {
		return t.kind == word && (t.text == "CI" || t.text == "CD" || t.text == "CI/CD")
	},
	"opens":  func(c *chart, t token) bool { return t.kind == word && strings.HasPrefix(t.text, "[") },
	"inner":  func(c *chart, t token) bool { return t.kind == word && !strings.ContainsAny(t.text, "[]") },
	"closes": func(c *chart, t token) bool { return t.kind == word && strings.HasSuffix(t.text, "]") },
	"dirpath": func(c *chart, t token) bool {
		return t.kind == word && anyPath.MatchString(t.text) && !script.MatchString(t.text) && !binPath.MatchString(t.text)
	},
	"channel": func(c *chart, t token) bool { return strings.HasPrefix(t.text, "#") && len(t.text) > 1 },
}

func allDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
