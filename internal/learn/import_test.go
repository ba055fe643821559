package learn_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

func openLearner(t *testing.T, s *store.Store) *learn.Learner {
	t.Helper()
	l, err := learn.Open(t.Context(), s, learn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// dump is what GitHub's API says of five runs of one job.
func dump() (runs, jobs string) {
	at := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	stamp := func(d time.Duration) string { return at.Add(d).Format(time.RFC3339) }
	var r, j []string
	for i := range 5 {
		d := time.Duration(i) * time.Hour
		end := "success"
		if i == 3 {
			end = "failure"
		}
		r = append(r, fmt.Sprintf(`{"id": %d, "name": "CI", "path": ".github/workflows/ci.yml@refs/heads/main", "head_branch": "main", "head_sha": "sha%d", "event": "push",
			"status": "completed", "conclusion": %q, "run_attempt": 1, "created_at": %q, "run_started_at": %q, "updated_at": %q, "repository": {"full_name": "o/r"}}`,
			100+i, i, end, stamp(d), stamp(d), stamp(d+10*time.Minute)))
		j = append(j, fmt.Sprintf(`{"id": %d, "run_id": %d, "run_attempt": 1, "workflow_name": "CI", "head_sha": "sha%d", "status": "completed", "conclusion": %q,
			"run_url": "https://api.github.com/repos/o/r/actions/runs/%d", "name": "test (22)", "started_at": %q, "completed_at": %q, "runner_name": "GitHub Actions 1",
			"steps": [{"name": "Set up job", "number": 1, "status": "completed", "conclusion": "success", "started_at": %[6]q, "completed_at": %[6]q},
				{"name": "Run actions/checkout@v4", "number": 2, "status": "completed", "conclusion": "success", "started_at": %[6]q, "completed_at": %[6]q},
				{"name": "Run npm test", "number": 3, "status": "completed", "conclusion": %[4]q, "started_at": %[6]q, "completed_at": %[7]q},
				{"name": "Post Run actions/checkout@v4", "number": 5, "status": "completed", "conclusion": "skipped", "started_at": %[6]q, "completed_at": %[6]q}]}`,
			1000+i, 100+i, i, end, 100+i, stamp(d+time.Minute), stamp(d+5*time.Minute)))
	}
	r = append(r, `{"id": 7, "path": ".github/workflows/ci.yml", "status": "in_progress", "conclusion": null}`)
	runs = `{"total_count": 6, "workflow_runs": [` + strings.Join(r, ",") + `]}`
	return runs, `{"jobs": [` + strings.Join(j[:2], ",") + `]}` + "\n" + `[` + strings.Join(j[2:], ",") + `]`
}

func importDump(t *testing.T, l *learn.Learner) learn.ImportResult {
	t.Helper()
	runs, jobs := dump()
	var d learn.GitHubDump
	for _, text := range []string{jobs, runs} { // in any order
		if n, err := d.Read(strings.NewReader(text)); err != nil || n < 5 {
			t.Fatal(n, err)
		}
	}
	list, other, err := d.Executions("")
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Import(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	r.Other += other
	return r
}

func TestImportGitHub(t *testing.T) {
	s := openStore(t)
	l := openLearner(t, s)
	// Five runs, five jobs, two steps of each that ran something.
	if r := importDump(t, l); r.Learned != 20 || r.Failures != 3 || r.Other != 1 || r.Known != 0 || fmt.Sprint(r.Repositories) != "[o/r]" {
		t.Errorf("%+v", r)
	}
	know := func() string {
		f, err := l.PredictCommand(t.Context(), "o/r", "npm test")
		if err != nil {
			t.Fatal(err)
		}
		counts, err := l.Count(t.Context(), "o/r")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %.4f %d %v %+v", f.Seen, f.PFail, f.ExpectedMS, f.Places[0].Job, counts)
	}
	was := know()
	if !strings.HasPrefix(was, "5 ") || !strings.Contains(was, "240000 test (22)") {
		t.Errorf("%s", was)
	}
	if r := importDump(t, l); r.Learned != 0 || r.Known != 10 {
		t.Errorf("again: %+v", r)
	}
	if now := know(); now != was {
		t.Errorf("a second import changed what is known:\n%s\n%s", was, now)
	}
	// So it is for who opens the same store later.
	l = openLearner(t, s)
	if r := importDump(t, l); r.Learned != 0 || r.Known != 10 {
		t.Errorf("later: %+v", r)
	}
	if now := know(); now != was {
		t.Errorf("another process knows otherwise:\n%s\n%s", was, now)
	}
	related, err := l.Next(t.Context(), "o/r", 5, "actions/checkout@v4")
	if err != nil || len(related) == 0 || related[0].Name != "npm test" {
		t.Errorf("%+v, %v", related, err)
	}
	for _, bad := range []string{"{", `{"jobs": 1}`, "x"} {
		var d learn.GitHubDump
		if _, err := d.Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestImportCSV(t *testing.T) {
	l := openLearner(t, openStore(t))
	const file = "started_at,ended_at,workflow,job,step,failed,duration_s\n10,11,w,j,make,0,1\n10,11,w,j,make,0,1\n20,25,w,j,make,1,5\n"
	for i, want := range []learn.ImportResult{{Learned: 3, Failures: 1}, {Known: 3}} {
		list, _, err := learn.ReadCSV(strings.NewReader(file), "o/csv")
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Import(t.Context(), list)
		if err != nil || r.Learned != want.Learned || r.Failures != want.Failures || r.Known != want.Known {
			t.Errorf("%d: %+v, %v", i, r, err)
		}
	}
	if f, err := l.PredictCommand(t.Context(), "o/csv", "make"); err != nil || f.Seen != 3 || f.ExpectedMS == 0 {
		t.Errorf("%+v, %v", f, err)
	}
	if _, _, err := learn.ReadCSV(strings.NewReader(file), ""); err == nil {
		t.Error("rows of nobody were taken")
	}
}

func TestImportLogs(t *testing.T) {
	s := openStore(t)
	l := openLearner(t, s)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"0_test.txt": "2026-01-01T00:00:00.0Z go test\n##[error]undefined: foo in bar.go\n##[error]Process completed with exit code 1.\n",
		"1_fine.txt": "all is well\n", "unit.log": "error: cannot open the lake\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []learn.ImportResult{{Learned: 2, Other: 1}, {Known: 2, Other: 1}} {
		r, err := l.ImportLogs(t.Context(), dir, "o/r", "ci.yml")
		if err != nil || r.Learned != want.Learned || r.Known != want.Known || r.Other != want.Other {
			t.Errorf("%d: %+v, %v", i, r, err)
		}
	}
	sigs, err := s.Signatures(t.Context(), "o/r", 10)
	if err != nil || len(sigs) != 2 {
		t.Fatalf("%+v, %v", sigs, err)
	}
	for _, v := range sigs {
		if v.Seen != 1 || !strings.Contains(v.Text, "foo") && !strings.Contains(v.Text, "lake") {
			t.Errorf("%+v", v)
		}
	}
	if _, err := l.ImportLogs(t.Context(), t.TempDir(), "o/r", ""); err == nil {
		t.Error("an empty directory was taken")
	}
}

func TestExport(t *testing.T) {
	l := openLearner(t, openStore(t))
	importDump(t, l)
	tested(t, l, "o/r", "run", "t", false, map[string]string{"a<&>\"'\x01\x1b": "F", "b": "P"})
	e, err := l.Export(t.Context(), "o/r")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := e.JSON(&out); err != nil {
		t.Fatal(err)
	}
	var back learn.Export
	err = json.Unmarshal(out.Bytes(), &back)
	if err != nil || len(back.Nodes) < 5 || len(back.Nodes) != len(e.Nodes) || len(back.Edges) < 5 || len(back.Tests) != 2 {
		t.Errorf("%d nodes, %d edges, %v", len(back.Nodes), len(back.Edges), err)
	}
	out.Reset()
	if err := e.GraphML(&out); err != nil {
		t.Fatal(err)
	}
	var g struct {
		Graph struct {
			Nodes []struct {
				ID   string `xml:"id,attr"`
				Data []struct {
					Key   string `xml:"key,attr"`
					Value string `xml:",chardata"`
				} `xml:"data"`
			} `xml:"node"`
			Edges []struct {
				Source string `xml:"source,attr"`
				Target string `xml:"target,attr"`
			} `xml:"edge"`
		} `xml:"graph"`
	}
	if err := xml.Unmarshal(out.Bytes(), &g); err != nil || len(g.Graph.Nodes) != len(e.Nodes) || len(g.Graph.Edges) != len(e.Edges) {
		t.Fatalf("%d of %d nodes, %d of %d edges, %v", len(g.Graph.Nodes), len(e.Nodes), len(g.Graph.Edges), len(e.Edges), err)
	}
	ids := map[string]bool{}
	for _, n := range g.Graph.Nodes {
		ids[n.ID] = true
	}
	for _, v := range g.Graph.Edges {
		if !ids[v.Source] || !ids[v.Target] {
			t.Errorf("an edge leads nowhere: %+v", v)
		}
	}
	if other, err := l.Export(t.Context(), "o/other"); err != nil || len(other.Nodes)+len(other.Tests) != 0 {
		t.Errorf("another repository has %+v, %v", other, err)
	}
}
