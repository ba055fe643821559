package plan_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

var update = flag.Bool("update", false, "write the golden files anew")

func encode(t testing.TB, r *plan.Run) string {
	t.Helper()
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// roundTrip writes and reads a run and checks that nothing changed.
func roundTrip(t testing.TB, r *plan.Run) *plan.Run {
	t.Helper()
	before := encode(t, r)
	out := new(plan.Run)
	if err := json.Unmarshal([]byte(before), out); err != nil {
		t.Fatal(err)
	}
	if after := encode(t, out); after != before {
		t.Fatalf("a round trip changed the run:\n%s\n---\n%s", before, after)
	}
	return out
}

func golden(t testing.TB, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (write it anew with -update); got:\n%s", file, got)
	}
}

// workflows reads testdata/*.yml; those named called-… are only called.
func workflows(t *testing.T) files {
	t.Helper()
	srcs, err := filepath.Glob("testdata/*.yml")
	if err != nil || len(srcs) == 0 {
		t.Fatal("no workflows in testdata", err)
	}
	fs := files{}
	for _, src := range srcs {
		b, err := os.ReadFile(src)
		if err != nil {
			t.Fatal(err)
		}
		fs[filepath.Base(src)] = string(b)
	}
	return fs
}

// TestGolden holds the schema of a serialised run. A change of these files is a
// change of what waits in queues: only additions keep plan.Version.
//
// NAME.json is the run with its files cut to their names: those are another
// package's. NAME.stored.json is a whole run as some version wrote it, which has
// to be read and to run the same for as long as plan.Version says so.
func TestGolden(t *testing.T) {
	fs := workflows(t)
	for name, src := range maps.Clone(fs) {
		if strings.HasPrefix(name, "called-") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			fs := maps.Clone(fs)
			fs[mainFile] = src
			req := request(t, fs)
			req.Workflow = parse(t, name, src)
			r, diags := plan.Build(req)
			if r == nil {
				t.Fatal(diags)
			}
			roundTrip(t, r)
			name = strings.TrimSuffix(name, ".yml")
			cut := *r
			cut.Files = nil
			for _, f := range r.Files {
				cut.Files = append(cut.Files, &plan.File{Workflow: &workflow.Workflow{File: f.Workflow.File}, Called: f.Called})
			}
			golden(t, name+".json", []byte(encode(t, &cut)+"\n"))

			stored := filepath.Join("testdata", name+".stored.json")
			if *update {
				b, err := json.Marshal(r)
				if err == nil {
					err = os.WriteFile(stored, append(b, '\n'), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(stored)
			if err != nil {
				t.Fatal(err)
			}
			old := new(plan.Run)
			if err := json.Unmarshal(b, old); err != nil {
				t.Fatal(err)
			}
			equal(t, "stored jobs", keys(old), keys(r))
			var logs [2][]string
			for i, r := range []*plan.Run{r, old} {
				d := drive(t, r)
				d.outputs["plan"] = map[string]string{"targets": `["linux", "darwin"]`}
				d.run()
				logs[i] = d.log
			}
			equal(t, "the stored run", logs[1], logs[0])
		})
	}
}

func TestOldAndBrokenRuns(t *testing.T) {
	good := encode(t, build(t, jobs("a:", "b: needs: a")))
	for _, c := range []struct{ old, new, want string }{
		{`"version": 1`, `"version": 0`, "another version"},
		{`"version": 1`, `"version": 2`, "another version"},
		{`"key": "b"`, `"key": "a"`, "two jobs"},
		{`"id": "b"`, `"id": "z"`, `no job "z"`},
		{`"call": 0`, `"call": 1`, "does not fit"},
		{`"call": 0`, `"call": -1`, "does not fit"},
		{`"file": 0`, `"file": 9`, "does not fit"},
		{`"parent": 0`, `"parent": 1`, "does not fit"},
	} {
		if !strings.Contains(good, c.old) {
			t.Fatalf("%s is not in the JSON", c.old)
		}
		err := json.Unmarshal([]byte(strings.Replace(good, c.old, c.new, 1)), new(plan.Run))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.new, err, c.want)
		}
	}
}

// wide is a workflow of 256 cells with 50 steps each.
func wide() string {
	var b strings.Builder
	b.WriteString("on: push\nenv: {A: b}\njobs:\n  m:\n    name: m ${{ matrix.a }}-${{ matrix.b }}\n    runs-on: ${{ matrix.os }}\n    strategy:\n      matrix:\n        os: [x]\n        a: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]\n        b: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]\n        include: [{a: 1, c: x}]\n    steps:\n")
	for range 50 {
		b.WriteString("      - name: Step ${{ matrix.a }}\n        if: matrix.a != 3\n        run: |\n          echo ${{ matrix.b }}\n          make\n        env: {V: \"${{ github.ref }}\"}\n")
	}
	return b.String()
}

// TestShared holds that cells share their definition, in memory and in JSON.
func TestShared(t *testing.T) {
	r := build(t, one(wide()))
	for _, j := range r.Jobs {
		if j.Definition != r.Jobs[0].Definition {
			t.Fatal("a cell has a definition of its own")
		}
	}
	if n := strings.Count(encode(t, r), "make"); n != 50 {
		t.Errorf("the steps are written %d times, want 50", n)
	}
}

func BenchmarkBuild256x50(b *testing.B) {
	w := parse(b, mainFile, wide())
	req := request(b, one(wide()))
	req.Workflow = w
	b.ReportAllocs()
	for b.Loop() {
		if r, _ := plan.Build(req); len(r.Jobs) != 256 {
			b.Fatal(len(r.Jobs))
		}
	}
}

func BenchmarkParseAndBuild256x50(b *testing.B) {
	src := []byte(wide())
	req := request(b, one(wide()))
	for b.Loop() {
		req.Workflow, _ = workflow.Parse(mainFile, src, workflow.Options{})
		if r, _ := plan.Build(req); len(r.Jobs) != 256 {
			b.Fatal(len(r.Jobs))
		}
	}
}

func BenchmarkEncode256x50(b *testing.B) {
	r := build(b, one(wide()))
	b.ReportAllocs()
	for b.Loop() {
		out, err := json.Marshal(r)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(out)))
	}
}

func BenchmarkDrive256(b *testing.B) {
	fs := one(wide())
	for b.Loop() {
		b.StopTimer()
		d := drive(b, build(b, fs))
		b.StartTimer()
		d.run()
	}
}
