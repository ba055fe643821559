package engine

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/docker/dockertest"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/plan"
)

func init() { dockertest.Main() } // where this binary is Docker's program

// withEngine gives a bench's machine a container engine.
func withEngine(t *testing.T, b *bench, images map[string]dockertest.Image) *dockertest.Engine {
	t.Helper()
	e := dockertest.New(t, images)
	e.Program(b.dir)
	environment := filepath.Join(b.dir, "environment")
	if err := os.WriteFile(environment, []byte("PATH="+b.dir+":"+os.Getenv("PATH")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	host, agent := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		guest.Serve(ctx, agent, guest.Options{Sockets: map[string]string{guest.Engine: e.Socket}, Environment: environment})
		agent.Close()
	}()
	client, err := guest.New(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); host.Close(); cancel(); <-done })
	b.job.Guest = client
	return e
}

// gone fails the test if something of the job's is left in the engine.
func gone(t *testing.T, e *dockertest.Engine) {
	t.Helper()
	for _, c := range e.All() {
		if !c.Removed {
			t.Errorf("%s is left", c.Name)
		}
	}
	if len(e.Networks) > 0 {
		t.Errorf("networks are left: %v", e.Networks)
	}
}

func TestJobContainer(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    env: {JOB: j}
    container:
      image: docker://debian:12
      env: {Mixed: "a  b ", LINES: "1\n2", TOKEN: "${{ secrets.TOKEN }}", CI: mine}
      options: --cpus 1 --label "two words" --health-cmd="a \"b\""
      ports: [80, "8080:8080"]
      volumes: [data:/data, /a:/b:ro]
    outputs: {o: "${{ steps.s.outputs.x }}"}
    steps:
      - id: s
        run: |
          echo "x=$GITHUB_WORKSPACE" >>$GITHUB_OUTPUT
          echo "$RUNNER_TEMP" >>$GITHUB_PATH
          echo NEW=1 >>$GITHUB_ENV
          echo "::warning file=/__w/r/r/foo.txt,line=3::here"
          pwd
      - run: echo "new $NEW"; echo "${PATH%%:*}"
      - uses: o/js@v1
      - uses: o/composite@v1
      - shell: bash
        run: exit 7
      - if: always()
        run: echo "id ${{ job.container.id != '' }} ${{ job.container.network != '' }} ${{ hashFiles('**') }}"
`)
	e := withEngine(t, b, map[string]dockertest.Image{"debian:12": {Env: []string{"PATH=/inside:" + os.Getenv("PATH")}}})
	b.job.Secrets = map[string]string{"TOKEN": "s3cr3t-value"}
	b.overrides(map[string]string{
		"o/js":        files(t, "-- action.yml --\nruns: {using: node20, main: m.js, post: p.js}\n-- m.js --\nconsole.log('js in', process.cwd())\n-- p.js --\nconsole.log('post')\n"),
		"o/composite": files(t, "-- action.yml --\nruns: {using: composite, steps: [{run: 'ls $GITHUB_ACTION_PATH', shell: sh}]}\n"),
	})
	needNode(t)
	res := b.run()
	log := b.log()
	if res.Conclusion != ci.Failure || res.Outputs["o"] != b.job.Layout.Workspace { // of which the engine has put it back
		t.Errorf("%s %v\n%s", res.Conclusion, res.Outputs, log)
	}
	for _, want := range []string{"\n" + b.job.Layout.Workspace, "\nnew 1\n" + b.job.Layout.Temp + "\n", "\njs in " + b.job.Layout.Workspace, "\naction.yml",
		"##[error]Process completed with exit code 7.", "\nid true true", "\npost", "Stop and remove container: job_debian12_", "| shell: sh -e {0}"} {
		if !strings.Contains(log, want) {
			t.Errorf("no word of %q in\n%s", want, log)
		}
	}
	if strings.Contains(log, "s3cr3t-value") || strings.Contains(log, "a  b") {
		t.Errorf("the values of variables are told:\n%s", log)
	}
	c := e.Of("job_debian12_")
	for _, want := range []string{"Mixed=a  b ", "LINES=1\n2", "TOKEN=s3cr3t-value", "CI=mine", "HOME=/github/home", "GITHUB_ACTIONS=true"} {
		if !slices.Contains(c.Env, want) {
			t.Errorf("no %q in %q", want, c.Env)
		}
	}
	for _, want := range []string{"/var/run/docker.sock:/var/run/docker.sock",
		filepath.Dir(filepath.Dir(b.job.Layout.Workspace)) + ":/__w", b.job.Layout.Tools + ":/__e:ro",
		b.job.Layout.ToolCache + ":/__t", b.job.Layout.Temp + "/_github_home:/github/home", b.job.Layout.Temp + "/_github_workflow:/github/workflow",
		"data:/data", "/a:/b:ro"} {
		if !slices.Contains(c.Binds, want) {
			t.Errorf("no %q in %q", want, c.Binds)
		}
	}
	if want := []string{"--cpus=1", `--health-cmd=a "b"`}; !slices.Equal(c.Options, want) {
		t.Errorf("options %q, want %q", c.Options, want)
	}
	if !slices.Equal(c.Publish, []string{"80", "8080:8080"}) || c.WorkingDir != "/__w/r/r" || !slices.Equal(c.Entrypoint, []string{"tail"}) ||
		!slices.Equal(c.Cmd, []string{"-f", "/dev/null"}) {
		t.Errorf("%+v", c)
	}
	for _, r := range b.all() {
		if r.Type == ci.AnnotationRec && r.Message == "here" && (r.File != "foo.txt" || r.Line != 3) {
			t.Errorf("%+v", r)
		}
	}
	gone(t, e)
}

func TestServices(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    services:
      db:
        image: postgres:16
        credentials: {username: me, password: "${{ secrets.PASS }}"}
        env: {POSTGRES_PASSWORD: x}
        ports: [5432]
        options: --health-cmd pg_isready
        entrypoint: /bin/run
        command: -c "max_connections = 10"
      none: {image: "${{ vars.NONE }}"}
    steps:
      - run: echo "port ${{ job.services.db.ports['5432'] }} ${{ job.services.db.ports[5432] }} ${{ job.services.db.network == job.container.network }} ${{ job.services.none }}"
`)
	b.job.Secrets = map[string]string{"PASS": "hunter2-hunter2"}
	e := withEngine(t, b, map[string]dockertest.Image{"postgres:16": {Password: "hunter2-hunter2", Health: []string{"starting", "starting", "healthy"},
		Ports: map[string]string{"5432/tcp": "32768", "53/udp": "53"}, Log: "ready hunter2-hunter2\n::error::not a command\n::set-output name=a::b\n"}})
	res := b.run()
	log := b.log()
	if res.Conclusion != ci.Success {
		t.Errorf("%s\n%s", res.Conclusion, log)
	}
	for _, want := range []string{"port 32768 32768 true", "db service is starting", "db service is healthy.", "ready ***",
		"::error::not a command", "tag: Pulling from"} {
		if !strings.Contains(log, want) {
			t.Errorf("no word of %q in\n%s", want, log)
		}
	}
	if strings.Contains(log, "hunter2") || strings.Contains(log, "Downloading") {
		t.Error(log)
	}
	for _, r := range b.all() {
		if r.Type == ci.AnnotationRec {
			t.Errorf("a service's log is taken for commands: %+v", r)
		}
	}
	c := e.Of("db_postgres16_")
	if c.Alias != "db" || !slices.Equal(c.Entrypoint, []string{"/bin/run"}) || !slices.Equal(c.Cmd, []string{"-c", "max_connections = 10"}) {
		t.Errorf("%+v", c)
	}
	if len(e.All()) != 1 {
		t.Errorf("%d containers", len(e.All()))
	}
	gone(t, e)
}

// gateway is a registry beside the machine.
type gateway struct{ logins, via []string }

func (g *gateway) Login(registry, user, password string) {
	g.logins = append(g.logins, registry+" "+user+" "+password)
}

func (g *gateway) Via(image string) (string, error) {
	g.via = append(g.via, image)
	return "10.0.2.2:5000/" + strings.Replace(image, "reg:", "reg_", 1), nil
}

// Where there is a registry beside the machine, credentials go there and nowhere else.
func TestCredentialsStayOutside(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("a", 64)
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    container: {image: "reg:5000/a", credentials: {username: me, password: hunter2-hunter2}}
    services: {s: "ghcr.io/o/s`+digest+`"}
    steps: [{run: echo fine}]
`)
	e := withEngine(t, b, map[string]dockertest.Image{"10.0.2.2:5000/reg_5000/a:latest": {},
		"10.0.2.2:5000/ghcr.io/o/s:sha256:" + strings.Repeat("a", 64): {}})
	g := &gateway{}
	b.job.Images, b.job.Token = g, "the-token-1234"
	res := b.run()
	if !slices.Equal(g.logins, []string{"reg:5000 me hunter2-hunter2", "ghcr.io octo the-token-1234"}) ||
		!slices.Equal(g.via, []string{"reg:5000/a", "ghcr.io/o/s" + digest}) {
		t.Errorf("%q %q\n%s", g.logins, g.via, b.log())
	}
	if c := e.Of("job_"); c.Image != "reg:5000/a:latest" || res.Steps[0].Outcome != ci.Success {
		t.Errorf("%+v\n%s", c, b.log())
	}
}

// What keeps containers from running fails the job by its name; steps whose condition
// holds still run where there is something to run them in.
func TestContainersThatFail(t *testing.T) {
	images := map[string]dockertest.Image{
		"sick:latest":    {Health: []string{"starting", "unhealthy"}, Log: "why it is sick\n"},
		"exits:latest":   {Exits: true, Log: "its last words\n"},
		"private:latest": {Password: "right-right"},
		"fine:latest":    {},
	}
	for name, c := range map[string]struct {
		src   string
		want  []string
		steps string // the outcome of the step that runs always
	}{
		"unhealthy":   {"services: {s: {image: sick}}", []string{"Failed to initialize, s service is unhealthy.", "why it is sick"}, "success"},
		"missing":     {"container: nothing:1", []string{"Could not pull the image nothing:1: manifest for nothing:1 not found"}, "skipped"},
		"credentials": {"container: {image: private, credentials: {username: a, password: wrong-wrong}}", []string{"unauthorized: authentication required"}, "skipped"},
		"exits":       {"container: exits", []string{"is not in running state", "its last words"}, "skipped"},
		"gone":        {"services: {s: exits}", []string{"##[warning]Docker container", "its last words"}, "success"},
		"option":      {"services: {s: {image: fine, options: --nonsense x}}", []string{"unknown flag: --nonsense"}, "success"},
		"name":        {"container: {image: '-v/:/x'}", []string{"is not the name of an image"}, "skipped"},
		"quote":       {"container: ${{ vars.BAD }}", []string{"is not the name of an image"}, "skipped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, "jobs:\n  test:\n    runs-on: x\n    "+c.src+"\n    steps:\n      - run: echo never\n      - {if: always(), run: echo always}\n")
			vars := expr.NewMap()
			vars.Set("BAD", expr.String("a b"))
			b.job.Run.Vars = expr.Object(vars)
			e := withEngine(t, b, images)
			res := b.run()
			log := b.log()
			if res.Conclusion != ci.Failure && name != "gone" {
				t.Errorf("%s\n%s", res.Conclusion, log)
			}
			for _, want := range c.want {
				if !strings.Contains(log, want) {
					t.Errorf("no word of %q in\n%s", want, log)
				}
			}
			if strings.Contains(log, "wrong-wrong") || name != "gone" && strings.Contains(log, "\nnever") {
				t.Error(log)
			}
			for _, s := range res.Steps {
				if s.Number == 2 && string(s.Outcome) != c.steps {
					t.Errorf("%+v", s)
				}
			}
			gone(t, e)
		})
	}
}

func TestDockerAction(t *testing.T) {
	b := newBench(t, `
      - id: a
        env: {OWN: step}
        uses: o/docker@v1
        with: {who: me, extra: x}
      - run: echo "said ${{ steps.a.outputs.said }} $SET"
      - uses: docker://tool:1
        with: {entrypoint: sh, args: '-c "echo tool $INPUT_ARGS; exit 3"'}
        continue-on-error: true
      - uses: ./local
      - uses: o/docker@v1
        with: {args: one, who: again}
`)
	images := map[string]dockertest.Image{"tool:1": {}, "hearth-action": {Entrypoint: []string{"sh", "-c", `echo "main $0 $1 $OWN $OTHER $INPUT_WHO"; echo "said=$GITHUB_ACTION" >>$GITHUB_OUTPUT; echo SET=1 >>$GITHUB_ENV; echo st=7 >>$GITHUB_STATE`}}}
	e := withEngine(t, b, images)
	b.job.Results = Results{URL: "http://10.0.2.2", Token: "results-token-1"}
	b.job.IDToken = IDToken{URL: "http://10.0.2.2/id", Token: "id-token-12345"}
	post := filepath.Join(b.dir, "post.sh")
	if err := os.WriteFile(post, []byte("#!/bin/sh\necho post $STATE_st $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := files(t, strings.ReplaceAll(`
-- action.yml --
inputs: {who: {default: x}}
runs:
  using: docker
  image: sub/Dockerfile
  args: ["${{ inputs.who }}", "two words"]
  env: {OWN: action, OTHER: "of ${{ inputs.who }}"}
  pre-entrypoint: echo
  post-entrypoint: POST
-- sub/Dockerfile --
FROM scratch
`, "POST", post))
	b.overrides(map[string]string{"o/docker": dir})
	local := filepath.Join(b.job.Layout.Workspace, "local")
	if err := os.MkdirAll(local, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(local, "Dockerfile"), []byte("FROM scratch\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	res := b.run()
	log := b.log()
	if res.Conclusion != ci.Success {
		t.Errorf("%s\n%s", res.Conclusion, log)
	}
	for _, want := range []string{"main me two words step of me me", "said a 1", "tool -c", "##[warning]Unexpected input(s) 'extra'",
		"main again two words action of again again",
		"built with", "\nme two words\n", "post 7 me", "post 7 again"} {
		if !strings.Contains(log, want) {
			t.Errorf("no word of %q in\n%s", want, log)
		}
	}
	if n := strings.Count(log, "Dockerfile for action: '"); n != 2 { // the remote one once, for all its stages
		t.Errorf("%d builds\n%s", n, log)
	}
	if strings.Contains(log, "results-token") || strings.Contains(log, "id-token-1") {
		t.Error(log)
	}
	for _, c := range e.All() {
		for _, want := range []string{"GITHUB_WORKSPACE=/github/workspace", "HOME=/github/home", "RUNNER_TEMP=/github/runner_temp", "CI=true",
			"GITHUB_EVENT_PATH=/github/workflow/event.json", "ACTIONS_RUNTIME_TOKEN=results-token-1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=id-token-12345"} {
			if !slices.Contains(c.Env, want) {
				t.Errorf("%s: no %q in %q", c.Name, want, c.Env)
			}
		}
		if c.WorkingDir != "/github/workspace" || !slices.Contains(c.Binds, b.job.Layout.Workspace+":/github/workspace") ||
			!slices.Contains(c.Binds, b.job.Layout.Temp+"/_runner_file_commands:/github/file_commands") {
			t.Errorf("%+v", c)
		}
	}
	gone(t, e)
}

// A step that is ended takes along what it started in the container, and its post
// steps run.
func TestContainerTimeout(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    container: debian:12
    steps:
      - timeout-minutes: 0.02
        run: sleep 60 & echo "pid $!"; sleep 60
      - if: always()
        run: echo after
`)
	e := withEngine(t, b, map[string]dockertest.Image{"debian:12": {}})
	began := time.Now()
	res := b.run()
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	if res.Conclusion != ci.Failure || res.Steps[0].Outcome != ci.TimedOut || !strings.Contains(b.log(), "\nafter") {
		t.Errorf("%s %+v\n%s", res.Conclusion, res.Steps[0], b.log())
	}
	_, rest, _ := strings.Cut(b.log(), "\npid ")
	pid, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	// What was killed ends when it comes to run, which takes a moment on a busy host.
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(until) {
			t.Errorf("what the step started goes on: %s", stat)
			break
		}
	}
	gone(t, e)
}

// A job that is cancelled while its containers start does not wait for them, and
// leaves none.
func TestCancelWhileContainersStart(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    services: {s: {image: "slow:1"}}
    steps:
      - run: echo never
      - {if: cancelled(), run: echo cleaned}
`)
	e := withEngine(t, b, map[string]dockertest.Image{"slow:1": {Health: []string{"starting"}}})
	ctx, cancel := context.WithCancel(t.Context())
	b.watch = func(r ci.Record) {
		if strings.Contains(r.Text, "s service is starting") {
			cancel()
		}
	}
	began := time.Now()
	res, err := Run(ctx, b.job)
	if err != nil || res.Conclusion != ci.Cancelled || time.Since(began) > 20*time.Second {
		t.Errorf("%s %v after %v\n%s", res.Conclusion, err, time.Since(began), b.log())
	}
	if log := b.log(); strings.Contains(log, "\nnever") || !strings.Contains(log, "\ncleaned") {
		t.Error(log)
	}
	gone(t, e)
}

// TestJavaScriptInMusl: Node runs in containers whose C library is another by one that
// the machine has, by a link or else by its loader; and where the machine has none, the
// step says so.
func TestJavaScriptInMusl(t *testing.T) {
	needNode(t)
	for _, c := range []struct {
		image  dockertest.Image
		glibc  bool
		want   ci.Conclusion
		loader bool
		said   string
	}{
		{dockertest.Image{Musl: true}, true, ci.Success, false, "\nfrom js"},
		{dockertest.Image{Musl: true, ReadOnly: true}, true, ci.Success, true, "\nfrom js"},
		{dockertest.Image{Musl: true}, false, ci.Failure, false, "the C library of its image is musl"},
		{dockertest.Image{}, false, ci.Success, false, "\nfrom js"},
	} {
		b := newBench(t, `
jobs:
  test:
    runs-on: x
    container: alpine:3
    steps:
      - uses: o/js@v1
      - uses: o/js@v1
`)
		if c.glibc {
			// A loader that says that it was used, and runs what it is given.
			b.job.Layout.Glibc = t.TempDir()
			script := []byte("#!/bin/sh\necho by the loader\nexec \"$@\"\n")
			if err := os.WriteFile(filepath.Join(b.job.Layout.Glibc, "ld-linux-x86-64.so.2"), script, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		e := withEngine(t, b, map[string]dockertest.Image{"alpine:3": c.image})
		b.overrides(map[string]string{"o/js": files(t, "-- action.yml --\nruns: {using: node20, main: m.js}\n-- m.js --\nconsole.log('from js')\n")})
		res := b.run()
		log := b.log()
		if res.Conclusion != c.want || !strings.Contains(log, c.said) || strings.Contains(log, "\nby the loader") != c.loader {
			t.Errorf("%+v: %s\n%s", c, res.Conclusion, log)
		}
		bound := false
		for _, made := range e.Containers {
			bound = bound || slices.Contains(made.Binds, b.job.Layout.Glibc+":/__g:ro")
		}
		if bound != c.glibc {
			t.Errorf("%+v: glibc in the container: %v", c, bound)
		}
	}
}

func TestContainersAsked(t *testing.T) {
	for src, c := range map[string]struct{ want, need, checked bool }{
		"    steps: [{run: echo}]":                                  {false, false, false},
		"    container: debian\n    steps: [{run: echo}]":           {true, true, true},
		"    container: ''\n    steps: [{run: echo}]":               {false, false, false},
		"    container: ${{ vars.NONE }}\n    steps: [{run: echo}]": {true, false, false},
		"    services: {a: b}\n    steps: [{run: echo}]":            {true, false, true},
		"    steps: [{uses: 'docker://alpine'}]":                    {true, false, true},
		"    steps: [{uses: 'docker://alpine', if: failure()}]":     {true, false, false},
		"    steps: [{run: 'x && docker compose up'}]":              {true, false, false},
		"    steps: [{run: 'echo dockers'}]":                        {false, false, false},
		"    steps: [{uses: docker/build-push-action@v6}]":          {true, false, false},
		"    steps: [{parallel: [{run: echo}, {run: docker ps}]}]":  {true, false, false},
		"    steps: [{uses: o/outer@v1}]":                           {false, false, true},
		"    steps: [{uses: o/outer@v1, if: failure()}]":            {false, false, false},
	} {
		b := newBench(t, "jobs:\n  test:\n    runs-on: x\n"+src+"\n")
		b.overrides(map[string]string{"o/outer": files(t, "-- action.yml --\nruns: {using: composite, steps: [{uses: o/docker@v1}]}\n"),
			"o/docker": files(t, "-- Dockerfile --\nFROM scratch\n"), "docker/build-push-action": files(t, "-- action.yml --\nruns: {using: node20, main: x}\n")})
		if want, need := Containers(b.job.Plan); want != c.want || need != c.need {
			t.Errorf("%v %v of\n%s", want, need, src)
		}
		if ds := Check(t.Context(), b.job.Run, CheckOptions{Actions: b.job.Actions}); len(ds) > 0 {
			t.Errorf("%v\n%s", ds, src)
		}
		data, err := json.Marshal(b.job.Run)
		if err != nil {
			t.Fatal(err)
		}
		var again plan.Run // as the server takes one up
		if err := json.Unmarshal(data, &again); err != nil {
			t.Fatal(err)
		}
		if want, need := Containers(again.Jobs[0]); want != (c.want || c.checked) || need != c.checked {
			t.Errorf("checked: %v %v of\n%s", want, need, src)
		}
	}
}

func TestSplitArgs(t *testing.T) {
	for in, want := range map[string][]string{
		"":                             nil,
		"  a  b\t'c d'\n":              {"a", "b", "'c", "d'"},
		`--health-cmd "a b" --x="c d"`: {"--health-cmd", "a b", "--x=c d"},
		`"a \"b\" c" ""`:               {`a "b" c`, ""},
		`C:\dir \\ "a\\" \\"b"`:        {`C:\dir`, `\\`, `a\`, `\b`},
	} {
		if got := splitArgs(in); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
