package workflow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// conformance finds GitHub's test data, which is no part of the product.
func conformance(t testing.TB, sub string) string {
	t.Helper()
	dir := os.Getenv("HEARTH_CONFORMANCE")
	if dir == "" {
		dir = filepath.Join("..", "shared", "conformance")
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join("..", "..", dir) // from the root of the module
	}
	dir = filepath.Join(dir, sub)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("NOT RUN: no conformance data in %s; set HEARTH_CONFORMANCE to the folder that holds %s/", dir, sub)
	}
	return dir
}

// TestConformanceWorkflows reads GitHub's workflow goldens:
//
//	options --- workflow --- [called file name --- called file]… --- expected JSON
//
// Their `skip` names other implementations, never ours.
func TestConformanceWorkflows(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(conformance(t, "workflows"), "*.y*ml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	passed := 0
	for _, f := range files {
		ok := t.Run(filepath.Base(f), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Base(f), data)
		})
		if ok {
			passed++
		}
	}
	fmt.Printf("workflows: %d of %d\n", passed, len(files))
	if passed < len(files) {
		t.Fail()
	}
}

var separator = regexp.MustCompile(`\r?\n---\r?\n`)

type goldenOptions struct {
	IncludeSource     bool     `yaml:"include-source"`
	Skip              []string `yaml:"skip"`
	MaxResultSize     int      `yaml:"max-result-size"`
	MaxJobLimit       int      `yaml:"max-job-limit"`
	MaxDepth          int      `yaml:"max-depth"`
	MaxFileSize       int      `yaml:"max-file-size"`
	MaxCallDepth      int      `yaml:"max-nested-reusable-workflows-depth"`
	PermissionsPolicy string   `yaml:"permissions-policy"`
	SkipReusable      bool     `yaml:"skip-reusable-workflows"`
	Experimental      any      `yaml:"experimental-features"`
}

func golden(t *testing.T, name string, data []byte) {
	parts := separator.Split(string(data), -1)
	if len(parts) < 3 {
		t.Fatalf("%d parts, want at least 3", len(parts))
	}
	var opts goldenOptions
	if err := yaml.Load([]byte(parts[0]), &opts); err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	dec := json.NewDecoder(strings.NewReader(parts[len(parts)-1]))
	if err := dec.Decode(&want); err != nil {
		t.Fatal(err)
	}
	// Goldens for neither of the two servers hold the stricter checks and the
	// events of GitHub's editor services.
	editor := slices.Contains(opts.Skip, "C#") && slices.Contains(opts.Skip, "Go")
	opt := Options{MaxResultSize: opts.MaxResultSize, MaxJobs: opts.MaxJobLimit, MaxDepth: opts.MaxDepth,
		MaxBytes: opts.MaxFileSize, MaxCallDepth: opts.MaxCallDepth, StrictEvents: editor}
	// Background steps were experimental when the goldens were made.
	opt.listBackground = opts.Experimental != nil
	opt.noBackground = opts.Experimental == nil && !slices.Contains(opts.Skip, "TypeScript")
	if opts.PermissionsPolicy == "LimitedRead" {
		opt.DefaultPermissions = "read"
	}
	file := ".github/workflows/" + name
	w, phases := parse(file, []byte(parts[1]), opt)
	var diags []Diagnostic
	for _, ds := range [][]Diagnostic{phases.schema, phases.meaning, phases.ordering} {
		if diags = errorsOf(ds); len(diags) > 0 {
			break
		}
	}
	if len(diags) == 0 && !opts.SkipReusable {
		load := func(uses string, _ *Workflow) (string, []byte, error) {
			for i := 2; i+1 < len(parts)-1; i += 2 {
				if strings.TrimSpace(parts[i]) == uses {
					return uses, []byte(parts[i+1]), nil
				}
			}
			return "", nil, fmt.Errorf("not in the golden")
		}
		for _, ds := range link(w, load, opt) {
			if diags = errorsOf(ds); len(diags) > 0 {
				break
			}
		}
	}
	got := map[string]any{}
	if len(diags) > 0 {
		var msgs []any
		for _, d := range diags {
			if len(msgs) < 10 { // as many as GitHub reports
				msgs = append(msgs, map[string]any{"Message": d.GitHub()})
			}
		}
		got["errors"] = msgs
	} else {
		g := goldenWriter{source: opts.IncludeSource, link: !opts.SkipReusable}
		got = g.workflow(w, editor)
	}
	got = roundTrip(t, got)
	// Go's reader writes default values that C#'s leaves out, and the other way
	// round; "needs": [] is the only one in the goldens.
	if !reflect.DeepEqual(normal(got), normal(want)) {
		g, _ := json.MarshalIndent(normal(got), "", "  ")
		w, _ := json.MarshalIndent(normal(want), "", "  ")
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

func errorsOf(ds []Diagnostic) []Diagnostic {
	var out []Diagnostic
	for _, d := range ds {
		if d.Severity == Error {
			out = append(out, d)
		}
	}
	return out
}

func roundTrip(t *testing.T, v map[string]any) map[string]any {
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(v); err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(buf.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// normal drops empty lists of needs.
func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			if l, ok := x.([]any); ok && k == "needs" && len(l) == 0 {
				continue
			}
			out[k] = normal(x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = normal(x)
		}
		return out
	}
	return v
}

// goldenWriter writes a Workflow as the goldens do.
type goldenWriter struct{ source, link bool }

type object = map[string]any

func (g goldenWriter) token(v *Value) any {
	if v == nil {
		return nil
	}
	at := func(o object) any {
		if g.source && !v.Pos.IsZero() {
			o["file"], o["line"], o["col"] = 1, v.Pos.Line, v.Pos.Col
		}
		return o
	}
	switch v.Kind {
	case Null:
		if g.source {
			return at(object{"type": 7})
		}
		return nil
	case Bool:
		if g.source {
			return at(object{"type": 5, "bool": v.Bool})
		}
		return v.Bool
	case Number:
		var n any = v.Num
		if math.IsInf(v.Num, 1) {
			n = "Infinity"
		} else if math.IsInf(v.Num, -1) {
			n = "-Infinity"
		} else if math.IsNaN(v.Num) {
			n = "NaN"
		}
		if g.source {
			return at(object{"type": 6, "num": n})
		}
		return n
	case String:
		return g.text(v.Str, v.Pos)
	case Sequence:
		var items []any
		for _, it := range v.Items {
			items = append(items, g.token(it))
		}
		o := object{"type": 1}
		if len(items) > 0 {
			o["seq"] = items
		}
		return at(o)
	case Mapping:
		var pairs []any
		for _, p := range v.Pairs {
			pairs = append(pairs, object{"Key": g.token(p.Key), "Value": g.token(p.Value)})
		}
		o := object{"type": 2}
		if len(pairs) > 0 {
			o["map"] = pairs
		}
		return at(o)
	case Expression:
		return at(object{"type": 3, "expr": v.Str})
	}
	return at(object{"type": 4, "directive": "insert"})
}

func (g goldenWriter) text(s string, p Pos) any {
	if g.source && !p.IsZero() {
		return object{"type": 0, "file": 1, "line": p.Line, "col": p.Col, "lit": s}
	}
	return s
}

func (g goldenWriter) put(o object, k string, v *Value) {
	if v != nil {
		o[k] = g.token(v)
	}
}

func permissionsObject(p *Permissions) object {
	all, extra := scopes()
	o := object{}
	for i, s := range all {
		if l := p.Level(s); l != "none" && (p.All == "" || i < extra) {
			o[s] = l
		}
	}
	return o
}

func (g goldenWriter) workflow(w *Workflow, withEvents bool) object {
	o := object{}
	if g.source {
		o["file-table"] = []any{w.File}
	}
	if w.Permissions != nil {
		o["permissions"] = permissionsObject(w.Permissions)
	}
	g.put(o, "env", w.Env)
	if w.Defaults != nil {
		g.put(o, "defaults", w.Defaults.Value)
	}
	if w.Concurrency != nil {
		g.put(o, "concurrency", w.Concurrency.Value)
	}
	if t := w.Trigger("workflow_dispatch"); t != nil && len(t.Inputs) > 0 && !withEvents {
		types := object{}
		for _, in := range t.Inputs {
			types[in.Name] = in.Type
		}
		o["input-types"] = types
	}
	if withEvents {
		o["events"] = g.events(w)
	}
	o["jobs"] = g.jobs(w, w.Permissions)
	return o
}

func (g goldenWriter) events(w *Workflow) object {
	out := object{}
	for _, t := range w.On {
		e := object{}
		list := func(k string, l []string) {
			if l != nil {
				e[k] = l
			}
		}
		list("types", t.Types)
		list("branches", t.Branches)
		list("branches-ignore", t.BranchesIgnore)
		list("tags", t.Tags)
		list("tags-ignore", t.TagsIgnore)
		list("paths", t.Paths)
		list("paths-ignore", t.PathsIgnore)
		list("workflows", t.Workflows)
		list("names", t.Names)
		list("versions", t.Versions)
		if t.Event == "schedule" {
			var all []any
			for _, s := range t.Cron {
				c := object{"cron": s.Cron}
				if s.Timezone != "" {
					c["timezone"] = s.Timezone
				}
				all = append(all, c)
			}
			out[t.Event] = all
			continue
		}
		if t.Inputs != nil {
			ins := object{}
			for _, in := range t.Inputs {
				given := t.Value.Get("inputs").Get(in.Name)
				i := object{"type": in.Type}
				if given.Get("description") != nil {
					i["description"] = in.Description
				}
				if given.Get("required") != nil {
					i["required"] = in.Required
				}
				if in.Options != nil {
					i["options"] = in.Options
				}
				if in.Default != nil {
					i["default"] = goldenWriter{}.token(in.Default)
				}
				if in.Type == "number" { // not known to the editor services
					delete(i, "type")
					delete(i, "default")
				}
				ins[in.Name] = i
			}
			e["inputs"] = ins
		}
		if t.Secrets != nil {
			secs := object{}
			for _, s := range t.Secrets {
				d := object{}
				if s.Description != "" {
					d["description"] = s.Description
				}
				if t.Value.Get("secrets").Get(s.Name).Get("required") != nil {
					d["required"] = s.Required
				}
				secs[s.Name] = d
			}
			e["secrets"] = secs
		}
		out[t.Event] = e
	}
	return out
}

func (g goldenWriter) jobs(w *Workflow, inherited *Permissions) []any {
	out := []any{}
	for _, j := range w.Jobs {
		out = append(out, g.job(w, j, inherited))
	}
	return out
}

func (g goldenWriter) job(w *Workflow, j *Job, inherited *Permissions) object {
	o := object{"id": g.text(j.ID, j.Pos), "name": g.text(j.ID, j.Pos)}
	if j.Name != nil {
		o["name"] = g.token(j.Name)
	}
	if len(j.Needs) > 0 || j.Uses != "" {
		needs := []any{}
		for _, n := range j.Needs {
			needs = append(needs, g.text(n.ID, n.Pos))
		}
		o["needs"] = needs
	}
	o["if"] = g.condition(j.If.Source(), j.IfPos)
	if j.Concurrency != nil {
		g.put(o, "concurrency", j.Concurrency.Value)
	}
	if j.Strategy != nil {
		g.put(o, "strategy", j.Strategy.Value)
	}
	perms := j.Permissions
	if perms == nil {
		perms = inherited
	}
	if j.Uses != "" {
		o["type"] = "reusableWorkflowJob"
		o["ref"] = g.text(j.Uses, j.UsesPos)
		g.put(o, "input-values", j.With)
		g.put(o, "secret-values", j.Secrets)
		if j.InheritSecrets {
			o["inherit-secrets"] = true
		}
		o["jobs"] = []any{}
		if callee := w.Called[j.Uses]; callee != nil && g.link {
			if t := callee.Trigger("workflow_call"); t != nil {
				g.put(o, "input-definitions", t.Value.Get("inputs"))
				g.put(o, "secret-definitions", t.Value.Get("secrets"))
				g.put(o, "outputs", t.Value.Get("outputs"))
			}
			g.put(o, "env", callee.Env)
			if callee.Defaults != nil {
				g.put(o, "defaults", callee.Defaults.Value)
			}
			if callee.Concurrency != nil {
				g.put(o, "embedded-concurrency", callee.Concurrency.Value)
			}
			if callee.Permissions != nil {
				perms = callee.Permissions
			}
			o["jobs"] = g.jobs(callee, perms)
		}
		if perms != nil {
			o["permissions"] = permissionsObject(perms)
		}
		return o
	}
	o["type"] = "job"
	if perms != nil {
		o["permissions"] = permissionsObject(perms)
	}
	if j.Defaults != nil {
		g.put(o, "defaults", j.Defaults.Value)
	}
	for k, v := range map[string]*Value{
		"runs-on": j.RunsOn, "env": j.Env, "outputs": j.Outputs, "environment": j.Environment,
		"container": j.Container, "services": j.Services, "continue-on-error": j.ContinueOnError,
		"timeout-minutes": j.TimeoutMinutes, "cancel-timeout-minutes": j.CancelTimeoutMinutes, "snapshot": j.Snapshot,
	} {
		g.put(o, k, v)
	}
	if len(j.Steps) > 0 {
		o["steps"] = g.steps(j.Steps)
	}
	return o
}

func (g goldenWriter) condition(src string, p Pos) object {
	o := object{"type": 3, "expr": src}
	if g.source && !p.IsZero() {
		o["file"], o["line"], o["col"] = 1, p.Line, p.Col
	}
	return o
}

func (g goldenWriter) steps(steps []*Step) []any {
	var out []any
	for _, s := range steps {
		o := object{"id": s.ID}
		g.put(o, "name", s.Name)
		if s.Run != nil || s.Uses != "" {
			o["if"] = g.condition(s.If.Source(), s.IfPos)
		}
		if s.Uses != "" {
			o["uses"] = g.text(s.Uses, s.UsesPos)
		}
		for k, v := range map[string]*Value{
			"run": s.Run, "shell": s.Shell, "working-directory": s.WorkingDirectory, "with": s.With, "env": s.Env,
			"continue-on-error": s.ContinueOnError, "timeout-minutes": s.TimeoutMinutes,
		} {
			g.put(o, k, v)
		}
		if s.Background {
			o["background"] = true
		}
		label := func(name string) {
			if s.Name == nil {
				o["name"] = name
			}
		}
		switch {
		case s.Wait != nil:
			var w []any
			for _, n := range s.Wait {
				w = append(w, g.text(n.ID, n.Pos))
			}
			o["wait"] = w
			label("Wait")
		case s.WaitAll:
			o["wait-all"] = true
			label("Wait for all")
		case s.Cancel != nil:
			o["cancel"] = g.text(s.Cancel.ID, s.Cancel.Pos)
			label("Cancel")
		case s.Parallel != nil:
			o["parallel"] = g.steps(s.Parallel)
			label("Parallel group")
		}
		out = append(out, o)
	}
	return out
}
