package learn

import (
	"slices"

	"github.com/hearth-ci/hearth/internal/graph"
)

// graphs is a knowledge graph for each repository: what commands, jobs, failures
// and fixes are called in one is told to nobody who asks about another.
type graphs map[string]*graph.Graph

// How large graphs grow: each, and all together.
const (
	maxNodes    = 20_000
	maxEdges    = 150_000
	maxAllNodes = 100_000
)

// of is a repository's graph, made if need be.
func (g graphs) of(repo string) *graph.Graph {
	v := g[repo]
	if v == nil {
		v = graph.New(graph.Limits{Nodes: maxNodes, Edges: maxEdges})
		v.Track()
		g[repo] = v
	}
	return v
}

// bound makes room where all are too large together, in the largest: down to the size
// above which none is then.
func (g graphs) bound() {
	all := 0
	for _, v := range g {
		n, _ := v.Len()
		all += n
	}
	if all <= maxAllNodes {
		return
	}
	list := make([]*graph.Graph, 0, len(g))
	for _, v := range g {
		list = append(list, v)
	}
	size := func(v *graph.Graph) int { n, _ := v.Len(); return n }
	slices.SortFunc(list, func(a, b *graph.Graph) int { return size(b) - size(a) })
	over, together := all-maxAllNodes, 0
	for n, v := range list {
		together += size(v)
		next := 0
		if n+1 < len(list) {
			next = size(list[n+1])
		}
		// Brought down to the size of the next one, do the first ones give enough?
		if together-(n+1)*next < over {
			continue
		}
		level := (together - over) / (n + 1)
		for _, v := range list[:n+1] {
			for over > 0 && size(v) > level {
				v.Evict()
				over--
			}
		}
		return
	}
}

// ask answers from one repository's graph, or with "" from all of them as one.
func (g graphs) ask(repo string, now int64) *graph.Graph {
	if repo != "" {
		if v := g[repo]; v != nil {
			return v
		}
		return graph.New(graph.Limits{})
	}
	all := graph.New(graph.Limits{})
	for _, v := range g {
		all.Merge(v, now)
	}
	return all
}
