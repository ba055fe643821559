package engine

import (
	"maps"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// vars is a set of environment variables in order of their first appearance.
// The zero value is empty.
type vars struct {
	keys []string
	m    map[string]string
}

func (v *vars) set(key, value string) {
	if v.m == nil {
		v.m = map[string]string{}
	}
	if _, ok := v.m[key]; !ok {
		v.keys = append(v.keys, key)
	}
	v.m[key] = value
}

func (v *vars) get(key string) string { return v.m[key] }

func (v *vars) has(key string) bool { _, ok := v.m[key]; return ok }

func (v *vars) add(o vars) {
	for _, k := range o.keys {
		v.set(k, o.m[k])
	}
}

func (v *vars) clone() vars {
	return vars{slices.Clone(v.keys), maps.Clone(v.m)}
}

// context is the env context: names are case-sensitive on Linux.
func (v *vars) context() expr.Value {
	m := expr.NewCaseSensitiveMap()
	for _, k := range v.keys {
		m.Set(k, expr.String(v.m[k]))
	}
	return expr.Object(m)
}

// list is the form that processes take. Names that no process can have, and
// values with a zero byte, are dropped.
func (v *vars) list() []string {
	out := make([]string, 0, len(v.keys))
	for _, k := range v.keys {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v.m[k], "\x00") {
			continue
		}
		out = append(out, k+"="+v.m[k])
	}
	return out
}

// evalVars evaluates an env block. Names are case-sensitive, so it does not go
// through a mapping of expr, whose are not.
func evalVars(v *workflow.Value, env *expr.Env) (vars, error) {
	var out vars
	if v == nil {
		return out, nil
	}
	if v.Kind != workflow.Mapping {
		val, err := v.Eval(env)
		if err != nil {
			return out, err
		}
		if m := val.AsMap(); m != nil {
			for k, x := range m.All() {
				out.set(k, x.ToString())
			}
		}
		return out, nil
	}
	for _, p := range v.Pairs {
		if p.Key.Kind == workflow.Insert {
			val, err := p.Value.Eval(env)
			if err != nil {
				return out, err
			}
			if m := val.AsMap(); m != nil {
				for k, x := range m.All() {
					out.set(k, x.ToString())
				}
			}
			continue
		}
		key, err := p.Key.EvalString(env)
		if err != nil {
			return out, err
		}
		val, err := p.Value.EvalString(env)
		if err != nil {
			return out, err
		}
		out.set(key, val)
	}
	return out, nil
}
