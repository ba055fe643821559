package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// command and server are what those two give, each with labels of its own.
func command(r *Request) {
	r.Check = engine.CheckOptions{Shells: []string{"bash", "sh", "python"}, Mapped: func(label string) bool { return label == "mine" }}
	r.Fits = fits("ubuntu-latest", "mine")
	r.InputHint, r.LabelHint = "give it with --input", "give it with -P"
}

func server(r *Request) {
	r.DefaultPermissions = "read"
	r.Fits = fits("ubuntu-latest", "gpu")
	r.Check = engine.CheckOptions{Mapped: func(label string) bool { return slices.Contains([]string{"ubuntu-latest", "gpu"}, label) }}
	r.LabelHint = "the labels are ubuntu-latest, gpu"
	r.Planned = func(run *plan.Run) {
		run.Trust = "fork"
		run.Limit(5)
	}
}

func fits(have ...string) func([]string, string) ([]string, []string, error) {
	return func(labels []string, _ string) ([]string, []string, error) {
		for _, l := range labels {
			if !slices.Contains(have, l) {
				return nil, nil, fmt.Errorf("runs-on label %q: nobody has it", l)
			}
		}
		return labels, nil, nil
	}
}

// request reads a workflow of jobs, to be run by hand or for a push.
func request(t *testing.T, event, src string) Request {
	t.Helper()
	w, ds := workflow.Parse("ci.yml", []byte(src), workflow.Options{})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	payload := expr.NewMap()
	payload.Set("after", expr.String("abc"))
	run := ci.Run{ID: ci.NewID(), Event: event, Repository: "o/r", Workflow: "ci.yml", File: "ci.yml",
		Ref: "refs/heads/main", SHA: "abc", Actor: "mona", Number: 3, Attempt: 2}
	return Request{Workflow: w,
		Event: &workflow.Happening{Event: event, Ref: run.Ref, SHA: run.SHA, BaseRef: "main", HeadRef: "topic", Payload: expr.Object(payload)},
		Facts: Facts{Run: run, Server: "https://github.com", API: "https://api.github.com"},
		Load: func(uses string, _ *workflow.Workflow) (string, []byte, error) {
			if uses == "./inner.yml" {
				return "inner.yml", []byte("on: workflow_call\njobs:\n  in:\n    runs-on: [ubuntu-latest, huge]\n    steps: [{run: echo}]\n"), nil
			}
			return "", nil, fmt.Errorf("%s: %w", uses, os.ErrNotExist)
		}}
}

const (
	head = "on: {push: , workflow_dispatch: {inputs: {who: {required: true}, loud: {type: boolean}}}}\njobs:\n"
	fine = head + "  a:\n    runs-on: ubuntu-latest\n    steps: [{run: echo}]\n"
)

// What is wrong with a workflow is said the same way, at the same place and once,
// whoever asks; what to do about it is the asker's.
func TestFaults(t *testing.T) {
	const input = "ci.yml:1:14: Required input 'who' not provided"
	for _, c := range []struct {
		name, event, src string
		inputs           map[string]string
		command, server  string // the diagnostics with their hints, a line each
		unplanned        bool
	}{
		{name: "nothing", event: "push", src: fine},
		{name: "an input is missing", event: "workflow_dispatch", src: fine, command: input + " (give it with --input)", server: input, unplanned: true},
		{name: "inputs of a push", event: "push", src: fine, inputs: map[string]string{"nobody": "knows"}},
		{name: "labels", event: "push",
			src:     head + "  a:\n    runs-on: gpu\n    steps: [{run: echo}]\n  b:\n    runs-on: [mine, ubuntu-latest]\n    steps: [{run: echo}]\n",
			command: `ci.yml:4:14: runs-on label "gpu": nobody has it (give it with -P)`,
			server:  `ci.yml:7:14: runs-on label "mine": nobody has it (the labels are ubuntu-latest, gpu)`},
		{name: "cells that say the same", event: "push", src: head + "  a:\n    strategy: {matrix: {n: [1, 2, 3]}}\n    runs-on: huge\n    steps: [{run: echo}]\n",
			command: `ci.yml:5:14: runs-on label "huge": nobody has it (give it with -P)`,
			server:  `ci.yml:5:14: runs-on label "huge": nobody has it (the labels are ubuntu-latest, gpu)`},
		{name: "another system, said once", event: "push", src: head + "  a:\n    runs-on: windows-latest\n    steps: [{run: echo}]\n",
			command: "ci.yml:4:14: Job 'a' runs on 'windows-latest': the machines here are Linux, not Windows (Run this job on GitHub.)",
			server:  "ci.yml:4:14: Job 'a' runs on 'windows-latest': the machines here are Linux, not Windows (Run this job on GitHub.)"},
		{name: "of a called workflow", event: "push", src: head + "  a:\n    uses: ./inner.yml\n",
			command: `inner.yml:4:14: runs-on label "huge": nobody has it (give it with -P)`,
			server:  `inner.yml:4:14: runs-on label "huge": nobody has it (the labels are ubuntu-latest, gpu)`},
		{name: "a shell", event: "push", src: head + "  a:\n    runs-on: ubuntu-latest\n    steps: [{run: echo, shell: pwsh}]\n",
			command: "ci.yml:5:32: The shell 'pwsh' is not in this machine's image (Use another shell, or an image that has it (-P label=image).)"},
	} {
		for _, asks := range []struct {
			who  string
			as   func(*Request)
			want string
		}{{"command", command, c.command}, {"server", server, c.server}} {
			t.Run(c.name+"/"+asks.who, func(t *testing.T) {
				r := request(t, c.event, c.src)
				r.Inputs = c.inputs
				asks.as(&r)
				run, ds := Plan(context.Background(), r)
				var said []string
				for _, d := range ds {
					text := d.String()
					if d.Hint != "" {
						text += " (" + d.Hint + ")"
					}
					said = append(said, text)
				}
				if got := strings.Join(said, "\n"); got != asks.want {
					t.Errorf("said\n%s\nwant\n%s", got, asks.want)
				}
				if (run == nil) != c.unplanned {
					t.Errorf("planned: %v", run != nil)
				}
			})
		}
	}
}

// A workflow that cannot be read is a fault at the call, and nothing is planned.
func TestUnreadable(t *testing.T) {
	for _, as := range []func(*Request){command, server} {
		r := request(t, "push", head+"  a:\n    uses: ./gone.yml\n")
		as(&r)
		if run, ds := Plan(context.Background(), r); run != nil || len(ds) != 1 || ds[0].Pos.Line != 4 || !strings.Contains(ds[0].Message, "gone.yml") {
			t.Errorf("%v, %v", run, ds)
		}
	}
}

// A workflow of another repository that cannot be had stops the job that calls it, and
// no other; one may be taken as running.
func TestAbsent(t *testing.T) {
	r := request(t, "push", fine+"  far:\n    uses: o/far/.github/workflows/x.yml@v1\n    with: {a: true, b: 3, 'c d': x}\n    secrets: {S: x}\n"+
		"  twice:\n    needs: far\n    uses: o/far/.github/workflows/x.yml@v1\n    with: {e: '${{ needs.far.outputs.x }}'}\n    secrets: inherit\n")
	command(&r)
	run, ds := Plan(t.Context(), r)
	if run == nil || len(ds) != 2 || ds[0].Pos.Line != 7 ||
		!strings.Contains(ds[0].Message, "Unable to find reusable workflow 'o/far/.github/workflows/x.yml@v1'") {
		t.Fatalf("%v, %v", run, ds)
	}
	for _, j := range run.Jobs {
		if refused := len(j.Refused) > 0; refused != (j.ID == "absent") {
			t.Errorf("%s: %v", j.Key, j.Refused)
		}
	}
	r.Check.AssumeActions = true
	if run, ds = Plan(t.Context(), r); run == nil || len(ds) > 0 {
		t.Errorf("%v, %v", run, ds)
	}
}

// What is planned has the inputs, typed, in its context and as text in the payload
// of its own; the payload that was given stays as it was.
func TestPlanned(t *testing.T) {
	r := request(t, "workflow_dispatch", head+`  a:
    name: >-
      ${{ inputs.loud && 'LOUD' }} ${{ github.event.inputs.loud }} ${{ github.event.after }} ${{ vars.COLOUR }}
      ${{ github.actor }}/${{ github.triggering_actor }} ${{ github.head_ref }}
    runs-on: ubuntu-latest
    timeout-minutes: 50
    steps: [{run: echo}]
`)
	server(&r)
	r.Inputs, r.Vars, r.Facts.Again = map[string]string{"who": "us", "loud": "true"}, map[string]string{"COLOUR": "red"}, "hubot"
	run, ds := Plan(context.Background(), r)
	if len(ds) > 0 || run == nil {
		t.Fatal(ds)
	}
	if j := run.Jobs[0]; j.Name != "LOUD true abc red mona/hubot topic" || j.TimeoutMinutes != 5 || run.Trust != "fork" {
		t.Errorf("%q, %v minutes, %q", j.Name, j.TimeoutMinutes, run.Trust)
	}
	if access := run.Jobs[0].Permissions["contents"]; access != "read" {
		t.Errorf("contents: %q, of a repository whose tokens read", access)
	}
	if _, there := r.Event.Payload.AsMap().Get("inputs"); there {
		t.Error("the payload that was given has changed")
	}
	r = request(t, "push", fine)
	command(&r)
	if run, ds = Plan(context.Background(), r); len(ds) > 0 || run.Jobs[0].Permissions["contents"] != "write" {
		t.Errorf("%v, %v", run, ds)
	}
	r.ReadOnly = true
	if run, ds = Plan(context.Background(), r); len(ds) > 0 || run.Jobs[0].Permissions["contents"] != "read" {
		t.Errorf("%v, %v", run, ds)
	}
}

// A forge that did not answer is kept by whoever reads, and read errors of the
// check do not stop it from saying what else there is.
func TestForgeFails(t *testing.T) {
	r := request(t, "push", head+"  a:\n    runs-on: huge\n    steps: [{uses: ./act}]\n")
	server(&r)
	away := errors.New("no answer")
	var trouble error
	locks := error(os.ErrNotExist)
	r.Check.Files = func(_ context.Context, name string, _ int64) ([]byte, error) {
		if name == workflow.LockFile {
			return nil, locks
		}
		trouble = away
		return nil, away
	}
	if run, ds := Plan(context.Background(), r); run == nil || len(ds) < 2 || trouble != away {
		t.Errorf("%v, %v, %v", run, ds, trouble)
	}
	// What actions are locked to is not known then: nothing runs.
	locks = away
	if run, ds := Plan(context.Background(), r); run != nil || len(ds) == 0 || !strings.Contains(ds[len(ds)-1].Message, "no answer") {
		t.Errorf("%v, %v", run, ds)
	}
}
