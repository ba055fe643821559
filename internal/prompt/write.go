package prompt

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// yamlText is a YAML file in the making.
type yamlText struct{ strings.Builder }

func (y *yamlText) line(indent int, format string, args ...any) {
	y.WriteString(strings.Repeat("  ", indent))
	fmt.Fprintf(y, format, args...)
	y.WriteByte('\n')
}

// pair writes "key: value", a value of several lines as a block.
func (y *yamlText) pair(indent int, key, value string) {
	if !strings.Contains(value, "\n") {
		y.line(indent, "%s: %s", key, scalar(value))
		return
	}
	y.line(indent, "%s: |", key)
	for l := range strings.SplitSeq(strings.TrimRight(value, "\n"), "\n") {
		if l == "" {
			y.WriteByte('\n')
			continue
		}
		// In a step's first line, "- run: |", the key stands two columns further right.
		y.line(indent+1+strings.Count(key, "- "), "%s", l)
	}
}

func (y *yamlText) pairs(indent int, key string, list [][2]string) {
	if len(list) == 0 {
		return
	}
	y.line(indent, "%s:", key)
	for _, kv := range list {
		y.pair(indent+1, kv[0], kv[1])
	}
}

func (y *yamlText) list(indent int, key string, values []string) {
	if len(values) == 0 {
		return
	}
	y.line(indent, "%s:", key)
	for _, v := range values {
		y.line(indent+1, "- %s", scalar(v))
	}
}

// write lays the workflow out as a person would.
func (p *plan) write() string {
	var y yamlText
	for l := range strings.Lines(p.request) {
		y.line(0, "# %s", strings.TrimSpace(l))
	}
	y.line(0, "name: %s", scalar(p.title()))
	p.writeOn(&y)
	if p.readOnly && len(p.perms) == 0 {
		y.line(0, "permissions: read-all")
	}
	if len(p.perms) == 1 && p.perms[0][0] == "" {
		y.line(0, "permissions: {}")
	} else {
		y.pairs(0, "permissions", p.perms)
	}
	env := p.sharedEnv()
	y.pairs(0, "env", env)
	if p.group != nil {
		y.line(0, "concurrency:")
		y.line(1, "group: %s", scalar(p.group.group))
		y.line(1, "cancel-in-progress: %v", p.group.cancel)
	}
	y.line(0, "jobs:")
	for _, j := range p.jobs {
		p.writeJob(&y, j)
	}
	return y.String()
}

func (p *plan) writeOn(y *yamlText) {
	t := &p.on
	y.line(0, "on:")
	for _, e := range t.events {
		switch e {
		case "schedule":
			y.line(1, "schedule:")
			for i, c := range t.crons {
				if !slices.Contains(t.crons[:i], c) {
					y.line(2, "- cron: %s", scalar(c))
				}
			}
			continue
		case "workflow_run":
			y.line(1, "workflow_run:")
			y.list(2, "workflows", t.runs)
			y.list(2, "types", []string{"completed"})
			y.list(2, "branches", t.runOn)
			continue
		}
		y.line(1, "%s:", e)
		y.list(2, "types", t.types[e])
		y.list(2, "branches", t.branches[e])
		if len(t.branches[e]) == 0 {
			y.list(2, "branches-ignore", t.ignored[e])
		}
		if e == "push" {
			y.list(2, "tags", t.tags)
		}
		if e == "push" || e == "pull_request" {
			y.list(2, "paths", t.paths)
			y.list(2, "paths-ignore", t.notPaths)
		}
		if (e == "workflow_dispatch" || e == "workflow_call") && len(p.inputs) > 0 {
			y.line(2, "inputs:")
			for _, i := range p.inputs {
				y.line(3, "%s:", i.name)
				if i.about != "" {
					y.pair(4, "description", i.about)
				}
				if i.required {
					y.line(4, "required: true")
				}
				kind := i.kind
				if kind == "" {
					kind = "string"
				}
				if e == "workflow_call" && kind == "choice" {
					kind = "string"
				}
				y.line(4, "type: %s", kind)
				if kind == "choice" {
					y.list(4, "options", i.options)
				}
				switch {
				case i.deflt == "":
				case kind == "boolean" || kind == "number":
					y.line(4, "default: %s", i.deflt)
				default:
					y.line(4, "default: %s", scalar(i.deflt))
				}
			}
		}
	}
}

// sharedEnv takes variables that all steps have out of the steps; secrets stay
// with the steps that were given them.
func (p *plan) sharedEnv() [][2]string {
	var runs []*step
	for _, j := range p.jobs {
		for _, s := range j.steps {
			if s.uses == "" && !s.notify {
				runs = append(runs, s)
			}
		}
	}
	if len(runs) < 2 {
		return nil
	}
	var shared [][2]string
	for _, kv := range runs[0].env {
		if strings.Contains(kv[1], "secrets.") {
			continue
		}
		if !slices.ContainsFunc(runs, func(s *step) bool { return !slices.Contains(s.env, kv) }) {
			shared = append(shared, kv)
		}
	}
	for _, s := range runs {
		s.env = slices.DeleteFunc(s.env, func(kv [2]string) bool { return slices.Contains(shared, kv) })
	}
	return shared
}

// condition joins conditions; one that begins with ! has to be an expression.
func condition(status string, conds []string) string {
	all := slices.Clone(conds)
	if status != "" {
		all = append([]string{status + "()"}, all...)
	}
	s := strings.Join(all, " && ")
	if strings.HasPrefix(s, "!") {
		return "${{ " + s + " }}"
	}
	return s
}

// runsOn is the YAML of one label, or of a list of them.
func runsOn(os string) string {
	if strings.HasPrefix(os, "[") {
		return os
	}
	return scalar(os)
}

func (p *plan) writeJob(y *yamlText, j *job) {
	y.line(1, "%s:", j.id)
	if len(j.needs) > 0 {
		var ids []string
		for _, n := range j.needs {
			ids = append(ids, n.id)
		}
		if len(ids) == 1 {
			y.line(2, "needs: %s", ids[0])
		} else {
			y.line(2, "needs: [%s]", strings.Join(ids, ", "))
		}
	}
	if c := condition(j.status, j.conds); c != "" {
		y.line(2, "if: %s", scalar(c))
	}
	switch {
	case len(j.os) > 1:
		y.line(2, "runs-on: ${{ matrix.os }}")
	case len(j.os) == 1:
		y.line(2, "runs-on: %s", runsOn(j.os[0]))
	default:
		y.line(2, "runs-on: ubuntu-latest")
	}
	if j.timeout != "" {
		y.line(2, "timeout-minutes: %s", j.timeout)
	}
	if j.environment != "" {
		y.line(2, "environment: %s", scalar(j.environment))
	}
	y.pairs(2, "permissions", j.permissions)
	if j.container != "" {
		y.line(2, "container: %s", scalar(j.container))
	}
	j.writeServices(y)
	j.writeMatrix(y)
	shell, dir := p.shell, ""
	runs := 0
	for _, s := range j.steps {
		if s.uses != "" {
			continue
		}
		runs++
		if runs == 1 {
			dir = s.dir
			if shell == "" {
				shell = s.shell
			}
		}
		if s.dir != dir {
			dir = ""
		}
		if s.shell != shell && p.shell == "" {
			shell = ""
		}
	}
	if runs < 2 {
		dir = ""
		if p.shell == "" {
			shell = ""
		}
	}
	if shell != "" || dir != "" {
		y.line(2, "defaults:")
		y.line(3, "run:")
		if shell != "" {
			y.line(4, "shell: %s", scalar(shell))
		}
		if dir != "" {
			y.line(4, "working-directory: %s", scalar(dir))
		}
	}
	y.line(2, "steps:")
	if slices.ContainsFunc(j.steps, func(s *step) bool { return !s.notify }) { // to post a message takes no sources
		y.line(3, "- uses: actions/checkout@v4")
		y.pairs(4, "with", j.checkout)
	}
	var otp *version // elixir's action sets erlang up as well
	if slices.ContainsFunc(j.versions, func(v *version) bool { return v.lang.name == "elixir" }) {
		for _, v := range j.versions {
			if v.lang.name == "erlang" {
				otp = v
			}
		}
	}
	for _, v := range j.versions {
		if v != otp {
			v.write(y, otp)
		}
	}
	for _, s := range j.steps {
		s.write(y, j, shell, dir)
	}
}

func (j *job) writeServices(y *yamlText) {
	if len(j.services) == 0 {
		return
	}
	y.line(2, "services:")
	taken := map[string]int{}
	for _, s := range j.services {
		name := strings.Trim(notID.ReplaceAllString(strings.ToLower(s.name), "-"), "-")
		if taken[name]++; taken[name] > 1 {
			name += "-" + strconv.Itoa(taken[name])
		}
		y.line(3, "%s:", name)
		y.line(4, "image: %s", scalar(s.image))
		y.pairs(4, "env", s.env)
		if len(s.ports) > 0 {
			y.line(4, "ports:")
			for _, p := range s.ports {
				y.line(5, "- '%s'", p)
			}
		}
		if s.health != "" {
			y.line(4, "options: --health-cmd \"%s\" --health-interval 5s --health-timeout 5s --health-retries 10", s.health)
		}
	}
}

func (j *job) writeMatrix(y *yamlText) {
	if !j.several() {
		return
	}
	quoted := func(values []string) string {
		var out []string
		for _, v := range values {
			out = append(out, "'"+strings.ReplaceAll(v, "'", "''")+"'")
		}
		return strings.Join(out, ", ")
	}
	var may []string
	for _, t := range j.tolerable {
		may = append(may, "matrix."+t[0]+" == "+exprString(t[1]))
	}
	if len(may) > 0 {
		y.line(2, "continue-on-error: ${{ %s }}", strings.Join(may, " || "))
	}
	y.line(2, "strategy:")
	if j.noFailFast {
		y.line(3, "fail-fast: false")
	}
	if j.maxParallel != "" {
		y.line(3, "max-parallel: %s", j.maxParallel)
	}
	y.line(3, "matrix:")
	if len(j.os) > 1 {
		y.line(4, "os: [%s]", strings.Join(j.os, ", "))
	}
	for _, v := range j.versions {
		if len(v.values) > 1 {
			y.line(4, "%s: [%s]", v.lang.key, quoted(v.values))
		}
	}
	for _, a := range j.axes {
		y.line(4, "%s: [%s]", a.key, quoted(a.values))
	}
	if len(j.excludes) > 0 {
		y.line(4, "exclude:")
		for _, e := range j.excludes {
			y.line(5, "- %s: %s", e[0][0], e[0][1])
			y.line(6, "%s: '%s'", e[1][0], e[1][1])
		}
	}
}

// write sets a language up.
func (v *version) write(y *yamlText, otp *version) {
	value := v.value()
	if v.lang.setup == "rustup" {
		value = strings.Trim(value, "'")
		y.line(3, "- run: rustup toolchain install %s --profile minimal --component clippy,rustfmt && rustup default %s", value, value)
		return
	}
	y.line(3, "- uses: %s", v.lang.setup)
	y.line(4, "with:")
	y.line(5, "%s: %s", v.lang.key, value)
	for _, kv := range v.lang.with {
		if otp != nil && kv[0] == otp.lang.key {
			y.line(5, "%s: %s", kv[0], otp.value())
			continue
		}
		y.line(5, "%s: %s", kv[0], scalar(kv[1]))
	}
}

// value is the version as an action is given it.
func (v *version) value() string {
	if len(v.values) > 1 {
		return "${{ matrix." + v.lang.key + " }}"
	}
	return scalarVersion(v.values[0])
}

func scalarVersion(v string) string { return "'" + strings.ReplaceAll(v, "'", "''") + "'" }

var simpleCommand = regexp.MustCompile(`^[^&|;<>()\n]+$`)

func (s *step) write(y *yamlText, j *job, shell, dir string) {
	first := true
	put := func(format string, args ...any) {
		lead := "  "
		if first {
			lead = "- "
		}
		first = false
		y.WriteString(strings.Repeat("  ", 3) + lead)
		fmt.Fprintf(y, format, args...)
		y.WriteByte('\n')
	}
	if s.uses != "" || s.notify {
		put("name: %s", scalar(s.name))
	}
	if s.id != "" {
		put("id: %s", s.id)
	}
	if c := condition(s.status, s.conds); c != "" && (s.uses != "" || s.notify) {
		put("if: %s", scalar(c))
	}
	if s.uses != "" {
		put("uses: %s", s.uses)
	} else {
		run := s.command
		if s.seconds > 0 && simpleCommand.MatchString(run) {
			run = fmt.Sprintf("timeout %d %s", s.seconds, run)
		}
		if s.tries > 1 {
			run = retrying(run, s.tries, s.pause)
		}
		if strings.Contains(run, "\n") {
			put("run: |")
			for l := range strings.SplitSeq(strings.TrimRight(run, "\n"), "\n") {
				y.line(5, "%s", l)
			}
		} else {
			put("run: %s", scalar(run))
		}
	}
	if c := condition(s.status, s.conds); c != "" && s.uses == "" && !s.notify {
		put("if: %s", scalar(c))
	}
	if s.tolerate {
		put("continue-on-error: true")
	}
	if s.minutes > 0 && s.uses == "" {
		put("timeout-minutes: %d", s.minutes)
	}
	if s.seconds > 0 && !simpleCommand.MatchString(s.command) {
		put("timeout-minutes: %.2f", float64(s.seconds)/60)
	}
	if s.shell != "" && s.shell != shell && s.uses == "" {
		put("shell: %s", scalar(s.shell))
	}
	if s.dir != "" && s.dir != dir && s.uses == "" {
		put("working-directory: %s", scalar(s.dir))
	}
	env := s.env
	for _, a := range j.axes {
		if a.env != "" && s.uses == "" {
			env = append(slices.Clone(env), [2]string{a.env, "${{ matrix." + a.key + " }}"})
		}
	}
	if s.uses == "" {
		y.pairs(4, "env", env)
	}
	y.pairs(4, "with", s.with)
}

// retrying runs a command until it succeeds, a number of times at most.
func retrying(command string, times, pause int) string {
	if pause == 0 {
		pause = 5
	}
	var n []string
	for i := range times {
		n = append(n, strconv.Itoa(i+1))
	}
	if !simpleCommand.MatchString(command) {
		command = "{ " + strings.ReplaceAll(strings.TrimSpace(command), "\n", "; ") + "; }"
	}
	return "for attempt in " + strings.Join(n,
		" ") + "; do\n  " + command + " && break\n  [ \"$attempt\" -lt " + strconv.Itoa(times) + " ] || exit 1\n  sleep " + strconv.Itoa(pause) + "\ndone"
}

// title is the request in a few words.
func (p *plan) title() string {
	if p.name != "" {
		return p.name
	}
	words := strings.Fields(strings.ReplaceAll(p.request, "`", ""))
	if len(words) > 8 {
		words = append(words[:8], "…")
	}
	return strings.Join(words, " ")
}

var notID = regexp.MustCompile(`[^a-z0-9_-]+`)

func jobID(s string) string {
	id := strings.Trim(notID.ReplaceAllString(strings.ToLower(s), "-"), "-")
	if len(id) > 30 {
		id = strings.Trim(id[:30], "-")
	}
	if id == "" || id[0] >= '0' && id[0] <= '9' {
		id = "job-" + id
	}
	return id
}

var (
	plainScalar = regexp.MustCompile(`^[A-Za-z0-9_./$][A-Za-z0-9_./ =@%+{}()'"!|&<>,;*~$^?\[\]:-]*$`)
	notPlain    = regexp.MustCompile(`(?i)^(?:true|false|null|yes|no|on|off|~|[0-9.].*)$|: |:$| #| $`)
)

// scalar writes s as a YAML scalar on one line, plain where it is safe.
func scalar(s string) string {
	if plainScalar.MatchString(s) && !notPlain.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}
