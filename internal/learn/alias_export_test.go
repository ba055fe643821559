package learn

import "testing"

// AgeTemplates makes the templates that a learner knows those of an earlier extractor.
func AgeTemplates(t *testing.T, l *Learner) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.templates.byID {
		v.version, v.fresh = 0, false
	}
}
