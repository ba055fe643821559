package mask

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"
)

// What nobody named as a secret may be one all the same: a program that comes over
// an API, its environment and what it prints. [Guess], [GuessEnv] and [Redact] know
// secrets by where they stand (a credential's name before them, an Authorization
// header, a URL before the @, a flag, a private key's block), by their maker's form
// (ghp_…, AKIA…, eyJ….….…) and by their looks: twenty characters or more that go
// to and fro between digits, small and capital letters as no word does. They take
// too much rather than too little, since it is memory that they guard, not what
// people read; a secret that looks like a word and stands nowhere is not known.

// guessLeast is how long a guessed secret must be to be looked for elsewhere; a
// shorter one is only taken out where it stood.
const guessLeast = 4

// value is what stands behind a name: in quotes of some kind, or bare.
const value = `(?:\\?"([^"\\\n]+)|\\?'([^'\\\n]+)|([^\s"'` + "`" + `,;&|()<>{}\[\]\\]+))`

var (
	// named is a name, what parts it from a value, and the value, by four groups.
	named   = regexp.MustCompile(`(?i)([\w.-]*(?:token|secret|pass|pwd|key|credential|auth|cookie|dsn|jwt|connectionstring)[\w.-]*)\\?["']?\]?[ \t]*(?::=|=>|=|:)[ \t]*` + value)
	flagged = regexp.MustCompile(`(?i)--?([\w-]*(?:token|secret|pass|pwd|key|credential|auth)[\w-]*)[ \t]+` + value)
	// The rest have the secret in their only group.
	standing = []*regexp.Regexp{
		regexp.MustCompile(`(?i)authorization\\?["']?\s*[:=]\s*\\?["']?(?:[a-z-]+[ \t]+)?([^\s"',;\\]+)`),
		regexp.MustCompile(`(?i)\b(?:bearer|basic)[ \t]+([a-z0-9._~+/=-]{6,})`),
		regexp.MustCompile(`(?i)\bcookie\\?["']?[ \t]*[:=][ \t]*([^"'\n]+)`),
		regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://[^\s/:@"']*:([^\s/@"']+)@`),
		regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://([^\s/:@"']{12,})@`),
		regexp.MustCompile(`(?i)[ \t](?:-u|--user|--proxy-user)[ \t=]*["']?[^\s:"'=]+:([^\s"']*[^\s"'0-9][^\s"']*)`),
		regexp.MustCompile(`(?i)\b(?:curl|wget|http|https)\b[^\n|;]*[ \t](?:-u|--user|--proxy-user)[ \t=]*["']?[^\s:"'=]+:([^\s"']+)`),
		regexp.MustCompile(`(?i)\b(?:mysql|mysqldump|mysqladmin|mariadb|sshpass)\b[^\n|;]*[ \t]-p[ \t]*["']?([^\s"'-][^\s"']*)`),
		regexp.MustCompile(`(?i)\b(?:docker|podman|helm|oras|crane)[ \t]+(?:registry[ \t]+)?login\b[^\n|;]*[ \t]-p[ \t]*["']?([^\s"'-][^\s"']*)`),
		regexp.MustCompile(`(?i)\b(?:redis-cli)\b[^\n|;]*[ \t]-a[ \t]*["']?([^\s"'-][^\s"']*)`),
		regexp.MustCompile(`\b((?:gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|xapp-|npm_|pypi-|hf_|dop_v1_|shpat_|sq0[a-z]{3}-|` +
			`ya29\.|SG\.|AIza|AGE-SECRET-KEY-)[\w.~+/=-]{8,})`),
		regexp.MustCompile(`\b((?:sk|pk|rk|whsec)[-_][\w-]{12,})`),
		regexp.MustCompile(`\b((?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,})`),
		regexp.MustCompile(`\b(eyJ[\w-]{5,}(?:\.[\w-]*)*)`),
	}
	// keyBlock is what may have several lines.
	keyBlock = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*(?:PRIVATE KEY|SECRET)[A-Z ]*-----(.*?)(?:-----END|$)`)
)

// telling finds what any of named, flagged and standing has in it, in small letters:
// most lines have none of it, and are not worth the look.
var telling = sync.OnceValue(func() *automaton {
	return newAutomaton([]string{"token", "secret", "pass", "pwd", "key", "credential", "auth", "cookie", "dsn", "jwt", "connectionstring", "bearer", "basic",
		"://", " -u", "\t-u", " -p", "\t-p", " -a", "\t-a", "-user", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat", "xox", "xapp", "npm_", "pypi-",
		"hf_",
		"dop_v1_", "shpat_", "sq0", "ya29", "sg.", "aiza", "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "whsec", "akia", "asia", "aroa", "aida", "eyj"})
})

func tells(line string) bool {
	a, s := telling(), int32(0)
	for i := range len(line) {
		c := line[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if s = a.next(s, c); a.match[s] > 0 {
			return true
		}
	}
	return false
}

// Guess lists what of a text looks like a secret, each once.
func Guess(text string) []string {
	var out []string
	for _, s := range guessed(text) {
		for line := range strings.Lines(text[s.from:s.to]) {
			if line = strings.TrimSpace(line); len(line) >= guessLeast && !slices.Contains(out, line) {
				out = append(out, line)
			}
		}
	}
	return out
}

// GuessEnv lists what of an environment variable looks like a secret: all of it
// where the name says so, and what [Guess] finds in the value.
func GuessEnv(name, value string) []string {
	if SecretName(name) {
		if value == "" {
			return nil
		}
		return append([]string{value}, Guess(value)...)
	}
	return Guess(value)
}

// Redact puts [Mark] where something in a text looks like a secret.
func Redact(text string) string {
	found := guessed(text)
	if len(found) == 0 {
		return text
	}
	var b bytes.Buffer
	at := 0
	for _, s := range found {
		b.WriteString(text[at:s.from])
		b.WriteString(Mark)
		for range strings.Count(text[s.from:s.to], "\n") { // lines stay lines
			b.WriteByte('\n')
		}
		at = s.to
	}
	b.WriteString(text[at:])
	return b.String()
}

// guessed are the places of a text that look like secrets, ascending and apart.
func guessed(text string) []interval {
	var out []interval
	add := func(from, to int) {
		if v := text[from:to]; from < to && v != Mark {
			out = append(out, interval{from, to})
		}
	}
	at := 0
	for line := range strings.Lines(text) {
		if tells(line) {
			guessedLine(line, func(from, to int) { add(at+from, at+to) })
		}
		at += len(line)
	}
	if strings.Contains(text, "-----BEGIN ") {
		for _, m := range keyBlock.FindAllStringSubmatchIndex(text, -1) {
			add(m[2], m[3])
		}
	}
	for from := 0; from < len(text); {
		to := from
		for to < len(text) && inRun(text[to]) {
			to++
		}
		if random(text[from:to]) {
			add(from, to)
		}
		from = to + 1
	}
	if len(out) == 0 {
		return nil
	}
	return union(out)
}

// guessedLine finds what of a line stands where secrets do, or has a maker's form.
func guessedLine(line string, add func(from, to int)) {
	for _, re := range []*regexp.Regexp{named, flagged} {
		for _, m := range re.FindAllStringSubmatchIndex(line, -1) {
			if !SecretName(line[m[2]:m[3]]) {
				continue
			}
			for g := 4; g < len(m); g += 2 {
				if m[g] >= 0 && literal(line, m[g], m[g+1], g == len(m)-2) {
					add(m[g], m[g+1])
				}
			}
		}
	}
	for _, re := range standing {
		for _, m := range re.FindAllStringSubmatchIndex(line, -1) {
			if literal(line, m[2], m[3], false) {
				add(m[2], m[3])
			}
		}
	}
}

// literal says whether what stands at a secret's place is one, and not where it
// will come from: a variable, an expression, a call.
func literal(text string, from, to int, bare bool) bool {
	v := text[from:to]
	switch strings.ToLower(v) {
	case "true", "false", "null", "none", "nil", "undefined", "bearer", "basic", "token":
		return false
	}
	if strings.HasPrefix(v, "$") || strings.HasPrefix(v, "%") && strings.HasSuffix(v, "%") || bare && strings.HasPrefix(v, "-") {
		return false
	}
	return !bare || to == len(text) || text[to] != '(' && text[to] != '['
}

// SecretName says whether a variable, field or flag of this name holds a credential.
func SecretName(name string) bool {
	words := nameWords(name)
	if len(words) == 0 {
		return false
	}
	if slices.Contains([]string{"file", "path", "stdin", "url", "uri", "type", "dir", "tokens", "length", "size", "count", "ttl"}, words[len(words)-1]) {
		return false
	}
	several := len(words) > 1 || strings.HasPrefix(name, "-") || strings.HasPrefix(name, "_")
	for i, w := range words {
		switch w {
		case "pwd", "pass", "auth", "jwt", "pat", "dsn", "cookie", "cookies", "bearer":
			if several {
				return true
			}
		case "authorization", "credential", "credentials", "creds", "secrets":
			return true
		case "key", "keys":
			harmless := []string{"primary", "foreign", "sort", "partition", "public", "cache", "hash", "group", "restore"}
			if i == len(words)-1 && i > 0 && !slices.Contains(harmless, words[i-1]) {
				return true
			}
		}
		for _, end := range []string{"token", "secret", "password", "passwd", "passphrase", "apikey", "accesskey", "privatekey", "secretkey", "connectionstring"} {
			if strings.HasSuffix(w, end) {
				return true
			}
		}
	}
	return strings.HasSuffix(strings.Join(words, ""), "connectionstring")
}

// nameWords are the words of a name, in small letters: of db_password, DB-PASSWORD
// and dbPassword the same.
func nameWords(name string) []string {
	var out []string
	var w []rune
	end := func() {
		if len(w) > 0 {
			out = append(out, strings.ToLower(string(w)))
			w = nil
		}
	}
	last := ' '
	for _, r := range name {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			end()
		case unicode.IsUpper(r) && unicode.IsLower(last):
			end()
			w = append(w, r)
		default:
			w = append(w, r)
		}
		last = r
	}
	end()
	return out
}

// inRun says whether a byte may be within a token.
func inRun(c byte) bool {
	return kindOf(c) > 0 || c == '+' || c == '/' || c == '=' || c == '_' || c == '-'
}

func kindOf(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return 1
	case c >= 'a' && c <= 'z':
		return 2
	case c >= 'A' && c <= 'Z':
		return 3
	}
	return 0
}

// random says whether a run of characters looks drawn by chance: how often it
// changes between digits, small and capital letters tells that from words, names
// and paths, which hardly do.
func random(run string) bool {
	const least, rate = 20, .3
	if len(run) < least {
		return false
	}
	kinds := [4]int{}
	changes, pairs, last := 0, 0, 0
	for i := range len(run) {
		k := kindOf(run[i])
		kinds[k]++
		if k > 0 && last > 0 {
			pairs++
			if k != last {
				changes++
			}
		}
		last = k
	}
	if kinds[1] == 0 || kinds[1] == 1 && kinds[2]*kinds[3] == 0 || kinds[2]+kinds[3] == 0 {
		return float64(changes) >= 1.5*rate*float64(pairs)
	}
	return pairs >= least-4 && float64(changes) >= rate*float64(pairs)
}
