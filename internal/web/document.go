package web

import (
	"html/template"
	"strings"
	"sync"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/markdown"
)

// maxKept is how many rendered summaries are kept.
const maxKept = 16

// documents keeps the summaries that were rendered last: a run's page is asked for
// again and again, and rendering is the dearest part of it.
type documents struct {
	mu   sync.Mutex
	kept map[string]template.HTML
	last []string // oldest first
}

// html is a step's summary as it may stand in a page.
func (d *documents) html(text string) template.HTML {
	d.mu.Lock()
	out, ok := d.kept[text]
	d.mu.Unlock()
	if ok {
		return out
	}
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	for i, l := range lines {
		lines[i] = board.Clean(l)
	}
	out = markdown.HTML(strings.Join(lines, "\n"))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept == nil {
		d.kept = map[string]template.HTML{}
	}
	if _, ok := d.kept[text]; !ok {
		d.kept[text] = out
		if d.last = append(d.last, text); len(d.last) > maxKept {
			delete(d.kept, d.last[0])
			d.last = d.last[1:]
		}
	}
	return out
}
