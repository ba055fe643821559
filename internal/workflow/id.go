package workflow

import (
	"fmt"
	"strings"
)

const maxID = 100 // characters of a job's or step's id

// ids are the ids of one scope. They compare without regard to case.
type ids struct {
	outer *ids            // the scope around a parallel block: ids given there are taken
	taken map[string]bool // lower-case; true when an author gave the id
	given []string
	next  map[string]int // how often an id was made from a text
}

func (s *ids) has(id string) bool {
	if s.outer != nil && s.outer.has(id) {
		return true
	}
	return s.taken[strings.ToLower(id)]
}

func (s *ids) take(id string, given bool) bool {
	id = strings.ToLower(id)
	if _, ok := s.taken[id]; ok {
		return false
	}
	if s.taken == nil {
		s.taken = map[string]bool{}
	}
	s.taken[id] = given
	return true
}

// add takes an id that an author gave. The result says, in GitHub's words, why it
// is refused.
func (s *ids) add(id string) string {
	switch {
	case id == "" || !validID(id) || len(id) >= maxID:
		return fmt.Sprintf("The identifier '%s' is invalid. IDs may only contain alphanumeric characters, '_', and '-'. IDs must start with a letter or '_' and and must be less than %d characters.", id, maxID)
	case strings.HasPrefix(id, "__"):
		return fmt.Sprintf("The identifier '%s' is invalid. IDs starting with '__' are reserved.", id)
	case s.outer != nil && s.outer.has(id), !s.take(id, true):
		return fmt.Sprintf("The identifier '%s' may not be used more than once within the same scope.", id)
	}
	s.given = append(s.given, id)
	return ""
}

func validID(id string) bool {
	for i, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
		case i > 0 && (c >= '0' && c <= '9' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// generate makes an id from text, with _2, _3, … appended where it is taken.
func (s *ids) generate(text string) string {
	base := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' {
			return c
		}
		return '_'
	}, text)
	folded := strings.ToLower(base)
	if s.next == nil {
		s.next = map[string]int{}
	}
	for n := s.next[folded] + 1; ; n++ {
		s.next[folded] = n
		suffix := ""
		if n > 1 {
			suffix = fmt.Sprintf("_%d", n)
		}
		id := base[:min(len(base), maxID-len(suffix))] + suffix
		if s.take(id, false) {
			return id
		}
	}
}
