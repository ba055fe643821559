package graph

import (
	"hash/fnv"
	"regexp"
	"strconv"
	"strings"
)

// maxCommand bounds an identity; what is longer ends in a hash of the whole.
const maxCommand = 200

var (
	actionRef  = regexp.MustCompile(`^([A-Za-z0-9_.-]+/[A-Za-z0-9_./-]+)@(\S+)$`)
	assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=("[^"]*"|'[^']*'|[^\s"']*)\s+`)
	spaces     = regexp.MustCompile(`[ \t]+`)
	fullSHA    = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)
	majorTag   = regexp.MustCompile(`^v?(\d+)(\.\d+)*$`)
	longHex    = regexp.MustCompile(`\b[0-9a-f]{12,}\b`)
)

// Command is the identity of what a step runs: its script, or its action at its
// major version. Whitespace, comments, shell options, leading assignments and
// sudo do not count; everything else does, so that `npm run lint` and `npm run
// deploy` are different commands. It is idempotent and at most 220 bytes long.
func Command(text string) string {
	text = strings.TrimSpace(text)
	if m := actionRef.FindStringSubmatch(text); m != nil {
		ref := m[2]
		switch {
		case fullSHA.MatchString(ref):
			ref = "<sha>"
		case majorTag.MatchString(ref):
			ref = "v" + majorTag.FindStringSubmatch(ref)[1]
		}
		return strings.ToLower(m[1]) + "@" + ref
	}
	text = strings.ReplaceAll(text, "\\\r\n", " ")
	text = strings.ReplaceAll(text, "\\\n", " ")
	var lines []string
	for line := range strings.Lines(text) {
		if line = commandLine(line); line != "" {
			lines = append(lines, line)
		}
	}
	out := strings.Join(lines, "; ")
	out = longHex.ReplaceAllString(out, "<hex>")
	out = strings.ToValidUTF8(out, "?")
	if len(out) > maxCommand {
		h := fnv.New64a()
		h.Write([]byte(out))
		cut := maxCommand
		for cut > 0 && out[cut]&0xC0 == 0x80 { // never in the middle of a character
			cut--
		}
		out = strings.TrimSpace(out[:cut]) + " …" + strconv.FormatUint(h.Sum64(), 36)
	}
	return out
}

func commandLine(line string) string {
	line = strings.TrimSpace(spaces.ReplaceAllString(line, " "))
	if strings.HasPrefix(line, "#") || line == "set -e" || strings.HasPrefix(line, "set -") && !strings.ContainsAny(line, ";&|") {
		return ""
	}
	for {
		short := assignment.ReplaceAllString(line, "")
		short = strings.TrimPrefix(short, "sudo ")
		short = strings.TrimPrefix(short, "exec ")
		short = strings.TrimPrefix(short, "time ")
		if short == line {
			break
		}
		line = strings.TrimSpace(short)
	}
	return strings.TrimRight(line, " ;")
}

// ActionMajor reports whether text names an action and at which version,
// e.g. actions/checkout@v4.
func ActionMajor(text string) (string, bool) {
	text = strings.TrimSpace(text)
	if !actionRef.MatchString(text) {
		return "", false
	}
	return Command(text), true
}

// StepKind is a coarse class of what a step does: action, deploy, test, lint,
// build, install, or run. Retrying heeds it: what deploys is never retried
// unasked.
func StepKind(text string) string {
	if _, ok := ActionMajor(text); ok {
		text = strings.ToLower(text)
		switch {
		case strings.Contains(text, "deploy"), strings.Contains(text, "publish"), strings.Contains(text, "release"), strings.Contains(text, "pages"):
			return "deploy"
		}
		return "action"
	}
	words := strings.FieldsFunc(strings.ToLower(Command(text)), func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	})
	kinds := map[string]bool{}
	for _, w := range words {
		for _, k := range kindWords {
			for _, x := range k.words {
				if w == x {
					kinds[k.kind] = true
				}
			}
		}
	}
	for _, k := range kindWords { // in the order of what weighs more
		if kinds[k.kind] {
			return k.kind
		}
	}
	return "run"
}

var kindWords = []struct {
	kind  string
	words []string
}{
	{"deploy", []string{"deploy", "publish", "release", "push", "upload", "apply", "promote", "rollout", "kubectl", "helm", "terraform"}},
	{"test", []string{"test", "tests", "pytest", "jest", "ctest", "nextest", "check", "spec", "rspec", "phpunit", "e2e", "tox", "vitest", "mocha", "cypress",
		"playwright", "verify"}},
	{"lint", []string{"lint", "fmt", "format", "clippy", "vet", "eslint", "flake8", "ruff", "mypy", "golangci-lint", "shellcheck", "prettier", "staticcheck",
		"rubocop", "black"}},
	{"build", []string{"build", "make", "compile", "cmake", "ninja", "gcc", "cargo", "gradle", "gradlew", "mvn", "tsc", "webpack", "docker", "package"}},
	{"install", []string{"install", "ci", "apt-get", "apt", "pip", "pip3", "npm", "yarn", "pnpm", "bundle", "restore", "download", "curl", "wget", "brew",
		"apk", "dnf"}},
}
