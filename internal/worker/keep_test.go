package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/worker"
)

// shelf is where a test's points are kept.
type shelf struct {
	mu     sync.Mutex
	points map[int]stored
	order  []string
	fail   func(k worker.Kept) error
}

type stored struct {
	worker.Kept
	private, machine []byte
}

func (s *shelf) keep(ctx context.Context, k worker.Kept) error {
	if s.fail != nil {
		if err := s.fail(k); err != nil {
			return err
		}
	}
	v := stored{Kept: k}
	var b bytes.Buffer
	err := k.Write(ctx, func(private []byte) (io.Writer, error) { v.private = private; return &b, nil })
	v.machine = b.Bytes()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.points == nil {
		s.points = map[int]stored{}
	}
	s.points[k.Step] = v
	s.order = append(s.order, fmt.Sprintf("%d %s", k.Step, k.Name))
	return err
}

const keptJob = `
    steps:
      - {id: one, run: 'echo v=42 >> $GITHUB_OUTPUT; echo "::add-mask::hunter22"'}
      - {name: two, run: 'echo "${{ steps.one.outputs.v }} ${{ secrets.S }} hunter22 $E"; exit 3'}
      - {if: failure(), run: 'echo "mended ${{ secrets.S }}"'}
`

// Each point is given away while the job goes on, and that of its end; from what was
// given another runner goes on with the job, with its secrets masked, in a machine that
// begins as the point.
func TestKeepAndGoOn(t *testing.T) {
	s := newStove(t)
	var kept shelf
	s.Secrets, s.Env = map[string]string{"S": "s3cr3t-value"}, map[string]string{"E": "env"}
	s.Keep = kept.keep
	out := s.run(t.Context(), keptJob, nil)
	if out.Conclusion != ci.Failure || !slices.Equal(kept.order, []string{"1 Run echo v=42 >> $GITHUB_OUTPUT; echo \"::add-mask::hunter22\"", "2 two", "3 Run echo \"mended ***\"", "4 "}) {
		t.Fatalf("%+v, kept %q\n%s", out, kept.order, s.log())
	}
	at := kept.points[2]
	if at.Job.Key != "test" || at.Cost <= 0 || at.Origin.Driver != "host" || !strings.HasSuffix(string(at.machine), "-c2") {
		t.Errorf("%+v", at)
	}
	var begin worker.Begin
	if err := json.Unmarshal(at.private, &begin); err != nil {
		t.Fatal(err)
	}
	job, err := begin.Planned()
	if err != nil {
		t.Fatal(err)
	}
	other := newStove(t)
	mine := begin.Runner()
	mine.Host, mine.Sink, mine.Log, mine.Layout, mine.RunID = other.host, ci.SinkFunc(other.emit), s.Log, s.Layout, ci.NewID()
	saved := &machine.Saved{ID: "x", Origin: at.Origin, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(at.machine)), nil }}
	mine.From = &worker.From{Saved: saved, State: begin.State}
	var machines []*machinetest.Machine
	other.watch = func(r ci.Record) {
		if r.Type == ci.JobStarted {
			machines = other.host.Machines()
		}
	}
	con := &conduct.Conductor{Run: begin.Run, ID: mine.RunID, Sink: mine.Sink, Executor: mine, Mask: mine.Hidden()}
	if out := con.Alone(t.Context(), job, begin.Needs); out.Conclusion != ci.Failure || out.Infrastructure {
		t.Errorf("%+v\n%s", out, other.log())
	}
	if log := other.log(); !strings.Contains(log, "\n42 *** *** env\n") || !strings.Contains(log, "mended ***") || strings.Contains(log, "v=42") {
		t.Error(log)
	}
	if len(machines) != 1 || machines[0].BeganAs() != string(at.machine) {
		t.Errorf("machines %+v", machines)
	}
	var types []string
	for _, r := range other.records {
		if r.Type == ci.RunStarted || r.Type == ci.RunFinished || r.Type == ci.JobFinished {
			types = append(types, string(r.Type)+" "+string(r.Conclusion))
		}
	}
	if !slices.Equal(types, []string{"run.started ", "job.finished failure", "run.finished failure"}) {
		t.Errorf("%q", types)
	}

	// Where the step stands, by itself.
	m, err := other.host.Claim(t.Context(), machine.Request{From: saved})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release(t.Context())
	place, err := mine.Stand(t.Context(), m, &begin)
	if err != nil || place.Dir != s.Layout.Workspace || !slices.Contains(place.Environ, "E=env") {
		t.Errorf("%+v, %v", place, err)
	}

	// A machine that cannot begin so is nothing that the job did.
	saved.Origin.Template = "another"
	if out := con.Alone(t.Context(), job, begin.Needs); !out.Infrastructure || out.Conclusion.Green() {
		t.Errorf("%+v", out)
	}
	// The job's end has no state, and all else.
	var end worker.Begin
	if err := json.Unmarshal(kept.points[4].private, &end); err != nil || end.State != nil || end.Secrets["S"] == "" {
		t.Errorf("%+v, %v", end, err)
	}
}

// A point that cannot be kept is said, once, and the job goes on; where nothing is to
// be kept nothing is.
func TestKeepFails(t *testing.T) {
	s := newStove(t)
	kept := shelf{fail: func(k worker.Kept) error {
		if k.Step == 1 {
			return errors.New("no room")
		}
		return nil
	}}
	s.Keep = kept.keep
	if out := s.run(t.Context(), "    steps: [{run: echo}, {run: echo}]\n", nil); out.Conclusion != ci.Success || len(kept.points) != 2 {
		t.Errorf("%+v, %v", out, kept.order)
	}
	if notes := s.of(ci.AnnotationRec); len(notes) != 1 || !strings.Contains(notes[0].Message, "the point before it could not be kept: no room") {
		t.Errorf("%+v", notes)
	}
	for _, none := range []string{"    steps: [{id: b, background: true, run: echo}, {wait: [b]}]\n", "    steps: [{run: echo}]\n"} {
		s, kept := newStove(t), shelf{}
		if s.Keep = kept.keep; !strings.Contains(none, "wait") {
			s.Points = worker.NoPoints
		}
		if out := s.run(t.Context(), none, nil); out.Conclusion != ci.Success || len(kept.points) != 0 {
			t.Errorf("%+v, %v", out, kept.order)
		}
	}
}
