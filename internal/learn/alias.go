package learn

import (
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/store"
)

// extractorVersion is that of the rules by which a failure's line is found. Whoever
// changes them so that a failure gets another line adds one: what was known under the
// line of before is then found again ([Templates.earlier]). 1 is what was stored before
// versions were; what it took for a line is not known to be different.
const extractorVersion = 2

// renamed gives a failure that has just got a template of its own the id that it had
// with an earlier extractor, if at this place a signature of then has its line in the
// failure's block: a failure that was known is not told as new because it is read
// better. Each id is taken over once; what else had that line is new. The caller holds
// the lock.
func (l *Learner) renamed(tx *store.Learning, repo, where string, sig *Signature) error {
	old := l.templates.earlier(repo, sig.ID, sig.Block)
	if len(old) == 0 {
		return nil
	}
	hits, err := tx.RecentHits(repo, where, 50)
	if err != nil {
		return err
	}
	for _, h := range hits {
		if slices.Contains(old, h.Signature) {
			l.templates.adopt(repo, sig.ID, h.Signature)
			sig.ID = h.Signature
			return nil
		}
	}
	return nil
}

// earlier are the ids of a repository's templates of earlier extractors that one of
// these masked lines belongs to, unless id is not new.
func (t *Templates) earlier(repo, id string, masked []string) (ids []string) {
	if v := t.byID[recordKey(repo, id)]; v == nil || !v.fresh {
		return nil
	}
	lines := map[string][][]string{} // by group
	for _, l := range masked {
		tokens := strings.Fields(l)
		tokens = tokens[:min(len(tokens), 60)]
		g := drainGroup(tokens)
		lines[g] = append(lines[g], tokens)
	}
	for _, v := range t.byID {
		if v.repo != repo || v.version >= extractorVersion {
			continue
		}
		for _, tokens := range lines[drainGroup(v.tokens)] {
			if fits(v.tokens, tokens) {
				ids = append(ids, v.id)
				break
			}
		}
	}
	return ids
}

// fits reports whether a line is one of a template's, word by word.
func fits(template, tokens []string) bool {
	words := 0
	for i, w := range template {
		if w != anything && w != tokens[i] {
			return false
		}
		if w != anything {
			words++
		}
	}
	return words > 0
}

// adopt gives a template the id of an earlier one, which it replaces.
func (t *Templates) adopt(repo, id, earlier string) {
	v := t.byID[recordKey(repo, id)]
	t.remove(recordKey(repo, id))
	t.remove(recordKey(repo, earlier))
	v.id = earlier
	t.add(v)
	t.dirty[recordKey(repo, earlier)] = struct{}{}
}
