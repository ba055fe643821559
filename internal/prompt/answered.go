package prompt

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// This file holds what a model's workflow runs against the request. A command is
// taken if the request names it, if it belongs to the tools that the request speaks of
// (their language's package manager, their linters), or if it can do no harm (mkdir, test,
// echo of no secret). All others are refused: to list what is harmful would be to forget
// most of it.

// ran is a simple command of a script: its words, where its output goes, and what it
// is piped into.
type ran struct {
	text  string
	words []string
	into  []string // files that it writes
	next  string   // the command that reads its output
}

// written is a value as it stands in the file, with expressions in ${{ }}.
func written(v *workflow.Value) string {
	if v == nil || v.Kind != workflow.Expression {
		return v.Text()
	}
	s, ok := strings.CutPrefix(v.Str, "format('")
	if !ok {
		return "${{ " + v.Str + " }}"
	}
	var text strings.Builder
	i := 0
	for ; i < len(s); i++ {
		if s[i] == '\'' {
			if i+1 < len(s) && s[i+1] == '\'' {
				i++
			} else {
				break
			}
		}
		text.WriteByte(s[i])
	}
	args := []string{}
	depth, quoted, from := 0, false, min(i+1, len(s))
	for k := from; k < len(s); k++ {
		switch c := s[k]; {
		case c == '\'':
			quoted = !quoted
		case quoted:
		case c == '(' || c == '[':
			depth++
		case c == ')' && depth == 0, c == ',' && depth == 0:
			if a := strings.TrimSpace(strings.Trim(s[from:k], ",")); a != "" {
				args = append(args, a)
			}
			from = k + 1
		case c == ')' || c == ']':
			depth--
		}
	}
	return formatHole.ReplaceAllStringFunc(text.String(), func(h string) string {
		switch h {
		case "{{":
			return "{"
		case "}}":
			return "}"
		}
		if n, err := strconv.Atoi(strings.Trim(h, "{}")); err == nil && n < len(args) {
			return "${{ " + args[n] + " }}"
		}
		return h
	})
}

// maxNesting is how deep commands stand in commands; people need two.
const maxNesting = 6

var (
	formatHole = regexp.MustCompile(`\{\{|\}\}|\{\d+\}`)
	heredoc    = regexp.MustCompile(`<<-?\s*(['"]?)([A-Za-z_]\w*)(['"]?)`)
)

// simpleCommands takes a script apart. What stands in $( ) and in backquotes is
// among its commands.
func simpleCommands(script string) []ran { return simpleCommandsIn(script, 0) }

func simpleCommandsIn(script string, depth int) []ran {
	if depth > maxNesting {
		return []ran{{text: "…", words: []string{"$("}}} // which nobody asks for
	}
	var out []ran
	var cur strings.Builder
	var lines []string
	end := ""
	for line := range strings.Lines(strings.ReplaceAll(script, "\\\n", " ")) {
		if end != "" {
			if strings.TrimSpace(line) == end {
				end = ""
			}
			continue
		}
		if m := heredoc.FindStringSubmatch(line); m != nil {
			end = m[2]
			line = strings.Replace(line, m[0], " ", 1)
		}
		lines = append(lines, line)
	}
	s := strings.Join(lines, "")
	flush := func(sep string) {
		if t := strings.TrimSpace(cur.String()); t != "" {
			c := ran{text: spaced(t)}
			c.split(t)
			if n := len(out); n > 0 && out[n-1].next == "|" {
				out[n-1].next = c.text
			}
			c.next = sep
			out = append(out, c)
		}
		cur.Reset()
	}
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case strings.HasPrefix(s[i:], "${{"):
			n := strings.Index(s[i:], "}}")
			if n < 0 {
				n = len(s) - i - 2
			}
			cur.WriteString(s[i : i+n+2])
			i += n + 1
		case c == '\\' && quote != '\'' && i+1 < len(s):
			cur.WriteString(s[i : i+2])
			i++
		case quote != '\'' && (strings.HasPrefix(s[i:], "$(") || c == '`'):
			inner, n := substituted(s[i:])
			out = append(out, simpleCommandsIn(inner, depth+1)...)
			cur.WriteString(s[i : i+n])
			i += n - 1
		case quote != 0:
			if c == quote {
				quote = 0
			}
			cur.WriteByte(c)
		case c == '\'' || c == '"':
			quote = c
			cur.WriteByte(c)
		case c == '#' && (i == 0 || strings.IndexByte(" \t\n;", s[i-1]) >= 0):
			for i < len(s) && s[i] != '\n' {
				i++
			}
			flush("")
		case c == '|' && !strings.HasPrefix(s[i:], "||"):
			flush("|")
		case c == '&' && i > 0 && s[i-1] == '>', c == '&' && i+1 < len(s) && s[i+1] == '>':
			cur.WriteByte(c)
		case c == '\n' || c == ';' || c == '&' || c == '|' || c == '(' || c == ')':
			flush("")
		default:
			cur.WriteByte(c)
		}
	}
	flush("")
	return out
}

// substituted is what a command substitution that s begins with runs, and its length.
func substituted(s string) (inner string, n int) {
	if s[0] == '`' {
		if end := strings.IndexByte(s[1:], '`'); end >= 0 {
			return s[1 : 1+end], end + 2
		}
		return s[1:], len(s)
	}
	depth := 0
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return s[2:i], i + 1
			}
		}
	}
	return s[2:], len(s)
}

var (
	keywords   = set("if then else elif fi while until do done ! { } time command nohup nice exec esac")
	redirected = regexp.MustCompile(`^(?:\d?>{1,2}|&>{1,2})(.*)$`)
	wrapping   = set("sudo env xvfb-run xargs timeout")
)

// split finds the words of a command behind keywords, assignments and wrappers.
func (c *ran) split(t string) {
	words := shellWord.FindAllString(strings.NewReplacer("${{ ", "${{", " }}", "}}").Replace(t), -1)
	for i := 0; i < len(words); i++ {
		w := words[i]
		if m := redirected.FindStringSubmatch(w); m != nil {
			target := m[1]
			if target == "" && i+1 < len(words) {
				i++
				target = words[i]
			}
			if !strings.HasPrefix(target, "&") {
				c.into = append(c.into, strings.Trim(target, `"'`))
			}
			continue
		}
		if len(c.words) == 0 {
			switch {
			case keywords[w] || assignment.MatchString(w):
				continue
			case w == "for" || w == "case":
				return
			case wrapping[w]:
				for i+1 < len(words) && (strings.HasPrefix(words[i+1], "-") || assignment.MatchString(words[i+1]) || w == "timeout" &&
					quantityOrNumber.MatchString(words[i+1])) {
					i++
				}
				if w != "env" || i+1 < len(words) {
					continue
				}
			}
		}
		c.words = append(c.words, w)
	}
}

var quantityOrNumber = regexp.MustCompile(`^\d+[smhd]?$`)

// harmless are programs of every shell that do nothing which others could make use
// of, as long as they keep to the tree.
var harmless = set(`cd echo printf mkdir test [ [[ exit true false sleep export cp mv ls cat tar zip unzip gzip chmod date wait pwd which touch head tail grep
 sed awk jq yq sort uniq wc tr cut tee diff find rm rmdir basename dirname uname seq expr read local return shift break continue : trap df du free sha256sum
 md5sum apt-get apt corepack set type nproc hash umask ulimit cmp paste nl rev`)

// packages are names that people install for what they are asked, without it being
// named.
var packages = set(`mkdocs-material pip setuptools wheel build twine tox-gh-actions tox-uv pytest-asyncio pytest-django pytest-mock pytest-timeout pytest-rerunfailures pytest-cov pytest-xdist coverage virtualenv pipenv poetry uv tox nox ruff black flake8 mypy pylint isort typescript
 ts-node eslint prettier jest vitest yarn pnpm npm bundler rake rebar hex`)

// families are programs that come together with a language.
var families = map[string]string{
	"node": "npm npx node yarn pnpm corepack bun bunx tsc", "python": "python python3 pip pip3 pipx uv uvx poetry pipenv pdm hatch pytest tox nox twine coverage",
	"ruby": "ruby gem bundle bundler rake bin/rails rails bin/rake bin/bundle", "rust": "cargo rustup rustc", "go": "go gofmt",
	"php": "php composer vendor/bin/phpunit", "java": "mvn ./mvnw ./gradlew gradle java javac sbt", "dotnet": "dotnet nuget", "elixir": "mix elixir",
	"swift": "swift xcodebuild", "haskell": "stack cabal ghc", "dart": "dart flutter", "flutter": "flutter dart", "terraform": "terraform",
	"deno": "deno", "bun": "bun bunx", "zig": "zig", "julia": "julia", "erlang": "rebar3", "r": "Rscript R",
}

// may are the programs that a request allows.
func (im implied) may() map[string]bool {
	out := map[string]bool{}
	langs := map[string]bool{}
	for w := range im.words {
		if im.lex.programs[w] != nil {
			out[w] = true
		}
	}
	take := func(t *tool) {
		langs[t.language] = true
		for _, does := range t.does {
			for i, w := range strings.Fields(does) {
				if i == 0 || i == 1 && strings.HasPrefix(does, "npx ") {
					out[w] = true
				}
			}
		}
		out[t.name] = true
	}
	for _, t := range im.lex.tools {
		if im.says(t.words...) || im.says(t.name) {
			take(t)
		}
	}
	for _, l := range im.lex.languages {
		if im.says(l.words...) || im.says(l.name) {
			langs[l.name] = true
		}
	}
	for l, programs := range families {
		if im.says(strings.Fields(programs)...) || slices.ContainsFunc(strings.Fields(programs), func(p string) bool {
			return strings.Contains(p, "/") &&
				strings.Contains(im.text, p)
		}) {
			langs[l] = true
		}
	}
	for l := range langs {
		for p := range strings.FieldsSeq(families[l]) {
			out[p] = true
		}
		for _, t := range im.lex.tools {
			if t.language == l && l != "" {
				for _, does := range t.does {
					out[strings.Fields(does)[0]] = true
				}
			}
		}
	}
	for w, more := range map[string]string{"image": "docker", "images": "docker", "container": "docker", "compose": "docker docker-compose",
		"kubernetes": "kubectl helm",
		"k8s":        "kubectl helm", "chart": "helm", "pages": "", "cluster": "kubectl helm", "c++": "cmake make ctest g++", "cpp": "cmake make ctest g++",
		"c":          "make gcc cmake",
		"playwright": "npx", "makefile": "make", "bash": "bash shellcheck", "shell": "shellcheck", "apk": "./gradlew", "pypi": "python python3 pip twine",
		"crates.io": "cargo", "rubygems": "gem bundle", "npmjs": "npm", "docs": "", "electron": "npm npx node", "gh-pages": "git"} {
		if im.words[w] {
			for p := range strings.FieldsSeq(more) {
				out[p] = true
			}
		}
	}
	return out
}

// quoted says whether the request has a command word for word.
func (im implied) quotes(command string) bool {
	c := strings.ToLower(spaced(command))
	for at := 0; ; {
		i := strings.Index(im.text[at:], c)
		if i < 0 || c == "" {
			return false
		}
		i += at
		before, after := i == 0 || !wordByte(im.text[i-1]), i+len(c) == len(im.text) || !wordByte(im.text[i+len(c)])
		if before && after {
			return true
		}
		at = i + 1
	}
}

func wordByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '_' || b == '/' || b == '-' || b == '$'
}

var (
	outside  = regexp.MustCompile(`(?:^|[=:"'@])(?:/(?:proc|etc|var|dev|root|sys|run|home)\b|~/\.(?:ssh|aws|netrc|npmrc|gnupg|docker|git)|\$HOME/\.(?:ssh|aws|netrc|gnupg|docker|git))|(?:^|/)\.git(?:/|$)|id_rsa|\.ssh/id`)
	inline   = regexp.MustCompile(`^-[A-Za-z]*[ceErp]$|^--(?:eval|print|command)`)
	scripted = set("python python3 node ruby perl php bash sh zsh dash pwsh powershell deno bun lua tsx ts-node Rscript R")
	ownPaths = regexp.MustCompile(`^(?:\./)?(?:gradlew|mvnw)$|^(?:vendor|node_modules/\.)/?bin/[\w-]+$|^bin/(?:rails|rake|bundle|setup|dev|rspec|rubocop)$|^\.?/?\.?venv/bin/[\w-]+$`)
)

// command says whether a simple command is one that the request asks for or
// implies. vars are variables that hold secrets.
func (im implied) command(c ran, may map[string]bool, vars map[string]bool) bool {
	if len(c.words) == 0 {
		return !im.carries(c.text, vars) || assignment.MatchString(c.text)
	}
	p, args := strings.Trim(c.words[0], `"'`), c.words[1:]
	secretive := im.carries(strings.Join(c.words, " "), vars)
	for _, f := range c.into {
		if im.remote() && strings.Contains(f, "/.ssh/") {
			continue
		}
		if outside.MatchString(f) && !im.quotes(f) && f != "/dev/null" && f != "/dev/stderr" && f != "/dev/stdout" && !strings.HasPrefix(f, "~/.docker") {
			return false
		}
		if strings.Contains(f, "GITHUB_PATH") && !ownFolder.MatchString(c.text) || strings.Contains(f, "GITHUB_ENV") && takesOver.MatchString(c.text) {
			return false
		}
	}
	if im.quotes(strings.Join(c.words, " ")) && !set("env set printenv export")[p] {
		return true
	}
	switch {
	case harmless[p] && !(p == "sleep" && secretive):
		return im.keeps(p, args, c, secretive)
	case p == "git":
		return im.git(args)
	case p == "nc":
		return len(args) > 1 && args[0] == "-z" && (args[1] == "localhost" || args[1] == "127.0.0.1")
	case p == "ssh-keyscan" || p == "ssh-agent" || p == "ssh-add":
		return im.remote()
	case p == "curl":
		return true // looked at elsewhere
	case p == "rustup":
		return may["cargo"] || may["rustup"]
	case p == "docker" && may["docker"]:
		return im.docker(args)
	case p == "aws" && len(args) > 0 && set("iam organizations secretsmanager ssm lambda sso kms account")[args[0]] && !im.words[args[0]]:
		return false
	case p == "gh" || p == "aws" || p == "gcloud" || p == "az":
		return may[p] || im.says("release", "comment", "issue", "label", p)
	case strings.Contains(p, "/") && !ownPaths.MatchString(p):
		return strings.Contains(im.text, strings.ToLower(strings.TrimPrefix(p, "./")))
	case ownPaths.MatchString(p):
		base := path.Base(p)
		return may[base] || may["./"+base] || may[p] || im.says(base) || slices.ContainsFunc([]string{"bundle", "php", "npm", "java", "python", "mvn",
			"gradle"}, func(x string) bool { return may[x] })
	}
	base := path.Base(p)
	if (base == "npx" || base == "bunx" || base == "uvx") && slices.ContainsFunc(args, func(a string) bool { return im.words[strings.ToLower(a)] }) {
		return im.installs(base, args)
	}
	if configuring[base] != "" && len(args) > 0 && strings.Contains(configuring[base], " "+args[0]+" ") && !ownConfig.MatchString(strings.Join(args, " ")) {
		return false
	}
	if !may[base] && !may[p] && !im.words[strings.ToLower(base)] {
		return im.ownPackages(base, args)
	}
	if scripted[base] {
		return im.script(base, args)
	}
	return im.installs(base, args)
}

// configuring are subcommands that turn a package manager to other places.
var configuring = map[string]string{"npm": " config set ", "yarn": " config ", "pnpm": " config ", "pip": " config ", "pip3": " config ", "gem": " sources ",
	"cargo": " login config ", "go": " env ", "composer": " config ", "poetry": " config source ", "dotnet": " nuget ", "bundle": " config "}

var ownConfig = regexp.MustCompile(`^config (?:set )?(?:--local |--global )*(?:virtualenvs|installer|pypi-token\.pypi|path|deployment|without|jobs|frozen|/?/?registry\.npmjs\.org/|store-dir)|^env [A-Z]+$|^nuget (?:push|locals|restore)`)

// ownPackages says whether a package manager that the request does not speak of gets
// what the tree itself lists, or what the request names.
func (im implied) ownPackages(p string, args []string) bool {
	if p == "python" || p == "python3" {
		if len(args) < 2 || args[0] != "-m" || args[1] != "pip" {
			return false
		}
		p, args = "pip", args[2:]
	}
	if len(args) == 0 || p == "go" || p == "cargo" || p == "pipx" {
		return false
	}
	switch {
	case args[0] == "ci" || args[0] == "sync":
		return p == "npm" || p == "uv"
	case args[0] != "install" || !set("pip pip3 npm pnpm yarn bundle composer gem poetry")[p]:
		return false
	}
	for i := 1; i < len(args); i++ {
		switch a := strings.Trim(args[i], `"'`); {
		case a == "-r":
			i++
		case a == "--upgrade" || a == "-U" || a == "--frozen-lockfile" || a == "--quiet" || a == "-q" || a == "-g" || a == "--no-cache-dir":
		case strings.HasPrefix(a, "-") || !packages[a] && !im.words[strings.ToLower(a)]:
			return false
		}
	}
	return true
}

var (
	ownFolder = regexp.MustCompile(`\$HOME|~/|github\.workspace|\$PWD|GITHUB_WORKSPACE|\$\(`)
	takesOver = regexp.MustCompile(`\b(?:BASH_ENV|ENV|LD_\w+|DYLD_\w+|PATH|NODE_OPTIONS|PYTHON\w*|PERL5\w*|RUBYOPT|GIT_\w+|GOFLAGS|GOENV|GOSUMDB|GONOSUMDB|GOINSECURE|PIP_\w*INDEX\w*|npm_config_registry)=`)
)

// carries says whether text holds a secret.
func (im implied) carries(text string, vars map[string]bool) bool {
	if secret.MatchString(text) || strings.Contains(text, "github.token") {
		return true
	}
	for v := range vars {
		if strings.Contains(text, "$"+v) || strings.Contains(text, "${"+v) {
			return true
		}
	}
	return false
}

// keeps says whether a program of every shell keeps to the tree and to itself what
// is secret.
func (im implied) keeps(p string, args []string, c ran, secretive bool) bool {
	if secretive {
		home := len(c.into) > 0 && !slices.ContainsFunc(c.into, func(f string) bool {
			return !strings.HasPrefix(f, "~/") && !strings.HasPrefix(f, "$HOME/") && f != ".npmrc" && !im.quotes(f)
		})
		if p != "test" && p != "[" && p != "[[" && p != "export" && !home && !strings.Contains(c.next, " login") {
			return false
		}
	}
	switch p {
	case "set":
		return len(args) > 0 && (args[0][0] == '-' || args[0][0] == '+') && args[0] != "-" && args[0] != "--"
	case "export":
		return len(args) > 0 && args[0][0] != '-' && !takesOver.MatchString(strings.Join(args, " ")+" ")
	case "trap", "read", "type", "hash":
		return !slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "curl") })
	case "find":
		if slices.ContainsFunc(args, func(a string) bool {
			return strings.HasPrefix(a, "-exec") || a == "-ok" || strings.HasPrefix(a, "-fprint")
		}) {
			return false
		}
	case "apt-get", "apt":
		return !slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "/") || a == "-o" || strings.HasSuffix(a, ".deb") })
	case "sed", "awk":
		if strings.Contains(strings.Join(args, " "), "system(") {
			return false
		}
	}
	for _, a := range args {
		if im.remote() && strings.Contains(a, "/.ssh") && (p == "mkdir" || p == "chmod" || p == "touch") {
			continue
		}
		if outside.MatchString(a) && !im.quotes(strings.Trim(a, `"'`)) {
			return false
		}
	}
	return true
}

// remote says whether the request speaks of other machines, for which keys are laid out.
func (im implied) remote() bool { return im.says("ssh", "scp", "rsync", "sftp") }

// git says whether a git command only looks, or is what the request speaks of.
func (im implied) git(args []string) bool {
	if len(args) == 0 {
		return false
	}
	switch args[0] {
	case "config":
		return slices.ContainsFunc(args, func(a string) bool {
			return strings.HasPrefix(a, "user.") || a == "safe.directory" || strings.HasPrefix(a, "init.") || strings.HasPrefix(a, "core.")
		}) && !slices.Contains(args, "core.sshCommand") && !slices.Contains(args, "core.hooksPath")
	case "fetch", "diff", "log", "describe", "status", "rev-parse", "show", "ls-files", "rev-list", "merge-base", "lfs", "submodule", "tag", "branch",
		"checkout", "switch":
		return !slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "://") || strings.HasPrefix(a, "--upload-pack") })
	case "add", "commit", "push", "stash":
		return im.says("commit", "commits", "git", "bump", "gh-pages", "changes") && (im.says("push", "pushes", "commit", "commits") || im.says("git"))
	}
	return false
}

var (
	// mastering are flags that give a container the machine that it runs on.
	mastering = regexp.MustCompile(`^--(?:privileged|pid|cap-add|device|userns|ipc|security-opt)\b|^--net(?:work)?=host$|docker\.sock|^/:`)
	mounted   = regexp.MustCompile(`^(?:(?:-v|--volume|--mount)=?)?(?:[\w,=]*(?:source|src)=)?["']?(?:/|~|\$HOME)`)
	// imageSaid is a request that names the image that is pushed.
	imageSaid = regexp.MustCompile(`(?:\bdocker push|(?:-t|--tag)[ =]|\bas|\bto|\bimage) *[\w.-]+/[\w./-]+|\bdocker push [\w.-]+`)
)

// docker says whether a docker command keeps to the images and registries that the
// request names, and to its own container.
func (im implied) docker(args []string) bool {
	valued := set("-v --volume --mount -u --username -p --password -e --env --name -w --workdir -t --tag -f --file --build-arg --platform --network --entrypoint")
	var names []string // what is no flag and belongs to none
	for i, a := range args {
		a = strings.Trim(a, `"'`)
		before := ""
		if i > 0 {
			before = args[i-1]
		}
		switch {
		case mastering.MatchString(a), before == "--net" && a == "host", before == "--network" && a == "host":
			return false
		case (before == "-v" || before == "--volume" || before == "--mount" || strings.HasPrefix(a, "-v") || strings.HasPrefix(a, "--volume") ||
			strings.HasPrefix(a, "--mount")) && mounted.MatchString(a):
			return false
		case before == "--build-arg" && secret.MatchString(a) && !im.says("build-arg", "build-args", "argument"):
			return false // it stays in the image
		}
		if i > 0 && !strings.HasPrefix(a, "-") && !valued[before] {
			names = append(names, a)
		}
	}
	if len(args) == 0 {
		return true
	}
	host := func(h string) bool {
		h = strings.ToLower(h)
		return strings.Contains(h, "$") || strings.Contains(im.text, h) || h == "docker.io" || h == "ghcr.io" && im.registry() ||
			len(impliedHosts[h]) > 0 && im.says(impliedHosts[h]...)
	}
	switch args[0] {
	case "login":
		return !slices.ContainsFunc(names, func(n string) bool { return !host(n) })
	case "push":
		return !slices.ContainsFunc(names, func(n string) bool {
			image := strings.ToLower(strings.ReplaceAll(n, `"`, ""))
			if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
				image = image[:i]
			}
			if first, _, ok := strings.Cut(image, "/"); ok && strings.ContainsAny(first, ".:") && !host(first) {
				return true
			}
			return !strings.Contains(image, "$") && imageSaid.MatchString(im.text) && !strings.Contains(im.text, image)
		})
	case "run", "exec", "cp", "save", "pull":
		return slices.ContainsFunc(names, func(n string) bool {
			name, _, _ := strings.Cut(strings.ToLower(n), ":")
			return !strings.ContainsAny(name, "$=") && len(name) > 1 && strings.Contains(im.text, name)
		})
	}
	return true
}

// script says whether an interpreter runs what the request names, or a module that
// belongs to it.
func (im implied) script(p string, args []string) bool {
	for i := range args {
		a := strings.Trim(args[i], `"'`)
		switch {
		case a == "-m" && i+1 < len(args):
			m, _, _ := strings.Cut(args[i+1], ".")
			if m == "pip" {
				return im.installs("pip", args[i+2:])
			}
			return set("build venv pytest unittest compileall ensurepip virtualenv tox nox coverage twine mypy ruff black flake8 pylint doctest")[m] || im.says(m)
		case (p == "deno" || p == "bun") && i == 0 && !strings.HasPrefix(a, "-"):
			return a != "eval" && a != "x" && !strings.Contains(a, "/") && im.installs(p, args)
		case inline.MatchString(a) && !(p == "bash" && a == "-e"):
			return false
		case p == "php" && a == "artisan":
			return true
		case strings.HasPrefix(a, "-"):
		case a == "setup.py" || a == "manage.py" || a == "Rakefile":
			return true
		case a == "" || strings.HasPrefix(a, "<"):
			return false
		default:
			return strings.Contains(im.text, strings.ToLower(strings.TrimPrefix(a, "./")))
		}
	}
	return slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--version") || a == "-V" || a == "-v" })
}

// fetching are subcommands behind which packages of others are named; those that
// also run them are fetching too.
var fetching = map[string]map[string]bool{
	"pip": set("install download"), "pip3": set("install download"), "pipx": set("install run"), "npm": set("install i exec x add"),
	"yarn": set("add dlx global"),
	"pnpm": set("add dlx install i"), "bun": set("add x install"), "gem": set("install"), "cargo": set("install"), "go": set("install run get"),
	"uv":     set("add tool"),
	"poetry": set("add self"), "composer": set("require global"), "dotnet": set("tool"), "brew": set("install"), "choco": set("install"), "opam": set("install"),
	"conda": set("install"), "mamba": set("install"), "cabal": set("install"), "stack": set("install"), "luarocks": set("install"), "mix": set("archive.install"),
}

// installs says whether what is fetched and run from elsewhere is what the request
// speaks of.
func (im implied) installs(p string, args []string) bool {
	at := -1
	if p == "npx" || p == "uvx" || p == "bunx" {
		at = 0
	}
	if len(args) > 0 && fetching[p][args[0]] {
		at = 1
	}
	if slices.ContainsFunc(args, func(a string) bool { return runsOther.MatchString(a) }) {
		return false
	}
	if at < 0 {
		return !slices.ContainsFunc(args, func(a string) bool { return outside.MatchString(a) && !im.quotes(a) })
	}
	for i := at; i < len(args); i++ {
		a := strings.Trim(args[i], `"'`)
		switch {
		case a == "-r" || a == "-c" || a == "--requirement" || a == "--constraint" || a == "--version" || a == "--locked":
			if a != "--locked" {
				i++
			}
			continue
		case a == "-p" || a == "--package" || a == "-y" || strings.HasPrefix(a, "-"):
			if strings.Contains(a, "index-url") || strings.Contains(a, "registry") || a == "-i" && p[:3] == "pip" || a == "--git" {
				return false // from elsewhere; what the request names word for word is taken before
			}
			continue
		case strings.HasPrefix(a, ".") || a == "global" || a == "tool" || a == "install" || a == "require" || a == "run" || a == "self" || a == "plugin":
			continue
		}
		if !im.fits(a) {
			return false
		}
		if module := strings.ToLower(a); p == "go" && strings.Contains(module, "/") && !goModules.MatchString(module) &&
			!strings.Contains(im.text, strings.Split(module, "@")[0]) {
			return false
		}
		if at == 0 || args[0] == "run" || args[0] == "exec" || args[0] == "x" || args[0] == "dlx" {
			return true // the rest are its arguments
		}
	}
	return true
}

// runsOther are flags that name a program to run instead.
var runsOther = regexp.MustCompile(`^--?(?:exec|toolexec|vettool)\b`)

// goModules are where tools for Go are at home; a module of another place that ends
// with a tool's name may be anybody's.
var goModules = regexp.MustCompile(`^(?:honnef\.co/go/tools|golang\.org/x|mvdan\.cc|google\.golang\.org|gotest\.tools|go\.uber\.org|sigs\.k8s\.io|goa\.design` +
	`|github\.com/(?:golangci|securego|onsi|goreleaser|sqlc-dev|bufbuild|vektra|swaggo|golang-migrate|pressly|magefile|axw|t-yuki|jstemmer|rhysd|mgechev|kisielk|google` +
	`|go-task|a-h|air-verse|golang|grpc-ecosystem|wadey|mattn|boumenot|uber|ory|caarlos0|air|hashicorp|kyleconroy|matryer|gordonklaus|fzipp|client9|segmentio|dominikh))/`)

// fits says whether a package has to do with the request.
func (im implied) fits(name string) bool {
	lower := strings.ToLower(name)
	if i := strings.LastIndexByte(lower, '@'); i > 0 {
		lower = lower[:i]
	}
	lower, _, _ = strings.Cut(lower, "=")
	lower, _, _ = strings.Cut(lower, "[")
	lower = strings.TrimRight(lower, "<>~!")
	if strings.Contains(lower, "://") {
		return im.quotes(name)
	}
	base := path.Base(lower)
	if packages[base] || im.words[base] || im.words[lower] || im.lex.programs[base] != nil && im.lex.programs[base].pkg != "" {
		return true
	}
	// @playwright/test, honnef.co/go/tools/cmd/staticcheck, wasm-pack: a tool's own name within.
	if after, ok := strings.CutPrefix(lower, "@"); ok {
		scope, _, _ := strings.Cut(after, "/")
		return im.words[scope]
	}
	return false
}

var (
	expression = regexp.MustCompile(`\$\{\{.*?\}\}`)
	injected   = regexp.MustCompile(`\$\{\{[^}]*(?:github\.head_ref|github\.event\.[\w.*\[\]0-9]*(?:\.title|\.body|\.message|\.head\.ref|\.head\.label|\.email|\.default_branch|\.name)\b)`)
	runners    = regexp.MustCompile(`^(?:ubuntu|windows|macos)-[\w.-]+$|^\$\{\{ *matrix\.[\w-]+ *\}\}$`)
	shells     = regexp.MustCompile(`^(?:bash|sh|pwsh|powershell|cmd|zsh|dash|fish)(?: +(?:-[a-zA-Z]+|-o|pipefail|--no\w+|\{0\}))*$`)
	calls      = regexp.MustCompile(`fetch\s*\(|process\.|require\s*\(|import\s*\(|exec\b|child_process|\.request\s*\(|XMLHttp|eval\s*\(|Function\s*\(`)
	methods    = regexp.MustCompile(`github\.(?:rest|request|graphql|paginate)[\w.]*`)
	methodOK   = regexp.MustCompile(`\.(?:issues\.(?:createComment|updateComment|listComments|addLabels|removeLabel|create|listForRepo|update)|pulls\.(?:get|list|listFiles|createReview|requestReviewers)|repos\.(?:get\w*|list\w*|createCommitStatus|createRelease)|reactions\.\w+|checks\.\w+)$`)
)

// occurrences are words that speak of an event that is not usual.
var occurrences = map[string]string{
	"schedule":      "every each daily weekly monthly hourly nightly night cron schedule scheduled weekday weekdays weekend weekends monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays sundays midnight noon yearly quarterly once twice stale",
	"issues":        "issue issues label labels labelled labeled",
	"issue_comment": "comment comments commenting commented", "repository_dispatch": "dispatch repository_dispatch", "discussion": "discussion discussions",
	"deployment": "deployment deployments", "deployment_status": "deployment deployments", "watch": "star stars watch", "fork": "fork forks",
	"check_run": "check", "check_suite": "check", "create": "created create", "delete": "deleted delete", "public": "public",
	"registry_package": "package packages",
	"status":           "status", "page_build": "pages", "project": "project", "milestone": "milestone",
	"gollum": "wiki", "member": "member", "label": "label labels",
	"branch_protection_rule": "protection", "pull_request_review": "review reviews reviewed approved approves approval",
	"pull_request_review_comment": "comment comments",
	"merge_group":                 "merge queue merge_group",
}

// surroundings holds what jobs run on and in, and what their steps are given,
// against the request.
func (im implied) surroundings(w *workflow.Workflow, add func(string)) {
	for _, t := range w.On {
		if words, ok := occurrences[t.Event]; ok && !im.says(strings.Fields(words)...) && !im.fragments["sched"] && !strings.Contains(im.text, t.Event) {
			add("it is triggered by " + t.Event + ", which the request does not ask for")
		}
	}
	may := im.may()
	for _, j := range w.Jobs {
		im.machine(j.RunsOn, add)
		if j.Container != nil {
			im.image(j.Container, add)
		}
		if j.Services != nil {
			for _, kv := range j.Services.Pairs {
				im.image(kv.Value, add)
			}
		}
		for s := range workflow.EachStep(j.Steps) {
			if sh := s.Shell.Text(); sh != "" && !shells.MatchString(sh) && !im.quotes(sh) {
				add("it uses the shell " + sh + ", which the request does not name")
			}
			if s.Uses != "" {
				im.given(s, add)
				continue
			}
			script := written(s.Run)
			if injected.MatchString(script) {
				add("it puts text that others write into a command: give it to the command in a variable of env")
			}
			vars := map[string]bool{}
			for _, env := range []*workflow.Value{w.Env, j.Env, s.Env} {
				if env == nil {
					continue
				}
				for _, kv := range env.Pairs {
					if v := written(kv.Value); secret.MatchString(v) || strings.Contains(v, "github.token") {
						vars[kv.Key.Text()] = true
					}
					if takesOver.MatchString(kv.Key.Text()+"=") && !im.words[strings.ToLower(kv.Key.Text())] {
						add("it sets " + kv.Key.Text() + ", which the request does not name")
					}
				}
			}
			for _, c := range simpleCommands(script) {
				if !im.command(c, may, vars) {
					add("it runs `" + clipped(c.text) + "`, which the request neither names nor implies")
				}
			}
		}
	}
}

func clipped(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

func (im implied) machine(v *workflow.Value, add func(string)) {
	if v == nil {
		return
	}
	if v.Kind == workflow.Mapping || len(v.Items) > 0 {
		for _, x := range v.Items {
			im.machine(x, add)
		}
		for _, kv := range v.Pairs {
			im.machine(kv.Value, add)
		}
		return
	}
	if s := written(v); !runners.MatchString(s) && !im.words[strings.ToLower(s)] {
		add("it runs on " + s + ", which the request does not name")
	}
}

// image holds the image of a container or a service against the request.
func (im implied) image(v *workflow.Value, add func(string)) {
	image := written(v)
	if x := v.Get("image"); x != nil {
		image = written(x)
	}
	name, _, _ := strings.Cut(strings.ToLower(image), "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	base := strings.TrimPrefix(name, "library/")
	switch alias := map[string]string{"postgis/postgis": "postgis", "mongo": "mongodb", "golang": "go", "mysql": "mysql", "eclipse-temurin": "java",
		"postgres":                     "postgresql",
		"mcr.microsoft.com/playwright": "playwright", "docker.elastic.co/elasticsearch/elasticsearch": "elasticsearch", "bitnami/kafka": "kafka",
		"apache/kafka": "kafka",
		"minio/minio":  "minio", "mcr.microsoft.com/mssql/server": "mssql", "selenium/standalone-chrome": "selenium"}[base]; {
	case name == "" || strings.Contains(im.text, name):
	case im.words[alias] || !strings.Contains(base, "/") && im.words[base]:
	default:
		add("it uses the image " + image + ", which the request does not name")
	}
}

// given holds what an action is given against the request.
func (im implied) given(s *workflow.Step, add func(string)) {
	repo, _, _ := strings.Cut(strings.ToLower(s.Uses), "@")
	for _, kv := range workflowPairs(s.With) {
		key, value := strings.ToLower(kv.Key.Text()), written(kv.Value)
		switch {
		case repo == "actions/checkout" && (key == "repository" || key == "github-server-url"):
			if !strings.Contains(im.text, strings.ToLower(value)) && !strings.Contains(value, "github.repository") {
				add("it checks out " + value + ", which the request does not name")
			}
		case key == "registry" || key == "tags" && strings.HasPrefix(repo, "docker/") || key == "images":
			for t := range strings.FieldsFuncSeq(expression.ReplaceAllString(value, "${{}}"), func(r rune) bool { return r == '\n' || r == ',' || r == ' ' }) {
				host, _, ok := strings.Cut(t, "/")
				if !ok && key == "tags" || strings.HasPrefix(t, "${{") || !strings.ContainsAny(host, ".:") {
					continue
				}
				if h := strings.ToLower(host); !strings.Contains(im.text, h) && !im.says(impliedHosts[h]...) && !(h == "ghcr.io" && im.registry()) && h != "docker.io" {
					add("it speaks to " + host + ", which the request does not name")
				}
			}
		case repo == "docker/build-push-action" && key == "push" && value == "true":
			if !im.publishes() && !im.says("deploy", "deploys") {
				add("it pushes an image, which the request does not ask for")
			}
		case repo == "actions/github-script" && key == "script":
			if !im.says("comment", "comments", "label", "labels", "issue", "issues", "script", "reviewer", "reviewers", "status", "release", "assign",
				"milestone", "github-script") {
				add("it runs a script against GitHub's API, which the request does not ask for")
			}
			if calls.MatchString(value) {
				add("its script does more than call GitHub's API")
			}
			for _, m := range methods.FindAllString(value, -1) {
				if !methodOK.MatchString(m) {
					add("its script calls " + m + ", which the request does not ask for")
				}
			}
		case injected.MatchString(value) && (strings.Contains(key, "script") || strings.Contains(key, "command") || strings.Contains(key, "run") || key == "args"):
			add("it puts text that others write into " + key)
		case (key == "command" || key == "run") && repo != "actions/github-script":
			may := im.may()
			for _, c := range simpleCommands(value) {
				if !im.command(c, may, nil) {
					add("it runs `" + clipped(c.text) + "`, which the request neither names nor implies")
				}
			}
		case key == "path" && strings.HasPrefix(repo, "actions/upload") || key == "files":
			for p := range strings.FieldsSeq(value) {
				if (outside.MatchString(p) || strings.HasPrefix(p, "~") || strings.HasPrefix(p, "/")) && !im.quotes(p) || p == ".env" || p == ".npmrc" {
					add("it hands out " + p + ", which the request does not name")
				}
			}
		}
	}
}

func workflowPairs(v *workflow.Value) []workflow.Pair {
	if v == nil {
		return nil
	}
	return v.Pairs
}

// registry says whether the request speaks of GitHub's registry of containers.
func (im implied) registry() bool {
	return im.says("ghcr", "packages") || strings.Contains(im.text, "ghcr.io") || strings.Contains(im.text, "container registry") ||
		strings.Contains(im.text, "github registry") || strings.Contains(im.text, "github's registry")
}
