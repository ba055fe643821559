package workflow

import (
	"slices"
	"strings"
)

// Keys are the keys that a workflow file may have, as paths in order: "jobs.*.steps[].run",
// where * stands for a name of the author's and [] for an element of a list. Those of
// one event are under it: "on.push.branches".
func Keys() []string {
	all := map[string]bool{}
	walkDefs(workflowSchema.root, "", map[*def]bool{}, func(path string, _ *def) { all[path] = true })
	return sorted(all)
}

// Allowed are the contexts and functions that some key of a workflow file may use beside
// the functions that may be called everywhere, without their arities.
func Allowed() []string {
	all := map[string]bool{}
	walkDefs(workflowSchema.root, "", map[*def]bool{}, func(_ string, d *def) {
		for _, name := range d.allowed {
			name, _, _ = strings.Cut(name, "(")
			all[name] = true
		}
	})
	return sorted(all)
}

// walkDefs calls fn with each definition at its path.
func walkDefs(d *def, path string, above map[*def]bool, fn func(path string, d *def)) {
	if d == nil || above[d] {
		return
	}
	above[d] = true
	defer delete(above, d)
	if path != "" {
		fn(path, d)
	}
	below := func(name string) string { return strings.TrimPrefix(path+"."+name, ".") }
	switch d.kind {
	case defOneOf:
		for _, o := range d.oneOf {
			walkDefs(o, path, above, fn)
		}
	case defSequence:
		if d.item != nil && len(d.item.ofKind(defMapping)) > 0 {
			walkDefs(d.item, path+"[]", above, fn)
		}
	case defMapping:
		for _, p := range d.props {
			walkDefs(p.def, below(p.name), above, fn)
		}
		if d.looseVal != nil {
			walkDefs(d.looseVal, below("*"), above, fn)
		}
	}
}

func sorted(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for s := range set {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}
