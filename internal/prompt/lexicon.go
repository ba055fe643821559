package prompt

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hearth-ci/hearth/internal/workflow"
)

//go:embed lexicon.txt
var lexiconText string

// lexicon is what single words mean: lexicon.txt, read.
type lexicon struct {
	categories map[string]map[string]bool // category → its words
	words      map[string]bool            // every word of every category and of the grammar
	sorted     []string                   // words, for mending
	programs   map[string]*program
	subs       map[string]bool // words that follow programs
	languages  []*language
	tools      []*tool
	actions    map[string][]string // word of a request → actions that it allows a model to use
}

// program is a name that begins commands.
type program struct {
	name string
	// pkg is the Debian package that has it; "" is that the default image has it,
	// "-" that Debian has none.
	pkg  string
	subs map[string]bool // known first words behind it; "*" takes any
}

// language is something that comes in versions.
type language struct {
	name, setup, key string
	words            []string
	with             [][2]string
}

// tool is how people's purposes are done with something.
type tool struct {
	name, language string
	words          []string
	does           map[string]string // purpose → command
}

var theLexicon = sync.OnceValue(func() *lexicon {
	l, err := readLexicon(lexiconText)
	if err != nil {
		panic("lexicon.txt: " + err.Error()) // it is compiled in, and tests read it
	}
	return l
})

func readLexicon(text string) (*lexicon, error) {
	l := &lexicon{categories: map[string]map[string]bool{}, words: map[string]bool{}, programs: map[string]*program{}, subs: map[string]bool{},
		actions: map[string][]string{}}
	section, n := "", 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		switch section {
		case "[words]":
			name, words, ok := strings.Cut(line, ":")
			if !ok {
				return nil, fmt.Errorf("line %d: a category without words", n)
			}
			if l.categories[name] == nil {
				l.categories[name] = map[string]bool{}
			}
			for w := range strings.FieldsSeq(words) {
				w = strings.TrimSuffix(w, "?")
				l.categories[name][w] = true
				if name != "idle" { // they are names of things as well
					l.words[w] = true
				}
			}
		case "[programs]":
			head, subs, _ := strings.Cut(line, " :")
			f := strings.Fields(head)
			p := &program{name: f[0], subs: map[string]bool{}}
			if len(f) > 1 && f[1] != "*" {
				p.pkg = f[1]
			}
			for s := range strings.FieldsSeq(subs) {
				p.subs[s] = true
				l.subs[s] = true
			}
			l.programs[p.name] = p
		case "[languages]":
			f := fields(line)
			if len(f) < 4 {
				return nil, fmt.Errorf("line %d: a language has a name, words, an action and its input", n)
			}
			lang := &language{name: f[0], words: strings.Fields(f[1]), setup: f[2], key: f[3]}
			for _, w := range f[4:] {
				k, v, _ := strings.Cut(w, "=")
				lang.with = append(lang.with, [2]string{k, v})
			}
			l.languages = append(l.languages, lang)
			l.add("language", lang.words)
		case "[tools]":
			f := fields(line)
			if len(f) < 4 {
				return nil, fmt.Errorf("line %d: a tool has a name, words, a language and what it does", n)
			}
			t := &tool{name: f[0], words: strings.Fields(f[1]), language: f[2], does: map[string]string{}}
			for _, w := range f[3:] {
				k, v, _ := strings.Cut(w, "=")
				t.does[k] = v
			}
			l.tools = append(l.tools, t)
			l.add("tool", t.words)
		case "[actions]":
			f := fields(line)
			if len(f) != 2 {
				return nil, fmt.Errorf("line %d: a word and the actions that it allows", n)
			}
			l.actions[f[0]] = append(l.actions[f[0]], strings.Fields(f[1])...)
		default:
			return nil, fmt.Errorf("line %d: no section", n)
		}
	}
	return l, nil
}

func (l *lexicon) add(category string, words []string) {
	if l.categories[category] == nil {
		l.categories[category] = map[string]bool{}
	}
	for _, w := range words {
		l.categories[category][w] = true
		l.words[w] = true
	}
}

func fields(line string) []string {
	f := strings.Split(line, ";")
	for i := range f {
		f[i] = strings.TrimSpace(f[i])
	}
	return f
}

func (l *lexicon) is(category, word string) bool { return l.categories[category][word] }

// knows says whether a word is one of the grammar's.
func (l *lexicon) knows(word string) bool { return l.words[word] }

// english says whether a word is one of the sentence's rather than a name: of the
// words that the grammar knows, names of programs are not.
func (l *lexicon) english(word string) bool {
	return l.words[word] && (l.programs[word] == nil || english[word] || word == "go" || word == "make")
}

// closest is the one word of the lexicon that w is a slip away from, or two in
// a long word; "" if there is none or more than one.
func (l *lexicon) closest(w string) string {
	if l.sorted == nil {
		for word := range l.words {
			if len(word) >= 3 && allAlpha.MatchString(word) {
				l.sorted = append(l.sorted, word)
			}
		}
		slices.Sort(l.sorted)
	}
	most := 1
	if len(w) >= 8 {
		most = 2
	}
	best, found, common := most+1, "", false
	for _, word := range l.sorted {
		d := len(w) - len(word)
		if word == "than" || d > most || -d > most || len(w) <= 3 && !l.is("stop", word) && !l.is("run", word) && !(len(word) > 3 &&
			word[0] == w[0] && within(w, word)) {
			continue
		}
		if len(w) <= 3 && !sameLetters(w, word) && !within(w, word) && !within(word, w) {
			continue // too short for a letter to be another one
		}
		switch d := workflow.Distance(w, word); {
		case d < best:
			best, found, common = d, word, l.is("stop", word)
		case d == best && found != "":
			// A word of the grammar's own beats a word that is merely English; a swap of
			// neighbours beats other slips.
			switch a, b := rank(w, found, common), rank(w, word, l.is("stop", word)); {
			case b > a:
				found, common = word, l.is("stop", word)
			case a == b && strings.TrimSuffix(word, "s") != strings.TrimSuffix(found, "s"):
				found = ""
			}
		}
	}
	if best > most {
		return ""
	}
	return found
}

// closestProgram is the one program that w is a slip away from, if w is no slip
// of a word of the sentence that is as near.
func (l *lexicon) closestProgram(w string, said bool) string {
	if len(w) < 4 || !said && len(w) < 5 {
		return ""
	}
	found := ""
	for name := range l.programs {
		if len(name) < 4 || english[name] || workflow.Distance(w, name) != 1 {
			continue
		}
		if found != "" {
			return ""
		}
		found = name
	}
	if other := l.closest(w); found != "" && other != "" && other != found {
		return ""
	}
	return found
}

// closestSub is the one word that a program knows that w is a slip away from.
func (l *lexicon) closestSub(w string, p *program) string {
	found := ""
	for s := range p.subs {
		if len(s) >= 4 && workflow.Distance(w, s) == 1 {
			if found != "" {
				return ""
			}
			found = s
		}
	}
	return found
}

func rank(w, candidate string, stop bool) int {
	r := 0
	if sameLetters(w, candidate) {
		r += 2
	}
	if w[0] == candidate[0] {
		r += 2
	}
	if within(w, candidate) {
		r++
	}
	if stop {
		r++
	}
	return r
}

// within says whether b is a with letters added.
func within(a, b string) bool {
	i := 0
	for j := 0; j < len(b) && i < len(a); j++ {
		if a[i] == b[j] {
			i++
		}
	}
	return i == len(a)
}

func sameLetters(a, b string) bool {
	x, y := []byte(a), []byte(b)
	slices.Sort(x)
	slices.Sort(y)
	return string(x) == string(y)
}

// toolNamed finds a tool by a word for it, program names included.
func (l *lexicon) toolNamed(w string) *tool {
	for _, t := range l.tools {
		if slices.Contains(t.words, w) {
			return t
		}
	}
	return nil
}

func (l *lexicon) languageNamed(w string) *language {
	for _, x := range l.languages {
		if x.name == w || slices.Contains(x.words, w) {
			return x
		}
	}
	return nil
}

// toolOf is the tool that a command is of: npm for "npm ci".
func (l *lexicon) toolOf(command string) *tool {
	first, rest, _ := strings.Cut(command, " ")
	first = first[strings.LastIndexByte(first, '/')+1:]
	switch first {
	case "npx", "node":
		first = "npm"
	case "python3", "pip3":
		first = "python"
	case "mvnw":
		first = "mvn"
	case "docker":
		if strings.HasPrefix(rest, "compose") {
			return nil
		}
	}
	return l.toolNamed(first)
}
