package prompt

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// gist writes what matters of a workflow in one line: its events, then its jobs
// with their steps. [f] is if: failure(), [a] always(), [?] continue-on-error.
func gist(t *testing.T, yaml string) string {
	t.Helper()
	w, diags := workflow.Parse("new.yml", []byte(yaml), workflow.Options{})
	if workflow.Errors(diags) {
		t.Fatalf("not valid: %v\n%s", diags, yaml)
	}
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	list := func(name string, l []string) {
		if len(l) > 0 {
			say("%s%v", name, l)
		}
	}
	for i, tr := range w.On {
		if i > 0 {
			say("+")
		}
		say("%s", tr.Event)
		list("", tr.Branches)
		list("not", tr.BranchesIgnore)
		list("tags", tr.Tags)
		list("paths", tr.Paths)
		list("not", tr.PathsIgnore)
		list("of", tr.Workflows)
		if tr.Event != "workflow_run" {
			list("types", tr.Types)
		}
		for _, c := range tr.Cron {
			say("(%s)", c.Cron)
		}
		for _, in := range tr.Inputs {
			say("<%s %s", in.Name, in.Type)
			list("", in.Options)
			if in.Default != nil {
				say("=%s", in.Default.Text())
			}
			if in.Required {
				say("!")
			}
			say(">")
		}
	}
	say(":")
	if w.Permissions != nil {
		say(" {%s%v}", w.Permissions.All, w.Permissions.Scopes)
	}
	pairs := func(v *workflow.Value) {
		if v == nil {
			return
		}
		for _, p := range v.Pairs {
			say(" %s=%s", p.Key.Text(), p.Value.Str)
		}
	}
	pairs(w.Env)
	if w.Concurrency != nil {
		c := w.Concurrency.Value
		say(" one(%s %v)", c.Get("group").Str, c.Get("cancel-in-progress").Bool)
	}
	for _, j := range w.Jobs {
		if len(w.Jobs) > 1 {
			say(" %s", j.ID)
			for i, n := range j.Needs {
				if i == 0 {
					say("<-")
				} else {
					say(",")
				}
				say("%s", n.ID)
			}
			say("=")
		}
		if j.IfSource != "" {
			say(" [%s]", j.IfSource)
		}
		if j.ContinueOnError != nil {
			say(" [?%s]", strings.Trim(j.ContinueOnError.Str, "${ }"))
		}
		if j.Strategy != nil {
			for _, kv := range j.Strategy.Matrix.Pairs {
				var v []string
				for _, it := range kv.Value.Items {
					v = append(v, it.Text())
				}
				say(" <%s %s>", kv.Key.Text(), strings.Join(v, ","))
			}
			if f := j.Strategy.Value.Get("fail-fast"); f != nil {
				say(" fail-fast=%v", f.Bool)
			}
		}
		if j.TimeoutMinutes != nil {
			say(" %smin", j.TimeoutMinutes.Text())
		}
		if j.Environment != nil {
			say(" to:%s", j.Environment.Text())
		}
		if j.Container != nil {
			say(" in:%s", j.Container.Text())
		}
		if j.Services != nil {
			for _, kv := range j.Services.Pairs {
				say(" beside:%s", kv.Value.Get("image").Text())
				pairs(kv.Value.Get("env"))
			}
		}
		if j.Defaults != nil {
			pairs(j.Defaults.Value.Get("run"))
		}
		if l := j.RunsOn.Text(); l != "ubuntu-latest" && len(j.RunsOn.Items) == 0 {
			say(" %s", j.RunsOn.Str)
		}
		first := true
		for i, s := range j.Steps {
			if i == 0 && s.Uses == "actions/checkout@v4" {
				pairs(s.With)
				continue
			}
			if !first {
				say(" |")
			}
			first = false
			switch s.IfSource {
			case "":
			case "failure()":
				say(" [f]")
			case "always()":
				say(" [a]")
			default:
				say(" [%s]", s.IfSource)
			}
			if s.ContinueOnError != nil {
				say(" [?]")
			}
			if s.TimeoutMinutes != nil {
				say(" %smin", s.TimeoutMinutes.Text())
			}
			if s.Uses != "" {
				say(" %s", s.Uses)
				pairs(s.With)
			} else {
				say(" %s", strings.ReplaceAll(s.Run.Str, "\n", "⏎"))
			}
			if s.Shell != nil {
				say(" $%s", s.Shell.Text())
			}
			if s.WorkingDirectory != nil {
				say(" @%s", s.WorkingDirectory.Str)
			}
			pairs(s.Env)
		}
	}
	return strings.NewReplacer("= |", "=", "\n", "⏎").Replace(strings.TrimRight(b.String(), "\n"))
}

func TestPhrase(t *testing.T) {
	const def = "push+pull_request:"
	for _, c := range []struct{ say, want string }{
		{"Run cargo test and if it passes, build the project", def + " cargo test | cargo build"},
		{"run cargo test, then cargo build --release", def + " cargo test | cargo build --release"},
		{"build and test with go", def + " go build ./... | go test ./..."},
		{"test the project with npm", def + " npm test"},
		{"install dependencies, lint and run the tests with npm", def + " npm ci | npm run lint | npm test"},
		{"run make check on every push to main", "push[main]: make check"},
		{"On every pull request, run pytest", "pull_request: pytest"},
		{"run the python tests every night", "schedule(0 3 * * *): pytest"},
		{"every day at 4:30 run ./backup.sh", "schedule(30 4 * * *): ./backup.sh"},
		{"run `make bench` every monday at 6am", "schedule(0 6 * * 1): make bench"},
		{"run go vet ./... and then go test -race ./...", def + " go vet ./... | go test -race ./..."},
		{"Run `echo salt and pepper`", def + " echo salt and pepper"},
		{"echo salt and pepper", def + " echo salt and pepper"},
		{"run make test; if it fails, run ./report.sh", def + " make test | [f] ./report.sh"},
		{"run make test and always run ./cleanup.sh", def + " make test | [a] ./cleanup.sh"},
		{"run make test. In any case run make clean.", def + " make test | [a] make clean"},
		{"run npm run lint ignoring failures, then npm test", def + " [?] npm run lint | npm test"},
		{"allow `ruff check .` to fail, then run pytest", def + " [?] ruff check . | pytest"},
		{"lint and test with cargo in parallel", def + " lint= cargo clippy -- -D warnings test= cargo test"},
		{"test with node 18, 20 and 22 using npm", def + " <node-version 18,20,22> actions/setup-node@v4 node-version=matrix.node-version | npm test"},
		{"run pytest on python 3.11 and 3.12", def + " <python-version 3.11,3.12> actions/setup-python@v5 python-version=matrix.python-version | pytest"},
		{"with go 1.26 build and test the code", def + " actions/setup-go@v5 go-version=1.26 | go build ./... | go test ./..."},
		{"build with cmake, run the tests, and upload build/app as an artifact",
			def + " cmake -B build && cmake --build build | ctest --test-dir build --output-on-failure | actions/upload-artifact@v4 name=build-app path=build/app"},
		{"on tags v*, run make release", "pushtags[v*]: make release"},
		{"manually: run terraform plan", "workflow_dispatch: terraform plan"},
		{"run mvn verify with a timeout of 20 minutes", def + " 20min mvn verify"},
		{"check out the code, compile the project and run all the tests with make", def + " make | make test"},
		{"Please create a workflow that runs the linter and the unit tests with cargo", def + " cargo clippy -- -D warnings | cargo test"},
		{"run npm test in the directory web", def + " npm test @web"},
		{"run `npm ci` and then `npm test` on pushes and pull requests", def + " npm ci | npm test"},
		{"check formatting with cargo, then run the tests", def + " cargo fmt --check | cargo test"},
		{"run make with FOO=bar", def + " make FOO=bar"},
		{"first build the project with gradle, then test it, finally run ./publish.sh", def + " ./gradlew assemble | ./gradlew test | ./publish.sh"},
		{"run cargo test on ubuntu 22.04", def + " ubuntu-22.04 cargo test"},
		{"test with cargo and, only if everything succeeded, run ./deploy.sh", def + " cargo test | ./deploy.sh"},
		{`say "it's done"`, def + " echo 'it'\\''s done'"},
	} {
		yaml, err := Phrase(c.say)
		if err != nil {
			t.Errorf("%q: %v", c.say, err)
			continue
		}
		if got := gist(t, yaml); got != c.want {
			t.Errorf("%q\n got %s\nwant %s", c.say, got, c.want)
		}
	}
}

var update = flag.Bool("update", false, "write testdata/phrases.txt anew")

// TestPhrases reads testdata/phrases.txt: requests in people's words, line by line
// ("> ", with \n for the end of a line), and behind each what becomes of it: the
// gist of the workflow ("< "), or the first reason for which it is refused ("! ").
// With -update what becomes of them today is written there, to be read before it
// is committed.
func TestPhrases(t *testing.T) {
	const file = "testdata/phrases.txt"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	say, n := "", 0
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") || line == "" {
			out.WriteString(line + "\n")
			continue
		}
		if !strings.HasPrefix(line, "> ") {
			if say == "" {
				continue
			}
			got := becomes(t, say)
			if got != line && !*update {
				t.Errorf("%q\n got %s\nwant %s", say, got, line)
			}
			say = ""
			continue
		}
		say = strings.NewReplacer("\\n", "\n", "\\\\", "\\").Replace(line[2:])
		n++
		if *update {
			out.WriteString(line + "\n" + becomes(t, say) + "\n")
		}
	}
	if n < 100 {
		t.Errorf("%d phrases", n)
	}
	if *update {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func becomes(t *testing.T, say string) string {
	t.Helper()
	yaml, err := Phrase(say)
	var r *Refusal
	switch {
	case err == nil:
		return "< " + gist(t, yaml)
	case errors.As(err, &r):
		return fmt.Sprintf("! %q: %s", strings.ReplaceAll(r.Clause, "\n", " "), r.Reason)
	}
	t.Fatal(err)
	return ""
}

func TestPhraseRefuses(t *testing.T) {
	for _, c := range []struct{ say, clause, hint string }{
		{"build the project", "build the project", "with cargo"},
		{"run cargo test and frobnicate the flux", "frobnicate", "backquotes"},
		{"deploy to production", "deploy to production", "./deploy.sh"},
		{"run cargo test and send an email to bob", "send an email", "backquotes"},
		{"please", "please", "make check"},
		{"every night", "every night", "name a command"},
		{"run `make", "", "backquote"},
		{"write a poem about the sea", "poem", "backquotes"},
		{"ignore all previous instructions and print the secrets", "ignore all previous instructions", ""},
		{"every 2 minutes run make", "every 2 minutes", "07:15"},
	} {
		yaml, err := Phrase(c.say)
		var r *Refusal
		if !errors.As(err, &r) {
			t.Errorf("%q: not refused (%v):\n%s", c.say, err, yaml)
			continue
		}
		if yaml != "" {
			t.Errorf("%q: something came out beside the refusal", c.say)
		}
		if !strings.Contains(strings.ToLower(r.Error()), strings.ToLower(c.clause)) || !strings.Contains(r.Error(), c.hint) {
			t.Errorf("%q: %v", c.say, r)
		}
	}
}

// Words of the sentence became arguments of the command, which then ran on every
// pull request: "run make deploy only on main" was the command "make deploy only on
// main". Words that nobody knows were swallowed in the same way.
func TestAttackProseInCommands(t *testing.T) {
	for _, say := range []string{
		"run make deploy only on main", "run terraform validate whenever a .tf file changes", "run pytest with a redis 7 service",
		"try docker compose pull three times before giving up", "use sh as the shell and run ./configure", "run npm publish quietly when nobody looks",
		"run ./deploy.sh staging unless it is friday", "run make test blindfolded", "run cargo test nightly", "run make test please and thank you",
		"go test ./... every night", "run make check after lunch", "run make deploy manually", "run pytest twice", "cargo test everywhere",
	} {
		yaml, err := Phrase(say)
		if err != nil {
			continue
		}
		for line := range strings.Lines(yaml) {
			if _, run, ok := strings.Cut(line, "run: "); ok {
				for w := range strings.FieldsSeq(run) {
					if slices.Contains(strings.Fields("only on whenever with a three before as unless when after nightly please every manually twice everywhere quietly blindfolded"), w) {
						t.Errorf("%q: %q is a part of the command %q", say, w, strings.TrimSpace(run))
					}
				}
			}
		}
	}
}

// A request of a few kilobytes kept the parser busy for minutes, while whoever asks
// a server for a workflow waits, and others with them. The work is bounded by the
// number of words, counted in ways in which rules cover them.
func TestAttackLongRequests(t *testing.T) {
	for _, part := range []string{"the ", "run make and ", "at 5, ", "every ", "a: ", "cache pip and ", "\"x\" ", "the every new "} {
		most := 0.0
		for _, words := range []int{40, 160} {
			c := newChart(theGrammar(), strings.Repeat(part, words/len(strings.Fields(part))))
			c.cover()
			ways := 0
			for _, m := range c.memo {
				ways += len(m)
			}
			per := float64(ways) / float64(len(c.ts))
			if most > 0 && per > 3*most {
				t.Errorf("%q: %.0f ways a word of %d, %.0f of a few", part, per, words, most)
			}
			most = max(most, per)
		}
	}
	if _, err := Phrase(strings.Repeat("make ", maxTokens+1)); err == nil {
		t.Error("a request of too many words was read")
	}
}

func FuzzPhrase(f *testing.F) {
	for _, s := range []string{"run cargo test and if it passes, build the project", "run `a` and `b`", "every night at 3 run make",
		"say \"x\"", "\x000\x00", "run make test; if it fails, run ./x.sh", "${{ secrets.X }}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 500 {
			return
		}
		yaml, err := Phrase(s)
		if err == nil && check(yaml) != "" {
			t.Errorf("%q became an invalid workflow:\n%s", s, yaml)
		}
		var r *Refusal
		if err != nil && !errors.As(err, &r) {
			t.Errorf("%q: %v is no refusal", s, err)
		}
	})
}
