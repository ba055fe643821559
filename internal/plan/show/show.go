// Package show writes plans for people: the list of jobs (run -l), the graph of
// what needs what (run -g) and the dry run (run -n). Everything is a pure function
// to an io.Writer; nothing is coloured and nothing asks how wide a terminal is.
//
// What is written comes from files of strangers. Control characters in it are
// escaped, so that no workflow can draw on a terminal.
package show

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Entry is one workflow file of a list.
type Entry struct {
	File     string
	Workflow *workflow.Workflow // nil when it could not be read
	// Triggered says whether the event runs the workflow, and why (not).
	Triggered bool
	Reason    string
	Run       *plan.Run // nil when it could not be planned
	// Diagnostics are shown for a workflow without a plan.
	Diagnostics []workflow.Diagnostic
}

// maxCells is how many cells of one matrix are shown before the rest is counted.
const maxCells = 12

// List writes a table with a line for each job of each workflow.
func List(w io.Writer, entries []Entry) error {
	rows := [][]string{{"Stage", "Job ID", "Job name", "Workflow", "Workflow file", "Events", "Runs"}}
	for _, e := range entries {
		events := ""
		if e.Workflow != nil {
			var names []string
			for _, t := range e.Workflow.On {
				names = append(names, t.Event)
			}
			events = strings.Join(names, ", ")
		}
		if e.Run == nil {
			why := "no: it could not be planned"
			for _, d := range e.Diagnostics {
				if d.Severity == workflow.Error {
					why = "no: " + d.Message
					break
				}
			}
			name := e.File
			if e.Workflow != nil && e.Workflow.Name != "" {
				name = e.Workflow.Name
			}
			rows = append(rows, []string{"-", "-", "-", name, e.File, events, why})
			continue
		}
		outlook := e.Run.Forecast()
		jobs := slices.Clone(e.Run.Jobs)
		slices.SortStableFunc(jobs, func(a, b *plan.Job) int { return outlook[a.Key].Stage - outlook[b.Key].Stage })
		for _, g := range group(jobs) {
			for i, j := range g {
				o := outlook[j.Key]
				runs := o.Will.String()
				if o.Reason != "" {
					runs += ": " + o.Reason
				}
				switch {
				case !e.Triggered:
					runs = "no: " + e.Reason
				case len(j.Refused) > 0 && o.Will != plan.Skips:
					runs = "no, it cannot run here: " + j.Refused[0].Message
				}
				name := j.Name
				if j.Deferred {
					name += " (matrix not known yet)"
				}
				if i == maxCells-1 && len(g) > maxCells {
					rows = append(rows, []string{strconv.Itoa(o.Stage), j.ID, fmt.Sprintf("… and %d more", len(g)-i), e.Run.Workflow, e.Run.File, events, runs})
					break
				}
				rows = append(rows, []string{strconv.Itoa(o.Stage), j.ID, name, e.Run.Workflow, e.Run.File, events, runs})
			}
		}
	}
	return table(w, rows)
}

// group splits jobs into runs of cells of the same job.
func group(jobs []*plan.Job) [][]*plan.Job {
	var order []string
	by := map[string][]*plan.Job{}
	for _, j := range jobs {
		k := strconv.Itoa(j.Call) + " " + j.ID
		if by[k] == nil {
			order = append(order, k)
		}
		by[k] = append(by[k], j)
	}
	out := make([][]*plan.Job, len(order))
	for i, k := range order {
		out[i] = by[k]
	}
	return out
}

// table writes rows in columns two spaces apart.
func table(w io.Writer, rows [][]string) error {
	var widths []int
	for _, row := range rows {
		for i := range row {
			row[i] = Clean(row[i])
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	bw := bufio.NewWriter(w)
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		fmt.Fprintln(bw, strings.TrimRight(line.String(), " "))
	}
	return bw.Flush()
}

// Graph writes the jobs of a run as a tree: each below the need that comes last,
// with its other needs named.
func Graph(w io.Writer, r *plan.Run) error {
	bw := bufio.NewWriter(w)
	fmt.Fprintf(bw, "%s  (%s)\n", Clean(r.Workflow), Clean(r.File))
	g := grapher{w: bw, run: r, outlook: r.Forecast()}
	g.level(0, "")
	return bw.Flush()
}

type grapher struct {
	w       *bufio.Writer
	run     *plan.Run
	outlook map[string]plan.Outlook
}

// level draws one instance of a file.
func (g *grapher) level(call int, indent string) {
	var nodes [][]*plan.Job
	for _, n := range group(g.run.Jobs) {
		if n[0].Call == call {
			nodes = append(nodes, n)
		}
	}
	// The parent of a node is its need of the highest stage, the first of them.
	children := map[string][][]*plan.Job{}
	for _, n := range nodes {
		parent, stage := "", 0
		for _, id := range n[0].Needs {
			for _, m := range nodes {
				if m[0].ID == id && g.outlook[m[0].Key].Stage > stage {
					parent, stage = id, g.outlook[m[0].Key].Stage
				}
			}
		}
		children[parent] = append(children[parent], n)
	}
	g.children(children, "", indent)
}

func (g *grapher) children(children map[string][][]*plan.Job, parent, indent string) {
	list := children[parent]
	for i, n := range list {
		branch, below := "├─ ", "│  "
		if i == len(list)-1 {
			branch, below = "└─ ", "   "
		}
		j := n[0]
		fmt.Fprintf(g.w, "%s%s%s\n", indent, branch, g.label(n, parent))
		rest := children[j.ID]
		for k, cell := range n {
			if cell.Opens == 0 {
				continue
			}
			inner := indent + below + "┊  "
			if len(n) > 1 {
				if k >= maxCells {
					fmt.Fprintf(g.w, "%s… and %d more\n", inner, len(n)-k)
					break
				}
				fmt.Fprintf(g.w, "%s%s\n", inner, Clean(cell.Name))
			}
			g.level(cell.Opens, inner)
		}
		if len(rest) > 0 {
			g.children(children, j.ID, indent+below)
		}
	}
}

func (g *grapher) label(n []*plan.Job, parent string) string {
	j := n[0]
	var b strings.Builder
	b.WriteString(Clean(j.ID))
	var notes []string
	switch {
	case j.Deferred:
		notes = append(notes, "matrix not known yet")
	case len(n) > 1:
		notes = append(notes, fmt.Sprintf("%d jobs", len(n)))
	}
	if j.IsCall() {
		notes = append(notes, "calls "+Clean(j.Definition.Uses))
	}
	var also []string
	for _, id := range j.Needs {
		if id != parent {
			also = append(also, Clean(id))
		}
	}
	if len(also) > 0 {
		notes = append(notes, "also needs "+strings.Join(also, ", "))
	}
	o := g.outlook[j.Key]
	if c := j.Condition(); c != "" && !strings.Contains(o.Reason, c) {
		notes = append(notes, "if "+Clean(oneLine(c)))
	}
	switch o.Will {
	case plan.Skips:
		notes = append(notes, "would be skipped: "+Clean(oneLine(o.Reason)))
	case plan.Depends:
		notes = append(notes, Clean(oneLine(o.Reason)))
	}
	if refused := slices.IndexFunc(n, func(j *plan.Job) bool { return len(j.Refused) > 0 }); refused >= 0 && o.Will != plan.Skips {
		notes = append(notes, "cannot run here: "+Clean(oneLine(n[refused].Refused[0].Message)))
	}
	if len(notes) > 0 {
		b.WriteString("  [" + strings.Join(notes, "; ") + "]")
	}
	return b.String()
}

// DryRun writes the whole plan: for each job what is known of it now, and its
// steps. Cells of one matrix share one list of steps.
func DryRun(w io.Writer, r *plan.Run) error {
	bw := bufio.NewWriter(w)
	p := func(indent int, format string, args ...any) {
		fmt.Fprintf(bw, "%s%s\n", strings.Repeat("  ", indent), Clean(fmt.Sprintf(format, args...)))
	}
	p(0, "Workflow: %s (%s)", r.Workflow, r.File)
	p(0, "Run: %s", r.Name)
	if r.Event != "" {
		event := r.Event
		if r.Action != "" {
			event += " " + r.Action
		}
		if r.Ref != "" {
			event += " on " + r.Ref
		}
		p(0, "Event: %s", event)
	}
	if r.Concurrency != nil {
		p(0, "Concurrency: %s", groupText(r.Concurrency))
	}
	outlook := r.Forecast()
	jobs := slices.Clone(r.Jobs)
	slices.SortStableFunc(jobs, func(a, b *plan.Job) int { return outlook[a.Key].Stage - outlook[b.Key].Stage })
	stage := 0
	for _, g := range group(jobs) {
		j := g[0]
		o := outlook[j.Key]
		if o.Stage != stage {
			stage = o.Stage
			fmt.Fprintln(bw)
			p(0, "Stage %d", stage)
		}
		title := j.Name
		if len(g) > 1 {
			title = fmt.Sprintf("%s: %d jobs", j.ID, len(g))
		}
		p(1, "%s", title)
		switch o.Will {
		case plan.Skips:
			p(2, "skipped: %s", oneLine(o.Reason))
		case plan.Depends:
			p(2, "may run: %s", oneLine(o.Reason))
		}
		for i, cell := range g {
			if i >= maxCells {
				p(2, "… and %d more", len(g)-i)
				break
			}
			if len(g) > 1 {
				p(2, "%s", cell.Name)
			}
			if o.Will != plan.Skips {
				for _, d := range cell.Refused {
					p(2, "cannot run here: %s", oneLine(d.Message))
				}
			}
		}
		c := j.Condition()
		job(p, r, j, len(g) > 1, c != "" && strings.Contains(o.Reason, c))
	}
	return bw.Flush()
}

type printer = func(indent int, format string, args ...any)

// job writes what is known of a job. several says that it stands for all cells
// of its matrix, said that its condition was shown.
func job(p printer, r *plan.Run, j *plan.Job, several, said bool) {
	def := j.Definition
	if c := j.Condition(); c != "" && !said {
		p(2, "if: %s", oneLine(c))
	}
	if len(j.Needs) > 0 {
		p(2, "needs: %s", strings.Join(j.Needs, ", "))
	}
	late := func(key string) bool { return slices.Contains(j.Late, key) }
	if j.Deferred {
		p(2, "matrix: known when %s finished", strings.Join(j.Needs, ", "))
	} else if j.MatrixTotal > 1 {
		p(2, "matrix: %d jobs, at most %d at a time, fail-fast %t", j.MatrixTotal, j.MaxParallel, j.FailFast)
	}
	switch {
	case j.IsCall():
		p(2, "calls: %s", def.Uses)
		if j.Opens > 0 {
			c := r.Calls[j.Opens]
			for k, v := range c.Inputs.AsMap().All() {
				val := oneLine(v.JSON())
				if slices.Contains(c.Waiting, k) {
					val = source(def.With.Get(k))
				}
				p(3, "%s: %s", k, val)
			}
		}
	case late("runs-on"):
		p(2, "runs on: %s", source(def.RunsOn))
	case several && def.RunsOn.HasExpr():
		p(2, "runs on: %s", source(def.RunsOn))
	default:
		on := strings.Join(j.Labels, ", ")
		if j.RunnerGroup != "" {
			on = strings.TrimPrefix(on+" in group "+j.RunnerGroup, " ")
		}
		p(2, "runs on: %s", on)
	}
	switch {
	case late("environment"):
		p(2, "environment: %s", source(def.Environment))
	case j.Environment != nil:
		p(2, "environment: %s", j.Environment.Name)
	}
	switch {
	case late("concurrency"):
		p(2, "concurrency: %s", source(def.Concurrency.Value))
	case j.Concurrency != nil:
		p(2, "concurrency: %s", groupText(j.Concurrency))
	}
	if def.Container != nil {
		p(2, "container: %s", source(def.Container))
	}
	if def.Services != nil {
		p(2, "services: %s", source(def.Services))
	}
	if j.TimeoutMinutes != plan.DefaultTimeoutMinutes && !late("timeout-minutes") {
		p(2, "timeout: %s min", strconv.FormatFloat(j.TimeoutMinutes, 'f', -1, 64))
	}
	if def.Permissions != nil {
		var scopes []string
		for _, s := range j.Permissions.Scopes() {
			scopes = append(scopes, s+": "+j.Permissions[s])
		}
		p(2, "permissions: %s", strings.Join(scopes, ", "))
	}
	if len(def.Steps) > 0 {
		p(2, "steps:")
		steps(p, r, j, def.Steps, 3, several)
	}
}

func steps(p printer, r *plan.Run, j *plan.Job, list []*workflow.Step, indent int, several bool) {
	for i, s := range list {
		name, what := StepName(s), ""
		switch {
		case s.Run != nil:
			what = "run: " + firstLine(source(s.Run))
		case s.Uses != "":
			what = "uses: " + s.Uses
		}
		if s.Background {
			name += " (background)"
		}
		p(indent, "%d. %s", i+1, name)
		if what != "" && s.Name != nil {
			p(indent+1, "%s", what)
		}
		if s.IfSource != "" {
			note := ""
			if known, v := constant(s.If, r, j, several); known {
				note = "   (now known: " + strconv.FormatBool(v) + ")"
			}
			p(indent+1, "if: %s%s", oneLine(s.IfSource), note)
		}
		if len(s.Parallel) > 0 {
			steps(p, r, j, s.Parallel, indent+1, several)
		}
	}
}

// StepName is what a step is called before its name can be evaluated.
func StepName(s *workflow.Step) string {
	switch {
	case s.Name != nil:
		return oneLine(source(s.Name))
	case s.Run != nil:
		return "Run " + firstLine(source(s.Run))
	case s.Uses != "":
		return "Run " + s.Uses
	case len(s.Wait) > 0:
		var ids []string
		for _, n := range s.Wait {
			ids = append(ids, n.ID)
		}
		return "Wait for " + strings.Join(ids, ", ")
	case s.WaitAll:
		return "Wait for all background steps"
	case s.Cancel != nil:
		return "Cancel " + s.Cancel.ID
	case len(s.Parallel) > 0:
		return fmt.Sprintf("%d steps in parallel", len(s.Parallel))
	}
	return s.ID
}

// constant evaluates a step's condition if it hangs on nothing but what the plan
// knows, under the assumption that the steps before it succeed.
func constant(e *expr.Expr, r *plan.Run, j *plan.Job, several bool) (known, v bool) {
	if e == nil || len(j.Late) > 0 || j.Deferred {
		return false, false
	}
	// How the steps before it end is not known.
	known = !slices.ContainsFunc(e.Calls(), func(f string) bool { return f == "hashfiles" || f == "failure" || f == "cancelled" || f == "always" })
	e.Uses(func(context string, _ []string) {
		switch strings.ToLower(context) {
		case "github":
		case "matrix", "strategy":
			known = known && !several
		default:
			known = false
		}
	})
	yes := func([]expr.Value) (expr.Value, error) { return expr.Bool(true), nil }
	if !known {
		return false, false
	}
	out, err := e.Eval(&expr.Env{
		Contexts:  r.Contexts(j, expr.Null()),
		Functions: map[string]expr.Func{"success": yes},
	})
	return err == nil, out.Truthy()
}

func groupText(g *plan.Group) string {
	s := g.Name
	if g.CancelInProgress {
		s += " (cancels what is in progress)"
	}
	if g.Queue == "max" {
		s += " (all wait)"
	}
	return s
}

// source is a template as the author wrote it, roughly: on one line.
func source(v *workflow.Value) string {
	if v == nil {
		return ""
	}
	switch v.Kind {
	case workflow.Expression:
		if s, ok := unformat(v.Str); ok {
			return s
		}
		return "${{ " + v.Str + " }}"
	case workflow.Insert:
		return "${{ insert }}"
	case workflow.Sequence:
		var items []string
		for _, it := range v.Items {
			items = append(items, source(it))
		}
		return strings.Join(items, ", ")
	case workflow.Mapping:
		var pairs []string
		for _, p := range v.Pairs {
			val := source(p.Value)
			if p.Value != nil && p.Value.Kind == workflow.Mapping {
				val = "{" + val + "}"
			}
			pairs = append(pairs, source(p.Key)+": "+val)
		}
		return strings.Join(pairs, ", ")
	}
	return v.Text()
}

// unformat turns the call format('a-{0}', b), which is how text with an
// expression in it is read, back into that text: a-${{ b }}.
func unformat(src string) (string, bool) {
	rest, ok := strings.CutPrefix(src, "format('")
	if !ok || !strings.HasSuffix(rest, ")") {
		return "", false
	}
	rest = rest[:len(rest)-1]
	var text strings.Builder
	for {
		i := strings.IndexByte(rest, '\'')
		if i < 0 {
			return "", false
		}
		text.WriteString(rest[:i])
		rest = rest[i+1:]
		if !strings.HasPrefix(rest, "'") {
			break
		}
		text.WriteByte('\'')
		rest = rest[1:]
	}
	// The arguments, at the commas that are outside of quotes and brackets.
	var args []string
	depth, quoted, start := 0, false, 0
	for i := 0; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '\'':
			quoted = !quoted
		case quoted:
		case c == '(' || c == '[':
			depth++
		case c == ')' || c == ']':
			if depth--; depth < 0 {
				return "", false // format(…) was not the whole
			}
		case c == ',' && depth == 0:
			args = append(args, strings.TrimSpace(rest[start:i]))
			start = i + 1
		}
	}
	args = append(args, strings.TrimSpace(rest[start:]))[1:]
	var out strings.Builder
	for t := text.String(); t != ""; {
		switch {
		case strings.HasPrefix(t, "{{"), strings.HasPrefix(t, "}}"):
			out.WriteByte(t[0])
			t = t[2:]
		case t[0] == '{':
			digits, more, ok := strings.Cut(t[1:], "}")
			n, err := strconv.Atoi(digits)
			if !ok || err != nil || n < 0 || n >= len(args) {
				return "", false
			}
			out.WriteString("${{ " + args[n] + " }}")
			t = more
		default:
			out.WriteByte(t[0])
			t = t[1:]
		}
	}
	return out.String(), true
}

func firstLine(s string) string {
	s = strings.TrimSpace(s)
	line, rest, more := strings.Cut(s, "\n")
	if more && strings.TrimSpace(rest) != "" {
		line = strings.TrimSpace(line) + " …"
	}
	return line
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Clean makes text safe for a terminal: control characters, bidirectional
// overrides and invalid bytes become visible escapes.
func Clean(s string) string {
	bad := func(r rune) bool {
		return r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
	}
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if bad(r) {
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
