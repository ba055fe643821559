package learn

import (
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

// bound makes room where all are too large together, in the largest.
func (g graphs) bound() {
	all := 0
	for _, v := range g {
		n, _ := v.Len()
		all += n
	}
	for ; all > maxAllNodes; all-- {
		var largest *graph.Graph
		most := 0
		for _, v := range g {
			if n, _ := v.Len(); n > most {
				largest, most = v, n
			}
		}
		largest.Evict()
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
