package prompt

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// kind says what a token is to the grammar.
type kind uint8

const (
	word    kind = iota // anything without spaces: a word, a path, a flag
	literal             // what stood in quotes
	code                // what stood in backquotes: a command, or a name that is spelt
	punct               // , ; : . ! ? ( ) -> and the end of a line
	bullet              // the mark of a list's item: -, *, 1.
)

// token is a piece of a request. Its place is kept, so that a command is cut out
// of the request as it was written.
type token struct {
	kind       kind
	text       string // as written; of a literal, what is between its quotes
	word       string // lower case, abbreviations spelt out, typing errors mended
	start, end int    // in the request
	mended     bool   // word is not what was written
	fixed      bool   // and the program or subcommand that was meant takes its place in a command
}

// written is a token as a command has it.
func (t token) written() string {
	if t.fixed {
		return t.word
	}
	return t.text
}

// abbreviations are spelt out before the grammar sees them.
var abbreviations = map[string]string{
	"w/": "with", "w/o": "without", "pls": "please", "plz": "please", "&": "and", "n": "and", "'n'": "and", "cuz": "because", "prs": "pr",
	"pull-request": "pr", "pull-requests": "pr", "pull_request": "pr", "pull_requests": "pr", "mr": "pr", "mrs": "pr", "→": "->", "=>": "->",
	"⇒": "->", "–>": "->",
	"–": "-", "—": "-", "--": "--", "dont": "don't", "doesnt": "doesn't", "isnt": "isn't", "lets": "let's", "env.": "env", "dir.": "dir", "min.": "min",
	"time-out": "timeout", "work-flow": "workflow", "workflow_dispatch": "workflow_dispatch", "e2e": "e2e", "artefact": "artifact",
	"artefacts": "artifacts",
	"nodejs":    "node", "node.js": "node", "golang": "go", "py": "python", "python3": "python", "cicd": "ci", "ci/cd": "ci",
	"postgresql": "postgres", "cannot": "can't",
	"utc.": "utc", "a.m": "am", "p.m": "pm", "a.m.": "am", "p.m.": "pm", "gh": "gh", "thx": "thanks", "etc": "etc", "organisation": "organization",
	"yml": "yaml", "whilst": "while", "colour": "color", "ok": "ok", "okay": "ok", "and/or": "or", "repo": "repository", "repos": "repository",
	"dirs":        "directories",
	"succesfully": "successfully", "sucessfully": "successfully", "successfull": "successful", "seperate": "separate",
	"seperately": "separately", "parralel": "parallel", "paralell": "parallel",
	"enviroment": "environment", "enviroments": "environments", "dependancies": "dependencies", "manualy": "manually", "occured": "occurred",
	"untill": "until",
}

var (
	bulletMark   = regexp.MustCompile(`^(?:[-*+•‣·–—]|\(?\d{1,2}[.)]|\(?[a-z]\))$`)
	inlineMark   = regexp.MustCompile(`^\(?[1-9][)]$`)
	slashed      = regexp.MustCompile(`^\d+(?:\.\d+)*(?:/\d+(?:\.\d+)*)+$`)
	versionRange = regexp.MustCompile(`^v?(\d+(?:\.\d+)*)-(\d+(?:\.\d+)*)$`)
	dayRange     = regexp.MustCompile(`^(?i)((?:mon|tue|wed|thu|fri|sat|sun)[a-z]*)-((?:mon|tue|wed|thu|fri|sat|sun)[a-z]*)$`)
	allAlpha     = regexp.MustCompile(`^[a-z']+$`)
	eventPair    = regexp.MustCompile(`(?i)^(push(?:es)?|pr|prs|pull_request|tags?|release|schedule)/(push(?:es)?|prs?|pull_request|pull|tags?|release|manual)$`)
)

// tokenize cuts a request into tokens. Trailing punctuation is a token of its own,
// save where it belongs to a path or a pattern: "./...", ".", "v*".
func tokenize(s string) []token {
	var out []token
	lineStart := true
	emit := func(k kind, start, end int, text string) {
		t := token{kind: k, text: text, word: strings.ToLower(strings.ReplaceAll(text, "’", "'")), start: start, end: end}
		if k == word {
			if a, ok := abbreviations[t.word]; ok {
				t.word = a
			}
		}
		out = append(out, t)
		lineStart = false
	}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\n':
			if len(out) > 0 && out[len(out)-1].text != "\n" {
				emit(punct, i, i+n, "\n")
			}
			lineStart = true
			i += n
			continue
		case unicode.IsSpace(r):
			i += n
			continue
		case r == '`':
			quote := "`"
			if strings.HasPrefix(s[i:], "```") {
				quote = "```"
			}
			if end := strings.Index(s[i+len(quote):], quote); end >= 0 {
				text := s[i+len(quote) : i+len(quote)+end]
				if quote == "```" { // a fence may name its language
					if first, rest, ok := strings.Cut(text, "\n"); ok && allAlpha.MatchString(strings.TrimSpace(first)) {
						text = rest
					}
				}
				emit(code, i, i+2*len(quote)+end, strings.TrimSpace(text))
				i += 2*len(quote) + end
				continue
			}
		case r == '"' || r == '“' || r == '”' || r == '«' || r == '\'' || r == '‘':
			closing := map[rune]string{'"': "\"", '“': "”", '”': "”", '«': "»", '\'': "'", '‘': "’"}[r]
			if end := strings.Index(s[i+n:], closing); end > 0 && !strings.Contains(s[i+n:i+n+end], "\n") && (r != '\'' || closes(s[i+n+end+1:])) {
				emit(literal, i, i+n+end+len(closing), s[i+n:i+n+end])
				i += n + end + len(closing)
				continue
			}
		case r == '(' || r == ',' || r == ';' || r == ')':
			if r != '(' || !inlineMark.MatchString(chunk(s[i:])) {
				emit(punct, i, i+n, string(r))
				i += n
				continue
			}
		}
		c := chunk(s[i:])
		if (lineStart || len(out) > 0 && out[len(out)-1].text == ":") && bulletMark.MatchString(c) || inlineMark.MatchString(c) {
			emit(bullet, i, i+len(c), c)
			i += len(c)
			continue
		}
		body := trimPunct(c)
		if s := strings.ToLower(body); s == "there's" || s == "there’s" {
			emit(word, i, i+len("there"), body[:len("there")])
			out = append(out, token{kind: word, text: body[len("there"):], word: "is", start: i + len("there"), end: i + len(body)})
			i += len(body)
			continue
		}
		if m := slashed.FindStringIndex(body); m != nil { // 18/20/22
			for _, part := range strings.SplitAfter(body, "/") {
				n := strings.TrimSuffix(part, "/")
				emit(word, i, i+len(n), n)
				if i += len(n); len(part) > len(n) {
					emit(word, i, i+1, "/")
					i++
				}
			}
			continue
		}
		if m := dayRange.FindStringSubmatch(body); m != nil { // Mon-Fri
			emit(word, i, i+len(m[1]), m[1])
			emit(punct, i+len(m[1]), i+len(m[1])+1, "-")
			emit(word, i+len(m[1])+1, i+len(body), m[2])
			i += len(body)
			continue
		}
		if m := versionRange.FindStringSubmatch(body); m != nil && (strings.Contains(m[1], ".") && strings.Contains(m[2], ".") ||
			len(out) > 0 && theLexicon().is("language", out[len(out)-1].word)) { // 3.9-3.12
			emit(word, i, i+len(m[1]), m[1])
			emit(word, i+len(m[1]), i+len(m[1])+1, "-")
			emit(word, i+len(m[1])+1, i+len(body), m[2])
			i += len(body)
			continue
		}
		if dotted[strings.ToLower(c)] {
			emit(word, i, i+len(c), strings.TrimSuffix(c, "."))
			i += len(c)
			continue
		}
		if glued := i > 0 && !unicode.IsSpace(rune(s[i-1])) && strings.Trim(c, ".,;:!?") == ""; glued || body == "" {
			body = c[:1]
			if _, n := utf8.DecodeRuneInString(c); n > 1 {
				body = c[:n]
			}
			emit(punct, i, i+len(body), body)
			i += len(body)
			continue
		}
		switch a := abbreviations[strings.ToLower(body)]; {
		case a == "->" || body == "->":
			emit(punct, i, i+len(body), "->")
		case eventPair.MatchString(body):
			m := eventPair.FindStringSubmatchIndex(body)
			emit(word, i+m[2], i+m[3], body[m[2]:m[3]])
			emit(word, i+m[3], i+m[4], "and")
			emit(word, i+m[4], i+m[5], body[m[4]:m[5]])
		default:
			emit(word, i, i+len(body), body)
		}
		i += len(body)
	}
	return out
}

// dotted are abbreviations whose point ends no sentence.
var dotted = set("max. min. approx. incl. resp. vs. etc. e.g. i.e. no.")

// closes says whether a single quote before rest ends something quoted rather
// than being an apostrophe.
func closes(rest string) bool {
	return rest == "" || strings.ContainsAny(rest[:1], " \t\n,.;:!?)")
}

// chunk is what comes before the next space, with quotes inside of it whole:
// --grep="a b".
func chunk(s string) string {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case ' ', '\t', '\n', '\r':
			return s[:i]
		case '$':
			if strings.HasPrefix(s[i:], "${{") {
				if end := strings.Index(s[i:], "}}"); end > 0 {
					i += end + 1
				}
			}
		case '"', '\'':
			if i > 0 && (s[i-1] == '=' || s[i] == '"' && s[i-1] != '(') {
				if end := strings.IndexByte(s[i+1:], s[i]); end >= 0 && !strings.Contains(s[i+1:i+1+end], "\n") {
					i += end + 1
				}
			}
		case ',', ';':
			if i+1 < len(s) && (s[i+1] == ' ' || s[i+1] == '\n' || s[i+1] == '"' || s[i+1] == '`') {
				return s[:i]
			}
		}
	}
	return s
}

// trimPunct takes off a chunk the punctuation that ends a clause.
func trimPunct(c string) string {
	for c != "" {
		switch c[len(c)-1] {
		case ',', ';', ':', '!', '?':
			if c == "!" {
				return ""
			}
			c = c[:len(c)-1]
			continue
		case ')':
			if strings.Count(c, "(") < strings.Count(c, ")") {
				c = c[:len(c)-1]
				continue
			}
		case '.':
			if c != "." && c != ".." && !strings.HasSuffix(c, "/...") && !strings.HasSuffix(c, "/..") && !strings.HasSuffix(c, "/.") && c != "..." {
				c = c[:len(c)-1]
				continue
			}
			if c == "..." {
				return ""
			}
		case '"', '\'':
			if c[len(c)-1] == '"' && strings.Count(c, `"`) == 1 {
				c = c[:len(c)-1]
				continue
			}
		}
		break
	}
	return c
}

// mend corrects typing errors: a word that nobody knows, and that is one slip
// away from exactly one word of the lexicon, is that word. Paths, names in
// capitals, numbers and what is quoted stay as they are.
func mend(ts []token, lex *lexicon) {
	for i := range ts {
		t := &ts[i]
		if i+1 < len(ts) && t.word == "gh" && strings.HasPrefix(ts[i+1].word, "action") {
			t.word = "github"
			continue
		}
		if i+1 < len(ts) && strings.HasPrefix(ts[i+1].word, "request") && t.word != "pull" && sameLetters(t.word[:max(0, len(t.word)-1)]+"l", "pull") {
			t.word, t.mended = "pull", true
			continue
		}
		if t.kind != word || len(t.word) < 3 || !allAlpha.MatchString(t.word) || lex.knows(t.word) || lex.is("idle", t.word) ||
			lex.subs[t.word] || lex.programs[t.text] != nil {
			continue
		}
		if t.text == strings.ToUpper(t.text) {
			continue
		}
		if w := lex.closestProgram(t.word, i > 0 && lex.is("run", ts[i-1].word)); w != "" {
			t.word, t.mended, t.fixed = w, true, true
			continue
		}
		if i > 0 {
			if p := lex.programs[ts[i-1].written()]; p != nil && len(p.subs) > 0 && !p.subs["*"] {
				if w := lex.closestSub(t.word, p); w != "" {
					t.word, t.mended, t.fixed = w, true, true
					continue
				}
			}
		}
		w := lex.closest(t.word)
		if strings.HasSuffix(t.word, "ish") && !strings.HasSuffix(w, "ish") {
			continue
		}
		if w != "" {
			if named := i > 0 && lex.programs[ts[i-1].written()] != nil && lex.programs[ts[i-1].written()].subs["*"] ||
				i > 1 && ts[i-1].word == "run" && lex.programs[ts[i-2].written()] != nil; named {
				// Targets and scripts have names of their own: "make perf". "make chekc" is a slip.
				if t.fixed = purposeWord[w] != "" && sameLetters(t.word, w); !t.fixed {
					continue
				}
			}
			t.word, t.mended = w, true
			if a, ok := abbreviations[w]; ok {
				t.word = a
			}
		}
	}
}
