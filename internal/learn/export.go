package learn

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
)

// Export is what is known of a repository, or of all, as it is written for others.
// Counters of nodes and edges are as they were last touched: they fade by half in
// thirty days from then.
type Export struct {
	Version    int               `json:"version"`    // 1
	Repository string            `json:"repository"` // "": all
	Nodes      []ExportNode      `json:"nodes"`
	Edges      []ExportEdge      `json:"edges"`
	Signatures []store.Signature `json:"signatures"`
	Lessons    []Lesson          `json:"lessons"`
	Tests      []store.Test      `json:"tests"`
}

// ExportNode is a node of the graph.
type ExportNode struct {
	Repository string  `json:"repository"`
	ID         string  `json:"id"` // unique in its repository
	Kind       string  `json:"kind"`
	Name       string  `json:"name"`
	Text       string  `json:"text,omitempty"`
	OK         float64 `json:"ok"`
	Failed     float64 `json:"failed"`
	Last       int64   `json:"last"` // ms since 1970
}

// ExportEdge is an edge of the graph, from one node to another of its repository.
type ExportEdge struct {
	Repository string  `json:"repository"`
	Source     string  `json:"source"`
	Kind       string  `json:"kind"`
	Target     string  `json:"target"`
	OK         float64 `json:"ok"`
	Failed     float64 `json:"failed"`
	Last       int64   `json:"last"`
}

// maxExported bounds the signatures of one repository in an export; there are no more.
const maxExported = 100_000

// Export collects what is known of a repository; "" as in [Learner.Related].
func (l *Learner) Export(ctx context.Context, repository string) (Export, error) {
	e := Export{Version: 1, Repository: repository, Nodes: []ExportNode{}, Edges: []ExportEdge{}, Signatures: []store.Signature{}, Lessons: []Lesson{},
		Tests: []store.Test{}}
	if l.off() {
		return e, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return e, err
	}
	nodes, edges, err := l.store.Graph(ctx, repository)
	if err != nil {
		return e, fmt.Errorf("learn: %w", err)
	}
	repositories := map[string]bool{repository: repository != ""}
	for _, n := range nodes {
		repositories[n.Repository] = true
		e.Nodes = append(e.Nodes, ExportNode{n.Repository, n.ID, n.Kind, graph.Name(n.ID), n.Text, n.OK, n.Failed, n.Last})
	}
	for _, v := range edges {
		e.Edges = append(e.Edges, ExportEdge{v.Repository, v.Src, v.Kind, v.Dst, v.OK, v.Failed, v.Last})
	}
	for _, repo := range sortedTrue(repositories) {
		list, err := l.store.Signatures(ctx, repo, maxExported)
		if err != nil {
			return e, fmt.Errorf("learn: %w", err)
		}
		e.Signatures = append(e.Signatures, list...)
	}
	lessons, err := l.store.Lessons(ctx, repository, l.opt.Now())
	if err != nil {
		return e, fmt.Errorf("learn: %w", err)
	}
	e.Lessons = append(e.Lessons, lessons...)
	tests, err := l.store.Tests(ctx, repository, false, 1<<30)
	if err != nil {
		return e, fmt.Errorf("learn: %w", err)
	}
	e.Tests = append(e.Tests, tests...)
	return e, nil
}

// JSON writes the export as one object.
func (e *Export) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	return enc.Encode(e)
}

// GraphML writes the graph as GraphML, which yEd, Gephi and NetworkX read. Nodes of
// several repositories stay apart: their ids begin with the repository.
func (e *Export) GraphML(w io.Writer) error {
	b := bufio.NewWriter(w)
	b.WriteString(xml.Header + `<graphml xmlns="http://graphml.graphdrawing.org/xmlns">` + "\n")
	for _, k := range []struct{ id, of, kind string }{
		{"repository", "node", "string"}, {"kind", "node", "string"}, {"name", "node", "string"}, {"text", "node", "string"},
		{"ok", "all", "double"}, {"failed", "all", "double"}, {"last", "all", "long"}, {"relation", "edge", "string"},
	} {
		fmt.Fprintf(b, "<key id=%q for=%q attr.name=%q attr.type=%q/>\n", k.id, k.of, k.id, k.kind)
	}
	b.WriteString(`<graph id="hearth" edgedefault="directed">` + "\n")
	data := func(key, value string) {
		fmt.Fprintf(b, "<data key=%q>", key)
		xml.EscapeText(b, []byte(value)) // a bufio.Writer keeps its error
		b.WriteString("</data>")
	}
	number := func(key string, v float64) { data(key, strconv.FormatFloat(v, 'g', -1, 64)) }
	attr := func(s string) string {
		var a strings.Builder
		xml.EscapeText(&a, []byte(s))
		return a.String()
	}
	known := map[string]bool{}
	for _, n := range e.Nodes {
		id := n.Repository + " " + n.ID
		known[id] = true
		fmt.Fprintf(b, `<node id="%s">`, attr(id))
		data("repository", n.Repository)
		data("kind", n.Kind)
		data("name", n.Name)
		if n.Text != "" {
			data("text", n.Text)
		}
		number("ok", n.OK)
		number("failed", n.Failed)
		data("last", strconv.FormatInt(n.Last, 10))
		b.WriteString("</node>\n")
	}
	for _, v := range e.Edges {
		from, to := v.Repository+" "+v.Source, v.Repository+" "+v.Target
		if !known[from] || !known[to] { // no reader takes such an edge
			continue
		}
		fmt.Fprintf(b, `<edge source="%s" target="%s">`, attr(from), attr(to))
		data("relation", v.Kind)
		number("ok", v.OK)
		number("failed", v.Failed)
		data("last", strconv.FormatInt(v.Last, 10))
		b.WriteString("</edge>\n")
	}
	b.WriteString("</graph>\n</graphml>\n")
	return b.Flush()
}

func sortedTrue(m map[string]bool) (out []string) {
	for k, ok := range m {
		if ok {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}
